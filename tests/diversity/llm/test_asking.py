"""Requests under faults: every answer once, nothing paid twice, never more than the budget, whatever breaks."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.artifact import Storage
from diversity.config import ConfigError, UserError, parse
from diversity.llm import asking, endpoint
from diversity.llm.answers import Answers
from diversity.llm.asking import Asker, check_transport, kinds, known_answers, request_key, served_models
from diversity.llm.budget import Budget, BudgetConfig, BudgetSpent
from diversity.llm.endpoint import EndpointConfig, most_tokens
from diversity.llm.model import ModelConfig
from diversity.llm.reading import Answer, EndpointError, TryAgain, follows_schema, read_response
from diversity.typings.taggers import TaggerConfig
from tests.endpoint import Server, completion
from tests.fault_proxy import FAULTS, FaultProxy

QUICK = {"backoff_s": 0.01, "timeout_s": 0.8, "concurrency": 4, "tries": 12}


@pytest.fixture
def behind():
    """Return what starts a proxy with a plan of faults before a server that echoes."""
    opened = []

    def start(plan, answer=lambda prompt, number: (200, {}, completion(f"echo of {prompt}"))):
        server = Server(answer)
        opened.append(server)
        opened.append(FaultProxy(server.url, plan))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


@pytest.fixture
def serve():
    """Return what starts a server with a plan of answers."""
    opened = []

    def start(plan):
        opened.append(Server(plan))
        return opened[-1]

    yield start
    for server in opened:
        server.close()


def bodies(n, **more):
    found = [{"model": "m", "max_tokens": 16, "messages": [{"role": "user", "content": f"prompt {i}"}], **more} for i in range(n)]
    return {request_key(body): body for body in found}


def asker(url, storage, budget=None, **config):
    endpoint = EndpointConfig(**{**QUICK, **config})
    return Asker(url, endpoint, Answers(storage, "t"), budget, storage=storage, ledger="t")


def text_of(key, asked):
    return f"echo of {asked[key]['messages'][0]['content']}"


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_survived_and_booked(behind, tmp_path, fault):
    proxy = behind(lambda number, body: fault if number % 3 == 0 else None)
    asked, storage = bodies(9), Storage(str(tmp_path))
    one = asker(proxy.url, storage, BudgetConfig(requests=100, tokens=100_000))
    found = one.ask(asked)
    assert {key: answer.text for key, answer in found.items()} == {key: text_of(key, asked) for key in asked}
    assert one.budget.requests == proxy.requests and one.budget.tokens >= proxy.billed_tokens
    assert set(proxy.delivered.values()) == {1}
    if fault in ("429", "slow"):
        assert one.budget.tokens == proxy.billed_tokens, "what is sure is settled to the token"
    again = asker(proxy.url, storage, BudgetConfig())
    assert again.ask(asked) == found and (again.budget.requests, again.budget.tokens) == (one.budget.requests, one.budget.tokens)


@pytest.mark.parametrize("seed", range(4))
def test_spent_is_never_more_than_the_budget_under_any_plan_of_faults(behind, tmp_path, seed):
    """As the server behind the faults counts it. Where the budget ends the run, raising it goes on, and nothing is asked again."""
    draw = random.Random(seed)
    plan = [draw.choice([*FAULTS, None, None, None, None]) for _ in range(400)]
    proxy = behind(lambda number, body: None if plan[number % 400] == "hang" and number % 5 else plan[number % 400])
    asked, storage, limit = bodies(30), Storage(str(tmp_path)), BudgetConfig(requests=18, tokens=2_600)
    with pytest.raises(BudgetSpent, match=r"\d+ of 30 requests are answered, then the budget of [\d,]+ (requests|tokens) is spent"):
        asker(proxy.url, storage, limit).ask(asked)
    assert proxy.requests <= 18 and proxy.billed_tokens <= 2_600
    before = dict(proxy.delivered)
    found = asker(proxy.url, storage, BudgetConfig(requests=1000, tokens=10**6)).ask(asked)
    assert len(found) == 30 and all(proxy.delivered[body] == count for body, count in before.items())


PROGRAM = """
import json, sys
from tests.diversity.llm.test_asking import asker, bodies
from diversity.artifact import Storage
from diversity.llm.budget import BudgetConfig

one = asker(sys.argv[1], Storage(sys.argv[2]), BudgetConfig(requests=int(sys.argv[3]), tokens=10**6), concurrency=3)
one.ask(bodies(int(sys.argv[4])))
"""


def test_twenty_kills_pay_nothing_twice(behind, tmp_path):
    """SIGKILL at random moments, under faults: in the end the answers are those of a run without, each delivered and kept once."""

    def slowly(prompt, number):
        time.sleep(0.01)
        return 200, {}, completion(f"echo of {prompt}")

    proxy = behind(lambda number, body: {5: "429", 11: "500", 17: "cut", 23: "no usage"}.get(number % 29), slowly)
    n, limit, draw = 240, 600, random.Random(1)
    asked, storage = bodies(n), Storage(str(tmp_path / "s"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", PROGRAM, proxy.url, str(tmp_path / "s"), str(limit), str(n)]
    for _ in range(20):
        before, job = proxy.requests, subprocess.Popen(command, env=environment)
        while job.poll() is None and proxy.requests < before + 4 + draw.randrange(8):
            time.sleep(0.002)
        job.send_signal(signal.SIGKILL)
        job.wait()
    seen = -1
    while seen != (seen := sum(proxy.delivered.values())):
        time.sleep(0.5)  # what the last process had on the wire is still being answered
    lost = seen - len(Answers(storage, "t"))
    one = asker(proxy.url, storage, BudgetConfig(requests=limit, tokens=10**6))
    found = one.ask(asked)
    assert {key: answer.text for key, answer in found.items()} == {key: text_of(key, asked) for key in asked}
    assert proxy.requests <= one.budget.requests <= limit, "what was booked and died before it was sent stays booked"
    assert proxy.billed_tokens <= one.budget.tokens <= 10**6
    twice = sum(count - 1 for count in proxy.delivered.values())
    assert twice <= lost <= 20 * 3, "only what was on the wire when the process died is asked again"


INTERRUPTED = """
import signal, sys
from tests.diversity.llm.test_asking import asker, bodies
from diversity.artifact import Storage

def ended(number, frame):
    raise SystemExit(143)

signal.signal(signal.SIGTERM, ended)
signal.signal(signal.SIGINT, signal.default_int_handler)
asker(sys.argv[1], Storage(sys.argv[2]), concurrency=2).ask(bodies(60))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_asking_and_what_is_under_way_is_booked(serve, tmp_path, number):
    def slowly(prompt, number):
        time.sleep(0.05)
        return 200, {}, completion("x")

    server, storage = serve(slowly), Storage(str(tmp_path / "s"))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    job = subprocess.Popen([sys.executable, "-c", INTERRUPTED, server.url, storage.uri], env=environment, stderr=subprocess.DEVNULL)
    while len(server.bodies) < 5:
        assert job.poll() is None
        time.sleep(0.002)
    job.send_signal(number)
    assert job.wait(20) != 0
    sent = len(server.bodies)
    assert sent <= 5 + 2 * 2 and sent - 2 <= len(Answers(storage, "t")) <= sent
    assert sent <= Budget(BudgetConfig(), storage, "t").requests <= sent + 2


KEPT_SLOWLY = """
import signal, sys, threading, time
from diversity.llm.endpoint import Endpoint, EndpointConfig
from tests.diversity.llm.test_asking import bodies

signal.signal(signal.SIGINT, signal.default_int_handler)
kept, lock = [], threading.Lock()

def keep(number, answer):
    time.sleep(0.5)
    with lock:
        kept.append(number)

endpoint = Endpoint(sys.argv[1], EndpointConfig(concurrency=32))
try:
    endpoint.ask(list(bodies(32).values()), keep)
except KeyboardInterrupt:
    pass
print(len(kept), endpoint.answered)
"""


def test_what_is_paid_is_kept_though_keeping_is_slow_and_interrupted(serve):
    server = serve(lambda prompt, number: (200, {}, completion("x")))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    job = subprocess.Popen([sys.executable, "-c", KEPT_SLOWLY, server.url], env=environment, stdout=subprocess.PIPE, text=True)
    while len(server.bodies) < 32:
        assert job.poll() is None
        time.sleep(0.002)
    time.sleep(0.5)  # the answers are on their way back
    job.send_signal(signal.SIGINT)
    kept, answered = map(int, job.communicate(timeout=60)[0].split())
    assert kept == answered > 0


def test_what_is_asked_again_is_asked_once_more_whatever_restarts(serve, tmp_path):
    cut = [True]
    server = serve(lambda prompt, number: (200, {}, completion("x", "length" if cut[0] else "stop")))
    asked, storage = bodies(5), Storage(str(tmp_path))

    def left(*again):
        known = known_answers(Answers(storage, "t"), EndpointConfig(ask_again=again), asked)
        return len(asked) - len(known)

    asker(server.url, storage).ask(asked)
    assert len(server.bodies) == 5 and (left(), left("cut"), left("refused"), left("cut", "cut")) == (0, 5, 0, 5)
    for _ in range(2):
        one = asker(server.url, storage, ask_again=["cut"])
        one.ask(asked)
        one.ask(asked)
        assert len(server.bodies) == 10 and (left("cut"), left("cut", "cut")) == (0, 5)
    cut[0] = False
    found = asker(server.url, storage, ask_again=["cut", "cut"]).ask(asked)
    assert kinds(found) == {"ok": 5} and len(server.bodies) == 15 and left(*["cut"] * 9) == 0
    assert Budget(BudgetConfig(), storage, "t").tokens == 15 * 12


def test_one_call_asks_again_what_it_is_to(serve):
    server = serve(lambda prompt, number: (200, {}, completion("x" if number == 3 else " ")))
    assert kinds(asker(server.url, None, ask_again=["empty"]).ask(bodies(4))) == {"empty": 4} and set(server.tries.values()) == {2}
    assert kinds(asker(server.url, None, ask_again=["empty", "empty"]).ask(bodies(4))) == {"ok": 4} and set(server.tries.values()) == {3}


AGAIN = """
import sys
from tests.diversity.llm.test_asking import asker, bodies
from diversity.artifact import Storage

asker(sys.argv[1], Storage(sys.argv[2]), ask_again=["cut"], timeout_s=60).ask(bodies(1))
"""


def test_an_earlier_answer_does_not_settle_a_request_whose_process_died(serve, tmp_path):
    def plan(prompt, number):
        time.sleep(5 * (number == 2))
        return 200, {}, completion("x", "length")

    server, storage, asked = serve(plan), Storage(str(tmp_path / "s")), bodies(1)
    asker(server.url, storage).ask(asked)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    job = subprocess.Popen([sys.executable, "-c", AGAIN, server.url, storage.uri], env=environment)
    while len(server.bodies) < 2:
        assert job.poll() is None
        time.sleep(0.01)
    job.kill()
    job.wait()
    most = [most_tokens(body, len(json.dumps(body, ensure_ascii=False).encode())) for body in asked.values()]
    one = asker(server.url, storage, ask_again=["cut"])
    assert (one.budget.requests, one.budget.tokens) == (2, 12 + most[0])
    one.ask(asked)
    assert (one.budget.requests, one.budget.tokens) == (3, 24 + most[0])


def test_refusals_are_kept_once_a_later_answer_shows_that_they_are_the_prompts(serve, tmp_path):
    broken = [30]

    def plan(prompt, number):
        refused = sum(server.tries.values()) > broken[0] or int(prompt.split()[1]) % 10 == 3
        return (400, {}, b"billing hard limit") if refused else (200, {}, completion("x"))

    server, storage, asked = serve(plan), Storage(str(tmp_path)), bodies(100)
    with pytest.raises(EndpointError, match="refused .* of .* prompts, the last with HTTP 400: billing hard limit"):
        asker(server.url, storage, concurrency=1).ask(asked)
    kept = Answers(storage, "t").find(asked)
    assert len(kept) == 30 and sum(record["finish"] == "refused" for record in kept.values()) == 3
    broken[0] = 10**6
    found = asker(server.url, storage, concurrency=1).ask(asked)
    assert kinds(found) == {"ok": 90, "refused": 10}


def test_answers_without_the_form_are_kept_only_where_another_has_it(serve, tmp_path):
    form = {"type": "json_schema", "json_schema": {"name": "v", "schema": {"type": "object", "required": ["verdict"]}}}
    first = [30]
    server = serve(lambda prompt, number: (200, {}, completion("plain" if sum(server.tries.values()) <= first[0] else '{"verdict": 1}')))
    storage, asked = Storage(str(tmp_path)), bodies(20, response_format=form)
    with pytest.raises(EndpointError, match="ignores response_format"):
        asker(server.url, storage, concurrency=1).ask(asked)
    assert len(server.bodies) == 8 and not len(Answers(storage, "t"))
    first[0] = 8 + 4
    with pytest.raises(BudgetSpent):
        asker(server.url, storage, BudgetConfig(requests=8 + 3), concurrency=1).ask(asked)
    assert len(Answers(storage, "t")) == 3, "what is paid is kept where it may be the prompts'"
    assert [answer.text for answer in asker(server.url, storage, concurrency=1).ask(asked).values()].count("plain") == 4
    assert len(server.bodies) == 8 + 20


def test_progress_is_that_of_all_requests(serve, monkeypatch):
    totals = []

    class Noted(endpoint.Progress):
        def __init__(self, total):
            totals.append(total)
            super().__init__(total)

    monkeypatch.setattr(endpoint, "Progress", Noted)
    monkeypatch.setattr(asking, "PACK_EVERY", 3)
    assert len(asker(serve(lambda prompt, number: (200, {}, completion("x"))).url, None).ask(bodies(10))) == 10 and totals == [10]


@given(st.lists(st.tuples(st.sampled_from(["reserve", "settle", "lose", "unsent", "die"]), st.integers(1, 60)), max_size=30))
@settings(max_examples=60, deadline=None)
def test_a_budget_is_its_naive_twin(tmp_path_factory, steps):
    """Against a plain sum: settled requests cost their usage, all others their reservation, over any deaths of the process."""
    import asyncio

    storage = Storage(str(tmp_path_factory.mktemp("budget")))
    kept, under_way, cost, requests = {}, [], {}, 0
    budget = Budget(BudgetConfig(tokens=900), storage, "t", lambda keys: {key: kept[key] for key in keys if key in kept})
    for number, (step, tokens) in enumerate(steps):
        if step == "reserve":
            fits = sum(cost.values()) + tokens <= 900
            try:
                taken = asyncio.run(asyncio.wait_for(budget.reserve(f"k{number}", tokens), 0.05))
            except (BudgetSpent, TimeoutError):
                assert not fits
                continue
            assert fits
            under_way.append((taken, number, tokens))
            cost[number] = tokens
            requests += 1
        elif step == "die":
            budget = Budget(BudgetConfig(tokens=900), storage, "t", lambda keys: {key: kept[key] for key in keys if key in kept})
            under_way = []
        elif under_way:
            taken, place, reserved = under_way.pop(0)
            if step == "settle":
                cost[place] = kept[f"k{place}"] = min(tokens, reserved)
            elif step == "unsent":
                cost[place] = 0
                requests -= 1
            budget.settle(taken, {"settle": cost[place], "lose": None, "unsent": 0}[step], sent=step != "unsent")
            if step == "unsent":
                budget._write()  # else a death right here would book it as sent
        assert budget.tokens == sum(cost.values()) <= 900 and budget.requests == requests


def test_two_processes_never_spend_one_budget(tmp_path):
    import asyncio

    storage = Storage(str(tmp_path))
    first = Budget(BudgetConfig(requests=3), storage, "t")
    asyncio.run(first.reserve("a", 5))
    second = Budget(BudgetConfig(requests=3), storage, "t")
    assert second.requests == 1
    with pytest.raises(UserError, match="another process spends this budget now"):
        asyncio.run(first.reserve("b", 5))
    asyncio.run(second.reserve("c", 5))
    assert Budget(BudgetConfig(requests=3), storage, "t").requests <= 3


def test_a_budget_on_an_object_store(tmp_path, monkeypatch):
    """Through a filesystem that isn't a local one: an object for each write, and they become one when the next process opens it."""
    import asyncio

    remote = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    (tmp_path / "b").mkdir()
    monkeypatch.setattr(Storage, "filesystem", lambda self: (remote, "b"))
    storage = Storage("s3://b")

    async def spend(budget):
        numbers = await asyncio.gather(*(budget.reserve(f"k{i}", 10) for i in range(6)))
        budget.settle(numbers[0], 4)
        budget.settle(numbers[1], 0, sent=False)
        budget._write()  # and the process dies with four requests under way

    for turn in range(1, 4):
        asyncio.run(spend(Budget(BudgetConfig(tokens=1000), storage, "t")))
        after = Budget(BudgetConfig(tokens=1000), storage, "t", lambda keys: {"k5": 3} if "k5" in keys else {})
        assert (after.requests, after.tokens) == (5 * turn, turn * (4 + 30 + 3))
    assert len(list((tmp_path / "b/cache/budgets/t").glob("*.jsonl"))) == 1
    answers = Answers(storage, "a")
    answers.keep("k", {"text": "x"})
    assert Answers(storage, "a").find(["k"]) == {"k": {"text": "x"}}
    answers.pack()
    assert Answers(storage, "a").find(["k"]) == {"k": {"text": "x"}} and not list((tmp_path / "b/cache/answers/a/loose").iterdir())


def test_an_endpoint_that_ignores_what_it_is_asked_is_named(behind):
    plain = behind(lambda number, body: None)
    with pytest.raises(EndpointError, match=rf"{plain.url}/chat/completions ignores logprobs: 'm' answered without them"):
        asker(plain.url, None).ask(bodies(2, logprobs=True, top_logprobs=5))
    form = {"type": "json_schema", "json_schema": {"name": "v", "schema": {"type": "object", "required": ["verdict"]}}}
    with pytest.raises(EndpointError, match=rf"{plain.url}/chat/completions ignores response_format: none of the first 8 answers of 'm'"):
        asker(plain.url, None).ask(bodies(30, response_format=form))


def test_log_probabilities_and_the_served_model_are_read(tmp_path):
    place = {"token": "A", "logprob": -0.1, "top_logprobs": [{"token": "A", "logprob": -0.1}, {"token": " B", "logprob": -2.5}]}
    choice = {"message": {"content": "A"}, "finish_reason": "length", "logprobs": {"content": [place]}}
    content = json.dumps({"choices": [choice], "model": "judge-2026", "usage": {"prompt_tokens": 3, "completion_tokens": 1}}).encode()
    found = read_response("u", {"logprobs": True}, 200, None, content)
    assert found == Answer("A", "length", 3, 1, [[["A", -0.1], [" B", -2.5]]], "judge-2026")
    answers = Answers(Storage(str(tmp_path)), "t")
    answers.keep("k", found.record())
    assert Answer(**Answers(Storage(str(tmp_path)), "t").find(["k"])["k"]) == found
    assert Answer(**{"text": "x", "finish": "stop", "prompt_tokens": 1, "completion_tokens": 1}).model is None, "older records are read"
    assert served_models({"a": found, "b": Answer("x", "stop"), "c": Answer("no", "refused")}) == {"judge-2026": 1, "not told": 1}
    assert kinds({"a": Answer("x", "stop"), "b": Answer(" ", "stop"), "c": Answer("x", "length")}) == {"ok": 1, "empty": 1, "cut": 1}


def test_no_message_repeats_a_key(behind, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    proxy = behind(lambda number, body: None, lambda prompt, number: (401, {}, b"Incorrect API key provided: sk-very-secret"))
    with pytest.raises(EndpointError, match="Incorrect API key provided: …") as error:
        asker(proxy.url, Storage(str(tmp_path))).ask(bodies(2))
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert "very-secret" not in f"{error.value}{caplog.text}" and b"very-secret" not in written


KEY = "sk-" + "K" * 45


@given(st.integers(0, 330), st.sampled_from(["x", "x ", " \n "]), st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_no_excerpt_holds_a_part_of_a_key(chars, filling, times):
    body = (filling * chars)[:chars] + " ".join([KEY] * times)
    assert "KKK" not in read_response("u", {}, 400, None, body.encode(), secret=KEY).text


def test_a_key_is_taken_without_the_line_break_of_its_file(serve, monkeypatch):
    server = serve(lambda prompt, number: (200, {}, completion("x")))
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    asker(server.url, None).ask(bodies(1))
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n{KEY}")
    with pytest.raises(EndpointError, match="the key in OPENAI_API_KEY has characters") as error:
        asker(server.url, None)
    assert "KKK" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "extra", "message"),
    [
        ("ftp://x", {}, "starts with http"),
        ("http://user:pass@host/v1", {}, "keys come from the environment"),
        ("http://host/v1?api-key=1", {}, "keys come from the environment"),
        ("http://host/v1", {"headers": {"Authorization": "x"}}, "extra.headers.Authorization looks like a key"),
        *(
            ("http://host/v1", {name: "x"}, f"extra.{name} looks like a key")
            for name in (
                "api_key",
                "api-key",
                "apiKey",
                "APIKEY",
                "access-token",
                "hf_token",
                "token",
                "key",
                "Authorization",
                "clientSecret",
            )
        ),
    ],
)
def test_keys_have_no_place_in_a_configuration(url, extra, message):
    with pytest.raises(ConfigError, match=message):
        check_transport("judge", url, extra=extra)


def test_keys_have_no_place_in_a_servers_arguments_and_fields_that_are_none_have_theirs():
    with pytest.raises(ConfigError, match=r"m: serve\.arguments\.api_key looks like a key"):
        parse(ModelConfig, {"model": "m", "serve": {"arguments": {"api_key": "sk-x"}}})
    with pytest.raises(ConfigError, match=r"vllm\.engine\.hf_token looks like a key"):
        parse(TaggerConfig, {"name": "llm", "model": "m", "vllm": {"engine": {"hf_token": "x"}}})
    schema = {"json_schema": {"schema": {"properties": {"token": {"type": "string"}}}}}
    names = (
        "stop_token_ids",
        "allowed_token_ids",
        "logprob_token_ids",
        "prompt_cache_key",
        "max_tokens",
        "skip_special_tokens",
        "eos_token",
    )
    check_transport("judge", None, extra={**dict.fromkeys(names, 1), "response_format": schema}, arguments={"ssl_keyfile": "x"})


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 3, "total_tokens": 1003}, {"completion_tokens": 3}])
def test_usage_that_lacks_a_part_settles_nothing(serve, usage):
    choice = {"message": {"content": "y"}, "finish_reason": "stop"}
    one, asked = asker(serve(lambda prompt, number: (200, {}, {"choices": [choice], "usage": usage})).url, None), bodies(1)
    one.ask(asked)
    assert one.budget.tokens == sum(most_tokens(body, len(json.dumps(body, ensure_ascii=False).encode())) for body in asked.values())


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        *(
            b'{"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": %s, "completion_tokens": 1}}' % number
            for number in (b"Infinity", b"NaN", b"-1", b"1e30", b'"many"')
        ),
    ],
)
def test_what_is_no_chat_completion_is_tried_again(content):
    with pytest.raises(TryAgain, match="a body that is no chat completion"):
        read_response("u", {}, 200, None, content)


def test_half_of_a_surrogate_pair_is_replaced_in_new_and_in_kept_answers(tmp_path):
    content = json.dumps({"choices": [{"message": {"content": "cut \ud83d [[A>B]] \U0001f600"}}], "model": "m\udc00"}).encode()
    found = read_response("u", {}, 200, None, content)
    assert (found.text, found.model) == ("cut \ufffd [[A>B]] \U0001f600", "m\ufffd")
    answers = Answers(Storage(str(tmp_path)), "t")
    answers.keep("k", {"text": "old \ud83d", "finish": "stop"})
    answers.pack()
    assert known_answers(answers, EndpointConfig(), ["k"])["k"].text == "old \ufffd"


@given(st.text(min_size=1, max_size=300))
@settings(max_examples=60, deadline=None)
def test_a_reservation_is_never_less_than_the_tokens_of_a_prompt(tokenizer_folder, text):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    body = {"model": "m", "max_tokens": 7, "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": text}]}
    told = f"<|im_start|>system\nx<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    assert most_tokens(body, len(json.dumps(body, ensure_ascii=False).encode())) >= len(tokenizer.encode(told).ids) + 7


def test_a_schema_is_checked_where_it_is_asked():
    form = {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object", "required": ["v"]}}}}
    assert follows_schema(form, Answer('{"v": 1}', "stop")) and follows_schema(form, Answer('{"w": 1}', "stop")) is False
    assert follows_schema(form, Answer('{"v"', "length")) is None and follows_schema({}, Answer("x", "stop")) is None
