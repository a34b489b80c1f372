"""An encoder as an ONNX graph with int8 weights, for CPUs: made once for a machine, out of the model's own folder.

Weights are quantised by channel (all-MiniLM-L6-v2: mean cosine .993 to fp32; by tensor .95), and without sign: processors without VNNI add
signed 8-bit products in 16 bits, which overflow.
Activations are quantised as they come, so no data is needed for calibration. Pooling is part of the graph.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diversity.artifact import digest, package_versions
from diversity.config import ConfigError
from diversity.typings.embedders.model_folder import ModelFolder, pool

log = logging.getLogger(__name__)

VERSION = 1
PACKAGES = ("torch", "transformers", "onnx", "onnxruntime", "onnxscript")
Forward = Callable[[np.ndarray, np.ndarray], np.ndarray]


def identity() -> dict[str, Any]:
    """Return what decides the vectors beside the model's files.

    Raises:
        ConfigError: a package for it is missing.
    """
    try:
        return {"version": VERSION, "packages": package_versions(*PACKAGES)}
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(f"profile.embedder.precision=int8 needs {error.name}: pip install 'sft-diversity[onnx]'") from None


def int8_forward(model: ModelFolder) -> Forward:
    """Return the function of (ids, mask), both (n, length) int64, that gives (n, d) float32 pooled vectors.

    Raises:
        ConfigError: a package for it is missing.
    """
    identity()  # says what is missing
    return _forward(_cached(model))


def _forward(path: Path) -> Forward:
    """Return the function that runs a graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def forward(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return session.run(None, {"input_ids": ids, "attention_mask": mask})[0]

    return forward


def _threads() -> int:
    """Return the threads that torch would take: a worker's share of the cores is said there."""
    import torch

    return torch.get_num_threads()


def _cached(model: ModelFolder) -> Path:
    """Return the quantised graph, made by one process of this machine and waited for by the others."""
    from filelock import FileLock

    cache = Path(os.environ.get("SFT_DIVERSITY_CACHE") or Path.home() / ".cache" / "sft-diversity") / "onnx"
    path = cache / f"{digest([model.digests(), model.pooling, identity()])}.onnx"
    if path.exists():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            log.info("turning %s into ONNX with int8 weights, once for this machine: %s", model.folder, path)
            _make(model, path)
    return path


def _example(n: int, length: int, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and mask of n texts, each shorter than the one before: a mask of ones alone would be traced as none."""
    ids = np.random.default_rng(0).integers(0, vocabulary, (n, length))
    return ids, (np.arange(length) < length - np.arange(n)[:, None]).astype(np.int64)


def check(folder: Path, found: np.ndarray, expected: np.ndarray) -> None:
    """Refuse a graph that does not give the model's own vectors: a trace can go wrong without a word.

    Raises:
        ConfigError: the vectors are others.
    """
    apart = np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-12)
    if not apart < 1e-3:
        raise ConfigError(
            f"profile.embedder.precision=int8: the ONNX graph of {folder} gives other vectors (apart by {apart:.1g}); use fp32"
        )


def _make(model: ModelFolder, path: Path) -> None:
    """Write the graph beside its place and rename it."""
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import AutoModel

    class Pooled(torch.nn.Module):
        """Token ids and mask → pooled last hidden states."""

        def __init__(self) -> None:
            super().__init__()
            # Attention written out: the graph of the fused one is wrong for texts that are padded.
            self.model = AutoModel.from_pretrained(model.weights, dtype=torch.float32, attn_implementation="eager").eval()

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return pool(hidden, attention_mask, model.pooling)

    whole, part, pooled = path.with_suffix(".fp32"), path.with_suffix(".part"), Pooled()
    example = _example(2, 7, int(pooled.model.config.vocab_size))
    sizes = {0: "n", 1: "length"}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            pooled,
            tuple(map(torch.from_numpy, example)),
            str(whole),
            input_names=["input_ids", "attention_mask"],
            output_names=["pooled"],
            dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
            external_data=False,
            dynamo=True,
            verbose=False,
        )
        other = _example(5, 13, int(pooled.model.config.vocab_size))
        expected = pooled(*map(torch.from_numpy, other)).numpy()
    check(model.folder, _forward(whole)(*other), expected)
    quantize_dynamic(str(whole), str(part), weight_type=QuantType.QUInt8, per_channel=True, op_types_to_quantize=["MatMul"])
    whole.unlink()
    part.replace(path)
