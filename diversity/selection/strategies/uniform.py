"""`random`: a uniform draw from the corpus. It obeys every control, so that each arm has a random arm of its own kind."""

from __future__ import annotations

import numpy as np

from diversity.cell import Cell
from diversity.selection.fill import fill_by_weight
from diversity.selection.pool import InfeasibleSize
from diversity.selection.strategies import Inputs, Picks, SelectionConfig, untyped
from diversity.selection.strategies.typed import quota_of


def select(inputs: Inputs, cell: Cell, config: SelectionConfig) -> Picks:
    """Return the first samples of the seeded order: of the corpus, of each bin, or as many as fit the token budget.

    Under a quota the bins hold what they hold in the typed strategy that `grid.random_quota_from` names.

    Raises:
        InfeasibleSize: a bin of the corpus has too few samples.
    """
    control = inputs.control(cell)
    order = np.argsort(inputs.order(cell), kind="stable")
    if control.by_weight:
        rows = order[fill_by_weight(control.weights[order], control.budget(cell.size))]
    elif control.by_bin:
        quota = quota_of(inputs, cell, inputs.grid.random_quota_from, config)
        bins = control.bins[order]
        rows = np.concatenate([order[bins == number][:share] for number, share in enumerate(quota)])
    else:
        rows = order[: cell.size]
    if not control.by_weight and len(rows) != cell.size:
        raise InfeasibleSize(f"the corpus has {len(rows)} samples for its quotas; the largest size is {len(rows)}, the smallest 1")
    return untyped(rows, inputs.n)
