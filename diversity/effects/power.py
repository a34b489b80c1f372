"""What a planned grid can see: the chance that the whole rule of the verdict claims a change, simulated for the design as it is analysed.

No formula holds for the rule: it asks for Student's t over subset seeds after Holm, and for shuffles too, whose p has a smallest value
that few datasets can't go below.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from diversity.effects.contrasts import opponents
from diversity.effects.partial import pooled_sd
from diversity.effects.permutation import orders_of, smallest_p
from diversity.effects.plan import PrimaryConfig
from diversity.effects.regression import FEW_DOF, ols
from diversity.effects.schema import MIN_LEVELS, Row, arm_name, grouped
from diversity.effects.slopes import ONE_SEED, weights_of
from diversity.effects.units import Design, blocks_of, datasets, design_of, runs_of

Floats = NDArray[np.float64]
SIMULATIONS = 4000
BLOCK = 4_000_000  # numbers in a block of shuffled products
MOST_SEEDS = 512


@dataclass(frozen=True)
class Scatter:
    """How far datasets of one arm and level lie apart in their scores: the draw of the subset and training together.

    Attributes:
        sd: standard deviation of one dataset's score, in units of the score.
        dof: degrees of freedom behind it.
        basis: what it was taken from.
    """

    sd: float
    dof: int
    basis: str

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the interval of the standard deviation by the chi-squared distribution: few datasets know little of it."""
        from scipy import stats

        low, high = stats.chi2.ppf([0.5 + confidence / 2, 0.5 - confidence / 2], self.dof)
        return float(self.sd * np.sqrt(self.dof / low)), float(self.sd * np.sqrt(self.dof / high))


def scatter(scored: Sequence[Row]) -> Scatter:
    """Return how far datasets of one arm, size and level lie apart, pooled: from several of a level, else from residuals about lines.

    Training runs of one dataset are averaged: how these differ says nothing of a new dataset.

    Args:
        scored: rows of RESULTS_SCHEMA with a value, all of one score.

    Raises:
        ValueError: no level has two datasets, and no arm has more datasets than a line takes up.
    """
    arms = [(key, datasets(found)) for key, found in grouped(scored, ("strategy", "control", "size"))]
    cells = [[unit["value"] for unit in found] for _, units in arms for _, found in grouped(units, ("level",))]
    sd, dof = pooled_sd(cells)
    of = sum(len(units) for _, units in arms)
    runs = sum(runs_of(units) for _, units in arms) / of
    each = f", each the mean of {runs:.2g} training runs" if runs > 1 else ""
    if dof:
        return Scatter(sd, dof, f"{sum(len(cell) > 1 for cell in cells)} cells of an arm and level with more than one dataset{each}")
    lines = []
    for _, units in arms:
        found = [unit for unit in units if unit["level"] is not None]
        if len({unit["level"] for unit in found}) >= MIN_LEVELS:
            lines.append(ols([unit["level"] for unit in found], [unit["value"] for unit in found]))
    lines = [line for line in lines if line.dof > 0]
    if not lines:
        raise ValueError("nothing tells how far new datasets scatter: no level has two datasets, and no arm has three levels")
    dof = sum(line.dof for line in lines)
    sd = float(np.sqrt(sum(line.residual_sd**2 * line.dof for line in lines) / dof))
    return Scatter(
        sd, dof, f"residuals about {len(lines)} lines, since no level has two datasets{each}: too large where a line does not fit"
    )


@dataclass(frozen=True)
class PlannedSlope:
    """The datasets of one arm as they are planned: a level and a subset seed each.

    Attributes:
        levels: `(n,)`.
        seeds: `(n,)` numbers.
    """

    levels: Floats
    seeds: NDArray[np.int64]

    @classmethod
    def of(cls, levels: Sequence[float], seeds: int, own: bool = False) -> PlannedSlope:
        """Return the plan of levels, with repeats, times a number of subset seeds.

        A level that is named twice has twice as many seeds: 0, 0, 1/2, 1, 1 times 5 is ten seeds with levels 0 and 1, five of them with
        1/2 too.

        Args:
            levels: of one seed, repeats allowed.
            seeds: how many.
            own: every level has seeds of its own, so that all datasets are drawn apart.
        """
        pairs = [(level, seed) for level, count in Counter(levels).items() for seed in range(count * seeds)]
        numbers = range(len(pairs)) if own else (seed for _, seed in pairs)
        return cls(np.array([level for level, _ in pairs]), np.array(list(numbers), np.int64))

    @cached_property
    def design(self) -> Design:
        """Return what the error of its slope is taken from."""
        return design_of(self.levels, np.unique(self.seeds, return_inverse=True)[1].ravel().astype(np.int64))

    @cached_property
    def refused(self) -> str | None:
        """Return why the verdict takes no slope of these datasets, or None."""
        if (levels := len(set(self.levels.tolist()))) < MIN_LEVELS:
            return f"a slope needs {MIN_LEVELS} different levels, there are {levels}"
        if self.design.kind == "one subset seed":
            return f"{ONE_SEED} (grid.level_seeds=own gives each level its own)"
        return None

    @cached_property
    def smallest_p(self) -> float | None:
        """Return the smallest p that shuffling can give; None where orders are many."""
        used = self.design.used
        return smallest_p(self.levels[used], self._blocks[used])

    @property
    def unit(self) -> Floats:
        """Return the scores of a change of 1 from level 0 to 1."""
        return self.levels

    @cached_property
    def _blocks(self) -> NDArray[np.int64]:
        return blocks_of(self.design, [0] * len(self.levels))

    def t_p(self, y: Floats) -> Floats:
        """Return p by Student's t of `(n, simulations)` scores, as `units.line_through` has it; 1 where the design allows no claim."""
        from scipy import stats

        design, x = self.design, self.levels
        if design.kind == "one subset seed":
            return np.ones(y.shape[1])
        if design.kind == "a slope a subset seed":
            seeds = np.unique(design.labels[design.used])
            whole = weights_of(x, design, [0] * len(x)) * len(seeds)
            slopes = np.stack([np.where(design.labels == seed, whole, 0) @ y for seed in seeds])
            t = slopes.mean(axis=0) / (slopes.std(axis=0, ddof=1) / np.sqrt(len(seeds)))
            return np.asarray(2 * stats.t.sf(np.abs(t), len(seeds) - 1))
        free, away = x - x.mean(), y - y.mean(axis=0)
        slope = free @ away / (free @ free)
        left = np.maximum((away**2).sum(axis=0) - slope**2 * (free @ free), 1e-300) / (len(x) - 2)
        return np.asarray(2 * stats.t.sf(np.abs(slope) / np.sqrt(left / (free @ free)), len(x) - 2))

    @cached_property
    def _orders(self) -> tuple[Floats, bool]:
        used = self.design.used
        return orders_of(self.levels[used], np.random.default_rng(0), self._blocks[used])

    def shuffle_p(self, y: Floats) -> Floats:
        """Return p by shuffling of `(n, simulations)` scores; where orders are drawn they are the same for all."""
        return _shuffle_p(y[self.design.used], *self._orders)


@dataclass(frozen=True)
class PlannedContrast:
    """The most diverse datasets of an arm against those of a strategy without a level, so many of each."""

    top: int
    others: int

    @property
    def refused(self) -> str | None:
        """Return why the verdict takes no difference of these datasets, or None."""
        few = min(self.top, self.others) < 2
        return f"a contrast needs 2 datasets of each, there are {self.top} and {self.others}" if few else None

    @cached_property
    def smallest_p(self) -> float | None:
        """Return the smallest p that shuffling can give; None where orders are many."""
        return smallest_p(self.unit)

    @property
    def unit(self) -> Floats:
        """Return the scores of a difference of 1."""
        return np.repeat([1.0, 0.0], [self.top, self.others])

    def t_p(self, y: Floats) -> Floats:
        """Return p by Welch's test of `(n, simulations)` scores."""
        from scipy import stats

        if min(self.top, self.others) < 2:
            return np.ones(y.shape[1])
        groups = y[: self.top], y[self.top :]
        squares = [group.var(axis=0, ddof=1) / len(group) for group in groups]
        se2, least = squares[0] + squares[1], min(self.top, self.others) - 1
        welch = se2**2 / (squares[0] ** 2 / (self.top - 1) + squares[1] ** 2 / (self.others - 1))
        dof = np.full(y.shape[1], least) if least < FEW_DOF else np.floor(welch)
        return np.asarray(2 * stats.t.sf(np.abs(groups[0].mean(axis=0) - groups[1].mean(axis=0)) / np.sqrt(se2), dof))

    @cached_property
    def _orders(self) -> tuple[Floats, bool]:
        return orders_of(self.unit, np.random.default_rng(0))

    def shuffle_p(self, y: Floats) -> Floats:
        """Return p by shuffling of `(n, simulations)` scores; where orders are drawn they are the same for all."""
        return _shuffle_p(y, *self._orders)


Planned = PlannedSlope | PlannedContrast


def nothing_shown(planned: Planned, alpha: float = 0.05) -> str | None:
    """Return why a design allows no claim whatever its effect is, or None."""
    least = planned.smallest_p if planned.refused is None else None
    if least is not None and least >= alpha:
        return f"{len(planned.unit)} datasets allow p ≥ {least:.2g} by shuffling"
    return planned.refused


class Simulation:
    """Simulated scores of a plan with standard normal noise, the same for every change that is asked about.

    Args:
        planned: the datasets.
        tests: how many effects are tested together by Holm; the others are simulated without an effect.
        alpha: two-sided error of the first kind.
        simulations: how many.
        seed: of the noise.
    """

    def __init__(self, planned: Planned, tests: int = 1, alpha: float = 0.05, simulations: int = SIMULATIONS, seed: int = 0) -> None:
        self.planned, self.alpha = planned, alpha
        generator = np.random.default_rng(seed)
        self.noise = generator.standard_normal((len(planned.unit), simulations))
        self.others = np.sort(generator.random((tests - 1, simulations)), axis=0)

    def power(self, change: float) -> float:
        """Return how often the whole rule claims a change, given in standard deviations of a dataset, and its right sign."""
        if nothing_shown(self.planned, self.alpha):
            return 0.0
        y = self.noise + change * self.planned.unit[:, None]
        found = _holm(self.planned.t_p(y), self.others) < self.alpha
        if not found.any():
            return 0.0
        found[found] = self.planned.shuffle_p(y[:, found]) < self.alpha
        return float(found.mean())

    def detectable(self, power: float = 0.8) -> float:
        """Return the smallest change, in standard deviations of a dataset, that is claimed with that probability; infinity if none is."""
        low, high = 0.0, 4.0
        if self.power(1e6) < power:
            return float("inf")
        while self.power(high) < power:
            low, high = high, 2 * high
        while high - low > 0.01 * high:
            middle = (low + high) / 2
            low, high = (low, middle) if self.power(middle) >= power else (middle, high)
        return high


def seeds_needed(change: float, levels: Sequence[float], own: bool = False, tests: int = 1, alpha: float = 0.05, power: float = 0.8) -> int:
    """Return how many subset seeds find a change given in standard deviations of a dataset.

    Raises:
        ValueError: the change is 0, `MOST_SEEDS` seeds are not enough, or no slope is taken of so few levels.
    """
    if change == 0:
        raise ValueError("a change of 0 is found by no number of seeds")
    if (few := len(set(levels))) < MIN_LEVELS:
        raise ValueError(f"a slope needs {MIN_LEVELS} different levels, there are {few}")

    def enough(seeds: int) -> bool:
        return Simulation(PlannedSlope.of(levels, seeds, own), tests, alpha, SIMULATIONS // 4).power(abs(change)) >= power

    high = 1
    while not enough(high):
        if (high := 2 * high) > MOST_SEEDS:
            raise ValueError(f"a change of {change:.3g} standard deviations needs more than {MOST_SEEDS} seeds")
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _holm(p: Floats, others: Floats) -> Floats:
    """Return Holm's p of one test beside sorted `(tests - 1, simulations)` p values of others: as `regression.holm` has it."""
    count = len(others) + 1
    before = (others < p).sum(axis=0)  # of those that come first in order
    factors = np.arange(count, 1, -1)[:, None]
    running = np.where(np.arange(len(others))[:, None] < before, others * factors, 0.0).max(axis=0, initial=0.0)
    return np.asarray(np.minimum(1.0, np.maximum(running, p * (count - before))))


def _shuffle_p(y: Floats, orders: Floats, exact: bool) -> Floats:
    found, step = [], max(1, BLOCK // len(orders))
    for start in range(0, y.shape[1], step):
        products = np.abs(orders @ y[:, start : start + step])
        extreme = (products[1:] >= products[0] * (1 - 1e-9)).sum(axis=0)
        found.append(extreme / (len(orders) - 1) if exact else (1 + extreme) / len(orders))
    return np.concatenate(found) if found else np.empty(0)


def what_can_not_be_shown(planned: Sequence[Row], primary: Sequence[PrimaryConfig] = (), alpha: float = 0.05) -> list[str]:
    """Return warnings of slopes and contrasts whose design allows no claim whatever their effect is: told before anything is trained.

    Contrasts are those that the verdict tells: with random datasets, and those that a plan names.

    Args:
        planned: rows of PLANNED_SCHEMA.
        primary: the plan's effects.
        alpha: two-sided error of the first kind.
    """
    arms_told: dict[str, list[str]] = {}
    for place, rows in grouped(planned, ("size",)):
        arms = {
            (arm["strategy"], arm["control"]): sorted({(row["level"], row["subset_seed"]) for row in found})
            for arm, found in grouped(rows, ("strategy", "control"))
        }
        flat = {arm: len(cells) for arm, cells in arms.items() if cells[0][0] is None}
        for (strategy, control), cells in arms.items():
            if (strategy, control) in flat:
                continue
            levels = np.array([level for level, _ in cells])
            designs: list[tuple[str, Planned]] = [("its slope", PlannedSlope(levels, np.array([seed for _, seed in cells], np.int64)))]
            for other in opponents(flat, control):
                if other[0] == "random" or PrimaryConfig(strategy=strategy, control=control, less=other[0]) in primary:
                    contrast = PlannedContrast(int((levels == levels.max()).sum()), flat[other])
                    designs.append((f"level {levels.max():.2g} less {arm_name(*other)}", contrast))
            head = f"{arm_name(strategy, control)}, {place['size']:,} samples"
            reasons = [(what, nothing_shown(design, alpha)) for what, design in designs]
            for what, reason in reasons:
                if reason:
                    arms_told.setdefault(f"{what} will be not known whatever the effect: {reason}", []).append(head)
    return [f"{'; '.join(heads)}: {told}" for told, heads in arms_told.items()]
