"""Arms of one strategy over each other: its controls, and its units.

They show what is left of a slope when length is held fixed, or when words are counted in place of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from diversity.effects.schema import MIN_LEVELS, arm_name
from ray_jobs.report import svg
from ray_jobs.report.figures import Panel, Row, figure
from ray_jobs.report.score_plots import Score, draw_series, limits_of, score_rows, without_wide_errors
from ray_jobs.report.svg import CATEGORIES

Arm = tuple[str, str]


def arm_panels(results: pa.Table, score: Score) -> list[Panel]:
    """Return score against coverage for every strategy and size with two arms or more, one colour an arm, as the paper's Fig. 6.

    Args:
        results: rows of RESULTS_SCHEMA.
        score: which score.
    """
    rows = [row for row in without_wide_errors(score_rows(results, score)) if row["level"] is not None and row["coverage"] is not None]
    groups: dict[tuple[str, int], dict[Arm, list[Row]]] = {}
    for row in rows:
        base = row["strategy"].partition("@")[0]
        groups.setdefault((base, row["size"]), {}).setdefault((row["strategy"], row["control"]), []).append(row)
    panels = []
    for (base, size), arms in groups.items():
        enough = {arm: found for arm, found in arms.items() if len({row["level"] for row in found}) >= MIN_LEVELS}
        if len(enough) > 1:
            panels.append(_panel(base, size, dict(list(enough.items())[: len(CATEGORIES)]), score))
    return panels


def _panel(base: str, size: int, arms: dict[Arm, list[Row]], score: Score) -> Panel:
    colours = dict(zip(arms, CATEGORIES, strict=False))
    titles: dict[str, list[str]] = {}
    everything: Sequence[Row] = [row for found in arms.values() for row in found]

    def draw(axes: Axes) -> None:
        for i, (arm, found) in enumerate(arms.items()):
            titles.update(draw_series(axes, found, colours[arm], f"arm-{i}", "coverage"))
        axes.set_ylim(*limits_of(everything, "coverage"))
        axes.set_xlabel("measured coverage of its own types (%)")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_ylabel(score.label)

    name = f"{base}, {size:,} samples"
    label = f"{score.label} against coverage for the arms of {name}"
    picture = figure(draw, f"arms-{score.evaluator}-{score.metric}-{score.split}-{base}-{size}", label, titles)
    legend = [(arm_name(*arm), svg.VARIABLES[colour]) for arm, colour in colours.items()]
    return Panel(name, picture, legend=legend)
