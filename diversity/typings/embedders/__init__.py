"""Embedders: classes that load in `__init__` and turn a list of texts into unit vectors in `__call__`; one file each.

To add one: a file with such a class, and a line in `EMBEDDERS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import Field, model_validator

from diversity.config import Config, lookup, near_matches

EMBEDDERS = {
    "static": "diversity.typings.embedders.static:StaticEmbedder",
    "transformer": "diversity.typings.embedders.transformer:TransformerEmbedder",
}


class EmbedderConfig(Config):
    """How texts become vectors.

    Attributes:
        name: one of `EMBEDDERS`.
        model: for `transformer`: a folder, or a hub id, of an encoder or sentence-transformers model.
        precision: for `transformer`: `auto` is fp32 on a CPU and bf16 on a GPU; `int8` is an ONNX graph on the CPU (the extra `onnx`).
        max_tokens: for `transformer`: longer texts are cut; None takes the model's own limit.
        group: rows of the id-sorted corpus that are embedded together, so that padding never depends on the workers.
    """

    name: str = "static"
    model: str | None = None
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    max_tokens: int | None = Field(default=None, ge=2)
    group: int = Field(default=1024, ge=1)

    @model_validator(mode="after")
    def _complete(self) -> EmbedderConfig:
        if self.name not in EMBEDDERS:
            raise ValueError(f"unknown embedder {self.name!r}{near_matches(self.name, EMBEDDERS)}")
        if self.name == "transformer" and not self.model:
            raise ValueError("embedder transformer needs model: a folder or a hub id")
        if self.name != "transformer" and self.precision != "auto":
            raise ValueError(f"embedder {self.name} has no precision: that is for transformer")
        return self


class Embedder(Protocol):
    """What every embedder is."""

    dimension: int

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return (n, dimension) float32 unit vectors in the order of the texts."""

    @staticmethod
    def identity(config: EmbedderConfig, device: str = "cpu") -> dict[str, Any]:
        """Return what decides the vectors: names, versions, digests, precision, and device where it counts. It must not load weights."""


def embedder_class(config: EmbedderConfig) -> Any:
    """Return the class that a config names."""
    return lookup(EMBEDDERS, config.name, "embedder")


def load_embedder(config: EmbedderConfig, device: str = "cpu") -> Embedder:
    """Return the embedder that a config names, loaded on a kind of device, `cpu` or `cuda`: who calls decides, never what is there."""
    embedder: Embedder = embedder_class(config)(config, device)
    return embedder


def embed(texts: Sequence[str], config: EmbedderConfig | None = None) -> np.ndarray:
    """Return (n, dimension) float32 unit vectors, made in the config's fixed groups."""
    config = config or EmbedderConfig()
    embedder = load_embedder(config)
    if not texts:
        return np.empty((0, embedder.dimension), np.float32)
    starts = range(0, len(texts), config.group)
    return np.concatenate([embedder(texts[start : start + config.group]) for start in starts])
