"""The six strategies of the paper (arXiv 2505.24768), and their `@unit` variants: keep k types, cover what fits, fill to the exact size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from diversity.cell import Cell
from diversity.config import ConfigError
from diversity.selection.bound import most_covered
from diversity.selection.chance import random_coverage
from diversity.selection.cover import cover_then_fill
from diversity.selection.levels import Level, LevelPlan
from diversity.selection.strategies import Inputs, Picks, SelectionConfig


def select(inputs: Inputs, cell: Cell, config: SelectionConfig) -> Picks:
    """Return a dataset of types of K_k, no other under strict closure: all of them where that fits the size, else nearly as many as can.

    Raises:
        InfeasibleSize: the size can't be had.
        InfeasibleLevel: no sample fits the token budget.
    """
    if cell.level is None:
        raise ConfigError("typed strategies need a level from 0 to 1")
    typed, control = inputs.typed[cell.strategy], inputs.control(cell)
    plan = inputs.plan(cell.strategy, cell, config)
    level = plan.at(cell.level)
    k, quota = level.k_realised, plan.quota
    rows, reasons = cover_then_fill(typed, k, quota, control, inputs.sample_keys, cell.subset_seed, config.objective)
    covered = int(typed.incidence.covered(rows)[typed.position <= k].sum())
    about = (cell.strategy, cell.control, cell.size, k, tuple(quota.tolist()))  # what no subset seed changes is found once
    at_random = inputs.once(("random", *about), lambda: random_coverage(typed, k, quota, control, inputs.sample_keys))
    bound = k if covered == k else inputs.once(("bound", *about), lambda: most_covered(typed, k, quota, control))
    return picks_of(plan, level, rows, reasons, typed.position, (covered, int(bound), at_random))


def picks_of(
    plan: LevelPlan, level: Level, rows: np.ndarray, reasons: np.ndarray, position: np.ndarray, reached: tuple[int, int, float]
) -> Picks:
    """Return the picks of a level.

    Args:
        plan: of the size.
        level: of the plan.
        rows: what was taken, in any order.
        reasons: the type that each was taken for.
        position: `(M,)` of the types.
        reached: types of K_k that they cover, that as many samples can cover at most, and that a random draw covers.
    """
    ascending = np.argsort(rows)
    target = {
        "k_requested": level.k_requested,
        "k_realised": level.k_realised,
        "k_min": plan.k_min,
        "M": int(plan.n_types),
        **dict(zip(("covered", "bound", "random"), reached, strict=True)),
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
