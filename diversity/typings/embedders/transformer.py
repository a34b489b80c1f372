"""Embeddings by any encoder or sentence-transformers model: a folder or a hub id. fp32 or int8 on a CPU, bf16 on a GPU.

Texts of a call are sorted by length and padded together up to a budget of tokens, so that little is computed for padding.
What is padded together depends on the call alone; the caller keeps calls to fixed groups of the id-sorted corpus.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diversity.artifact import package_versions
from diversity.typings.embedders import EmbedderConfig
from diversity.typings.embedders.model_folder import model_folder, pool
from diversity.typings.embedders.onnx_int8 import identity as int8_identity
from diversity.typings.embedders.onnx_int8 import int8_forward

VERSION = 2  # counted up when the same files and settings give other vectors
BUDGET_CPU, BUDGET_INT8, BUDGET_GPU = 4096, 1024, 65_536  # int8 attention is written out: more does not fit the cache
UNLIMITED = 2**31 - 1


class TransformerEmbedder:
    """Unit vectors out of the last hidden states, pooled as the model's folder says; mean is the default."""

    def __init__(self, config: EmbedderConfig, device: str = "cpu") -> None:
        """Load the model.

        Args:
            config: which, and how precise.
            device: kind of device, `cpu` or `cuda`. It is not looked for: a GPU that a worker sees may be somebody else's.

        Raises:
            ConfigError: it can't be had, or has a step that is not known here (a dense layer, another pooling).
        """
        import torch
        from transformers import AutoConfig, AutoTokenizer

        model = model_folder(str(config.model))
        self._pooling = model.pooling
        self._torch = torch
        self._device = "cpu" if config.precision == "int8" else device
        self._tokenizer = AutoTokenizer.from_pretrained(model.weights)
        shape = AutoConfig.from_pretrained(model.weights)
        self.dimension = int(shape.hidden_size)
        asked = model.max_tokens or min(int(self._tokenizer.model_max_length), UNLIMITED)
        limits = [config.max_tokens, asked, positions(shape)]
        self._max_tokens = min(limit for limit in limits if limit)
        self._budget = BUDGET_GPU if self._device == "cuda" else BUDGET_CPU
        if config.precision == "int8":
            self._budget = BUDGET_INT8
            self._forward = int8_forward(model)
        else:
            self._model = self._loaded(model.weights, resolved_precision(config, device))
            self._forward = self._torch_forward

    def _loaded(self, folder: Path, precision: str) -> Any:
        from transformers import AutoModel

        torch = self._torch
        return AutoModel.from_pretrained(folder, dtype=torch.float32 if precision == "fp32" else torch.bfloat16).to(self._device).eval()

    @staticmethod
    def identity(config: EmbedderConfig, device: str = "cpu") -> dict[str, Any]:
        """Return the digests of the folder's files, the packages that compute, how texts are cut and grouped, precision and device.

        Groups decide what is padded together, and GPUs add up in another order.
        """
        digests = model_folder(str(config.model)).digests()
        found = {"name": config.name, "version": VERSION, "files": digests, "packages": package_versions("torch", "transformers")}
        found |= config.model_dump(mode="json", include={"max_tokens", "group"})
        found["precision"] = resolved_precision(config, device)
        if config.precision == "int8":
            return {**found, "int8": int8_identity()}
        return {**found, "device": device}

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
        longest = max(map(len, ids))
        padded = np.full((len(ids), longest), self._tokenizer.pad_token_id or 0, np.int64)
        mask = np.zeros((len(ids), longest), np.int64)
        for i, row in enumerate(ids):
            padded[i, : len(row)] = row
            mask[i, : len(row)] = 1
        pooled = self._forward(padded, mask)
        norms = np.linalg.norm(pooled, axis=1, keepdims=True)
        return pooled / np.where(norms > 0, norms, 1)

    def _torch_forward(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Return (n, d) float32 pooled vectors. Rows of one length need no mask, and attention without one is quicker."""
        torch = self._torch
        given, kept = torch.from_numpy(ids).to(self._device), torch.from_numpy(mask).to(self._device)
        hidden = self._model(input_ids=given, attention_mask=None if mask.all() else kept).last_hidden_state.float()
        return pool(hidden, kept, self._pooling).cpu().numpy()


def positions(shape: Any) -> int | None:
    """Return how many tokens a model has positions for, or None where that is not bounded.

    The RoBERTa family numbers positions from the one after its padding, and so has fewer than its configuration says.
    """
    import torch
    from transformers import AutoModel

    given = getattr(shape, "max_position_embeddings", None)
    if not given or given < 0:
        return None
    with torch.device("meta"):
        parts = dict(AutoModel.from_config(shape).named_modules())
    padding = [getattr(part, "padding_idx", None) for name, part in parts.items() if name.endswith("position_embeddings")]
    return int(given) - max((index + 1 for index in padding if index is not None), default=0)


def resolved_precision(config: EmbedderConfig, device: str) -> str:
    """Return the precision on a kind of device, where the config leaves it open: bf16 on a GPU, fp32 on a CPU."""
    if config.precision == "auto":
        return "bf16" if device == "cuda" else "fp32"
    return config.precision


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
