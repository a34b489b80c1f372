"""Two experiments side by side: the cells that both have, and the slopes of the arms that both have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diversity.effects.regression import Slope, holm, ols, slope_difference
from diversity.effects.schema import MIN_LEVELS, SCORE, Row, grouped, single_runs

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
        difference: second less first, with Welch's degrees of freedom.
        p_holm: of the difference, over all arms.
    """

    strategy: str
    control: str
    size: int
    first: Slope
    second: Slope
    difference: Slope
    p_holm: float


@dataclass(frozen=True)
class ComparedCells:
    """The scores of the cells that two experiments share.

    Attributes:
        cells: `(cell, mean of the first, mean of the second)`, means over training seeds.
        difference: the mean of second less first, over cells, as a slope is told; None for fewer than 2 cells.
        correlation: of the two experiments' scores over cells; NaN where one of them does not vary.
    """

    cells: list[tuple[str, float, float]]
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
    """Return the scores of shared cells, and their mean difference: cells are pairs, so what cells have in common drops out.

    Args:
        first: rows of one score.
        second: rows of the same score in the other experiment.
    """
    means = [
        {k["cell"]: float(np.mean([row["value"] for row in rows])) for k, rows in grouped(found, ("cell",))} for found in (first, second)
    ]
    cells = [(cell, value, means[1][cell]) for cell, value in means[0].items() if cell in means[1]]
    if len(cells) < 2:
        return ComparedCells(cells, None, float("nan"))
    a, b = np.array([x for _, x, _ in cells]), np.array([y for _, _, y in cells])
    sd = float((b - a).std(ddof=1))
    mean = float((b - a).mean())
    varies = min(a.std(), b.std()) > 1e-12 * max(1.0, float(np.abs(a).max()))
    correlation = float(np.corrcoef(a, b)[0, 1]) if varies and len(cells) > 2 else float("nan")
    return ComparedCells(cells, Slope(mean, sd / float(np.sqrt(len(cells))), len(cells) - 1, len(cells), sd, mean), correlation)


def _means(rows: Scored) -> dict[str, float]:
    return {key["cell"]: float(np.mean([row["value"] for row in found])) for key, found in grouped(rows, ("cell",))}


def compare_arms(first: Scored, second: Scored) -> list[ComparedArm]:
    """Return the slopes of the arms that both experiments have at least 3 levels of, and their differences.

    Args:
        first: rows of one score.
        second: rows of the same score in the other experiment.
    """
    slopes = [_slopes(rows) for rows in (first, second)]
    shared = [arm for arm in slopes[0] if arm in slopes[1]]
    differences = [slope_difference(slopes[1][arm], slopes[0][arm]) for arm in shared]
    adjusted = holm([difference.p for difference in differences])
    return [
        ComparedArm(*arm, slopes[0][arm], slopes[1][arm], difference, p)
        for arm, difference, p in zip(shared, differences, adjusted, strict=True)
    ]


def _slopes(rows: Scored) -> dict[tuple[str, str, int], Slope]:
    found = {}
    for key, group in grouped([row for row in rows if row["level"] is not None], ("strategy", "control", "size")):
        runs = single_runs(group)
        if len({row["level"] for row in runs}) >= MIN_LEVELS:
            blocks = [row["subset_seed"] for row in runs]
            line = ols([row["level"] for row in runs], [row["value"] for row in runs], blocks)
            found[key["strategy"], key["control"], key["size"]] = line
    return found
