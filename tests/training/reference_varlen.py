"""A reference of FlashAttention's varlen kernel for the CPU: as strict about what it is given as the GPU's, and written out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch


@contextmanager
def varlen_on_cpu() -> Iterator[list[dict[str, Any]]]:
    """Have PyTorch's varlen attention run on the CPU meanwhile, its own wrapper and autograd included; yields what each call was given."""
    calls: list[dict[str, Any]] = []

    def forward(query: Any, key: Any, value: Any, cum_q: Any, cum_k: Any, longest: int, *given: Any, **more: Any) -> Any:
        _refuse_what_the_kernel_refuses(query, key, value, cum_q, cum_k, longest)
        calls.append({"shape": tuple(query.shape), "heads": (query.shape[1], key.shape[1]), "dtype": query.dtype, **more})
        causal, outs, sums = given[2], [], []
        for q, k, v, seen, scale, _part in _samples(query, key, value, cum_q, causal, more):
            scores = (q @ k.transpose(1, 2) * scale).masked_fill(~seen, float("-inf"))
            outs.append((scores.softmax(-1) @ v).transpose(0, 1))
            sums.append(scores.logsumexp(-1))
        nothing = torch.empty(0)
        return torch.cat(outs).to(query.dtype), torch.cat(sums, dim=1), torch.zeros(2, dtype=torch.uint64), nothing, nothing

    def backward(grad: Any, query: Any, key: Any, value: Any, out: Any, lse: Any, cum_q: Any, cum_k: Any, *given: Any, **more: Any) -> Any:
        causal = given[3]
        groups = query.shape[1] // key.shape[1]
        found: tuple[list[Any], ...] = ([], [], [])
        for q, k, v, seen, scale, part in _samples(query, key, value, cum_q, causal, more):
            slope, o = grad[part].float().transpose(0, 1), out[part].float().transpose(0, 1)
            weights = ((q @ k.transpose(1, 2) * scale).masked_fill(~seen, float("-inf")) - lse[:, part, None]).exp()
            of_scores = weights * (slope @ v.transpose(1, 2) - (slope * o).sum(-1, keepdim=True)) * scale
            shared = [x.unflatten(0, (-1, groups)).sum(1) for x in (of_scores.transpose(1, 2) @ q, weights.transpose(1, 2) @ slope)]
            for kept, gradient in zip(found, [of_scores @ k, *shared], strict=True):
                kept.append(gradient.transpose(0, 1))
        return tuple(torch.cat(kept).to(query.dtype) for kept in found)

    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", forward, "CPU")
    library.impl("_flash_attention_backward", backward, "CPU")
    try:
        yield calls
    finally:
        library._destroy()


def _refuse_what_the_kernel_refuses(query: Any, key: Any, value: Any, cum_q: Any, cum_k: Any, longest: int) -> None:
    assert query.dtype in (torch.bfloat16, torch.float16) and query.dtype == key.dtype == value.dtype, "fp16 or bf16, all alike"
    assert query.dim() == key.dim() == value.dim() == 3, "tokens, heads, width"
    width = query.shape[-1]
    assert width == key.shape[-1] == value.shape[-1] and width % 8 == 0 and width <= 256, "one width, a multiple of 8, at most 256"
    assert query.shape[1] % key.shape[1] == 0 and key.shape[1] == value.shape[1], "query heads share key heads evenly"
    for bounds in (cum_q, cum_k):
        assert bounds.dtype == torch.int32 and bounds[0] == 0 and bounds[-1] == len(query), "int32 bounds from 0 to all tokens"
    assert int(cum_q.diff().max()) == longest, "the longest sample"


def _samples(query: Any, key: Any, value: Any, bounds: Any, causal: bool, more: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Yield each sample's query, key and value by head in fp32, keys repeated, what is seen, the scale, and where the sample lies."""
    left, right = more.get("window_size_left"), more.get("window_size_right")
    groups = query.shape[1] // key.shape[1]
    for start, stop in pairwise(bounds.tolist()):
        part, place = slice(start, stop), torch.arange(stop - start)
        distance = place[:, None] - place[None, :]
        seen = torch.ones_like(distance, dtype=torch.bool)
        if causal or right == 0:
            seen &= distance >= 0
        if left is not None and left >= 0:
            seen &= distance <= left
        q = query[part].float().transpose(0, 1)
        k, v = (shared[part].float().transpose(0, 1).repeat_interleave(groups, 0) for shared in (key, value))
        yield q, k, v, seen, more.get("scale") or query.shape[-1] ** -0.5, part
