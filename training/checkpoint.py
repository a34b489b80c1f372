"""Training state written by all ranks and read back, and a finished model as a Hugging Face folder."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from diversity.config import UserError
from training.chat import ChatFormat, load_tokenizer
from training.config import SftConfig
from training.engine import with_adapters
from training.model_source import MORE_TEMPLATES
from training.rendering import Template

STATE = "state"  # the tag under which DeepSpeed files every rank's shards
TOKENIZER_FILES = ("tokenizer*", "special_tokens_map*", "added_tokens*", "vocab*", "merges*", "chat_template*", "generation_config.json")
MAX_SHARD = "5GB"
MERGE_TOKENS = 16
MERGE_NEAR = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}  # mean difference of logits in their standard deviation

Rows = list[dict[str, Any]]
logger = logging.getLogger("training.sft")


class ExportError(UserError):
    """A trained model that can't be written, or would not be the one that was trained."""


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


def load_other_world(engine: Any, root: Path, name: Callable[[int], str]) -> tuple[int, Rows]:
    """Load the newest checkpoint that so many other ranks wrote; all ranks call this.

    Args:
        engine: DeepSpeed's.
        root: the folder that holds the checkpoints (`CheckpointFolder.root` of that run), seen by all ranks.
        name: the run's fingerprint on so many ranks.

    Raises:
        CheckpointError: there is none, or as `load_from_other_ranks`.
    """
    whole = sorted(root.glob("step-*"))
    if not whole:
        raise CheckpointError(f"{root} holds no checkpoint to go on from")
    return load_from_other_ranks(engine, whole[-1], root / f".universal-{whole[-1].name}", torch.distributed.get_rank() == 0, name)


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
        if leads:
            shutil.rmtree(universal, ignore_errors=True)
            _make_universal(folder / STATE, universal / STATE)
        torch.distributed.barrier()
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


def _make_universal(source: Path, folder: Path) -> None:
    """Write a checkpoint as DeepSpeed's universal one: each parameter's state whole, in files of its own."""
    from deepspeed.checkpoint import ds_to_universal

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
        for folder in reversed(self.whole()):
            if (broken := broken_file(folder)) is None:
                return load_state(engine, folder, self.run)
            logger.warning("checkpoint %s is broken (%s): going on from the one before it", folder, broken.name)
        return 0, []

    def remove(self) -> None:
        """Remove all of them."""
        shutil.rmtree(self.root, ignore_errors=True)

    def whole(self) -> list[Path]:
        """Return the checkpoints that are whole, the oldest first."""
        return sorted(self.root.glob("step-*"))


def lasting(model: Any) -> list[tuple[str, torch.Tensor]]:
    """Return what a model's weights file holds: every parameter once, by its first name, and the buffers that are saved with them."""
    saved = set(model.state_dict())
    return [*model.named_parameters(), *((name, buffer) for name, buffer in model.named_buffers() if name in saved)]


def consolidate(engine: Any) -> dict[str, torch.Tensor] | None:
    """Return the trained model's parameters and saved buffers on the CPU of rank 0; all ranks call this, the others get None."""
    import deepspeed

    leads = torch.distributed.get_rank() == 0
    model = engine.module.model
    if engine.zero_optimization_stage() < 3:
        return {name: tensor.detach().cpu() for name, tensor in lasting(model)} if leads else None
    state = {}
    for name, tensor in lasting(model):
        with deepspeed.zero.GatheredParameters([tensor]) if hasattr(tensor, "ds_id") else contextlib.nullcontext():
            if leads:
                state[name] = tensor.detach().cpu().clone()
    return state if leads else None


def export(engine: Any, source: Path, folder: Path, sft: SftConfig, *, chat: ChatFormat | None = None) -> None:
    """Write the trained model as a Hugging Face folder that transformers and vLLM open; all ranks call this, rank 0 writes.

    Args:
        engine: DeepSpeed's.
        source: the folder that the run began with; its tokenizer and generation config are copied as they are.
        folder: a new folder.
        sft: the run's configuration; adapters are merged into the weights.
        chat: how samples looked, so that inference builds the prompts that training saw and stops where answers ended.

    Raises:
        ExportError: the folder can't be written, or merged weights don't do what the adapters did.
    """
    state = consolidate(engine)
    if state is None:
        return
    try:
        write_model(source, state, folder, sft)
        copy_tokenizer(source, folder, chat)
        usual_modes(folder)
    except OSError as error:
        raise ExportError(f"the trained model can't be written to {folder}: {error}") from None


def write_model(source: Path, state: dict[str, torch.Tensor], folder: Path, sft: SftConfig) -> None:
    """Write a trained model's weights and configuration.

    Args:
        source: the folder that the run began with.
        state: of `consolidate`.
        folder: a new folder.
        sft: the run's configuration.
    """
    from safetensors import SafetensorError

    model = _fresh_model(source, state, sft)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        model.save_pretrained(folder, max_shard_size=MAX_SHARD)
    except SafetensorError as error:  # a full disk, for one
        raise ExportError(f"the trained model can't be written to {folder}: {' '.join(str(error).split())[:200]}") from None


def _fresh_model(source: Path, state: dict[str, torch.Tensor], sft: SftConfig) -> Any:
    """Return a model outside of DeepSpeed that has these parameters, adapters merged."""
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype = next(iter(state.values())).dtype
    if sft.lora is None:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source), dtype=dtype)
        model.load_state_dict(state, strict=False, assign=True)
        model.tie_weights()
        left = [name for name, tensor in lasting(model) if tensor.is_meta]
        if left:
            raise ExportError(f"the trained model has no weights for {', '.join(left[:5])}")
        return model
    model = with_adapters(AutoModelForCausalLM.from_pretrained(source, dtype=dtype), sft.lora, seed=0)
    model.load_state_dict(state, strict=False)
    return _merged(model.eval())


def _merged(model: Any) -> Any:
    """Return a model with its adapters merged, once some tokens have the logits that they had before.

    Raises:
        ExportError: they have not; an adapter lies on a weight that another layer shares, for one.
    """
    ids = torch.arange(3, 3 + MERGE_TOKENS)[None] % model.config.get_text_config().vocab_size
    with torch.no_grad():
        wanted = model(input_ids=ids).logits.float()
        merged = model.merge_and_unload()
        found = merged(input_ids=ids).logits.float()
    off, scale = float((found - wanted).abs().mean()), float(wanted.std())
    if not off <= MERGE_NEAR[merged.dtype] * scale:
        raise ExportError(
            f"merged weights don't do what the adapters did: logits are off by {off:.3g} on average (their spread is {scale:.3g})"
        )
    return merged


def copy_tokenizer(source: Path, folder: Path, chat: ChatFormat | None = None) -> None:
    """Copy what a tokenizer and generation need, byte for byte, but for a chat template or an end that was another in training."""
    for pattern in TOKENIZER_FILES:
        for path in source.glob(pattern):
            shutil.copyfile(path, folder / path.name)
    if (source / MORE_TEMPLATES).is_dir():
        shutil.copytree(source / MORE_TEMPLATES, folder / MORE_TEMPLATES, dirs_exist_ok=True)
    if chat is None:
        return
    if load_tokenizer(source).chat_template != chat.template:
        _write_template(folder, chat.template)
    _stop_at(folder / "generation_config.json", chat.ends)


def _write_template(folder: Path, template: Template) -> None:
    """Write a folder's only chat template, or its only ones by name."""
    shutil.rmtree(folder / MORE_TEMPLATES, ignore_errors=True)
    for path in folder.glob("chat_template*"):
        path.unlink()
    config = folder / "tokenizer_config.json"
    values = json.loads(config.read_text("utf-8")) if config.exists() else {}
    if values.pop("chat_template", None) is not None:
        config.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")
    named = {"default": template} if isinstance(template, str) else dict(template)
    (folder / "chat_template.jinja").write_text(named.pop("default"), "utf-8")
    for name, one in named.items():
        (folder / MORE_TEMPLATES).mkdir(exist_ok=True)
        (folder / MORE_TEMPLATES / f"{name}.jinja").write_text(one, "utf-8")


def _stop_at(path: Path, ends: Sequence[int]) -> None:
    """Have generation stop at these tokens too, behind those that it stops at already."""
    values = json.loads(path.read_text("utf-8")) if path.exists() else {}
    own = values.get("eos_token_id")
    known = [] if own is None else list(own) if isinstance(own, list) else [own]
    if more := [end for end in ends if end not in known]:
        stops = [*known, *more]
        values["eos_token_id"] = stops if len(stops) > 1 else stops[0]
        path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")


def usual_modes(folder: Path) -> None:
    """Give every file the mode that a new file has: safetensors are written for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)
