"""Embeddings by any encoder or sentence-transformers model: a folder or a hub id. fp32 on a CPU, bf16 on a GPU.

Texts of a call are sorted by length and padded together up to a budget of tokens, so that little is computed for padding.
What is padded together depends on the call alone; the caller keeps calls to fixed groups of the id-sorted corpus.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diversity.artifact import file_digest, package_versions
from diversity.config import ConfigError
from diversity.embedders import EmbedderConfig

BUDGET_CPU, BUDGET_GPU = 4096, 65_536
_FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "pytorch_model*.bin", "1_Pooling/*.json")
_STEPS = ("Transformer", "Pooling", "Normalize")


class TransformerEmbedder:
    """Unit vectors out of the last hidden states, pooled as the model's folder says: mean (the default) or first token."""

    def __init__(self, config: EmbedderConfig) -> None:
        """Load the model.

        Raises:
            ConfigError: it can't be had, or has a step that is not known here (a dense layer, another pooling).
        """
        import torch
        from transformers import AutoModel, AutoTokenizer

        folder = model_folder(config)
        self._pooling = pooling(folder)
        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        dtype = torch.bfloat16 if self._device == "cuda" else torch.float32
        self._model = AutoModel.from_pretrained(folder, dtype=dtype).to(self._device).eval()
        self.dimension = int(self._model.config.hidden_size)
        limits = [config.max_tokens, _own_limit(folder), getattr(self._model.config, "max_position_embeddings", None)]
        self._max_tokens = min(limit for limit in limits if limit)
        self._budget = BUDGET_GPU if self._device == "cuda" else BUDGET_CPU

    @staticmethod
    def identity(config: EmbedderConfig) -> dict[str, Any]:
        """Return the digests of the folder's files, and the packages that compute."""
        folder = model_folder(config)
        files = sorted(path for pattern in _FILES for path in folder.glob(pattern))
        digests = {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
        return {"name": config.name, "files": digests, "packages": package_versions("torch", "transformers")}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return (n, dimension) float32 unit vectors."""
        found = np.empty((len(texts), self.dimension), np.float32)
        if not len(texts):
            return found
        ids = self._tokenizer(list(texts), truncation=True, max_length=self._max_tokens)["input_ids"]
        with self._torch.inference_mode():
            for rows in batches([len(row) for row in ids], self._budget):
                found[rows] = self._batch([ids[row] for row in rows])
        return found

    def _batch(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Return the unit vectors of token ids that are padded together."""
        torch = self._torch
        longest = max(map(len, ids))
        padded = torch.full((len(ids), longest), self._tokenizer.pad_token_id or 0)
        mask = torch.zeros((len(ids), longest), dtype=torch.long)
        for i, row in enumerate(ids):
            padded[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        padded, mask = padded.to(self._device), mask.to(self._device)
        hidden = self._model(input_ids=padded, attention_mask=mask).last_hidden_state.float()
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        pooled = hidden[:, 0] if self._pooling == "cls" else mean
        return torch.nn.functional.normalize(pooled, dim=1).cpu().numpy()


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Yield row numbers, longest rows first, in batches whose padded size stays within a budget of tokens."""
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    batch: list[int] = []
    for row in order:
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def model_folder(config: EmbedderConfig) -> Path:
    """Return the local folder of the model; a hub id is looked up in the hub's cache, then downloaded.

    Raises:
        ConfigError: it can't be had.
    """
    name = str(config.model)
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except Exception as error:  # the hub fails in as many ways as networks do
        raise ConfigError(f"profile.embedder.model: {name!r} is neither a folder nor to be had from the hub: {error}") from None


def pooling(folder: Path) -> str:
    """Return `mean` or `cls`, as the sentence-transformers files in the folder say; without them `mean`.

    Raises:
        ConfigError: the model has a step that is not known here.
    """
    modules = folder / "modules.json"
    if modules.exists():
        steps = [module["type"].rpartition(".")[2] for module in json.loads(modules.read_text("utf-8"))]
        if unknown := [step for step in steps if step not in _STEPS]:
            raise ConfigError(f"profile.embedder.model: {folder} has a step {unknown[0]!r}; known are {', '.join(_STEPS)}")
    path = folder / "1_Pooling" / "config.json"
    if not path.exists():
        return "mean"
    modes = {key.removeprefix("pooling_mode_") for key, value in json.loads(path.read_text("utf-8")).items() if value is True}
    for mode, name in (("mean_tokens", "mean"), ("cls_token", "cls")):
        if mode in modes:
            return name
    raise ConfigError(f"profile.embedder.model: {folder} pools by {', '.join(sorted(modes)) or 'nothing'}; known are mean and cls")


def _own_limit(folder: Path) -> int | None:
    """Return the longest input, in tokens, that a sentence-transformers model asks for."""
    path = folder / "sentence_bert_config.json"
    return json.loads(path.read_text("utf-8")).get("max_seq_length") if path.exists() else None
