"""Correlations with bootstrap intervals, plain, by rank and with other variables held fixed."""

from __future__ import annotations

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
    estimate = float(_correlate(data[None], kind)[0])
    if not bootstraps:
        return Correlation(estimate, float("nan"), float("nan"), n)
    if generator is None:
        raise ValueError("bootstraps need a generator")
    drawn = []
    for start in range(0, bootstraps, 64):
        rows = generator.integers(n, size=(min(64, bootstraps - start), n))
        drawn.append(_correlate(np.moveaxis(data[:, rows], 0, 1), kind))
    usable = np.concatenate(drawn)
    usable = usable[np.isfinite(usable)]
    if len(usable) < 2:
        return Correlation(estimate, float("nan"), float("nan"), n)
    low, high = np.quantile(usable, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Correlation(estimate, float(low), float(high), n)


def _correlate(data: Floats, kind: Kind) -> Floats:
    """Return for each of (b, variables, n) the correlation of the first two variables given the others."""
    if kind == "spearman":
        from scipy import stats

        data = stats.rankdata(data, axis=2)
    away = data - data.mean(axis=2, keepdims=True)
    length = np.sqrt(np.einsum("bvn,bvn->bv", away, away))
    scale = np.abs(data).max(axis=2) * np.sqrt(data.shape[2])
    with np.errstate(divide="ignore", invalid="ignore"):
        away = np.where((length > 1e-12 * scale)[..., None], away / length[..., None], np.nan)
    matrix = away @ away.swapaxes(1, 2)
    if data.shape[1] == 2:
        return np.clip(matrix[:, 0, 1], -1, 1)
    result = np.full(len(data), np.nan)
    usable = np.isfinite(matrix).all(axis=(1, 2))
    result[usable] = _partial(matrix[usable])
    return result


def _partial(matrices: Floats) -> Floats:
    """Return the partial correlation of the first two variables of each matrix; NaN where the others leave one no variation."""
    rest, cross = matrices[:, 2:, 2:], matrices[:, :2, 2:]
    left = matrices[:, :2, :2] - cross @ np.linalg.pinv(rest, hermitian=True) @ cross.swapaxes(1, 2)
    smallest = np.minimum(left[:, 0, 0], left[:, 1, 1])
    with np.errstate(divide="ignore", invalid="ignore"):
        partial = left[:, 0, 1] / np.sqrt(left[:, 0, 0] * left[:, 1, 1])
    return np.where(smallest < 1e-9, np.nan, np.clip(partial, -1, 1))
