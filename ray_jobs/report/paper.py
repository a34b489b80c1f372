"""The paper's published points through our own analysis: `python -m ray_jobs.report.paper [FOLDER]` writes the README's picture and a page.

Makes FOLDER/paper_points.svg and FOLDER/paper.html (docs by default), the same bytes every time. The scores are digitised from the
figures of arXiv 2505.24768, about +-0.15 points; nothing here was trained by us.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from diversity.cell import TYPINGS
from diversity.effects import Slope, bayesian_ridge, correlation, holm, ols, permutation_p
from diversity.effects.paper import MODEL, paper_correlations, paper_points, paper_slopes
from diversity.effects.regression import Fit, lack_of_fit
from ray_jobs.report import svg
from ray_jobs.report.figures import Panel, figure, level_axis, size_colours
from ray_jobs.report.page import page_parts
from ray_jobs.report.score_plots import draw_scores, draw_series
from ray_jobs.report.svg import CATEGORIES, INK, MUTED, SETTINGS, SURFACE

LIMITS = (43.5, 67.5)
SIZE = (940, 600)
ORDER = [f"{side}-{granularity}" for side in ("instruction", "response") for granularity in ("macro", "meso", "micro")]


def points(strategy: str, control: str = "none", model: str = MODEL) -> list[dict[str, Any]]:
    """Return a strategy's points that have a score, as rows that `draw_scores` takes."""
    rows = []
    for row in paper_points().to_pylist():
        if (row["strategy"], row["control"], row["model"]) == (strategy, control, model) and row["score"] is not None:
            name = f"{strategy}, {row['size']:,} samples, level {row['level_percent']:g}%"
            rows.append({**row, "cell": name, "level": row["level_percent"] / 100, "value": row["score"], "se": None})
    return rows


def slope_of(rows: list[dict[str, Any]], *, without_level_0: bool = False) -> Slope:
    """Return the change of the score from level 0 to 1, sizes having intercepts of their own."""
    used = [row for row in rows if row["level"] > 0 or not without_level_0]
    columns = ([row[name] for row in used] for name in ("level", "value", "size"))
    x, y, sizes = columns
    return ols(x, y, groups=sizes)


def fit_of(rows: list[dict[str, Any]]) -> Fit:
    """Return the test of lack of fit of that line: sizes are the repeats of a level."""
    return lack_of_fit(*([row[name] for row in rows] for name in ("level", "value", "size")))


def shuffled(rows: list[dict[str, Any]]) -> float:
    """Return p of a series by all orders of its points, which are few enough to count."""
    return permutation_p([row["level"] for row in rows], [row["value"] for row in rows], np.random.default_rng(0))


@dataclass(frozen=True)
class SeriesRow:
    """One strategy at one size: our slope beside the published one, both as points of score from level 0 to 1."""

    strategy: str
    size: int
    slope: Slope
    published: float
    remark: str


def series_rows() -> list[SeriesRow]:
    """Return the 18 series of the paper's table; the remark says where the published slope can't be checked, or isn't met."""
    found = []
    for row in paper_slopes().to_pylist():
        everything = [p for p in paper_points().to_pylist() if (p["strategy"], p["size"], p["control"], p["model"]) == _key(row)]
        rows = [p for p in points(row["strategy"]) if p["size"] == row["size"]]
        slope, published = slope_of(rows), row["slope_per_100_points"]
        hidden = sum(p["marker"] == "hidden" for p in everything)
        solved = sum(p["marker"] == "solved" for p in everything)
        if hidden or solved:
            remark = f"{hidden + solved} of 7 markers hidden: no check"
        else:
            remark = "" if abs(slope.estimate - published) <= 0.1 else "markers and table disagree"
        found.append(SeriesRow(row["strategy"], row["size"], slope, published, remark))
    return found


def _key(row: dict[str, Any]) -> tuple[str, int, str, str]:
    return row["strategy"], row["size"], "none", MODEL


def picture() -> str:
    """Return the README's picture: six strategies at three sizes, ridge lines and centred 1-sigma bands."""
    colours = size_colours([10000, 20000, 30000])
    with rc_context(SETTINGS):  # type: ignore[arg-type]
        canvas = Figure(figsize=(SIZE[0] / 72, SIZE[1] / 72), facecolor=SURFACE)
        canvas.subplots_adjust(left=0.06, right=0.985, bottom=0.085, top=0.86, wspace=0.13, hspace=0.3)
        titles: dict[str, list[str]] = {}
        for i, (axes, strategy) in enumerate(zip(canvas.subplots(2, 3, sharey=True).flat, ORDER, strict=True)):
            _draw(axes, strategy, colours)
            axes.set_title(strategy)
            if i % 3 == 0:
                axes.set_ylabel("score")
            if i < 3:
                axes.set_xlabel("")
        canvas.text(0.06, 0.955, "Score against diversity: the published points, analysed again", fontsize=14, fontweight="bold", color=INK)
        source = "points digitised from arXiv 2505.24768 (hollow: marker hidden, solved for); lines and 1-σ bands: our Bayesian ridge"
        canvas.text(0.06, 0.92, source, fontsize=10, color=MUTED)
        handles = [Line2D([], [], color=c, marker="o", markersize=5, linewidth=1.8, label=f"{s:,} samples") for s, c in colours.items()]
        canvas.legend(
            handles=handles, loc="upper right", bbox_to_anchor=(0.99, 0.995), ncols=3, frameon=False, handlelength=1.6, columnspacing=1.4
        )
        return svg.render(canvas, "paper", "Score against level for six strategies and three sizes", titles, svg.Theme(svg.LIGHT))


def panels() -> list[Panel]:
    """Return the same as panels of a page, with hover titles."""
    colours = size_colours([10000, 20000, 30000])
    found = []
    for strategy in ORDER:
        titles: dict[str, list[str]] = {}

        def draw(axes: Axes, strategy: str = strategy, titles: dict[str, list[str]] = titles) -> None:
            titles.update(_draw(axes, strategy, colours))
            axes.set_ylabel("score")

        found.append(Panel(strategy, figure(draw, f"paper-{strategy}", f"Score against level for {strategy}", titles)))
    return found


def ablations() -> list[Panel]:
    """Return response-micro beside its other arms: length held near 500 tokens, words for tokens, other base models."""
    free = [row for row in points("response-micro") if row["size"] == 10000]
    groups = {
        "length held fixed": {"as chosen": free, "about 500 tokens": points("response-micro", "length-window")},
        "unit": {"the model's tokens": free, "words": points("response-micro@word")},
        "base model": {name: points("response-micro", model=name) for name in (MODEL, "Llama-2-70B", "Llama-3-8B")},
    }
    groups["base model"][MODEL] = free
    return [_ablation(title, arms) for title, arms in groups.items()]


def _ablation(title: str, arms: dict[str, list[dict[str, Any]]]) -> Panel:
    titles: dict[str, list[str]] = {}
    colours = dict(zip(arms, CATEGORIES, strict=False))

    def draw(axes: Axes) -> None:
        axes.axhline(50, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        for i, (name, rows) in enumerate(arms.items()):
            titles.update(draw_series(axes, [{**row, "cell": f"{name}, {row['cell']}"} for row in rows], colours[name], f"arm-{i}"))
        axes.set_ylabel("score")
        level_axis(axes)

    picture = figure(draw, f"paper-{title}", f"Score against level of response-micro by {title}", titles)
    return Panel(title, picture, legend=[(name, svg.VARIABLES[colour]) for name, colour in colours.items()])


def _draw(axes: Axes, strategy: str, colours: dict[int, str]) -> dict[str, list[str]]:
    rows = points(strategy)
    axes.axhline(50, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    titles = draw_scores(axes, rows, [], colours)
    solved = [row for row in rows if row["marker"] == "solved"]
    axes.scatter([100 * row["level"] for row in solved], [row["value"] for row in solved], s=7, color=SURFACE, linewidths=0, zorder=4)
    axes.set_ylim(*LIMITS)
    level_axis(axes)
    return titles


def page() -> str:
    """Return the page: the picture, the slopes beside the published ones, and what a careful reading adds."""
    pooled = {strategy: (slope_of(points(strategy)), slope_of(points(strategy), without_level_0=True)) for strategy in TYPINGS}
    series = series_rows()
    adjusted = dict(zip(pooled, holm([slopes[0].p for slopes in pooled.values()]), strict=True))
    free = [row for row in points("response-micro") if row["size"] == 10000]
    controlled = slope_of(points("response-micro", "length-window"))
    x, y = [row["level_percent"] for row in free], [row["value"] for row in free]
    length = correlation([row["mean_length"] for row in free], y, bootstraps=2000, generator=np.random.default_rng(0))
    checked = [row for row in series if not row.remark]
    return page_parts("paper.html.j2").render(
        panels=panels(),
        ablations=ablations(),
        series=series,
        family=holm([row.slope.p for row in series]),
        fits={strategy: fit_of(points(strategy)) for strategy in TYPINGS},
        orders={size: shuffled([row for row in points("response-micro") if row["size"] == size]) for size in (10000, 20000, 30000)},
        checked=len(checked),
        worst=max(abs(row.slope.estimate - row.published) for row in checked),
        pooled=pooled,
        adjusted=adjusted,
        free=slope_of(free),
        controlled=controlled,
        length=length,
        drawn=bayesian_ridge(x, y, center=False).predict([0, 100])[1],
        centred=bayesian_ridge(x, y).predict([0, 100])[1],
        correlations=paper_correlations().to_pylist(),
        legend=[(f"{size:,} samples", svg.VARIABLES[colour]) for size, colour in size_colours([10000, 20000, 30000]).items()],
    )


def main(argv: list[str] | None = None) -> int:
    """Write both files."""
    parser = argparse.ArgumentParser(prog="python -m ray_jobs.report.paper", description="Draw the paper's published points.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("docs"))
    folder = parser.parse_args(argv).folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("paper_points.svg", picture()), ("paper.html", page())):
        (folder / name).write_text(content + "\n", "utf-8")
        print(folder / name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
