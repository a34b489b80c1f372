"""Where a run's curve goes beside train.parquet: TensorBoard always, MLflow and Weights & Biases where the configuration asks for them.

Packages are imported when a run begins, on rank 0 only. A run that resumes writes the whole curve anew into an empty TensorBoard folder,
out of the rows of its checkpoint, so that a curve never has steps twice or missing.
"""

from __future__ import annotations

import importlib
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from diversity.config import Config, UserError

logger = logging.getLogger(__name__)

SHOWN = ("loss", "lr", "response_tokens", "tokens", "tokens_per_s", "mfu")  # of a step's figures


class MlflowConfig(Config):
    """MLflow.

    Attributes:
        tracking_uri: of the server or folder; None takes MLFLOW_TRACKING_URI, or MLflow's own default.
        experiment: under which runs are filed.
    """

    tracking_uri: str | None = None
    experiment: str = "sft-diversity"


class WandbConfig(Config):
    """Weights & Biases.

    Attributes:
        project: under which runs are filed.
        entity: user or team; None takes the key's own.
        offline: write to the run's folder only, for `wandb sync` later.
    """

    project: str = "sft-diversity"
    entity: str | None = None
    offline: bool = False


class TrackersConfig(Config):
    """What is told of runs beside TensorBoard; None tells nothing."""

    mlflow: MlflowConfig | None = None
    wandb: WandbConfig | None = None


class Tracker(Protocol):
    """A place that curves go to."""

    def step(self, number: int, figures: Mapping[str, float]) -> None:
        """Enter one step's figures."""

    def close(self, failed: bool) -> None:
        """Write out what is left, and say how it ended."""


class Trackers:
    """All places that one run's curve goes to."""

    def __init__(self, places: Sequence[Tracker]) -> None:
        self.places = places

    def step(self, row: Mapping[str, Any]) -> None:
        """Enter a step's row."""
        figures = {name: float(row[name]) for name in SHOWN if row.get(name) is not None}
        for place in self.places:
            place.step(int(row["step"]), figures)

    def close(self, *, failed: bool = False) -> None:
        """Write out what is left, and say whether the run failed."""
        for place in self.places:
            place.close(failed)


def open_trackers(config: TrackersConfig, folder: Path, run: str, about: Mapping[str, Any], past: Sequence[Mapping[str, Any]]) -> Trackers:
    """Return what a run is told to.

    Args:
        config: what is asked beside TensorBoard.
        folder: TensorBoard's, emptied first; Weights & Biases keeps its files beside it.
        run: the run's fingerprint; a run that resumes goes on under it.
        about: the run's settings, flat.
        past: rows of the steps that a resumed run has done.

    Raises:
        UserError: a package that the configuration asks for is not installed.
    """
    places: list[Tracker] = []
    if config.mlflow is not None:
        places.append(_Mlflow(config.mlflow, run, about))
    if config.wandb is not None:
        places.append(_Wandb(config.wandb, folder.parent, run, about))
    shutil.rmtree(folder, ignore_errors=True)
    board = _tensorboard(folder)  # last: what is refused above leaves no open file behind
    if board is not None:
        for row in past:
            Trackers([board]).step(row)
        places.append(board)
    return Trackers(places)


class _TensorBoard:
    """A file of events, written within the step; one that can't be written is no reason to end a run.

    tensorboardX's `SummaryWriter` writes in a thread, which a full disk ends: from then on a step would wait for ever.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        self._event, self._summary = Event, Summary
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))

    def step(self, number: int, figures: Mapping[str, float]) -> None:
        if self._writer is None:
            return
        values = [self._summary.Value(tag=f"train/{name}", simple_value=value) for name, value in figures.items()]
        try:
            self._writer.write_event(self._event(wall_time=time.time(), step=number, summary=self._summary(value=values)))
            self._writer.flush()
        except OSError as error:
            _no_curve(error.strerror or str(error), f" from step {number} on")
            self._writer = None

    def close(self, failed: bool) -> None:
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()


def _tensorboard(folder: Path) -> _TensorBoard | None:
    try:
        return _TensorBoard(folder)
    except ImportError:
        _no_curve("tensorboardX is not installed")
    except OSError as error:
        _no_curve(error.strerror or str(error))
    return None


def _no_curve(why: str, since: str = "") -> None:
    logger.warning("no TensorBoard curve%s: %s (train.parquet has every step)", since, why)


class _Mlflow:
    """Steps under one MLflow run, found again by its tag."""

    def __init__(self, config: MlflowConfig, run: str, about: Mapping[str, Any]) -> None:
        mlflow = _wanted("mlflow", "sft.trackers.mlflow", "mlflow-skinny")
        self.client = mlflow.MlflowClient(tracking_uri=config.tracking_uri)
        experiment = self.client.get_experiment_by_name(config.experiment)
        number = experiment.experiment_id if experiment else self.client.create_experiment(config.experiment)
        before = self.client.search_runs([number], filter_string=f"tags.sft_diversity_run = '{run}'", max_results=1)
        if before:
            self.run_id = before[0].info.run_id
            self.client.update_run(self.run_id, status="RUNNING")
            return
        self.run_id = self.client.create_run(number, run_name=run[:12], tags={"sft_diversity_run": run}).info.run_id
        for name, value in about.items():
            self.client.log_param(self.run_id, name, value)

    def step(self, number: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.client.log_metric(self.run_id, f"train/{name}", value, step=number)

    def close(self, failed: bool) -> None:
        self.client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")


class _Wandb:
    """Steps under one Weights & Biases run, whose id is the run's fingerprint."""

    def __init__(self, config: WandbConfig, folder: Path, run: str, about: Mapping[str, Any]) -> None:
        wandb = _wanted("wandb", "sft.trackers.wandb", "wandb")
        folder.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project=config.project,
            entity=config.entity,
            mode="offline" if config.offline else "online",
            id=run,
            resume="allow",
            dir=str(folder),
            config=dict(about),
        )

    def step(self, number: int, figures: Mapping[str, float]) -> None:
        self.run.log({f"train/{name}": value for name, value in figures.items()}, step=number)

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


def _wanted(module: str, key: str, package: str) -> Any:
    """Return a module.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{key} needs the package {package}, which is not installed here ({error}): pip install {package}") from None


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
