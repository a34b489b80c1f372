"""The miniature replication is the design of METHOD's power section: 90 runs, by arm and level."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from diversity.config import ConfigError
from diversity.effects.power import PlannedSlope, Simulation, what_can_not_be_shown
from ray_jobs.build_datasets import together
from ray_jobs.job.experiment import load_experiment
from ray_jobs.tasks.planned import planned_runs

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


def test_its_plan_names_the_two_primary_effects_before_anything_is_trained():
    experiment = load()
    assert [(one.strategy, one.less) for one in experiment.plan.primary] == [("response-micro", None), ("response-micro", "random")]
    assert experiment.plan.margin == 0.01 and what_can_not_be_shown(planned_runs(experiment).to_pylist()) == []


def test_power_of_the_main_slope_is_what_the_page_says():
    """By the whole rule, 25 datasets in ten subset seeds find 1.45 standard deviations of a dataset."""
    experiment = load()
    cells = [cell for cell in experiment.trained_cells if (cell.strategy, cell.control) == ("response-micro", "none")]
    planned = PlannedSlope(np.array([float(cell.level) for cell in cells]), np.array([cell.subset_seed for cell in cells]))
    simulation = Simulation(planned, simulations=1000)
    assert simulation.power(1.45) == pytest.approx(0.8, abs=0.04) and len(cells) == 25


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
