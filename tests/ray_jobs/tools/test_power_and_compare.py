"""The two tools over results, and what they compute with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diversity.artifact import Storage
from diversity.effects import detectable_change, ols, seeds_needed
from diversity.effects.comparing import compare_arms, compare_cells
from diversity.effects.power import scatter
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


# ---- how far runs scatter


def test_scatter_from_repeats_and_from_residuals():
    generator = np.random.default_rng(1)
    rows = noisy({"response-micro": -1, "response-meso": 2}, generator, seeds=100, sd=0.2)
    found = scatter(rows)
    assert found.sd == pytest.approx(0.2, rel=0.06) and found.dof == 2 * 7 * 99 and found.basis.startswith("repeats: 14 cells")
    low, high = found.interval()
    assert low < found.sd < high
    once = [row for row in rows if row["subset_seed"] == 0]
    residuals = scatter(once)
    lines = [ols([r["level"] for r in mine], [r["value"] for r in mine]) for mine in (once[:7], once[7:])]
    assert residuals.dof == 10 and residuals.sd == pytest.approx(np.sqrt(np.mean([line.residual_sd**2 for line in lines])))
    with pytest.raises(ValueError, match="no level has two runs"):
        scatter(once[:2])


def test_the_interval_of_sigma_covers_it():
    generator = np.random.default_rng(2)
    inside = 0
    for _ in range(300):
        low, high = scatter([result("response-micro", 0.5, v, seed=s) for s, v in enumerate(generator.normal(0, 0.2, 5))]).interval()
        inside += low <= 0.2 <= high
    assert inside / 300 == pytest.approx(0.95, abs=0.04)


def test_blocks_cost_degrees_of_freedom_as_in_the_analysis():
    """A planned change is found as often as promised when every subset seed has an intercept of its own."""
    generator, seeds = np.random.default_rng(3), 3
    x = np.tile(LEVELS, seeds)
    change = detectable_change(x, 0.5, blocks=seeds)
    assert change > detectable_change(x, 0.5)
    for wanted in (1.0, 2.0):
        needed = seeds_needed(wanted, LEVELS, blocked=True)
        assert detectable_change(LEVELS * needed, blocks=needed) <= wanted < detectable_change(LEVELS * (needed - 1), blocks=needed - 1)
    blocks = np.repeat(range(seeds), 7)
    found = np.mean([ols(x, change * x + generator.normal(0, 0.5, 21), blocks).p < 0.05 for _ in range(1500)])
    assert found == pytest.approx(0.8, abs=0.035)


# ---- the tool


def test_power_reads_a_pilot_and_plans(tmp_path, capsys):
    rows = noisy({"response-micro": -1}, np.random.default_rng(4), seeds=20, sd=0.2, levels=(0.5,))
    folder = seal(tmp_path, "pilot", rows)
    assert power.main([str(folder), "--levels", "7", "--seeds", "1", "3", "--change", "0.5"]) == 0
    told = capsys.readouterr().out
    sigma = scatter(rows)
    assert f"sigma, of one run given its arm and level: {sigma.sd:.4g} (95% interval" in told and "nll/out/nll, 20 runs" in told
    (line,) = [line.split() for line in told.splitlines() if line.split()[:2] == ["1", "7"]]
    assert float(line[2]) == pytest.approx(detectable_change(LEVELS, sigma.sd), rel=1e-3) and line[3] == "3.96"
    assert float(line[4]) == pytest.approx(2**0.5 * float(line[2]), rel=1e-3) and float(line[5]) > float(line[2])
    assert told.count("A change of 0.5 needs") == 2
    assert power.main([str(tmp_path / "results" / "r-pilot" / "results.parquet")]) == 0


def test_two_pilots_are_pooled_within_themselves(tmp_path, capsys):
    """The same cells trained by two experiments differ by more than chance: their scatter does not hold that difference."""
    generator = np.random.default_rng(5)
    pilots = [noisy({"response-micro": 0}, generator, seeds=8, sd=0.1, levels=(0.5,)) for _ in range(2)]
    pilots[1] = [{**row, "value": row["value"] + 50} for row in pilots[1]]
    folders = [str(seal(tmp_path, name, rows)) for name, rows in zip("ab", pilots)]
    assert power.main(folders) == 0
    assert "16 runs" in (told := capsys.readouterr().out) and "14 degrees of freedom" in told


def test_power_without_a_pilot(capsys):
    assert power.main(["--sigma", "1", "--levels", "0,1", "--seeds", "1", "5", "--change", "1.33"]) == 0
    told = capsys.readouterr().out
    assert "too few runs for a slope" in told and "A change of 1.33 needs 11 seeds, 22 runs a strategy." in told


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give either RESULTS"),
        (["--sigma", "0"], "above 0"),
        (["--sigma", "1", "--levels", "1,1"], "two different fractions"),
        (["--sigma", "1", "--levels", "many"], "--levels many"),
        (["--sigma", "1", "--change", "0"], "--change 0"),
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
    mine = [row for row in first if row["strategy"] == "response-micro"]
    alone = ols([r["level"] for r in mine], [r["value"] for r in mine], [r["subset_seed"] for r in mine])
    assert arms["response-micro"].first.se == pytest.approx(alone.se)
    cells = compare_cells(first, second)
    assert len(cells.cells) == 42 and cells.difference.estimate == pytest.approx(1.25)
    a, b = seal(tmp_path, "one", first), seal(tmp_path, "two", second[:21])
    assert compare.main([str(a), str(b), "--cells"]) == 0
    told = capsys.readouterr().out
    assert "A: one\nB: two\nscore: nll/out/nll (lower is better)" in told and "21 cells are scored in both" in told
    assert sum(line.startswith("response-micro_n1000_l") for line in told.splitlines()) == 21 and "response-meso" not in told


def test_cells_are_pairs_and_nothing_is_claimed_that_is_not_shown():
    rows = [result("random", None, value, seed=seed) for seed, value in enumerate((1.0, 5.0, 9.0))]
    moved = [{**row, "value": row["value"] + shift} for row, shift in zip(rows, (0.1, -0.1, 0.05))]
    found = compare_cells(rows, moved)
    assert found.difference.se == pytest.approx(np.std([0.1, -0.1, 0.05], ddof=1) / 3**0.5) and found.correlation > 0.99
    low, high = found.difference.interval()
    assert f"one larger than {max(-low, high):.4g} is excluded" in compare.told(found.difference)
    assert compare_cells(rows[:1], moved[:1]).difference is None and compare_cells(rows, []).cells == []


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
    alone = [str(seal(tmp_path, name, [row for row in first if row["level"] == 0])) for name in ("three", "four")]
    assert compare.main([*alone, "--html", str(tmp_path / "none.html")]) == 0
    assert "No arm has three scored levels in both." in (tmp_path / "none.html").read_text("utf-8")


def test_scores_that_are_not_shared_are_named(tmp_path, capsys):
    rows = [result("response-micro", x, x) for x in LEVELS]
    a, b = seal(tmp_path, "one", rows), seal(tmp_path, "two", [{**row, "metric": "other"} for row in rows])
    assert compare.main([str(a), str(b)]) == 1 and "no score in common" in capsys.readouterr().err
    assert compare.main([str(a), str(a), "--score", "x/y/z"]) == 1 and "there is nll/out/nll" in capsys.readouterr().err


def test_they_run_as_commands(tmp_path):
    folder = seal(tmp_path, "one", noisy({"response-micro": -1}, np.random.default_rng(7)))
    for tool, targets in (("power", [folder]), ("compare", [folder, folder])):
        command = [sys.executable, "-m", "ray_jobs", tool, *map(str, targets)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "nll/out/nll" in done.stdout
