"""Levels: from fractions in [0, 1] to numbers of kept types, for every size, from one pruning.

k(f) = round(k_min + f (M - k_min)), exactly (halves to even), then down to the next admissible k. k_min is the smallest admissible k whose
pool holds rho times the budget; under quotas its mix gives them, and as pools are nested every level can meet them. So each size up to
(samples with a type) / rho has each level, and nothing is searched for: how much of K_k a size covers is recorded, not demanded. That 0 is
the smallest pool and 1 all types is our decision; the paper's mapping is unknown.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from diversity.selection.controls import Control
from diversity.selection.peel import TypedInputs, admissible, pool_sizes
from diversity.selection.pool import InfeasibleSize

logger = logging.getLogger(__name__)

KminFrom = Literal["each", "largest"]
QUOTA_RHO = 3  # below it quotas leave the pool of level 0 little choice


@dataclass(frozen=True)
class Level:
    """One level of one size: what was asked for and what there is.

    Attributes:
        fraction: nominal level.
        k_requested, k_realised: types kept; the second is admissible.
        pool_size: samples of the pool of k_realised.
    """

    fraction: Fraction
    k_requested: int
    k_realised: int
    pool_size: int


@dataclass(frozen=True)
class LevelPlan:
    """The levels of one (typing, control, size), decided before anything is drawn.

    Attributes:
        size: samples asked for; budget: the same in the control's weights.
        n_types: M, the upper end of the dial.
        k_min: the lower end.
        quota: `(bins,) int64`, sums to the budget; its mix is that of the pool of k_min.
        levels: one for each fraction asked for.
    """

    size: int
    budget: int
    n_types: int
    k_min: int
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


@dataclass(frozen=True)
class Pools:
    """What levels depend on: the pools of all k, and where they are.

    Attributes:
        admissible: ascending k >= 1 at which every kept type occurs.
        samples: `(M+1,) int64` of the pool of each k = 0..M.
        weights: the same in the control's weights.
        rows: k to the rows of its pool, for quotas.
    """

    admissible: np.ndarray
    samples: np.ndarray
    weights: np.ndarray
    rows: Callable[[int], np.ndarray]


def level_table(
    typed: TypedInputs,
    control: Control,
    sizes: Iterable[int],
    fractions: Sequence[Fraction],
    rho: float = 1.5,
    kmin_from: KminFrom = "each",
) -> dict[int, LevelPlan]:
    """Return the plan of every size.

    Args:
        typed: incidence and pruning.
        control: weights, bins and quotas.
        sizes: samples asked for, each at least 1.
        fractions: nominal levels in [0, 1].
        rho: how many times the budget the pool of level 0 holds, at least 1; 3 or more under quotas.
        kmin_from: `each` size has a k_min of its own, or all have that of the `largest`.

    Raises:
        InfeasibleSize: a size that no level can give; says which can.
    """
    pools = Pools(
        np.flatnonzero(admissible(typed.incidence, typed)),
        pool_sizes(typed),
        pool_sizes(typed, control.weights),
        lambda k: np.flatnonzero((typed.birth >= 1) & (typed.birth <= k)),
    )
    return plan_levels(pools, control, sizes, fractions, rho, kmin_from)


def plan_levels(
    pools: Pools, control: Control, sizes: Iterable[int], fractions: Sequence[Fraction], rho: float, kmin_from: KminFrom
) -> dict[int, LevelPlan]:
    """Return `level_table` from what is known of the pools."""
    sizes = sorted(set(sizes))
    if rho < 1:
        raise ValueError(f"rho is at least 1; got {rho}")
    if not sizes or sizes[0] < 1 or any(not 0 <= f <= 1 for f in fractions):
        raise ValueError(f"sizes are at least 1, levels in [0, 1]; got {sizes}, {[str(f) for f in fractions]}")
    if control.by_bin and rho < QUOTA_RHO:
        logger.warning("control %s with rho %s: below %d the quotas leave the level-0 pool little choice", control.name, rho, QUOTA_RHO)
    dial = _Dial(pools, control, Fraction(str(rho)))  # rho as it is written, not as its binary fraction
    common = dial.k_min(sizes[-1]) if kmin_from == "largest" else None
    return {size: dial.plan(size, fractions, common or dial.k_min(size)) for size in sizes}


@dataclass(frozen=True)
class _Dial:
    """The dial of one typing and control."""

    pools: Pools
    control: Control
    rho: Fraction

    def k_min(self, size: int) -> int:
        """Return the smallest admissible k whose pool has room."""
        allowed = self.pools.admissible
        enough = allowed[self.pools.weights[allowed] >= self._needs(size)]
        if not len(enough):
            raise InfeasibleSize(self._explain(size))
        return int(enough[0])

    def plan(self, size: int, fractions: Sequence[Fraction], k_min: int) -> LevelPlan:
        """Return the plan of one size."""
        n_types = len(self.pools.samples) - 1
        if k_min == n_types and len(set(fractions)) > 1:
            logger.warning("size %d under %s: k_min = M = %d, so that all levels are equal", size, self.control.name, k_min)
        quota = self.control.quota(size, self.pools.rows(k_min) if self.control.by_bin else np.zeros(0, dtype=np.int64))
        levels = tuple(self._level(fraction, k_min, n_types) for fraction in fractions)
        return LevelPlan(size, self.control.budget(size), n_types, k_min, quota, levels)

    def _level(self, fraction: Fraction, k_min: int, n_types: int) -> Level:
        requested = round(k_min + fraction * (n_types - k_min))
        allowed = self.pools.admissible
        k = int(allowed[np.searchsorted(allowed, requested, side="right") - 1])
        return Level(fraction, requested, k, int(self.pools.samples[k]))

    def _needs(self, size: int) -> int:
        """Return the weight that the pool of level 0 has at least: ceil(rho x budget), exactly."""
        return -(-self.control.budget(size) * self.rho.numerator // self.rho.denominator)

    def _largest(self) -> int:
        """Return the largest size that can be had, 0 where none can."""
        most = int(self.pools.weights[-1])
        largest = self.control.size_of(most * self.rho.denominator // self.rho.numerator)
        while largest > 0 and self._needs(largest) > most:
            largest -= 1
        return largest

    def _explain(self, size: int) -> str:
        largest, samples = self._largest(), int(self.pools.samples[-1])
        if largest < 1:
            return f"size {size} can't be had, nor any other: only {samples} samples have a type"
        alone = _Dial(self.pools, self.control, Fraction(1))._largest()
        more = f"; with rho 1 the largest is {alone}" if alone > largest else ""
        return (
            f"size {size} can't be had under control {self.control.name} with rho {float(self.rho):g}: "
            f"the smallest is 1, the largest {largest} ({samples} samples have a type){more}"
        )
