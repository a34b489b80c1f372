"""How samples are chosen. A strategy is a function (inputs, cell, config) -> Picks in a file of its own, named in one dict.

Every strategy gives exactly the size asked for, no row twice, and the same rows for any order of the corpus: every order and every tie
goes by keyed hashes of sample ids. The six typed strategies, with or without `@unit`, share one function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from pydantic import Field

from diversity.cell import Cell, GridConfig
from diversity.config import Config, load
from diversity.controls import Control, make_control
from diversity.fill import Objective
from diversity.keys import priorities
from diversity.levels import KminFrom, LevelPlan, level_table
from diversity.peel import Algorithm, Closure, TypedInputs, TypeOrder

TYPED = "diversity.strategies.typed:select"
STRATEGIES = {
    "random": "diversity.strategies.uniform:select",
    "longest": "diversity.strategies.longest:select",
}
DIALLED = {"random": False, "longest": False}  # which of them have a level


class SelectionConfig(Config):
    """How the dial turns.

    Attributes:
        algorithm: `peel` (reverse greedy by type), `unique` (the paper's sentence taken literally), or `static` (types by df).
        rho: how many times the size the pool of level 0 holds, at least 1; 1 leaves level 0 no choice. 3 or more under quotas.
        kmin_from: whether `each` size has a level 0 of its own, or all have that of the `largest`.
        closure: `strict`: a pool has the samples all of whose types are kept; `loose`: those with one kept type.
        outliers: whether samples without a topic are left out (`exclude`) or join the `nearest` topic.
        objective: how a dataset is filled once every type is covered: the type seen least next (`cover`), or the largest gain of
            sum sqrt(n_t) (`concave`).
        type_order: what `peel` goes by: `peel`, `size` or `random`.
        materialise: whether datasets hold texts. Only true so far.
    """

    algorithm: Algorithm = "peel"
    rho: float = Field(default=1.5, ge=1)
    kmin_from: KminFrom = "each"
    closure: Closure = "strict"
    outliers: Literal["exclude", "nearest"] = "exclude"
    objective: Objective = "cover"
    type_order: TypeOrder = "peel"
    materialise: Literal[True] = True


@dataclass(frozen=True)
class Picks:
    """What a cell's dataset holds, and what it was meant to cover.

    Attributes:
        rows: `(size,) int64`, ascending corpus rows.
        chosen_for: `(size,) int32`, the type each was taken for; -1 where there is none.
        pool_size: samples that could have been taken.
        kept: `(M,) bool` mask of K_k of the cell's typing; None for strategies without a target.
        target: k_requested, k_realised, k_min, k_max, cover and M for a manifest; None likewise.
    """

    rows: np.ndarray
    chosen_for: np.ndarray
    pool_size: int
    kept: np.ndarray | None = None
    target: dict[str, int] | None = None


@dataclass(frozen=True)
class Inputs:
    """What a strategy may look at, one entry a row of the id-sorted corpus. Arrays may be read-only.

    Attributes:
        sample_keys: `(n,) uint64`.
        tokens: model tokens of each side, `(n,) int32`.
        source: `(n,) int32` codes into `source_names`.
        typed: pruned typings by name; those that the cells' strategies dial.
        grid: sizes and fractions, which the levels of a typing are planned for at once.
        embeddings: loads the `(n, d) float32` unit vectors of a side, for strategies that compare samples.
    """

    sample_keys: np.ndarray
    tokens: Mapping[str, np.ndarray]
    source: np.ndarray
    source_names: list[str]
    typed: Mapping[str, TypedInputs]
    grid: GridConfig
    embeddings: Callable[[str], np.ndarray] | None = None
    _plans: dict[tuple[str, str], dict[int, LevelPlan]] = field(default_factory=dict, repr=False)

    @property
    def n(self) -> int:
        """Return the number of samples in the corpus."""
        return len(self.sample_keys)

    def order(self, cell: Cell) -> np.ndarray:
        """Return the seeded priorities `(n,) uint64` with which a cell breaks ties; lower first."""
        return priorities(self.sample_keys, cell.subset_seed, "sample")

    def control(self, cell: Cell) -> Control:
        """Return the cell's control over this corpus."""
        return make_control(cell.control, self.tokens, self.source, len(self.source_names))

    def plan(self, typing: str, cell: Cell, config: SelectionConfig) -> LevelPlan:
        """Return the levels of a typing at the cell's size and control; planned once for all sizes of the grid.

        Raises:
            InfeasibleSize: a size of the grid can't be had.
            InfeasibleLevel: with `kmin_from: largest`, a smaller size can't cover the largest size's level 0.
        """
        key = (typing, cell.control)
        if key not in self._plans:
            fractions = sorted(set(self.grid.fractions))
            self._plans[key] = level_table(
                self.typed[typing],
                self.sample_keys,
                self.control(cell),
                self.grid.sizes,
                fractions,
                config.rho,
                config.kmin_from,
            )
        return self._plans[key][cell.size]


def select(inputs: Inputs, cell: Cell, config: SelectionConfig) -> Picks:
    """Return what goes into a cell's dataset.

    Raises:
        UserError: it can't be had; the message says what can.
    """
    strategy = load(TYPED if cell.typing else STRATEGIES[cell.strategy])
    return strategy(inputs, cell, config)
