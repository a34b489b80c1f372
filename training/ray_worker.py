"""What every rank of a Ray Train run does: read a sealed dataset, train, seal the model, score it, seal the scores.

This file and `ray_signals.py` are the only ones of this package that name Ray.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray.train

from diversity.artifact import Artifact
from diversity.datasets import dataset
from diversity.judging.prompt_sets import asked_once
from training.config import SftConfig
from training.evaluators import EvaluationConfig
from training.ray_signals import Metered, Notice, counter, rank_device
from training.run_files import WEIGHTS, Kept, cache_folder, folder_to_fill, local_copy, remove_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """One run, as its ranks get it: plain values and handles of artifacts.

    Attributes:
        dataset: sealed.
        heldout: sealed; None where nothing is scored.
        model: the artifact that is made, named by the run's fingerprint.
        scores: the artifact that is made from it; None where nothing is scored.
        base: what the run starts from, as `model` of the configuration says it; every node resolves it by itself.
        base_digest: what that model's digest must be.
        sft: how it is trained.
        evaluation: how it is scored.
        training_seed: of this run.
        device: `cpu` or `cuda`.
        threads: CPU threads of a rank.
        content: of the dataset.
        cells: `<cell>_t<seed>` of every cell that shares this run, for the manifests.
        profile: of the model's tokens in the corpus's responses, for scores by kind of token; None leaves those out.
        prompts: whose answers are judged, sealed before the run is scored; None where nothing is judged.
        attempt: what tells this job's side files from those of another that trains the same run at the same time; "" where none does.
        begun: fingerprint of the same run on `sft.resume_world_size` ranks, whose checkpoint it may go on from.
    """

    dataset: Artifact
    heldout: Artifact | None
    model: Artifact
    scores: Artifact | None
    base: str
    base_digest: str
    sft: SftConfig
    evaluation: EvaluationConfig
    training_seed: int
    device: str
    threads: int
    content: str
    cells: tuple[str, ...]
    profile: Artifact | None = None
    begun: str | None = None
    prompts: Artifact | None = None
    attempt: str = ""

    @property
    def folder(self) -> str:
        """Return the name of the folder with the run's checkpoints: the run's, so that it resumes; another where another job trains it."""
        return f"{self.run}-{self.attempt}" if self.attempt else self.run

    @property
    def run(self) -> str:
        """Return the run's fingerprint."""
        return self.model.fingerprint

    @property
    def finished(self) -> bool:
        """Return whether all that is asked of the run is sealed."""
        return self.model.sealed and (self.scores is None or self.scores.sealed)


def train_loop(config: dict[str, Any]) -> dict[str, Any]:
    """Train, seal and score the run `config["task"]`; every rank of a `TorchTrainer` calls this.

    Returns:
        Plain figures; Ray Train hands on rank 0's. A loss that is no number and a run that can't fit, which all ranks find alike, are
        returned as `error`: raised, they would be tried again.

    Raises:
        UserError: scoring will miss a package on this node.
    """
    started = time.perf_counter()
    task: Task = config["task"]
    from training.engine import prepare_process  # torch comes with it: not when the driver reads this module
    from training.evaluators.vllm_engine import require_vllm
    from training.sft import NonFiniteLoss
    from training.zero import DoesNotFit

    prepare_process(task.device, task.threads)
    if task.scores is not None and task.evaluation.from_folder:
        require_vllm()
    figures: dict[str, Any] = {"import_s": time.perf_counter() - started}
    try:
        trained = None if task.model.sealed else _train(task, figures)
    except (NonFiniteLoss, DoesNotFit) as error:
        return {"error": str(error)}
    if task.scores is not None and not task.scores.sealed:
        _score(task, trained, figures)
    return {**figures, "run": task.run, "run_s": time.perf_counter() - started}


def _train(task: Task, figures: dict[str, Any]) -> Any:
    """Train and seal the model; return what `fine_tune` returned."""
    from training.checkpoint import load_from_other_ranks, load_state, newest_whole
    from training.engine import free_memory
    from training.export import export
    from training.sft import Job, fine_tune

    context = ray.train.get_context()
    base = _base_folder(task)
    samples = dataset.read(task.dataset, ["sample_id", "messages", "tools"])
    job = Job(base, samples, task.sft, task.training_seed, task.device)

    own = _checkpoints(task, task.folder)
    other = [] if own else _checkpoints(task, task.begun)

    def resume(engine: Any) -> tuple[int, list[dict[str, Any]]]:
        step, rows = saved(engine)
        if step and context.get_world_rank() == 0:
            logger.info("%s: going on from its checkpoint, after %d steps", task.cells[0], step)
            counter("resumptions").inc(1, {"device": task.device})
        return step, rows

    def saved(engine: Any) -> tuple[int, list[dict[str, Any]]]:
        with newest_whole((one.path, one.as_directory()) for one in own or other) as folder:
            if folder is None:
                return 0, []
            if own:
                return load_state(engine, folder, task.run)
            universal = Path(tempfile.gettempdir()) / f"sft-diversity-universal-{task.run}"
            return load_from_other_ranks(engine, folder, universal, context.get_local_rank() == 0, lambda ranks: str(task.begun))

    memory = free_memory(task.device, context.get_local_world_size())
    with _curve(task) as track:
        trained = fine_tune(
            job,
            resume=resume,
            checkpoint=_reporter(task),
            memory=memory,
            track=track,
            universal=bool(other),
            leaving=Notice(task.device),
        )
    leads = context.get_world_rank() == 0
    target = task.model.begin() if leads else None
    sealing = time.perf_counter()
    with folder_to_fill(target, WEIGHTS) as folder:
        export(trained.engine, base, folder, task.sft, chat=trained.chat)
    trained.let_optimizer_go()  # scoring wants its memory
    if target is not None:
        target.write(trained.rows, "train.parquet")
        figures |= {**trained.summary, "export_s": time.perf_counter() - sealing}
        target.seal(
            {
                "run": task.run,
                "cells": list(task.cells),
                "dataset": task.dataset.path,
                "content": task.content,
                "model": task.base,
                "model_digest": task.base_digest,
                "sft": task.sft.identity(training_seed=task.training_seed, device=task.device),
                "training_seed": task.training_seed,
                "resume_world_size": task.sft.resume_world_size,
                **trained.summary,
            }
        )
    return trained


def _checkpoints(task: Task, name: str | None) -> list[ray.train.Checkpoint]:
    """Return the checkpoints that a run has left in Ray Train's folder of that name, the newest first."""
    if name is None or not task.model.storage.exists(f"train/{name}/checkpoint_manager_snapshot.json"):
        return []
    filesystem, root = task.model.storage.filesystem()
    kept = ray.train.Result.from_path(f"{root}/train/{name}", filesystem).best_checkpoints or []
    return [one for one, figures in sorted(kept, key=lambda pair: -pair[1]["step"])]


@contextmanager
def _curve(task: Task) -> Iterator[Any]:
    """Yield what opens the run's trackers; TensorBoard's files lie in `<storage>/tensorboard/<run>`, on a remote storage at the end."""
    from training.trackers import flat, open_trackers

    settings = flat(task.sft.identity(training_seed=task.training_seed, device=task.device))
    about = {"run": task.run, "cell": task.cells[0], "model": task.base, **settings}
    filesystem, root = task.model.storage.filesystem()
    place = f"{root}/tensorboard/{task.folder}"
    if isinstance(filesystem, pafs.LocalFileSystem):
        yield lambda rows: Metered(open_trackers(task.sft.trackers, Path(place), task.run, about, rows), task.device)
        return
    with tempfile.TemporaryDirectory(prefix="sft-diversity-") as folder:
        yield lambda rows: Metered(open_trackers(task.sft.trackers, Path(folder) / "tensorboard", task.run, about, rows), task.device)
        if ray.train.get_context().get_world_rank() == 0:
            pafs.copy_files(f"{folder}/tensorboard", place, destination_filesystem=filesystem)


def _reporter(task: Task) -> Any:
    """Return the hook that hands every rank's part of a checkpoint to Ray Train, which publishes it once all parts are there."""
    from training.checkpoint import save_state

    def save(engine: Any, step: int, rows: list[dict[str, Any]]) -> None:
        with tempfile.TemporaryDirectory(prefix="sft-diversity-") as folder:
            save_state(engine, Path(folder), task.run, step, rows)
            ray.train.report({"step": step, "loss": rows[-1]["loss"]}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    return save


def _base_folder(task: Task) -> Path:
    """Return the base model's folder on this node.

    Raises:
        UserError: it is another model than the one the run is named after.
    """
    from diversity.config import UserError
    from training.model_source import model_digest, resolve_model

    folder = resolve_model(task.base, cache_folder())
    if (found := model_digest(folder, cache_folder())) != task.base_digest:
        raise UserError(f"model {task.base!r} is another one on this node: its digest is {found}, not {task.base_digest}")
    return folder


def _score(task: Task, trained: Any, figures: dict[str, Any]) -> None:
    """Score the model on all ranks; rank 0 seals the scores, and lets the weights go if nobody keeps them."""
    import torch

    from training.evaluators import Subject, evaluate

    assert task.scores is not None and task.heldout is not None
    started = time.perf_counter()
    context = ray.train.get_context()
    half = task.sft.resolved_precision(task.device) == "bf16"  # as it was trained, on a CPU as on a GPU
    opened = trained is None or task.evaluation.from_folder
    if opened and context.get_world_size() > 1:
        torch.distributed.barrier()  # until rank 0 has stored the model
    with (
        local_copy(task.model, WEIGHTS, read=opened) as folder,
        torch.no_grad(),
        torch.autocast(task.device, torch.bfloat16, enabled=half),
    ):
        subject = Subject.of(
            trained.model if trained else _open(folder, task.device),
            _base_folder(task),
            task.heldout.read(),
            rank_device(task.device),
            template=task.sft.template,
            rank=context.get_world_rank(),
            world_size=context.get_world_size(),
            trained_on=_trained_on(task),
            kept=Kept(task.scores.storage, f"train/{task.folder}/kept-{task.scores.fingerprint}"),
            folder=folder if opened else None,
            judging=asked_once(task.prompts.read()) if task.prompts is not None else None,
        )
        scores = evaluate(subject, task.evaluation, run=task.run)
    if context.get_world_rank() != 0:
        return
    figures |= {"score_s": time.perf_counter() - started, "scores": _named(scores.table.to_pylist())}
    target = task.scores.begin()
    target.write(scores.table)
    for name, rows in {"samples": scores.samples, **scores.tables}.items():
        target.write(rows, f"{name}/part-00000.parquet")
    target.seal(
        {
            "run": task.run,
            "cells": list(task.cells),
            "content": task.content,
            "dataset": task.dataset.path,
            "heldout": task.heldout.path,
            "profile": task.profile and task.profile.path,
            "prompts": task.prompts and task.prompts.path,
            "training_seed": task.training_seed,
            "evaluators": task.evaluation.identity(),
            "seconds": figures["score_s"],
        }
    )
    if task.sft.keep == "scores":
        remove_weights(task.model)


def _trained_on(task: Task) -> Any:
    """Return what scores by kind of token need: the dataset, and how often each token occurs in the corpus."""
    from training.evaluators.strata import TrainedOn

    if task.profile is None:
        return None
    band = task.profile.manifest["band"]
    vocabulary = task.profile.read("vocabulary", columns=["content", "df"])
    samples = dataset.read(task.dataset, ["messages", "tools"])
    return TrainedOn(samples, vocabulary, band["low"], band["high"], task.sft.max_length, task.sft.overlong)


def _named(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the figures as a table of trials shows them."""
    return {f"{row['evaluator']}/{row['split']}/{row['metric']}": row["value"] for row in rows}


def _open(folder: Path, device: str) -> Any:
    """Return a trained model from its folder as it was saved, on the rank's device."""
    from transformers import AutoModelForCausalLM

    from training.probe import settle

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    model = model.to(rank_device(device))
    settle(model, rank_device(device))
    return model
