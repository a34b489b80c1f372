"""Runs as trials of Ray Tune: how many at once, one trial's Ray Train run, and what becomes of failures."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray
import yaml
from ray import tune
from ray.tune.execution import class_cache

from diversity.artifact import Artifact, Storage, digest
from diversity.config import UserError
from ray_jobs.job import standing, telemetry
from ray_jobs.job.experiment import ResourcesConfig
from ray_jobs.job.index import Index
from ray_jobs.job.runtime import ResourcesNotAvailable, user_error
from training.config import SftConfig
from training.ranks import group_backend
from training.ray_worker import Task, train_loop

logger = logging.getLogger(__name__)

SAY_EVERY_S = 60
BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")  # where `ray up` puts the cluster file on a head


class SweepError(UserError):
    """Runs that failed; the message names the first of them and its reason.

    Attributes:
        runs: the reason of each, by its cell.
    """

    runs: Mapping[str, str] = {}


class RunError(UserError):
    """A run that can't succeed however often it is tried."""


@dataclass(frozen=True)
class Demand:
    """What one run asks of a cluster.

    Attributes:
        ranks: processes that train.
        cpus_per_rank: cores of each.
        driver_cpus: share of a core of the trial that drives them.
        gpu: whether each rank asks for a GPU.
        driver_resource: whether the driver asks for the custom resource `driver`.
        device: what a rank computes on, `cpu` or `cuda`.
    """

    ranks: int
    cpus_per_rank: float
    driver_cpus: float
    gpu: bool
    driver_resource: bool = False
    device: str = "cpu"

    @classmethod
    def of(cls, sft: SftConfig, resources: ResourcesConfig, device: str) -> Demand:
        """Return the demand of a run on a kind of device."""
        gpu = device == "cuda" if resources.use_gpu is None else resources.use_gpu
        return cls(sft.world_size, resources.cpus_per_rank, resources.driver_cpus, gpu, resources.driver_resource, device)

    @property
    def cpus(self) -> float:
        """Return all cores of a run, its driver's share included."""
        return self.ranks * self.cpus_per_rank + self.driver_cpus

    @property
    def bundles(self) -> list[dict[str, float]]:
        """Return what must be had at the same time: the driver, then each rank."""
        driver = {"CPU": self.driver_cpus, **({"driver": 0.01} if self.driver_resource else {})}
        return [driver, *([self.rank] * self.ranks)]

    @property
    def rank(self) -> dict[str, float]:
        """Return what one rank asks for."""
        return {"CPU": self.cpus_per_rank, **({"GPU": 1.0} if self.gpu else {})}

    def __str__(self) -> str:
        gpus = f" and {self.ranks} GPUs" if self.gpu else ""
        return f"{self.ranks} x {self.cpus_per_rank:g} + {self.driver_cpus:g} = {self.cpus:g} CPUs{gpus}"


def concurrent_runs(demand: Demand, *, cpus: float, gpus: float) -> int:
    """Return how many runs fit at the same time, drivers included: one trial more, and all of them would wait without a word.

    Raises:
        UserError: not even one fits.
    """
    fitting = int((cpus + 1e-6) // demand.cpus)
    if demand.gpu:
        fitting = min(fitting, int((gpus + 1e-6) // demand.ranks))
    if fitting < 1:
        have = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if demand.gpu else "")
        raise UserError(
            f"a run needs {demand}, and there are {have}: lower resources.cpus_per_rank or sft.world_size, "
            "or say with resources.max_cpus and resources.max_gpus what an autoscaled cluster grows to"
        )
    return fitting


def wait_for_one(demand: Demand, wait_s: float) -> None:
    """Wait until the cluster has what one run asks for, asking its autoscaler, with a line each minute.

    Raises:
        ResourcesNotAvailable: it did not come within `wait_s` seconds.
    """
    if _has(demand):
        return
    started = said = time.monotonic()
    with standing.asking(demand.bundles) as ask:
        while not _has(demand):
            ask()
            waited = time.monotonic() - started
            if waited >= wait_s:
                raise ResourcesNotAvailable(
                    f"a run needs {demand}; after {waited:.0f} s the cluster has {_shown(ray.cluster_resources())}{_could_have()}"
                )
            if time.monotonic() - said >= SAY_EVERY_S:
                said = time.monotonic()
                logger.info("waiting for %s; the cluster has %s", demand, _shown(ray.cluster_resources()))
            time.sleep(1)
            telemetry.add("waited_seconds", 1)


def _has(demand: Demand) -> bool:
    return fits(demand, [node["Resources"] for node in ray.nodes() if node["Alive"]])


def fits(demand: Demand, nodes: Sequence[Mapping[str, float]]) -> bool:
    """Return whether nodes of these resources hold a run's driver and ranks at once. Ranks are alike, so each node takes what it can."""
    driver, ranks = demand.bundles[0], [_room(node, demand.rank) for node in nodes]
    return any(
        _room(node, driver) and sum(ranks) - ranks[place] + _room(_less(node, driver), demand.rank) >= demand.ranks
        for place, node in enumerate(nodes)
    )


def _room(node: Mapping[str, float], bundle: Mapping[str, float]) -> int:
    return min((int((node.get(name, 0) + 1e-6) // amount) for name, amount in bundle.items() if amount > 0), default=sys.maxsize)


def _less(node: Mapping[str, float], bundle: Mapping[str, float]) -> dict[str, float]:
    return {name: amount - bundle.get(name, 0) for name, amount in node.items()}


def _could_have() -> str:
    """Return in words the nodes that the autoscaler of `ray up` may start, read where it reads them: on the head; "" elsewhere."""
    try:
        kinds = yaml.safe_load(BOOTSTRAP.expanduser().read_text("utf-8"))["available_node_types"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return ""
    shapes = [f"{kind['max_workers']} x {name} of {_shown(kind['resources'])}" for name, kind in kinds.items() if kind.get("max_workers")]
    return f"; at its largest it would have {', '.join(shapes)}" if shapes else ""


def _shown(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{resources.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))


def enter(add: Callable[[str, Mapping[Any, Artifact]], None], tasks: Sequence[Task]) -> None:
    """Enter what is sealed of some runs by one of the index's ways to add."""
    add("runs", {key: one.model for one in tasks if one.model.sealed for key in one.cells})
    scored = [(one, one.scores) for one in tasks if one.scores is not None and one.scores.sealed]
    add("scores", {key: scores for one, scores in scored for key in one.cells})


def train_run(config: Mapping[str, Any], tasks: Mapping[str, Task], demand: Demand, index: Index) -> None:
    """Drive one run, and enter it: the function that a trial calls. Its ranks are Ray Train's, and resume by the run's name."""
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    task, storage = tasks[config["run"]["run"]], index.storage
    if task.finished:  # by a driver that was killed before Tune heard of it
        enter(index.note, [task])
        tune.report({"run": task.run, "trial_s": 0.0})
        return
    trainer = TorchTrainer(
        train_loop,  # type: ignore[arg-type]
        train_loop_config={"task": task},
        torch_config=TorchConfig(backend=group_backend(demand.device)),
        scaling_config=ScalingConfig(num_workers=demand.ranks, use_gpu=demand.gpu, resources_per_worker=demand.rank),
        run_config=RunConfig(  # type: ignore[call-arg]  # the annotations are those of Train's first version
            name=task.folder,
            **_place(storage, "train"),
            checkpoint_config=CheckpointConfig(num_to_keep=2),  # the second is for the day the first turns out broken
            failure_config=FailureConfig(max_failures=task.sft.max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    started = time.perf_counter()
    with standing.training(trainer.train_run_context.run_id):  # type: ignore[attr-defined]
        result = trainer.fit()
    figures: dict[str, Any] = dict(result.return_value)  # type: ignore[attr-defined]
    enter(index.note, [task])
    if "error" in figures:
        raise RunError(f"{', '.join(task.cells)}: {figures['error']}")
    for name in filter(None, (task.folder, task.begun)):
        remove_folder(storage, f"train/{name}")  # checkpoints: the model is sealed
    tune.report({**figures, "trial_s": time.perf_counter() - started})


def _place(storage: Storage, folder: str) -> dict[str, Any]:
    """Return a folder of the storage as Ray's configurations want it: with our filesystem, which waits for a store that is away."""
    filesystem, root = storage.filesystem()
    place: dict[str, Any] = {"storage_path": f"{root}/{folder}"}
    return place if storage.renames else {**place, "storage_filesystem": filesystem}


class Told(tune.Callback):
    """Says after each trial how many are done, and what it gave."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.failed = total, 0, 0
        self._tell()

    def _tell(self) -> None:
        telemetry.tell("runs_done", self.done - self.failed)
        telemetry.tell("runs_failed", self.failed)
        telemetry.tell("runs_left", self.total - self.done)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a run is done."""
        self.done += 1
        self._tell()
        result = trial.last_result or {}
        shown = {name: value for name, value in (result.get("scores") or {}).items() if not name.rpartition("/")[2].startswith("nll_")}
        scores = ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
        spent = f"{result.get('trial_s', 0):.0f} s: {result.get('train_s', 0):.0f} training, {result.get('score_s', 0):.0f} scoring"
        logger.info("run %d of %d: %s %s (%s)", self.done, self.total, trial.config["run"]["cell"], scores, spent)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a run failed."""
        self.done += 1
        self.failed += 1
        self._tell()
        logger.warning("run %d of %d: %s failed", self.done, self.total, trial.config["run"]["cell"])


def tune_runs(
    described: Sequence[Mapping[str, Any]], tasks: Mapping[str, Task], demand: Demand, index: Index, name: str, concurrent: int
) -> None:
    """Train and score runs as trials of Ray Tune, restoring what was begun under the same name.

    Args:
        described: a row for each run, as the table of trials shows it; `run` is its fingerprint and `cell` names it.
        tasks: by fingerprint; a restored folder may ask for any run of the list, sealed ones too.
        demand: of one run.
        index: of the experiment; each run is entered when it ends, since others may go on for days.
        name: of Tune's folder, the hash of the list of runs.
        concurrent: how many at once.

    Raises:
        SweepError: runs failed, after all others were done.
    """
    place = _place(index.storage, "tune")
    folder, filesystem = f"{place['storage_path']}/{name}", place.get("storage_filesystem")
    trainable = tune.with_resources(tune.with_parameters(train_run, tasks=dict(tasks), demand=demand, index=index), demand.bundles[0])
    if tune.Tuner.can_restore(folder, storage_filesystem=filesystem):
        logger.info("going on in %s", folder)
        tuner = tune.Tuner.restore(
            folder,
            trainable,
            resume_unfinished=True,
            resume_errored=True,
            param_space={"run": tune.grid_search(list(described))},
            storage_filesystem=filesystem,
        )
    else:
        tuner = tune.Tuner(
            trainable,
            param_space={"run": tune.grid_search(list(described))},
            tune_config=tune.TuneConfig(num_samples=1, max_concurrent_trials=concurrent, reuse_actors=True),
            run_config=tune.RunConfig(name=name, **place, callbacks=[Told(len(described))], verbose=0),
        )
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # its own returns as if all were done, and stays: Ctrl-C is to raise, as elsewhere
    keep_keys_to_nodes()
    results = tuner.fit()
    if results.errors:
        failed = SweepError(_failure(results.errors, len(results)))
        failed.runs = {
            one.config["run"]["cell"]: _reason(one.error)
            for one in map(results.__getitem__, range(len(results)))
            if one.error and one.config
        }
        raise failed


def keep_keys_to_nodes() -> None:
    """Have Tune hand no cloud keys of this process to its trials.

    It puts them into their runtime environment, which stands in arguments of processes, in logs and on the dashboard. Nodes have their own.
    """
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update([name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")])


def _failure(errors: Sequence[BaseException], trials: int) -> str:
    for error in errors:
        logger.error("%s", error)
    mendable = [error for error in errors if user_error(error)]
    return f"{len(errors)} of {trials} runs failed; the first: {_reason((mendable or errors)[0])}"


def _reason(error: BaseException) -> str:
    """Return a run's error in one line."""
    return str(user_error(error) or str(error).strip().splitlines()[-1])


def list_name(fingerprints: Sequence[str], demand: Demand, concurrent: int) -> str:
    """Return the name of Tune's folder for a list of runs.

    What a restored Tune would keep as it was, and wait for without a word where there is less now, is part of it. Nothing is lost with
    a folder: what is done is sealed, and what was begun resumes by the run's own name.
    """
    return digest({"runs": sorted(fingerprints), "driver": demand.bundles[0], "concurrent": concurrent})


def remove_folder(storage: Storage, path: str) -> None:
    """Remove a folder of the storage, if it is there."""
    filesystem, root = storage.filesystem()
    if filesystem.get_file_info(f"{root}/{path}").type == pafs.FileType.Directory:
        filesystem.delete_dir(f"{root}/{path}")
