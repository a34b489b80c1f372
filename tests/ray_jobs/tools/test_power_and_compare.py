"""The two tools over results, and what they compute with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.artifact import Storage
from diversity.effects import effects_table, holm, ols, slope_difference, verdict
from diversity.effects.comparing import compare_arms, compare_cells
from diversity.effects.ledger import Ledger
from diversity.effects.plan import PrimaryConfig
from diversity.effects.power import PlannedContrast, PlannedSlope, Simulation, _holm, scatter, seeds_needed, what_can_not_be_shown
from diversity.effects.regression import mean_of
from diversity.effects.slopes import Measured, slope_rows
from ray_jobs.tools import compare, power
from tests.diversity.effects.results import LEVELS, noisy, result, table

ROOT = Path(__file__).resolve().parents[3]


def seal(storage, name, rows):
    """Return the folder of an experiment that has only results."""
    artifact = Storage(str(storage)).artifact("results", f"r-{name}").begin()
    artifact.write(table(rows), "results.parquet")
    artifact.seal({})
    folder = storage / "experiments" / name
    folder.mkdir(parents=True)
    (folder / "index.json").write_text(json.dumps({"experiment": name, "artifacts": {"results": artifact.path}}))
    return folder


# ---- how far datasets scatter


def test_scatter_from_repeats_and_from_residuals():
    generator = np.random.default_rng(1)
    rows = noisy({"response-micro": -1, "response-meso": 2}, generator, seeds=100, sd=0.2)
    found = scatter(rows)
    assert found.sd == pytest.approx(0.2, rel=0.06) and found.dof == 2 * 7 * 99 and found.basis.startswith("14 cells of an arm and level")
    low, high = found.interval()
    assert low < found.sd < high
    once = [row for row in rows if row["subset_seed"] == 0]
    residuals = scatter(once)
    lines = [ols([r["level"] for r in mine], [r["value"] for r in mine]) for mine in (once[:7], once[7:])]
    assert residuals.dof == 10 and residuals.sd == pytest.approx(np.sqrt(np.mean([line.residual_sd**2 for line in lines])))
    with pytest.raises(ValueError, match="no level has two datasets"):
        scatter(once[:2])


def test_training_seeds_are_not_told_as_the_scatter_of_datasets():
    """Runs of one dataset agree to 0.01, datasets to 1: a new dataset is what a plan is about."""
    generator = np.random.default_rng(9)
    rows = []
    for row in noisy({"response-micro": 0}, generator, seeds=40, sd=1.0, levels=(0.5,)):
        rows += [
            {**row, "run": f"{row['run']} {t}", "training_seed": t, "value": row["value"] + generator.normal(0, 0.01)} for t in range(3)
        ]
    found = scatter(rows)
    assert found.sd == pytest.approx(1, rel=0.3) and found.dof == 39 and "each the mean of 3 training runs" in found.basis
    with pytest.raises(ValueError, match="no level has two datasets"):
        scatter(rows[:3])


def test_the_interval_of_sigma_covers_it():
    generator = np.random.default_rng(2)
    inside = 0
    for _ in range(300):
        low, high = scatter([result("response-micro", 0.5, v, seed=s) for s, v in enumerate(generator.normal(0, 0.2, 5))]).interval()
        inside += low <= 0.2 <= high
    assert inside / 300 == pytest.approx(0.95, abs=0.04)


# ---- the whole rule, simulated


def rows_of(planned, y):
    pairs = zip(planned.levels, planned.seeds, y, strict=True)
    return [result("response-micro", float(x), float(v), seed=int(s), higher=True) for x, s, v in pairs]


@pytest.mark.parametrize(("levels", "seeds", "own"), [((0, 0.5, 1), 3, False), ((0, 0, 0.5, 1, 1), 2, False), ((0, 0.5, 1), 2, True)])
def test_many_simulations_at_once_are_the_analysis_of_each(levels, seeds, own):
    planned = PlannedSlope.of(levels, seeds, own)
    y = np.random.default_rng(5).normal(size=(len(planned.levels), 4)) + 2 * planned.levels[:, None]
    t, shuffled = planned.t_p(y), planned.shuffle_p(y)
    for i in range(4):
        rows = rows_of(planned, y[:, i])
        (row,) = [r for r in slope_rows(rows, Measured(Ledger(table(rows)), predictors=("level",))) if r.get("p") and r["subset"] == "all"][
            :1
        ]
        assert (row["p"], row["p_permutation"], row["p_smallest"]) == pytest.approx((t[i], shuffled[i], planned.smallest_p))


def test_a_contrast_is_simulated_as_it_is_analysed():
    for top, others in ((2, 6), (4, 4)):
        y = np.random.default_rng(6).normal(size=(top + others, 3))
        found = PlannedContrast(top, others).t_p(y)
        alone = [slope_difference(mean_of(column[:top]), mean_of(column[top:])).p for column in y.T]
        assert found == pytest.approx(alone)


def test_holm_among_others_is_that_of_holm():
    generator = np.random.default_rng(7)
    others, p = np.sort(generator.random((4, 50)), axis=0), generator.random(50) ** 3
    assert _holm(p, others) == pytest.approx([holm([p[i], *others[:, i]])[0] for i in range(50)])
    assert _holm(p, np.empty((0, 50))) == pytest.approx(p)


def test_power_of_designs_that_can_show_nothing_is_0():
    assert Simulation(PlannedSlope.of((0, 0.5, 1), 2)).power(50) == 0  # 36 orders
    assert Simulation(PlannedSlope.of(LEVELS, 1)).power(50) == 0  # one subset seed
    assert Simulation(PlannedContrast(3, 3)).power(50) == 0
    assert Simulation(PlannedSlope.of((0, 0.5, 1), 2)).detectable() == float("inf")


def test_power_rises_with_the_change_and_is_the_noncentral_t_where_that_holds():
    """Seven datasets drawn apart, far from few orders: Student's t decides, with 3.96 sigma at 80% (METHOD 5)."""
    from scipy import stats

    simulation = Simulation(PlannedSlope.of(LEVELS, 3, own=True), simulations=1000)
    spread = float(np.sum((np.tile(LEVELS, 3) - 0.5) ** 2))
    exact = stats.nct.sf(stats.t.ppf(0.975, 19), 19, 2 * spread**0.5)
    assert simulation.power(2) == pytest.approx(exact, abs=0.04)
    assert simulation.power(0) < 0.08 < simulation.power(1) < simulation.power(2) < simulation.power(4)
    assert simulation.power(simulation.detectable()) == pytest.approx(0.8, abs=0.02)


def test_seeds_needed_is_the_smallest_number():
    seeds = seeds_needed(2.0, (0, 0.5, 1))
    assert [Simulation(PlannedSlope.of((0, 0.5, 1), n), simulations=1000).power(2.0) >= 0.8 for n in (seeds - 1, seeds)] == [False, True]
    with pytest.raises(ValueError, match="needs more than"):
        seeds_needed(0.001, (0, 0.5, 1))


def test_designs_are_warned_about_before_anything_is_trained():
    def planned(levels, seeds, control="none"):
        return [{"strategy": "response-micro", "size": 1, "control": control, "level": x, "subset_seed": s} for x in levels for s in seeds]

    (one,) = what_can_not_be_shown(planned(LEVELS, [0]))
    assert "one subset seed" in one and "grid.level_seeds=own" in one
    (two,) = what_can_not_be_shown([*planned((0, 0.5, 1), [0, 1]), *planned((0, 0.5, 1), range(5), "tokens")])
    assert "6 datasets allow p ≥ 0.056" in two
    (few,) = what_can_not_be_shown(planned((0, 1), range(6)))
    assert few.endswith("its slope will be not known whatever the effect: a slope needs 3 different levels, there are 2")
    assert what_can_not_be_shown(planned((0, 0.5, 1), range(3))) == []


@pytest.mark.parametrize(
    ("others", "reason"), [(3, "6 datasets allow p ≥ 0.1"), (1, "needs 2 datasets of each, there are 3 and 1"), (9, None)]
)
def test_contrasts_are_warned_about_as_slopes_are(others, reason):
    """With random ones always, with others where the plan names them."""

    def planned(strategy, levels, seeds):
        return [{"strategy": strategy, "size": 1, "control": "none", "level": x, "subset_seed": s} for x in levels for s in range(seeds)]

    dialled = planned("response-micro", (0, 0.5, 1), 3)
    told = what_can_not_be_shown([*dialled, *planned("random", (None,), others)])
    assert len(told) == (reason is not None) and all(reason in line and "level 1 less random will be not known" in line for line in told)
    longest = [*dialled, *planned("longest", (None,), others)]
    named = [PrimaryConfig(strategy="response-micro", less="longest")]
    assert what_can_not_be_shown(longest) == [] and len(what_can_not_be_shown(longest, named)) == len(told)


@settings(max_examples=40, deadline=None)
@given(st.sets(st.sampled_from([0, 0.25, 0.5, 0.75, 1]), min_size=2), st.integers(1, 3), st.booleans(), st.integers(0, 3))
def test_what_is_refused_beforehand_is_what_the_verdict_does_not_know(levels, seeds, own, others):
    """And the other way about: whatever is not warned about can be claimed, where the effect is plain."""
    planned = PlannedSlope.of(sorted(levels), seeds, own)
    rows = rows_of(planned, 100 * planned.levels + np.random.default_rng(len(levels)).normal(size=len(planned.levels)))
    rows += [result("random", None, -900.0 + s, seed=s, higher=True) for s in range(others)]
    warned = {"random" if "less random" in line else "slope" for line in what_can_not_be_shown(rows)}
    found = {"random" if s.kind == "contrast" else "slope": s.claim for s in verdict(effects_table(table(rows))) if s.kind != "best"}
    assert {what for what, claim in found.items() if claim == "not known"} == warned


# ---- the tool


def test_power_reads_a_pilot_and_plans(tmp_path, capsys):
    rows = noisy({"response-micro": -1}, np.random.default_rng(4), seeds=20, sd=0.2, levels=(0.5,))
    folder = seal(tmp_path, "pilot", rows)
    assert power.main([str(folder), "--levels", "0,0.5,1", "--seeds", "2", "5", "--change", "0.5"]) == 0
    told = capsys.readouterr().out
    sigma = scatter(rows)
    assert f"sigma, of a new dataset given its arm and level: {sigma.sd:.4g} (95% interval" in told and "nll/out/nll, 20 runs" in told
    lines = {line.split()[0]: line.split() for line in told.splitlines() if line.split()[1:2] in (["6"], ["15"])}
    assert lines["2"][2] == "none" and float(lines["5"][2]) == pytest.approx(float(lines["5"][3]) * sigma.sd, rel=0.01)
    assert float(lines["5"][4]) > float(lines["5"][2])
    assert "2 seeds: a slope will be not known whatever the effect: 6 datasets allow p ≥ 0.056 by shuffling" in told
    assert told.count("A change of 0.5 needs") == 2
    alone, among = (seeds_needed(0.5 / sigma.sd, (0, 0.5, 1), tests=tests) for tests in (1, 6))
    assert (
        alone < among and f"{alone} seeds, {3 * alone} datasets a strategy, and among 6 by Holm {among} seeds, {3 * among} datasets" in told
    )
    assert power.main([str(tmp_path / "results" / "r-pilot" / "results.parquet"), "--seeds", "3"]) == 0


def test_two_pilots_are_pooled_within_themselves(tmp_path, capsys):
    """The same cells trained by two experiments differ by more than chance: their scatter does not hold that difference."""
    generator = np.random.default_rng(5)
    pilots = [noisy({"response-micro": 0}, generator, seeds=8, sd=0.1, levels=(0.5,)) for _ in range(2)]
    pilots[1] = [{**row, "value": row["value"] + 50} for row in pilots[1]]
    folders = [str(seal(tmp_path, name, rows)) for name, rows in zip("ab", pilots)]
    assert power.main([*folders, "--seeds", "3"]) == 0
    assert "16 runs" in (told := capsys.readouterr().out) and "14 degrees of freedom" in told


def test_pilots_of_different_scores_are_not_pooled(tmp_path, capsys):
    pilots = [noisy({"response-micro": 0}, np.random.default_rng(5), seeds=8, levels=(0.5,)) for _ in range(2)]
    other = [{**row, "metric": "wins", "value": 50 * row["value"]} for row in pilots[1]]
    folders = [str(seal(tmp_path, name, rows)) for name, rows in (("a", pilots[0]), ("b", other), ("c", [*other, *pilots[1]]))]
    assert power.main([*folders[:2], "--seeds", "3"]) == 1
    assert "there is nll/out/wins; pilots are pooled on one score" in capsys.readouterr().err
    assert power.main([folders[0], folders[2], "--seeds", "3"]) == 0 and "nll/out/nll, 16 runs" in capsys.readouterr().out


def test_power_of_two_levels_promises_no_slope(capsys):
    assert power.main(["--sigma", "1", "--levels", "0,1", "--seeds", "6"]) == 0
    told = capsys.readouterr().out
    assert "6 seeds: a slope will be not known whatever the effect: a slope needs 3 different levels, there are 2" in told
    (line,) = [line.split() for line in told.splitlines() if line.split()[:2] == ["6", "12"]]
    assert line[2:5] == ["none"] * 3 and float(line[5]) > 0  # the contrast can be shown


def test_power_without_a_pilot(capsys):
    assert power.main(["--sigma", "1", "--levels", "0,0.5,1", "--seeds", "1", "4", "--own-seeds"]) == 0
    told = capsys.readouterr().out
    assert "subset seeds of its own for each level" in told and "3 datasets allow p ≥ 0.33" in told


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give either RESULTS"),
        (["--sigma", "0"], "above 0"),
        (["--sigma", "1", "--levels", "1,1"], "two different fractions"),
        (["--sigma", "1", "--levels", "many"], "--levels many"),
        (["--sigma", "1", "--levels", "0,0.5,1", "--seeds", "3", "--change", "0"], "--change 0"),
        (["--sigma", "1", "--levels", "0,1", "--seeds", "3", "--change", "2"], "--change 2: a slope needs 3 different levels"),
        (["--sigma", "1", "--seeds", "3", "--change", "nan"], "--change nan"),
        (["--sigma", "inf"], "--sigma inf"),
        (["--sigma", "1", "--seeds", "0"], "--seeds 0: give a number from 1 on"),
        (["--sigma", "1", "--tests", "0"], "--tests 0: give a number from 1 on"),
        (["--sigma", "1", "--random", "0"], "--random 0: give a number from 1 on"),
        (["--sigma", "1", "--random", "-1"], "--random -1: give a number from 1 on"),
        (["--sigma", "1", "--power", "1"], "--power 1: give a number between 0 and 1"),
        (["--sigma", "1", "--alpha", "0"], "--alpha 0: give a number between 0 and 1"),
        (["/nowhere/at/all"], "no /nowhere/at/all/results.parquet"),
    ],
)
def test_what_a_person_can_mend_is_one_line(flags, message, capsys):
    assert power.main(flags) == 1
    told = capsys.readouterr().err
    assert message in told and len(told.strip().splitlines()) == 1


# ---- compare


def test_slopes_of_two_experiments(tmp_path, capsys):
    generator = np.random.default_rng(6)
    first = noisy({"response-micro": -1, "response-meso": 0}, generator)
    second = [{**row, "value": row["value"] + 1 + 0.5 * row["level"], "run": "b" + row["run"]} for row in first]
    arms = {arm.strategy: arm for arm in compare_arms(first, second)}
    assert arms["response-micro"].difference.estimate == pytest.approx(0.5)
    mine = [[r for r in first if (r["strategy"], r["subset_seed"]) == ("response-micro", seed)] for seed in range(3)]
    alone = [ols([r["level"] for r in seed], [r["value"] for r in seed]).estimate for seed in mine]
    assert arms["response-micro"].first.se == pytest.approx(np.std(alone, ddof=1) / 3**0.5)
    assert arms["response-micro"].paired and arms["response-micro"].difference.se < 1e-9  # seed by seed nothing differs but 0.5
    cells = compare_cells(first, second)
    assert len(cells.cells) == 42 and cells.seeds == 3 and cells.difference.estimate == pytest.approx(1.25)
    a, b = seal(tmp_path, "one", first), seal(tmp_path, "two", second[:21])
    assert compare.main([str(a), str(b), "--cells"]) == 0
    told = capsys.readouterr().out
    assert "A: one\nB: two\nscore: nll/out/nll (lower is better)" in told and "21 datasets are scored in both" in told
    assert sum(line.startswith("response-micro_n1000_l") for line in told.splitlines()) == 21 and "response-meso" not in told


def test_cells_are_pairs_and_nothing_is_claimed_that_is_not_shown():
    rows = [result("random", None, value, seed=seed) for seed, value in enumerate((1.0, 5.0, 9.0))]
    moved = [{**row, "value": row["value"] + shift} for row, shift in zip(rows, (0.1, -0.1, 0.05))]
    found = compare_cells(rows, moved)
    assert found.difference.se == pytest.approx(np.std([0.1, -0.1, 0.05], ddof=1) / 3**0.5) and found.correlation > 0.99
    low, high = found.difference.interval()
    assert "none is shown" in compare.told(found.difference) and low < 0 < high
    assert compare_cells(rows[:1], moved[:1]).difference is None and compare_cells(rows, []).cells == []


def test_cells_of_one_dataset_are_one_and_seeds_are_the_unit():
    """Ten subset seeds with one dataset at level 1 are a single one there, and its seeds are connected: nothing independent is left."""
    rows = [result("response-micro", x, x + 0.1 * s, seed=s, run="one" if x == 1 else None) for x in (0, 0.5, 1) for s in range(10)]
    rows = [{**row, "value": 1.0} if row["run"] == "one" else row for row in rows]
    second = [{**row, "value": row["value"] + 0.3} for row in rows]
    found = compare_cells(rows, second)
    assert len(found.cells) == 21 and found.seeds == 1 and found.difference is None
    free = [row for row in rows if row["level"] < 1]
    assert compare_cells(free, [row for row in second if row["level"] < 1]).seeds == 10


def test_a_seed_with_one_level_does_not_end_the_comparison():
    own = [result("response-micro", x, x + 0.1 * s, seed=10 * j + s) for j, x in enumerate((0, 0.5, 1)) for s in range(3)]
    (arm,) = compare_arms(own, [{**row, "value": 2 * row["value"], "run": "b" + row["run"]} for row in own])
    assert not arm.paired and arm.difference.estimate == pytest.approx(1) and arm.difference.dof > 3


def test_the_page_of_two_experiments(tmp_path, capsys):
    generator = np.random.default_rng(8)
    first = noisy({"response-micro": -1, "response-meso": 0}, generator)
    second = [{**row, "value": row["value"] + row["level"], "se": 0.1} for row in first]
    folders = [str(seal(tmp_path, name, rows)) for name, rows in (("one <a>", first), ("two", second))]
    assert compare.main([*folders, "--html", str(tmp_path / "both.html")]) == 0
    page = (tmp_path / "both.html").read_text("utf-8")
    assert page.count("<svg ") == 2 and page.count("<title>two, response-m") == 42 and "one &lt;a&gt; and two" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http://www.w3.org/1999/xlink", "")
    assert "both.html" in capsys.readouterr().out
    assert compare.main([*folders, "--html", str(tmp_path / "new" / "folder" / "both.html")]) == 0
    assert (tmp_path / "new" / "folder" / "both.html").read_text("utf-8") == page
    assert compare.main([*folders, "--html", str(tmp_path / "both.html" / "x.html")]) == 1 and "can't write" in capsys.readouterr().err
    alone = [str(seal(tmp_path, name, [row for row in first if row["level"] == 0])) for name in ("three", "four")]
    assert compare.main([*alone, "--html", str(tmp_path / "none.html")]) == 0
    assert "No arm has three scored levels in both." in (tmp_path / "none.html").read_text("utf-8")


def test_scores_that_are_not_shared_are_named(tmp_path, capsys):
    rows = [result("response-micro", x, x) for x in LEVELS]
    a, b = seal(tmp_path, "one", rows), seal(tmp_path, "two", [{**row, "metric": "other"} for row in rows])
    assert compare.main([str(a), str(b)]) == 1 and "no score in common" in capsys.readouterr().err
    assert compare.main([str(a), str(a), "--score", "x/y/z"]) == 1 and "there is nll/out/nll" in capsys.readouterr().err


def test_what_is_no_table_of_results_is_told(tmp_path, capsys):
    folder = seal(tmp_path, "one", noisy({"response-micro": -1}, np.random.default_rng(7)))
    for told, file in (("it has no column run", ROOT / "docs" / "data" / "cells.parquet"), ("is no Parquet file", tmp_path / "x.parquet")):
        (tmp_path / "x.parquet").write_text("x")
        assert compare.main([str(file), str(folder)]) == 1
        assert told in (line := capsys.readouterr().err) and len(line.strip().splitlines()) == 1


def test_they_run_as_commands(tmp_path):
    folder = seal(tmp_path, "one", noisy({"response-micro": -1}, np.random.default_rng(7)))
    for tool, targets in (("power", [folder]), ("compare", [folder, folder])):
        command = [sys.executable, "-m", "ray_jobs", tool, *map(str, targets), *(["--seeds", "3"] if tool == "power" else [])]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "nll/out/nll" in done.stdout
