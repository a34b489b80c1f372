"""Dose and response: score against measured coverage, what levels have on average, a line, and the best fit that only rises or only falls.

Coverage is what a dataset really holds of the types that its strategy dials, so `random` and its like stand on the same axis, where a
nominal level gives them no place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from diversity.config import UserError
from diversity.effects.partial import pooled_sd
from diversity.effects.schema import MIN_LEVELS, arm_name, grouped
from diversity.effects.units import datasets
from ray_jobs.report import svg
from ray_jobs.report.figures import Panel, Row, figure, flat_rows, own_coverage, panel_keys, panel_title, size_colours
from ray_jobs.report.plots import coverage_panel
from ray_jobs.report.score_plots import Score, score_rows
from ray_jobs.report.svg import INK, MUTED, SETTINGS, SURFACE

MANY = 150  # datasets of one size in one panel: beyond, only the means of levels are drawn
PICTURE = (420, 380)  # points of one arm in a picture that stands alone


def dose_panels(cells: pa.Table, results: pa.Table, score: Score, coverage: pa.Table) -> list[Panel]:
    """Return score against measured coverage for each strategy and control; coverage against level where runs are missing.

    Args:
        cells: one row for each cell: cell, strategy, size, level, control.
        results: rows of RESULTS_SCHEMA.
        score: which score.
        coverage: cell, typing, coverage.
    """
    grid, scored = cells.to_pylist(), score_rows(results, score)
    colours, own = size_colours(row["size"] for row in grid), own_coverage(grid, coverage)
    limits = _limits(scored)
    prefix = f"dose-{score.evaluator}-{score.metric}-{score.split}"
    panels = []
    for strategy, control in panel_keys(grid):
        name = panel_title(strategy, control)
        mine = _of_arm(scored, strategy, control)
        trained = _levels(mine)
        if trained < MIN_LEVELS:
            levels = len({row["level"] for row in grid if (row["strategy"], row["control"]) == (strategy, control)})
            remark = "not trained" if not trained else f"{trained} of {levels} levels trained: too few for a line"
            panels.append(Panel(name, coverage_panel(grid, own, strategy, control, colours, remark, identity=prefix), remark))
            continue
        flat = _placed(flat_rows(scored, control), coverage, strategy)
        label = f"{score.label} against measured coverage for {name}"
        panels.append(Panel(name, _panel(f"{prefix}-{name}", label, score.label, mine, flat, colours, limits)))
    return panels


def picture(cells: pa.Table, results: pa.Table, score: Score, coverage: pa.Table, title: str) -> str:
    """Return the panels of what was trained at enough levels, side by side, as an SVG that stands alone.

    Args:
        cells: one row for each cell: cell, strategy, size, level, control.
        results: rows of RESULTS_SCHEMA.
        score: which score.
        coverage: cell, typing, coverage.
        title: what stands above.

    Raises:
        UserError: no arm was trained at enough levels.
    """
    grid, scored = cells.to_pylist(), score_rows(results, score)
    arms = [(key, _of_arm(scored, *key)) for key in panel_keys(grid)]
    arms = [(key, rows) for key, rows in arms if _levels(rows) >= MIN_LEVELS]
    if not arms:
        raise UserError(f"no picture: a line takes {MIN_LEVELS} levels of one strategy, trained and scored")
    colours, limits = size_colours(row["size"] for row in grid), _limits(scored)
    width, height = PICTURE[0] * len(arms), PICTURE[1]
    titles: dict[str, list[str]] = {}
    with rc_context(SETTINGS):  # type: ignore[arg-type]
        canvas = Figure(figsize=(width / 72, height / 72), facecolor=SURFACE)
        canvas.subplots_adjust(left=58 / width, right=1 - 14 / width, bottom=44 / height, top=1 - 88 / height, wspace=0.12)
        places = canvas.subplots(1, len(arms), sharex=True, sharey=True, squeeze=False).flat
        for axes, ((strategy, control), rows) in zip(places, arms, strict=True):
            flat = _placed(flat_rows(scored, control), coverage, strategy)
            titles |= _draw_panel(axes, rows, flat, colours, limits, prefix=f"{panel_title(strategy, control)}-", beside=control)
            axes.set_title(panel_title(strategy, control))
        canvas.axes[0].set_ylabel(f"{score.label} ({score.direction})")
        canvas.text(58 / width, 1 - 24 / height, title, fontsize=13, fontweight="bold", color=INK)
        told = "small: datasets; large: means of levels; diamonds: random; bars: 95% intervals; dotted: best fit that only rises or falls"
        canvas.text(58 / width, 1 - 44 / height, told, fontsize=9, color=MUTED)
        return svg.render(canvas, "dose", f"{score.label} against measured coverage", titles, svg.Theme(svg.LIGHT))


def length_beside(cells: pa.Table, coverage: pa.Table) -> list[Panel]:
    """Return mean tokens of a response against measured coverage, for the same panels: what else moves along.

    Args:
        cells: one row for each cell, with coverage and response_length.
        coverage: cell, typing, coverage.
    """
    grid = [{**row, "value": row["response_length"]} for row in cells.to_pylist() if row["response_length"] is not None]
    colours = size_colours(row["size"] for row in grid)
    top = 1.08 * max((row["value"] for row in grid), default=1.0)
    panels = []
    for strategy, control in panel_keys(grid):
        mine = [row for row in grid if (row["strategy"], row["control"]) == (strategy, control) and row["level"] is not None]
        mine = [{**row, "run": row["cell"], "se": None} for row in mine if row["coverage"] is not None]
        flat = [{**row, "run": row["cell"], "se": None} for row in _placed(flat_rows(grid, control), coverage, strategy)]
        if mine:
            name, told = panel_title(strategy, control), "tokens a response"
            label = f"{told} against measured coverage for {name}"
            panels.append(Panel(name, _panel(f"dose-length-{name}", label, told, mine, flat, colours, (0, top))))
    return panels


def isotonic(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return places and values of the least-squares fit that only rises, or only falls, whichever leaves less.

    Args:
        x: `(n,)`; points of one x have one fitted value.
        y: `(n,)`.
    """
    from scipy.optimize import isotonic_regression

    places, where, counts = np.unique(np.asarray(x, float), return_inverse=True, return_counts=True)
    means = np.bincount(where.ravel(), weights=np.asarray(y, float)) / counts
    fits = [isotonic_regression(means, weights=counts.astype(float), increasing=rising).x for rising in (True, False)]
    return places, min(fits, key=lambda fit: float(np.sum(counts * (fit - means) ** 2)))


def level_means(units: Sequence[Row]) -> list[tuple[float, float, float, float, int]]:
    """Return (level, mean coverage, mean score, half of its 95% interval, datasets) of each level.

    The interval takes the standard deviation that datasets of one level have in common; it is 0 where no level has two.
    """
    from scipy import stats

    groups = sorted(grouped(units, ("level",)), key=lambda item: item[0]["level"])
    sd, dof = pooled_sd([[unit["value"] for unit in group] for _, group in groups])
    found = []
    for key, group in groups:
        half = float(stats.t.ppf(0.975, dof) * sd / np.sqrt(len(group))) if dof else 0.0
        place, mean = (float(np.mean([unit[name] for unit in group])) for name in ("coverage", "value"))
        found.append((key["level"], place, mean, half, len(group)))
    return found


def _placed(rows: Sequence[Row], coverage: pa.Table, typing: str) -> list[Row]:
    """Return rows of what has no level, at their coverage of a typing; those that it wasn't measured on are left out."""
    known = {row["cell"]: row["coverage"] for row in coverage.to_pylist() if row["typing"] == typing} if rows else {}
    return [{**row, "coverage": known[row["cell"]]} for row in rows if row["cell"] in known]


def _panel(
    identity: str,
    label: str,
    axis: str,
    rows: Sequence[Row],
    flat: Sequence[Row],
    colours: Mapping[int, str],
    limits: tuple[float, float],
) -> str:
    titles: dict[str, list[str]] = {}

    def draw(axes: Axes) -> None:
        titles.update(_draw_panel(axes, rows, flat, colours, limits))
        axes.set_ylabel(axis)

    return figure(draw, identity, label, titles)


def _draw_panel(
    axes: Axes,
    rows: Sequence[Row],
    flat: Sequence[Row],
    colours: Mapping[int, str],
    limits: tuple[float, float],
    prefix: str = "",
    beside: str | None = None,
) -> dict[str, list[str]]:
    """Draw an arm and what has no level beside it, each size in its colour; return hover titles.

    Args:
        axes: a panel's.
        rows: of the arm.
        flat: of what has no level, with its coverage.
        colours: of sizes.
        limits: of y.
        prefix: of every gid, where several panels are one picture.
        beside: the panel's control: what has no level is named, with a word where it isn't under that control; None names nothing.
    """
    titles: dict[str, list[str]] = {}
    for size, colour in colours.items():
        units = datasets(row for row in rows if row["size"] == size and row["coverage"] is not None)
        if units:
            titles |= _draw_arm(axes, units, colour, f"{prefix}{size}")
        titles |= _draw_flat(axes, [row for row in flat if row["size"] == size], colour, f"{prefix}{size}", beside)
    axes.set_ylim(*limits)
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(5, min_n_ticks=3))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("measured coverage of its own types (%)")
    return titles


def _draw_arm(axes: Axes, units: Sequence[Row], colour: str, identity: str) -> dict[str, list[str]]:
    """Draw datasets, means of levels with intervals, line and isotonic fit; return hover titles."""
    x, y = np.array([100 * unit["coverage"] for unit in units]), np.array([unit["value"] for unit in units])
    titles = {}
    if len(np.unique(x)) >= MIN_LEVELS:
        ends = np.array([x.min(), x.max()])
        slope = float(np.cov(x, y)[0, 1] / x.var(ddof=1))
        axes.plot(ends, y.mean() + slope * (ends - x.mean()), color=colour, linewidth=1.6, solid_capstyle="round")
        means = level_means(units)
        places, fitted = isotonic([100 * place for _, place, *_ in means], [mean for _, _, mean, *_ in means])
        axes.plot(places, fitted, color=colour, linewidth=1, linestyle=(0, (1, 1.5)))
        where, at, half = ([mean[i] for mean in means] for i in (1, 2, 3))
        axes.errorbar([100 * w for w in where], at, yerr=half, fmt="none", ecolor=colour, elinewidth=1.1, capsize=2)
        axes.scatter([100 * w for w in where], at, s=24, color=colour, linewidths=0, zorder=3, gid=f"means-{identity}")
        titles[f"means-{identity}"] = [
            f"level {level:.0%}, {n} datasets of {units[0]['size']:,}: {mean:.4g} ± {half:.2g}, coverage {place:.1%}"
            for level, place, mean, half, n in means
        ]
    if len(units) <= MANY:
        axes.scatter(x, y, s=10, color=colour, alpha=0.45, linewidths=0, gid=f"points-{identity}")
        titles[f"points-{identity}"] = [_hover(unit) for unit in units]
    return titles


def _draw_flat(axes: Axes, rows: Sequence[Row], colour: str, identity: str, beside: str | None) -> dict[str, list[str]]:
    """Draw what has no level, at its own coverage: hollow diamonds, the mean with its interval."""
    titles = {}
    for key, group in grouped(rows, ("strategy", "control")):
        units = datasets(group)
        ((_, place, mean, half, n),) = level_means([{**unit, "level": 0.0} for unit in units])
        gid = f"flat-{key['strategy']}-{identity}"
        axes.errorbar([100 * place], [mean], yerr=[half], fmt="none", ecolor=colour, elinewidth=1.1, capsize=2)
        axes.scatter([100 * place], [mean], s=34, marker="D", facecolors=SURFACE, edgecolors=colour, linewidths=1.2, zorder=4, gid=gid)
        if beside is not None:
            shown = key["strategy"] if key["control"] == beside else f"{key['strategy']} (without {beside})"
            axes.annotate(shown, (100 * place, mean), xytext=(8, 6), textcoords="offset points", fontsize=9, color=MUTED)
        name = arm_name(key["strategy"], key["control"])
        over = f"{n} {'dataset' if n == 1 else 'datasets'} of {units[0]['size']:,}"
        titles[gid] = [f"{name}: {mean:.4g} ± {half:.2g} over {over}, coverage {place:.1%}"]
    return titles


def _hover(unit: Row) -> str:
    runs = f" over {len(unit['runs'])} runs" if len(unit["runs"]) > 1 else ""
    return f"{unit['cell']}: {unit['value']:.4g}{runs}, coverage {unit['coverage']:.1%}"


def _of_arm(scored: Sequence[Row], strategy: str, control: str) -> list[Row]:
    return [row for row in scored if (row["strategy"], row["control"]) == (strategy, control) and row["level"] is not None]


def _levels(rows: Sequence[Row]) -> int:
    """Return how many levels of an arm have a place on the axis."""
    return len({row["level"] for row in rows if row["coverage"] is not None})


def _limits(scored: Sequence[Row]) -> tuple[float, float]:
    """Return limits of y that hold every dataset, common to all panels so that they compare."""
    values = [unit["value"] for _, group in grouped(scored, ("strategy", "control")) for unit in datasets(group)]
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    margin = 0.1 * (high - low) or abs(high) * 0.05 or 1.0
    return low - margin, high + margin
