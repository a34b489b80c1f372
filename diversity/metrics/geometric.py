"""Metrics of embeddings: mean pairwise distance in one pass, Vendi score, distance to neighbours, NovelSum.

Rows are brought to unit length first; a zero row stays zero and is at cosine distance 1 from everything.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Matrix = NDArray[np.floating]
BLOCK = 1024


def unit_rows(embeddings: Matrix) -> NDArray[np.float32]:
    """Return the rows at unit length, (n, d) float32.

    Raises:
        ValueError: not two-dimensional, or values that are not finite.
    """
    rows = np.asarray(embeddings, np.float32)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise ValueError(f"embeddings must be (n, d) and finite; got shape {rows.shape}")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)


def mean_pairwise_distance(embeddings: Matrix) -> float:
    """Return the exact mean cosine distance over all pairs of samples, in [0, 2], in O(n d).

    The similarities of all ordered pairs sum to |sum u|^2, those of the diagonal to sum |u|^2, so the mean over pairs is
    1 - (|sum u|^2 - sum |u|^2) / (n (n - 1)): for unit rows n / (n - 1) times (1 - |mean u|^2).
    """
    rows = np.asarray(embeddings, np.float32)
    n = len(rows)
    if rows.ndim != 2:
        raise ValueError(f"embeddings must be (n, d); got shape {rows.shape}")
    total, diagonal = _sum_of_units(np.ascontiguousarray(rows))
    if not np.isfinite(diagonal):
        raise ValueError("embeddings must be finite")
    if n < 2:
        return float("nan")
    return 1 - (float(total @ total) - diagonal) / (n * (n - 1))


def vendi(embeddings: Matrix, q: float = 1.0) -> float:
    """Return the Vendi score: the effective number of different samples under the cosine kernel (Friedman & Dieng 2023).

    exp of the Renyi entropy of order q of the eigenvalues of K / n, K = U U'. Those are the eigenvalues of the d x d matrix U'U / n and
    zeros, so it takes O(n d^2 + d^3) where the n x n kernel takes O(n^3).

    Args:
        embeddings: (n, d).
        q: order, >= 0; 1 is Shannon's entropy, infinity is 1 / largest eigenvalue, small q counts rare directions more.

    Raises:
        ValueError: q < 0.
    """
    if not q >= 0:
        raise ValueError(f"q is {q}; the order of a Vendi score is at least 0")
    rows = unit_rows(embeddings)
    n = len(rows)
    if n == 0:
        return float("nan")
    wide = rows if rows.shape[1] <= n else rows.T
    gram = np.zeros((wide.shape[1], wide.shape[1]))
    for start in range(0, len(wide), BLOCK):
        block = wide[start : start + BLOCK].astype(np.float64)
        gram += block.T @ block
    values = np.linalg.eigvalsh(gram / n)
    values = values[values > 1e-9 * max(values[-1], 1e-300)]
    if not len(values):
        return float("nan")
    if q == 1:
        return float(np.exp(-(values * np.log(values)).sum()))
    if np.isinf(q):
        return float(1 / values[-1])
    return float(np.exp(np.log((values**q).sum()) / (1 - q)))


def knn_distance(embeddings: Matrix, k: int = 1) -> float:
    """Return the mean cosine distance of a sample to its k-th nearest other sample, exactly, in O(n^2 d) time and O(n) memory.

    Args:
        embeddings: (n, d).
        k: which neighbour, 1 <= k < n.
    """
    rows = unit_rows(embeddings)
    n = len(rows)
    if n <= k:
        return float("nan")
    total = 0.0
    for start in range(0, n, BLOCK):
        similarity = rows[start : start + BLOCK] @ rows.T
        here = np.arange(len(similarity))
        similarity[here, start + here] = -np.inf
        nearest = similarity.max(axis=1) if k == 1 else -np.partition(-similarity, k - 1, axis=1)[:, k - 1]
        total += float((1 - nearest.astype(np.float64)).sum())
    return max(0.0, total / n)


def novelsum(embeddings: Matrix, reference: Matrix | None = None, neighbours: int = 10, beta: float = 0.5, alpha: float = 1.0) -> float:
    """Return NovelSum (Yang et al. 2025), as their code computes it: distance to the others, near ones first, times local sparseness.

    For row i the cosine distances to all rows, itself included at 0, ascend to d_(1) <= ... <= d_(n); its score is
    sum_r r^-alpha d_(r) / sum_r r^-alpha times (mean squared distance to its nearest reference rows + 1e-9)^beta inverted, that is, the
    density at i to the power beta. NovelSum is the mean over rows. O(n^2 (d + log n)).

    Args:
        embeddings: (n, d).
        reference: (m, d), m > neighbours, where density is measured, e.g. the corpus; None takes the embeddings. Duplicates are dropped,
            and the nearest reference row of each sample is not counted, as it is the sample itself.
        neighbours: how many reference rows tell the density.
        beta: power of the density.
        alpha: power by which the weight of farther rows falls.
    """
    rows = unit_rows(embeddings)
    around = np.unique(rows if reference is None else unit_rows(reference), axis=0)
    n = len(rows)
    if n < 2 or len(around) <= neighbours:
        return float("nan")
    weights = np.arange(1, n + 1, dtype=np.float64) ** -alpha
    weights /= weights.sum()
    total = 0.0
    for start in range(0, n, BLOCK):
        block = rows[start : start + BLOCK]
        distance = np.sort(np.clip(1 - block @ rows.T, 0, None), axis=1).astype(np.float64)
        squared = np.clip(2 - 2 * (block @ around.T), 0, None)
        near = np.sort(np.partition(squared, neighbours, axis=1)[:, : neighbours + 1], axis=1)[:, 1:]
        total += float((distance @ weights * (near.astype(np.float64).mean(axis=1) + 1e-9) ** -beta).sum())
    return total / n


@njit(cache=True, fastmath={"reassoc", "contract"})
def _sum_of_units(rows: Matrix) -> tuple[NDArray[np.float64], float]:
    """Return the sum of the rows at unit length, and of their squared lengths (their number, less zero rows), in one pass."""
    total = np.zeros(rows.shape[1])
    units = 0.0
    for i in range(len(rows)):
        squared = 0.0
        for j in range(rows.shape[1]):
            squared += np.float64(rows[i, j]) * np.float64(rows[i, j])
        if squared != 0:
            units += squared / squared  # 1; NaN where a value is not finite
            scale = 1 / np.sqrt(squared)
            for j in range(rows.shape[1]):
                total[j] += scale * rows[i, j]
    return total, units
