"""A cell names a dataset: strategy, size, level, subset seed, control. The grid is expanded, and what makes no sense refused, here."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from diversity.config import Config, ConfigError, Seed, near_matches

SIDES = ("instruction", "response")
GRANULARITIES = ("macro", "meso", "micro")
TYPINGS = tuple(f"{side}-{granularity}" for side in SIDES for granularity in GRANULARITIES)
FULL = "full-corpus"  # the strategy that leaves nothing out; on request, and once in a grid
CONTROLS = ("none", "length-window", "length-quota", "source-quota", "score-quota", "tokens")


@dataclass(frozen=True)
class Cell:
    """What a dataset is asked to be.

    Attributes:
        strategy: how samples are chosen, e.g. `response-micro`, `response-micro@word`, `random`.
        size: how many samples, exactly; 0 is the whole corpus, whose size is known once it is sealed.
        level: nominal diversity as an exact fraction in [0, 1]; None where the strategy has no dial.
        subset_seed: seed of every random order in the choice.
        control: what is held fixed beside the size.
    """

    strategy: str
    size: int
    level: Fraction | None
    subset_seed: int = 0
    control: str = "none"

    @property
    def name(self) -> str:
        """Return `<strategy>_n<size>[_l<3-digit label>]_s<subset_seed>[_<control>]`; the label is floor(100 level), size 0 is `all`."""
        level = "" if self.level is None else f"_l{100 * self.level.numerator // self.level.denominator:03d}"
        control = "" if self.control == "none" else f"_{self.control}"
        return f"{self.strategy}_n{self.size or 'all'}{level}_s{self.subset_seed}{control}"

    @property
    def typing(self) -> str | None:
        """Return the typing that the strategy dials, or None where it is not one of the typed strategies."""
        return self.strategy if is_typing(self.strategy) else None

    def describe(self) -> dict[str, Any]:
        """Return the cell as a manifest holds it; the level is a number or null."""
        level = None if self.level is None else float(self.level)
        return {
            "strategy": self.strategy,
            "size": self.size,
            "level": level,
            "subset_seed": self.subset_seed,
            "control": self.control,
        }


def is_typing(name: str) -> bool:
    """Return whether a name is a typing: one of the six, or a micro one with `@unit`."""
    base, at, unit = name.partition("@")
    return base in TYPINGS and (not at or (base.endswith("-micro") and bool(unit)))


def typing_parts(name: str) -> tuple[str, str, str]:
    """Return (side, granularity, unit) of a typing; unit is "" for the default one.

    Raises:
        ConfigError: it is no typing.
    """
    if not is_typing(name):
        raise ConfigError(f"unknown typing {name!r}{near_matches(name, TYPINGS)}")
    base, _, unit = name.partition("@")
    side, _, granularity = base.partition("-")
    return side, granularity, unit


class GridConfig(Config):
    """Which cells there are: every strategy at every size, level, subset seed and control.

    Attributes:
        full_corpus: one more cell, `full-corpus_nall_s0`: everything there is, to compare what was chosen with.
        random_quota_from: the typed strategy whose quotas `random` takes under a control by quota.
        level_seeds: `shared`: every level has the same subset seeds, whose datasets share samples; `own`: each level has seeds of its own
            (level j has seed s + j S, S above the largest), so that all datasets are drawn apart, which tells more where seeds are few.
        length_window: the response lengths, in the model's tokens, of the corpus that the control `length-window` derives, both ends
            included; null: the window [a, 2a] that holds most samples.
        train: patterns (`fnmatch`) of the names of the cells that are fine-tuned; null means all of them.
    """

    strategies: list[str] = Field(default=[*TYPINGS, "random"], min_length=1)
    sizes: list[int] = Field(default=[10000], min_length=1)
    levels: int | list[Fraction] = 7
    subset_seeds: list[Seed] = Field(default=[0], min_length=1)
    level_seeds: Literal["shared", "own"] = "shared"
    controls: list[str] = Field(default=["none"], min_length=1)
    full_corpus: bool = False
    random_quota_from: str = "response-micro"
    length_window: tuple[int, int] | None = None
    train: Annotated[list[str], Field(min_length=1)] | None = None

    @field_validator("sizes")
    @classmethod
    def _positive(cls, sizes: list[int]) -> list[int]:
        if bad := [size for size in sizes if size < 1]:
            raise ValueError(f"a size is at least 1, not {bad[0]}")
        return sizes

    @field_validator("levels", mode="before")
    @classmethod
    def _exact(cls, levels: Any) -> Any:
        """Read 0.5, '1/3' or 1 as exact fractions: a float as its shortest decimal, as the person wrote it."""
        try:
            return [Fraction(str(level)) for level in levels] if isinstance(levels, list) else levels
        except ZeroDivisionError:
            raise ValueError("a fraction has a denominator other than 0") from None

    @field_validator("levels")
    @classmethod
    def _in_range(cls, levels: int | list[Fraction]) -> int | list[Fraction]:
        if isinstance(levels, int):
            if levels < 2:
                raise ValueError("an integer number of levels is at least 2; for a single level give a list, e.g. [1]")
        elif not levels or any(not 0 <= level <= 1 for level in levels):
            raise ValueError("a list of levels holds fractions from 0 to 1")
        return levels

    @field_validator("length_window")
    @classmethod
    def _window(cls, window: tuple[int, int] | None) -> tuple[int, int] | None:
        if window is not None and not 1 <= window[0] <= window[1]:
            raise ValueError(f"a length window is [shortest, longest] in tokens, from 1 on, not {list(window)}")
        return window

    @field_validator("controls")
    @classmethod
    def _known(cls, controls: list[str]) -> list[str]:
        for control in controls:
            if control not in CONTROLS:
                raise ValueError(f"unknown control {control!r}{near_matches(control, CONTROLS)}")
        return controls

    @property
    def fractions(self) -> list[Fraction]:
        """Return the levels as exact fractions; L levels are j/(L-1), j = 0..L-1."""
        if isinstance(self.levels, int):
            return [Fraction(j, self.levels - 1) for j in range(self.levels)]
        return list(self.levels)


def expand(grid: GridConfig, has_level: Mapping[str, bool]) -> list[Cell]:
    """Return every cell of the grid in the order of the configuration.

    Args:
        grid: the axes.
        has_level: for every strategy that is no typing, whether it has a dial; typed strategies always have one.

    Raises:
        ConfigError: an unknown strategy, two cells of one name, or seeds of levels that are too large.
    """
    cells = []
    for strategy, size in itertools.product(grid.strategies, grid.sizes):
        if not is_typing(strategy) and strategy not in has_level:
            raise ConfigError(f"grid.strategies: unknown strategy {strategy!r}{near_matches(strategy, [*TYPINGS, *has_level])}")
        levels = grid.fractions if is_typing(strategy) or has_level[strategy] else [None]
        step = max(grid.subset_seeds) + 1 if grid.level_seeds == "own" else 0
        if step * len(levels) > 2**63:
            raise ConfigError(f"grid.level_seeds: own: {len(levels)} levels above subset seed {step - 1} have seeds of 2**63 or more")
        for (j, level), seed, control in itertools.product(enumerate(levels), grid.subset_seeds, grid.controls):
            cells.append(Cell(strategy, size, level, seed + j * step, control))
    if grid.full_corpus:
        cells.append(Cell(FULL, 0, None))
    by_name: dict[str, Cell] = {}
    for cell in cells:
        if (other := by_name.setdefault(cell.name, cell)) is not cell:
            raise ConfigError(f"two cells are named {cell.name}: levels {other.level} and {cell.level}")
    return cells


def trained(cells: list[Cell], patterns: list[str] | None) -> list[Cell]:
    """Return the cells that are fine-tuned, in their order.

    Raises:
        ConfigError: a pattern names no cell.
    """
    if patterns is None:
        return cells
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(cell.name, pattern) for cell in cells):
            raise ConfigError(f"grid.train: {pattern!r} names no cell{near_matches(pattern, [cell.name for cell in cells])}")
    return [cell for cell in cells if any(fnmatch.fnmatchcase(cell.name, pattern) for pattern in patterns)]
