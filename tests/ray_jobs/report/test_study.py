"""The published study: its picture, its page's verdict and the words of docs/study.md come from docs/data, and from nothing else."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from diversity.effects import verdict
from diversity.effects.verdict import verdict_lines
from ray_jobs.report.data import ReportData
from ray_jobs.report.folder import Analysis, read
from ray_jobs.tasks import redraw

DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return read(str(DOCS / "data"))


@pytest.fixture(scope="module")
def data(analysis: Analysis) -> ReportData:
    return analysis.report(analysis.effects())


def words(text: str) -> str:
    """Return a text without its marks, on one line."""
    return " ".join(html.unescape(re.sub(r"^> ?", "", re.sub(r"</?\w[^>]*>|[*`]", " ", text), flags=re.MULTILINE)).split())


def test_the_plan_was_sealed_before_anything_was_scored_and_every_run_of_it_is_there(analysis: Analysis) -> None:
    plan = analysis.about["plan"]
    assert plan["scored_before"] == 0 and [primary["strategy"] for primary in plan["plan"]["primary"]] == ["response-micro"] * 2
    scored = {(row["cell"], row["training_seed"]) for row in analysis.results.to_pylist() if row["value"] is not None and row["primary"]}
    assert scored == {(row[0], row[-1]) for row in plan["runs"]}


def test_the_verdict_is_that_of_the_page_and_of_the_text(data: ReportData) -> None:
    statements = verdict(data.effects)
    confirmed = [line for line in verdict_lines(statements) if "(confirmatory)" in line]
    assert len(statements) == 5 and len(confirmed) == 2
    page, text = words((DOCS / "study.html").read_text("utf-8")), words((DOCS / "study.md").read_text("utf-8"))
    for statement in statements:
        assert words(statement.text) in page, statement
    for line in confirmed:
        assert words(line) in text, line


def test_the_picture_is_drawn_from_the_tables(tmp_path: Path) -> None:
    assert redraw.main([str(DOCS / "data"), "--picture", str(tmp_path / "study.svg")]) == 0
    assert (tmp_path / "study.svg").read_text("utf-8") == (DOCS / "study.svg").read_text("utf-8")


def test_no_text_of_a_sample_is_published(analysis: Analysis) -> None:
    """Ids, names of sources and figures alone: the longest string of a table is the name of something."""
    for name in ("results", "cells", "coverage", "sources", "metrics", "distinct", "prompts", "curves"):
        table = getattr(analysis, name)
        for field in table.schema:
            if str(field.type) in ("string", "large_string"):
                longest = max((value for value in table[field.name].to_pylist() if value is not None), key=len, default="")
                assert len(longest) <= 64 and " " not in longest.strip() or field.name == "note", (name, field.name, longest)
