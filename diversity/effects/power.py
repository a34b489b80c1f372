"""What a planned grid can see: detectable change, power and runs needed, for a slope over levels, from the scatter of a pilot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from diversity.effects.partial import pooled_sd
from diversity.effects.regression import ols
from diversity.effects.schema import MIN_LEVELS, Row, grouped, single_runs


@dataclass(frozen=True)
class Scatter:
    """How far runs of one arm and level lie apart: training and the draw of the subset together.

    Attributes:
        sd: standard deviation of one run, in units of the score.
        dof: degrees of freedom behind it.
        basis: what it was taken from.
    """

    sd: float
    dof: int
    basis: str

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the interval of the standard deviation by the chi-squared distribution: few runs know little of it."""
        from scipy import stats

        low, high = stats.chi2.ppf([0.5 + confidence / 2, 0.5 - confidence / 2], self.dof)
        return float(self.sd * np.sqrt(self.dof / low)), float(self.sd * np.sqrt(self.dof / high))


def scatter(scored: Sequence[Row]) -> Scatter:
    """Return how far runs of one arm, size and level lie apart, pooled: from repeats, else from residuals about the arms' lines.

    Args:
        scored: rows of RESULTS_SCHEMA with a value, all of one score.

    Raises:
        ValueError: no level has two runs, and no arm has more runs than a line takes up.
    """
    runs = single_runs(scored)
    cells = [[row["value"] for row in found] for _, found in grouped(runs, ("strategy", "control", "size", "level"))]
    sd, dof = pooled_sd(cells)
    if dof:
        return Scatter(sd, dof, f"repeats: {sum(len(cell) > 1 for cell in cells)} cells with more than one run")
    lines = []
    for _, found in grouped([row for row in runs if row["level"] is not None], ("strategy", "control", "size")):
        if len({row["level"] for row in found}) >= MIN_LEVELS:
            lines.append(ols([row["level"] for row in found], [row["value"] for row in found]))
    lines = [line for line in lines if line.dof > 0]
    if not lines:
        raise ValueError("nothing tells how far runs scatter: no level has two runs, and no arm has three levels")
    dof = sum(line.dof for line in lines)
    sd = float(np.sqrt(sum(line.residual_sd**2 * line.dof for line in lines) / dof))
    return Scatter(sd, dof, f"residuals about {len(lines)} lines, since no level has two runs: too large where a line does not fit")


def detectable_change(levels: ArrayLike, sigma: float = 1.0, alpha: float = 0.05, power: float = 0.8, blocks: int = 1) -> float:
    """Return the smallest change of the score from level 0 to level 1 that the runs would find.

    (t(1 - alpha/2) + t(power)) sigma / sqrt(sum (x - mean x)^2), both quantiles with n - 1 - blocks degrees of freedom.

    Args:
        levels: (n,) the level of every planned run, with repeats.
        sigma: standard deviation of one run's score given its level, in units of the score.
        alpha: two-sided error of the first kind.
        power: probability of finding it.
        blocks: subset seeds with an intercept of their own, each of which has the same levels.

    Raises:
        ValueError: too few runs, or all at one level.
    """
    from scipy import stats

    n, spread = _design(levels, blocks)
    dof = n - 1 - blocks
    return float((stats.t.ppf(1 - alpha / 2, dof) + stats.t.ppf(power, dof)) * sigma / np.sqrt(spread))


def power_of(change: float, levels: ArrayLike, sigma: float = 1.0, alpha: float = 0.05) -> float:
    """Return the probability that the runs find a change from level 0 to level 1, by the noncentral t distribution."""
    from scipy import stats

    n, spread = _design(levels)
    shift = abs(change) * np.sqrt(spread) / sigma
    critical = stats.t.ppf(1 - alpha / 2, n - 2)
    return float(stats.nct.sf(critical, n - 2, shift) + stats.nct.cdf(-critical, n - 2, shift))


def seeds_needed(
    change: float, levels: ArrayLike, sigma: float = 1.0, alpha: float = 0.05, power: float = 0.8, *, blocked: bool = False
) -> int:
    """Return how many seeds of each level find the change; `levels` are those of one seed, `blocked` gives each seed an intercept.

    Raises:
        ValueError: the change is 0, all levels are equal, or a million seeds are not enough.
    """
    once = np.asarray(levels, np.float64)
    if change == 0:
        raise ValueError("a change of 0 is found by no number of seeds")
    seeds = 1 if len(once) > 2 else 2
    while seeds < 1_000_000:
        if detectable_change(np.tile(once, seeds), sigma, alpha, power, seeds if blocked else 1) <= abs(change):
            return seeds
        seeds += max(1, seeds // 100)
    raise ValueError(f"a change of {change} at sigma {sigma} needs more than a million seeds")


def _design(levels: ArrayLike, blocks: int = 1) -> tuple[int, float]:
    x = np.asarray(levels, np.float64)
    spread = float(np.sum((x - x.mean()) ** 2)) if len(x) else 0.0
    if len(x) < 2 + blocks or spread <= 0:
        raise ValueError(f"a slope needs at least {2 + blocks} runs at more than one level; got {len(x)} runs")
    return len(x), spread
