"""Straight lines through scores: least squares with its standard error, and Bayesian ridge with its predictive band.

The paper's table holds plain least-squares slopes; the lines and 1-sigma bands it draws are Bayesian ridge with the defaults of
scikit-learn (both identified from its figures, METHOD 2.4). x is in per cent there, and the ridge's prior is not scale-free: give x in
per cent to draw what the paper draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


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
    x, y = _column(x, "x"), _column(y, "y")
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} points and y has {len(y)}")
    others = _Others(len(x), groups, covariates)
    free_x, free_y = others.residuals(x), others.residuals(y)
    spread = float(free_x @ free_x)
    if spread <= 1e-12 * max(1.0, float(x @ x)):
        raise ValueError("x does not vary beside the groups and covariates, so it has no slope")
    slope = float(free_x @ free_y) / spread
    residuals = free_y - slope * free_x
    dof = len(x) - others.rank - 1
    residual_sd = float(np.sqrt(residuals @ residuals / dof)) if dof > 0 else float("nan")
    return Slope(slope, residual_sd / float(np.sqrt(spread)), dof, len(x), residual_sd, float(y.mean() - slope * x.mean()))


def slope_difference(a: Slope, b: Slope) -> Slope:
    """Return a - b as a slope of its own, with Welch's degrees of freedom: the two may scatter differently."""
    se = float(np.hypot(a.se, b.se))
    parts = a.se**4 / max(a.dof, 1) + b.se**4 / max(b.dof, 1)
    dof = int(se**4 / parts) if parts > 0 and min(a.dof, b.dof) > 0 else 0
    return Slope(a.estimate - b.estimate, se if dof else float("nan"), dof, a.n + b.n, float("nan"), a.intercept - b.intercept)


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
        x = _matrix(x)
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
    x, y = _matrix(x), _column(y, "y")
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


def permutation_p(
    x: ArrayLike,
    y: ArrayLike,
    generator: np.random.Generator,
    groups: ArrayLike | None = None,
    covariates: ArrayLike | None = None,
    draws: int = 10000,
) -> float:
    """Return the two-sided permutation p value of the slope of y on x, y being shuffled within groups.

    (1 + number of draws at least as extreme) / (1 + draws), which is never 0 and is valid at any number of draws. With covariates it is
    the residuals of y that are shuffled (Freedman and Lane), and what is compared is Student's t of the model fitted anew: the slope alone
    would be too often extreme, since residuals are shorter than the noise. That is nearly exact; without covariates it is exact.

    Args:
        x: (n,) predictor.
        y: (n,) response.
        generator: source of the shuffles.
        groups: (n,) labels within which points are exchangeable; None for one group.
        covariates: (n,) or (n, c) further predictors.
        draws: number of shuffles, at least 1.
    """
    x, y = _column(x, "x"), _column(y, "y")
    others = _Others(len(x), groups, covariates)
    place = np.argsort(others.labels, kind="stable")
    free_x, free_y, basis = others.residuals(x)[place], others.residuals(y)[place], others.basis()[place]
    length, total = float(free_x @ free_x), float(free_y @ free_y)
    if length <= 1e-12 * float(x @ x) or total <= 1e-24 * float(y @ y):
        return 1.0  # nothing varies within the groups

    against = np.column_stack([free_x, basis])

    def extremeness(products: Floats) -> Floats:
        explained = products[:, 0] ** 2 / length
        return np.asarray(explained / np.maximum(total - (products[:, 1:] ** 2).sum(axis=1) - explained, 1e-12 * total), np.float64)

    observed, extreme = float(extremeness((free_y @ against)[None])[0]), 0
    ends = np.cumsum(others.sizes)
    size = max(1, 4_000_000 // len(x))
    for start in range(0, draws, size):
        drawn = generator.random((min(size, draws - start), len(x)))
        extreme += int(np.count_nonzero(extremeness(_shuffled_products(free_y, against, ends, drawn)) >= observed * (1 - 1e-9)))
    return (1 + extreme) / (1 + draws)


@numba.njit(cache=True)
def _shuffled_products(y: Floats, against: Floats, ends: NDArray[np.int64], drawn: Floats) -> Floats:  # pragma: no cover - compiled
    """Return (draws, columns) products of y, shuffled within consecutive groups by Fisher and Yates, with each column of `against`."""
    n, columns = against.shape
    products = np.zeros((len(drawn), columns))
    shuffled = np.empty(n)
    for b in range(len(drawn)):
        shuffled[:] = y
        first = 0
        for last in ends:
            for i in range(last - 1, first, -1):
                j = first + int(drawn[b, i] * (i - first + 1))
                shuffled[i], shuffled[j] = shuffled[j], shuffled[i]
            first = last
        for i in range(n):
            for c in range(columns):
                products[b, c] += shuffled[i] * against[i, c]
    return products


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


def _column(values: ArrayLike, name: str) -> Floats:
    column = np.asarray(values, np.float64)
    if column.ndim != 1 or len(column) < 2:
        raise ValueError(f"{name} has shape {column.shape}; a slope needs one column of at least 2 points")
    if not np.isfinite(column).all():
        raise ValueError(f"{name} holds values that are not finite")
    return column


def _matrix(values: ArrayLike) -> Floats:
    matrix = np.asarray(values, np.float64)
    return matrix[:, None] if matrix.ndim == 1 else matrix


class _Others:
    """What the slope is freed of: an intercept for each group, and covariates. Groups are taken out by their means, so many are cheap."""

    def __init__(self, n: int, groups: ArrayLike | None, covariates: ArrayLike | None) -> None:
        self.labels = np.zeros(n, np.int64) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
        self.sizes = np.bincount(self.labels)
        self.covariates = np.empty((n, 0)) if covariates is None else np.column_stack([self._within(c) for c in _matrix(covariates).T])
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
