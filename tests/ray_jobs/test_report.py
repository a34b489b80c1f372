from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure

from ray_jobs.report import ReportConfig, figures, paper, plots, score_plots, svg
from ray_jobs.report.page import ReportData, linked, render
from tests.ray_jobs import made_up

ROOT = Path(__file__).resolve().parents[2]
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
    """The tables of one strategy and its baseline."""
    grid = [cell for cell in made_up.cells((1000,), levels=3) if cell.strategy in ("response-micro", "random")]
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


def test_size_of_a_large_grid():
    """The list of 10,000 cells has room in a report of 6 MB beside its pictures."""
    grid = made_up.cells((1000,), levels=7, seeds=range(233))
    tables = made_up.tables(grid, scored=lambda cell: cell.subset_seed == 0)
    from diversity.effects import EFFECTS_SCHEMA

    cells, coverage, sources, results, _ = tables
    data = ReportData("large", None, [], cells, coverage, sources, results, EFFECTS_SCHEMA.empty_table(), planned=len(grid))
    page = render(data)
    assert cells.num_rows > 10000
    assert len(page.encode()) < 6e6


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


# ---- in a browser


def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("needs chromium to open the report")


def opened(page: str, folder: Path, script: str = "") -> tuple[str, list[str], list[str]]:
    """Return the DOM, the console's lines and the addresses asked for, after a headless browser has opened the page."""
    path = folder / "page.html"
    path.write_text(f"<script>{script}</script></body>".join(page.rsplit("</body>", 1)), "utf-8")
    log = folder / "net.json"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    flags += [
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--disable-component-update",
        "--disable-sync",
        "--disable-default-apps",
        "--disable-extensions",
        "--enable-logging=stderr",
    ]
    flags += [f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", "--window-size=1200,900", "--virtual-time-budget=3000"]
    done = subprocess.run([chromium(), *flags, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    asked = re.findall(
        r'"initiator":"(?!not an origin)[^\n]*?"url":"(https?://[^"]+)"', log.read_text("utf-8")
    )  # the page's, not the browser's
    return done.stdout, console, asked


def test_it_opens_without_error_or_request(demo_page, full_page, tmp_path):
    for i, page in enumerate((demo_page, full_page, paper.page())):
        folder = tmp_path / str(i)
        folder.mkdir()
        _, console, asked = opened(page, folder)
        assert console == [] and asked == []


def test_a_fault_in_the_page_would_be_seen(demo_page, tmp_path):
    faulty = demo_page.replace("</main>", '<img src="http://127.0.0.1:9/x.png"></main>')
    _, console, asked = opened(faulty, tmp_path, "undefinedFunction();")
    assert any("undefinedFunction" in line for line in console) and "http://127.0.0.1:9/x.png" in asked


INTERACT = """
const rows = () => [...document.querySelectorAll('#table tbody tr')].map((row) => row.cells[0].textContent);
const heads = () => [...document.querySelectorAll('#table th button')];
const found = { all: rows().length, link: document.querySelector('#table a').getAttribute('href') };
const filter = document.getElementById('filter');
filter.value = 'RESPONSE-micro l0';
filter.dispatchEvent(new Event('input'));
found.filtered = rows();
heads()[0].click();
heads()[0].click();
found.descending = rows();
found.sort = heads()[0].parentElement.ariaSort;
filter.value = '';
filter.dispatchEvent(new Event('input'));
heads()[heads().length - 1].click();
found.scored = rows().slice(0, 4);
document.body.replaceChildren(JSON.stringify(found));
"""


def test_the_list_sorts_and_filters(demo_page, tmp_path):
    dom, console, _ = opened(demo_page, tmp_path, INTERACT)
    found = json.loads(html.unescape(re.search(r"<body>(.*)</body>", dom, re.DOTALL)[1]))
    assert console == [] and found["all"] == 43
    assert found["link"] == "../../datasets/instruction-macro_n1000_l000_s0/"
    levels = ["000", "016", "033", "050", "066", "083"]
    assert found["filtered"] == [f"response-micro_n1000_l{level}_s0" for level in levels]
    assert found["descending"] == found["filtered"][::-1] and found["sort"] == "descending"
    assert set(found["scored"]) == TRAINED  # cells without a score come last


PHONE = """
window.addEventListener('load', () => {
  const inside = document.querySelector('iframe').contentDocument.documentElement;
  const heights = [...inside.querySelectorAll('svg text')].map((text) => text.getBoundingClientRect().height).filter((h) => h > 0);
  const found = { room: inside.clientWidth, width: inside.scrollWidth, shortest: Math.min(...heights), texts: heights.length };
  document.body.replaceChildren(JSON.stringify(found));
});
"""


def test_it_is_readable_on_a_phone(full_page, tmp_path):
    frame = f'<iframe style="width: 360px; height: 700px; border: 0" srcdoc="{html.escape(full_page)}"></iframe>'
    dom, _, _ = opened(f"<!doctype html><html><body>{frame}</body></html>", tmp_path, PHONE)
    found = json.loads(html.unescape(re.search(r"<body>(.*)</body>", dom, re.DOTALL)[1]))
    assert found["width"] <= found["room"] <= 360  # nothing sticks out; wide tables scroll inside
    assert found["texts"] > 100 and found["shortest"] >= 7
