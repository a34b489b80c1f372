"""Coverage-keeping sampling to an exact size (Algorithm 2): first every kept type once, then the least represented type again and again.

Phase A takes, for the types from the rarest to the commonest, the first sample of a type that nothing chosen has yet; where
that needs more than the budget, the greedy set cover is tried (at most H(max types of a sample) times the optimum). Phase B
takes the next sample of the type that fewest chosen samples have: for disjoint types that is water-filling, the unique max-
min allocation. Candidates stand in the order of their priorities from the start, so "first" and "next" settle every tie, and
all loops run over integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from diversity.selection.controls import Control
from diversity.selection.fill import Objective, close_gap, fill
from diversity.selection.peel import TypedInputs, pool_sizes
from diversity.selection.pool import InfeasibleLevel, Pool, count_types, make_pool
from diversity.selection.tournament import GONE, build, leftmost, lift

_LISTED = 16  # candidates of larger gains are listed; those of smaller ones, which most come to, are found by looking at all


@dataclass(frozen=True)
class Taken:
    """Candidates in the order in which they were taken, and the type that each was taken for."""

    candidates: np.ndarray
    chosen_for: np.ndarray


def cover(pool: Pool, k: int, quota: np.ndarray, counts: np.ndarray | None = None) -> Taken | None:
    """Return candidates that have every type of K_k and fit the quota, or None: rarest first, else the greedy set cover.

    Args:
        pool: the pool of this k or of a larger one.
        k: types kept.
        quota: `(bins,) int64`, in weights.
        counts: `(M,) int64` candidates of each type at k, where the caller has them.
    """
    if counts is None:
        counts = count_types(pool, k)
    for attempt in (cover_rarest, _cover_by_gain if len(quota) == 1 else _cover_greedy):
        found, reasons, fits = attempt(pool, k, counts, quota)
        if fits:
            return Taken(found, reasons)
    return None


def cover_then_fill(
    typed: TypedInputs,
    k: int,
    quota: np.ndarray,
    control: Control,
    priority: np.ndarray,
    constant: np.ndarray,
    objective: Objective = "cover",
) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows, chosen_for) in the order of taking: all of K_k covered, the quota met exactly, nothing taken twice.

    Args:
        typed: incidence and pruning.
        k: types kept, admissible.
        quota: `(bins,) int64`, in weights; its sum is the size (or token budget).
        control: weights and bins.
        priority: `(n,) uint64`, the seeded order of the samples.
        constant: `(n,) uint64`, the seedless order with which levels were planned; its cover is taken where the seeded one does not fit.
        objective: how phase B fills: `cover` (least represented type next) or `concave` (largest gain of sum sqrt(n_t) next).

    Raises:
        InfeasibleLevel: the pool has less than the quota, or no cover fits.
    """
    if not 1 <= k <= typed.incidence.n_types:
        raise ValueError(f"k = {k} is outside 1..{typed.incidence.n_types}")
    pool = make_pool(typed, control, priority, k)
    _refuse_small(typed, pool, control, quota, k)
    base = cover(pool, k, quota)
    if base is None:
        planned = make_pool(typed, control, constant, k)
        base = cover(planned, k, quota)
        if base is None:
            raise InfeasibleLevel(
                f"no cover of k = {k} types that was tried fits {_say(control, quota)}: choose a lower level or a larger size"
            )
        by_row = np.argsort(pool.rows)
        places = by_row[np.searchsorted(pool.rows[by_row], planned.rows[base.candidates])]
        base = Taken(places, base.chosen_for)
    taken, reasons = fill(pool, k, quota, base.candidates, base.chosen_for, control.by_weight, objective)
    if control.by_weight and len(taken) > len(base.candidates):
        taken, reasons = close_gap(pool, k, int(quota.sum()), taken, reasons)
    return pool.rows[taken], reasons


def _say(control: Control, quota: np.ndarray) -> str:
    what = "response tokens" if control.by_weight else "samples"
    return f"{int(quota.sum())} {what}" + (f" under {control.name}" if control.by_bin else "")


def _refuse_small(typed: TypedInputs, pool: Pool, control: Control, quota: np.ndarray, k: int) -> None:
    have = np.zeros(len(quota), dtype=np.int64)
    np.add.at(have, pool.bin, pool.weight)
    if (have >= quota).all():
        return
    enough = np.flatnonzero(pool_sizes(typed, control.weights) >= quota.sum())
    hint = f"the smallest k whose pool has enough is {enough[0]}" if len(enough) else "no k has enough"
    raise InfeasibleLevel(f"the pool of k = {k} has {int(have.sum())}, too little for {_say(control, quota)}: {hint}")


@njit(cache=True)
def _by_count(pool: Pool, k: int, counts: np.ndarray) -> np.ndarray:
    """Return the types of K_k by (count, tie): a counting sort over types that stand in the order of their ties."""
    highest = 0
    for t in range(len(counts)):
        if pool.position[t] <= k:
            highest = max(highest, counts[t])
    starts = np.zeros(highest + 2, dtype=np.int64)
    for t in range(len(counts)):
        if pool.position[t] <= k:
            starts[counts[t] + 1] += 1
    starts = np.cumsum(starts)
    ordered = np.empty(starts[-1], dtype=np.int32)
    for t in pool.type_at:
        if pool.position[t] <= k:
            ordered[starts[counts[t]]] = t
            starts[counts[t]] += 1
    return ordered


@njit(cache=True)
def cover_rarest(pool: Pool, k: int, counts: np.ndarray, quota: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return (candidates, types they were taken for, whether they cover K_k) of rarest first, from the counts of types at k."""
    left = quota.copy()
    covered = np.zeros(len(pool.position), dtype=np.bool_)
    taken = np.empty(min(len(pool.rows), k), dtype=np.int64)
    reasons = np.empty(len(taken), dtype=np.int32)
    n = 0
    for t in _by_count(pool, k, counts):
        if covered[t]:
            continue
        found = _first_that_fits(pool, k, t, left, quota) if left.max() > 0 else -1
        if found < 0:
            return taken[:n], reasons[:n], False
        left[pool.bin[found]] -= pool.weight[found]
        for u in pool.indices[pool.indptr[found] : pool.indptr[found + 1]]:
            covered[u] = True
        taken[n], reasons[n] = found, t
        n += 1
    return taken[:n], reasons[:n], True


@njit(cache=True)
def _first_that_fits(pool: Pool, k: int, t: int, left: np.ndarray, quota: np.ndarray) -> int:
    """Return the first candidate of a type in the bin that has most of its quota left, or -1.

    Without that care for bins a type that occurs in many is taken from a scarce one, and the types that occur only there go without.
    """
    found = -1
    for c in pool.members[pool.starts[t] : pool.starts[t + 1]]:
        b = pool.bin[c]
        if pool.birth[c] <= k and pool.weight[c] <= left[b]:
            if len(quota) == 1:
                return c
            if found < 0 or left[b] * quota[pool.bin[found]] > left[pool.bin[found]] * quota[b]:
                found = c
    return found


@njit(cache=True)
def _cover_by_gain(pool: Pool, k: int, counts: np.ndarray, quota: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Greedy set cover for one bin, by gains that are kept up to date: from the widest gain down, each gain's candidates in order.

    A gain only falls, so that the candidates of a gain need one visit in order: who has less by then waits with those of that gain. It
    takes what `_cover_greedy` takes in a fraction of the time, and the scan for k_max is made of hundreds of covers.
    """
    left = quota[0]
    waiting = pool.position <= k
    n_waiting = waiting.sum()
    gains = np.zeros(len(pool.rows), dtype=np.int32)
    lightest = left + 1
    for c in range(len(gains)):
        if pool.birth[c] <= k:
            gains[c] = pool.indptr[c + 1] - pool.indptr[c] if pool.closed else _gain(pool, c, waiting)
            lightest = min(lightest, pool.weight[c])
    first = np.full(gains.max() + 1, -1, dtype=np.int32)  # of the candidates that wait with a gain, linked by `after`
    after = np.empty(len(gains), dtype=np.int32)
    for c in range(len(gains) - 1, -1, -1):
        if gains[c] > _LISTED:
            after[c], first[gains[c]] = first[gains[c]], c
    taken = np.empty(min(len(pool.rows), k), dtype=np.int64)
    reasons = np.empty(len(taken), dtype=np.int32)
    n = 0
    visited = np.empty(len(gains) + 1, dtype=np.int32)
    for gain in range(len(first) - 1, 0, -1):
        n_visited = 0
        if gain > _LISTED:
            c = first[gain]
            while c >= 0:
                visited[n_visited] = c
                n_visited += 1
                c = after[c]
            visited[:n_visited].sort()
        else:
            for c in range(len(gains)):
                visited[n_visited] = c
                n_visited += gains[c] == gain
        for c in visited[:n_visited]:
            # No pick gains more than this gain, so that n_waiting types need at least n_waiting / gain picks.
            if (n_waiting + gain - 1) // gain * lightest > left:
                return taken[:n], reasons[:n], False
            if gains[c] < gain:
                if gains[c] > _LISTED:
                    after[c], first[gains[c]] = first[gains[c]], c
                continue
            if pool.weight[c] > left:
                continue
            taken[n], reasons[n] = c, -1
            for t in pool.indices[pool.indptr[c] : pool.indptr[c + 1]]:
                if waiting[t]:
                    waiting[t] = False
                    reasons[n] = t if reasons[n] < 0 else reasons[n]
                    for other in pool.members[pool.starts[t] : pool.starts[t + 1]]:
                        gains[other] -= 1
            n_waiting -= gain
            left -= pool.weight[c]
            n += 1
            if n_waiting == 0:
                return taken[:n], reasons[:n], True
    return taken[:n], reasons[:n], False


@njit(cache=True)
def _cover_greedy(pool: Pool, k: int, counts: np.ndarray, quota: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Greedy set cover by a lazy queue: a worth only falls, so the first candidate whose worth is up to date has the largest."""
    left = quota.copy()
    waiting = pool.position <= k
    n_waiting = waiting.sum()
    taken = np.empty(min(len(pool.rows), k), dtype=np.int64)
    reasons = np.empty(len(taken), dtype=np.int32)
    leaves = np.full(len(pool.rows), GONE, dtype=np.int64)
    lightest = left.sum() + 1
    widest = 0
    for c in range(len(leaves)):
        if pool.birth[c] <= k:
            gain = pool.indptr[c + 1] - pool.indptr[c] if pool.closed else _gain(pool, c, waiting)
            leaves[c] = -_worth(gain, left, quota, pool.bin[c])
            lightest = min(lightest, pool.weight[c])
            widest = max(widest, gain)
    tree, offsets = build(leaves)
    many = len(quota) > 1
    choices = counts.copy()
    closed = np.zeros(len(quota), dtype=np.bool_)
    if many and not _close_full(pool, k, left, closed, choices, waiting):
        return taken[:0], reasons[:0], False
    n = 0
    while n_waiting > 0:
        # No pick gains more than the widest, so that n_waiting types need at least n_waiting / widest picks.
        if tree[-1] >= 0 or (n_waiting + widest - 1) // widest * lightest > left.sum():
            return taken[:n], reasons[:n], False
        c = leftmost(tree, offsets)
        if pool.weight[c] > left[pool.bin[c]]:
            lift(tree, offsets, c, GONE)
            continue
        gain = _gain(pool, c, waiting)
        worth = _worth(gain, left, quota, pool.bin[c])
        if worth < -tree[c]:
            lift(tree, offsets, c, -worth)
            continue
        reason = -1
        for t in pool.indices[pool.indptr[c] : pool.indptr[c + 1]]:
            if waiting[t]:
                waiting[t] = False
                reason = t if reason < 0 else reason
        n_waiting -= gain
        widest = widest if many else gain
        left[pool.bin[c]] -= pool.weight[c]
        lift(tree, offsets, c, GONE)
        taken[n], reasons[n] = c, reason
        n += 1
        if many and left[pool.bin[c]] == 0 and not _close_full(pool, k, left, closed, choices, waiting):
            return taken[:n], reasons[:n], False
    return taken[:n], reasons[:n], True


@njit(cache=True)
def _worth(gain: int, left: np.ndarray, quota: np.ndarray, b: int) -> int:
    """Return the gain, scaled by how much of the quota of its bin is left where there are several bins."""
    return gain if len(quota) == 1 else gain * 65536 * left[b] // max(1, quota[b])


@njit(cache=True)
def _close_full(pool: Pool, k: int, left: np.ndarray, closed: np.ndarray, choices: np.ndarray, waiting: np.ndarray) -> bool:
    """Take the candidates of bins that became full off the choices of their types; return whether all waiting types have choices."""
    for c in range(len(pool.rows)):
        b = pool.bin[c]
        if left[b] == 0 and not closed[b] and pool.birth[c] <= k:
            for t in pool.indices[pool.indptr[c] : pool.indptr[c + 1]]:
                choices[t] -= 1
                if choices[t] == 0 and waiting[t]:
                    return False
    for b in range(len(left)):
        closed[b] = closed[b] or left[b] == 0
    return True


@njit(cache=True)
def _gain(pool: Pool, c: int, waiting: np.ndarray) -> int:
    gain = 0
    for t in pool.indices[pool.indptr[c] : pool.indptr[c + 1]]:
        gain += waiting[t]
    return gain
