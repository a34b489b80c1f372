from __future__ import annotations

import html
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure

from ray_jobs.report import ReportConfig, arms, figures, paper, plots, score_plots, svg
from ray_jobs.report.data import ReportData
from ray_jobs.report.page import linked, render
from tests.ray_jobs import made_up

ROOT = Path(__file__).resolve().parents[3]
TRAINED = {"response-micro_n1000_l000_s0", "response-micro_n1000_l050_s0", "response-micro_n1000_l100_s0", "random_n1000_s0"}


@pytest.fixture(scope="module")
def demo() -> ReportData:
    """The tables of an experiment of which four cells were trained."""
    return made_up.report_data(made_up.cells((1000,)), lambda cell: cell.name in TRAINED, note="Four runs <measure> nothing.")


@pytest.fixture(scope="module")
def demo_page(demo) -> str:
    return render(demo)


@pytest.fixture(scope="module")
def few() -> ReportData:
    """The tables of one strategy and its baseline, with two subset seeds."""
    grid = [cell for cell in made_up.cells((1000,), levels=3, seeds=(0, 1)) if cell.strategy in ("response-micro", "random")]
    return made_up.report_data(grid, note=None, bootstraps=0)


@pytest.fixture(scope="module")
def full_page() -> str:
    """The page of a whole grid of two sizes and two subset seeds."""
    return render(made_up.report_data(made_up.cells((1000, 2000), levels=4, seeds=(0, 1)), bootstraps=100))


def panel_of(panels, title):
    return next(panel for panel in panels if panel.title == title)


# ---- the page as text


class Parser(HTMLParser):
    """Collects what a page could fetch, its ids and its text."""

    def __init__(self, page):
        super().__init__()
        self.fetched, self.ids, self.text = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "data", "srcset", "action") or (name in ("href", "xlink:href") and not (value or "").startswith("#")):
                self.fetched.append((tag, value))
            if name == "id":
                self.ids.append(value)

    def handle_data(self, data):
        self.text.append(data)


def test_a_standard_error_that_is_no_number_is_none(demo):
    """A split of one prompt group has one: nothing may be drawn or written of it."""
    rows = demo.results.to_pylist()
    errors = [[float("nan")] * len(rows), [float("nan"), *(row["se"] for row in rows[1:])]]
    for error in errors:
        results = pa.Table.from_pylist([{**row, "se": e} for row, e in zip(rows, error, strict=True)], schema=demo.results.schema)
        page = render(replace(demo, results=results))
        assert "nan" not in page.lower() and page.count("<svg ") == render(demo).count("<svg ")


def test_the_page_needs_nothing_from_outside(demo_page, full_page):
    for page in (demo_page, full_page, paper.page()):
        assert Parser(page).fetched == [("link", "data:,")]
        assert "@import" not in page and not re.search(r"url\((?!#)", page)
        outside = set(re.findall(r"https?://[^\s\"'<>)]+", page)) - {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
        assert not outside


def test_ids_are_unique_and_every_reference_is_met(demo_page, full_page):
    for page in (demo_page, full_page, paper.page()):
        ids = Parser(page).ids
        assert len(ids) == len(set(ids))
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(ids)


def test_the_note_is_the_first_line_and_texts_are_escaped(demo_page):
    text = " ".join(" ".join(Parser(demo_page.split("<body>")[1]).text).split())
    assert text.startswith("Four runs <measure> nothing.")
    assert "Four runs &lt;measure&gt; nothing." in demo_page
    assert "Name three &lt;b&gt;rivers&lt;/b&gt; &amp; their seas." in demo_page


def test_without_a_note_the_page_begins_with_its_name(few):
    page = render(few)
    assert " ".join(Parser(page.split("<body>")[1]).text).split()[:2] == ["sft-diversity", "made-up"]


def test_the_same_tables_give_the_same_bytes(few):
    assert render(few) == render(few)


def test_no_figure_keeps_a_stand_in_colour(demo_page):
    found = re.findall(r"#[0-9a-f]{6}", demo_page.split("</style>")[1])
    assert not set(found) & set(svg.VARIABLES)
    for name in svg.VARIABLES.values():
        assert name in svg.LIGHT and name in svg.DARK


def test_cells_are_listed_with_links_and_scores(demo_page):
    data = json.loads(demo_page.split('id="data">')[1].split("</script>")[0])
    assert len(data["rows"]) == 43 and data["root"] == "../../"
    names = [name for name, _ in data["columns"]]
    row = next(row for row in data["rows"] if row[0] == "response-micro_n1000_l050_s0")
    assert row[-1] == "datasets/response-micro_n1000_l050_s0" and row[names.index("runs")] == 1
    assert row[names.index("nll_per_token, out")] == pytest.approx(1.6, abs=0.3)
    assert '{"root":"../../../"' in linked(demo_page, "../../../")


def test_json_can_not_end_its_script():
    from ray_jobs.report.page import _json

    text = _json({"a": "</script><script>alert(1)</script>\u2028"})
    assert "<" not in text and json.loads(text)["a"] == "</script><script>alert(1)</script>\u2028"


def test_an_experiment_without_anything_but_datasets():
    page = render(made_up.report_data(made_up.cells((1000,), levels=2), scored=lambda cell: False, bootstraps=0))
    assert "nothing was trained" in page and "Types covered" not in page


def test_the_configuration():
    assert ReportConfig().samples and ReportConfig().note is None


# ---- the pictures


def test_every_picture_is_well_formed_xml(demo_page, full_page):
    pictures = re.findall(r"<svg .*?</svg>", demo_page + full_page, flags=re.DOTALL)
    assert len(pictures) > 50
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        assert root.get("viewBox") and root.get("aria-label") and root.get("role") == "img"


def test_panels_with_fewer_than_three_scored_levels_say_so(demo):
    (score, _) = score_plots.scores(demo.results)
    panels = score_plots.score_panels(demo.cells, demo.results, score, demo.coverage)
    assert [panel.remark for panel in panels] == ["not trained"] * 5 + [""]
    fewer = demo.results.filter(pa.array([row["level"] != 0.5 or row["value"] is None for row in demo.results.to_pylist()]))
    panels = score_plots.score_panels(demo.cells, fewer, score, demo.coverage)
    assert panel_of(panels, "response-micro").remark == "2 of 7 levels trained: too few for a line"
    assert ">2 of 7 levels trained: too few for a line<" in panel_of(panels, "response-micro").svg


def test_points_carry_the_name_of_their_cell(demo):
    (score, _) = score_plots.scores(demo.results)
    picture = panel_of(score_plots.score_panels(demo.cells, demo.results, score, demo.coverage), "response-micro").svg
    titles = re.findall(r"<title>(.*?)</title>", picture)
    assert sum(title.startswith("response-micro_n1000_l") for title in titles) == 3
    assert any(title.startswith("random, 1,000: ") for title in titles)


def test_the_primary_score_comes_first(demo):
    found = score_plots.scores(demo.results)
    assert [(score.split, score.primary) for score in found] == [("out", True), ("in", False)]
    assert found[0].direction == "lower is better"


def test_token_curve_shows_the_three_bands():
    curve = made_up.curve()
    picture = plots.token_curve(curve.typing, curve.df, curve.band)
    for name in ("n_high", "n_mid", "n_low"):
        assert f">{curve.band[name]:,}<" in picture
    assert f"mid band: {curve.band['n_mid']:,} tokens" in picture


@pytest.mark.parametrize("df", [[1], [5, 5, 5], list(range(1, 50))])
def test_token_curve_of_a_small_vocabulary(df):
    ElementTree.fromstring(
        plots.token_curve("response-micro@word", np.array(df), {"low": 2, "high": 4, "n_high": 0, "n_mid": len(df), "n_low": 0})
    )


def test_sources_beyond_the_palette_are_others(demo):
    panels, legend, size = plots.source_panels(demo.cells, demo.sources)
    assert size == 1000 and len(panels) == 6
    assert len(legend) == len(svg.CATEGORIES) and legend[-1] == ("3 others", "other")
    shares = [
        float(share) for share in re.findall(r"response-micro_n1000_l000_s0: [^<]*? ([\d.]+)%", panel_of(panels, "response-micro").svg)
    ]
    assert sum(shares) == pytest.approx(100, abs=0.5)


def test_controls_have_panels_of_their_own():
    from dataclasses import replace

    grid = made_up.cells((1000,), levels=3)
    grid += [replace(cell, control="length-quota") for cell in grid if cell.strategy == "response-micro"]
    cells, coverage, *_ = made_up.tables(grid)
    assert "response-micro, length-quota" in [panel.title for panel in plots.coverage_panels(cells, coverage)]


def test_hover_titles_are_escaped_and_follow_the_drawing_order():
    titles = {"marks": ["a & b", "<c>"]}
    picture = figures.figure(lambda axes: axes.scatter([0, 1], [0, 1], gid="marks"), "x", 'a "label"', titles)
    marks = re.findall(r'<use [^>]*? x="([\d.]+)"[^>]*><title>(.*?)</title></use>', picture)
    assert [title for _, title in sorted(marks, key=lambda mark: float(mark[0]))] == ["a &amp; b", "&lt;c&gt;"]
    assert 'aria-label="a &quot;label&quot;"' in picture


def test_numbers_in_labels_are_not_rounded_away():
    figure = Figure(figsize=(3, 2))
    figure.text(0.123456, 0.5, "1.2345 of 2.5000")
    picture = svg.render(figure, "x", "label")
    assert "1.2345 of 2.5000" in picture and "0.123456" not in picture


def test_controls_and_units_of_a_strategy_share_a_panel():
    from dataclasses import replace

    grid = [cell for cell in made_up.cells((1000,), levels=3) if cell.strategy in ("response-micro", "response-meso")]
    mine = [cell for cell in grid if cell.strategy == "response-micro"]
    grid += [replace(cell, control="length-quota") for cell in mine] + [replace(cell, strategy="response-micro@word") for cell in mine]
    _, _, _, results, _ = made_up.tables(grid)
    (panel,) = arms.arm_panels(results, score_plots.scores(results)[0])
    assert panel.title == "response-micro, 1,000 samples"
    names = [name for name, _ in panel.legend]
    assert names == ["response-micro", "response-micro, length-quota", "response-micro@word"]
    assert panel.svg.count("<title>") == 9


def test_a_controls_panel_stands_beside_the_random_runs_of_that_control():
    rows = [{"level": level, "control": control} for level, control in ((None, "none"), (None, "tokens"), (0.5, "tokens"))]
    assert figures.flat_rows(rows, "tokens") == [rows[1]]
    assert figures.flat_rows(rows, "none") == figures.flat_rows(rows, "length-quota") == [rows[0]]


def test_errors_wider_than_all_runs_lie_apart_are_told_and_not_drawn():
    rows = [{"cell": f"c{i}", "level": i / 2, "value": 2 + i / 100, "se": 0.02} for i in range(3)]
    assert score_plots.without_wide_errors(rows) == rows and score_plots.without_wide_errors([]) == []
    wide = score_plots.without_wide_errors([{**row, "se": 0.07} for row in rows])
    assert [row["se"] for row in wide] == [None] * 3 and wide[1]["hover"] == "c1: 2.01 ± 0.07"


def test_many_runs_are_drawn_as_the_means_of_their_levels():
    rows = [{"cell": f"c{i}", "level": i % 2, "value": float(i), "se": 0.1} for i in range(2 * score_plots.MANY_POINTS)]
    low, high = score_plots.thinned(rows, "level")
    values = [row["value"] for row in rows if row["level"] == 1]
    assert (high["value"], high["se"]) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    assert low["hover"].startswith(f"{score_plots.MANY_POINTS} runs at level 0%, e.g. c0: ")
    assert score_plots.thinned(rows[:5], "level") == rows[:5]


# ---- what is said


def test_the_verdict_stands_first_and_is_that_of_the_effects(few):
    from diversity.effects import verdict

    data, statements, page = few, verdict(few.effects), html.unescape(render(few))
    assert {statement.kind for statement in statements} == {"slope", "contrast", "best"}
    assert all(statement.text in page and statement.subject in page for statement in statements)
    assert page.index('id="verdict"') < page.index('id="tokens"')
    without = data.effects.set_column(data.effects.schema.get_field_index("primary"), "primary", pa.array([False] * data.effects.num_rows))
    assert 'id="verdict"' not in render(type(data)(**{**vars(data), "effects": without}))


def test_effects_are_listed(full_page):
    for title in (
        "More diverse against the baselines",
        "Slopes against each other",
        "All sizes together",
        "others held fixed",
        "runs scatter",
    ):
        assert title in full_page
    assert "response-micro at 100% − random" in full_page and "instruction-macro − instruction-meso" in full_page


def test_types_are_shown_by_their_labels(demo_page, few):
    assert "bird &lt;song&gt;" in demo_page and "response-meso: 5,607 types" in demo_page
    assert "What the types are" not in render(type(few)(**{**vars(few), "types": []}))


# ---- the paper's points


def test_the_readmes_picture_is_that_of_the_code():
    """docs/ holds what `python -m ray_jobs.report.paper` writes, byte for byte with the pinned matplotlib."""
    assert (ROOT / "docs" / "paper_points.svg").read_text("utf-8") == paper.picture() + "\n"
    assert (ROOT / "docs" / "paper.html").read_text("utf-8") == paper.page() + "\n"


def test_the_readmes_picture_stands_alone():
    picture = paper.picture()
    ElementTree.fromstring(picture)
    assert "var(--" not in picture and svg.LIGHT["series-2"] in picture
    assert all(strategy in picture for strategy in paper.ORDER)


def test_the_papers_page_says_what_was_checked():
    rows = paper.series_rows()
    assert sum(not row.remark for row in rows) == 11
    assert [(row.strategy, row.size) for row in rows if row.remark == "markers and table disagree"] == [("response-meso", 20000)]
    assert "11 of the series" in paper.page()
