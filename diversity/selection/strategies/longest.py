"""`longest`: the samples with most response tokens (Zhao et al. 2024, "Long Is More for Alignment", arXiv 2402.04833)."""

from __future__ import annotations

import numpy as np

from diversity.cell import Cell
from diversity.selection.strategies import Inputs, Picks, SelectionConfig, untyped


def select(inputs: Inputs, cell: Cell, config: SelectionConfig) -> Picks:
    """Return the longest responses; equally long ones in the seeded order."""
    longest_first = np.lexsort((inputs.order(cell), -inputs.tokens["response"].astype(np.int64)))
    return untyped(longest_first[: cell.size], inputs.n)
