"""`facility_location`: a good representative for everybody: maximise F(S) = sum_i max(0, max_{s in S} cos(i, s)).

F is monotone and submodular, so that greedy gets at least 1-1/e of the best F (Nemhauser, Wolsey & Fisher 1978).
`facility_location` is the lazy greedy (Minoux 1978), exact; `facility_location_stochastic` looks at a seeded sample of
(n/size) ln(1/0.05) candidates for each pick (Mirzasoleiman et al. 2015, arXiv 1409.7938: 1-1/e-0.05 in expectation).
Similarities are computed in blocks when they are asked for: memory is O(n d + n block), never n squared. No dial. On the
embeddings of the responses.
"""

from __future__ import annotations

import math

import numpy as np

from diversity.cell import Cell
from diversity.selection.strategies import Inputs, Picks, SelectionConfig, untyped
from diversity.typings.exact_vectors import exact_vectors

EPSILON = 0.05


def select(inputs: Inputs, cell: Cell, config: SelectionConfig) -> Picks:
    """Return the greedy representatives; equal gains in the seeded order."""
    assert inputs.embeddings is not None
    rows = np.argsort(inputs.order(cell), kind="stable")
    vectors = exact_vectors(inputs.embeddings("response"), rows)
    if cell.strategy.endswith("_stochastic"):
        return untyped(rows[stochastic_greedy(vectors, cell.size, cell.subset_seed)], inputs.n)
    return untyped(rows[lazy_greedy(vectors, cell.size)], inputs.n)


def lazy_greedy(vectors: np.ndarray, size: int, block: int = 64) -> np.ndarray:
    """Return `(size,) int64` places in the order of exact greedy; equal gains to the smaller place, whatever the block.

    A gain only falls as others are chosen, so that a candidate whose renewed gain is at least all other bounds is the best. Bounds are
    renewed `block` at a time, because one matrix product of 64 columns costs little more than one of a single column.

    Args:
        vectors: `(n, d) float32` from `exact_vectors`.
        size: 1..n.
        block: candidates whose gains are computed at once.
    """
    best = np.zeros(len(vectors), dtype=np.float32)
    bound = np.empty(len(vectors), dtype=np.float64)
    for start in range(0, len(vectors), block):
        bound[start : start + block] = _gains(vectors, best, np.arange(start, min(start + block, len(vectors))))
    renewed = np.zeros(len(vectors), dtype=np.int64)  # number of picks at which a bound was exact
    chosen = np.empty(size, dtype=np.int64)
    for step in range(size):
        while renewed[top := int(np.argmax(bound))] < step:
            stale = np.flatnonzero(renewed < step)
            if len(stale) > block:
                stale = stale[np.argpartition(-bound[stale], block - 1)[:block]]
            bound[stale] = _gains(vectors, best, stale)
            renewed[stale] = step
        chosen[step] = top
        bound[top], renewed[top] = -np.inf, size  # never stale again: it is out
        np.maximum(best, vectors @ vectors[top], out=best)
    return chosen


def stochastic_greedy(vectors: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Return `(size,) int64` places: for each pick the best of a seeded sample of the places not chosen yet.

    Args:
        vectors: `(n, d) float32` from `exact_vectors`.
        size: 1..n.
        seed: of the samples.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    best = np.zeros(len(vectors), dtype=np.float32)
    free = np.arange(len(vectors))
    sample_size = math.ceil(len(vectors) / size * math.log(1 / EPSILON))
    chosen = np.empty(size, dtype=np.int64)
    for step in range(size):
        places = np.sort(random.choice(len(free), size=min(sample_size, len(free)), replace=False))
        winner = places[int(np.argmax(_gains(vectors, best, free[places])))]
        chosen[step] = free[winner]
        free[winner] = free[-1]
        free = free[:-1]
        np.maximum(best, vectors @ vectors[chosen[step]], out=best)
    return chosen


def _gains(vectors: np.ndarray, best: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return by how much each place would raise F, `(len(places),) float64` of whole numbers, exact below 2**53."""
    gains = np.zeros(len(places), dtype=np.float64)
    for start in range(0, len(vectors), 8192):
        similar = vectors[start : start + 8192] @ vectors[places].T
        similar -= best[start : start + 8192, None]
        gains += np.maximum(similar, 0, out=similar).sum(axis=0, dtype=np.float64)
    return gains
