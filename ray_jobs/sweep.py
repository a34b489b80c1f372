"""Fine-tune and score every run of the grid: `python -m ray_jobs.sweep CONFIG.yaml [key=value …] [--dry-run]`.

A run is named by the content of its dataset, the model, the configuration and the seed, so cells that choose the same samples share
it. Sealed runs are entered into the index from their seals; the others are trials of Ray Tune, each a Ray Train run on DeepSpeed.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray

from diversity.artifact import Artifact, fingerprint
from diversity.cell import Cell
from diversity.config import UserError
from diversity.effects.power import what_can_not_be_shown
from ray_jobs import build_datasets, heldout, profile_corpus
from ray_jobs.job import placement, standing, telemetry
from ray_jobs.job.device import device_kind as device_kind
from ray_jobs.job.device import resolved_sft
from ray_jobs.job.process import cache_folder
from ray_jobs.job.runtime import Context, main
from ray_jobs.tasks import judged, trials
from ray_jobs.tasks.estimate import Speed, estimate
from ray_jobs.tasks.planned import plan_artifact, planned_runs, seal_plan
from training.config import run_fingerprint
from training.model_source import model_digest, resolve_model
from training.ray_worker import Task
from training.run_files import has_weights, remove_weights

logger = logging.getLogger(__name__)

SCORES_VERSION = 4
PLAN_LINES = 20  # of a plan that are logged before it is followed; --dry-run prints all


@dataclass(frozen=True)
class Run:
    """One fine-tuning and its scores, and the cells that share it."""

    task: Task
    cells: tuple[Cell, ...]

    @property
    def keys(self) -> list[str]:
        """Return the run's keys in the index, one for each cell."""
        return list(self.task.cells)

    @property
    def finished(self) -> bool:
        """Return whether all that is asked of the run is sealed."""
        return self.task.finished

    def describe(self) -> dict[str, Any]:
        """Return the run's row in a table of trials."""
        cell = self.cells[0]
        return {"run": self.task.run, "cell": self.keys[0], **cell.describe(), "training_seed": self.task.training_seed}


def runs(context: Context) -> list[Run]:
    """Return every run of the experiment, sealed or not, in the order of its cells.

    Raises:
        ArtifactError: a dataset is not sealed, or the held-out samples are not.
        ModelNotFound: the model can't be had.
    """
    experiment = context.experiment
    device, sft = device_kind(context), resolved_sft(context)
    folder = resolve_model(experiment.model, cache_folder())
    base_digest = model_digest(folder, cache_folder())
    held = context.require(heldout.heldout_artifact(context), "heldout") if experiment.evaluation.heldout else None
    profile = _profile(context) if held else None
    prompts = judged.prompts_artifact(context) if experiment.judging is not None else None
    sharing: dict[tuple[str, int], list[Cell]] = defaultdict(list)
    datasets: dict[str, Artifact] = {}
    for cell in experiment.trained_cells:
        dataset = context.require(build_datasets.dataset_artifact(context, cell), "build_datasets")
        content = dataset.manifest["content"]
        datasets.setdefault(content, dataset)
        for seed in experiment.sft.training_seeds:
            sharing[content, seed].append(cell)
    found = []
    for (content, seed), cells in sharing.items():
        name = partial(run_fingerprint, content=content, model=base_digest, training_seed=seed, device=device)
        before = sft.resume_world_size
        model = context.storage.artifact("models", name(sft=sft))
        task = Task(
            dataset=datasets[content],
            heldout=held,
            model=model,
            scores=_scores_artifact(context, model, held, [profile, prompts]) if held else None,
            base=experiment.model,
            base_digest=base_digest,
            sft=sft,
            evaluation=experiment.evaluation,
            training_seed=seed,
            device=device,
            threads=max(1, round(experiment.resources.cpus_per_rank)),
            content=content,
            cells=tuple(f"{cell.name}_t{seed}" for cell in cells),
            profile=profile,
            prompts=prompts,
            begun=name(sft=sft.model_copy(update={"world_size": before})) if before else None,
        )
        found.append(Run(task, tuple(cells)))
    return found


def _profile(context: Context) -> Artifact | None:
    """Return the profile of the model's tokens, if scores by kind of token are asked for."""
    if not context.experiment.evaluation.by_kind_of_token:
        return None
    return context.require(profile_corpus.profile_artifact(context, "response-micro"), "profile_corpus")


def _scores_artifact(context: Context, model: Artifact, held: Artifact, more: Sequence[Artifact | None]) -> Artifact:
    """Return the artifact of a run's scores; `more` is what else is read for them."""
    config = context.experiment.evaluation.identity()
    parents = [model.fingerprint, held.fingerprint, *(one.fingerprint for one in more if one is not None)]
    return context.storage.artifact("scores", fingerprint(stage="scores", version=SCORES_VERSION, config=config, parents=parents))


def plan(context: Context) -> Iterator[str]:
    """Yield what is sealed, what would be trained, and how long that takes by the speed of runs that are sealed."""
    experiment = context.experiment
    cells, seeds = experiment.trained_cells, experiment.sft.training_seeds
    unsealed = [cell for cell in cells if not build_datasets.dataset_artifact(context, cell).sealed]
    if unsealed:
        yield f"{len(cells)} cells x {len(seeds)} training seeds; {len(unsealed)} datasets are not sealed yet:"
        yield context.command("build_datasets")
        yield from _planned(context)
        return
    if experiment.evaluation.heldout and not heldout.heldout_artifact(context).sealed:
        yield f"{len(cells)} cells x {len(seeds)} training seeds; the held-out samples are not sealed yet: {context.command('heldout')}"
        yield from _planned(context)
        return
    every = runs(context)
    left = [run for run in every if not run.finished]
    yield f"{len(cells)} cells x {len(seeds)} training seeds = {len(every)} runs, {len(every) - len(left)} sealed, {len(left)} to do"
    demand = trials.Demand.of(experiment.sft, experiment.resources, every[0].task.device)
    yield f"a run asks for {demand}"
    yield from _planned(context)
    speed = Speed.of([(run.task.model, run.task.scores) for run in every if run.task.model.sealed])
    cpus, gpus = _full_size(context)
    yield from estimate([_response_tokens(run) for run in left], speed, demand, experiment.resources, cpus=cpus, gpus=gpus)
    for run in left:
        gone = run.task.model.sealed and not has_weights(run.task.model)
        yield f"{run.task.run} {', '.join(run.keys)}{': its weights are gone, it would be trained again' if gone else ''}"


def _planned(context: Context) -> Iterator[str]:
    """Yield what is named beforehand, and which arms can show nothing however large their effect is."""
    plan, sealed = context.experiment.plan, plan_artifact(context).sealed
    named = [
        one.strategy + (f", {one.control}" if one.control != "none" else "") + f" less {one.less}" * bool(one.less) for one in plan.primary
    ]
    told = "; ".join(named) or "none, so that all findings are exploratory"
    yield f"the plan {'is' if sealed else 'will be'} sealed: primary effects {told}"
    yield from what_can_not_be_shown(planned_runs(context.experiment).to_pylist(), plan.primary)


def _response_tokens(run: Run) -> int:
    """Return about how many response tokens a run trains on."""
    if run.task.model.sealed and has_weights(run.task.model):
        return 0
    return run.task.sft.budget.tokens(run.task.dataset.manifest["tokens"]["response"])


def _full_size(context: Context) -> tuple[float, float]:
    """Return CPUs and GPUs of the cluster at its full size: as `resources` says, else what it has; 0 where neither is known."""
    limits = context.experiment.resources
    own = not context.address
    has = ray.cluster_resources() if ray.is_initialized() else {"CPU": limits.num_cpus or os.cpu_count() or 0} if own else {}
    return limits.max_cpus or has.get("CPU", 0), limits.max_gpus if limits.max_gpus is not None else has.get("GPU", 0)


def run(context: Context) -> None:
    """Train and score what is not sealed, and enter all runs into the index."""
    experiment = context.experiment
    if heldout_asked := experiment.evaluation.heldout:
        context.require(heldout.heldout_artifact(context), "heldout")
    for line in itertools.islice(plan(context), PLAN_LINES):
        logger.info("sweep: %s", line)
    if experiment.judging is not None:
        judged.seal_prompts(context)
    every = runs(context)
    seal_plan(context, sum(one.task.scores is not None and one.task.scores.sealed for one in every))
    trials.enter(context.index.add_many, [one.task for one in every])
    _allow_again(every, experiment.sft.keep, retrain=experiment.sft.retrain)
    left = [one for one in every if not one.finished]
    telemetry.add("seals_reused", len(every) - len(left), stage="sweep")
    if left:
        _train(context, every, left)
    if heldout_asked and experiment.sft.keep == "best":
        _keep_best(every)


def _train(context: Context, every: Sequence[Run], left: Sequence[Run]) -> None:
    """Run the trials, and enter what they sealed whether or not all went well."""
    experiment, storage = context.experiment, context.storage
    context.connect()
    placement.release_left_behind(storage.uri, experiment.experiment)
    if context.address:
        standing.coordinate_here()
    demand = trials.Demand.of(experiment.sft, experiment.resources, left[0].task.device)
    cpus, gpus = _full_size(context)
    concurrent = trials.concurrent_runs(demand, cpus=cpus, gpus=gpus)
    trials.wait_for_one(demand, experiment.resources.wait_s)
    attempt = context.journal.hold([one.task.run for one in left]) if context.journal is not None else ""
    tasks = {one.task.run: replace(one.task, attempt=attempt) for one in every}
    name = trials.list_name([f"{one.task.run} {one.task.scores and one.task.scores.fingerprint}" for one in every], demand, concurrent)
    name = f"{name}-{attempt}" if attempt else name
    try:
        trials.tune_runs([one.describe() for one in left], tasks, demand, context.index, name, concurrent)
        if still := [one for one in left if not one.finished]:
            # Tune remembers these as done, but their artifacts were removed since.
            trials.remove_folder(storage, f"tune/{name}")
            trials.tune_runs([one.describe() for one in still], tasks, demand, context.index, name, concurrent)
    finally:
        trials.enter(context.index.add_many, [one.task for one in every])


def _allow_again(every: Sequence[Run], keep: str, *, retrain: bool) -> None:
    """Unseal the runs that must be trained again for what is asked now, if that is allowed.

    Raises:
        UserError: it isn't.
    """
    best = _best(every) if keep == "best" else set()
    gone = [
        one
        for one in every
        if one.task.model.sealed and not has_weights(one.task.model) and (keep == "all" or not one.finished or one.task.run in best)
    ]
    if not gone:
        return
    wanted = "weights" if all(one.finished for one in gone) else "scores"
    if not retrain:
        raise UserError(
            f"{len(gone)} sealed runs have no weights any more and {wanted} are asked of them, e.g. {gone[0].keys[0]}: "
            "set sft.retrain=true to train them again" + (", or sft.keep=scores" if wanted == "weights" else "")
        )
    for one in gone:
        logger.info("%s is trained again", one.keys[0])
        one.task.model.unseal()


def _keep_best(every: Sequence[Run]) -> None:
    """Let all weights go but those of the best run for each strategy and size."""
    kept = _best(every)
    for one in every:
        if one.task.run not in kept:
            remove_weights(one.task.model)


def _best(every: Sequence[Run]) -> set[str]:
    """Return the names of the runs that are best for their strategy and size, of those whose scores are sealed."""
    best: dict[tuple[str, int], tuple[float, str]] = {}
    for one in every:
        if one.task.scores is None or not one.task.scores.sealed:
            continue
        figure = _figure(one)
        for cell in one.cells:
            group = (cell.strategy, cell.size)
            if group not in best or figure > best[group][0]:
                best[group] = (figure, one.task.run)
    return {run for _, run in best.values()}


def _figure(one: Run) -> float:
    """Return a run's primary score, or else its first one, so that more is better."""
    assert one.task.scores is not None
    rows = one.task.scores.read().to_pylist()
    row = next((row for row in rows if row["primary"]), rows[0])
    return row["value"] if row["higher_is_better"] else -row["value"]


if __name__ == "__main__":
    raise SystemExit(main("sweep"))
