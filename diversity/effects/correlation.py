"""Correlations with bootstrap intervals, plain, by rank and with other variables held fixed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Kind = Literal["pearson", "spearman"]


@dataclass(frozen=True)
class Correlation:
    """A correlation coefficient.

    Attributes:
        estimate: in [-1, 1]; NaN where a variable is constant.
        low: lower end of the bootstrap percentile interval; NaN where none was asked for or none could be had.
        high: upper end.
        n: points used.
    """

    estimate: float
    low: float
    high: float
    n: int


def correlation(
    x: ArrayLike,
    y: ArrayLike,
    kind: Kind = "pearson",
    given: ArrayLike | None = None,
    bootstraps: int = 0,
    generator: np.random.Generator | None = None,
    confidence: float = 0.95,
) -> Correlation:
    """Return the correlation of x and y, with the percentile interval over resampled points.

    Args:
        x: (n,).
        y: (n,).
        kind: `pearson`, or `spearman` (Pearson of the ranks, ties averaged, ranked anew in every resample).
        given: (n,) or (n, c) variables that are held fixed: the partial correlation, -P_xy / sqrt(P_xx P_yy) with P the inverse of the
            correlation matrix of all variables, which is the correlation of the residuals.
        bootstraps: resamples of the points; 0 gives no interval. Resamples in which a variable is constant are left out.
        generator: source of the resamples; needed with bootstraps.
        confidence: share of resamples inside the interval.

    Raises:
        ValueError: unequal lengths, fewer than 2 points, or bootstraps without a generator.
    """
    columns = [np.asarray(x, np.float64), np.asarray(y, np.float64)]
    if given is not None:
        fixed = np.asarray(given, np.float64)
        columns += list(fixed.T) if fixed.ndim == 2 else [fixed]
    if len({len(column) for column in columns}) != 1 or len(columns[0]) < 2:
        raise ValueError(f"a correlation needs columns of one length, at least 2; got {[len(c) for c in columns]}")
    data = np.stack(columns)
    n = data.shape[1]
    estimate = float(_correlate(data, np.ones((1, n)), kind)[0])
    if not bootstraps:
        return Correlation(estimate, float("nan"), float("nan"), n)
    if generator is None:
        raise ValueError("bootstraps need a generator")
    drawn = [_correlate(data, weights, kind) for weights in _resamples(n, bootstraps, generator)]
    usable = np.concatenate(drawn)
    usable = usable[np.isfinite(usable)]
    if len(usable) < 2:
        return Correlation(estimate, float("nan"), float("nan"), n)
    low, high = np.quantile(usable, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Correlation(estimate, float(low), float(high), n)


def _resamples(n: int, bootstraps: int, generator: np.random.Generator) -> Iterator[Floats]:
    """Yield blocks of (b, n) weights: how often each point is drawn in each resample. Sums over points are then matrix products."""
    size = max(1, min(bootstraps, 2_000_000 // n))
    for start in range(0, bootstraps, size):
        count = min(size, bootstraps - start)
        drawn = generator.integers(n, size=(count, n)) + n * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)


def _correlate(data: Floats, weights: Floats, kind: Kind) -> Floats:
    """Return the correlation of the first two of (variables, n) given the others, under each of (b, n) weights of the points."""
    if kind == "spearman":
        ranks = np.stack([_ranks(values, weights) for values in data])
        away = ranks - (weights.sum(axis=1)[:, None] + 1) / 2  # the mean rank
        matrix = np.stack([[np.einsum("bn,bn,bn->b", weights, a, b) for b in away] for a in away])
        matrix = np.moveaxis(matrix, 2, 0)
        scale = np.full(matrix.shape[:2], float(data.shape[1]) ** 3)
    else:
        away = data - data.mean(axis=1, keepdims=True)
        products = np.stack([a * b for a in away for b in away], axis=1)
        sums, total = weights @ away.T, weights.sum(axis=1)
        matrix = (weights @ products).reshape(len(weights), len(data), len(data)) - sums[:, :, None] * sums[:, None, :] / total[
            :, None, None
        ]
        scale = np.broadcast_to((data**2).sum(axis=1), matrix.shape[:2])
    spread = np.diagonal(matrix, axis1=1, axis2=2)
    usable = (spread > 1e-12 * scale).all(axis=1)
    result = np.full(len(weights), np.nan)
    length = np.sqrt(spread[usable])
    matrix = matrix[usable] / (length[:, :, None] * length[:, None, :])
    result[usable] = np.clip(matrix[:, 0, 1], -1, 1) if len(data) == 2 else _partial(matrix)
    return result


def _ranks(values: Floats, weights: Floats) -> Floats:
    """Return (b, n) ranks of the points when each stands as often as its weight says; ties get their mean rank."""
    order = np.argsort(values, kind="stable")
    ascending = values[order]
    starts = np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]]))
    groups = np.add.reduceat(weights[:, order], starts, axis=1)
    middle = np.cumsum(groups, axis=1) - (groups - 1) / 2
    ranks = np.empty_like(weights)
    ranks[:, order] = np.repeat(middle, np.diff(np.append(starts, len(values))), axis=1)
    return ranks


def _partial(matrices: Floats) -> Floats:
    """Return the partial correlation of the first two variables of each matrix; NaN where the others leave one no variation."""
    rest, cross = matrices[:, 2:, 2:], matrices[:, :2, 2:]
    left = matrices[:, :2, :2] - cross @ np.linalg.pinv(rest, hermitian=True) @ cross.swapaxes(1, 2)
    smallest = np.minimum(left[:, 0, 0], left[:, 1, 1])
    with np.errstate(divide="ignore", invalid="ignore"):
        partial = left[:, 0, 1] / np.sqrt(left[:, 0, 0] * left[:, 1, 1])
    return np.where(smallest < 1e-9, np.nan, np.clip(partial, -1, 1))
