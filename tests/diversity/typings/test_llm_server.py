"""The llm tagger against real OpenAI-compatible servers on loopback, `transformers serve` and `vllm serve`, that serve a real model."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from diversity.artifact import Storage
from diversity.typings.taggers import TaggerConfig, load_tagger

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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
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
        endpoint={"timeout_s": 50, "concurrency": 1, "tries": 2},
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
