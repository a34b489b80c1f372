"""Figures over prompts whose errors go by prompt groups: means, ratios, and a logistic fit at a covariate of zero.

Prompts of one group are not independent, and neither are two verdicts on one prompt: a group is what was drawn. G / (G - 1) corrects for
few groups, and intervals are Student's with G - 1 degrees of freedom (Miller, arXiv 2411.00640, has the same standard error).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ITERATIONS = 50
TOLERANCE = 1e-10
LONGEST_STEP = 2.0


@dataclass(frozen=True)
class Estimate:
    """A figure with its standard error over prompt groups.

    Attributes:
        value: the figure.
        se: its standard error; NaN for one group.
        low: lower end of the 95% interval.
        high: upper end.
        n: prompts.
        groups: prompt groups.
    """

    value: float
    se: float
    low: float
    high: float
    n: int
    groups: int


@dataclass(frozen=True)
class Logistic:
    """A logistic fit y = sigma(theta + x phi), at x = 0.

    Attributes:
        rate: sigma(theta).
        se: of the rate.
        theta: log-odds at x = 0.
        theta_se: its standard error.
        phi: `(k,)` change of the log-odds with each covariate.
        groups: prompt groups.
    """

    rate: float
    se: float
    theta: float
    theta_se: float
    phi: np.ndarray
    groups: int


def mean_and_error(values: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """Return the mean over samples and its standard error, with groups (not samples) as what was drawn independently.

    With r_g the sum of a group's deviations from the mean and G groups of n samples in all, se^2 = G / (G - 1) sum_g r_g^2 / n^2.
    Where every group is a single sample this is the usual standard deviation / sqrt(n). NaN for one group.
    """
    mean, n = float(values.mean()), len(values)
    names, numbers = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        return mean, float("nan")
    if len(names) == n:
        return mean, float(values.std(ddof=1) / np.sqrt(n))
    sums = np.bincount(numbers, weights=values - values.mean())
    return mean, float(np.sqrt(len(names) / (len(names) - 1) * (sums**2).sum()) / n)


def ratio_and_error(values: np.ndarray, weights: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """Return sum(values) / sum(weights) over prompts and its standard error by groups, linearised.

    Args:
        values: `(n,)` weighted scores of each prompt, summed over its verdicts.
        weights: `(n,)` the sums of their weights.
        groups: `(n,)` numbers of prompt groups.
    """
    total = float(weights.sum())
    ratio = float(values.sum()) / total
    names, numbers = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        return ratio, float("nan")
    sums = np.bincount(numbers, weights=values - ratio * weights)
    return ratio, float(np.sqrt(len(names) / (len(names) - 1) * (sums**2).sum()) / total)


def estimate(value: float, se: float, n: int, groups: int) -> Estimate:
    """Return a figure with its 95% interval, Student's with one degree of freedom less than there are groups."""
    wide = quantile(groups) * se
    return Estimate(value, se, value - wide, value + wide, n, groups)


def quantile(groups: int) -> float:
    """Return Student's 97.5% point for so many groups; NaN for one."""
    from scipy.stats import t

    return float(t.ppf(0.975, groups - 1)) if groups > 1 else float("nan")


def logistic_at_zero(x: np.ndarray, y: np.ndarray, groups: np.ndarray, prior: float = 1.0) -> Logistic:
    """Return the fit y = sigma(theta + x phi) of soft outcomes, by Newton's method.

    The error is the sandwich estimate over prompt groups, carried from theta to sigma(theta). Where y is 0 or 1 throughout, theta has no
    finite estimate; where x does not vary, there is nothing to control for: the plain mean and its error are given then. A covariate that
    does not vary beside others that do is left out.

    Args:
        x: `(n,)` the covariate, or `(n, k)` several.
        y: `(n,)` in [0, 1].
        groups: `(n,)` numbers of prompt groups.
        prior: precision of a normal prior on each phi, which keeps it finite.
    """
    names, numbers = np.unique(groups, return_inverse=True)
    mean, se = mean_and_error(y, groups)
    x = x.reshape(len(y), -1)
    x = np.where(np.ptp(x, axis=0) == 0, 0.0, x)
    if mean in (0.0, 1.0) or not x.any():
        odds = mean / (1 - mean) if mean not in (0.0, 1.0) else (0.0 if mean == 0 else np.inf)
        spread = mean * (1 - mean)
        theta = float(np.log(odds)) if odds > 0 else float("-inf")
        return Logistic(mean, se, theta, se / spread if spread else float("nan"), np.zeros(x.shape[1]), len(names))
    design, penalty = np.column_stack([np.ones(len(y)), x]), np.array([0.0, *[prior] * x.shape[1]])
    weights, curvature = np.array([np.log(mean / (1 - mean)), *np.zeros(x.shape[1])]), np.eye(1 + x.shape[1])
    for _ in range(ITERATIONS):
        chance = 1 / (1 + np.exp(-design @ weights))
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(curvature, design.T @ (y - chance) - penalty * weights)
        weights = weights + np.clip(step, -LONGEST_STEP, LONGEST_STEP)  # few rows that covariates all but tell apart would overshoot
        if np.abs(step).max() < TOLERANCE:
            break
    rate = float(1 / (1 + np.exp(-weights[0])))
    theta_se = float("nan")
    if len(names) > 1:
        pulls = design * (y - chance)[:, None]
        by_group = np.stack([np.bincount(numbers, weights=column) for column in pulls.T], axis=1)
        inverse = np.linalg.inv(curvature)
        variance = inverse @ (by_group.T @ by_group) @ inverse * len(names) / (len(names) - 1)
        theta_se = float(np.sqrt(variance[0, 0]))
    return Logistic(rate, rate * (1 - rate) * theta_se, float(weights[0]), theta_se, weights[1:], len(names))
