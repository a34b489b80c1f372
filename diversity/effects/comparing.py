"""Two experiments side by side: the datasets that both have, and the slopes of the arms that both have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diversity.effects.regression import Slope, holm, mean_of, ols, slope_difference
from diversity.effects.schema import MIN_LEVELS, SCORE, Row, grouped
from diversity.effects.slopes import chosen, columns_of
from diversity.effects.units import Kind, datasets, design_of, line_through, seed_labels

Scored = Sequence[Row]


@dataclass(frozen=True)
class ComparedArm:
    """The slope of one arm on level in two experiments.

    Attributes:
        strategy: its strategy.
        control: its control.
        size: samples.
        first: the slope in the first experiment.
        second: in the second.
        difference: second less first.
        paired: whether both have the same subset seeds, so that the difference is taken seed by seed.
        p_holm: of the difference, over all arms.
    """

    strategy: str
    control: str
    size: int
    first: Slope
    second: Slope
    difference: Slope
    paired: bool
    p_holm: float


@dataclass(frozen=True)
class ComparedCells:
    """The scores of the datasets that two experiments share.

    Attributes:
        cells: `(cell, mean of the first, mean of the second)`; cells of one dataset are one, under the first of their names.
        seeds: sets of subset seeds whose datasets are drawn apart: what the error is taken over.
        difference: the mean of second less first, as a slope is told; None for fewer than 2 such sets.
        correlation: of the two experiments' scores over datasets; NaN where one of them does not vary.
    """

    cells: list[tuple[str, float, float]]
    seeds: int
    difference: Slope | None
    correlation: float


def common_scores(first: Scored, second: Scored) -> list[tuple[str, ...]]:
    """Return (evaluator, split, metric) of the scores that both have, primary ones first."""
    theirs = {tuple(row[name] for name in SCORE) for row in second}
    mine = {tuple(row[name] for name in SCORE): row["primary"] for row in first}
    return sorted((score for score in mine if score in theirs), key=lambda score: (not mine[score], score))


def of_score(rows: Scored, score: Sequence[str]) -> list[Row]:
    """Return the rows of one score."""
    return [row for row in rows if tuple(row[name] for name in SCORE) == tuple(score)]


def compare_cells(first: Scored, second: Scored) -> ComparedCells:
    """Return the scores of shared datasets, and their mean difference: they are pairs, so what a dataset does in both drops out.

    Datasets of one subset seed share samples, so what is independent are seeds: the differences are averaged within each, and the error is
    that of the means. Cells that hold the same samples are one dataset in both.

    Args:
        first: rows of one score.
        second: rows of the same score in the other experiment.
    """
    shared = {row["cell"] for row in first} & {row["cell"] for row in second}
    units = [sorted(datasets(row for row in rows if row["cell"] in shared), key=lambda unit: unit["cell"]) for rows in (first, second)]
    values = {unit["cell"]: unit["value"] for unit in units[1]}
    pairs = [unit for unit in units[0] if unit["cell"] in values]
    cells = [(unit["cell"], unit["value"], values[unit["cell"]]) for unit in pairs]
    labels = seed_labels(pairs)
    seeds = len(np.unique(labels))
    if len(cells) < 2:
        return ComparedCells(cells, seeds, None, float("nan"))
    a, b = np.array([x for _, x, _ in cells]), np.array([y for _, _, y in cells])
    varies = min(a.std(), b.std()) > 1e-12 * max(1e-300, float(np.abs(a).max()))
    correlation = float(np.corrcoef(a, b)[0, 1]) if varies and len(cells) > 2 else float("nan")
    means = [float((b - a)[labels == label].mean()) for label in np.unique(labels)]
    return ComparedCells(cells, seeds, mean_of(means) if seeds > 1 else None, correlation)


def compare_arms(first: Scored, second: Scored) -> list[ComparedArm]:
    """Return the slopes of the arms that both experiments have at least 3 levels of, and their differences.

    Where both have the same subset seeds, the same samples stand behind both slopes: the difference is taken seed by seed. Elsewhere it
    has Welch's interval.

    Args:
        first: rows of one score.
        second: rows of the same score in the other experiment.
    """
    slopes = [_slopes(rows) for rows in (first, second)]
    shared = [arm for arm in slopes[0] if arm in slopes[1]]
    differences = [_difference(slopes[0][arm], slopes[1][arm]) for arm in shared]
    adjusted = holm([difference.p for difference, _ in differences])
    return [
        ComparedArm(*arm, slopes[0][arm].line, slopes[1][arm].line, difference, paired, p)
        for arm, (difference, paired), p in zip(shared, differences, adjusted, strict=True)
    ]


@dataclass(frozen=True)
class _Arm:
    """An arm's slope, the design that its error rests on, and the slope of each set of seeds."""

    line: Slope
    kind: Kind
    by_seeds: dict[tuple[int, ...], float]


def _difference(first: _Arm, second: _Arm) -> tuple[Slope, bool]:
    if first.kind == second.kind == "a slope a subset seed" and first.by_seeds.keys() == second.by_seeds.keys():
        return mean_of([second.by_seeds[seeds] - first.by_seeds[seeds] for seeds in sorted(first.by_seeds)]), True
    return slope_difference(second.line, first.line), False


def _slopes(rows: Scored) -> dict[tuple[str, str, int], _Arm]:
    found = {}
    for key, group in grouped([row for row in rows if row["level"] is not None], ("strategy", "control", "size")):
        units = chosen(group, "level", "all")
        x, y = columns_of(units, "level")
        if len(np.unique(x)) >= MIN_LEVELS:
            labels = seed_labels(units)
            design = design_of(x, labels)
            by_seeds = {}
            for label in np.unique(labels[design.used]):
                mine = np.flatnonzero(labels == label)
                if len(np.unique(x[mine])) > 1:
                    seeds = tuple(sorted({seed for i in mine for seed in units[i]["seeds"]}))
                    by_seeds[seeds] = ols(x[mine], y[mine]).estimate
            found[key["strategy"], key["control"], key["size"]] = _Arm(line_through(x, y, design), design.kind, by_seeds)
    return found
