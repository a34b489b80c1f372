"""`novelselect`: the most novel sample next (Yang et al. 2025, "Measuring Data Diversity for Instruction Tuning", arXiv 2502.17184).

The novelty of a candidate i beside the chosen j is sum_r r^-1 v_(r), the values v_ij = d_cos(i, j) (rho_i + rho_j) ascending:
near ones weigh most, and distances count for more where the corpus is dense. rho = (mean squared distance to the 10 nearest
other vectors + 1e-9)^-0.5. This is the authors' selection; their metric, `metrics.geometric.novelsum`, has rho_i alone. The
first sample is the first of the seeded order, and a chosen one is never chosen again (in the public version it can be).
Sorting all values anew for every pick takes O(n size^2 log size). Here a candidate keeps its 64 smallest values sorted and the
sum of the others: exact for 64 chosen samples, and from then on the farther ones, whose weights are below 1/64 and nearly
alike, count by their mean (ours). O(n size d) time, O(64 n) memory. No dial. On the embeddings of the responses.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from diversity.cell import Cell
from diversity.selection.strategies import Inputs, Picks, SelectionConfig, untyped
from diversity.typings.exact_vectors import ONE, exact_vectors

NEAR = 64
NEIGHBOURS = 10


def select(inputs: Inputs, cell: Cell, config: SelectionConfig) -> Picks:
    """Return the greedy choice; equally novel samples in the seeded order."""
    assert inputs.embeddings is not None
    rows = np.argsort(inputs.order(cell), kind="stable")
    vectors = exact_vectors(inputs.embeddings("response"), rows)
    return untyped(rows[most_novel_first(vectors, densities(vectors), cell.size)], inputs.n)


def most_novel_first(vectors: np.ndarray, density: np.ndarray, size: int, near: int = NEAR) -> np.ndarray:
    """Return `(size,) int64` places: the first, then always the most novel; of equals the smallest place.

    Args:
        vectors: `(n, d) float32` from `exact_vectors`.
        density: `(n,) float64`.
        size: 1..n.
        near: how many values of a candidate are ranked exactly.
    """
    near = min(near, size)
    weights = 1 / np.arange(1, size + 1)
    reached = np.cumsum(weights)
    smallest = np.full((len(vectors), near), np.inf)
    inner, outer = np.zeros(len(vectors)), np.zeros(len(vectors))
    free = np.ones(len(vectors), dtype=bool)
    chosen = np.zeros(size, dtype=np.int64)
    free[0] = False
    for step in range(1, size):
        last = chosen[step - 1]
        beyond = (reached[step - 1] - reached[near - 1]) / (step - near) if step > near else 0.0
        chosen[step] = _meet(vectors @ vectors[last], density, last, weights, beyond, smallest, inner, outer, free)
        free[chosen[step]] = False
    return chosen


def densities(vectors: np.ndarray, neighbours: int = NEIGHBOURS, block: int = 256) -> np.ndarray:
    """Return `(n,) float64`: (mean squared distance to the nearest other distinct vectors + 1e-9)^-0.5; 1 where there are too few.

    Args:
        vectors: `(n, d) float32` from `exact_vectors`.
        neighbours: at least 1.
        block: vectors compared with all at once.
    """
    distinct, number = np.unique(vectors, axis=0, return_inverse=True)
    if len(distinct) <= neighbours:
        return np.ones(len(vectors))
    density = np.empty(len(distinct))
    for start in range(0, len(distinct), block):
        nearest = _largest(distinct[start : start + block] @ distinct.T, start, neighbours)
        squared = 2 - 2 * nearest.sum(axis=1) / (neighbours * ONE)  # a sum of whole numbers, so exact
        density[start : start + block] = 1 / np.sqrt(np.maximum(squared, 0) + 1e-9)
    return density[number.ravel()]


@njit(cache=True)
def _largest(similar: np.ndarray, start: int, count: int) -> np.ndarray:
    """Return the largest similarities of each row, its own (at column start + row) left out, descending."""
    found = np.full((len(similar), count), -np.inf)
    for i in range(len(similar)):
        for j in range(similar.shape[1]):
            value = similar[i, j]
            if value > found[i, count - 1] and j != start + i:
                p = count - 1
                while p > 0 and found[i, p - 1] < value:
                    found[i, p] = found[i, p - 1]
                    p -= 1
                found[i, p] = value
    return found


@njit(cache=True)
def _meet(
    similar: np.ndarray,
    density: np.ndarray,
    last: int,
    weights: np.ndarray,
    beyond: float,
    smallest: np.ndarray,
    inner: np.ndarray,
    outer: np.ndarray,
    free: np.ndarray,
) -> int:
    """Let every free candidate meet the last chosen one, and return the most novel.

    `inner` is the weighted sum over a candidate's smallest values, `outer` the plain sum over the others, `beyond` their weight.
    """
    near = smallest.shape[1]
    best, most = -1, -np.inf
    for i in range(len(free)):
        if not free[i]:
            continue
        value = max(0.0, 1 - np.float64(similar[i]) / ONE) * (density[i] + density[last])
        if value >= smallest[i, near - 1]:
            outer[i] += value
        else:
            if smallest[i, near - 1] < np.inf:
                outer[i] += smallest[i, near - 1]
            p = near - 1
            while p > 0 and smallest[i, p - 1] > value:
                smallest[i, p] = smallest[i, p - 1]
                p -= 1
            smallest[i, p] = value
            total = 0.0
            for r in range(near):
                if smallest[i, r] == np.inf:
                    break
                total += weights[r] * smallest[i, r]
            inner[i] = total
        novelty = inner[i] + beyond * outer[i]
        if novelty > most:
            best, most = i, novelty
    return best
