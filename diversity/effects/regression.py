"""Straight lines through scores: least squares with its standard error, and Bayesian ridge with its predictive band.

The paper's table holds plain least-squares slopes; the lines and 1-sigma bands it draws are Bayesian ridge with the defaults of
scikit-learn (both identified from its figures, METHOD 2.4). x is in per cent there, and the ridge's prior is not scale-free: give x in
per cent to draw what the paper draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
FEW_DOF = 3


@dataclass(frozen=True)
class Slope:
    """A least-squares slope: the change of y for one unit of x.

    Attributes:
        estimate: the slope.
        se: its standard error; NaN where no degree of freedom is left.
        dof: residual degrees of freedom.
        n: points used.
        residual_sd: standard deviation of the residuals, with `dof` in the denominator.
        intercept: value of the line at x = 0; with groups or covariates the one that belongs to their means.
    """

    estimate: float
    se: float
    dof: int
    n: int
    residual_sd: float
    intercept: float

    @property
    def p(self) -> float:
        """Return the two-sided p value of a slope of 0, by Student's t; NaN without a standard error."""
        from scipy import stats

        if not self.se > 0:
            return float("nan")
        return float(2 * stats.t.sf(abs(self.estimate) / self.se, self.dof))

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the two-sided confidence interval by Student's t; NaNs without a standard error."""
        from scipy import stats

        if self.dof < 1:
            return float("nan"), float("nan")
        half = float(stats.t.ppf(0.5 + confidence / 2, self.dof)) * self.se
        return self.estimate - half, self.estimate + half


def ols(x: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None, covariates: ArrayLike | None = None) -> Slope:
    """Return the least-squares slope of y on x.

    By the theorem of Frisch, Waugh and Lovell: x and y are first freed of intercept, groups and covariates.

    Args:
        x: (n,) predictor.
        y: (n,) response.
        groups: (n,) labels; every group gets an intercept of its own (blocks, or sizes that are pooled).
        covariates: (n,) or (n, c) further predictors: the slope is then the partial effect of x.

    Raises:
        ValueError: the arrays disagree in length, something is not finite, or x has no variation of its own.
    """
    x, y = column_of(x, "x"), column_of(y, "y")
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} points and y has {len(y)}")
    others = Others(len(x), groups, covariates)
    free_x, free_y = others.residuals(x), others.residuals(y)
    spread = float(free_x @ free_x)
    if spread <= 1e-12 * max(1.0, float(x @ x)):
        raise ValueError("x does not vary beside the groups and covariates, so it has no slope")
    slope = float(free_x @ free_y) / spread
    residuals = free_y - slope * free_x
    dof = len(x) - others.rank - 1
    residual_sd = float(np.sqrt(residuals @ residuals / dof)) if dof > 0 else float("nan")
    return Slope(slope, residual_sd / float(np.sqrt(spread)), dof, len(x), residual_sd, float(y.mean() - slope * x.mean()))


def mean_slope(lines: Sequence[Slope]) -> Slope:
    """Return the mean of independent slopes, its error taken from how they differ; degrees of freedom are one less than slopes."""
    slopes = np.array([line.estimate for line in lines])
    se = float(slopes.std(ddof=1) / np.sqrt(len(slopes))) if len(slopes) > 1 else float("nan")
    dof = sum(line.dof for line in lines)
    squares = sum(line.residual_sd**2 * line.dof for line in lines if line.dof > 0)
    residual_sd = float(np.sqrt(squares / dof)) if dof > 0 else float("nan")
    intercept = float(np.mean([line.intercept for line in lines]))
    return Slope(float(slopes.mean()), se, len(slopes) - 1, sum(line.n for line in lines), residual_sd, intercept)


def slope_difference(a: Slope, b: Slope) -> Slope:
    """Return a - b as a slope of its own: the two may scatter differently.

    Welch's degrees of freedom, rounded down. Where one of the two has fewer than 3, a variance from so few is too often far too small, and
    Welch's formula trusts it: there the smaller number is taken, which keeps what the interval promises (Mickey and Brown 1966).
    """
    se, least = float(np.hypot(a.se, b.se)), min(a.dof, b.dof)
    if least < 1 or not se > 0:
        dof = max(0, least)
    elif least < FEW_DOF:
        dof = least
    else:
        dof = int(se**4 / (a.se**4 / a.dof + b.se**4 / b.dof))
    return Slope(a.estimate - b.estimate, se if dof else float("nan"), dof, a.n + b.n, float("nan"), a.intercept - b.intercept)


def mean_of(values: ArrayLike) -> Slope:
    """Return a mean as a slope is told: estimate, standard error, degrees of freedom."""
    found = np.asarray(values, np.float64)
    sd = float(found.std(ddof=1)) if len(found) > 1 else float("nan")
    return Slope(float(found.mean()), sd / float(np.sqrt(len(found))), len(found) - 1, len(found), sd, float(found.mean()))


def equivalence_p(line: Slope, margin: float) -> float:
    """Return p of an effect that is at least the margin, by two one-sided t tests (TOST, Schuirmann 1987): small means "smaller than that".

    Args:
        line: estimate, standard error, degrees of freedom.
        margin: above 0, in units of the score.
    """
    from scipy import stats

    if line.dof < 1 or not line.se > 0:
        return float("nan")
    return float(stats.t.sf((margin - abs(line.estimate)) / line.se, line.dof))


@dataclass(frozen=True)
class Fit:
    """How well a line goes through the means of levels: F and p of the lack of fit; NaN where nothing is left to tell it by."""

    statistic: float
    between: int
    within: int

    @property
    def p(self) -> float:
        """Return the probability of so large an F where the means lie on a line."""
        from scipy import stats

        return float(stats.f.sf(self.statistic, self.between, self.within)) if np.isfinite(self.statistic) else float("nan")


def lack_of_fit(x: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> Fit:
    """Return the F test of a straight line against a mean for each value of x.

    F = ((R_line - R_means) / d) / (R_means / e) with R the sums of squared residuals, groups having intercepts of their own in both.

    Args:
        x: (n,) predictor; its repeats tell the noise.
        y: (n,) response.
        groups: (n,) labels.
    """
    x, y = column_of(x, "x"), column_of(y, "y")
    levels, place = np.unique(x, return_inverse=True)
    indicators = np.eye(len(levels))[place.ravel()][:, 1:]
    line, means = Others(len(x), groups, x), Others(len(x), groups, indicators)
    between, within = means.rank - line.rank, len(x) - means.rank
    rss = [float(np.sum(others.residuals(y) ** 2)) for others in (line, means)]
    if between < 1 or within < 1 or rss[1] <= 1e-24 * max(1.0, float(y @ y)):
        return Fit(float("nan"), between, within)
    return Fit((rss[0] - rss[1]) / between / (rss[1] / within), between, within)


@dataclass(frozen=True)
class Ridge:
    """The posterior of a Bayesian linear regression.

    Attributes:
        intercept: value at x = 0.
        weights: (p,) posterior mean of the slopes.
        covariance: (p, p) posterior covariance of the slopes.
        noise_precision: 1 / variance of the noise (alpha).
        weight_precision: 1 / variance of the prior on the slopes (lambda).
        origin: (p,) the x at which the band is narrowest: the mean of the data, or 0 in the paper's pictures.
    """

    intercept: float
    weights: Floats
    covariance: Floats
    noise_precision: float
    weight_precision: float
    origin: Floats

    def predict(self, x: ArrayLike) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of a new observation at each x ((n,) or (n, p)); the deviation is the 1-sigma band."""
        x = matrix_of(x)
        away = x - self.origin
        variance = 1 / self.noise_precision + np.einsum("ij,jk,ik->i", away, self.covariance, away)
        return self.intercept + x @ self.weights, np.sqrt(variance)


def bayesian_ridge(x: ArrayLike, y: ArrayLike, center: bool = True, iterations: int = 300, tolerance: float = 1e-3) -> Ridge:
    """Return the Bayesian ridge regression of y on x, its two precisions found by MacKay's updates.

    Given noise precision a and weight precision l the posterior is closed: S = (a X'X + l I)^-1, m = a S X'y on centred data. With
    gamma = sum a s / (l + a s) over the eigenvalues s of X'X the updates are l = gamma / |m|^2 and a = (n - gamma) / |y - Xm|^2, each
    with 2e-6 added above and below, until the weights move by less than `tolerance`: what scikit-learn's BayesianRidge does.

    Args:
        x: (n,) or (n, p).
        y: (n,).
        center: True puts the band's waist at the mean of x, as it should be. False measures it from x = 0, as older versions of
            scikit-learn did and the paper's figures show; the line is the same.
        iterations: at most so many updates.
        tolerance: stop when the sum of absolute changes of the weights is below this.
    """
    x, y = matrix_of(x), column_of(y, "y")
    mean, offset = x.mean(axis=0), float(y.mean())
    away, target = x - mean, y - offset
    spectrum, basis = np.linalg.eigh(away.T @ away)
    spectrum = np.clip(spectrum, 0, None)
    projected = basis.T @ (away.T @ target)

    def posterior_mean(noise: float, weight: float) -> Floats:
        return basis @ (projected / (spectrum + weight / noise))

    noise, weight = 1 / (float(target.var()) + float(np.finfo(np.float64).eps)), 1.0
    before: Floats | None = None
    for _ in range(iterations):
        weights = posterior_mean(noise, weight)
        misfit = float(np.sum((target - away @ weights) ** 2))
        gamma = float(np.sum(noise * spectrum / (weight + noise * spectrum)))
        weight = (gamma + 2e-6) / (float(weights @ weights) + 2e-6)
        noise = (len(y) - gamma + 2e-6) / (misfit + 2e-6)
        if before is not None and np.abs(before - weights).sum() < tolerance:
            break
        before = weights
    weights = posterior_mean(noise, weight)
    covariance = (basis / (noise * spectrum + weight)) @ basis.T
    origin = mean if center else np.zeros_like(mean)
    return Ridge(float(offset - mean @ weights), weights, covariance, noise, weight, origin)


def holm(p: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p values: valid for any dependence; NaN stays NaN and is not counted as a test."""
    values = np.asarray(p, np.float64)
    tested = np.flatnonzero(np.isfinite(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    adjusted = np.full(len(values), np.nan)
    if len(order):
        factors = np.arange(len(order), 0, -1)
        adjusted[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    return [float(value) for value in adjusted]


def column_of(values: ArrayLike, name: str) -> Floats:
    """Return values as a finite column of at least 2 points; a ValueError says what is wrong with `name`."""
    column = np.asarray(values, np.float64)
    if column.ndim != 1 or len(column) < 2:
        raise ValueError(f"{name} has shape {column.shape}; a slope needs one column of at least 2 points")
    if not np.isfinite(column).all():
        raise ValueError(f"{name} holds values that are not finite")
    return column


def matrix_of(values: ArrayLike) -> Floats:
    """Return (n,) or (n, p) values as (n, p)."""
    matrix = np.asarray(values, np.float64)
    return matrix[:, None] if matrix.ndim == 1 else matrix


class Others:
    """What the slope is freed of: an intercept for each group, and covariates. Groups are taken out by their means, so many are cheap."""

    def __init__(self, n: int, groups: ArrayLike | None, covariates: ArrayLike | None) -> None:
        self.labels = np.zeros(n, np.int64) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
        self.sizes = np.bincount(self.labels)
        self.covariates = np.empty((n, 0)) if covariates is None else np.column_stack([self._within(c) for c in matrix_of(covariates).T])
        self.rank = len(self.sizes) + (int(np.linalg.matrix_rank(self.covariates)) if self.covariates.size else 0)

    def residuals(self, values: Floats) -> Floats:
        """Return (n,) values less what groups and covariates account for."""
        left = self._within(values)
        if not self.covariates.size:
            return left
        fitted: Floats = self.covariates @ np.linalg.lstsq(self.covariates, left, rcond=None)[0]
        return left - fitted

    def basis(self) -> Floats:
        """Return an (n, rank) orthonormal basis of the covariates less their means in each group."""
        left, spectrum, _ = np.linalg.svd(self.covariates, full_matrices=False)
        return np.asarray(left[:, spectrum > 1e-10 * spectrum.max(initial=0)], np.float64)

    def _within(self, values: Floats) -> Floats:
        means = np.bincount(self.labels, weights=values) / self.sizes
        return np.asarray(values - means[self.labels], np.float64)
