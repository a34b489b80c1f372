"""Samples become full rows without padding: which samples make a step, which rank and micro-batch has which, and what a row holds.

A step holds a fixed number of response tokens, so that a budget fixes steps and schedule, and the loss of a step is a mean over the
same number of labels for every dataset. Everything is a pure function of (data, seed, step): a run resumes by the number of its step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from diversity.keys import order, priorities
from training.chat import NO_LABEL, Encoded
from training.forward import rows_by

ONE_SAMPLE = 1  # tokens of a row into which no two samples go
PADDING = -1  # the segment of tokens that belong to no sample


@dataclass(frozen=True)
class Step:
    """One optimizer step.

    Attributes:
        number: 0, 1, 2, …
        epoch: passes over the data that are done after this step; a fraction inside a pass.
        samples: the global batch in its order; a sample may come twice where a step spans two passes.
        tokens: all tokens of the global batch.
        response_tokens: labelled tokens of the global batch: what its loss is divided by.
        ranks: `ranks[rank][micro_batch]` are the samples of one packed row. Every rank has as many micro-batches; some may be empty.
    """

    number: int
    epoch: float
    samples: tuple[int, ...]
    tokens: int
    response_tokens: int
    ranks: tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True)
class Batch:
    """One packed row: samples one behind the other, each with positions from 0.

    Attributes:
        input_ids: `(1, L) int64`.
        labels: `(1, L) int64`, aligned with `input_ids`; -100 where nothing is learnt, at every sample's first token too.
        position_ids: `(1, L) int64`, from 0 in every sample.
        segment: `(1, L) int32`, 0, 1, 2, … by sample; -1 for padding.
        sample_indices: the samples, in order.
        response_tokens: how many labels are not -100.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    position_ids: np.ndarray
    segment: np.ndarray
    sample_indices: tuple[int, ...]
    response_tokens: int

    @property
    def tokens(self) -> int:
        """Return how many tokens belong to samples."""
        return int(np.count_nonzero(self.segment != PADDING))


def plan_steps(
    lengths: np.ndarray,
    response_tokens: np.ndarray,
    *,
    budget_tokens: int | None,
    epochs: float | None,
    tokens_per_step: int,
    max_length: int,
    seed: int,
    world_size: int,
    keys: np.ndarray | None = None,
    row_tokens: int | None = None,
) -> list[Step]:
    """Return all steps of a run.

    A sample is never split. A run of T response tokens has S = T / `tokens_per_step` steps, rounded up, and step i closes at the first
    sample with which the run reaches (i + 1) T / S: what one step has too much, the next has too little, so that a budget takes the same
    steps whatever the lengths. (A sample with more response tokens than a step should have makes that step larger, and steps fewer.)
    Every pass over the data has an order of its own, by a keyed hash of (seed, pass, sample).

    Args:
        lengths: `(n,)` tokens of every sample, at most `max_length`.
        response_tokens: `(n,)` labelled tokens of every sample, at least 1.
        budget_tokens: response tokens of the run; it ends with the sample that reaches them. Exactly one of this and `epochs` is given.
        epochs: passes over the data; a fraction ends inside a pass.
        tokens_per_step: response tokens of a global batch.
        max_length: most tokens of a sample.
        seed: of the order.
        world_size: ranks; it moves rows about, and never changes what a step holds.
        keys: `(n,) uint64` keys of the samples (`diversity.keys.sample_keys`), so that datasets with common samples see them in the same
            order; None orders by the samples' numbers.
        row_tokens: tokens of a packed row; None takes `max_length`.

    Raises:
        ValueError: an argument out of its range, or a sample that is too long or has no response token.
    """
    lengths, response_tokens = np.asarray(lengths, np.int64), np.asarray(response_tokens, np.int64)
    row_tokens = row_tokens or max_length
    _check(lengths, response_tokens, budget_tokens, epochs, tokens_per_step, max_length, row_tokens, world_size)
    n = len(lengths)
    keys = np.arange(n, dtype=np.uint64) if keys is None else keys
    stream = _stream(keys, seed, response_tokens, budget_tokens, epochs)
    reached = np.cumsum(response_tokens[stream])
    total = int(reached[-1]) if budget_tokens is None else budget_tokens
    n_steps = -(-total // tokens_per_step)
    targets = -(-total * np.arange(1, n_steps + 1) // n_steps)
    ends = np.unique(np.searchsorted(reached, targets) + 1).tolist()
    steps: list[Step] = []
    for number, (start, stop) in enumerate(pairwise([0, *ends])):
        group = stream[start:stop]
        ranks = assign(group.tolist(), lengths, row_tokens, world_size)
        tokens, learnt = int(lengths[group].sum()), int(response_tokens[group].sum())
        steps.append(Step(number, stop / n, tuple(group.tolist()), tokens, learnt, ranks))
    return steps


def assign(samples: Sequence[int], lengths: np.ndarray, row_tokens: int, world_size: int) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Return `[rank][micro-batch]` rows of samples: as few micro-batches as first-fit decreasing finds, spread evenly over the ranks.

    With several ranks, a step lasts as long as its fullest rows: so the samples are dealt out again to as many rows as there are
    places, longest first, each to the emptiest row, where that keeps within `row_tokens`.
    """
    longest_first = sorted(samples, key=lambda sample: -int(lengths[sample]))
    rows = _first_fit(longest_first, lengths, row_tokens)
    micro_batches = -(-len(rows) // world_size)
    if world_size > 1:
        rows = _emptiest_first(longest_first, lengths, row_tokens, micro_batches * world_size) or rows
    rows += [()] * (micro_batches * world_size - len(rows))
    return tuple(tuple(rows[micro * world_size + rank] for micro in range(micro_batches)) for rank in range(world_size))


def collate(encoded: Sequence[Encoded], part: Sequence[int], pad_to: int | None = None) -> Batch:
    """Return one micro-batch.

    An empty one is two tokens of padding without a label: a rank that has nothing still takes part in every exchange.

    Args:
        encoded: all samples of the dataset, by their number.
        part: the numbers of this row's samples.
        pad_to: pad the row to a multiple of this many tokens, for kernels that like even shapes; None pads nothing.
    """
    samples = [encoded[index] for index in part]
    used = sum(len(sample) for sample in samples)
    length = max(used, 2) if pad_to is None else max(-(-used // pad_to) * pad_to, 2)
    input_ids, position_ids = np.zeros((1, length), np.int64), np.zeros((1, length), np.int64)
    labels = np.full((1, length), NO_LABEL, np.int64)
    segment = np.full((1, length), PADDING, np.int32)
    start = 0
    for number, sample in enumerate(samples):
        if sample.labels[0] != NO_LABEL:
            raise ValueError(f"sample {part[number]}: its first token has a label, which the sample before it would predict")
        place = slice(start, start + len(sample))
        input_ids[0, place], labels[0, place] = sample.input_ids, sample.labels
        position_ids[0, place], segment[0, place] = np.arange(len(sample)), number
        start = place.stop
    position_ids[0, used:] = np.arange(length - used)
    return Batch(input_ids, labels, position_ids, segment, tuple(part), sum(sample.response_tokens for sample in samples))


def attention_mask(batch: Batch, dtype: Any = None, window: int | None = None) -> Any:
    """Return the `(1, 1, L, L)` block-diagonal causal mask as a torch tensor: a token sees its own sample's tokens up to itself.

    Args:
        batch: a packed row.
        dtype: None gives a boolean mask, as `sdpa` takes it; a floating type gives 0 and that type's minimum, as `eager` adds it.
        window: tokens that a token sees, itself included; None sees all before it.
    """
    import torch

    segment = torch.from_numpy(batch.segment[0])
    place = torch.arange(len(segment))
    distance = place[:, None] - place[None, :]
    seen = (segment[:, None] == segment[None, :]) & (distance >= 0) & (distance < (window or len(segment)))
    if dtype is not None:
        seen = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    return seen[None, None]


def model_inputs(batch: Batch, model: Any, device: Any) -> dict[str, Any]:
    """Return what the model's `forward` takes for a packed row, on the device.

    `packed` attention (`training.attention`) gets the samples' bounds, transformers' FlashAttention reads them from the position ids, and
    elsewhere a mask tells them. A model that has been probed (`training.probe`) may get its position ids alone, or its tokens alone.
    """
    import torch

    if (told := rows_by(model)) in ("positions", "alone"):
        known = {"input_ids": batch.input_ids} | ({"position_ids": batch.position_ids} if told == "positions" else {})
        return {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in known.items()}
    inputs = {"input_ids": torch.from_numpy(batch.input_ids), "position_ids": torch.from_numpy(batch.position_ids)}
    attention = getattr(model.config, "_attn_implementation", None) or "sdpa"
    on_host: dict[str, Any] = {}
    if attention == "packed":
        bounds = sample_bounds(batch)
        longest = int(np.diff(bounds).max())
        on_host = {"max_length_q": longest, "max_length_k": longest, "sample_bounds": tuple(bounds.tolist())}
        inputs |= {"cu_seq_lens_q": torch.from_numpy(bounds), "cu_seq_lens_k": torch.from_numpy(bounds)}
        inputs["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool)  # of four dimensions: transformers then builds none
    elif "flash" not in attention:
        dtype = next(model.parameters()).dtype if attention == "eager" else None
        inputs["attention_mask"] = attention_mask(batch, dtype)
        text = model.config.get_text_config()
        if "sliding_attention" in (getattr(text, "layer_types", None) or ()):  # such models take a mask for each kind of layer
            sliding = attention_mask(batch, dtype, text.sliding_window).to(device, non_blocking=True)
            full = inputs.pop("attention_mask").to(device, non_blocking=True)
            on_host["attention_mask"] = {"full_attention": full, "sliding_attention": sliding}
    return {**{name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}, **on_host}


def learnt(batch: Batch, device: Any) -> dict[str, Any]:
    """Return what is learnt of a row: the places whose next token has a label, and those labels, each `(n,) int64` on the device."""
    import torch

    following = batch.labels[0, 1:]
    predicting = np.flatnonzero(following != NO_LABEL)
    found = {"predicting": predicting, "targets": following[predicting]}
    return {name: torch.from_numpy(array).to(device, non_blocking=True) for name, array in found.items()}


def sample_bounds(batch: Batch) -> np.ndarray:
    """Return where a row's samples begin, and its end, `(n + 1,) int32`; padding counts as a sample."""
    changes = np.flatnonzero(np.diff(batch.segment[0])) + 1
    return np.concatenate([[0], changes, [batch.segment.shape[1]]]).astype(np.int32)


def _stream(keys: np.ndarray, seed: int, response_tokens: np.ndarray, budget_tokens: int | None, epochs: float | None) -> np.ndarray:
    """Return the samples of the whole run in order, pass after pass, up to the one that reaches the budget."""
    n = len(keys)
    if budget_tokens is not None:
        passes = -(-budget_tokens // int(response_tokens.sum()))
    else:
        seen = math.ceil((epochs or 0) * n - 1e-9)
        passes = -(-seen // n)
    stream = np.concatenate([order(priorities(keys, seed, f"sft-epoch-{epoch}")) for epoch in range(passes)])
    if budget_tokens is not None:
        seen = int(np.searchsorted(np.cumsum(response_tokens[stream]), budget_tokens)) + 1
    return stream[:seen]


def _first_fit(longest_first: Sequence[int], lengths: np.ndarray, row_tokens: int) -> list[tuple[int, ...]]:
    """Return rows: each sample in the first row that has room for it."""
    rows: list[list[int]] = []
    free = np.zeros(len(longest_first), np.int64)
    for sample in longest_first:
        length = int(lengths[sample])
        fitting = np.flatnonzero(free[: len(rows)] >= length)
        row = int(fitting[0]) if len(fitting) else len(rows)
        if row == len(rows):
            rows.append([])
            free[row] = row_tokens
        rows[row].append(sample)
        free[row] -= length
    return [tuple(row) for row in rows]


def _emptiest_first(longest_first: Sequence[int], lengths: np.ndarray, row_tokens: int, n_rows: int) -> list[tuple[int, ...]] | None:
    """Return `n_rows` rows of nearly equal lengths, or None if a row would overflow."""
    rows: list[list[int]] = [[] for _ in range(n_rows)]
    load = np.zeros(n_rows, np.int64)
    for sample in longest_first:
        row = int(load.argmin())
        rows[row].append(sample)
        load[row] += int(lengths[sample])
    return [tuple(row) for row in rows] if load.max() <= row_tokens else None


def _check(
    lengths: np.ndarray,
    response_tokens: np.ndarray,
    budget_tokens: int | None,
    epochs: float | None,
    tokens_per_step: int,
    max_length: int,
    row_tokens: int,
    world_size: int,
) -> None:
    if (budget_tokens is None) == (epochs is None):
        raise ValueError("exactly one of budget_tokens and epochs is given")
    if min(1 if budget_tokens is None else budget_tokens, tokens_per_step, world_size) < 1 or (epochs is not None and epochs <= 0):
        raise ValueError("budget_tokens, tokens_per_step and world_size are at least 1, epochs is above 0")
    if row_tokens < max_length:
        raise ValueError(f"row_tokens is at least max_length, {max_length}, not {row_tokens}")
    if len(lengths) != len(response_tokens) or not len(lengths):
        raise ValueError(f"{len(lengths)} lengths and {len(response_tokens)} counts of response tokens: as many, and at least one")
    if lengths.max() > max_length:
        raise ValueError(f"sample {int(lengths.argmax())} has {int(lengths.max())} tokens; max_length is {max_length}")
    if response_tokens.min() < 1:
        raise ValueError(f"sample {int(response_tokens.argmin())} has no response token")
