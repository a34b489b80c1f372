"""Seeded greedy maximum coverage: what takes the place of an exact cover where that does not fit the size (phase A2 of Algorithm 2).

Stochastic greedy (Mirzasoleiman et al. 2015, "Lazier than lazy greedy"): a step looks at some of the candidates only and takes the one
that adds most types, which in expectation covers at least 1 - 1/e - eps of the most that as many samples can. Which it looks at comes
from keyed hashes: a round deals the candidates that still add a type into windows, equal ranges of a priority that is new in each
round, of s candidates on average, and takes the best of each window. So nothing depends on row order, threads or shards, two seeds
choose different samples, and a round needs no more than each shard's best of each window. s = |pool| / N ln(1/eps); where fewer than
twice as many are left, a step looks at all.

Under quotas candidates of full bins are out; under a token budget those that no longer fit are, and the best is the one with most new types
for its tokens (Khuller, Moss & Naor 1999). Ours: who adds nothing is left out, so that windows stay full of those who do, and eps is 0.05.
With 0.01 a small set at level 1 covers 1% more, and two seeds share three quarters of it.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from diversity.keys import priorities
from diversity.selection.pool import Pool

EPSILON = 0.05


def cover_greedily(pool: Pool, k: int, quota: np.ndarray, keys: np.ndarray, seed: int, rarest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (candidates, chosen_for) in the order of taking: until K_k is covered, the quota is met, or nothing that fits adds a type.

    Args:
        pool: the pool of k.
        k: types kept.
        quota: `(bins,) int64`, in weights.
        keys: `(n,) uint64` sample keys of the corpus.
        seed: of the windows.
        rarest: `(M,)` the types, rarest first: who brings several new ones is chosen for the first of them.
    """
    rank, left = ranks(rarest), quota.copy()
    waiting = pool.position <= k
    in_window = window_size(int(pool.weight.sum()), int(quota.sum()))
    taken, reasons = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    open_ones = np.flatnonzero(pool.birth <= k)
    for number in range(len(pool.rows)):
        open_ones = open_ones[_still_open(pool, open_ones, waiting, left)]
        if not len(open_ones):
            break
        priority = round_priorities(keys[pool.rows[open_ones]], seed, number)
        order = np.argsort(priority, kind="stable")
        windows = window_of(priority[order], n_windows(len(open_ones), in_window))
        found, why = _best_of_each(pool, open_ones[order], windows, waiting, left, rank)
        taken.append(found)
        reasons.append(why)
    return np.concatenate(taken), np.concatenate(reasons)


def window_size(weight: int, budget: int) -> int:
    """Return s, how many candidates a step looks at: those of a pool of that weight, for a budget in the same unit."""
    return max(1, math.ceil(weight / max(1, budget) * math.log(1 / EPSILON)))


def n_windows(n_open: int, in_window: int) -> int:
    """Return the number of windows of a round in which so many candidates still add a type."""
    return max(1, n_open // in_window)


def round_priorities(keys: np.ndarray, seed: int, number: int) -> np.ndarray:
    """Return the priorities `(n,) uint64` of sample keys in a round."""
    return priorities(keys, seed, f"cover {number}")


def window_of(priority: np.ndarray, count: int) -> np.ndarray:
    """Return the window `(n,) int64` in 0..count-1 of each priority: equal ranges, so that no one needs to know who else there is."""
    return ((priority >> np.uint64(32)) * np.uint64(count) >> np.uint64(32)).astype(np.int64)


def ranks(rarest: np.ndarray) -> np.ndarray:
    """Return the place `(M,) int64` of each type in an order of all types."""
    rank = np.empty(len(rarest), dtype=np.int64)
    rank[rarest] = np.arange(len(rarest))
    return rank


@njit(cache=True)
def gain_of(indptr: np.ndarray, indices: np.ndarray, c: int, waiting: np.ndarray) -> int:
    """Return how many types a candidate would add."""
    gain = 0
    for t in indices[indptr[c] : indptr[c + 1]]:
        gain += waiting[t]
    return gain


@njit(cache=True)
def cover_by(indptr: np.ndarray, indices: np.ndarray, c: int, waiting: np.ndarray, rank: np.ndarray) -> int:
    """Mark the types of a candidate as covered, and return which of the new ones comes first in rank."""
    reason = -1
    for t in indices[indptr[c] : indptr[c + 1]]:
        if waiting[t]:
            waiting[t] = False
            if reason < 0 or rank[t] < rank[reason]:
                reason = t
    return reason


@njit(cache=True)
def _still_open(pool: Pool, candidates: np.ndarray, waiting: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Return which candidates add a type and fit, `(m,) bool`; who does not now never will again."""
    found = np.zeros(len(candidates), dtype=np.bool_)
    for j in range(len(candidates)):
        c = candidates[j]
        found[j] = pool.weight[c] <= left[pool.bin[c]] and gain_of(pool.indptr, pool.indices, c, waiting) > 0
    return found


@njit(cache=True)
def _best_of_each(
    pool: Pool, candidates: np.ndarray, windows: np.ndarray, waiting: np.ndarray, left: np.ndarray, rank: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Take the best of each window, one after the other; candidates come in the order of the round, which settles ties."""
    taken, reasons = np.empty(len(candidates), dtype=np.int64), np.empty(len(candidates), dtype=np.int32)
    n, best, most = 0, -1, 0
    for j in range(len(candidates)):
        c = candidates[j]
        if pool.weight[c] <= left[pool.bin[c]]:
            gain = gain_of(pool.indptr, pool.indices, c, waiting)
            if gain > 0 and (best < 0 or gain * pool.weight[best] > most * pool.weight[c]):
                best, most = c, gain
        if best >= 0 and (j + 1 == len(candidates) or windows[j + 1] != windows[j]):
            taken[n], reasons[n] = best, cover_by(pool.indptr, pool.indices, best, waiting, rank)
            left[pool.bin[best]] -= pool.weight[best]
            n += 1
            best = -1
    return taken[:n].copy(), reasons[:n].copy()
