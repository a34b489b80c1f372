"""What all pictures share: a panel, colours for sizes, and how rows of cells become lines over levels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ray_jobs.report import svg
from ray_jobs.report.svg import SERIES, SETTINGS

Row = dict[str, Any]
Series = dict[int, tuple[list[Row], list[float], list[float]]]
PANEL = (320, 230)


@dataclass(frozen=True)
class Panel:
    """A picture with its heading; `remark` says what it lacks, `legend` names its colours as (name, CSS variable)."""

    title: str
    svg: str
    remark: str = ""
    legend: Sequence[tuple[str, str]] = ()


def size_colours(sizes: Iterable[int]) -> dict[int, str]:
    """Return a colour for each size, stronger for larger; a single size takes the middle one."""
    ordered = sorted(set(sizes))
    palette = SERIES[1:2] if len(ordered) == 1 else SERIES
    return {size: palette[min(i, len(palette) - 1)] for i, size in enumerate(ordered)}


def panel_keys(cells: Sequence[Row]) -> list[tuple[str, str]]:
    """Return (strategy, control) of everything that has levels, in order of appearance."""
    return list(dict.fromkeys((row["strategy"], row["control"]) for row in cells if row["level"] is not None))


def flat_rows(rows: Sequence[Row], control: str) -> list[Row]:
    """Return what has no level and belongs beside a control's panel: what is under that control, or where nothing is, under none."""
    flat = [row for row in rows if row["level"] is None]
    return [row for row in flat if row["control"] == control] or [row for row in flat if row["control"] == "none"]


def panel_title(strategy: str, control: str) -> str:
    """Return the heading of a strategy's panel."""
    return strategy if control == "none" else f"{strategy}, {control}"


def level_axis(axes: Axes) -> None:
    """Make the x axis one of nominal levels in per cent."""
    axes.set_xlim(-4, 104)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.set_xlabel("level (%)")


def own_coverage(grid: Sequence[Row], coverage: pa.Table) -> dict[str, float]:
    """Return each cell's coverage of the typing that its strategy dials."""
    strategies = {row["cell"]: row["strategy"] for row in grid}
    return {row["cell"]: row["coverage"] for row in coverage.to_pylist() if row["typing"] == strategies.get(row["cell"])}


def by_size(grid: Sequence[Row], strategy: str, control: str, value: Callable[[Row], float]) -> Series:
    """Return for each size the rows of a strategy in order of level, levels in per cent and values; the first subset seed only."""
    rows = first_seed([row for row in grid if row["level"] is not None], strategy, control)
    series = {}
    for size in sorted({row["size"] for row in rows}):
        mine = [row for row in rows if row["size"] == size]
        series[size] = (mine, [100 * row["level"] for row in mine], [value(row) for row in mine])
    return series


def first_seed(grid: Sequence[Row], strategy: str, control: str) -> list[Row]:
    """Return a strategy's rows of the smallest subset seed by size and level: datasets of further seeds look alike."""
    rows = [row for row in grid if (row["strategy"], row["control"]) == (strategy, control) and row["level"] is not None]
    seed = min((row["subset_seed"] for row in rows), default=0)
    return sorted((row for row in rows if row["subset_seed"] == seed), key=lambda row: (row["size"], row["level"]))


def figure(
    draw: Callable[[Axes], None],
    identity: str,
    label: str,
    titles: Mapping[str, Sequence[str]],
    size: tuple[float, float] = PANEL,
    left: float = 50,
    right: float = 12,
) -> str:
    """Return what `draw` puts on a pair of axes, as SVG.

    Args:
        draw: draws in the stand-in colours of `svg`.
        identity: names the figure, uniquely in a page.
        label: says what it shows.
        titles: gid -> hover titles; filled by `draw`, so read after it.
        size: in points, which are the page's pixels.
        left: room for the labels of the y axis; margins are fixed so that panels side by side align.
        right: room for half a label of the x axis.
    """
    width, height = size
    with rc_context(SETTINGS):  # type: ignore[arg-type]
        canvas = Figure(figsize=(width / 72, height / 72))
        canvas.subplots_adjust(left=left / width, right=1 - right / width, bottom=38 / height, top=1 - 8 / height)
        draw(canvas.subplots())
        return svg.render(canvas, identifier(identity), label, titles)


def identifier(text: str) -> str:
    """Return a text as an id of HTML."""
    return "".join(character if character.isalnum() else "-" for character in text)


def plain(value: float, _: int = 0) -> str:
    """Write a tick with its thousands apart."""
    return f"{value:,.0f}"
