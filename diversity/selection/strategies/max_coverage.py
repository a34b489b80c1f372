"""`max_coverage`: greedy maximum coverage of the response's token types (Nemhauser, Wolsey & Fisher 1978: at least 1-1/e of the best).

Most new types first. Once all are covered, or no sample adds one, the largest gain of sum_t sqrt(n_t) goes on to the exact
size. It has no pool and no dial: it is what `response-micro` at level 1 would be, were covering all there is to it. Samples
without a type of the band come last.
"""

from __future__ import annotations

import numpy as np

from diversity.cell import Cell
from diversity.selection.controls import make_control
from diversity.selection.fill import greedy_fill
from diversity.selection.peel import TypedInputs
from diversity.selection.pool import make_pool
from diversity.selection.strategies import Inputs, Picks, SelectionConfig

_NEW_TYPE = 1 << 40  # outweighs any sum of steps of sqrt


def select(inputs: Inputs, cell: Cell, config: SelectionConfig) -> Picks:
    """Return the greedy choice; equal gains in the seeded order."""
    incidence = inputs.typed["response-micro"].incidence
    everything = TypedInputs(
        incidence,
        inputs.typed["response-micro"].type_tie,
        np.ones(incidence.n_types, dtype=np.int32),
        (incidence.lengths() > 0).astype(np.int32),
    )
    control = make_control("none", inputs.tokens, inputs.source, len(inputs.source_names))
    pool = make_pool(everything, control, inputs.order(cell), 1)
    steps = np.rint(np.diff(np.sqrt(np.arange(len(pool.rows) + 2))) * (1 << 20)).astype(np.int64)
    steps[0] += _NEW_TYPE
    taken, reasons = greedy_fill(pool, 1, cell.size, steps)
    rest = np.flatnonzero(everything.birth == 0)
    rest = rest[np.argsort(inputs.order(cell)[rest], kind="stable")][: cell.size - len(taken)]
    rows = np.append(pool.rows[taken], rest)
    ascending = np.argsort(rows)
    chosen_for = np.append(reasons, np.full(len(rest), -1)).astype(np.int32)
    return Picks(rows[ascending], chosen_for[ascending], inputs.n)
