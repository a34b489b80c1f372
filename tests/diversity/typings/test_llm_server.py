"""The llm tagger against real OpenAI-compatible servers on loopback, `transformers serve` and `vllm serve`, that serve a real model."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from diversity.artifact import Storage
from diversity.llm.budget import Budget, BudgetConfig
from diversity.typings.taggers import TaggerConfig, load_tagger
from ray_jobs import answer, judge
from ray_jobs.job.experiment import load_experiment
from ray_jobs.job.runtime import Context
from tests.fault_proxy import FaultProxy
from tests.ray_jobs.heads import free_ports

TEXTS = ["Write a poem about the sea.", "What is 2 + 2?", "Write a poem about the sea."]


TRANSFORMERS = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--device", "cpu", "--dtype", "float32"]
VLLM = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", "--dtype", "float32", "--enforce-eager", "--max-model-len", "1024"]
NEEDED = {"transformers": ("fastapi", "uvicorn", "openai"), "vllm": ("vllm",)}
SERVERS = {"transformers": TRANSFORMERS, "vllm": VLLM}


@pytest.fixture(scope="module", params=SERVERS)
def served(request, tmp_path_factory):
    """Return (base_url, model, whether an answer's form is enforced) of a server of SmolLM2-135M."""
    for package in NEEDED[request.param]:
        pytest.importorskip(package)
    from ray_jobs.job.process import cache_folder
    from training.model_source import ModelError, resolve_model

    try:
        folder = str(resolve_model("builtin:smollm2-135m", cache_folder()))
    except ModelError as error:
        pytest.skip(str(error))
    (port,) = free_ports(1)
    log = (tmp_path_factory.mktemp("serve") / "log").open("wb")
    command = [*SERVERS[request.param], folder, "--host", "127.0.0.1", "--port", str(port)]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        for _ in range(3000):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).read()
                break
            except OSError:
                assert server.poll() is None, Path(log.name).read_text()[-2000:]
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1", folder, request.param == "vllm"
    finally:
        server.terminate()
        server.wait(20)


def test_a_real_model_is_asked_once_and_what_it_gets_wrong_is_counted(served, tmp_path):
    base_url, model, enforced = served
    config = TaggerConfig(
        name="llm",
        model=model,
        base_url=base_url,
        llm={"max_tokens": 200 if enforced else 40, "structured": "json_schema" if enforced else "none", "max_wrong": 1},
        endpoint={"timeout_s": 300, "concurrency": 1, "tries": 2},
    )
    tagger = load_tagger(config, "instruction", Storage(str(tmp_path)))
    found = tagger(TEXTS)
    assert len(found) == 3 and found[0] == found[2]
    outcomes = dict(tagger.outcomes)
    assert outcomes.pop("samples") == 3 and outcomes.pop("prompt tokens") > 3 * 100
    assert outcomes.pop("completion tokens") <= 3 * config.llm.max_tokens
    assert outcomes.pop("dropped tags") >= 0 and sum(outcomes.values()) == 3
    if enforced:
        assert not outcomes.keys() & {"no json", "wrong form", "wrapped"}, "the schema was not enforced"
    offline = config.model_copy(update={"base_url": "http://127.0.0.1:9/v1"})
    again = load_tagger(offline, "instruction", Storage(str(tmp_path)))
    assert again(TEXTS) == found and again.outcomes == tagger.outcomes


def test_a_real_model_answers_and_judges_behind_faults(served, tmp_path):
    """SmolLM2 answers prompts, and judges them, through a proxy that breaks a part. What it says is noise; the counts aren't."""
    base_url, model, _ = served
    plan = ["no usage", None, None, "429", None, "500", None, None, "cut", None, "malformed", None, "wrong schema", None, "slow", None]
    proxy = FaultProxy(base_url, lambda number, body: plan[number % len(plan)])
    prompts = [{"instruction": f"Name {i} animals.", "output": "A cat, a dog and a cow.", "generator": "ref"} for i in range(3, 6)]
    (tmp_path / "alpaca.json").write_text(json.dumps(prompts))
    asked = {"model": model, "base_url": proxy.url, "endpoint": {"timeout_s": 300, "concurrency": 1, "tries": 6, "backoff_s": 0.01}}
    settings = {
        "experiment": "e",
        "storage": str(tmp_path / "runs"),
        "corpus": {"paths": [str(tmp_path / "nothing.jsonl")]},
        "stages": ["answer", "judge"],
        "grid": {"strategies": ["random"], "sizes": [10]},
        "judging": {
            "prompts": {"alpaca": {"paths": [str(tmp_path / "alpaca.json")]}},
            "answerers": [{"name": "smollm2", "endpoint": {**asked, "max_tokens": 8}}],
            "baseline": {"reference": True},
            "judges": [{**asked, "name": "judge", "max_tokens": 6, "both_on": 1}],
            "budget": {"requests": 60, "tokens": 60_000},
            "calibration": {"pairs": 0},
        },
    }
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(settings))
    try:
        given = Context(load_experiment(tmp_path / "e.yaml", [], inside_job=False), tmp_path / "e.yaml")
        answer.run(given)
        judge.run(given)
        report = given.index.get("judging").manifest["reports"][0]
        assert sum(report["outcomes"].values()) == 4 and report["outcomes"]["refused"] == report["outcomes"]["unanswered"] == 0
        assert set(proxy.delivered.values()) == {1} and sum(proxy.delivered.values()) == 3 + 4 and proxy.faults["cut"]
        booked = [Budget(BudgetConfig(), given.storage, f"e-{stage}") for stage in ("answer", "judge")]
        assert sum(one.requests for one in booked) == proxy.requests and proxy.billed_tokens <= sum(one.tokens for one in booked) <= 120_000
        assert len(report["served"]) == 1 and next(iter(report["served"])).startswith(model)
    finally:
        proxy.close()
