"""Score against measured coverage: the fit that only rises or falls, means of levels, and where what has no level stands."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.artifact import Storage
from diversity.cell import Cell
from diversity.config import UserError
from diversity.effects.scores import SAMPLE_SCORES_SCHEMA
from ray_jobs.report import score_plots
from ray_jobs.report.distinct import distinct_lines, distinct_table
from ray_jobs.report.dose import dose_panels, isotonic, length_beside, level_means, picture
from ray_jobs.report.prompts import PromptErrors, prompts_table
from tests.diversity.effects.results import result, table
from tests.ray_jobs import made_up


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-5, 5)), min_size=2, max_size=9))
def test_the_monotone_fit_is_that_of_sklearn(points):
    from sklearn.isotonic import IsotonicRegression

    x, y = (np.array(values, float) for values in zip(*points))
    places, fitted = isotonic(x, y)
    theirs = [IsotonicRegression(increasing=rising).fit(x, y) for rising in (True, False)]
    left = [np.sum((fit.predict(x) - y) ** 2) for fit in theirs]
    assert np.sum((fitted[np.searchsorted(places, x)] - y) ** 2) == pytest.approx(min(left), abs=1e-9)
    assert (np.diff(fitted) >= -1e-12).all() or (np.diff(fitted) <= 1e-12).all()


def test_means_of_levels_have_the_interval_of_their_common_spread():
    from scipy import stats

    units = [{"level": x, "coverage": x / 2, "value": v} for x, v in ((0, 1.0), (0, 3.0), (1, 5.0), (1, 7.0), (1, 9.0))]
    (low, high) = level_means(units)
    sd = np.sqrt((2 + 8) / 3)
    assert low == (0, 0.0, 2.0, pytest.approx(stats.t.ppf(0.975, 3) * sd / 2**0.5), 2) and high[1:3] == (0.5, 7.0)
    assert level_means(units[:1])[0][3] == 0


def test_random_stands_at_its_own_coverage_with_length_beside():
    grid = [cell for cell in made_up.cells((1000,), levels=3, seeds=(0, 1)) if cell.strategy in ("response-micro", "random")]
    data = made_up.report_data(grid, bootstraps=0)
    (score, *_) = score_plots.scores(data.results)
    (panel,) = dose_panels(data.cells, data.results, score, data.coverage)
    mine = [row["coverage"] for row in data.coverage.to_pylist() if row["typing"] == "response-micro" and row["cell"].startswith("random")]
    titles = re.findall(r"<title>(.*?)</title>", panel.svg)
    (told,) = [title for title in titles if title.startswith("random: ")]
    assert told.endswith(f"over 2 datasets of 1,000, coverage {np.mean(mine):.1%}")
    assert (
        sum(title.startswith("level ") for title in titles) == 3 and sum(title.startswith("response-micro_n1000") for title in titles) == 6
    )
    (length,) = length_beside(data.cells, data.coverage)
    assert any(title.startswith("random: ") for title in re.findall(r"<title>(.*?)</title>", length.svg))
    few = data.results.filter(pa.array([row["level"] != 0.5 for row in data.results.to_pylist()]))
    (panel,) = dose_panels(data.cells, few, score, data.coverage)
    assert panel.remark == "2 of 3 levels trained: too few for a line"
    with pytest.raises(UserError, match="a line takes 3 levels"):
        picture(data.cells, few, score, data.coverage, "")


def test_the_picture_that_stands_alone_shows_every_arm_that_was_trained():
    grid = made_up.cells((1000,), levels=3, seeds=(0, 1))
    data = made_up.report_data(grid, bootstraps=0)
    (score, *_) = score_plots.scores(data.results)
    drawn = picture(data.cells, data.results, score, data.coverage, "A study of something")
    arms = dict.fromkeys(cell.strategy for cell in grid if cell.level is not None)
    assert all(f">{arm}<" in drawn for arm in arms) and "A study of something" in drawn and "var(--" not in drawn
    titles = re.findall(r"<title>(.*?)</title>", drawn)
    assert sum(title.startswith("random: ") for title in titles) == len(arms) > 1
    assert sum(title.startswith("level ") for title in titles) == 3 * len(arms)


# ---- how many datasets there are


def test_datasets_that_are_one_and_what_the_others_share():
    ids = {"a": list("abcd"), "b": list("abce"), "c": list("wxyz")}
    rows = [
        {**replace_of(level, seed), "content": content, "ids": ids[content]}
        for level, seed, content in ((0, 0, "a"), (0, 1, "b"), (0, 2, "a"), (1, 0, "c"), (1, 1, "c"), (1, 2, "c"))
    ]
    found = distinct_table(rows, lambda row: row["ids"])
    low, high = found.to_pylist()
    assert (low["cells"], low["datasets"], low["between_seeds"], low["between_levels"]) == (3, 2, 0.75, None)
    assert (high["cells"], high["datasets"], high["between_seeds"], high["between_levels"]) == (3, 1, None, 0.0)
    (line,) = distinct_lines(found)
    assert line.startswith("response-micro, 4 samples: different datasets 2 of 3 at level 0, 1 of 3 at level 1; two subset seeds share 75%")
    assert distinct_lines(distinct_table(rows[:1], lambda row: row["ids"])) == []


def replace_of(level, seed):
    cell = replace(Cell("response-micro", 4, None, seed))
    return {"strategy": cell.strategy, "size": 4, "control": "none", "level": level, "subset_seed": seed, "cell": f"l{level} s{seed}"}


# ---- prompts


@pytest.fixture
def sealed(tmp_path):
    """Seal the scores of single samples of four runs over 30 prompts in 15 groups."""
    generator = np.random.default_rng(0)
    storage, entries, rows, values = Storage(str(tmp_path)), {"scores": {}}, [], {}
    for i, level in enumerate((0.0, 0.5, 1.0, 1.0)):
        row = result("response-micro", level, 0.0, seed=i, run=f"run {i}", training_seed=0)
        found = generator.normal(size=30)
        values[row["run"]] = found
        rows.append({**row, "value": float(found.mean())})
        artifact = storage.artifact("scores", f"s{i}").begin()
        name = {"run": row["run"], "evaluator": "nll", "split": "out", "metric": "nll"}
        samples = [{**name, "sample_id": f"{j:02d}", "group": j // 2, "tokens": 30, "value": float(v)} for j, v in enumerate(found)]
        order = generator.permutation(30)
        artifact.write(pa.Table.from_pylist([samples[j] for j in order], schema=SAMPLE_SCORES_SCHEMA), "samples/part-00000.parquet")
        artifact.write(pa.table({"value": [0.0]}))
        entries["scores"][f"{row['cell']}_t0"] = artifact.seal({}).path
    return storage, entries, rows, values


def test_errors_over_prompts_are_those_of_the_weighted_sum(sealed):
    from training.evaluators import mean_and_error

    storage, entries, rows, values = sealed
    errors = PromptErrors(table(rows), prompts_table(storage, entries, table(rows)))
    weights = {"run 0": -1.0, "run 1": 0.0, "run 2": 0.5, "run 3": 0.5}
    total = sum(weight * values[run] for run, weight in weights.items())
    assert errors(rows[0], weights) == (pytest.approx(mean_and_error(total, np.arange(30) // 2)[1]), 15)
    assert errors({**rows[0], "primary": False}, weights) is None and errors({**rows[0], "split": "in"}, weights) is None
    assert errors(rows[0], {**weights, "run 9": 1.0}) is None  # a run whose samples nobody has


def test_a_score_that_is_no_mean_of_samples_has_no_such_error(sealed):
    storage, entries, rows, _ = sealed
    other = [{**row, "value": row["value"] + 1} for row in rows]
    assert PromptErrors(table(other), prompts_table(storage, entries, table(other)))(rows[0], {"run 0": 1.0}) is None
