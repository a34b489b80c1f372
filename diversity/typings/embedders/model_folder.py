"""What the folder of an encoder or sentence-transformers model says: where its weights are, how it pools, how long a text may be."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diversity.artifact import file_digest
from diversity.config import ConfigError

FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "pytorch_model*.bin", "*_Pooling/*.json", "0_*/*")
_STEPS = ("Transformer", "Pooling", "Normalize")
_POOLINGS = {  # names in folders of today and of old; all that differ by a factor for each text are one to unit vectors
    "mean": "mean",
    "mean_tokens": "mean",
    "mean_sqrt_len_tokens": "mean",
    "cls": "cls",
    "cls_token": "cls",
    "max": "max",
    "max_tokens": "max",
    "weightedmean": "weightedmean",
    "weightedmean_tokens": "weightedmean",
    "lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder.

    Attributes:
        folder: the whole.
        weights: the part that transformers loads; older models keep it in `0_Transformer`.
        pooling: `mean`, `cls`, `max`, `weightedmean` or `lasttoken`.
        max_tokens: the longest input that the model asks for, or None.
    """

    folder: Path
    weights: Path
    pooling: str
    max_tokens: int | None

    def digests(self) -> dict[str, str]:
        """Return the digest of each file that counts."""
        files = sorted({path for pattern in FILES for path in self.folder.glob(pattern) if path.is_file()})
        return {path.relative_to(self.folder).as_posix(): file_digest(path) for path in files}


def model_folder(name: str) -> ModelFolder:
    """Return the folder of a model; a hub id is looked up in the hub's cache, then downloaded.

    Raises:
        ConfigError: it can't be had, or has a step or a pooling that is not known here.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _from_hub(name)
    modules = _json(folder / "modules.json", [])
    steps = [module["type"].rpartition(".")[2] for module in modules]
    if unknown := [step for step in steps if step not in _STEPS]:
        raise ConfigError(f"profile.embedder.model: {folder} has a step {unknown[0]!r}; known are {', '.join(_STEPS)}")
    paths = dict(zip(steps, (module["path"] for module in modules), strict=True))
    weights = folder / paths.get("Transformer", "")
    pooling = _pooling(folder / paths.get("Pooling", "1_Pooling") / "config.json")
    return ModelFolder(folder, weights, pooling, _json(weights / "sentence_bert_config.json", {}).get("max_seq_length"))


def pool(hidden: Any, mask: Any, pooling: str) -> Any:
    """Return (n, d): one vector for each text out of (n, length, d) hidden states of which `mask` (n, length) says what is text.

    Texts are padded at their end. Works on torch tensors; it is also traced into the ONNX graph.
    """
    if pooling == "cls":
        return hidden[:, 0]
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    if pooling == "max":
        return hidden.masked_fill(weight == 0, -1e9).amax(1)
    if pooling == "lasttoken":
        weight = (mask - _shifted(mask)).unsqueeze(-1).to(hidden.dtype)
    if pooling == "weightedmean":
        weight = weight * mask.cumsum(1).unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1)


def _shifted(mask: Any) -> Any:
    """Return the mask with each row moved one place to the left: what is left of a difference is a text's last token."""
    import torch

    return torch.nn.functional.pad(mask[:, 1:], (0, 1))


def _pooling(path: Path) -> str:
    given = _json(path, {"pooling_mode": "mean"})
    modes = given.get("pooling_mode")
    if modes is None:
        modes = sorted(key.removeprefix("pooling_mode_") for key, value in given.items() if value is True and "pooling_mode_" in key)
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) == 1 and modes[0] in _POOLINGS:
        return _POOLINGS[modes[0]]
    known = ", ".join(dict.fromkeys(_POOLINGS.values()))
    raise ConfigError(f"profile.embedder.model: {path.parent} pools by {', '.join(modes) or 'nothing'}; known is one of {known}")


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # the hub fails in as many ways as networks do
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"profile.embedder.model: {name!r} is neither a folder nor to be had from the hub: {reason}") from None


def _json(path: Path, default: Any) -> Any:
    return json.loads(path.read_text("utf-8")) if path.exists() else default
