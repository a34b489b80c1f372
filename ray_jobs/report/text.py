"""The report as lines of a terminal: the table of cells and the verdict."""

from __future__ import annotations

from typing import Any

from diversity.effects import verdict
from diversity.effects.verdict import verdict_lines
from ray_jobs.report.data import ReportData
from ray_jobs.report.page import cell_rows
from ray_jobs.report.score_plots import scores

SHOWN_CELLS = 60


def told(data: ReportData) -> str:
    """Return what is printed: the table of cells, and the verdict."""
    statements = verdict(data.effects)
    return "\n".join([*cells_text(data), *(["", *verdict_lines(statements)] if statements else [])])


def cells_text(data: ReportData) -> list[str]:
    """Return the lines of the final table: cell, k, coverage, length, score ± standard error; scored cells if there are any."""
    found = scores(data.results)
    label = found[0].label if found else "score"
    rows = [_cell_text(row) for row in cell_rows(data)]
    scored = [row for row in rows if row[-1]]
    shown = (scored or rows)[:SHOWN_CELLS]
    table = [["cell", "k", "coverage", "tokens a response", label], *shown]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = [
        "  ".join(text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))) for row in table
    ]
    if left := len(rows) - len(shown):
        lines.append(f"and {left} further cells" + ("" if len(scored) > len(shown) else " without a score" if scored else ""))
    return [line.rstrip() for line in lines]


def _cell_text(row: list[Any]) -> list[str]:
    cell, _, _, _, _, k, _, coverage, length, _, value, error, _ = row
    spread = "" if error is None else f" ± {error:.2g}"
    return [
        cell,
        "" if k is None else f"{k:,}",
        "" if coverage is None else f"{coverage:.1%}",
        "" if length is None else f"{length:.1f}",
        "" if value is None else f"{value:.4g}{spread}",
    ]
