"""Attention sample by sample is attention under a block-diagonal mask: outputs and gradients, grouped heads, windows, and on a GPU."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from training.attention import packed_attention, use_packed_attention

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: FlashAttention's varlen kernels run on nothing else")


def naive(query: Any, key: Any, value: Any, bounds: list[int], window: int | None) -> Any:
    """Return attention under the whole row's mask, `(1, L, H, D)`."""
    length = query.shape[2]
    segment = torch.from_numpy(np.searchsorted(bounds, np.arange(length), side="right"))
    place = torch.arange(length)
    distance = place[:, None] - place[None, :]
    seen = (segment[:, None] == segment[None, :]) & (distance >= 0) & (distance < (window or length))
    groups = query.shape[1] // key.shape[1]
    repeated = [part.repeat_interleave(groups, 1) for part in (key, value)]
    return scaled_dot_product_attention(query, *repeated, seen.to(query.device)).transpose(1, 2)


def tensors(length: int, heads: int, kv_heads: int, width: int = 8, **kind: Any) -> list[Any]:
    torch.manual_seed(length)
    return [torch.randn(1, count, length, width, **kind).requires_grad_() for count in (heads, kv_heads, kv_heads)]


def packed(parts: list[Any], bounds: list[int], window: int | None = None) -> Any:
    given = {"cu_seq_lens_q": torch.tensor(bounds, dtype=torch.int32, device=parts[0].device), "sliding_window": window}
    return packed_attention(SimpleNamespace(), *parts, None, max_length_q=int(np.diff(bounds).max()), **given)[0]  # type: ignore[arg-type]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.sampled_from([(4, 4), (4, 2), (3, 1)]), st.sampled_from([None, 1, 5, 100]))
def test_it_is_attention_under_the_mask(lengths: list[int], heads: tuple[int, int], window: int | None) -> None:
    bounds = [0, *np.cumsum(lengths).tolist()]
    parts = tensors(bounds[-1], *heads)
    wanted, found = naive(*parts, bounds, window), packed(parts, bounds, window)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    slopes = torch.autograd.grad(wanted.square().sum(), parts), torch.autograd.grad(found.square().sum(), parts)
    for expected, gradient in zip(*slopes, strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)


def test_without_bounds_it_is_the_model_as_it_was(tiny_model: Any) -> None:
    """A padded batch, and text that is generated with a cache."""
    model = copy.deepcopy(tiny_model)
    assert use_packed_attention(model) == "packed"
    ids = torch.arange(40).reshape(2, 20) + 100
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    with torch.no_grad():
        torch.testing.assert_close(model(ids, attention_mask=mask).logits, tiny_model(ids, attention_mask=mask).logits, atol=0, rtol=0)
        generated = [m.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False) for m in (model, tiny_model)]
    assert torch.equal(*generated)


def test_models_that_cap_their_scores_keep_a_mask() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = Gemma2ForCausalLM(Gemma2Config(vocab_size=32, head_dim=8, **sizes))
    assert use_packed_attention(model) == "eager"


@needs_gpu
@pytest.mark.parametrize("heads", [(8, 8), (8, 2)])
@pytest.mark.parametrize("window", [None, 64])
def test_the_gpu_kernel_is_attention_under_the_mask(heads: tuple[int, int], window: int | None) -> None:
    bounds = [0, 200, 201, 512, 900]
    parts = tensors(900, *heads, 64, device="cuda", dtype=torch.bfloat16)
    wanted, found = naive(*parts, bounds, window), packed(parts, bounds, window)
    torch.testing.assert_close(found, wanted, atol=2e-2, rtol=2e-2)
    slopes = torch.autograd.grad(wanted.float().square().sum(), parts), torch.autograd.grad(found.float().square().sum(), parts)
    for expected, gradient in zip(*slopes, strict=True):
        assert (gradient - expected).float().norm() < 2e-2 * expected.float().norm()
