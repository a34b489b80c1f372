"""Phase B of the sampling: fill up to the exact size, evenly over types or by a concave objective, and meet a token budget closely."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numba import njit

from diversity.selection.pool import Pool
from diversity.selection.tournament import GONE, build, leftmost, lift

Objective = Literal["cover", "concave"]
_FIXED_POINT = 1 << 32  # gains are integers, so that their sums and ties don't depend on the order of types


def fill(
    pool: Pool,
    k: int,
    quota: np.ndarray,
    taken: np.ndarray,
    reasons: np.ndarray,
    stop: bool,
    objective: Objective = "cover",
) -> tuple[np.ndarray, np.ndarray]:
    """Return (candidates, chosen_for) in the order of taking, those already taken first.

    `cover` takes the next candidate of the type that fewest taken ones have (ties: the types' own). `concave` takes the candidate with the
    largest gain of sum_t sqrt(n_t), by lazy greedy: monotone and submodular, so at least 1-1/e of the best fill.

    Args:
        pool: the pool of k.
        k: types kept.
        quota: `(bins,) int64`, in weights, the taken ones included.
        taken: `(a,) int64` candidates of phase A.
        reasons: `(a,) int32` types they were taken for.
        stop: end at the first candidate that does not fit (a token budget, all types covered); else pass it over.
        objective: see above.
    """
    left = quota.copy()
    np.subtract.at(left, pool.bin[taken], pool.weight[taken])
    start = np.asarray(taken, dtype=np.int64), np.asarray(reasons, dtype=np.int32)
    if objective == "cover":
        return _fill_even(pool, k, left, *start, stop)
    steps = np.rint(np.diff(np.sqrt(np.arange(len(pool.rows) + 2))) * _FIXED_POINT).astype(np.int64)
    return _fill_concave(pool, k, left, *start, stop, steps)


def greedy_fill(pool: Pool, k: int, size: int, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (candidates, chosen_for) of lazy greedy from nothing, at most `size` of them.

    Args:
        pool: candidates.
        k: types kept.
        size: at most this many.
        steps: `(m+1,) int64`, what the (j+1)-th sample of a type adds, falling in j.
    """
    nothing = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int32)
    return _fill_concave(pool, k, np.array([size], dtype=np.int64), *nothing, False, steps)


def fill_by_weight(weights: np.ndarray, budget: int) -> np.ndarray:
    """Return the places taken of samples in order: up to the last that fits, then the last swapped for the one that leaves the least gap.

    Where the first of them is too large already, that is the largest that fits; none only where none fits.

    Args:
        weights: `(m,) int64` in the order of priority.
        budget: what their sum may not exceed.
    """
    n = int(np.searchsorted(np.cumsum(weights), budget, side="right"))
    if n == len(weights):
        return np.arange(n)
    kept = max(0, n - 1)
    room = budget - int(weights[:kept].sum())
    rest = np.where(weights[kept:] <= room, weights[kept:], -1)
    best = int(np.argmax(rest))
    return np.append(np.arange(kept), kept + best) if rest[best] >= 0 else np.arange(kept)


def close_gap(pool: Pool, k: int, budget: int, taken: np.ndarray, reasons: np.ndarray, base: int) -> tuple[np.ndarray, np.ndarray]:
    """Swap the last pick for the untaken candidate (or itself) that leaves the smallest gap to the budget; the first such in order.

    What covers is never swapped: where nothing else was taken, that candidate is added, if one fits.

    Args:
        pool: the pool of k.
        k: types kept.
        budget: what the weights may not exceed in sum.
        taken: `(a,) int64` candidates.
        reasons: `(a,) int32` types they were taken for.
        base: how many of them cover.
    """
    kept = max(base, len(taken) - 1)
    free = pool.birth <= k
    free[taken[:kept]] = False
    room = budget - int(pool.weight[taken[:kept]].sum())
    fitting = np.where(free & (pool.weight <= room), pool.weight, -1)
    if fitting.max(initial=-1) < 0 or (kept < len(taken) and fitting[taken[kept]] == fitting.max()):
        return taken, reasons
    last = int(np.argmax(fitting))
    types = pool.indices[pool.indptr[last] : pool.indptr[last + 1]]
    types = types[pool.position[types] <= k]
    reason = reasons[kept] if kept < len(taken) and reasons[kept] in types else types[0]
    return np.append(taken[:kept], last), np.append(reasons[:kept], reason).astype(np.int32)


@njit(cache=True)
def _start(pool: Pool, k: int, taken: np.ndarray, reasons: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return room for picks and reasons, a mask of free candidates of the pool of k, and n_t of the taken ones."""
    m = len(pool.rows)
    picks, why = np.empty(m, dtype=np.int64), np.empty(m, dtype=np.int32)
    picks[: len(taken)] = taken
    why[: len(taken)] = reasons
    free = pool.birth <= k
    have = np.zeros(len(pool.position), dtype=np.int64)
    for c in taken:
        free[c] = False
        for t in pool.indices[pool.indptr[c] : pool.indptr[c + 1]]:
            have[t] += 1
    return picks, why, free, have


@njit(cache=True)
def _fill_even(pool: Pool, k: int, left: np.ndarray, taken: np.ndarray, reasons: np.ndarray, stop: bool) -> tuple[np.ndarray, np.ndarray]:
    """Leaves are types in the order of their ties, valued n_t; n_t only grows, so a stale leaf is lifted when it comes first."""
    picks, why, free, have = _start(pool, k, taken, reasons)
    n = len(taken)
    leaves = np.full(len(pool.type_at), GONE, dtype=np.int32)
    for leaf in range(len(leaves)):
        if pool.position[pool.type_at[leaf]] <= k:
            leaves[leaf] = have[pool.type_at[leaf]]
    tree, offsets = build(leaves)
    cursor = pool.starts[:-1].copy()
    while left.max() > 0 and tree[-1] != GONE:
        leaf = leftmost(tree, offsets)
        t = pool.type_at[leaf]
        if have[t] > tree[leaf]:
            lift(tree, offsets, leaf, have[t])
            continue
        while cursor[t] < pool.starts[t + 1]:
            c = pool.members[cursor[t]]
            if free[c] and (stop or pool.weight[c] <= left[pool.bin[c]]):
                break
            cursor[t] += 1
        if cursor[t] == pool.starts[t + 1]:
            lift(tree, offsets, leaf, GONE)
            continue
        c = pool.members[cursor[t]]
        if pool.weight[c] > left[pool.bin[c]]:
            break
        picks[n], why[n] = c, t
        n += 1
        free[c] = False
        left[pool.bin[c]] -= pool.weight[c]
        for u in pool.indices[pool.indptr[c] : pool.indptr[c + 1]]:
            have[u] += 1
    return picks[:n].copy(), why[:n].copy()


@njit(cache=True)
def _fill_concave(
    pool: Pool, k: int, left: np.ndarray, taken: np.ndarray, reasons: np.ndarray, stop: bool, steps: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Leaves are candidates in order, valued by their negated gains; a gain only falls, so a stale leaf is lifted when it comes first."""
    picks, why, free, have = _start(pool, k, taken, reasons)
    n = len(taken)
    leaves = np.full(len(pool.rows), GONE, dtype=np.int64)
    for c in range(len(leaves)):
        if free[c]:
            leaves[c] = -_concave_gain(pool, k, c, have, steps)
    tree, offsets = build(leaves)
    while left.max() > 0 and tree[-1] != GONE:
        c = leftmost(tree, offsets)
        fits = pool.weight[c] <= left[pool.bin[c]]
        if not fits and not stop:
            lift(tree, offsets, c, GONE)
            continue
        gain = _concave_gain(pool, k, c, have, steps)
        if -gain > tree[c]:
            lift(tree, offsets, c, -gain)
            continue
        if not fits:
            break
        picks[n], why[n] = c, _scarcest(pool, k, c, have)
        n += 1
        lift(tree, offsets, c, GONE)
        left[pool.bin[c]] -= pool.weight[c]
        for u in pool.indices[pool.indptr[c] : pool.indptr[c + 1]]:
            have[u] += 1
    return picks[:n].copy(), why[:n].copy()


@njit(cache=True)
def _concave_gain(pool: Pool, k: int, c: int, have: np.ndarray, steps: np.ndarray) -> int:
    gain = 0
    for t in pool.indices[pool.indptr[c] : pool.indptr[c + 1]]:
        if pool.position[t] <= k:
            gain += steps[have[t]]
    return gain


@njit(cache=True)
def _scarcest(pool: Pool, k: int, c: int, have: np.ndarray) -> int:
    """Return the kept type of a candidate that fewest taken ones have; of equals the smallest number."""
    best = -1
    for t in pool.indices[pool.indptr[c] : pool.indptr[c + 1]]:
        if pool.position[t] <= k and (best < 0 or have[t] < have[best]):
            best = t
    return best
