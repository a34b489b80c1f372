"""Measure what training takes by ZeRO stage: a process of its own, so that its resident memory is that of one run.

    python -m tests.training.memory STAGE…

Prints a JSON object a stage: the bytes at the worst moment of two steps above what the process had before, and the estimate.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROW = 32


def resident(field: str) -> int:
    """Return `VmRSS` (now) or `VmHWM` (the most since `forget_peak`), in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def make(folder: Path, hidden: int, layers: int) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers, "num_attention_heads": 8}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, num_key_value_heads=8, tie_word_embeddings=True, **sizes))  # type: ignore[arg-type]
    model.save_pretrained(folder)
    return folder


def measure(folder: Path, stage: int, precision: Any) -> dict[str, Any]:
    import torch

    from training.config import SftConfig
    from training.engine import build_engine, load_model, shape_of
    from training.zero import estimate_memory

    sft = SftConfig(zero={"stage": stage}, precision=precision, max_length=ROW)  # type: ignore[arg-type]
    gc.collect()
    before = resident("VmRSS")
    forget_peak()
    engine = build_engine(load_model(folder, sft, precision, seed=0), sft, precision, "cpu")
    ids, bounds = torch.arange(ROW)[None], torch.tensor([0, ROW], dtype=torch.int32)
    inputs: dict[str, Any] = {"input_ids": ids, "position_ids": ids, "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool)}
    inputs |= {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": ROW, "max_length_k": ROW}
    for _ in range(2):
        for _ in range(2):
            engine.backward(engine(predicting=torch.arange(8), targets=torch.arange(8), **inputs), scale_wrt_gas=False)
        engine.step()
    shape = shape_of(folder, sft)
    estimate = estimate_memory(shape, sft, precision).device
    return {"stage": stage, "parameters": shape.parameters, "measured": resident("VmHWM") - before, "estimate": estimate}


def main() -> None:
    from tests.training.ranks import alone
    from training import zero

    zero.BUCKET = 2_000_000  # beside a model of 13M parameters as small as the real one beside one of billions
    alone()
    with tempfile.TemporaryDirectory() as folder:
        warm, model = make(Path(folder, "warm"), 64, 1), make(Path(folder, "model"), 640, 2)
        for stage in map(int, sys.argv[1:]):
            measure(warm, stage, "bf16")  # libraries take their own
            print(json.dumps(measure(model, stage, "bf16")), flush=True)


if __name__ == "__main__":
    main()
