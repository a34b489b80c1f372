"""The six strategies of the paper (arXiv 2505.24768), and their `@unit` variants: keep k types, cover them all, fill to the exact size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from diversity.cell import Cell
from diversity.config import ConfigError
from diversity.selection.cover import cover_then_fill
from diversity.selection.levels import Level, LevelPlan, constant_order
from diversity.selection.strategies import Inputs, Picks, SelectionConfig


def select(inputs: Inputs, cell: Cell, config: SelectionConfig) -> Picks:
    """Return a dataset that has every type of K_k, and no other under strict closure.

    Raises:
        InfeasibleSize: the size can't be had.
        InfeasibleLevel: the level can't.
    """
    if cell.level is None:
        raise ConfigError("typed strategies need a level from 0 to 1")
    typed = inputs.typed[cell.strategy]
    plan = inputs.plan(cell.strategy, cell, config)
    level = plan.at(cell.level)
    rows, reasons = cover_then_fill(
        typed,
        level.k_realised,
        plan.quota,
        inputs.control(cell),
        inputs.order(cell),
        constant_order(inputs.sample_keys),
        config.objective,
    )
    return picks_of(plan, level, rows, reasons, typed.position)


def picks_of(plan: LevelPlan, level: Level, rows: np.ndarray, reasons: np.ndarray, position: np.ndarray) -> Picks:
    """Return the picks of a level from what was taken for it, in any order, and the positions `(M,)` of the types."""
    ascending = np.argsort(rows)
    target = {
        "k_requested": level.k_requested,
        "k_realised": level.k_realised,
        "k_min": plan.k_min,
        "k_max": plan.k_max,
        "cover": level.cover,
        "M": int(plan.n_types),
    }
    return Picks(
        rows=rows[ascending],
        chosen_for=reasons[ascending].astype(np.int32),
        pool_size=level.pool_size,
        kept=position <= level.k_realised,
        target=target,
    )


def quota_of(inputs: Inputs, cell: Cell, typing: str, config: SelectionConfig) -> np.ndarray:
    """Return the quota that a typed strategy of the same size and control goes by, for strategies that are to be compared with it."""
    return inputs.plan(typing, replace(cell, strategy=typing), config).quota
