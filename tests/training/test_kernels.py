"""Fused norms, rotary embeddings and SwiGLU are the plain ones; only models of a known kind get them, and only where they are asked for."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from diversity.config import ConfigError
from tests.training.ranks import ROOT
from training.config import SftConfig
from training.kernels import use_fused_kernels

here = {name: importlib.util.find_spec(name) is not None for name in ("triton", "liger_kernel")}


@pytest.mark.skipif(not all(here.values()), reason="needs triton and liger-kernel, which come with a GPU's installation")
@pytest.mark.parametrize(("kind", "changed"), [("llama", 5), ("qwen3", 7)])
def test_fused_kernels_are_the_plain_ones(kind: str, changed: int) -> None:
    """Three norms, an MLP and an attention; Qwen3 has a norm of queries and one of keys besides."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "tests.training.interpreted", kind]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["changed"] == changed and found["worst"] < 1e-4


def test_other_models_stay_as_they_are() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = Gemma2ForCausalLM(Gemma2Config(vocab_size=32, head_dim=8, **sizes))
    before = [module.forward for module in model.modules()]
    assert use_fused_kernels(model) == 0 and [module.forward for module in model.modules()] == before


def test_the_switch_is_for_gpus_and_names_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert SftConfig().resolved("cuda").kernels == "fused" and SftConfig().resolved("cpu").kernels == "plain"
    with pytest.raises(ConfigError, match="fused ones run on GPUs only"):
        SftConfig(kernels="fused").resolved("cpu")
    names: list[Any] = [SftConfig(kernels=kind).identity(training_seed=0, device="cuda") for kind in ("plain", "fused", "auto")]
    assert names[0] != names[1] == names[2] and "kernels" not in names[0]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert SftConfig().resolved("cuda").kernels == "plain"
    with pytest.raises(ConfigError, match="not installed"):
        SftConfig(kernels="fused").resolved("cuda")
