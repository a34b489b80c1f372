"""A finished model as a Hugging Face folder, and the proof before any training that it will become one."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from diversity.config import UserError
from training.chat import ChatFormat, load_tokenizer
from training.config import SftConfig
from training.engine import with_adapters
from training.model_source import MORE_TEMPLATES
from training.rendering import Template

TOKENIZER_FILES = ("tokenizer*", "special_tokens_map*", "added_tokens*", "vocab*", "merges*", "chat_template*", "generation_config.json")
MAX_SHARD = "5GB"
MERGE_TOKENS = 16
MERGE_NEAR = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}  # mean difference of logits in their standard deviation


class ExportError(UserError):
    """A trained model that can't be written, or would not be the one that was trained."""


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


def dry_export(model: Any, source: Path, sft: SftConfig) -> None:
    """Prove before any training that the model can be exported: all that an export does but for copying and writing bytes.

    Stand-ins of the model's parameters, which take no memory, become a model outside of DeepSpeed, whose weights are then renamed and
    split as they are in files. All ranks may call this; they find the same.

    Args:
        model: the model that will be trained, with adapters or without, in parts (ZeRO stage 3) or whole.
        source: the folder that it came from.
        sft: the run's configuration.

    Raises:
        ExportError: the export would fail after the last step.
    """
    from transformers.core_model_loading import revert_weight_conversion

    stands_in = {name: torch.zeros((), dtype=one.dtype).expand(getattr(one, "ds_shape", one.shape)) for name, one in lasting(model)}
    try:
        fresh = _untrained(source, stands_in, sft).to("meta")
        fresh = fresh if sft.lora is None else fresh.merge_and_unload()
        revert_weight_conversion(fresh, fresh.state_dict())
    except ExportError:
        raise
    except Exception as error:  # architectures raise whatever they like
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ExportError(f"this model could be trained and then not be exported ({reason}); nothing has been trained") from None


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
    from transformers import AutoModelForCausalLM

    if sft.lora is None:
        return _untrained(source, state, sft)
    dtype = next(iter(state.values())).dtype
    model = with_adapters(AutoModelForCausalLM.from_pretrained(source, dtype=dtype), sft.lora, seed=0)
    model.load_state_dict(state, strict=False)
    return _merged(model.eval())


def _untrained(source: Path, state: dict[str, torch.Tensor], sft: SftConfig) -> Any:
    """Return a model made of its configuration alone, with adapters if there are any, that has these very tensors.

    Raises:
        ExportError: the tensors are not all that the model has, or more.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source), dtype=next(iter(state.values())).dtype)
        if sft.lora is not None:
            model = with_adapters(model, sft.lora, seed=0)
    unknown = model.load_state_dict(state, strict=False, assign=True).unexpected_keys
    (model.get_base_model() if sft.lora is not None else model).tie_weights()
    left = [name for name, tensor in lasting(model) if tensor.is_meta]
    for names, what in ((left, "has no weights for"), (unknown, "has weights that its files don't,")):
        if names:
            raise ExportError(f"the trained model {what} {', '.join(names[:5])}")
    return model


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
