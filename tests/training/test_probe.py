"""The probe on tiny random models of many kinds: what it decides, and that rows trained so have the losses of samples alone.

A quick form of `python -m benchmarks.architectures`, which goes through every decoder that transformers can build small.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.architectures import judged, tiny_config, tiny_model
from training.config import SftConfig
from training.engine import shape_of
from training.evaluators.transformers_engine import kv_bytes
from training.forward import figure
from training.probe import Unsupported, settle

ROWS = {
    "llama": "bounds",
    "apertus": "bounds",  # has weights without a dimension
    "qwen3": "bounds",
    "gemma2": "positions",  # caps its scores
    "llama4_text": "positions",  # attends in chunks
    "mamba2": "alone",
    "jamba": "alone",
    "qwen3_next": "alone",
    "lfm2": "alone",
    "bloom": "alone",  # has no positions to begin anew
}


@pytest.mark.parametrize(("kind", "rows"), ROWS.items())
def test_rows_are_trained_as_samples_alone_and_the_export_opens(kind: str, rows: str, tmp_path: Path) -> None:
    found = judged(tiny_model(kind), tmp_path)
    assert found["verdict"] == rows, found
    assert found["loss"] < 1e-3 and found["export"] < 1e-4, found
    if rows == "alone":
        assert "a packed sample sees its neighbour" in found["note"]


def test_what_is_not_causal_is_refused() -> None:
    with pytest.raises(Unsupported, match="bert models can't be trained here: this one is not causal"):
        settle(tiny_model("bert"), torch.device("cpu"))


def test_a_leak_that_is_forced_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that forgets its bounds: the probe goes on to the next way."""
    from training import attention

    model: Any = tiny_model("llama")
    assert settle(model, torch.device("cpu")).rows == "bounds"
    whole = attention._one_by_one

    def leaking(row: Any) -> Any:
        length = row.query.shape[2]
        return whole(row._replace(bounds=torch.tensor([0, length], dtype=torch.int32), places=(0, length)))

    monkeypatch.setattr(attention, "_one_by_one", leaking)
    verdict = settle(model, torch.device("cpu"))
    assert verdict.rows == "positions" and "bounds: a packed sample sees its neighbour" in verdict.told()
    assert model.config._attn_implementation == "sdpa"


def test_windows_are_as_they_were_after_the_probe() -> None:
    model: Any = tiny_model("gemma3_text")
    before = model.config.sliding_window, [getattr(module, "sliding_window", None) for module in model.modules()]
    settle(model, torch.device("cpu"))
    assert before == (model.config.sliding_window, [getattr(module, "sliding_window", None) for module in model.modules()])


def test_figures_of_layers_that_differ(tmp_path: Path) -> None:
    """Transformers names no such figure; memory and operations are counted by the largest."""
    config = tiny_config("gemma4_text")
    widths = [layer.head_dim for layer in config.per_layer_config]
    with pytest.raises(RuntimeError, match="per-layer"):
        config.head_dim  # noqa: B018
    assert figure(config, "head_dim", 1) == max(widths) > min(widths) and figure(config, "no_such_figure", 7) == 7
    config.save_pretrained(tmp_path)
    assert shape_of(tmp_path, SftConfig()).attention_width == 4 * max(widths)
    assert kv_bytes(config, 2) == 2 * config.num_hidden_layers * figure(config, "num_key_value_heads", 0) * max(widths) * 2
