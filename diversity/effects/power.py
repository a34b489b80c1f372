"""What a planned grid can see: detectable change, power and runs needed, for a slope over levels."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def detectable_change(levels: ArrayLike, sigma: float = 1.0, alpha: float = 0.05, power: float = 0.8) -> float:
    """Return the smallest change of the score from level 0 to level 1 that the runs would find.

    (t(1 - alpha/2) + t(power)) sigma / sqrt(sum (x - mean x)^2), both quantiles with n - 2 degrees of freedom.

    Args:
        levels: (n,) the level of every planned run, with repeats.
        sigma: standard deviation of one run's score given its level, in units of the score.
        alpha: two-sided error of the first kind.
        power: probability of finding it.

    Raises:
        ValueError: fewer than 3 runs, or all at one level.
    """
    from scipy import stats

    n, spread = _design(levels)
    return float((stats.t.ppf(1 - alpha / 2, n - 2) + stats.t.ppf(power, n - 2)) * sigma / np.sqrt(spread))


def power_of(change: float, levels: ArrayLike, sigma: float = 1.0, alpha: float = 0.05) -> float:
    """Return the probability that the runs find a change from level 0 to level 1, by the noncentral t distribution."""
    from scipy import stats

    n, spread = _design(levels)
    shift = abs(change) * np.sqrt(spread) / sigma
    critical = stats.t.ppf(1 - alpha / 2, n - 2)
    return float(stats.nct.sf(critical, n - 2, shift) + stats.nct.cdf(-critical, n - 2, shift))


def seeds_needed(change: float, levels: ArrayLike, sigma: float = 1.0, alpha: float = 0.05, power: float = 0.8) -> int:
    """Return how many seeds of each level find the change; `levels` are those of one seed.

    Raises:
        ValueError: the change is 0, all levels are equal, or a million seeds are not enough.
    """
    once = np.asarray(levels, np.float64)
    if change == 0:
        raise ValueError("a change of 0 is found by no number of seeds")
    seeds = 1 if len(once) > 2 else 2
    while seeds < 1_000_000:
        if detectable_change(np.tile(once, seeds), sigma, alpha, power) <= abs(change):
            return seeds
        seeds += max(1, seeds // 100)
    raise ValueError(f"a change of {change} at sigma {sigma} needs more than a million seeds")


def _design(levels: ArrayLike) -> tuple[int, float]:
    x = np.asarray(levels, np.float64)
    spread = float(np.sum((x - x.mean()) ** 2)) if len(x) else 0.0
    if len(x) < 3 or spread <= 0:
        raise ValueError(f"a slope needs at least 3 runs at more than one level; got {len(x)} runs")
    return len(x), spread
