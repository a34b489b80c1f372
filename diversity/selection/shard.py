"""One shard of a typing: the rows stay here, and what leaves are counts by type and the few rows that a coordinator asks for.

A shard is any set of rows of the corpus, not necessarily consecutive. It knows their types, sample keys and row numbers in
the whole corpus, and answers `diversity.selection.sharded`. Memory: 8 bytes per (sample, type) pair for the incidence and its
transpose, 29 per sample.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from diversity.keys import priorities
from diversity.selection.peel import Closure, birth, first_births
from diversity.typings.incidence import Incidence


class Rows(NamedTuple):
    """Rows of a shard on their way to the coordinator.

    Attributes:
        rows: `(m,) int64` in the whole corpus.
        keys: `(m,) uint64` of the samples.
        births: `(m,) int32`; zeros before pruning.
        incidence: their types.
    """

    rows: np.ndarray
    keys: np.ndarray
    births: np.ndarray
    incidence: Incidence


class Shard:
    """Some rows of a typing's incidence, and what is known of them so far."""

    def __init__(self, incidence: Incidence, keys: np.ndarray, rows: np.ndarray) -> None:
        """Take the rows.

        Args:
            incidence: their types, of all M.
            keys: `(m,) uint64` of the samples.
            rows: `(m,) int64`, their numbers in the id-sorted corpus.
        """
        self.incidence, self.keys, self.rows = incidence, keys, rows
        self.columns = incidence.transpose()
        self.sent = np.zeros(len(rows), dtype=bool)
        self.births = np.zeros(len(rows), dtype=np.int32)

    def df(self) -> np.ndarray:
        """Return `(M,) int64`; a peel starts here, so that no row counts as sent."""
        self.sent[:] = False
        return np.diff(self.columns.indptr)

    def send(self, types: np.ndarray) -> Incidence:
        """Return the types of the rows that have one of the given types and have not been sent before."""
        found = _unsent(self.columns.indptr, self.columns.indices, types, self.sent)
        return self.incidence.take(found)

    def drop(self, one: int) -> np.ndarray:
        """Return `(M,) int64`, the counts by type of the unsent rows that have a type; they count as sent from now on."""
        return self.send(np.array([one])).df()

    def prune(self, position: np.ndarray, closure: Closure) -> tuple[np.ndarray, np.ndarray, int]:
        """Set the births and return (first birth of each type, samples of each birth `(M+1,)`, most types of a sample)."""
        self.births = birth(self.incidence, position, closure)
        first = first_births(self.incidence, self.births)
        return first, np.bincount(self.births, minlength=len(position) + 1), int(self.incidence.lengths().max(initial=1))

    def count(self, k: int) -> np.ndarray:
        """Return `(M,) int64`: how many samples of the pool of k have each type."""
        return _count(self.incidence.indptr, self.incidence.indices, self.births, k, self.incidence.n_types)

    def candidates(self, k: int, kept: np.ndarray, seed: int, tag: str, most: int) -> Rows:
        """Return the rows of the pool of k that are among the first `most` of one of their kept types, in the order of their priorities.

        Args:
            k: types kept.
            kept: `(M,) bool` mask of them.
            seed: of the priorities.
            tag: what the order is for.
            most: at least 1.
        """
        pool = np.flatnonzero((self.births >= 1) & (self.births <= k))
        pool = pool[np.argsort(priorities(self.keys[pool], seed, tag), kind="stable")]
        return self._rows(pool[first_of_types(self.incidence.take(pool), kept, most)])

    def pool_entries(self) -> np.ndarray:
        """Return the births `(m,) int32` of its rows."""
        return self.births

    def everything(self) -> Rows:
        """Return all rows, for what can't be done in parts."""
        return self._rows(np.arange(len(self.rows)))

    def _rows(self, chosen: np.ndarray) -> Rows:
        return Rows(self.rows[chosen], self.keys[chosen], self.births[chosen], self.incidence.take(chosen))


def first_of_types(incidence: Incidence, kept: np.ndarray, most: int) -> np.ndarray:
    """Return which rows, in order, are among the first `most` of one of their kept types, `(n,) bool`."""
    return _first_of_types(incidence.indptr, incidence.indices, kept, most)


@njit(cache=True)
def _unsent(starts: np.ndarray, members: np.ndarray, types: np.ndarray, sent: np.ndarray) -> np.ndarray:
    """Return the unsent rows of the types, and mark them."""
    most = 0
    for t in types:
        most += starts[t + 1] - starts[t]
    found = np.empty(most, dtype=np.int64)
    n = 0
    for t in types:
        for i in members[starts[t] : starts[t + 1]]:
            if not sent[i]:
                sent[i] = True
                found[n] = i
                n += 1
    return found[:n].copy()


@njit(cache=True)
def _count(indptr: np.ndarray, indices: np.ndarray, births: np.ndarray, k: int, n_types: int) -> np.ndarray:
    counts = np.zeros(n_types, dtype=np.int64)
    for i in range(len(births)):
        if 1 <= births[i] <= k:
            for t in indices[indptr[i] : indptr[i + 1]]:
                counts[t] += 1
    return counts


@njit(cache=True)
def _first_of_types(indptr: np.ndarray, indices: np.ndarray, kept: np.ndarray, most: int) -> np.ndarray:
    had = np.zeros(len(kept), dtype=np.int64)
    wanted = np.zeros(len(indptr) - 1, dtype=np.bool_)
    for i in range(len(wanted)):
        for t in indices[indptr[i] : indptr[i + 1]]:
            if kept[t] and had[t] < most:
                had[t] += 1
                wanted[i] = True
    return wanted
