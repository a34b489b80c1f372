"""Training state written by all ranks and read back."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from diversity.config import UserError
from training.ranks import any_rank

STATE = "state"  # the tag under which DeepSpeed files every rank's shards
PATIENCE = timedelta(hours=12)  # with a checkpoint of many ranks that becomes one of others

Rows = list[dict[str, Any]]
logger = logging.getLogger("training.sft")


class CheckpointError(UserError):
    """A checkpoint that can't be loaded here."""


def save_state(engine: Any, folder: Path, run: str, step: int, rows: Rows) -> None:
    """Write every rank's part of the training state into a folder; all ranks call this.

    The folder may be another one for each rank, merged afterwards, as Ray Train does. It is a checkpoint once all ranks are done, which
    only the caller knows: whoever keeps folders publishes them after that (`publish` here, `ray.train.report` there).

    Args:
        engine: DeepSpeed's.
        folder: an empty folder.
        run: the run's fingerprint.
        step: steps done.
        rows: a row for each of them.
    """
    client_state = {"run": run, "step": step, "rows": rows, "world_size": torch.distributed.get_world_size()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        engine.save_checkpoint(str(folder), tag=STATE, client_state=client_state, save_latest=False)
    except (OSError, RuntimeError) as error:  # torch tells of a full disk by the latter
        raise CheckpointError(f"the checkpoint of step {step} can't be written to {folder}: {' '.join(str(error).split())[:200]}") from None


def load_state(engine: Any, folder: Path, run: str) -> tuple[int, Rows]:
    """Load a checkpoint into a new engine and return the steps done and their rows; all ranks call this.

    Raises:
        CheckpointError: it is of another run, of another number of ranks, or not whole.
    """
    client_state = _loaded(engine, folder, folder)
    ranks = torch.distributed.get_world_size()
    if client_state["run"] != run:
        raise CheckpointError(f"checkpoint {folder} is of run {client_state['run']}, not of {run}")
    if client_state["world_size"] != ranks:
        raise CheckpointError(f"checkpoint {folder} is of {client_state['world_size']} ranks, and there are {ranks}")
    return client_state["step"], client_state["rows"]


def _loaded(engine: Any, folder: Path, named: Path) -> dict[str, Any]:
    """Load a folder into the engine and return what was saved beside the engine's own state."""
    try:
        loaded, client_state = engine.load_checkpoint(str(folder), tag=STATE)
    except (OSError, RuntimeError, ValueError, AssertionError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"checkpoint {named} can't be loaded: {' '.join(str(error).split())[:300]}; remove it to start again"
        ) from None
    if loaded is None:
        raise CheckpointError(f"{named} holds no checkpoint; remove it to start again")
    return client_state


def broken_file(folder: Path) -> Path | None:
    """Return a file of a checkpoint that was not written to its end (empty, cut, or zeros), or None where all were."""
    files = sorted((folder / STATE).glob("*.pt"))
    return next((path for path in files if not zipfile.is_zipfile(path)), None) if files else folder / STATE


@contextlib.contextmanager
def newest_whole(candidates: Iterable[tuple[str, contextlib.AbstractContextManager[Any]]]) -> Iterator[Path | None]:
    """Have the folder of the newest checkpoint without a broken file, as all ranks see it; all ranks call this.

    Args:
        candidates: names of checkpoints, the newest first, and what opens their folders.

    Yields:
        A folder, or None where no checkpoint is whole. Each that is not is named in the log.
    """
    name = ""
    for name, opened in candidates:
        with opened as folder:
            broken = broken_file(Path(folder))
            if not any_rank([broken is not None])[0]:
                yield Path(folder)
                return
        logger.warning("checkpoint %s is broken (%s): going on from the one before it", name, broken.name if broken else "on another rank")
    if name:
        logger.warning("there is none before it")
    yield None


def load_other_world(engine: Any, root: Path, name: Callable[[int], str]) -> tuple[int, Rows]:
    """Load the newest checkpoint that so many other ranks wrote; all ranks call this.

    Args:
        engine: DeepSpeed's.
        root: the folder that holds the checkpoints (`CheckpointFolder.root` of that run), seen by all ranks.
        name: the run's fingerprint on so many ranks.

    Raises:
        CheckpointError: there is none, or as `load_from_other_ranks`.
    """
    with newest_whole(_newest_first(root)) as folder:
        if folder is None:
            raise CheckpointError(f"{root} holds no checkpoint to go on from")
        return load_from_other_ranks(engine, folder, root / f".universal-{folder.name}", torch.distributed.get_rank() == 0, name)


def _newest_first(root: Path) -> list[tuple[str, contextlib.AbstractContextManager[Path]]]:
    return [(str(folder), contextlib.nullcontext(folder)) for folder in sorted(root.glob("step-*"), reverse=True)]


def load_from_other_ranks(engine: Any, folder: Path, universal: Path, leads: bool, name: Callable[[int], str]) -> tuple[int, Rows]:
    """Load a checkpoint that so many other ranks wrote; all ranks call this.

    With ZeRO, it is turned into DeepSpeed's universal form first, and the engine must have been built with `universal`. The order of the
    data does not depend on the number of ranks, so that the run goes on where the other one stopped.

    Args:
        engine: DeepSpeed's.
        folder: the checkpoint.
        universal: where its universal form lies meanwhile.
        leads: whether this rank makes and removes that form: one rank of all, or of each node where nodes share no folder.
        name: the run's fingerprint on so many ranks.

    Raises:
        CheckpointError: it is of another run than this one on its own number of ranks, or not whole.
    """
    if engine.zero_optimization_stage() == 0:
        client_state = _loaded(engine, folder, folder)
    else:
        meanwhile(lambda: _make_universal(folder / STATE, universal / STATE) if leads else None)
        decay = [group["weight_decay"] for group in engine.optimizer.param_groups]
        client_state = _loaded(engine, universal, folder)
        for group, own in zip(engine.optimizer.param_groups, decay, strict=True):
            group["weight_decay"] = own  # stage 3 gives all groups the first one's
        torch.distributed.barrier()
        if leads:
            shutil.rmtree(universal, ignore_errors=True)
    if client_state["run"] != name(client_state["world_size"]):
        raise CheckpointError(f"checkpoint {folder} is of run {client_state['run']}, which is not this one on another number of ranks")
    return client_state["step"], client_state["rows"]


def meanwhile(work: Callable[[], object]) -> None:
    """Do work that may take hours on some ranks, while the others wait without a collective that would be given up; all ranks call this.

    The default group's time-out (10 minutes with NCCL, 30 with gloo) is for steps. These ranks wait in a group of their own.

    Raises:
        CheckpointError: the work went wrong on some rank; all ranks raise it.
    """
    group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
    try:
        fault = ""
        try:
            work()
        except Exception as error:  # whatever it is, the others are told
            fault = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        faults: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(faults, fault, group=group)
    finally:
        torch.distributed.destroy_process_group(group)
    if any(faults):
        raise CheckpointError(f"the checkpoint can't be turned into one for this number of ranks ({next(filter(None, faults))})")


def _make_universal(source: Path, folder: Path) -> None:
    """Write a checkpoint as DeepSpeed's universal one: each parameter's state whole, in files of its own."""
    from deepspeed.checkpoint import ds_to_universal

    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.mkdir(parents=True)
    options = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True, "inject_missing_state": True}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # it tells of every file
        ds_to_universal.main(argparse.Namespace(input_folder=str(source), output_folder=str(folder), **options))


class CheckpointFolder:
    """Checkpoints of one run in a folder that all ranks see: `<root>/step-00000200`, whole or not there."""

    def __init__(self, root: Path, run: str) -> None:
        self.root, self.run = root, run

    def save(self, engine: Any, step: int, rows: Rows) -> None:
        """Write a checkpoint on all ranks, then publish it by a rename and remove the older ones."""
        leads = torch.distributed.get_rank() == 0
        part = self.root / f".part-{step:08d}"
        if leads:
            shutil.rmtree(part, ignore_errors=True)
        torch.distributed.barrier()
        save_state(engine, part, self.run, step, rows)
        torch.distributed.barrier()
        if leads:
            older = self.whole()[:-1]  # one stays, should this one's files turn out broken
            target = self.root / f"step-{step:08d}"
            shutil.rmtree(target, ignore_errors=True)
            part.rename(target)
            for folder in older:
                shutil.rmtree(folder, ignore_errors=True)
        torch.distributed.barrier()

    def resume(self, engine: Any) -> tuple[int, Rows]:
        """Load the newest whole checkpoint, or begin at step 0; of one with a broken file, say so and take the one before."""
        with newest_whole(_newest_first(self.root)) as folder:
            return (0, []) if folder is None else load_state(engine, folder, self.run)

    def remove(self) -> None:
        """Remove all of them."""
        shutil.rmtree(self.root, ignore_errors=True)

    def whole(self) -> list[Path]:
        """Return the checkpoints that are whole, the oldest first."""
        return sorted(self.root.glob("step-*"))
