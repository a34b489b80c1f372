"""Counted operations against PyTorch's own counter."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.config import SftConfig
from training.engine import load_model, shape_of
from training.flops import matmul_ceiling, step_flops


@pytest.mark.parametrize("lora", [None, {"rank": 1}])
def test_the_count_is_that_of_pytorchs_counter_but_for_what_attention_throws_away(tiny_folder: Path, tiny_model: Any, lora: Any) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    sft = SftConfig(lora=lora)
    shape = shape_of(tiny_folder, sft)
    model: Any = copy.deepcopy(tiny_model) if lora is None else load_model(tiny_folder, sft, "fp32", seed=0)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    ids = torch.arange(1, 41)[None]
    counter = FlopCounterMode(display=False)
    with counter:
        model(input_ids=ids, labels=ids).loss.backward()
    # Attention's whole square is 12 L² a layer and width, of which causal attention needs half; an adapter of rank 1 costs next to nothing.
    ours = step_flops(shape, [40], 40) + 6 * shape.layers * shape.attention_width * 40**2
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.02 if lora is None else 0.1)


def test_the_shape_is_that_of_the_model(tiny_folder: Path) -> None:
    shape = shape_of(tiny_folder, SftConfig())
    per_layer = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64
    assert (shape.block_weights, shape.attention_width, shape.layers) == (2 * per_layer, 32, 2)
    assert shape.learns_all and not shape_of(tiny_folder, SftConfig(lora={})).learns_all  # type: ignore[arg-type]


def test_samples_attend_to_themselves_only(tiny_folder: Path) -> None:
    shape = shape_of(tiny_folder, SftConfig())
    apart, together = step_flops(shape, [10] * 8, 40), step_flops(shape, [80], 40)
    assert together - apart == 6 * 2 * 32 * (80**2 - 8 * 10**2)


def test_the_ceiling_is_measured_once() -> None:
    first = matmul_ceiling("cpu", torch.float32)
    assert np.isfinite(first) and first > 1e8 and matmul_ceiling("cpu", torch.float32) == first
