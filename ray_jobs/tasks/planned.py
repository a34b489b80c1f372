"""The plan of an experiment as an artifact: sealed before the first run is trained, read by whoever says what was found."""

from __future__ import annotations

import pyarrow as pa

from diversity.artifact import Artifact, fingerprint
from diversity.effects.plan import Plan
from diversity.effects.schema import PLANNED_SCHEMA
from ray_jobs.job.experiment import Experiment
from ray_jobs.job.runtime import Context

VERSION = 1


def planned_runs(experiment: Experiment) -> pa.Table:
    """Return one row of PLANNED_SCHEMA for each cell and training seed that the sweep trains."""
    seeds = experiment.sft.training_seeds
    rows = [{"cell": cell.name, **cell.describe(), "training_seed": seed} for cell in experiment.trained_cells for seed in seeds]
    return pa.Table.from_pylist(rows, schema=PLANNED_SCHEMA)


def plan_artifact(context: Context) -> Artifact:
    """Return the artifact of what is planned: another one where effects, runs, training or scores are others."""
    experiment = context.experiment
    config = {
        "experiment": experiment.experiment,
        "plan": experiment.plan.model_dump(mode="json"),
        "runs": [f"{row['cell']}_t{row['training_seed']}" for row in planned_runs(experiment).to_pylist()],
        "model": experiment.model,
        "sft": experiment.sft.model_dump(mode="json", exclude={"keep", "retrain"}),
        "scores": experiment.evaluation.identity(),
    }
    return context.storage.artifact("plan", fingerprint(stage="plan", version=VERSION, config=config))


def seal_plan(context: Context, scored: int) -> Artifact:
    """Seal the plan as it stands now, unless it is sealed already, and enter it into the index.

    Args:
        context: the experiment.
        scored: how many of its runs have a score already: what is named after looking is not confirmatory.
    """
    artifact = plan_artifact(context)
    if not artifact.sealed:
        plan = Plan(context.experiment.plan, planned_runs(context.experiment), scored)
        first = context.experiment.evaluation.scoring[0].name
        artifact.begin().seal({"experiment": context.experiment.experiment, "score": [first, "out"], **plan.manifest()})
    context.index.add("plan", artifact.fingerprint, artifact)
    return artifact


def plan_of(context: Context, scored: int) -> Plan:
    """Return the plan that was sealed for the experiment as it stands; where none was, one that is as late as its scores.

    Args:
        context: the experiment.
        scored: how many runs have a score.
    """
    artifact = plan_artifact(context)
    if artifact.sealed:
        return Plan.of_manifest(artifact.manifest)
    return Plan(context.experiment.plan, planned_runs(context.experiment), max(1, scored))
