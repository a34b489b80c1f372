"""Two experiments in one picture for each arm that both have, e.g. the same grid on two base models; a page like the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from diversity.effects.comparing import ComparedArm, ComparedCells, Scored
from diversity.effects.schema import arm_name
from ray_jobs.report import svg
from ray_jobs.report.figures import Panel, figure, level_axis
from ray_jobs.report.findings import Table, count, signed, small
from ray_jobs.report.page import page_parts
from ray_jobs.report.score_plots import draw_series, limits_of, without_wide_errors
from ray_jobs.report.svg import CATEGORIES


def page(
    names: tuple[str, str], score: str, runs: tuple[Scored, Scored], arms: Sequence[ComparedArm], cells: ComparedCells, said: Sequence[str]
) -> str:
    """Return the page.

    Args:
        names: of the two experiments.
        score: what both are scored by.
        runs: their rows of that score.
        arms: of `compare_arms`.
        cells: of `compare_cells`.
        said: sentences about the cells.
    """
    labels = names if names[0] != names[1] else ("A", "B")
    rows = [_told(arm) for arm in arms]
    head = ("", "size", *labels, f"{labels[1]} − {labels[0]}", "95% interval", "p", "p, Holm")
    return page_parts("side_by_side.html.j2").render(
        names=labels,
        score=score,
        better="higher is better" if runs[0][0]["higher_is_better"] else "lower is better",
        panels=[_panel(arm, labels, runs) for arm in arms],
        legend=[(name, svg.VARIABLES[colour]) for name, colour in zip(labels, CATEGORIES, strict=False)],
        table=Table("Slopes", "", head, rows),
        said=said,
        cells=[(cell, f"{a:.5g}", f"{b:.5g}") for cell, a, b in cells.cells],
    )


def _panel(arm: ComparedArm, labels: tuple[str, str], runs: tuple[Scored, Scored]) -> Panel:
    titles: dict[str, list[str]] = {}
    wanted: dict[str, Any] = {"strategy": arm.strategy, "control": arm.control, "size": arm.size}
    mine = [[row for row in found if all(row[k] == v for k, v in wanted.items()) and row["level"] is not None] for found in runs]
    everything = without_wide_errors(
        [{**row, "strategy": label, "cell": f"{label}, {row['cell']}"} for label, found in zip(labels, mine, strict=True) for row in found]
    )

    predictor = "level" if any(row["coverage"] is None for row in everything) else "coverage"

    def draw(axes: Axes) -> None:
        for i, label in enumerate(labels):
            titles.update(draw_series(axes, [row for row in everything if row["strategy"] == label], CATEGORIES[i], f"of-{i}", predictor))
        axes.set_ylim(*limits_of(everything, predictor))
        if predictor == "level":
            level_axis(axes)
        else:
            axes.set_xlabel("measured coverage of its own types (%)")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_ylabel("score")

    title = f"{arm_name(arm.strategy, arm.control)}, {arm.size:,} samples"
    return Panel(title, figure(draw, f"both-{title}", f"Score against {predictor} for {title} in both experiments", titles))


def _told(arm: ComparedArm) -> list[str]:
    slopes = [f"{signed(slope.estimate, slope.se)} ± {slope.se:.2g}" for slope in (arm.first, arm.second)]
    tests = [small(p) if p == p else "" for p in (arm.difference.p, arm.p_holm)]
    difference = signed(arm.difference.estimate, arm.difference.se)
    return [arm_name(arm.strategy, arm.control), count(arm.size), *slopes, difference, _interval(arm), *tests]


def _interval(arm: ComparedArm) -> str:
    low, high = arm.difference.interval()
    return f"{signed(low, arm.difference.se)} to {signed(high, arm.difference.se)}" if low == low else ""
