"""`instag`: complexity-first diverse sampling (Lu et al. 2023, "#InsTag", arXiv 2308.07074).

Samples by their number of tags, most first; a pass takes each sample that has a tag the pass has not seen yet, and passes
follow one another until the size is reached. A pass that takes nothing (only samples without tags are left) ends it: the
rest is taken in order. No dial. On the instruction's tags.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from diversity.cell import Cell
from diversity.selection.strategies import Inputs, Picks, SelectionConfig


def select(inputs: Inputs, cell: Cell, config: SelectionConfig) -> Picks:
    """Return the samples of the first passes; equally complex ones in the seeded order. `chosen_for` is a tag that was new to the pass."""
    incidence = inputs.typed["instruction-meso"].incidence
    order = np.lexsort((inputs.order(cell), -incidence.lengths()))
    taken, new_tag = _passes(incidence.indptr, incidence.indices, order, incidence.n_types, cell.size)
    ascending = np.argsort(taken)
    return Picks(taken[ascending], new_tag[ascending], inputs.n)


@njit(cache=True)
def _passes(indptr: np.ndarray, indices: np.ndarray, order: np.ndarray, n_types: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    taken = np.empty(size, dtype=np.int64)
    new_tag = np.full(size, -1, dtype=np.int32)
    seen = np.zeros(n_types, dtype=np.int64)  # the last pass that saw a tag
    waiting = order
    n = 0
    number = 0
    while n < size:
        number += 1
        left = np.empty(len(waiting), dtype=np.int64)
        n_left = 0
        for i in waiting:
            fresh = -1
            for t in indices[indptr[i] : indptr[i + 1]]:
                if seen[t] < number and fresh < 0:
                    fresh = t
            if n == size or fresh < 0:
                left[n_left] = i
                n_left += 1
                continue
            for t in indices[indptr[i] : indptr[i + 1]]:
                seen[t] = number
            taken[n], new_tag[n] = i, fresh
            n += 1
        if n_left == len(waiting):
            taken[n:] = waiting[: size - n]
            n = size
        waiting = left[:n_left]
    return taken, new_tag
