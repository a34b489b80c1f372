"""The report's page: tidy tables in, one HTML string out that opens without a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from diversity.config import UserError
from diversity.effects import verdict
from diversity.effects.schema import MIN_DATASETS, MIN_LEVELS
from ray_jobs.report import dose, plots, score_plots, svg
from ray_jobs.report.data import ReportData
from ray_jobs.report.distinct import distinct_lines
from ray_jobs.report.figures import Panel, size_colours
from ray_jobs.report.findings import count, score_section, signed, small

ROOT = "../../"
MORE_SCORES = 6  # further scores that get panels of their own


def linked(page: str, link_root: str) -> str:
    """Return the page with links that start from another folder: `link_root` is the relative way from there to the storage."""
    return page.replace(f'{{"root":"{ROOT}"', f'{{"root":"{link_root}"', 1)


def render(data: ReportData) -> str:
    """Return the page as it lies in its artifact, `<storage>/report/<fingerprint>/`; `linked` moves it."""
    found = score_plots.scores(data.results)
    source_panels, source_legend, source_size = plots.source_panels(data.cells, data.sources)
    sizes = size_colours(data.cells["size"].to_pylist())
    return page_parts("template.html.j2").render(
        data=data,
        script=_text("script.js"),
        size_legend=[(f"{size:,} samples", svg.VARIABLES[colour]) for size, colour in sizes.items()],
        flat=list(dict.fromkeys(row["strategy"] for row in data.cells.to_pylist() if row["level"] is None)),
        curves=[Panel(curve.typing, plots.token_curve(curve.typing, curve.df, curve.band)) for curve in data.curves],
        score=found[0] if found else None,
        more=[score_section(data, score) for score in found[1 : 1 + MORE_SCORES]],
        further=[score.label for score in found[1 + MORE_SCORES :]],
        main=score_section(data, found[0]) if found else None,
        verdict=verdict(data.effects),
        runs=len({run for run in data.results["run"].to_pylist() if run is not None}),
        coverage_panels=plots.coverage_panels(data.cells, data.coverage),
        length_panels=plots.length_panels(data.cells),
        source_panels=source_panels,
        source_legend=source_legend,
        source_size=source_size,
        min_levels=MIN_LEVELS,
        min_datasets=MIN_DATASETS,
        distinct=distinct_lines(data.distinct) if data.distinct is not None else [],
        length_beside=dose.length_beside(data.cells, data.coverage),
        cells_json=_json({"root": ROOT, "columns": _columns(data.results), "rows": cell_rows(data)}),
    )


def write(path: Path, text: str) -> None:
    """Write a page or a picture; its folder is made where there is none.

    Raises:
        UserError: it can't be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    except OSError as error:
        raise UserError(f"can't write {path}: {error.strerror}") from None


def cell_rows(data: ReportData) -> list[list[Any]]:
    """Return the rows of the list of cells in the order of `_columns`, with the mean score of its runs at the end."""
    found = score_plots.scores(data.results)
    scored: dict[str, list[dict[str, Any]]] = {}
    if found:
        for row in score_plots.score_rows(data.results, found[0]):
            scored.setdefault(row["cell"], []).append(row)
    rows = []
    for cell in data.cells.to_pylist():
        runs = scored.get(cell["cell"], [])
        value = float(np.mean([run["value"] for run in runs])) if runs else None
        error = _standard_error(runs)
        length = None if cell["response_length"] is None else round(cell["response_length"], 1)
        coverage = None if cell["coverage"] is None else round(cell["coverage"], 4)
        level = None if cell["level"] is None else round(cell["level"], 4)
        values = [cell["cell"], cell["strategy"], cell["size"], level, cell["control"], cell["k"], cell["pool_size"], coverage, length]
        rows.append([*values, len(runs), value, error, cell["dataset"]])
    return rows


def _standard_error(runs: Sequence[dict[str, Any]]) -> float | None:
    """Return the standard error over runs, or the one run's own."""
    if len(runs) > 1:
        return float(np.std([run["value"] for run in runs], ddof=1) / np.sqrt(len(runs)))
    return runs[0]["se"] if runs else None


def _columns(results: pa.Table) -> list[list[str]]:
    """Return [heading, kind] of the list of cells; the kind tells the page how to write and sort it."""
    found = score_plots.scores(results)
    columns = [["cell", "link"], ["strategy", "text"], ["size", "count"], ["level", "percent"], ["control", "text"]]
    columns += [["k", "count"], ["pool", "count"], ["coverage", "percent"], ["tokens a response", "number"]]
    return [*columns, ["runs", "count"], [found[0].label if found else "score", "score"]]


def _json(value: Any) -> str:
    """Return JSON that may stand in a script element: no tag can begin in it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _text(name: str) -> str:
    return resources.files("ray_jobs.report").joinpath(name).read_text("utf-8")


def page_parts(name: str) -> Any:
    """Return a template that knows the style and how numbers are written."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_text), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["signed"] = signed
    environment.filters["count"] = count
    environment.filters["decimals"] = lambda value: f"{value:.2f}".replace("-", "−")
    environment.filters["p"] = small
    common = {"style": _text("style.css"), "light": svg.css_variables(svg.LIGHT), "dark": svg.css_variables(svg.DARK)}
    return environment.get_template(name, globals=common)
