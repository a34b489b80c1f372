"""What a fine-tuning may be asked to be, what names a run, and the learning rate."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diversity.config import ConfigError, parse
from training.config import SftConfig, learning_rate, run_fingerprint


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"budget": {}}, "response_tokens: T} or {epochs: E"),
        ({"budget": {"epochs": 1, "response_tokens": 5}}, "response_tokens: T} or {epochs: E"),
        ({"zero": {"stage": 0, "offload_optimizer": True}}, "offload_optimizer needs stage 1, 2 or 3"),
        ({"zero": {"stage": 2, "offload_parameters": True}}, "offload_parameters needs stage 3"),
        ({"zero": {"stage": 4}}, "zero.stage"),
        ({"training_seeds": [1, 1]}, "distinct"),
        ({"training_seeds": [-1]}, "greater than or equal to 0"),
        ({"training_seeds": [2**63]}, "less than 9223372036854775808"),
        ({"betas": [0.9, 1.0]}, r"\[0, 1\)"),
        ({"row_tokens": 100, "max_length": 200}, "row_tokens 100 is below max_length 200"),
        ({"budget": {"response_tokens": 10}}, "not one whole step"),
        ({"learning_rate": 1}, "unknown key"),
        ({"keep": "everything"}, "keep"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(SftConfig, values)


def name(*, device: str = "cpu", seed: int = 0, content: str = "c", model: str = "m", **sft: Any) -> str:
    return run_fingerprint(content=content, model=model, sft=SftConfig(**sft), training_seed=seed, device=device)


def test_a_run_is_named_by_what_it_computes() -> None:
    same: list[dict[str, Any]] = [
        {"training_seeds": [0, 1, 2]},
        {"keep": "all"},
        {"retrain": True},
        {"max_failures": 5},
        {"checkpoint_every": None},
        {"gradient_checkpointing": True},
        {"precision": "fp32"},
        {"row_tokens": 2048},
    ]
    assert {name(**change) for change in same} == {name()}
    other: list[dict[str, Any]] = [
        {"device": "cuda"},
        {"seed": 1},
        {"content": "d"},
        {"model": "n"},
        {"precision": "bf16"},
        {"world_size": 2},
        {"zero": {"stage": 1}},
        {"lora": {}},
        {"lr": 1e-4},
        {"budget": {"epochs": 2}},
        {"template": "plain"},
    ]
    assert len({name(), *(name(**change) for change in other)}) == len(other) + 1


def test_precision_follows_the_device() -> None:
    assert [SftConfig().resolved_precision(device) for device in ("cpu", "cuda")] == ["fp32", "bf16"]
    assert SftConfig(precision="fp32").resolved_precision("cuda") == "fp32"


@given(st.integers(1, 300), st.floats(0, 0.99), st.sampled_from(["cosine", "linear", "constant"]))
def test_the_learning_rate_rises_then_falls_and_is_never_zero(steps: int, warmup: float, schedule: Any) -> None:
    config = SftConfig(warmup=warmup, schedule=schedule, lr=1.0)
    rates = [learning_rate(step, steps, config) for step in range(steps)]
    rising = round(warmup * steps)
    assert all(0 < rate <= 1 for rate in rates)
    assert all(a < b for a, b in zip(rates[:rising], rates[1:rising], strict=False))
    falling = rates[rising:]
    assert all(a >= b for a, b in zip(falling, falling[1:], strict=False))
    assert not falling or falling[0] == 1


def test_cosine_is_half_way_down_in_the_middle() -> None:
    config = SftConfig(warmup=0, schedule="cosine", lr=1.0)
    assert learning_rate(50, 100, config) == pytest.approx(0.5)
    assert learning_rate(25, 100, config) == pytest.approx((1 + 2**-0.5) / 2)
