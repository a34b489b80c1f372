"""n-grams numbered by content, in time that grows with the text and not with the misses of a growing table.

Large arrays are made by NumPy and handed to the compiled loops: NumPy asks the system for huge pages, compiled code does not, and a page of
4 KB that is touched for the first time costs as much as a hundred n-grams.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]

RUN_PAIRS = 1 << 14  # n-grams that are numbered at a time: their table of 500 KB fits into a core's cache
MOST_TOKENS = 1 << 22  # token ids below this are looked up directly
BORDER = -1  # in place of a number: the sample ends before the n-gram does
ONCE = -2  # in place of a number: no other place has this n-gram


@dataclass(frozen=True)
class Ngrams:
    """All n-grams of a side. Those that can occur again have a number; the others, most of them where n is 3 or more, need none.

    Attributes:
        ids: (t,) int32, number in [0, numbered) of the n-gram that starts at each token; BORDER where a sample ends before the n-gram does;
            ONCE, for n >= 2, where it occurs nowhere else.
        numbered: how many different n-grams have a number; for n = 1 all.
        distinct: how many different n-grams there are.
        total: how many n-grams there are.
    """

    ids: Ints
    numbered: int
    distinct: int
    total: int


def number_tokens(tokens: Ints) -> Ngrams:
    """Return the tokens numbered: by order of appearance, or by value where an id is too large to look up directly."""
    largest = int(tokens.max(initial=0))
    if largest >= MOST_TOKENS:
        values, places = np.unique(tokens, return_inverse=True)
        return Ngrams(places.astype(np.int32), len(values), len(values), len(tokens))
    ids: Ints = np.empty(len(tokens), np.int32)
    distinct = int(_number_tokens(tokens, np.full(largest + 1, -1, np.int32), ids))
    return Ngrams(ids, distinct, distinct, len(tokens))


def number(shorter: Ngrams, offsets: Longs, n: int) -> Ngrams:
    """Return the n-grams of a side, n >= 2, given its (n-1)-grams."""
    ids: Ints = np.full(len(shorter.ids), BORDER, np.int32)
    pairs = _mark_pairs(shorter.ids, offsets, n, ids)
    keys = np.empty(pairs, np.int64)
    numbers = np.full(pairs, ONCE, np.int32)
    starts = _part(shorter.ids, ids, keys)
    numbered, repeats = _number_runs(keys, starts, numbers)
    _spread(shorter.ids, ids, starts, numbers)
    total = int(np.maximum(np.diff(offsets) - (n - 1), 0).sum())
    return Ngrams(ids, int(numbered), total - int(repeats), total)


@njit(cache=True)
def _number_tokens(tokens: Ints, final: Ints, ids: Ints) -> int:
    """Put the number of each token, in order of appearance, into `ids`; return how many different ones there are."""
    distinct = 0
    for i in range(len(tokens)):
        if final[tokens[i]] < 0:
            final[tokens[i]] = distinct
            distinct += 1
        ids[i] = final[tokens[i]]
    return distinct


# An n-gram is the pair of the (n-1)-grams at i and i+1, exactly. Where one of them occurs once, so does the n-gram: it is not looked up.
# The other pairs are parted by hash into runs whose table fits into a core's cache, since one table for all would wait for memory at every
# pair and so grow faster than the text; runs are written and read as streams.


@njit(cache=True)
def _mark_pairs(shorter: Ints, offsets: Longs, n: int, ids: Ints) -> int:
    """Put 0 where a pair must be looked up and ONCE where not; return how many must be."""
    pairs = 0
    for sample in range(len(offsets) - 1):
        for i in range(offsets[sample], offsets[sample + 1] - (n - 1)):
            again = shorter[i] >= 0 and shorter[i + 1] >= 0
            ids[i] = 0 if again else ONCE
            pairs += again
    return pairs


@njit(cache=True)
def _part(shorter: Ints, ids: Ints, keys: Longs) -> Longs:
    """Put the key of each marked pair into its run; return (runs + 1,) where runs start."""
    bits = 0
    while (len(keys) >> bits) > RUN_PAIRS and bits < 12:
        bits += 1
    starts = np.zeros((1 << bits) + 1, np.int64)
    for i in range(len(ids)):
        if ids[i] == 0:
            starts[_run(_key(shorter[i], shorter[i + 1]), bits) + 1] += 1
    starts = np.cumsum(starts)
    ends = starts.copy()
    for i in range(len(ids)):
        if ids[i] == 0:
            key = _key(shorter[i], shorter[i + 1])
            run = _run(key, bits)
            keys[ends[run]] = key
            ends[run] += 1
    return starts


@njit(cache=True)
def _number_runs(keys: Longs, starts: Longs, numbers: Ints) -> tuple[int, int]:
    """Give equal keys one number, in the order in which they are met again; a key that is met once keeps ONCE.

    Returns:
        (numbered, repeats): how many numbers there are, and how many keys have occurred before.
    """
    longest = 1
    for run in range(len(starts) - 1):
        longest = max(longest, starts[run + 1] - starts[run])
    capacity = 16
    while capacity < 2 * longest:
        capacity *= 2
    places = np.empty(capacity, np.int64)
    firsts = np.empty(capacity, np.int64)
    numbered = 0
    repeats = 0
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
                firsts[place] = i
                continue
            repeats += 1
            first = firsts[place]
            if numbers[first] == ONCE:
                numbers[first] = numbered
                numbered += 1
            numbers[i] = numbers[first]
    return numbered, repeats


@njit(cache=True)
def _spread(shorter: Ints, ids: Ints, starts: Longs, numbers: Ints) -> None:
    """Put the number of each marked pair where the pair is."""
    bits = 0
    while 1 << bits < len(starts) - 1:
        bits += 1
    ends = starts.copy()
    for i in range(len(ids)):
        if ids[i] == 0:
            run = _run(_key(shorter[i], shorter[i + 1]), bits)
            ids[i] = numbers[ends[run]]
            ends[run] += 1


@njit(cache=True, inline="always")
def _key(first: int, second: int) -> np.int64:
    return (np.int64(first) << np.int64(32)) | np.int64(second)


@njit(cache=True, inline="always")
def _run(key: np.int64, bits: int) -> np.int64:
    """Return the run of a key: the top bits of its hash."""
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    return np.int64((mixed ^ (mixed << np.uint64(32))) >> np.uint64(64 - bits)) if bits > 0 else np.int64(0)
