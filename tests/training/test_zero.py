"""DeepSpeed's config, and the memory of a rank against figures worked out by hand."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest

from training.config import SftConfig
from training.zero import GIB, DoesNotFit, ModelShape, deepspeed_config, estimate_memory, refuse_what_cannot_fit

LLAMA_7B = ModelShape(parameters=6_738_415_616, trainable=6_738_415_616, layers=32, hidden=4096, intermediate=11008, vocabulary=32000)


def sft(**values: Any) -> SftConfig:
    return SftConfig(**values)


def test_the_loop_owns_the_accumulation_boundary() -> None:
    config = deepspeed_config(sft(zero={"stage": 2}, clip=None), "fp32")
    assert config["managed_gradient_accumulation"] is False and config["gradient_accumulation_steps"] == 1
    assert config["gradient_clipping"] == 0 and config["zero_optimization"]["stage"] == 2
    assert "bf16" not in config and "torch_autocast" not in config


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gradients_are_accumulated_in_fp32(stage: int) -> None:
    config = deepspeed_config(sft(zero={"stage": stage}), "bf16")
    assert config["bf16"] == {"enabled": True, "immediate_grad_update": stage == 1}
    assert config["data_types"] == {"grad_accum_dtype": "fp32"} and config["communication_data_type"] == "fp32"
    assert deepspeed_config(sft(), "bf16")["torch_autocast"]["dtype"] == "bfloat16"


def test_stages_2_and_3_reduce_meanwhile_and_stage_1_is_usual_on_gpus() -> None:
    sections = [deepspeed_config(sft(zero={"stage": stage}), "bf16")["zero_optimization"] for stage in (1, 2, 3)]
    assert [section["overlap_comm"] for section in sections] == [False, True, True], "stage 1 reduces once, after the last row"
    assert sft().resolved("cuda").zero.number == 1 and sft(precision="fp32").resolved("cuda").zero.number == 0
    assert sft().resolved("cpu").zero.number == sft().resolved("cpu", fast_bf16=True).zero.number == 0


def test_offloading_is_handed_on() -> None:
    zero = deepspeed_config(sft(zero={"stage": 3, "offload_optimizer": True, "offload_parameters": True}), "bf16")["zero_optimization"]
    assert zero["offload_optimizer"]["device"] == zero["offload_param"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("stage", "per_parameter"),
    [(0, 4 + 4 + 8), (1, 2 + 4 + 12 / 8), (2, 2 + 4 / 8 + 12 / 8), (3, 2 / 8 + 4 / 8 + 12 / 8)],
)
def test_state_is_that_of_the_zero_paper(stage: int, per_parameter: float) -> None:
    memory = estimate_memory(LLAMA_7B, sft(world_size=8, zero={"stage": stage}), "bf16")
    state = memory.parameters + memory.gradients + memory.optimizer
    assert state == pytest.approx(per_parameter * LLAMA_7B.parameters, rel=1e-6)


def test_offloading_and_recomputing_need_less() -> None:
    plain = estimate_memory(LLAMA_7B, sft(zero={"stage": 3}), "bf16")
    offloaded = estimate_memory(LLAMA_7B, sft(zero={"stage": 3, "offload_optimizer": True, "offload_parameters": True}), "bf16")
    assert offloaded.optimizer == 0 and offloaded.device < plain.device
    assert offloaded.offloaded == plain.optimizer + plain.gradients + plain.parameters
    assert estimate_memory(LLAMA_7B, sft(gradient_checkpointing=True), "bf16").activations < plain.activations / 4


def test_logits_in_pieces_need_no_more_for_longer_rows() -> None:
    wide = replace(LLAMA_7B, vocabulary=128_256)
    short, long = (estimate_memory(wide, sft(row_tokens=tokens), "bf16").activations for tokens in (4096, 16384))
    blocks = 32 * (28 * 4096 + 8 * 11008)  # under autocast the residual stream and the norms are in fp32
    assert long - short == (16384 - 4096) * blocks
    whole = estimate_memory(replace(wide, whole_logits=True), sft(row_tokens=16384), "bf16").activations
    assert whole - long == 6 * (16384 * 128_256 - 2**28)


def test_what_fits_is_let_through_with_its_estimate() -> None:
    assert refuse_what_cannot_fit(LLAMA_7B, sft(), "bf16", device_bytes=1000 * GIB).device < 1000 * GIB


@pytest.mark.parametrize(
    ("values", "device", "host", "advice"),
    [
        ({}, 125, None, "set sft.gradient_checkpointing=selective"),
        ({}, 121, None, "set sft.gradient_checkpointing=true"),
        ({"world_size": 8}, 60, None, "set sft.zero.stage=1"),
        ({"world_size": 8}, 50, None, "set sft.zero.stage=1 and sft.gradient_checkpointing=true"),
        ({"world_size": 8}, 20, None, "set sft.zero.stage=3 and sft.gradient_checkpointing=true"),
        ({}, 60, 200, "offload_optimizer: true"),
        ({}, 5, 400, "offload_parameters: true"),
        ({}, 35, None, "set sft.world_size=4, sft.zero.stage=3"),
        ({}, 1, None, "take a smaller model"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_gentlest_advice(values: Any, device: int, host: int | None, advice: str) -> None:
    with pytest.raises(DoesNotFit) as refusal:
        refuse_what_cannot_fit(
            LLAMA_7B, sft(**values), "bf16", device_bytes=device * GIB, host_bytes=host * GIB if host is not None else None
        )
    assert advice in str(refusal.value)
    assert str(pickle.loads(pickle.dumps(refusal.value))) == str(refusal.value)
