"""Arithmetic of training steps, and what a machine's matrix units can do: the two sides of model FLOPs utilisation (MFU)."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

import torch

from training.zero import ModelShape

SIZES = {"cpu": 512, "cuda": 8192}  # of the square matrices that the ceiling is measured with
REPEATS, LEAST_S, ENOUGH_S = 5, 0.2, 0.5  # a moment on a shared CPU may be somebody else's; one that emulates bf16 takes seconds a product


def step_flops(shape: ModelShape, lengths: Sequence[int], response_tokens: int) -> float:
    """Return the floating-point operations that one step's forward and backward passes need.

    A multiplication and an addition count as two. A weight costs 2 operations a token forwards, 2 for the gradient of its input and, if
    it learns, 2 for its own; the output layer only for the tokens that a label asks for. Attention looks back over half of the square of
    each sample's length, twice (scores, values), and twice that backwards. Embeddings, norms, softmax and whatever is computed again to
    save memory count nothing.
    """
    tokens = sum(lengths)
    passes = 6 if shape.learns_all else 4
    blocks = passes * shape.block_weights * tokens
    head = passes * shape.vocabulary * shape.hidden * response_tokens
    attention = 6 * shape.layers * shape.attention_width * sum(length**2 for length in lengths)
    return float(blocks + head + attention)


@functools.cache
def matmul_ceiling(device: str, dtype: torch.dtype) -> float:
    """Return the operations a second that a large matrix product reaches on this process's device, with its threads; measured once."""
    size = SIZES.get(device, SIZES["cpu"])
    left, right = (torch.randn(size, size, device=device, dtype=torch.float32).to(dtype) for _ in range(2))
    spent: list[float] = []
    while sum(spent) < (LEAST_S if len(spent) >= REPEATS else ENOUGH_S):
        wait_for(device)
        started = time.perf_counter()
        torch.mm(left, right)
        wait_for(device)
        spent.append(time.perf_counter() - started)
    return 2 * size**3 / min(spent)


def wait_for(device: str) -> None:
    """Return when the device has done all that it was given; a clock that is read before that has seen nothing of it."""
    if device == "cuda":
        torch.cuda.synchronize()
