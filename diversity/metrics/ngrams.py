"""n-grams numbered by content, in time that grows with the text and not with the misses of a growing table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]

RUN_PAIRS = 1 << 14  # n-grams that are numbered at a time: their table of 400 KB fits into a core's cache
MOST_TOKENS = 1 << 22  # token ids below this are looked up directly


@dataclass(frozen=True)
class Ngrams:
    """All n-grams of a side, numbered densely by content in order of appearance.

    Attributes:
        ids: (t,) int32, number of the n-gram that starts at each token; -1 where a sample ends before the n-gram does.
        distinct: how many different n-grams there are.
        total: how many n-grams there are.
    """

    ids: Ints
    distinct: int
    total: int


def number(before: Ints | None, tokens: Ints, offsets: Longs, n: int) -> Ngrams:
    """Return the n-grams of a side, given the numbers of its (n-1)-grams; None where n is 1."""
    if before is None and (not len(tokens) or tokens.max() < MOST_TOKENS):
        ids, distinct = _number_tokens(tokens, int(tokens.max()) + 1 if len(tokens) else 0)
        return Ngrams(ids, int(distinct), len(tokens))
    ids, distinct, total = _number(np.zeros(len(tokens), np.int32) if before is None else before, tokens, offsets, n)
    return Ngrams(ids, int(distinct), int(total))


@njit(cache=True)
def _number_tokens(tokens: Ints, size: int) -> tuple[Ints, int]:
    """Return the tokens numbered in order of appearance, and how many different ones there are."""
    final = np.full(size, -1, np.int32)
    ids = np.empty(len(tokens), np.int32)
    distinct = 0
    for i in range(len(tokens)):
        if final[tokens[i]] < 0:
            final[tokens[i]] = distinct
            distinct += 1
        ids[i] = final[tokens[i]]
    return ids, distinct


@njit(cache=True)
def _number(before: Ints, tokens: Ints, offsets: Longs, n: int) -> tuple[Ints, int, int]:
    """Number the pairs (number of the (n-1)-gram at i, token at i+n-1), with exact keys.

    Pairs are parted by hash into runs whose table fits into a core's cache, since one table for all would wait for memory at every pair and
    so grow faster than the text; runs are written and read as streams. Numbers follow the order of appearance.
    """
    bits = 0
    while (len(tokens) >> bits) > RUN_PAIRS and bits < 12:
        bits += 1
    starts = np.zeros((1 << bits) + 1, np.int64)
    total = 0
    for sample in range(len(offsets) - 1):
        for i in range(offsets[sample], offsets[sample + 1] - (n - 1)):
            starts[_run(_key(before[i], tokens[i + n - 1]), bits) + 1] += 1
            total += 1
    starts = np.cumsum(starts)
    keys = np.empty(total, np.int64)
    ends = starts.copy()
    for sample in range(len(offsets) - 1):
        for i in range(offsets[sample], offsets[sample + 1] - (n - 1)):
            key = _key(before[i], tokens[i + n - 1])
            run = _run(key, bits)
            keys[ends[run]] = key
            ends[run] += 1
    numbers, distinct = _number_runs(keys, starts)
    ends = starts.copy()
    final = np.full(distinct, -1, np.int32)
    ids = np.full(len(tokens), -1, np.int32)
    met = 0
    for sample in range(len(offsets) - 1):
        for i in range(offsets[sample], offsets[sample + 1] - (n - 1)):
            run = _run(_key(before[i], tokens[i + n - 1]), bits)
            number = numbers[ends[run]]
            ends[run] += 1
            if final[number] < 0:
                final[number] = met
                met += 1
            ids[i] = final[number]
    return ids, distinct, total


@njit(cache=True, inline="always")
def _key(number: int, token: int) -> np.int64:
    return (np.int64(number) << np.int64(32)) | np.int64(token)


@njit(cache=True, inline="always")
def _run(key: np.int64, bits: int) -> np.int64:
    """Return the run of a key: the top bits of its hash."""
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    return np.int64((mixed ^ (mixed << np.uint64(32))) >> np.uint64(64 - bits)) if bits > 0 else np.int64(0)


@njit(cache=True)
def _number_runs(keys: Longs, starts: Longs) -> tuple[Ints, int]:
    """Return the number of each key, equal keys having one, and how many there are; equal keys lie in one run."""
    longest = 1
    for run in range(len(starts) - 1):
        longest = max(longest, starts[run + 1] - starts[run])
    capacity = 16
    while capacity < 2 * longest:
        capacity *= 2
    places = np.empty(capacity, np.int64)
    found = np.empty(capacity, np.int32)
    numbers = np.empty(len(keys), np.int32)
    distinct = 0
    for run in range(len(starts) - 1):
        size = 16
        while size < 2 * (starts[run + 1] - starts[run]):
            size *= 2
        mask = np.uint64(size - 1)
        places[:size] = -1
        for i in range(starts[run], starts[run + 1]):
            mixed = np.uint64(keys[i]) * np.uint64(0x9E3779B97F4A7C15)
            place = (mixed ^ (mixed >> np.uint64(29))) & mask
            while places[place] != -1 and places[place] != keys[i]:
                place = (place + np.uint64(1)) & mask
            if places[place] == -1:
                places[place] = keys[i]
                found[place] = distinct
                distinct += 1
            numbers[i] = found[place]
    return numbers, distinct
