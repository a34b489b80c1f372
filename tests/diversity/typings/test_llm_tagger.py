"""The llm tagger against a real HTTP server of the test's own that answers, and fails, as it is told."""

import json
import time

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diversity.artifact import Storage
from diversity.config import UserError
from diversity.llm.answers import Answers
from diversity.llm.asking import request_key
from diversity.llm.budget import BudgetSpent
from diversity.llm.endpoint import Endpoint, EndpointConfig
from diversity.llm.reading import Answer, EndpointError, seconds
from diversity.typings.taggers import TaggerConfig, TaggerError, load_tagger, tagger_class
from diversity.typings.taggers.llm import parse, request
from diversity.typings.tags import tags
from tests.endpoint import Server, completion, tag_answer
from tests.storages import Objects, WatchedStorage


@pytest.fixture
def serve():
    servers = []

    def start(plan):
        servers.append(Server(plan))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def config(server, **changes):
    endpoint = {"backoff_s": 0.01, "timeout_s": 5, "concurrency": 8, **changes.pop("endpoint", {})}
    return TaggerConfig(name="llm", model="m", base_url=server.url, endpoint=endpoint, **changes)


def answers_by_prompt(prompt, number):
    return 200, {}, completion(tag_answer(prompt, "common tag"))


def test_every_text_gets_its_own_answer_and_equal_texts_are_asked_once(serve, tmp_path):
    def plan(prompt, number):
        time.sleep(0.05)  # long enough for the next request to come in
        return answers_by_prompt(prompt, number)

    server = serve(plan)
    tagger = load_tagger(config(server), "instruction", Storage(str(tmp_path)))
    texts = [f"text {i % 40}" for i in range(60)]
    assert tagger(texts) == [[text, "common tag"] for text in texts]
    assert set(server.tries.values()) == {1} and len(server.tries) == 40
    expected = {"samples": 60, "ok": 60, "dropped tags": 0, "prompt tokens": 420, "completion tokens": 300}
    assert tagger.outcomes == expected
    assert server.most <= 8 and server.most > 1
    body = server.bodies[0]
    assert body["model"] == "m" and body["temperature"] == 0 and body["max_tokens"] == 512
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["tags"]


def test_the_budget_ends_a_run_and_a_larger_one_goes_on(serve, tmp_path):
    server, storage, texts = serve(answers_by_prompt), Storage(str(tmp_path)), [f"text {i}" for i in range(20)]
    with pytest.raises(BudgetSpent, match="12 of 20 requests are answered, then the budget of 12 requests is spent"):
        load_tagger(config(server, budget={"requests": 12}), "instruction", storage)(texts)
    assert len(server.bodies) == 12
    given = config(server, budget={"requests": 20})
    assert load_tagger(given, "instruction", storage)(texts) == [[text, "common tag"] for text in texts]
    assert set(server.tries.values()) == {1} and len(server.bodies) == 20
    with pytest.raises(BudgetSpent):
        load_tagger(given, "instruction", storage)(["one more"])
    load_tagger(given, "response", storage)(["one more"])
    assert len(server.bodies) == 21, "each side has its own"
    assert given.settings() == config(server).settings(), "no part of what is sealed"


def test_a_second_run_and_a_crash_pay_nothing_twice(serve, tmp_path):
    stop_at = 25

    def plan(prompt, number):
        return (401, {}, b"bad key") if sum(server.tries.values()) > stop_at else answers_by_prompt(prompt, number)

    server = serve(plan)
    storage, texts = Storage(str(tmp_path)), [f"text {i}" for i in range(40)]
    given = config(server, endpoint={"concurrency": 1})
    with pytest.raises(EndpointError, match="HTTP 401: bad key"):
        load_tagger(given, "instruction", storage)(texts)
    stop_at = 10_000
    found = load_tagger(given, "instruction", storage)(texts)
    assert found == [[text, "common tag"] for text in texts]
    assert sorted(server.tries.values()) == [1] * 39 + [2]  # only the one that got no answer
    again = load_tagger(given, "instruction", storage)
    assert again(texts) == found and sum(server.tries.values()) == 41
    assert again.outcomes["ok"] == 40
    for changed in (config(server, llm={"temperature": 0.5}), given.model_copy(update={"model": "other"})):
        load_tagger(changed, "instruction", storage)(texts[:1])
    load_tagger(given, "response", storage)(texts[:1])
    assert server.tries["text 0"] == 4


def test_answers_are_on_disk_the_moment_they_arrive(tmp_path):
    storage = Storage(str(tmp_path))
    killed = Answers(storage, "x")
    killed.add({"b" * 32: {"text": "packed"}})
    killed.keep("a" * 32, {"text": "half a pair \ud800"})  # and nobody packs: the process is gone
    after = Answers(storage, "x")
    assert len(after) == 2
    del killed
    after = Answers(storage, "x")
    wanted = {"a" * 32: {"text": "half a pair \ud800"}, "b" * 32: {"text": "packed"}}
    assert after.find([*wanted, "c" * 32]) == wanted
    after.pack()
    assert list((tmp_path / "cache/answers/x/loose").iterdir()) == []
    assert Answers(storage, "x").find(wanted) == wanted
    assert Answers(storage, "y").find(wanted) == {}


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["keep", "add", "pack", "reopen"])), max_size=12))
@example([("a", step) for _ in range(8) for step in ("keep", "reopen")])  # eight files of one number: the last one counts
@example([("a", "keep"), ("b", "add"), ("b", "keep"), ("a", "reopen")])  # kept after something was packed beside what is loose
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("objects", [False, True], ids=["folder", "object store"])
def test_answers_are_a_mapping(tmp_path_factory, objects, steps):
    folder = str(tmp_path_factory.mktemp("answers"))
    storage = WatchedStorage(folder, lambda *_: None, Objects()) if objects else Storage(folder)
    answers, expected = Answers(storage, "x"), {}
    for number, (key, step) in enumerate(steps):
        if step == "pack":
            answers.pack()
        elif step == "reopen":
            answers = Answers(storage, "x")
        elif step == "keep":
            expected[key] = {"text": key, "at": number}  # asked again, it takes the place of the first
            answers.keep(key, expected[key])
        else:
            answers.add({key: expected.setdefault(key, {"text": key})})
        assert answers.find("abcdef") == expected and len(answers) == len(expected)


FAULTS = {
    "500": (500, {}, b"oh"),
    "503": (503, {}, b""),
    "429": (429, {"Retry-After": "0.2"}, b"slow down"),
    "no json": (200, {}, b"<html>"),
    "no choices": (200, {}, {"choices": []}),
    "null": (200, {}, b"null"),
    "hang up": (None, {}, b""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_the_transport_are_tried_again(serve, fault):
    server = serve(lambda prompt, number: FAULTS[fault] if number <= 2 else answers_by_prompt(prompt, number))
    tagger = load_tagger(config(server), "instruction")
    assert tagger(["a", "b"]) == [["a", "common tag"], ["b", "common tag"]]
    assert set(server.tries.values()) == {3}
    if fault == "429":
        assert server.times[-1] - server.times[0] > 0.35


def test_a_lost_answer_is_asked_for_again(serve):
    def plan(prompt, number):
        if number == 1:
            time.sleep(1)
        return answers_by_prompt(prompt, number)

    server = serve(plan)
    tagger = load_tagger(config(server, endpoint={"timeout_s": 0.4}), "instruction")
    assert tagger(["a"]) == [["a", "common tag"]] and server.tries["a"] == 2


def test_faults_that_stay_end_the_run_in_one_line(serve):
    server = serve(lambda prompt, number: (503, {}, b"down\nfor repair"))
    with pytest.raises(EndpointError, match=r"failed 3 times in a row, last with: HTTP 503: down for repair") as error:
        load_tagger(config(server, endpoint={"tries": 3}), "instruction")(["a"])
    assert isinstance(error.value, UserError) and "\n" not in str(error.value)
    assert server.tries["a"] == 3
    nobody = TaggerConfig(name="llm", model="m", base_url="http://127.0.0.1:9/v1", endpoint={"tries": 2, "backoff_s": 0})
    with pytest.raises(EndpointError, match="failed 2 times"):
        load_tagger(nobody, "instruction")(["a"])


def test_the_rate_is_kept_and_the_key_is_sent(serve, monkeypatch):
    server = serve(answers_by_prompt)
    monkeypatch.setenv("SOME_KEY", "secret")
    endpoint = {"requests_per_minute": 1200, "api_key_env": "SOME_KEY"}
    load_tagger(config(server, endpoint=endpoint), "instruction")([f"{i}" for i in range(10)])
    assert sorted(server.times)[-1] - sorted(server.times)[0] > 0.9 * 9 * 0.05
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer secret"}


def test_refusals_are_kept_and_asked_again_on_request_and_a_refusing_endpoint_is_an_error(serve, tmp_path):
    server = serve(lambda prompt, number: (400, {}, b"content filter") if prompt == "bad" else answers_by_prompt(prompt, number))
    storage = Storage(str(tmp_path))
    for again, tries in (([], 1), ([], 1), (["refused"], 2), ([], 2)):
        tagger = load_tagger(config(server, endpoint={"ask_again": again}), "instruction", storage)
        assert tagger(["good", "bad"]) == [["good", "common tag"], []]
        assert tagger.outcomes["refused"] == 1
        assert server.tries == {"good": 1, "bad": tries}
    closed = serve(lambda prompt, number: (400, {}, b"unknown field response_format"))
    with pytest.raises(EndpointError, match="refused 20 of 20 prompts.*response_format"):
        load_tagger(config(closed), "instruction", storage)([f"{i}" for i in range(200)])
    open_again = serve(answers_by_prompt)  # what an endpoint says that refuses everything is no answer to keep
    assert load_tagger(config(open_again), "instruction", storage)(["7"]) == [["7", "common tag"]]


def test_a_useless_model_ends_the_run_early_and_keeps_what_was_paid(serve, tmp_path):
    server = serve(lambda prompt, number: (200, {}, completion("Sure! Here you go.")))
    tagger = load_tagger(config(server, llm={"structured": "none"}), "instruction", Storage(str(tmp_path)))
    with pytest.raises(TaggerError, match=r"\d+ of \d+ answers are of no use.*max_wrong is 0.2.*Here you go"):
        tagger([f"{i}" for i in range(400)])
    assert 40 < sum(server.tries.values()) < 80
    with pytest.raises(EndpointError, match=r"ignores response_format: none of the first 8 answers of 'm' is JSON.*structured: none"):
        load_tagger(config(server), "instruction")([f"{i}" for i in range(400)])


def test_a_notebook_with_a_loop_of_its_own(serve):
    import asyncio

    server = serve(answers_by_prompt)

    async def cell():
        return load_tagger(config(server), "instruction")(["a"])

    assert asyncio.run(cell()) == [["a", "common tag"]]


@pytest.mark.parametrize(
    ("text", "expected", "outcome", "dropped"),
    [
        (tag_answer("Code Debugging", "code debugging"), ["Code Debugging", "code debugging"], "ok", 0),
        ('["a", "b", "a"]', ["a", "b"], "ok", 0),
        ('```json\n{"tags": ["a"]}\n```', ["a"], "wrapped", 0),
        ('As [1] says: {"tags": ["a"]} and {', ["a"], "wrapped", 0),
        ('{"tags": [{"tag": "a", "explanation": "x"}, {"tag": "b', ["a"], "cut", 0),
        ('{\n  "tags": [\n    {\n      "tag": "a",\n      "explanation": "x"\n    },\n    {\n      "tag": "b', ["a"], "cut", 0),
        ('{"tags": [{ "explanation" : "x", "tag": "a"}, {"explanation": "y", "tag": "b"}, {"expl', ["a", "b"], "cut", 0),
        ('{"tags": []}', [], "no tags", 0),
        ('{"labels": ["a"]}', [], "wrong form", 0),
        ('{"tags": "a"}', [], "wrong form", 0),
        ('{"tags": [1, null, {"tag": 2}, "", "...", "one two three four five six seven", "\\ud800"]}', [], "wrong form", 7),
        ('{"tags": ["ask: what", "do:write", "snake_case"]}', ["ask what", "do write", "snake case"], "ok", 0),
        ("I can't do that.", [], "no json", 0),
        ("", [], "no json", 0),
        ("[" * 4000, [], "no json", 0),
    ],
)
def test_answers_are_parsed(text, expected, outcome, dropped):
    found = parse(Answer(text, "stop"))
    assert (found.tags, found.outcome, found.dropped) == (expected, outcome, dropped)


def test_an_answer_without_its_end_is_cut():
    assert parse(Answer('{"tags": [{"ta', "length")).outcome == "cut"


@given(
    st.one_of(st.text(max_size=80), st.recursive(st.none() | st.integers() | st.text(max_size=9), st.lists, max_leaves=9).map(json.dumps))
)
@settings(max_examples=200, deadline=None)
def test_any_answer_is_survived(text):
    found = parse(Answer(text, "stop"))
    assert len(set(found.tags)) == len(found.tags)
    assert all(":" not in tag and tag.encode() and tag == tag.strip() for tag in found.tags)
    assert bool(found.tags) == (found.outcome in ("ok", "wrapped", "cut"))


def test_fingerprint_and_key_follow_what_changes_answers():
    given = TaggerConfig(name="llm", model="m", base_url="http://a/v1")
    same = given.model_copy(update={"base_url": "http://b/v1", "endpoint": EndpointConfig(concurrency=1)})
    identity = tagger_class(given).identity
    assert identity(given) == identity(same) and given.settings() == same.settings()
    assert request_key(request("x", "instruction", given)) == request_key(request("x", "instruction", same))
    seed = TaggerConfig(name="llm", model="m", base_url="http://a/v1", llm={"extra": {"seed": 1}})
    for other in (seed, given.model_copy(update={"model": "n"})):
        assert identity(other) != identity(given)
        assert request_key(request("x", "instruction", other)) != request_key(request("x", "instruction", given))
    assert request("x" * 9000, "response", given)["messages"][1]["content"].count("x") == 500 + 2  # two in the marks around it


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "llm"}, "needs model"),
        ({"name": "llm", "model": "m"}, "needs one of base_url"),
        ({"name": "llm", "model": "m", "base_url": "http://x", "vllm": {}}, "needs one of base_url"),
        ({"name": "llm", "model": "m", "vllm": {}, "endpoint": {"ask_again": ["cut"]}}, "ask_again is for an endpoint"),
        ({"name": "llm", "model": "m", "base_url": "127.0.0.1:8000"}, "starts with http"),
        ({"model": "m"}, "keyphrase has no model"),
        ({"base_url": "http://x"}, "keyphrase has no base_url"),
    ],
)
def test_configs_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        TaggerConfig(**fields)
    assert TaggerConfig(**TaggerConfig().model_dump()) == TaggerConfig()


def test_retry_after_is_seconds_or_a_date():
    from email.utils import formatdate

    assert seconds("3") == 3 and seconds(None) is None and seconds("soon") is None and seconds("-1") == 0
    assert 8 < seconds(formatdate(time.time() + 10, usegmt=True)) <= 10


def test_waits_double_and_stay_below_a_minute():
    waits = list(Endpoint("http://x", EndpointConfig(tries=9, backoff_s=1))._waits())
    assert waits[0] == 0 and len(waits) == 9
    assert all(min(60, 2**i) / 2 <= wait <= min(60, 2**i) for i, wait in enumerate(waits[1:]))


def test_tags_of_a_table_end_to_end(serve, tmp_path):
    themes = ["code debugging", "travel planning", "verse"]
    server = serve(lambda prompt, number: (200, {}, completion(tag_answer(themes[int(prompt) % 3], f"rare {prompt}"))))
    table = pa.table({"sample_id": [f"{i:032x}" for i in range(30)], "instruction": [f"{i}" for i in range(30)]})
    given = config(server, max_share=1, merge=None)
    typed = tags(table, "instruction-meso", given, storage=Storage(str(tmp_path)))
    assert typed.types["label"].to_pylist() == ["code debug", "travel plan", "verse"]  # lemmas
    assert not typed.manifest["stand_in"] and typed.manifest["answers"]["ok"] == 30 and typed.manifest["answers"]["model"] == "m"
    bad = serve(lambda prompt, number: (200, {}, completion("no" if int(prompt) % 3 else tag_answer("verse"))))
    with pytest.raises(TaggerError, match="20 of 30 answers are of no use.*20 no json"):
        tags(table, "instruction-meso", config(bad))
