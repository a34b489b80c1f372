"""What a score's part of the page holds: its panels, and its effects as tables of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diversity.effects.paper import paper_correlations
from diversity.effects.schema import SCORE, arm_name
from ray_jobs.report import arms, dose, score_plots
from ray_jobs.report.data import ReportData
from ray_jobs.report.figures import Panel
from ray_jobs.report.score_plots import Score

Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows of text under a heading; the first column is text, all others are numbers."""

    title: str
    told: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class ScoreSection:
    """One score's part of the page."""

    score: Score
    panels: list[Panel]
    by_level: list[Panel]
    arms: list[Panel]
    slopes: list[Row]
    tables: list[Table]
    correlations: list[Panel]
    correlation_datasets: int


def score_section(data: ReportData, score: Score) -> ScoreSection:
    """Return one score's panels and tables."""
    wanted = dict(zip(SCORE, (score.evaluator, score.split, score.metric), strict=True))
    rows = [row for row in data.effects.to_pylist() if all(row[name] == value for name, value in wanted.items())]
    slopes = [row for row in rows if row["kind"] == "slope" and row["predictor"] == "level" and row["method"] == "ols"]
    without = {_arm(row): row for row in slopes if row["subset"] == "without level 0"}
    by_level = score_plots.score_panels(data.cells, data.results, score, data.coverage)
    ends, fits = ({_arm(row): row for row in rows if row["kind"] == kind} for kind in ("ends", "fit"))
    return ScoreSection(
        score=score,
        panels=dose.dose_panels(data.cells, data.results, score, data.coverage),
        by_level=[panel for panel in by_level if not panel.remark],
        arms=arms.arm_panels(data.results, score),
        slopes=[
            {**row, "without": without.get(_arm(row)), "ends": ends.get(_arm(row)), "fit": fits.get(_arm(row))}
            for row in slopes
            if row["subset"] == "all"
        ],
        tables=[table for make in (_contrasts, _differences, _pooled, _partials, _spread) if (table := make(rows)).rows],
        correlations=score_plots.correlation_panels(data.effects, score, paper_correlations()),
        correlation_datasets=max((row["n"] for row in rows if row["kind"] == "correlation"), default=0),
    )


def signed(value: float, error: float | None) -> str:
    """Write a number with its sign, to the second digit of its standard error."""
    digits = 3 if not error or not np.isfinite(error) else max(0, 1 - int(np.floor(np.log10(error))))
    return f"{value:+.{digits}f}".replace("-", "−")


def small(p: float | None) -> str:
    """Write a p value."""
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def count(value: int | None) -> str:
    """Write a size; none means that sizes are pooled."""
    return "all" if value is None else f"{value:,}"


def _arm(row: Row) -> tuple[Any, ...]:
    return row["strategy"], row["size"], row["control"]


def _contrasts(rows: Sequence[Row]) -> Table:
    told = "Datasets at the highest level less those of a strategy without levels, by Welch's test; Holm over strategies."
    chosen = [row for row in rows if row["kind"] == "contrast"]
    return _effects("More diverse against the baselines", told, chosen, lambda row: f"{_name(row)} at {row['level']:.0%} − {row['other']}")


def _differences(rows: Sequence[Row]) -> Table:
    told = "Change of the score along a line from level 0 to 1 in one arm less that in another; Holm over the pairs."
    chosen = [row for row in rows if row["kind"] == "difference"]
    return _effects("Slopes against each other", told, chosen, lambda row: f"{_name(row)} − {row['other']}")


def _pooled(rows: Sequence[Row]) -> Table:
    told = (
        "Change of the score along a line from none to all of its own types covered: a slope for each subset seed, sizes with intercepts."
    )
    slopes = [row for row in rows if row["kind"] == "slope" and row["method"] == "ols"]
    chosen = [row for row in slopes if row["size"] is None and row["predictor"] == "coverage"]
    return _effects("All sizes together, on measured coverage", told, chosen, _name)


def _partials(rows: Sequence[Row]) -> Table:
    told = (
        "Over the datasets of all strategies: what the coverage of one typing does with the other coverages, the lengths of both sides (in "
        "doublings), the entropy of sources (in bits) and subset seeds held fixed. They go together, so intervals are wide. Exploratory."
    )
    chosen = [row for row in rows if row["kind"] == "partial"]
    return _effects("Each kind of diversity with the others held fixed", told, chosen, lambda row: row["predictor"].replace("_", " "))


def _effects(title: str, told: str, rows: Sequence[Row], name: Callable[[Row], str]) -> Table:
    lines = []
    for row in rows:
        if row["low"] is not None and row["subset"] in (None, "all"):
            interval = f"{signed(row['low'], row['se'])} to {signed(row['high'], row['se'])}"
            tests = [small(row[p]) for p in ("p", "p_permutation", "p_holm")]
            lines.append([name(row), count(row["size"]), str(row["n"]), signed(row["estimate"], row["se"]), interval, *tests])
    return Table(title, told, ("", "size", "datasets", "estimate", "95% interval", "p", "p, shuffled", "p, Holm"), lines)


def _spread(rows: Sequence[Row]) -> Table:
    groups: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        if row["kind"] == "spread":
            groups.setdefault(_arm(row), {})[row["method"]] = row
    slopes = [row for row in rows if row["kind"] == "slope" and row["predictor"] == "level" and row["subset"] == "all"]
    reached = {_arm(row): row for row in slopes if row["se_prompts"] is not None}
    lines = []
    for (strategy, size, control), found in groups.items():
        figures = [f"{found[name]['estimate']:.2g}" if name in found else "" for name in ("prompts", "training-seed", "subset-seed")]
        slope = reached.get((strategy, size, control))
        figures.append("" if slope is None else f"{slope['se_prompts']:.2g} of {slope['se']:.2g}")
        first = next(iter(found.values()))
        lines.append([arm_name(strategy, control), count(size), str(first["n"]), str(first["runs"]), *figures])
    told = (
        "Within a run: its standard error over the samples of the split. Between: standard deviation of runs on one dataset, and of "
        "datasets of one level, where an effect's error comes from. Last: how much of the error over prompts reaches the slope, as part of "
        "its standard error: what all runs have in common on a prompt drops out."
    )
    return Table(
        "How far runs scatter",
        told,
        ("", "size", "datasets", "runs", "within", "training seeds", "datasets of a level", "prompts, in the slope"),
        lines,
    )


def _name(row: Row) -> str:
    return arm_name(row["strategy"], row["control"])
