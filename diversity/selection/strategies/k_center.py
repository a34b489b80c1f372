"""`k_center`: the sample farthest from all chosen ones next (Gonzalez 1985; as coreset selection: Sener & Savarese, arXiv 1708.00489).

The largest distance from a sample to its nearest chosen one is at most twice the optimum. The first centre is the first of
the seeded order and stays chosen. It has no dial: the radius follows from the size. On the embeddings of the responses.
"""

from __future__ import annotations

import numpy as np

from diversity.cell import Cell
from diversity.selection.strategies import Inputs, Picks, SelectionConfig, untyped
from diversity.typings.exact_vectors import exact_vectors


def select(inputs: Inputs, cell: Cell, config: SelectionConfig) -> Picks:
    """Return the greedy centres; equally far samples in the seeded order."""
    assert inputs.embeddings is not None
    rows = np.argsort(inputs.order(cell), kind="stable")
    return untyped(rows[farthest_first(exact_vectors(inputs.embeddings("response"), rows), cell.size)], inputs.n)


def farthest_first(vectors: np.ndarray, size: int) -> np.ndarray:
    """Return `(size,) int64` places of centres: the first place, then always the one farthest from its nearest centre.

    Squared Euclidean distances, |x|^2 + |c|^2 - 2 x.c, are whole numbers here, so that equally far means equally far.
    O(size n d) time and O(n) memory beside the vectors.

    Args:
        vectors: `(n, d) float32` from `exact_vectors`.
        size: 1..n.
    """
    squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    nearest = np.full(len(vectors), np.inf)
    chosen = np.empty(size, dtype=np.int64)
    centre = 0
    for step in range(size):
        chosen[step] = centre
        products = (vectors @ vectors[centre]).astype(np.float64)
        np.minimum(nearest, squares + squares[centre] - 2 * products, out=nearest)
        nearest[centre] = -np.inf
        centre = int(np.argmax(nearest))
    return chosen
