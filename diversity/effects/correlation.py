"""Correlations with bootstrap intervals, plain, by rank and with other variables held fixed, for many variables at once.

Everything follows from the second moments of the variables in each resample. They are taken once for all variables, so that a hundred
correlations over the same runs cost little more than one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Kind = Literal["pearson", "spearman"]
BLOCK = 4_000_000  # numbers in a block of resamples, so that memory does not grow with the points
CONSTANT = 1e-12  # a variable whose variance is below this share of its mean square does not vary
EDGE = 1 - 1e-6  # of a correlation, whose Fisher z would be infinite
DEPENDENT = 1e-9  # nor does one of which less than this share is left beside what is held fixed


@dataclass(frozen=True)
class Correlation:
    """A correlation coefficient.

    Attributes:
        estimate: in [-1, 1]; NaN where a variable is constant.
        low: lower end of the bootstrap interval; NaN where none was asked for, or where over 5% of the resamples could not be used.
        high: upper end.
        n: points used.
    """

    estimate: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Association:
    """How variables go together, on the points and in every resample of them.

    Attributes:
        matrices: `(1 + bootstraps, variables, variables) float64` correlation matrices, that of the points themselves first; rows and
            columns of variables that are constant there hold zeros.
        n: points.
        strata: groups that the resamples keep the sizes of.
    """

    matrices: Floats
    n: int
    strata: int = 1

    def between(self, x: Sequence[int], y: Sequence[int], given: Sequence[int] = (), confidence: float = 0.95) -> list[list[Correlation]]:
        """Return the correlation of every variable of x with every one of y, `given` held fixed, with bootstrap intervals.

        The partial correlation is -P_xy / sqrt(P_xx P_yy) with P the inverse of the correlation matrix of all variables, which is the
        correlation of the residuals. The interval is z +- t_d sqrt(n / d) s on Fisher's scale z = artanh r, s being the deviation of z
        over resamples and d = n - strata - held fixed: percentiles of few points are too narrow. Resamples in which a variable is constant
        can't be used; where they are over 5%, what is left is no fair sample of them and there is no interval.

        Args:
            x: numbers of variables.
            y: numbers of variables.
            given: numbers of variables that are held fixed.
            confidence: share of resamples inside the interval.
        """
        values = _between(self.matrices, list(x), list(y), list(given))
        dof = self.n - self.strata - len(given)
        return [
            [Correlation(float(values[0, i, j]), *_interval(values[:, i, j], self.n, dof, confidence), self.n) for j in range(len(y))]
            for i in range(len(x))
        ]


def association(
    data: ArrayLike,
    kind: Kind = "pearson",
    bootstraps: int = 0,
    generator: np.random.Generator | None = None,
    strata: ArrayLike | None = None,
) -> Association:
    """Return how variables go together over points, and over resamples of the points.

    Args:
        data: `(variables, n) float64`.
        kind: `pearson`, or `spearman` (Pearson of the ranks, ties averaged, ranked anew in every resample).
        bootstraps: resamples of the points.
        generator: source of the resamples; needed with bootstraps.
        strata: (n,) labels: points are drawn anew within each; None for one stratum.

    Raises:
        ValueError: fewer than 2 points, or bootstraps without a generator.
    """
    data = np.asarray(data, np.float64)
    if data.ndim != 2 or data.shape[1] < 2:
        raise ValueError(f"a correlation needs variables with at least 2 points, not an array of shape {data.shape}")
    if bootstraps and generator is None:
        raise ValueError("bootstraps need a generator")
    n = data.shape[1]
    labels = np.zeros(n, np.int64) if strata is None else np.unique(np.asarray(strata), return_inverse=True)[1].ravel()
    found = [_matrices(data, np.ones((1, n)), kind)]
    if generator is not None:
        found += [_matrices(data, weights, kind) for weights in _resamples(labels, bootstraps, generator)]
    return Association(np.concatenate(found), n, int(labels.max()) + 1)


def correlation(
    x: ArrayLike,
    y: ArrayLike,
    kind: Kind = "pearson",
    given: ArrayLike | None = None,
    bootstraps: int = 0,
    generator: np.random.Generator | None = None,
    confidence: float = 0.95,
) -> Correlation:
    """Return the correlation of x and y, with the bootstrap interval over resampled points.

    Args:
        x: (n,).
        y: (n,).
        kind: `pearson` or `spearman`.
        given: (n,) or (n, c) variables that are held fixed.
        bootstraps: resamples of the points; 0 gives no interval.
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
    found = association(np.stack(columns), kind, bootstraps, generator)
    return found.between([0], [1], range(2, len(columns)), confidence)[0][0]


def _interval(values: Floats, n: int, dof: int, confidence: float) -> tuple[float, float]:
    """Return the interval from the correlation of the points, first, and those of resamples; NaNs where there is none."""
    from scipy import stats

    usable = values[1:][np.isfinite(values[1:])]
    if len(usable) < 2 or len(usable) < 0.95 * (len(values) - 1) or dof < 1 or not np.isfinite(values[0]):
        return float("nan"), float("nan")
    z, *resampled = np.arctanh(np.clip([values[0], *usable], -EDGE, EDGE))
    half = stats.t.ppf(0.5 + confidence / 2, dof) * np.std(resampled, ddof=1) * np.sqrt(n / dof)
    return float(np.tanh(z - half)), float(np.tanh(z + half))


def _between(matrices: Floats, x: list[int], y: list[int], given: list[int]) -> Floats:
    """Return (matrices, x, y) correlations; NaN where a variable is constant or nothing of it is left beside `given`."""

    def spread(indices: list[int]) -> Floats:
        return np.stack([matrices[:, i, i] for i in indices], axis=1)

    both, left_x, left_y = matrices[:, x][:, :, y], spread(x), spread(y)
    if given:
        to_x, to_y = matrices[:, x][:, :, given], matrices[:, y][:, :, given]
        inverse = np.linalg.pinv(matrices[:, given][:, :, given], hermitian=True)
        both = both - to_x @ inverse @ to_y.swapaxes(1, 2)
        left_x = left_x - np.einsum("bxg,bgh,bxh->bx", to_x, inverse, to_x)
        left_y = left_y - np.einsum("byg,bgh,byh->by", to_y, inverse, to_y)
    scale = left_x[:, :, None] * left_y[:, None, :]
    varies = (left_x > DEPENDENT)[:, :, None] & (left_y > DEPENDENT)[:, None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(varies, np.clip(both / np.sqrt(scale), -1, 1), np.nan)


def _resamples(labels: NDArray[np.int64], bootstraps: int, generator: np.random.Generator) -> Iterator[Floats]:
    """Yield blocks of (b, n) weights: how often each point is drawn in each resample. Sums over points are then matrix products."""
    n = len(labels)
    strata = [np.flatnonzero(labels == label) for label in range(int(labels.max()) + 1)]
    size = max(1, min(bootstraps, BLOCK // n))
    for start in range(0, bootstraps, size):
        count = min(size, bootstraps - start)
        drawn = np.concatenate([points[generator.integers(len(points), size=(count, len(points)))] for points in strata], axis=1)
        drawn += n * np.arange(count)[:, None]
        yield np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n).astype(np.float64)


def _matrices(data: Floats, weights: Floats, kind: Kind) -> Floats:
    """Return the (b, variables, variables) correlation matrices under (b, n) weights of the points."""
    sums, scale = _rank_moments(data, weights) if kind == "spearman" else _moments(data, weights)
    spread = np.diagonal(sums, axis1=1, axis2=2)
    length = np.where(spread > CONSTANT * scale, np.sqrt(np.maximum(spread, 0)), np.inf)
    return sums / (length[:, :, None] * length[:, None, :])


def _moments(data: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return (b, variables, variables) centred sums of products, and what variances are small against."""
    count = len(data)
    away = data - data.mean(axis=1, keepdims=True)
    first, second = np.triu_indices(count)
    step = max(1, BLOCK // data.shape[1])
    products = [weights @ (away[first[i : i + step]] * away[second[i : i + step]]).T for i in range(0, len(first), step)]
    means = weights @ away.T
    sums = np.empty((len(weights), count, count))
    sums[:, first, second] = np.concatenate(products, axis=1)
    sums[:, second, first] = sums[:, first, second]
    sums -= means[:, :, None] * means[:, None, :] / weights.sum(axis=1)[:, None, None]
    return sums, (data**2).sum(axis=1)


def _rank_moments(data: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return the same of the ranks of the points when each stands as often as its weight says; ties get their mean rank."""
    count, n = data.shape
    order = np.argsort(data, axis=1, kind="stable")
    ascending = np.take_along_axis(data, order, axis=1)
    ends = np.concatenate([ascending[:, 1:] != ascending[:, :-1], np.ones((count, 1), bool)], axis=1)
    middle = (weights.sum(axis=1) + 1) / 2
    sums = np.empty((len(weights), count, count))
    step = max(1, BLOCK // (count * n))
    for i in range(0, len(weights), step):
        block = weights[i : i + step]
        ranks = _weighted_ranks(order, ends, block) - middle[i : i + step, None, None]
        sums[i : i + step] = (ranks * block[:, None, :]) @ ranks.swapaxes(1, 2)
    return sums, np.full(count, float(n) ** 3)


@numba.njit(cache=True)
def _weighted_ranks(order: NDArray[np.int64], ends: NDArray[np.bool_], weights: Floats) -> Floats:  # pragma: no cover - compiled
    """Return (b, variables, n) ranks; `ends` marks the last of each run of equal values in ascending order."""
    variables, n = order.shape
    ranks = np.empty((len(weights), variables, n))
    for b in range(len(weights)):
        for v in range(variables):
            start, below, here = 0, 0.0, 0.0
            for i in range(n):
                here += weights[b, order[v, i]]
                if ends[v, i]:
                    rank = below + (here + 1) / 2
                    for j in range(start, i + 1):
                        ranks[b, v, order[v, j]] = rank
                    start, below, here = i + 1, below + here, 0.0
    return ranks
