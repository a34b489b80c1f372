"""Pictures of the corpus and its datasets: pure functions from tidy tables to SVG, one small panel for each strategy.

Colours tell sizes, from light (small) to strong (large); what has no level is a horizontal line; hovering over a mark names the cell.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from ray_jobs.report import svg
from ray_jobs.report.figures import (
    Panel,
    Row,
    Series,
    by_size,
    figure,
    first_seed,
    level_axis,
    own_coverage,
    panel_keys,
    panel_title,
    plain,
    size_colours,
)
from ray_jobs.report.svg import CATEGORIES, INK, MUTED, OTHER, SERIES

TOP_SOURCES = len(CATEGORIES) - 1


def token_curve(typing: str, df: NDArray[np.integer], band: Row) -> str:
    """Return document frequency by rank on a log axis with the three bands, as the paper's Fig. 2.

    Args:
        typing: a micro typing.
        df: document frequency of every token that occurs.
        band: low, high (inclusive), n_low, n_mid, n_high.
    """
    ordered = np.sort(np.asarray(df))[::-1]
    n = len(ordered)
    ranks = np.unique(np.concatenate([np.linspace(0, n - 1, 240), np.geomspace(1, n, 120) - 1]).astype(np.int64))
    edges = (0, int(band["n_high"]), int(band["n_high"] + band["n_mid"]), n)
    names = (("high", SERIES[0]), ("mid", SERIES[1]), ("low", OTHER))

    def draw(axes: Axes) -> None:
        axes.plot(ranks + 1, ordered[ranks], color=INK, linewidth=1.6, solid_capstyle="round")
        axes.set_yscale("log")
        axes.set_ylim(0.8, float(ordered[0]) * 3)
        axes.set_xlim(0, n)
        for (name, colour), start, end in zip(names, edges, edges[1:], strict=False):
            axes.axvspan(start, end, color=colour, alpha=0.22, linewidth=0, gid=f"band-{name}")
            if end - start > 0.06 * n:
                axes.text((start + end) / 2, float(ordered[0]) * 1.9, f"{name}\n{end - start:,}", ha="center", va="top", color=INK)
        for bound in (band["low"], band["high"]):
            axes.axhline(bound, color=MUTED, linewidth=0.7, linestyle=(0, (2, 2)))
            axes.text(n * 0.995, bound * 1.08, f"{bound:,}", ha="right", va="bottom", color=MUTED)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("token rank")
        axes.set_ylabel("samples with the token")
        axes.xaxis.set_major_formatter(FuncFormatter(plain))
        axes.yaxis.set_major_formatter(FuncFormatter(plain))
        axes.yaxis.set_minor_locator(NullLocator())

    titles = {f"band-{name}": [f"{name} band: {e - s:,} tokens"] for (name, _), s, e in zip(names, edges, edges[1:], strict=False)}
    return figure(draw, f"curve-{typing}", f"Document frequency by rank of {typing}", titles, size=(460, 290), left=62, right=24)


def coverage_panels(cells: pa.Table, coverage: pa.Table) -> list[Panel]:
    """Return achieved coverage of the strategy's own typing against the nominal level, the other typings' thin behind it."""
    grid = cells.to_pylist()
    colours = size_colours(row["size"] for row in grid)
    own = own_coverage(grid, coverage)
    by_typing: dict[str, dict[str, float]] = {}
    for row in coverage.to_pylist():
        by_typing.setdefault(row["typing"], {})[row["cell"]] = row["coverage"]
    return [
        Panel(panel_title(*key), coverage_panel(grid, own, *key, colours, "", {t: c for t, c in by_typing.items() if t != key[0]}))
        for key in panel_keys(grid)
    ]


def length_panels(cells: pa.Table) -> list[Panel]:
    """Return the mean tokens of a response against the level; `random` and its like as dashed lines."""
    grid = [row for row in cells.to_pylist() if row["response_length"] is not None]
    colours = size_colours(row["size"] for row in grid)
    top = 1.08 * max((row["response_length"] for row in grid), default=1)
    panels = []
    for strategy, control in panel_keys(grid):
        series = by_size(grid, strategy, control, lambda row: row["response_length"])
        flat = _flat([row for row in grid if row["level"] is None and row["control"] in (control, "none")])
        name = panel_title(strategy, control)
        titles = {
            size: [f"{row['cell']}: {row['response_length']:,.0f} tokens a response" for row in rows]
            for size, (rows, _, _) in series.items()
        }
        panels.append(Panel(name, _line_panel(f"length-{name}", name, "tokens a response", series, colours, flat, titles, (0, top))))
    return panels


def _flat(rows: Sequence[Row]) -> list[tuple[Row, float]]:
    """Return one row for each strategy without a level, size and control, with the mean length of its subset seeds."""
    groups: dict[tuple[str, int, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["strategy"], row["size"], row["control"]), []).append(row)
    return [(group[0], float(np.mean([row["response_length"] for row in group]))) for group in groups.values()]


def source_panels(cells: pa.Table, sources: pa.Table) -> tuple[list[Panel], list[tuple[str, str]], int]:
    """Return the mix of sources by level at the smallest size, its legend as (name, CSS variable), and that size."""
    grid = cells.to_pylist()
    size = min((row["size"] for row in grid if row["level"] is not None), default=0)
    counts: dict[str, dict[str, int]] = {}
    for row in sources.to_pylist():
        counts.setdefault(row["cell"], {})[row["source"]] = row["samples"]
    shown = [row for row in grid if row["size"] == size and row["cell"] in counts]
    totals: dict[str, float] = {}
    for row in shown:
        for source, count in counts[row["cell"]].items():
            totals[source] = totals.get(source, 0) + count
    ranked = sorted(totals, key=lambda source: (-totals[source], source))
    named = ranked if len(ranked) <= TOP_SOURCES + 1 else ranked[:TOP_SOURCES]
    colours = dict(zip(named, CATEGORIES, strict=False))
    legend = [(source, svg.VARIABLES[colours[source]]) for source in named]
    if len(ranked) > len(named):
        legend.append((f"{len(ranked) - len(named)} others", svg.VARIABLES[OTHER]))
    panels = [
        Panel(panel_title(*key), _source_panel(panel_title(*key), first_seed(shown, *key), counts, colours)) for key in panel_keys(shown)
    ]
    return panels, legend, size


def coverage_panel(
    grid: Sequence[Row],
    own: dict[str, float],
    strategy: str,
    control: str,
    colours: dict[int, str],
    remark: str,
    others: dict[str, dict[str, float]] | None = None,
    identity: str = "coverage",
) -> str:
    """Return coverage against level: `own` strong, each of `others` (typing -> cell -> coverage) thin, `remark` written in."""
    name = panel_title(strategy, control)
    built = [row for row in grid if row["cell"] in own]
    series = by_size(built, strategy, control, lambda row: 100 * own[row["cell"]])
    titles = {size: [f"{row['cell']}: covers {own[row['cell']]:.1%}" for row in rows] for size, (rows, _, _) in series.items()}
    behind = []
    for typing, values in (others or {}).items():
        known = [row for row in grid if row["cell"] in values]
        for size, (rows, x, _) in by_size(known, strategy, control, lambda row: 0.0).items():
            behind.append((f"{size:,}: coverage of {typing}", x, [100 * values[row["cell"]] for row in rows]))
    return _line_panel(f"{identity}-{name}", name, "types covered (%)", series, colours, [], titles, (0, 104), remark, behind)


def _line_panel(
    identity: str,
    name: str,
    label: str,
    series: Series,
    colours: dict[int, str],
    flat: Sequence[tuple[Row, float]],
    hover: dict[int, list[str]],
    limits: tuple[float, float],
    remark: str = "",
    behind: Sequence[tuple[str, list[float], list[float]]] = (),
) -> str:
    """Return something against the level: a line with points for each size, dashed lines for what has no level."""
    titles: dict[str, list[str]] = {f"points-{size}": marks for size, marks in hover.items()}

    def draw(axes: Axes) -> None:
        for i, (text, x, y) in enumerate(behind):
            axes.plot(x, y, color=OTHER, linewidth=0.8, gid=f"behind-{i}")
            titles[f"behind-{i}"] = [text]
        for row, value in flat:
            gid = f"flat-{row['cell']}"
            axes.axhline(value, color=colours[row["size"]], linewidth=1, linestyle=(0, (4, 3)), gid=gid)
            titles[gid] = [f"{row['cell']}: {value:,.4g}"]
        for size, (_, x, y) in series.items():
            alpha = 0.45 if remark else 1
            axes.plot(x, y, color=colours[size], linewidth=1.6, alpha=alpha)
            axes.scatter(x, y, s=18, color=colours[size], linewidths=0, zorder=3, gid=f"points-{size}", alpha=alpha)
        if remark:
            axes.text(0.97, 0.05, remark, transform=axes.transAxes, ha="right", va="bottom", color=INK, fontsize=11)
        axes.set_ylim(*limits)
        axes.set_ylabel(label)
        level_axis(axes)

    return figure(draw, identity, f"{label} against level for {name}", titles)


def _source_panel(name: str, rows: Sequence[Row], counts: dict[str, dict[str, int]], colours: dict[str, str]) -> str:
    titles: dict[str, list[str]] = {}

    def draw(axes: Axes) -> None:
        bottom = np.zeros(len(rows))
        x = np.arange(len(rows))
        totals = np.array([sum(counts[row["cell"]].values()) for row in rows], float)
        left = {source for row in rows for source in counts[row["cell"]]} - set(colours)
        parts = [(source, colour, [source]) for source, colour in colours.items()] + [("others", OTHER, sorted(left))]
        for i, (source, colour, members) in enumerate(parts):
            shares = np.array([sum(counts[row["cell"]].get(member, 0) for member in members) for row in rows]) / totals
            for j, bar in enumerate(axes.bar(x, 100 * shares, bottom=bottom, width=0.82, color=colour, linewidth=0)):
                bar.set_gid(f"bar-{i}-{j}")
                titles[f"bar-{i}-{j}"] = [f"{rows[j]['cell']}: {source} {shares[j]:.1%}"]
            bottom += 100 * shares
        axes.set_xticks(x, [str(int(100 * row["level"] + 1e-9)) for row in rows])
        axes.set_xlabel("level (%)")
        axes.set_ylabel("share of samples (%)")
        axes.set_ylim(0, 100)
        axes.grid(False)

    return figure(draw, f"source-{name}", f"Share of each source by level for {name}", titles)
