"""vLLM as a source of answers: what we say to Ray's processor and read from it. The engine itself needs a GPU."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pyarrow as pa
import pytest

from diversity.artifact import Storage
from diversity.config import ConfigError
from diversity.taggers import TaggerConfig, TaggerError, load_tagger
from diversity.taggers.answers import Answers
from diversity.taggers.endpoint import Answer
from diversity.taggers.llm import SCHEMA, answers_name, request, request_key
from ray_jobs import vllm
from ray_jobs.corpus_rows import CorpusRows
from ray_jobs.profile_tasks import Tag


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


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs the package vllm and a GPU")
def test_the_engine_answers(tmp_path: Path, ray_local: None) -> None:
    import ray

    gpus = int(ray.cluster_resources().get("GPU", 0))
    if not gpus:
        pytest.skip("needs a GPU")
    from ray_jobs.process import cache_folder
    from training.model_source import resolve_model

    storage, rows = corpus(tmp_path, ["Write a poem.", "What is 2 + 2?"])
    source = str(resolve_model("builtin:smollm2-135m", cache_folder()))
    given = config(vllm={"source": source, "engine": {"max_model_len": 2048}}, llm={"max_tokens": 64, "max_wrong": 1})
    vllm.answer(rows, [(0, 2)], [Tag(storage.artifact("profile", "p"), "instruction", given)], gpus)
    assert len(Answers(storage, answers_name(given))) == 2
