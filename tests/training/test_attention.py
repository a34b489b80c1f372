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

from diversity.config import UserError
from tests.training.reference_varlen import varlen_on_cpu
from training import attention
from training.attention import Row, packed_attention, use_packed_attention, varlen_takes, written_out

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


BOUNDS = [0, 20, 21, 51, 90]


def agree_in_half(found: Any, wanted: Any, parts: list[Any]) -> None:
    torch.testing.assert_close(found, wanted, atol=2e-2, rtol=2e-2)
    slopes = torch.autograd.grad(wanted.float().square().sum(), parts), torch.autograd.grad(found.float().square().sum(), parts)
    for expected, gradient in zip(*slopes, strict=True):
        assert (gradient - expected).float().norm() < 2e-2 * expected.float().norm() + 1e-4


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("window", [None, 1, 7])
def test_the_varlen_branch_is_attention_under_the_mask(heads: tuple[int, int], window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own wrapper and autograd run, on a reference of the kernel that refuses what the kernel refuses."""
    monkeypatch.setattr(attention, "VARLEN_DEVICES", {"cpu"})
    monkeypatch.setattr(attention, "_flash_varlen", lambda: None)
    parts = tensors(90, *heads, 16, dtype=torch.bfloat16)
    wanted = naive(*parts, BOUNDS, window)
    with varlen_on_cpu() as calls:
        found = packed(parts, BOUNDS, window)
        agree_in_half(found, wanted, parts)
    assert [call["heads"] for call in calls] == [heads], "one call a layer, heads of keys not repeated"


@pytest.mark.parametrize(
    ("widths", "dtype", "takes"),
    [
        ((16, 16), torch.bfloat16, True),
        ((256, 256), torch.float16, True),
        ((264, 264), torch.bfloat16, False),
        ((20, 20), torch.bfloat16, False),
        ((24, 16), torch.bfloat16, False),  # latent attention: values have a width of their own
        ((16, 16), torch.float32, False),
    ],
)
def test_what_the_kernel_cannot_take_goes_sample_by_sample(
    widths: tuple[int, int], dtype: Any, takes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "VARLEN_DEVICES", {"cpu"})
    monkeypatch.setattr(attention, "_flash_varlen", lambda: None)
    torch.manual_seed(0)
    query, key = (torch.randn(1, 2, 90, widths[0], dtype=dtype) for _ in range(2))
    value = torch.randn(1, 2, 90, widths[1], dtype=dtype)
    row = Row(query, key, value, torch.tensor(BOUNDS, dtype=torch.int32), 39, None, 0.0, None)
    assert varlen_takes(row) is takes
    with varlen_on_cpu() as calls:
        found = packed([query, key, value], BOUNDS)
    assert len(calls) == takes
    torch.testing.assert_close(found, naive(query, key, value, BOUNDS, None), atol=2e-2, rtol=2e-2)


def test_the_model_gives_the_kernel_what_it_wants(tiny_model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole model in bf16 through the varlen branch: rotary embeddings, grouped heads, bounds of a packed row."""
    from training.chat import ChatEncoder
    from training.packing import collate, model_inputs

    monkeypatch.setattr(attention, "VARLEN_DEVICES", {"cpu"})
    monkeypatch.setattr(attention, "_flash_varlen", lambda: None)
    talks = [[{"role": "user", "content": "Say."}, {"role": "assistant", "content": "word " * count}] for count in (3, 9)]
    encoded = ChatEncoder(tokenizer).encode_all(talks)
    model = copy.deepcopy(tiny_model).bfloat16()
    use_packed_attention(model)
    batch = collate(encoded, (0, 1))
    with torch.no_grad(), varlen_on_cpu() as calls:
        found = model(**model_inputs(batch, model, "cpu")).logits.float()
        wanted = tiny_model(input_ids=torch.from_numpy(encoded[1].input_ids).long()[None]).logits
    assert len(calls) == model.config.num_hidden_layers
    assert (found[:, len(encoded[0]) :] - wanted).norm() < 3e-2 * wanted.norm()


@pytest.mark.parametrize("length", [1, 3, 40])
@pytest.mark.parametrize("window", [None, 5])
def test_written_out_attention_is_attention(length: int, window: int | None) -> None:
    parts = tensors(length, 3, 3)
    torch.testing.assert_close(written_out(*parts, window).transpose(1, 2), naive(*parts, [0, length], window), atol=1e-6, rtol=1e-5)
    half = tensors(length, 3, 3, dtype=torch.bfloat16)
    agree_in_half(packed(half, [0, length], window), naive(*half, [0, length], window), half)


def test_bf16_on_a_cpu_is_written_out_for_short_samples_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(attention, "written_out", lambda query, *rest: seen.append(query.shape[2]) or written_out(query, *rest))
    monkeypatch.setattr(attention, "WRITTEN_OUT", 30)
    parts = tensors(90, 2, 2, dtype=torch.bfloat16)
    agree_in_half(packed(parts, BOUNDS), naive(*parts, BOUNDS, None), parts)
    packed(tensors(90, 2, 2), BOUNDS)
    assert seen == [20, 1, 30], "and nothing of fp32"


def tiny(kind: str, **more: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=32, **sizes, **more)).eval()


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("mistral", {"sliding_window": 4}),
        ("qwen2", {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1}),
        ("gemma2", {"sliding_window": 4, "head_dim": 8}),
        ("gemma3_text", {"sliding_window": 4, "head_dim": 8}),
    ],
)
def test_windows_and_caps_of_a_model_are_kept_in_packed_rows(kind: str, more: dict[str, Any]) -> None:
    """Two samples in a row, both longer than the window, have the logits that transformers gives each alone."""
    from training.chat import Encoded
    from training.packing import collate, model_inputs

    torch.manual_seed(0)
    model = tiny(kind, **more)
    ids = [np.arange(3, 14, dtype=np.int32), np.arange(9, 29, dtype=np.int32)]
    with torch.no_grad():
        wanted = [model(input_ids=torch.from_numpy(one).long()[None]).logits[0] for one in ids]
        use_packed_attention(model)
        batch = collate([Encoded(one, np.full(len(one), -100, np.int32), 0) for one in ids], (0, 1))
        found = model(**model_inputs(batch, model, "cpu"), use_cache=False).logits[0]
    torch.testing.assert_close(found, torch.cat(wanted), atol=1e-5, rtol=1e-4)


def test_scores_of_another_kind_are_an_error() -> None:
    with pytest.raises(UserError, match="asks its attention for softcap"):
        packed_attention(SimpleNamespace(), *tensors(4, 1, 1), None, softcap=50.0, cu_seq_lens_q=torch.tensor([0, 4]), max_length_q=4)  # type: ignore[arg-type]


@needs_gpu
@pytest.mark.parametrize("heads", [(8, 8), (8, 2)])
@pytest.mark.parametrize("window", [None, 64])
def test_the_gpu_kernel_is_attention_under_the_mask(heads: tuple[int, int], window: int | None) -> None:
    bounds = [0, 200, 201, 512, 900]
    parts = tensors(900, *heads, 64, device="cuda", dtype=torch.bfloat16)
    agree_in_half(packed(parts, bounds, window), naive(*parts, bounds, window), parts)
