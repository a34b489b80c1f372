"""Pictures of scores: against diversity with ridge line and band, and the correlations of posterior metrics with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from diversity.effects import bayesian_ridge
from diversity.effects.schema import MIN_LEVELS, finite_error
from ray_jobs.report.figures import Panel, Row, figure, flat_rows, level_axis, own_coverage, panel_keys, panel_title, size_colours
from ray_jobs.report.plots import coverage_panel
from ray_jobs.report.svg import MUTED, SERIES

MANY_POINTS = 70  # of one size in one panel


@dataclass(frozen=True)
class Score:
    """Which score: one evaluator's figure on one split."""

    evaluator: str
    split: str
    metric: str
    higher_is_better: bool
    primary: bool

    @property
    def label(self) -> str:
        """Return what an axis says."""
        return f"{self.metric}, {self.split}"

    @property
    def direction(self) -> str:
        """Return which way is better."""
        return "higher is better" if self.higher_is_better else "lower is better"


def scores(results: pa.Table) -> list[Score]:
    """Return every score of the results, the primary one first."""
    names = ("evaluator", "split", "metric", "higher_is_better", "primary")
    rows = [row for row in results.select(names).to_pylist() if row["evaluator"] is not None]
    found = dict.fromkeys(Score(**{name: row[name] for name in names}) for row in rows)
    return sorted(found, key=lambda score: not score.primary)


def score_rows(results: pa.Table, score: Score) -> list[Row]:
    """Return the rows of one score that are finite, with None for a standard error that is not."""
    return [
        finite_error(row)
        for row in results.to_pylist()
        if (row["evaluator"], row["split"], row["metric"]) == (score.evaluator, score.split, score.metric)
        and row["value"] is not None
        and np.isfinite(row["value"])
    ]


def score_panels(cells: pa.Table, results: pa.Table, score: Score, coverage: pa.Table, predictor: str = "level") -> list[Panel]:
    """Return score against diversity with ridge line and 1-sigma band, as the paper's Fig. 3 and 4; coverage where runs are missing.

    Args:
        cells: one row for each cell: cell, strategy, size, level, control.
        results: rows of RESULTS_SCHEMA.
        score: which score.
        coverage: cell, typing, coverage.
        predictor: `level`, or `coverage` of the strategy's own typing.
    """
    grid, scored = cells.to_pylist(), score_rows(results, score)
    colours = size_colours(row["size"] for row in grid)
    rows = without_wide_errors(scored)
    limits = limits_of(rows, predictor)
    own = own_coverage(grid, coverage)
    prefix = f"{score.evaluator}-{score.metric}-{score.split}-{predictor}"
    panels = []
    for strategy, control in panel_keys(grid):
        mine = [row for row in rows if (row["strategy"], row["control"]) == (strategy, control) and row["level"] is not None]
        name = panel_title(strategy, control)
        if len({row["level"] for row in mine}) < MIN_LEVELS:
            levels = len({row["level"] for row in grid if (row["strategy"], row["control"]) == (strategy, control)})
            trained = len({row["level"] for row in mine})
            remark = "not trained" if not trained else f"{trained} of {levels} levels trained: too few for a line"
            panels.append(Panel(name, coverage_panel(grid, own, strategy, control, colours, remark, identity=prefix), remark))
            continue
        panels.append(Panel(name, _score_panel(prefix, name, score, mine, flat_rows(scored, control), colours, limits, predictor)))
    return panels


def correlation_panels(effects: pa.Table, score: Score, published: pa.Table) -> list[Panel]:
    """Return the correlation of posterior metrics with a score, one panel a side, the paper's published values beside them."""
    wanted = {"kind": "correlation", "method": "pearson", "evaluator": score.evaluator, "split": score.split, "metric": score.metric}
    rows = [row for row in effects.to_pylist() if row["estimate"] is not None and all(row[k] == v for k, v in wanted.items())]
    sizes = {row["size"] for row in rows}
    over = None if None in sizes else next(iter(sizes), None)
    rows = [row for row in rows if row["size"] == over and row["variant"] in ("pooled", "per-sample")]
    theirs = {(row["side"], row["metric"]): row["correlation"] for row in published.to_pylist()}
    panels = []
    for side in ("instruction", "response"):
        mine = [row for row in rows if row["side"] == side]
        first = {row["predictor"]: row["variant"] for row in reversed(mine)}
        mine = [row for row in mine if row["variant"] == first[row["predictor"]]]
        if mine:
            panels.append(Panel(side, _correlation_panel(f"{score.evaluator}-{score.metric}-{score.split}", side, mine, theirs)))
    return panels


def draw_scores(
    axes: Axes,
    rows: Sequence[Row],
    baselines: Sequence[Row],
    colours: dict[int, str],
    predictor: str = "level",
    center: bool = True,
) -> dict[str, list[str]]:
    """Draw points, ridge line and band of each size, and the bands of what has no level; return the hover titles by gid."""
    titles = {}
    for size, colour in colours.items():
        for row_group in _baseline_groups(baselines, size):
            middle, half, name = row_group
            axes.axhspan(middle - half, middle + half, color=colour, alpha=0.1, linewidth=0)
            axes.axhline(middle, color=colour, linewidth=1, linestyle=(0, (4, 3)), gid=f"base-{name}-{size}")
            titles[f"base-{name}-{size}"] = [f"{name}, {size:,}: {middle:.4g} ± {half:.2g}"]
        mine = [row for row in rows if row["size"] == size and row[predictor] is not None]
        if mine:
            titles |= draw_series(axes, mine, colour, f"points-{size}", predictor, center)
    return titles


def draw_series(
    axes: Axes, rows: Sequence[Row], colour: str, gid: str, predictor: str = "level", center: bool = True
) -> dict[str, list[str]]:
    """Draw the points of one arm at one size with ridge line and band; return the hover titles by gid."""
    x, y = np.array([100 * row[predictor] for row in rows]), np.array([row["value"] for row in rows])
    if len(np.unique(x)) >= MIN_LEVELS:
        at = np.linspace(0, 100, 51) if predictor == "level" else np.linspace(x.min(), x.max(), 51)
        mean, sd = bayesian_ridge(x, y, center=center).predict(at)
        axes.fill_between(at, mean - sd, mean + sd, color=colour, alpha=0.16, linewidth=0)
        axes.plot(at, mean, color=colour, linewidth=1.8, solid_capstyle="round")
    shown = thinned(rows, predictor)
    at_x, at_y = [100 * row[predictor] for row in shown], [row["value"] for row in shown]
    if any(row["se"] for row in shown):
        axes.errorbar(at_x, at_y, yerr=[row["se"] or 0 for row in shown], fmt="none", ecolor=colour, elinewidth=0.9)
    axes.scatter(at_x, at_y, s=22, color=colour, linewidths=0, zorder=3, gid=gid)
    return {gid: [row["hover"] if "hover" in row else _hover(row) for row in shown]}


def thinned(rows: Sequence[Row], predictor: str) -> list[Row]:
    """Return the rows, or where they are too many to be told apart the mean of each level, ± the standard deviation between its runs."""
    if len(rows) <= MANY_POINTS:
        return list(rows)
    levels: dict[float, list[Row]] = {}
    for row in rows:
        levels.setdefault(row["level"], []).append(row)
    means = []
    for level, group in sorted(levels.items()):
        values, place = np.array([row["value"] for row in group]), float(np.mean([row[predictor] for row in group]))
        sd = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        told = f"{len(group)} runs at level {level:.0%}, e.g. {group[0]['cell']}: {values.mean():.4g}, standard deviation {sd:.2g}"
        means.append({**group[0], predictor: place, "value": float(values.mean()), "se": sd, "hover": told})
    return means


def without_wide_errors(rows: Sequence[Row]) -> list[Row]:
    """Return rows to draw: where an error over samples is wider than all runs lie apart, none is drawn, only told.

    Runs that answer the same samples share most of that error, and bars of it would hide what lies between the runs.
    """
    values = [row["value"] for row in rows]
    if max((row["se"] or 0 for row in rows), default=0) <= max(values, default=0) - min(values, default=0):
        return list(rows)
    return [{**row, "hover": _hover(row), "se": None} for row in rows]


def _hover(row: Row) -> str:
    error = f" ± {row['se']:.2g}" if row["se"] else ""
    return f"{row['cell']}: {row['value']:.4g}{error}"


def _baseline_groups(baselines: Sequence[Row], size: int) -> list[tuple[float, float, str]]:
    """Return (mean, standard error, strategy) of each strategy without a level at a size: over runs, or of the one run."""
    groups = []
    for strategy in dict.fromkeys(row["strategy"] for row in baselines):
        mine = [row for row in baselines if row["strategy"] == strategy and row["size"] == size]
        values = np.array([row["value"] for row in mine])
        if len(values):
            half = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else mine[0]["se"] or 0.0
            groups.append((float(values.mean()), float(half), strategy))
    return groups


def _score_panel(
    prefix: str,
    name: str,
    score: Score,
    rows: Sequence[Row],
    baselines: Sequence[Row],
    colours: dict[int, str],
    limits: tuple[float, float],
    predictor: str,
) -> str:
    titles: dict[str, list[str]] = {}

    def draw(axes: Axes) -> None:
        titles.update(draw_scores(axes, rows, baselines, colours, predictor))
        axes.set_ylim(*limits)
        if predictor == "level":
            level_axis(axes)
        else:
            axes.set_xlabel("measured coverage of its own types (%)")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_ylabel(score.label)

    return figure(draw, f"{prefix}-{name}", f"{score.label} against {predictor} for {name}", titles)


def _correlation_panel(identity: str, side: str, rows: Sequence[Row], theirs: dict[tuple[str, str], float]) -> str:
    names = list(dict.fromkeys(row["predictor"] for row in rows))
    place = {name: -i for i, name in enumerate(names)}
    titles: dict[str, list[str]] = {}

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=MUTED, linewidth=0.8)
        for given, colour, shift, size in (("mean_length", SERIES[0], -0.22, 16), ("", SERIES[2], 0.0, 26)):
            mine = [row for row in rows if row["given"] == given]
            y = [place[row["predictor"]] + shift for row in mine]
            low, high = ([np.nan if row[end] is None else row[end] for row in mine] for end in ("low", "high"))
            axes.hlines(y, low, high, color=colour, linewidth=1.4)
            axes.scatter([row["estimate"] for row in mine], y, s=size, color=colour, linewidths=0, zorder=3, gid=f"ours-{given}")
            held = ", length held fixed" if given else ""
            titles[f"ours-{given}"] = [
                f"{row['predictor']}{held}: {row['estimate']:.2f} ({a:.2f} to {b:.2f}), {row['n']} runs"
                for row, a, b in zip(mine, low, high, strict=True)
            ]
        known = [name for name in names if (side, name) in theirs]
        x = [theirs[side, name] for name in known]
        axes.scatter(x, [place[name] + 0.24 for name in known], s=20, marker="D", facecolors="none", edgecolors=MUTED, gid="paper")
        titles["paper"] = [f"the paper's {name}: {value:.2f}" for name, value in zip(known, x, strict=True)]
        axes.set_yticks([place[name] for name in names], [name.replace("_", " ") for name in names])
        axes.set_xlim(-1, 1)
        axes.set_xticks([-1, -0.5, 0, 0.5, 1], ["−1", "−0.5", "0", "0.5", "1"])
        axes.set_ylim(-len(names) + 0.4, 0.6)
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
        axes.set_xlabel("correlation with the score, better to the right")

    return figure(
        draw,
        f"correlation-{identity}-{side}",
        f"Correlation of {side} metrics with the score",
        titles,
        size=(460, 60 + 32 * len(names)),
        left=128,
    )


def limits_of(rows: Sequence[Row], predictor: str) -> tuple[float, float]:
    """Return limits of y that hold every point with its error and every band, common to all panels so that they compare."""
    ends = [row["value"] + sign * (row["se"] or 0) for row in rows for sign in (-1, 1)]
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        if row["level"] is not None and row[predictor] is not None:
            groups.setdefault((row["strategy"], row["control"], row["size"]), []).append(row)
    for group in groups.values():
        x, y = np.array([100 * row[predictor] for row in group]), np.array([row["value"] for row in group])
        if len(np.unique(x)) >= MIN_LEVELS:
            mean, sd = bayesian_ridge(x, y).predict([x.min(), x.max()])
            ends += [*(mean - sd), *(mean + sd)]
    if not ends:
        return 0.0, 1.0
    low, high = min(ends), max(ends)
    margin = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
    return low - margin, high + margin
