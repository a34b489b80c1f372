"""A sample's difficulty is its own, whatever stands beside it in a batch."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.ifd import difficulties

CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": f"the answer {i * 7}"}] for i in range(4)
]


@pytest.fixture(scope="module")
def leaking_folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """Return a model whose convolutions see the packed sample before, with the real tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, Lfm2Config

    folder = tmp_path_factory.mktemp("lfm2") / "model"
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    layers = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}
    AutoModelForCausalLM.from_config(Lfm2Config(vocab_size=49152, **shape, **layers)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_folder / name, folder / name)
    return folder


def test_samples_that_would_see_each_other_are_scored_alone(leaking_folder: Path, tiny_folder: Path) -> None:
    for folder in (leaking_folder, tiny_folder):
        alone = [difficulties(folder, [one])[0] for one in CONVERSATIONS]
        np.testing.assert_allclose(difficulties(folder, CONVERSATIONS), alone, rtol=1e-5)


def test_what_a_model_has_no_positions_for_has_no_score(gpt2_folder: Path) -> None:
    long = [{"role": "user", "content": "word " * 70}, {"role": "assistant", "content": "yes"}]
    assert np.isnan(difficulties(gpt2_folder, [CONVERSATIONS[0], long])).tolist() == [False, True]
