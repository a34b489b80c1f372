"""Judged scores join results, and the page on judging says what it must."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from diversity.artifact import ArtifactError, Storage
from diversity.effects import RESULTS_SCHEMA
from diversity.effects.clustered import Estimate
from diversity.effects.scores import SCORES_SCHEMA
from diversity.judging.agreement import Agreement
from diversity.judging.summary import JURY, METRICS, JudgeReport
from diversity.judging.verdicts import OUTCOMES
from ray_jobs.report import judging as page
from ray_jobs.report.judged import with_judgments


def results() -> pa.Table:
    rows = [
        {
            "cell": f"random_n10_s{i}",
            "strategy": "random",
            "size": 10,
            "subset_seed": i,
            "control": "none",
            "training_seed": 0,
            "run": f"r{i}",
        }
        | {"evaluator": "nll", "split": "out", "metric": "nll", "value": 3.0, "se": 0.1, "n": 9, "higher_is_better": False, "primary": True}
        for i in range(3)
    ]
    return pa.Table.from_pylist([{name: row.get(name) for name in RESULTS_SCHEMA.names} for row in rows], schema=RESULTS_SCHEMA)


@pytest.mark.parametrize("passed", [True, False])
def test_judged_rows_stand_behind_their_runs_and_are_primary_only_if_named_and_passed(tmp_path: Path, passed: bool) -> None:
    storage = Storage(str(tmp_path))
    scored = storage.artifact("judged", "a" * 32).begin()
    rows = [
        {
            "run": "x",
            "evaluator": "j",
            "split": split,
            "metric": metric,
            "value": 0.6,
            "se": 0.01,
            "n": 9,
            "higher_is_better": True,
            "primary": False,
        }
        for split in ("alpaca", "arena", "all")
        for metric in METRICS
    ]
    scored.write(pa.Table.from_pylist(rows, schema=SCORES_SCHEMA))
    scored.seal({})
    report = storage.artifact("judged", "b" * 32).begin()
    report.seal({"primary": "j", "primary_passed": passed, "judged": {"random_n10_s1_t0": scored.path}})
    earlier = {f"random_n10_s{i}_t0": scored.path for i in range(3)}  # of a judging with another baseline
    entries = {"judged": earlier, "judging": report.path}
    found, read = with_judgments(storage, entries, results())
    assert found.schema == RESULTS_SCHEMA and set(read) == {scored.path, report.path}
    mine = [row for row in found.to_pylist() if row["cell"] == "random_n10_s1"]
    assert len(found) == 3 + 3 * len(METRICS) and len(mine) == 1 + 3 * len(METRICS) and {row["run"] for row in mine} == {"r1"}
    primary = {(row["evaluator"], row["split"], row["metric"]) for row in found.to_pylist() if row["primary"]}
    assert primary == ({("j", "all", "judged_win_rate")} if passed else {("nll", "out", "nll")})
    assert with_judgments(storage, {"judged": earlier}, results()) == with_judgments(storage, {}, results()) == (results(), [])
    old = storage.artifact("judged", "c" * 32).begin()
    old.seal({"primary": "j", "primary_passed": passed})
    with pytest.raises(ArtifactError, match="made by an earlier version: run judge again"):
        with_judgments(storage, {**entries, "judging": old.path}, results())


def test_the_page_shows_warnings_in_every_table_and_the_a_a_row() -> None:
    def rate(value: float) -> Estimate:
        return Estimate(value, 0.02, value - 0.04, value + 0.04, 100, 100)

    figures = {"alpaca": {name: rate(0.6) for name in METRICS}}
    report = JudgeReport(
        judge="<b>j</b>",
        outcomes={**dict.fromkeys(OUTCOMES, 0), "ok": 90, "no_verdict": 10},
        position=rate(0.3),
        orders=Agreement(0.5, float("nan"), 20),
        repeats=None,
        served={"one": 5, "two": 6},
        controls={"truncated": rate(0.45), "null answer": rate(0.6)},
        accuracy=0.55,
        least=0.75,
        warnings=["prefers clean answers to spoilt ones in only 55% of pairs", "a null answer does not clearly lose: it wins 60%"],
    )
    rows = [
        page.Row("run", False, report.judge, figures),
        page.Row("twin", True, report.judge, figures),
        page.Row("run", False, JURY, figures),
    ]
    data = page.JudgingData(
        "e", ["base"], {"alpaca": 100}, [report], rows, [(report.judge, "k", Agreement(0.7, 0.4, 9))], report.judge, False
    )
    html = page.render(data)
    assert html.count("see its warnings") == 2 and "<b>j</b>" not in html and "A/A" in html
    assert "did not pass calibration: the verdict does not rest on it" in html and "κ not defined" in html
    assert "60.0 ± 4.0%" in html and "http" not in html.replace("http-equiv", "")
    told = page.lines(data)
    assert told[0].startswith("<b>j</b>: prefers clean") and any("twin (A/A)" in line for line in told)
    assert not report.passed and data.record()["reports"][0]["passed"] is False
