"""Attention over packed rows that never leaves a sample, and never computes what a mask would throw away.

Registered with transformers under the name `packed`, beside `sdpa` and `eager`. A row that comes with its samples' bounds is attended
to sample by sample: by FlashAttention's varlen kernel on a GPU (the flash-attn package where there is one, else PyTorch's own), by one
causal call a sample on a CPU and wherever that kernel can't go. A row of n samples of l tokens so costs n l², where a mask over the row
costs (n l)². Without bounds (padded batches, generation with a cache) it is `sdpa`.

What an architecture does to its scores beside a sliding window (caps, sinks, chunks) is not done here: such models are told apart before
any work (`use_packed_attention`, and for what that can't know `training.probe`), and a call that asks for it all the same is an error,
never another model in silence.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from diversity.config import UserError
from training.forward import setting

PACKED = "packed"
FLASH_TYPES = (torch.bfloat16, torch.float16)
VARLEN_DEVICES = {"cuda"}  # kinds of devices that have a varlen kernel
WIDEST = 256  # of a head, for FlashAttention
WRITTEN_OUT = 512  # tokens up to which attention in bf16 is written out on a CPU, where PyTorch's fused one has a slow backward pass
KEPT_APART = {"full_attention", "sliding_attention"}  # the kinds of layers whose attention is done here
OWN_SCORES = ("softcap", "s_aux")  # what attention functions of transformers may be given, and none here knows


def use_packed_attention(model: Any) -> str:
    """Set the attention of a transformers model to the fastest that keeps samples apart, and return its name.

    Models that cap attention scores, that have layers of another kind, or that bring their own attention code, keep a mask.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config.get_text_config()
    if getattr(config, "attn_logit_softcapping", None):
        base.set_attn_implementation("eager")
    elif _can_be_packed(base, config):
        _register()
        base.set_attn_implementation(PACKED)
    return base.config._attn_implementation or "sdpa"


def _can_be_packed(base: Any, config: Any) -> bool:
    """Return whether transformers lets attention be exchanged, and all that the model's layers do with it is done here."""
    exchangeable = getattr(base, "_supports_attention_backend", False) and getattr(base, "_supports_sdpa", False)
    kinds = set(getattr(config, "layer_types", None) or ())
    return exchangeable and kinds <= KEPT_APART and not setting(config, "attention_chunk_size")


@functools.cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, sdpa_mask)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **given: Any,
) -> tuple[torch.Tensor, None]:
    """Return attention's output, `(1, L, H, D)`, as transformers asks its attention functions for it.

    Args:
        module: the layer's attention.
        query: `(1, H, L, D)`.
        key: `(1, H_kv, L, D)`.
        value: `(1, H_kv, L, D)`.
        attention_mask: used only where there are no bounds.
        dropout: of the attention weights.
        scaling: of the scores; None takes 1 / sqrt(D).
        given: `cu_seq_lens_q`, `(n + 1,) int32`, the samples' bounds from 0 to L; `sample_bounds`, the same as a tuple on the host;
            `max_length_q`, the longest sample; `sliding_window`.

    Raises:
        UserError: the model asks for scores of its own kind.
    """
    if own := [name for name in OWN_SCORES if given.get(name) is not None]:
        raise UserError(f"{type(module).__name__} asks its attention for {own[0]}, which packed rows don't have: it can't be trained here")
    bounds = given.get("cu_seq_lens_q")
    if bounds is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **given)
    longest, window = int(given["max_length_q"]), given.get("sliding_window")
    device = query.device.type
    if torch.is_autocast_enabled(device):  # rotary embeddings leave fp32 behind
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    window = window if window is not None and window < longest else None
    row = Row(query, key, value, bounds, longest, scaling, dropout, window, given.get("sample_bounds"))
    if device in VARLEN_DEVICES and varlen_takes(row):
        return (_flash_varlen() or _torch_varlen())(row)[None], None
    return _one_by_one(row)[None], None


class Row(NamedTuple):
    """A packed row's attention as every kernel here takes it; each returns `(L, H, D)`.

    Attributes:
        query: `(1, H, L, D)`.
        key: `(1, H_kv, L, D)`.
        value: `(1, H_kv, L, D)`.
        bounds: `(n + 1,) int32`, of the samples.
        longest: tokens of the longest sample.
        scaling: of the scores; None takes 1 / sqrt(D).
        dropout: of the attention weights.
        window: tokens that a token sees, itself included; None sees all before it.
        places: the bounds again, on the host: to read them from a GPU, it would wait in every layer. None reads them.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    bounds: torch.Tensor
    longest: int
    scaling: float | None
    dropout: float
    window: int | None
    places: tuple[int, ...] | None = None

    def with_all_heads(self) -> Row:
        """Return the same with a key and a value head for each query head."""
        groups = self.query.shape[1] // self.key.shape[1]
        if groups == 1:
            return self
        return self._replace(key=self.key.repeat_interleave(groups, 1), value=self.value.repeat_interleave(groups, 1))

    def by_token(self) -> list[Any]:
        """Return query, key and value as varlen kernels want them, `(L, heads, D)` each."""
        return [part[0].transpose(0, 1) for part in (self.query, self.key, self.value)]


def varlen_takes(row: Row) -> bool:
    """Return whether FlashAttention's varlen kernel takes the row: half precision, heads of one width, a multiple of 8 up to 256.

    Models with latent attention have values of another width than queries and keys.
    """
    width = row.query.shape[-1]
    same = width == row.key.shape[-1] == row.value.shape[-1]
    return row.query.dtype in FLASH_TYPES and same and width % 8 == 0 and width <= WIDEST


def _one_by_one(row: Row) -> torch.Tensor:
    """Return one causal call's output after the other."""
    row, found = row.with_all_heads(), []
    half = row.query.device.type == "cpu" and row.query.dtype in FLASH_TYPES
    places = row.places if row.places is not None else row.bounds.tolist()
    lengths = [stop - start for start, stop in pairwise(places)]
    # Split, not sliced: the gradient of a slice is a whole row of zeros around it, for every sample.
    for query, key, value in zip(*(part.split(lengths, 2) for part in (row.query, row.key, row.value)), strict=True):
        length = query.shape[2]
        window = row.window if row.window is not None and row.window < length else None
        if half and length <= WRITTEN_OUT:
            out = written_out(query, key, value, window, row.dropout, row.scaling)
        else:
            mask = None if window is None else _banded(length, window, query.device)
            out = scaled_dot_product_attention(query, key, value, mask, row.dropout, is_causal=mask is None, scale=row.scaling)
        found.append(out[0].transpose(0, 1))
    return torch.cat(found)


def written_out(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: int | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
) -> torch.Tensor:
    """Return causal attention, `(1, H, L, D)`, as products and a softmax in fp32: three times as fast as PyTorch's in bf16 on a CPU.

    Args:
        query: `(1, H, L, D)`.
        key: `(1, H, L, D)`.
        value: `(1, H, L, D)`.
        window: tokens that a token sees, itself included; None sees all before it.
        dropout: of the attention weights.
        scaling: of the scores; None takes 1 / sqrt(D).
    """
    length = query.shape[2]
    scores = (query * (scaling if scaling is not None else query.shape[-1] ** -0.5)) @ key.transpose(-1, -2)
    hidden = ~_banded(length, window or length, query.device)
    weights = scores.float().masked_fill(hidden, float("-inf")).softmax(-1).to(value.dtype)
    return (torch.nn.functional.dropout(weights, dropout) if dropout else weights) @ value


def _banded(length: int, window: int, device: Any) -> torch.Tensor:
    """Return the `(l, l)` mask of a token that sees itself and the `window - 1` before it."""
    place = torch.arange(length, device=device)
    distance = place[:, None] - place[None, :]
    return (distance >= 0) & (distance < window)


@functools.cache
def _flash_varlen() -> Callable[[Row], torch.Tensor] | None:
    """Return the flash-attn package's kernel, or None where it is not installed."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None

    def attend(row: Row) -> torch.Tensor:
        window = (-1, -1) if row.window is None else (row.window - 1, 0)
        options = {"dropout_p": row.dropout, "softmax_scale": row.scaling, "causal": True, "window_size": window}
        return flash_attn_varlen_func(*row.by_token(), row.bounds, row.bounds, row.longest, row.longest, **options)

    return attend


@functools.cache
def _torch_varlen() -> Callable[[Row], torch.Tensor]:
    """Return PyTorch's own varlen kernel. Its first releases know neither grouped heads nor dropout."""
    from torch.nn.attention.varlen import varlen_attn

    kernel: Callable[..., Any] = varlen_attn
    grouped = "enable_gqa" in inspect.signature(varlen_attn).parameters

    def attend(row: Row) -> torch.Tensor:
        if row.dropout:
            return _one_by_one(row)
        options: dict[str, Any] = {"scale": row.scaling, "window_size": (-1, 0) if row.window is None else (row.window - 1, 0)}
        if grouped:
            options["enable_gqa"] = row.query.shape[1] > row.key.shape[1]
        else:
            row = row.with_all_heads()
        return kernel(*row.by_token(), row.bounds, row.bounds, row.longest, row.longest, **options)

    return attend
