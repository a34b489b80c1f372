"""One shard of a typing: the rows stay here, and what leaves are counts by type and the few rows that a coordinator asks for.

A shard is any set of rows of the corpus, not necessarily consecutive. It knows their types, sample keys and row numbers in
the whole corpus, and answers `diversity.selection.sharded`. Memory: 8 bytes per (sample, type) pair for the incidence and its
transpose, 29 per sample; while greedy coverage goes on 16 more per sample, and while a bound is looked for a copy of the pool.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from diversity.keys import priorities
from diversity.selection.bound import count_best, row_scores
from diversity.selection.chance import draw_priorities
from diversity.selection.greedy import gain_of, round_priorities, window_of
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


class Proposals(NamedTuple):
    """The best candidates of some windows of a shard, in the order (window, gain downwards, priority).

    Attributes:
        rows: the candidates.
        windows, gains: `(m,) int64` of each.
        priorities: `(m,) uint64` in the round.
        more: `(m,) bool`, on the last candidate of a window: whether the window has more than are sent.
    """

    rows: Rows
    windows: np.ndarray
    gains: np.ndarray
    priorities: np.ndarray
    more: np.ndarray


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
        self.waiting = np.zeros(incidence.n_types, dtype=bool)
        self.open, self.priorities = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64)
        self.priced, self.scores = incidence, np.zeros(0, dtype=np.int64)

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

    def prune(self, position: np.ndarray, closure: Closure) -> tuple[np.ndarray, np.ndarray]:
        """Set the births and return (first birth of each type, samples of each birth `(M+1,)`)."""
        self.births = birth(self.incidence, position, closure)
        return first_births(self.incidence, self.births), np.bincount(self.births, minlength=len(position) + 1)

    def count(self, k: int) -> np.ndarray:
        """Return `(M,) int64`: how many samples of the pool of k have each type."""
        return _count(self.incidence.indptr, self.incidence.indices, self.births, k, self.incidence.n_types)

    def candidates(self, k: int, kept: np.ndarray, seed: int, most: int) -> Rows:
        """Return the rows of the pool of k that are among the first `most` of one of their kept types, in the order of their priorities.

        Args:
            k: types kept.
            kept: `(M,) bool` mask of them.
            seed: of the priorities.
            most: at least 1.
        """
        pool = self._pool(k)
        pool = pool[np.argsort(priorities(self.keys[pool], seed, "sample"), kind="stable")]
        return self._rows(pool[first_of_types(self.incidence.take(pool), kept, most)])

    def begin_cover(self, k: int, kept: np.ndarray) -> None:
        """Begin greedy coverage of K_k: all of the pool is open, all kept types wait."""
        self.open, self.waiting = self._pool(k), np.array(kept)

    def begin_round(self, covered: np.ndarray, seed: int, number: int) -> int:
        """Begin a round and return how many rows are open, that is, add a type.

        Args:
            covered: types that have been covered since the last call.
            seed: of the windows.
            number: of the round.
        """
        self._cover(covered)
        self.open = self.open[self._gains(self.open) > 0]
        priority = round_priorities(self.keys[self.open], seed, number)
        order = np.argsort(priority, kind="stable")
        self.open, self.priorities = self.open[order], priority[order]
        return len(self.open)

    def propose(self, covered: np.ndarray, first: int, stop: int, count: int, most: int) -> Proposals:
        """Return the best rows of the windows first, …, stop - 1 out of so many, at most `most` of each that add a type."""
        self._cover(covered)
        windows = window_of(self.priorities, count)
        here = slice(*np.searchsorted(windows, (first, stop)))
        rows, windows, priority = self.open[here], windows[here], self.priorities[here]
        gains = self._gains(rows)
        best = np.lexsort((priority, -gains, windows))
        best = best[gains[best] > 0]
        place = np.arange(len(best)) - np.searchsorted(windows[best], windows[best])
        more = np.append(place[1:] == most, False)[place < most] if len(best) else np.zeros(0, dtype=bool)
        best = best[place < most]
        return Proposals(self._rows(rows[best]), windows[best], gains[best], priority[best], more)

    def begin_bound(self, k: int) -> None:
        """Begin to price the rows of the pool of k."""
        self.priced = self.incidence.take(self._pool(k))

    def score(self, prices: np.ndarray, size: int) -> np.ndarray:
        """Return the `size` largest sums of prices among its rows, in any order."""
        self.scores = row_scores(self.priced.indptr, self.priced.indices, prices)
        return self.scores if len(self.scores) <= size else -np.partition(-self.scores, size - 1)[:size]

    def count_best(self, threshold: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Return how many rows of a score above the threshold, and how many at it, have each type `(M,) int64`; and how many are at it."""
        ones = np.ones(len(self.scores), dtype=np.int64)
        return count_best(self.priced.indptr, self.priced.indices, self.scores, ones, threshold, self.priced.n_types)

    def first_priorities(self, k: int, seed: int, size: int) -> np.ndarray:
        """Return the `size` smallest priorities of a random draw from the pool of k, in any order."""
        found = draw_priorities(self.keys[self._pool(k)], seed)
        return found if len(found) <= size else np.partition(found, size - 1)[:size]

    def drawn(self, k: int, seed: int, last: int) -> np.ndarray:
        """Return the types `(M,) bool` of the rows of the pool of k whose priority in a random draw is at most the last."""
        pool = self._pool(k)
        return self.incidence.covered(pool[draw_priorities(self.keys[pool], seed) <= np.uint64(last)])

    def covered(self, rows: np.ndarray) -> np.ndarray:
        """Return the types `(M,) bool` of those of its rows that have the given numbers in the corpus."""
        return self.incidence.covered(np.flatnonzero(np.isin(self.rows, rows)))

    def pool_entries(self) -> np.ndarray:
        """Return the births `(m,) int32` of its rows."""
        return self.births

    def everything(self) -> Rows:
        """Return all rows, for what can't be done in parts."""
        return self._rows(np.arange(len(self.rows)))

    def _pool(self, k: int) -> np.ndarray:
        return np.flatnonzero((self.births >= 1) & (self.births <= k))

    def _cover(self, types: np.ndarray) -> None:
        self.waiting[types] = False

    def _gains(self, rows: np.ndarray) -> np.ndarray:
        return _gains(self.incidence.indptr, self.incidence.indices, rows, self.waiting)

    def _rows(self, chosen: np.ndarray) -> Rows:
        return Rows(self.rows[chosen], self.keys[chosen], self.births[chosen], self.incidence.take(chosen))


def first_of_types(incidence: Incidence, kept: np.ndarray, most: int) -> np.ndarray:
    """Return which rows, in order, are among the first `most` of one of their kept types, `(n,) bool`."""
    return _first_of_types(incidence.indptr, incidence.indices, kept, most)


@njit(cache=True)
def _gains(indptr: np.ndarray, indices: np.ndarray, rows: np.ndarray, waiting: np.ndarray) -> np.ndarray:
    gains = np.empty(len(rows), dtype=np.int64)
    for j in range(len(rows)):
        gains[j] = gain_of(indptr, indices, rows[j], waiting)
    return gains


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
