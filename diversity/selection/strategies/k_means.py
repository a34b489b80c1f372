"""`k_means`: equal shares from the clusters of the responses' embeddings.

Clusters as in Ge et al. 2024, "Clustering and Ranking" (arXiv 2402.18191). The dial is the number of clusters: K = round(c
** level), c = min(size, n // 40). Level 0 is one cluster, a random draw; at level 1 most samples of a dataset of up to n // 40
have a cluster to themselves, and of a larger one a cluster gives size / (n // 40) on average. Shares are filled like water:
every cluster gives its first sample, then every cluster that has one its second, …, to the exact size.
"""

from __future__ import annotations

import numpy as np

from diversity.cell import Cell
from diversity.config import ConfigError
from diversity.selection.strategies import Inputs, Picks, SelectionConfig, untyped
from diversity.typings.exact_vectors import SCALE, exact_vectors

ROUNDS = 10
POINTS_A_CENTROID = 64


def select(inputs: Inputs, cell: Cell, config: SelectionConfig) -> Picks:
    """Return equal shares; within a cluster, and among clusters for the last places, in the seeded order."""
    assert inputs.embeddings is not None
    if cell.level is None:
        raise ConfigError("strategy k_means needs a level from 0 to 1")
    rows = np.argsort(inputs.order(cell), kind="stable")
    clusters = round(max(1, min(cell.size, inputs.n // 40)) ** float(cell.level))
    label = spherical_k_means(exact_vectors(inputs.embeddings("response"), rows), clusters)
    return untyped(rows[water_fill(label, cell.size)], inputs.n)


def water_fill(label: np.ndarray, size: int) -> np.ndarray:
    """Return `(size,)` places: all firsts of their labels, all seconds, …; the earlier place where not all of one turn fit."""
    by_label = np.argsort(label, kind="stable")
    starts = np.flatnonzero(np.diff(label[by_label], prepend=-1))
    turn = np.empty(len(label), dtype=np.int64)
    turn[by_label] = np.arange(len(label)) - np.repeat(starts, np.diff(starts, append=len(label)))
    return np.argsort(turn, kind="stable")[:size]


def spherical_k_means(vectors: np.ndarray, clusters: int) -> np.ndarray:
    """Return the label `(n,) int64` of every vector after Lloyd rounds on the first `64 clusters` of them.

    Centroids start as the first vectors and are rounded as they are, so that every similarity, sum and tie is exact; an empty cluster keeps
    its centroid.

    Args:
        vectors: `(n, d) float32` from `exact_vectors`, in random order.
        clusters: 1..n.
    """
    sample = vectors[: clusters * POINTS_A_CENTROID]
    centroids = vectors[:clusters].copy()
    for _ in range(ROUNDS):
        label = _assign(sample, centroids)
        by_label = np.argsort(label, kind="stable")
        found, starts = np.unique(label[by_label], return_index=True)
        sums = np.add.reduceat(sample[by_label], starts, axis=0, dtype=np.float64)  # of whole numbers, so exact
        norms = np.sqrt((sums * sums).sum(axis=1, keepdims=True))
        centroids[found] = np.rint(sums / np.maximum(norms, 1) * SCALE)
    return _assign(vectors, centroids)


def _assign(vectors: np.ndarray, centroids: np.ndarray, block: int = 4096) -> np.ndarray:
    """Return the most similar centroid of each vector; of equals the first."""
    blocks = range(0, len(vectors), block)
    return np.concatenate([np.argmax(vectors[start : start + block] @ centroids.T, axis=1) for start in blocks])
