"""Coverage-keeping sampling to an exact size (Algorithm 2): as many kept types as fit, then the least represented type again and again.

Phase A covers. A1 takes, for the types from the rarest to the commonest, the first sample of a type that nothing chosen has yet; where that
needs more than the budget, A2 is seeded greedy maximum coverage (`greedy.py`). Phase B takes the next sample of the type that fewest
chosen samples have: for disjoint types that is water-filling, the unique max-min allocation. Candidates stand in the order of their
priorities from the start, so "first" and "next" settle every tie, and all loops run over integers.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from diversity.keys import priorities
from diversity.selection.controls import Control
from diversity.selection.fill import Objective, close_gap, fill
from diversity.selection.greedy import cover_greedily
from diversity.selection.peel import TypedInputs, pool_sizes
from diversity.selection.pool import InfeasibleLevel, Pool, count_types, make_pool, rarest_first


def cover_then_fill(
    typed: TypedInputs, k: int, quota: np.ndarray, control: Control, keys: np.ndarray, seed: int, objective: Objective = "cover"
) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows, chosen_for) in the order of taking: what was found to cover of K_k, the quota met exactly, nothing taken twice.

    Args:
        typed: incidence and pruning.
        k: types kept, admissible.
        quota: `(bins,) int64`, in weights; its sum is the size (or token budget).
        control: weights and bins.
        keys: `(n,) uint64` sample keys.
        seed: the subset seed, of every order and every window.
        objective: how phase B fills: `cover` (least represented type next) or `concave` (largest gain of sum sqrt(n_t) next).

    Raises:
        InfeasibleLevel: the pool has less than the quota, or no sample that fits the token budget.
    """
    if not 1 <= k <= typed.incidence.n_types:
        raise ValueError(f"k = {k} is outside 1..{typed.incidence.n_types}")
    pool = make_pool(typed, control, priorities(keys, seed, "sample"), k)
    _refuse_small(typed, pool, control, quota, k)
    base, why, _ = _cover(pool, k, quota, keys, seed)
    whole = control.by_weight and int(typed.incidence.covered(pool.rows[base])[typed.position <= k].sum()) == k
    taken, reasons = fill(pool, k, quota, base, why, whole, objective)
    if control.by_weight:
        taken, reasons = close_gap(pool, k, int(quota.sum()), taken, reasons, len(base))
    return pool.rows[taken], reasons


def greedily_covered(typed: TypedInputs, k: int, quota: np.ndarray, control: Control, keys: np.ndarray, seed: int) -> np.ndarray:
    """Return the rows that greedy coverage takes in `cover_then_fill`, none where rarest first fits; arguments as there."""
    pool = make_pool(typed, control, priorities(keys, seed, "sample"), k)
    base, _, fits = _cover(pool, k, quota, keys, seed)
    return pool.rows[base[:0] if fits else base]


def _cover(pool: Pool, k: int, quota: np.ndarray, keys: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return (candidates, types they were taken for) of phase A, and whether rarest first fits."""
    rarest = rarest_first(pool.type_at, count_types(pool, k))
    base, why, fits = cover_rarest(pool, k, rarest, quota)
    return (base, why, True) if fits else (*cover_greedily(pool, k, quota, keys, seed, rarest), False)


def too_small(k: int, have: int, wanted: str, enough: np.ndarray) -> InfeasibleLevel:
    """Return the error of a pool that has less than is wanted, given the k whose pools have enough."""
    hint = f"the smallest k whose pool has enough is {enough[0]}" if len(enough) else "no k has enough"
    return InfeasibleLevel(f"the pool of k = {k} has {have}, too little for {wanted}: {hint}")


def _refuse_small(typed: TypedInputs, pool: Pool, control: Control, quota: np.ndarray, k: int) -> None:
    have = np.zeros(len(quota), dtype=np.int64)
    np.add.at(have, pool.bin, pool.weight)
    wanted = f"{int(quota.sum())} {'response tokens' if control.by_weight else 'samples'}"
    wanted += f" under {control.name}" if control.by_bin else ""
    if (have < quota).any():
        raise too_small(k, int(have.sum()), wanted, np.flatnonzero(pool_sizes(typed, control.weights) >= quota.sum()))
    if control.by_weight and quota.sum() < pool.weight.min():
        raise InfeasibleLevel(f"no sample of the pool of k = {k} fits {wanted}: the shortest has {pool.weight.min()}")


@njit(cache=True)
def cover_rarest(pool: Pool, k: int, rarest: np.ndarray, quota: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return (candidates, types they were taken for, whether they cover K_k) of rarest first."""
    left = quota.copy()
    covered = np.zeros(len(pool.position), dtype=np.bool_)
    taken = np.empty(min(len(pool.rows), k), dtype=np.int64)
    reasons = np.empty(len(taken), dtype=np.int32)
    n = 0
    for t in rarest:
        if covered[t] or pool.position[t] > k:
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
