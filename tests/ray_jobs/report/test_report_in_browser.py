"""The report as a browser sees it."""

from __future__ import annotations

import html
import json
import re

import pytest

from ray_jobs.report import paper
from ray_jobs.report.data import ReportData
from ray_jobs.report.page import render
from tests.ray_jobs import made_up
from tests.ray_jobs.report.browser import opened
from tests.ray_jobs.report.test_report import TRAINED


@pytest.fixture(scope="module")
def demo_page() -> str:
    """The page of an experiment of which four cells were trained."""
    return render(made_up.report_data(made_up.cells((1000,)), lambda cell: cell.name in TRAINED, note="Four runs <measure> nothing."))


@pytest.fixture(scope="module")
def full_page() -> str:
    """The page of a whole grid of one size and two subset seeds."""
    return render(made_up.report_data(made_up.cells((1000,), levels=4, seeds=(0, 1)), bootstraps=50))


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


HOVER = """
const mark = [...document.querySelectorAll('svg use')].find((use) => use.querySelector('title'));
const title = mark.querySelector('title').textContent;
const box = document.getElementById('hover');
const found = { title, before: box.hidden };
mark.dispatchEvent(new PointerEvent('pointerdown', { bubbles: true, clientX: 100, clientY: 200 }));
found.shown = box.hidden ? null : box.textContent;
mark.dispatchEvent(new PointerEvent('pointerover', { bubbles: true, clientX: 100, clientY: 200 }));
found.again = box.textContent;
document.body.dispatchEvent(new PointerEvent('pointerover', { bubbles: true }));
found.after = box.hidden;
document.body.replaceChildren(JSON.stringify(found));
"""


def test_a_mark_tells_its_cell_on_touch_too(full_page, tmp_path):
    dom, console, _ = opened(full_page, tmp_path, HOVER)
    found = json.loads(html.unescape(re.search(r"<body>(.*)</body>", dom, re.DOTALL)[1]))
    assert console == [] and found["title"] and found["before"] is True and found["after"] is True
    assert found["shown"] == found["title"] == found["again"]


LARGE = """
const found = { rows: document.querySelectorAll('#table tbody tr').length, count: document.getElementById('count').textContent };
document.getElementById('all').click();
found.all = document.querySelectorAll('#table tbody tr').length;
document.body.replaceChildren(JSON.stringify(found));
"""


def test_ten_thousand_cells_open(tmp_path):
    from diversity.effects import EFFECTS_SCHEMA

    grid = made_up.cells((1000,), levels=7, seeds=range(233))
    cells, coverage, sources, results, _ = made_up.tables(grid)
    data = ReportData("large", None, [], cells, coverage, sources, results, EFFECTS_SCHEMA.empty_table(), planned=len(grid))
    page = render(data)
    assert len(grid) > 10_000 and len(page.encode()) < 6e6  # every one of them scored twice
    dom, console, asked = opened(page, tmp_path, LARGE)
    found = json.loads(html.unescape(re.search(r"<body>(.*)</body>", dom, re.DOTALL)[1]))
    assert console == [] and asked == [] and found == {"rows": 200, "count": f"200 of {len(grid)} cells", "all": len(grid)}
