"""The miniature replication is the design of METHOD's power section: 90 runs, by arm and level."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from diversity.config import ConfigError
from diversity.effects import detectable_change
from ray_jobs.build_datasets import together
from ray_jobs.job.experiment import load_experiment

CONFIG = Path(__file__).resolve().parents[2] / "ray_jobs" / "configs" / "miniature.yaml"
GIVEN = ["corpus.paths=[data.parquet]", "evaluation.heldout.out.paths=[prompts.jsonl]"]
RUNS = {
    ("response-micro", "none"): {0: 10, 0.5: 5, 1: 10},
    ("instruction-micro", "none"): {0: 6, 0.5: 3, 1: 6},
    ("response-meso", "none"): {0: 6, 0.5: 3, 1: 6},
    ("response-micro", "length-quota"): {0: 6, 0.5: 3, 1: 6},
    ("response-micro@word", "none"): {0: 4, 0.5: 2, 1: 4},
    ("random", "none"): {None: 10},
}


def load(*overrides):
    return load_experiment(CONFIG, [*GIVEN, *overrides], inside_job=False)


def test_it_expands_to_ninety_runs_of_its_arms():
    experiment = load()
    assert len(experiment.cells) == 4 * 3 * 10 * 2 + 10 * 2
    cells = experiment.trained_cells
    assert len(cells) == 90 and experiment.sft.training_seeds == [0] and {cell.size for cell in cells} == {2000}
    found = Counter((cell.strategy, cell.control, None if cell.level is None else float(cell.level)) for cell in cells)
    assert found == {(*arm, level): count for arm, levels in RUNS.items() for level, count in levels.items()}
    seeds = {(cell.strategy, cell.control, cell.level): set() for cell in cells}
    for cell in cells:
        seeds[cell.strategy, cell.control, cell.level].add(cell.subset_seed)
    assert all(found == set(range(len(found))) for found in seeds.values())  # lower seeds first, so that arms share blocks
    assert experiment.sft.budget.response_tokens and experiment.selection.rho >= 3
    assert experiment.evaluation.evaluators[0].name == "nll" and experiment.evaluation.heldout.out is not None


def test_levels_are_planned_once_for_a_strategy_and_control():
    groups = together(load().cells)
    assert [len(group) for group in groups] == [30] * 8 + [10] * 2
    assert all(len({(cell.strategy, cell.control) for cell in group}) == 1 for group in groups)


def test_it_sees_an_effect_of_the_size_that_it_was_planned_for():
    """The primary arm: METHOD's table has 1.33 sigma for 10 runs at each end, to which the middle adds degrees of freedom alone."""
    levels = [level for level, count in RUNS["response-micro", "none"].items() for _ in range(count)]
    assert detectable_change(levels) == pytest.approx(1.31, abs=0.02)


def test_its_other_arms_are_overrides():
    epochs = load("experiment=miniature-epochs", "sft.budget={epochs: 3}")
    assert epochs.sft.budget.epochs == 3 and epochs.sft.budget.response_tokens is None and len(epochs.trained_cells) == 90
    rho = load("selection.rho=1", "grid.controls=[none]", "grid.train=[response-micro_*, random_*]")
    assert Counter(cell.strategy for cell in rho.trained_cells) == {"response-micro": 30, "random": 10}
    assert len(load("grid.sizes=[4000]").trained_cells) == 90
    assert len(load("grid.subset_seeds=[0,1]").trained_cells) == 2 * (5 * 3 + 1)


def test_it_says_what_it_needs():
    with pytest.raises(ConfigError, match="say which files hold the evaluation samples"):
        load_experiment(CONFIG, GIVEN[:1], inside_job=False)
