"""Tags of samples as numbers: what the steps of `diversity/typings/tag_steps.py` work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import pyarrow as pa
from numba import njit

INTENTS = ("ask:", "do:")


@dataclass(frozen=True)
class Tagged:
    """Tags of n samples as numbers: sample i has codes[bounds[i]:bounds[i + 1]], ranked, each once.

    Attributes:
        names: the tag of each number.
        codes: (nnz,) int32.
        bounds: (n + 1,) int64.
    """

    names: list[str]
    codes: np.ndarray
    bounds: np.ndarray

    @property
    def n(self) -> int:
        """Return the number of samples."""
        return len(self.bounds) - 1

    def df(self) -> np.ndarray:
        """Return (tags,) int64: in how many samples each tag occurs."""
        return np.bincount(self.codes, minlength=len(self.names))

    def renamed(self, new: Sequence[str | None]) -> Tagged:
        """Return the tags under new names, None dropping one; tags that come to have one name count once a sample."""
        index: dict[str, int] = {}
        mapping = np.array([-1 if name is None else index.setdefault(name, len(index)) for name in new], np.int32)
        codes, bounds = first_occurrences(mapping[self.codes], self.bounds, max(1, len(index)))
        return Tagged(list(index), codes, bounds)

    def capped(self, most: int) -> Tagged:
        """Return at most so many tags of each sample: its intent, then the rarest, of equals the first ranked.

        Common tags lose samples by this, rare ones hardly any, so that nearly every tag stays above the threshold.
        """
        lengths = np.diff(self.bounds)
        rows = np.repeat(np.arange(self.n), lengths)
        place = np.arange(len(self.codes)) - np.repeat(self.bounds[:-1], lengths)
        intent = np.array([name.startswith(INTENTS) for name in self.names], bool)[self.codes]
        order = np.lexsort((place, self.df()[self.codes], ~intent, rows))
        kept = np.empty(len(order), bool)
        kept[order] = place < most  # `order` keeps rows together, so places count up within it as well
        return Tagged(self.names, self.codes[kept], np.concatenate([[0], np.cumsum(kept)])[self.bounds])


def coded(column: pa.ChunkedArray) -> Tagged:
    """Return a column of lists of tags as numbers, in order of first occurrence."""
    index: dict[str, int] = {}
    rows = column.to_pylist()
    codes = np.fromiter((index.setdefault(tag, len(index)) for tag in chain.from_iterable(rows)), np.int32)
    bounds = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=bounds[1:])
    codes, bounds = first_occurrences(codes, bounds, max(1, len(index)))
    return Tagged(list(index), codes, bounds)


@njit(cache=True)
def first_occurrences(codes, bounds, size):  # type: ignore[no-untyped-def]
    """Return (codes, bounds) without negative codes and without the repeats within a row; order stays.

    Args:
        codes: (nnz,) int32 in [-1, size).
        bounds: (n + 1,) int64.
        size: number of possible codes.
    """
    n = len(bounds) - 1
    seen = np.full(size, -1, np.int64)
    kept = np.empty(len(codes), np.int32)
    new_bounds = np.zeros(n + 1, np.int64)
    end = 0
    for i in range(n):
        for j in range(bounds[i], bounds[i + 1]):
            code = codes[j]
            if code >= 0 and seen[code] != i:
                seen[code] = i
                kept[end] = code
                end += 1
        new_bounds[i + 1] = end
    return kept[:end].copy(), new_bounds
