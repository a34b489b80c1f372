"""Training where a GPU is, and where several are; each test says what it needs where that is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.ranks import SFT, on_ranks

GPUS = torch.cuda.device_count()
one_gpu = pytest.mark.skipif(GPUS < 1, reason="needs a GPU")
two_gpus = pytest.mark.skipif(GPUS < 2, reason=f"needs two GPUs, and there are {GPUS}")
ZEROS: list[dict[str, Any]] = [*({"stage": stage} for stage in range(4)), {"stage": 2, "offload_optimizer": True}]


def losses(model: Path, ranks: int, device: str, *changes: dict[str, Any]) -> list[list[float]]:
    jobs = [{"model": model, "sft": {**SFT, "world_size": ranks, **change}} for change in changes]
    return [found["losses"] for found in on_ranks(ranks, jobs, device)]


@one_gpu
def test_one_gpu_follows_the_cpu(tiny_folder: Path) -> None:
    (cpu,) = losses(tiny_folder, 1, "cpu", {})
    single, *half = losses(tiny_folder, 1, "cuda", {"precision": "fp32"}, *({"zero": zero} for zero in ZEROS))
    assert single == pytest.approx(cpu, abs=1e-4)
    for found in half:
        assert found == pytest.approx(cpu, rel=1e-2)


@one_gpu
def test_adapters_and_recomputing_on_a_gpu(tiny_folder: Path) -> None:
    lora, again = losses(tiny_folder, 1, "cuda", {"lora": {"rank": 4}}, {"lora": {"rank": 4}, "gradient_checkpointing": True})
    assert lora == pytest.approx(again, rel=1e-2)


@two_gpus
def test_two_gpus_give_the_losses_of_one_in_all_stages(tiny_folder: Path) -> None:
    (one,) = losses(tiny_folder, 1, "cuda", {"precision": "fp32"})
    for found in losses(tiny_folder, 2, "cuda", *({"precision": "fp32", "zero": zero} for zero in ZEROS)):
        assert found == pytest.approx(one, abs=1e-4)
