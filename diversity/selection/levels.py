"""Levels: from fractions in [0, 1] to numbers of kept types, for every size, from one pruning.

k(f) = round(k_min + f (k_max - k_min)), exactly (halves to even), then down to the next k that is admissible and whose cover
fits. k_min is the smallest admissible k whose pool holds rho times the budget and whose cover fits it; k_max is the largest
admissible k whose cover fits. Covers are not monotone in k, so both are found by scans; whether a cover fits is asked with a
constant order of the samples, so that K_k never depends on a subset seed. That 0 is the feasible minimum and 1 all types is
our decision; the paper's mapping is unknown.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numba import njit

from diversity.keys import priorities
from diversity.selection.bound import Bound
from diversity.selection.controls import Control
from diversity.selection.cover import Taken, cover
from diversity.selection.peel import TypedInputs, admissible, pool_sizes
from diversity.selection.pool import InfeasibleLevel, InfeasibleSize, Pool, make_pool

logger = logging.getLogger(__name__)

_PATIENCE = 16  # failed covers before the next attempt at a proof that skips many; doubled when one brings little

_NO_ROWS = np.zeros(0, dtype=np.int64)

KminFrom = Literal["each", "largest"]


@dataclass(frozen=True)
class Level:
    """One level of one size: what was asked for and what there is.

    Attributes:
        fraction: nominal level.
        k_requested, k_realised: types kept; the second is admissible and its cover fits.
        pool_size: samples of the pool of k_realised.
        cover: samples of its cover, by the constant order.
    """

    fraction: Fraction
    k_requested: int
    k_realised: int
    pool_size: int
    cover: int


@dataclass(frozen=True)
class LevelPlan:
    """The levels of one (typing, control, size), decided before anything is drawn.

    Attributes:
        size: samples asked for; budget: the same in the control's weights.
        n_types: M.
        k_min, k_max: ends of the dial.
        quota: `(bins,) int64`, sums to the budget; its mix is that of the pool of k_min.
        levels: one for each fraction asked for.
    """

    size: int
    budget: int
    n_types: int
    k_min: int
    k_max: int
    quota: np.ndarray
    levels: tuple[Level, ...]

    def at(self, fraction: Fraction) -> Level:
        """Return one level.

        Raises:
            ValueError: it was not planned.
        """
        for level in self.levels:
            if level.fraction == fraction:
                return level
        raise ValueError(f"level {fraction} was not planned: planned are {', '.join(str(lv.fraction) for lv in self.levels)}")


def level_table(
    typed: TypedInputs,
    sample_keys: np.ndarray,
    control: Control,
    sizes: Iterable[int],
    fractions: Sequence[Fraction],
    rho: float = 1.5,
    kmin_from: KminFrom = "each",
) -> dict[int, LevelPlan]:
    """Return the plan of every size.

    Args:
        typed: incidence and pruning.
        sample_keys: `(n,) uint64`.
        control: weights, bins and quotas.
        sizes: samples asked for, each at least 1.
        fractions: nominal levels in [0, 1].
        rho: how many times the budget the pool of level 0 holds, at least 1; 3 or more under quotas.
        kmin_from: `each` size has a k_min of its own, or all have that of the `largest`.

    Raises:
        InfeasibleSize: a size that no level can give; says the smallest and the largest that can be had.
        InfeasibleLevel: the largest size's k_min does not fit a smaller size.
    """
    return Planner(typed, sample_keys, control, rho).table(sizes, fractions, kmin_from)


class Planner:
    """The scans over k for one typing and control. Counts of the pool are kept up to date from one k to the next."""

    def __init__(self, typed: TypedInputs, sample_keys: np.ndarray, control: Control, rho: float) -> None:
        self.begin(control, typed.incidence.n_types, rho)
        self.typed, self.order = typed, constant_order(sample_keys)
        self._look_at(make_pool(typed, control, self.order, self.n_types))
        self.widest = int(np.diff(self.pool.indptr).max(initial=1))
        self.samples = pool_sizes(typed)
        self.weights = pool_sizes(typed, control.weights)
        self.admissible = np.flatnonzero(admissible(typed.incidence, typed))
        self.counts = np.zeros(self.n_types, dtype=np.int64)
        self.counted_k = 0

    def begin(self, control: Control, n_types: int, rho: float) -> None:
        """Remember what is asked for; rho is taken as written, not as its binary fraction."""
        if rho < 1:
            raise ValueError(f"rho is at least 1; got {rho}")
        if control.by_bin and rho < 3:
            logger.warning("control %s with rho %s: below 3 the quotas leave the level-0 pool little choice", control.name, rho)
        self.control, self.n_types, self.rho = control, n_types, Fraction(str(rho))

    def table(self, sizes: Iterable[int], fractions: Sequence[Fraction], kmin_from: KminFrom) -> dict[int, LevelPlan]:
        """Return the plan of every size; see `level_table`."""
        sizes = sorted(set(sizes))
        if not sizes or sizes[0] < 1 or any(not 0 <= f <= 1 for f in fractions):
            raise ValueError(f"sizes are at least 1, levels in [0, 1]; got {sizes}, {[str(f) for f in fractions]}")
        common = self.k_min(sizes[-1])[0] if kmin_from == "largest" else None
        return {size: self.plan(size, fractions, common, sizes[-1]) for size in sizes}

    def cover(self, k: int, quota: np.ndarray) -> Taken | None:
        """Return a cover of K_k that fits, or None."""
        before, after = int(self.samples[self.counted_k]), int(self.samples[k])
        _recount(self.counts, self.pool.indptr, self.pool.indices, self.by_birth, before, after)
        self.counted_k = k
        return cover(self.pool, k, quota, self.counts)

    def _look_at(self, pool: Pool) -> None:
        self.pool, self.by_birth = pool, np.argsort(pool.birth, kind="stable")

    def quota(self, size: int, k: int) -> np.ndarray:
        """Return the quota that the pool of k would give."""
        return self.control.quota(size, self.pool.rows[self.pool.birth <= k] if self.control.by_bin else _NO_ROWS)

    def weight(self, found: Taken) -> int:
        """Return what a cover takes of the budget."""
        return int(self.pool.weight[found.candidates].sum())

    def needs(self, size: int) -> int:
        """Return the weight that the pool of level 0 has at least: ceil(rho x budget), exactly."""
        return -(-self.control.budget(size) * self.rho.numerator // self.rho.denominator)

    def k_min(self, size: int) -> tuple[int, np.ndarray, Taken]:
        """Return the smallest k that will do, the quota of its pool, and its cover; an upward scan from the pool bound."""
        for k in self.admissible[self.weights[self.admissible] >= self.needs(size)]:
            quota = self.quota(size, k)
            found = self.cover(int(k), quota)
            if found is not None:
                return int(k), quota, found
        raise InfeasibleSize(self._explain(size))

    def down_from(self, k: int, quota: np.ndarray, floor: int) -> tuple[int, Taken]:
        """Return the largest admissible k at or below the given one whose cover fits, and the cover."""
        allowed = self.admissible[(self.admissible >= floor) & (self.admissible <= k)]
        found = self.cover(int(allowed[-1]), quota) if len(allowed) else None
        if found is not None:
            return int(allowed[-1]), found
        whole = self.pool
        try:
            for failed, found in self._scan_down(allowed, quota):
                if found is not None:
                    return failed, found
        finally:
            self._look_at(whole)
        raise InfeasibleLevel(f"no admissible k from {floor} to {k} of {self.n_types} types has a cover that fits")

    def _scan_down(self, allowed: np.ndarray, quota: np.ndarray) -> Iterator[tuple[int, Taken | None]]:
        """Yield the k below the last of those given, and their covers, downwards and without those that are proved not to fit."""
        bound, wait, patience = Bound(self.pool), 0, _PATIENCE
        while len(allowed):
            failed = int(allowed[-1])
            if 2 * self.samples[failed] < len(self.pool.rows):
                # A cover looks at every candidate of its types: in a pool much larger than its own that is most of its time.
                self._look_at(make_pool(self.typed, self.control, self.order, failed))
                bound.pool = self.pool
            wait -= 1
            if wait < 0:
                refuted = min(failed, bound.refuted_down_to(failed, quota))
                wait, patience = (0, _PATIENCE) if refuted < failed - _PATIENCE else (patience, 2 * patience)
                failed = refuted
            allowed = allowed[: np.searchsorted(allowed, failed)]
            if len(allowed):
                yield int(allowed[-1]), self.cover(int(allowed[-1]), quota)

    def plan(self, size: int, fractions: Sequence[Fraction], common: int | None, largest: int) -> LevelPlan:
        """Return the plan of one size, with its own k_min or the common one."""
        if common is None:
            k_min, quota, _ = self.k_min(size)
        else:
            k_min, quota = common, self.quota(size, common)
            if self.cover(k_min, quota) is None:
                raise InfeasibleLevel(
                    f"size {size} can't cover k = {k_min}, the k_min of the largest size {largest}: with kmin_from: each it can "
                    f"have k from {self.k_min(size)[0]}; with kmin_from: largest it must be at least {self._smallest_at(k_min)}"
                )
        k_max = self.down_from(self.n_types, quota, k_min)[0]
        if k_min == k_max and len(set(fractions)) > 1:
            logger.warning("size %d under %s: k_min = k_max = %d, so that all levels are equal", size, self.control.name, k_min)
        levels = []
        for fraction in fractions:
            requested = round(k_min + fraction * (k_max - k_min))
            k, found = self.down_from(requested, quota, k_min)
            levels.append(Level(fraction, requested, k, int(self.samples[k]), len(found.candidates)))
        return LevelPlan(size, self.control.budget(size), self.n_types, k_min, k_max, quota, tuple(levels))

    def _explain(self, size: int) -> str:
        smallest, largest = self.size_range()
        if largest < 1:
            return f"size {size} can't be had, nor any other: only {int(self.samples[-1])} samples have a type"
        above = self._next_above(size) if smallest < size < largest else None
        return (
            f"size {size} can't be had at any level under control {self.control.name} with rho {float(self.rho):g}: "
            f"the smallest is {smallest}, {f'the next above {size} is {above}, ' if above else ''}the largest {largest} "
            f"({int(self.samples[-1])} samples have a type)"
        )

    def _next_above(self, size: int) -> int | None:
        """Return the smallest size above one that no k gives: sizes have gaps, since a larger pool has more types to cover."""
        above = None
        for k in self.admissible[self.weights[self.admissible] >= self.needs(size)]:
            if above is not None and -(-int(k) // self.widest) >= above:
                break
            found = self._smallest_at(int(k))
            if found > size and self.needs(found) <= self.weights[k] and (above is None or found < above):
                above = found
        return above

    def size_range(self) -> tuple[int, int]:
        """Return the smallest and the largest size that some k can give (under quotas, as if there were none)."""
        usable = self.admissible
        most = int(self.weights[usable[-1]]) if len(usable) else 0
        largest = self.control.size_of(most * self.rho.denominator // self.rho.numerator)
        while largest > 0 and self.needs(largest) > most:
            largest -= 1
        smallest = largest
        for k in usable:
            if -(-int(k) // self.widest) >= smallest:
                break
            smallest = min(smallest, self._smallest_at(int(k), smallest))
        return smallest, largest

    def _smallest_at(self, k: int, otherwise: int = 0) -> int:
        """Return the size of the cover of K_k where its pool has room for rho times that, else the given size."""
        open_quota = np.full(self.control.n_bins, int(self.weights[-1]), dtype=np.int64)
        found = self.cover(k, open_quota)
        if found is None:
            return otherwise
        size = self.control.size_of(self.weight(found))
        return size if not otherwise or self.needs(size) <= self.weights[k] else otherwise


def constant_order(sample_keys: np.ndarray) -> np.ndarray:
    """Return the seedless priorities `(n,) uint64` with which levels are planned."""
    return priorities(sample_keys, 0, "cover")


@njit(cache=True)
def _recount(counts: np.ndarray, indptr: np.ndarray, indices: np.ndarray, by_birth: np.ndarray, before: int, after: int) -> None:
    """Bring the type counts from the first `before` candidates by birth to the first `after`."""
    step = 1 if after > before else -1
    for c in by_birth[min(before, after) : max(before, after)]:
        for t in indices[indptr[c] : indptr[c + 1]]:
            counts[t] += step
