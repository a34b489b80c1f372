"""How samples are chosen. A strategy is a function (inputs, cell, config) -> Picks in a file of its own, named in one dict.

Every strategy gives exactly the size asked for, no row twice, and the same rows for any order of the corpus: every order and
every tie goes by keyed hashes of sample ids. The six typed strategies, with or without `@unit`, share one function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from pydantic import Field

from diversity.cell import FULL, Cell, GridConfig, is_typing
from diversity.config import Config, ConfigError, UserError, load, near_matches
from diversity.keys import content_priorities, priorities
from diversity.selection.controls import Control, make_control
from diversity.selection.fill import Objective
from diversity.selection.levels import KminFrom, LevelPlan, level_table
from diversity.selection.peel import Algorithm, Closure, TypedInputs, TypeOrder, prune
from diversity.selection.pool import InfeasibleSize
from diversity.typings.incidence import Incidence

TYPED = "diversity.selection.strategies.typed:select"
TYPED_VERSION = 2  # counted up when the picks of typed strategies, or their quotas, change
BUDGET_VERSION = 1  # counted up when what a token budget is filled with changes


@dataclass(frozen=True)
class Needs:
    """What a strategy looks at beside keys, token counts and sources; a stage loads it, and its fingerprint belongs to the dataset's.

    Attributes:
        typings: names in `Inputs.typed`.
        embeddings: sides of `Inputs.embeddings`.
        token_ids: sides of `Inputs.token_ids`.
    """

    typings: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    token_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Strategy:
    """All there is to say of a strategy without types.

    Attributes:
        function: `module:name` of (inputs, cell, config) -> Picks.
        needs: what it looks at.
        dial: whether it has levels.
        version: counted up when its picks change, so that a dataset sealed before is never taken for them.
    """

    function: str
    needs: Needs = Needs()
    dial: bool = False
    version: int = 1


_HERE = "diversity.selection.strategies"
_RESPONSES = Needs(embeddings=("response",))
STRATEGIES = {
    "random": Strategy(f"{_HERE}.uniform:select"),
    "longest": Strategy(f"{_HERE}.longest:select"),
    "k_center": Strategy(f"{_HERE}.k_center:select", _RESPONSES, version=2),
    "facility_location": Strategy(f"{_HERE}.facility_location:select", _RESPONSES, version=2),
    "facility_location_stochastic": Strategy(f"{_HERE}.facility_location:select", _RESPONSES),
    "k_means": Strategy(f"{_HERE}.k_means:select", _RESPONSES, dial=True),
    "deita": Strategy(f"{_HERE}.deita:select", _RESPONSES, dial=True),
    "max_coverage": Strategy(f"{_HERE}.max_coverage:select", Needs(typings=("response-micro",))),
    "token_entropy": Strategy(f"{_HERE}.token_entropy:select", Needs(token_ids=("response",))),
    "instag": Strategy(f"{_HERE}.instag:select", Needs(typings=("instruction-meso",))),
    "semdedup": Strategy(f"{_HERE}.semdedup:select", _RESPONSES, dial=True),
    "novelselect": Strategy(f"{_HERE}.novelselect:select", _RESPONSES),
    "mig": Strategy(f"{_HERE}.mig:select", Needs(typings=("instruction-meso",), embeddings=("instruction",))),
}
DIALLED = {name: strategy.dial for name, strategy in STRATEGIES.items()}  # as `cell.expand` asks for it


def needs(cell: Cell, grid: GridConfig) -> Needs:
    """Return what a cell's strategy looks at."""
    if cell.typing:
        return Needs(typings=(cell.typing,))
    if cell.strategy == "random" and cell.control.endswith("-quota"):
        return Needs(typings=(grid.random_quota_from,))
    return STRATEGIES[cell.strategy].needs if cell.strategy in STRATEGIES else Needs()


def version(cell: Cell) -> int:
    """Return the version of what chooses a cell; `random` under quotas takes them from a typed strategy."""
    budget = BUDGET_VERSION if cell.control == "tokens" else 0
    if cell.typing or (cell.strategy == "random" and cell.control.endswith("-quota")):
        return TYPED_VERSION + budget
    return (STRATEGIES[cell.strategy].version if cell.strategy in STRATEGIES else 1) + budget


def refuse_control(cell: Cell) -> None:
    """Refuse a control that the strategy does not obey.

    Raises:
        ConfigError: only typed strategies and `random` obey controls other than none and length-window (a corpus of its own).
    """
    if not (cell.typing or cell.strategy == "random" or cell.control in ("none", "length-window")):
        raise ConfigError(f"{cell.name}: strategy {cell.strategy} does not obey control {cell.control}; typed strategies and random do")


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
        materialise: whether datasets hold texts; else they hold picks, and readers go through to the corpus. No part of a dataset's name.
    """

    algorithm: Algorithm = "peel"
    rho: float = Field(default=1.5, ge=1)
    kmin_from: KminFrom = "each"
    closure: Closure = "strict"
    outliers: Literal["exclude", "nearest"] = "exclude"
    objective: Objective = "cover"
    type_order: TypeOrder = "peel"
    materialise: bool = True


@dataclass(frozen=True)
class Picks:
    """What a cell's dataset holds, and what it was meant to cover.

    Attributes:
        rows: `(size,) int64`, ascending corpus rows.
        chosen_for: `(size,) int32`, the type each was taken for; -1 where there is none.
        pool_size: samples that could have been taken.
        kept: `(M,) bool` mask of K_k of the cell's typing; None for strategies without a target.
        target: for a manifest, None likewise: k_requested, k_realised, k_min and M; of K_k the types that are covered, that as many samples
            could cover at most (`bound`), and that a random draw from the same pool covers (`random`).
    """

    rows: np.ndarray
    chosen_for: np.ndarray
    pool_size: int
    kept: np.ndarray | None = None
    target: dict[str, float] | None = None


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
        token_ids: loads a side's model tokens as (ids, offsets): those of row i are `ids[offsets[i]:offsets[i+1]]`.
        scores: loads a quality score `(n,)` of each sample, where the corpus has some; NaN where a sample has none.
    """

    sample_keys: np.ndarray
    tokens: Mapping[str, np.ndarray]
    source: np.ndarray
    source_names: list[str]
    typed: Mapping[str, TypedInputs]
    grid: GridConfig
    embeddings: Callable[[str], np.ndarray] | None = None
    token_ids: Callable[[str], tuple[np.ndarray, np.ndarray]] | None = None
    scores: Callable[[], np.ndarray] | None = None
    _plans: dict[tuple[str, str, int, float, str], LevelPlan] = field(default_factory=dict, repr=False)
    _found: dict[Any, float] = field(default_factory=dict, repr=False)

    @property
    def n(self) -> int:
        """Return the number of samples in the corpus."""
        return len(self.sample_keys)

    def filled_scores(self) -> np.ndarray | None:
        """Return every sample's score `(n,) float64`; where a sample has none, the lowest that there is. None without any score."""
        if self.scores is None:
            return None
        scores = np.asarray(self.scores(), dtype=np.float64)
        return np.where(np.isnan(scores), np.nanmin(scores), scores)

    def order(self, cell: Cell) -> np.ndarray:
        """Return the seeded priorities `(n,) uint64` with which a cell breaks ties; lower first."""
        return priorities(self.sample_keys, cell.subset_seed, "sample")

    def control(self, cell: Cell) -> Control:
        """Return the cell's control over this corpus."""
        scores = self.scores() if self.scores is not None and cell.control == "score-quota" else None
        return make_control(cell.control, self.tokens, self.source, len(self.source_names), scores)

    def plan(self, typing: str, cell: Cell, config: SelectionConfig) -> LevelPlan:
        """Return the levels of a typing at the cell's size and control; planned once, all fractions of the grid together.

        Raises:
            InfeasibleSize: the size can't be had, or with `kmin_from: largest` the largest can't.
            ConfigError: the cell's size is none of the grid's.
        """
        key = (typing, cell.control, cell.size, config.rho, config.kmin_from)
        if cell.size not in self.grid.sizes:
            raise ConfigError(f"levels are planned for grid.sizes {self.grid.sizes}")
        if key not in self._plans:
            sizes = self.grid.sizes if config.kmin_from == "largest" else [cell.size]
            fractions = sorted(set(self.grid.fractions))
            table = level_table(self.typed[typing], self.control(cell), sizes, fractions, config.rho, config.kmin_from)
            self._plans.update({(typing, cell.control, size, config.rho, config.kmin_from): table[size] for size in sizes})
        return self._plans[key]

    def once(self, about: Any, find: Callable[[], float]) -> float:
        """Return what `find` returns, which is called once for what it is about."""
        if about not in self._found:
            self._found[about] = find()
        return self._found[about]


def closure_of(typing: str, config: SelectionConfig) -> Closure:
    """Return how a typing's pools close: `loose` is for tags; tokens are always strict, and for topics the two are the same."""
    return config.closure if typing.endswith("-meso") else "strict"


def prune_typing(
    name: str, incidence: Incidence, contents: Sequence[bytes], sample_keys: np.ndarray, config: SelectionConfig
) -> TypedInputs:
    """Return one typing pruned as the configuration says: computed once, it serves every cell.

    Args:
        name: of the typing.
        incidence: samples × types.
        contents: the types' contents, in the order of their numbers.
        sample_keys: `(n,) uint64`.
        config: algorithm, type order and closure.

    Raises:
        ConfigError: the typing has no types, or some that no sample has.
    """
    if incidence.n_types == 0:
        raise ConfigError(f"{name} has no types (M = 0): see the band's counts in the manifest of its profile, and change profile.band")
    if (unused := np.flatnonzero(incidence.df() == 0)).size:
        raise ConfigError(f"{name}: {len(unused)} types, e.g. {bytes(contents[unused[0]])!r}, occur in no sample: profile the corpus anew")
    tie = content_priorities(contents)
    pruning = prune(
        incidence,
        tie,
        priorities(sample_keys, 0, "peel"),
        algorithm=config.algorithm,
        type_order=config.type_order,
        closure=closure_of(name, config),
    )
    return TypedInputs(incidence, tie, pruning.position, pruning.birth)


def untyped(rows: np.ndarray, pool_size: int) -> Picks:
    """Return the picks of a strategy without types."""
    return Picks(np.sort(rows).astype(np.int64), np.full(len(rows), -1, dtype=np.int32), pool_size)


def select(inputs: Inputs, cell: Cell, config: SelectionConfig) -> Picks:
    """Return what goes into a cell's dataset.

    Raises:
        ConfigError: no such strategy, or one that does not obey the cell's control.
        InfeasibleSize: it can't be had; the message says what can.
    """
    if cell.strategy == FULL:
        return untyped(np.arange(inputs.n), inputs.n)
    if not is_typing(cell.strategy) and cell.strategy not in STRATEGIES:
        raise ConfigError(f"unknown strategy {cell.strategy!r}{near_matches(cell.strategy, STRATEGIES)}")
    refuse_control(cell)
    needed = needs(cell, inputs.grid)
    for what, wanted, given in (
        ("embeddings", needed.embeddings, inputs.embeddings),
        ("token_ids", needed.token_ids, inputs.token_ids),
        *((f"typing {name}", True, inputs.typed.get(name)) for name in needed.typings),
    ):
        if wanted and given is None:
            raise ConfigError(f"{cell.name}: strategy {cell.strategy} needs {what}, which it was not given")
    if not cell.typing and not 1 <= cell.size <= inputs.n:
        raise InfeasibleSize(f"{cell.name}: the corpus has {inputs.n} samples; the smallest size is 1, the largest {inputs.n}")
    strategy = load(TYPED if cell.typing else STRATEGIES[cell.strategy].function)
    try:
        return strategy(inputs, cell, config)
    except UserError as error:
        raise type(error)(f"{cell.name}: {error}") from None
