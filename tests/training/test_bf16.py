"""bf16 in every ZeRO stage: gradients stay fp32 up to the optimizer, on one rank and on two, with adapters and recomputing, and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tests.training.ranks import SFT, alone, on_ranks, train

BF16: dict[str, Any] = {**SFT, "precision": "bf16", "clip": None, "budget": {"response_tokens": 288}}
STAGES = range(4)


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> None:
    alone()


def train_and_look(device: str, **job: Any) -> dict[str, Any]:
    """Train, and return besides which share of the gradients that AdamW saw are values of bf16."""
    shares: list[float] = []

    def look(optimizer: Any, *_: Any) -> None:
        gradients = torch.cat([p.grad.flatten() for group in optimizer.param_groups for p in group["params"] if p.grad is not None])
        gradients = gradients[gradients != 0]
        assert gradients.dtype == torch.float32
        shares.append(float((gradients.bfloat16().float() == gradients).float().mean()))

    hook = register_optimizer_step_pre_hook(look)
    try:
        return {**train(**job, device=device), "bf16 shares": shares}
    finally:
        hook.remove()


@pytest.fixture(scope="module")
def fp32(tiny_folder: Path) -> list[float]:
    return train(tiny_folder, {**BF16, "precision": "fp32"})["losses"]


@pytest.fixture(scope="module")
def on_two(tiny_folder: Path) -> list[dict[str, Any]]:
    jobs = [{"model": tiny_folder, "sft": {**BF16, "world_size": 2, "zero": {"stage": stage}}} for stage in STAGES]
    jobs.append({"model": tiny_folder, "sft": {**BF16, "world_size": 2, "zero": {"stage": 2}, "gradient_checkpointing": True, "lora": {}}})
    return on_ranks(2, jobs, call="tests.training.test_bf16:train_and_look")


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_reach_the_optimizer_in_fp32(tiny_folder: Path, fp32: list[float], on_two: list[dict[str, Any]], stage: int) -> None:
    """Several rows a step sum up in fp32; rounded to bf16 before they are reduced, every one of them would be a value of bf16."""
    one = train_and_look("cpu", model=tiny_folder, sft={**BF16, "zero": {"stage": stage}})
    for found in (one, on_two[stage]):
        assert max(found["bf16 shares"]) < 0.75, "some are, by chance or because one row alone has a token"
        assert found["losses"] == pytest.approx(fp32, rel=5e-3) and found["losses"] != fp32


def test_adapters_and_recomputing_in_bf16_on_two_ranks(tiny_folder: Path, on_two: list[dict[str, Any]]) -> None:
    lora = {**BF16, "zero": {"stage": 2}, "lora": {}}
    one = train(tiny_folder, lora)
    assert on_two[-1]["losses"] == pytest.approx(one["losses"], rel=2e-3) and max(on_two[-1]["bf16 shares"]) < 0.75


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_run_in_bf16_resumes_as_it_was(tiny_folder: Path, tmp_path: Path, stage: int) -> None:
    sft = {**BF16, "zero": {"stage": stage}}
    whole = train(tiny_folder, sft, checkpoints=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    again = train(tiny_folder, sft, checkpoints=tmp_path)
    assert again["losses"] == pytest.approx(whole["losses"], abs=1e-6)
    if stage == 1:
        universal = train(tiny_folder, sft, other_world=tmp_path)
        assert universal["losses"] == pytest.approx(whole["losses"], abs=1e-4)
