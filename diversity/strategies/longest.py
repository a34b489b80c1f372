"""`longest`: the samples with most response tokens (Zhao et al. 2024, "Long Is More for Alignment", arXiv 2402.04833)."""

from __future__ import annotations

import numpy as np

from diversity.cell import Cell
from diversity.pool import InfeasibleSize
from diversity.strategies import Inputs, Picks, SelectionConfig


def select(inputs: Inputs, cell: Cell, config: SelectionConfig) -> Picks:
    """Return the longest responses; equally long ones in the seeded order.

    Raises:
        InfeasibleSize: the corpus has fewer samples.
    """
    if cell.size > inputs.n:
        raise InfeasibleSize(f"{cell.name}: the corpus has {inputs.n} samples; the largest size is {inputs.n}, the smallest 1")
    rows = np.sort(np.lexsort((inputs.order(cell), -inputs.tokens["response"].astype(np.int64)))[: cell.size])
    return Picks(rows, np.full(len(rows), -1, dtype=np.int32), pool_size=inputs.n)
