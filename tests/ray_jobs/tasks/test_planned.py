"""The plan: sealed once, before the first score counts, and another one where what is planned is another."""

from __future__ import annotations

import pytest

from diversity.config import ConfigError
from ray_jobs.job.experiment import load_experiment
from ray_jobs.job.runtime import Context
from ray_jobs.tasks.planned import plan_artifact, plan_of, planned_runs, seal_plan

CONFIG = """
experiment: planned
storage: {storage}
corpus: {{paths: ["builtin:python-docs"]}}
grid: {{strategies: [response-micro, random], sizes: [1000], levels: [0, 0.5, 1], subset_seeds: [0, 1], level_seeds: {seeds}}}
sft: {{training_seeds: [0, 1]}}
evaluation: {{heldout: {{in: {{fraction: 0.02}}, out: null}}, evaluators: [nll]}}
plan: {{primary: [{{strategy: response-micro}}, {{strategy: response-micro, less: {less}}}], margin: 0.01}}
"""


def context_of(folder, *overrides, seeds="shared", less="random"):
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(storage=folder / "runs", seeds=seeds, less=less), "utf-8")
    return Context(load_experiment(path, list(overrides), inside_job=False), path)


def test_a_plan_is_sealed_once_and_read_again(tmp_path):
    context = context_of(tmp_path)
    assert plan_of(context, 0).scored_before == 1  # never sealed: as late as can be
    artifact = seal_plan(context, 0)
    assert (
        artifact.sealed and artifact.manifest["stopping"] == "every planned run is scored" and artifact.manifest["score"] == ["nll", "out"]
    )
    assert seal_plan(context, 7).manifest["scored_before"] == 0  # the first seal stays
    plan = plan_of(context, 16)
    assert plan.scored_before == 0 and plan.planned.num_rows == 16 == planned_runs(context.experiment).num_rows
    assert context.index.read()["plan"] == {artifact.fingerprint: artifact.path}


@pytest.mark.parametrize("change", ["plan.margin=0.02", "sft.lr=1.0e-4", "grid.subset_seeds=[0,1,2]", "sft.training_seeds=[0]"])
def test_what_changes_the_plan_is_planned_anew_and_told_to_be_late(change, tmp_path):
    first, second = context_of(tmp_path), context_of(tmp_path, change)
    seal_plan(first, 0)
    assert plan_artifact(second).fingerprint != plan_artifact(first).fingerprint
    seal_plan(second, 5)
    assert plan_of(second, 5).scored_before == 5 and plan_of(first, 0).scored_before == 0


def test_a_primary_effect_of_what_is_not_trained_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"plan.primary.1.less: no cell of randon is trained: did you mean 'random'"):
        context_of(tmp_path, less="randon")
    with pytest.raises(ConfigError, match=r"plan.primary.0: no cell of response-micro with control none is trained"):
        context_of(tmp_path, "grid.train=['random_*']")
    beside = ["grid.controls=[none, length-quota]", "grid.train=['response-micro_*', 'random_*_length-quota']"]
    with pytest.raises(ConfigError, match=r"plan.primary.1.less: no cell of random is trained"):
        context_of(tmp_path, *beside)  # under another control, so that nothing would ever be compared with it


def test_levels_with_seeds_of_their_own_share_none(tmp_path):
    cells = context_of(tmp_path, seeds="own").experiment.cells
    seeds = {float(level): {cell.subset_seed for cell in cells if cell.level == level} for level in {c.level for c in cells} - {None}}
    assert seeds == {0.0: {0, 1}, 0.5: {2, 3}, 1.0: {4, 5}}
    assert {cell.subset_seed for cell in cells if cell.level is None} == {0, 1}
