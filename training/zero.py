"""Our config as a DeepSpeed config, and what a run needs of a rank's memory. Pure functions, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diversity.config import UserError
from training.config import Precision, SftConfig, ZeroConfig

GIB = 2**30
LOGITS_AT_ONCE = 2**28  # of a row, on a GPU, where `training.loss` makes them in pieces


class DoesNotFit(UserError):
    """A run that can't fit into the memory of its ranks; the message says what would."""


def deepspeed_config(sft: SftConfig, precision: Precision) -> dict[str, Any]:
    """Return DeepSpeed's config for a run.

    The train loop owns the accumulation boundary (`managed_gradient_accumulation` off) and scales each micro-batch's loss by itself,
    because the number of rows in a step follows from its response tokens and so differs from step to step. Gradients are accumulated
    in fp32 always: stage 0 in bf16 therefore keeps fp32 parameters and computes under autocast.
    """
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": sft.clip or 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": _zero_section(sft.zero),
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
    if precision == "bf16" and sft.zero.stage == 0:
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    elif precision == "bf16":
        config["bf16"] = {"enabled": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def parameters_in_bf16(zero: ZeroConfig, precision: Precision) -> bool:
    """Return whether the model itself is held in bf16, with fp32 copies in the optimizer."""
    return precision == "bf16" and zero.stage > 0


def _zero_section(zero: ZeroConfig) -> dict[str, Any]:
    section: dict[str, Any] = {"stage": zero.stage}
    if zero.stage:
        section |= {"contiguous_gradients": True, "overlap_comm": False, "reduce_scatter": zero.stage > 1}
    if zero.stage == 3:
        section |= {"stage3_param_persistence_threshold": 10_000, "stage3_gather_16bit_weights_on_model_save": True}
    if zero.offload_optimizer:
        section["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    if zero.offload_parameters:
        section["offload_param"] = {"device": "cpu", "pin_memory": False}
    return section


@dataclass(frozen=True)
class ModelShape:
    """What the memory of a run depends on.

    Attributes:
        parameters: in all.
        trainable: parameters that get gradients; fewer than all with LoRA.
        layers: transformer blocks.
        hidden: width of the residual stream.
        intermediate: width of a block's MLP.
        vocabulary: rows of the output layer.
        block_weights: weights of the blocks' matrices, which every token goes through.
        attention_width: heads times their width.
        whole_logits: whether a row's logits are held as a whole.
    """

    parameters: int
    trainable: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    block_weights: int = 0
    attention_width: int = 0
    whole_logits: bool = False

    @property
    def learns_all(self) -> bool:
        """Return whether all weights learn, not adapters only."""
        return self.trainable == self.parameters


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank: on its device, and in CPU memory beside that where something is offloaded."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    offloaded: int

    @property
    def device(self) -> int:
        """Return the bytes on the rank's device."""
        return self.parameters + self.gradients + self.optimizer + self.activations

    def __str__(self) -> str:
        parts = {"parameters": self.parameters, "gradients": self.gradients, "optimizer": self.optimizer, "activations": self.activations}
        text = " + ".join(f"{name} {count / GIB:.2f}" for name, count in parts.items())
        offloaded = f", {self.offloaded / GIB:.2f} GiB offloaded" if self.offloaded else ""
        return f"{text} = {self.device / GIB:.2f} GiB a rank{offloaded}"


def estimate_memory(shape: ModelShape, sft: SftConfig, precision: Precision) -> Memory:
    """Return the bytes that one rank needs, after the ZeRO paper's table (arXiv 1910.02054, section 3) with AdamW in fp32.

    Activations of a full row of packed tokens: a block holds about 8 hidden and 3 intermediate vectors a token for its backward pass
    (attention without its matrix), one hidden vector where it recomputes; and two copies of the logits that are held at once. An
    estimate: allocators add a fifth to it.
    """
    ranks, stage = sft.world_size, sft.zero.stage
    half = parameters_in_bf16(sft.zero, precision)
    width = 2 if half else 4
    parameters = shape.parameters * width // (ranks if stage == 3 else 1)
    gradients = shape.trainable * 4 // (ranks if stage >= 2 else 1)
    # Two moments; beyond stage 0 also the fp32 copy of the parameters that the optimizer steps.
    optimizer = shape.trainable * (12 if stage else 8) // (ranks if stage else 1)
    moving = 2 if precision == "bf16" else 4
    block = shape.hidden if sft.gradient_checkpointing else 8 * shape.hidden + 3 * shape.intermediate
    working = 8 * shape.hidden + 3 * shape.intermediate if sft.gradient_checkpointing else 0
    logits = sft.capacity * shape.vocabulary
    logits = logits if shape.whole_logits else min(logits, LOGITS_AT_ONCE)
    activations = sft.capacity * moving * (shape.layers * block + working) + (moving + 4) * logits
    offloaded = 0
    if sft.zero.offload_optimizer:
        # Gradients are summed up beside the optimizer; on the device they are there as long as a backward pass needs them.
        offloaded, optimizer = offloaded + optimizer + gradients, 0
        gradients = shape.trainable * width // (1 if stage == 1 else shape.layers)
    if sft.zero.offload_parameters:
        offloaded, parameters = offloaded + parameters, 2 * parameters // shape.layers
    return Memory(parameters, gradients, optimizer, activations, offloaded)


def refuse_what_cannot_fit(
    shape: ModelShape, sft: SftConfig, precision: Precision, *, device_bytes: int, host_bytes: int | None = None
) -> Memory:
    """Return the estimate, or refuse the run before it starts.

    Args:
        shape: the model.
        sft: the run's configuration.
        precision: resolved.
        device_bytes: memory that a rank can have on its device.
        host_bytes: CPU memory that a rank can have for what is offloaded; None where the device is the CPU itself.

    Raises:
        DoesNotFit: the message names the smallest change of the configuration that fits.
    """
    needed = estimate_memory(shape, sft, precision)
    if _fits(needed, device_bytes, host_bytes):
        return needed
    changes = _smaller(sft, offload=host_bytes is not None)
    fitting = (words for words, changed in changes if _fits(estimate_memory(shape, changed, precision), device_bytes, host_bytes))
    advice = next(fitting, "take a smaller model, LoRA, or more ranks with sft.zero.stage=3")
    raise DoesNotFit(f"this run does not fit: {needed}, and a rank has {device_bytes / GIB:.2f} GiB; {advice}")


def _fits(needed: Memory, device_bytes: int, host_bytes: int | None) -> bool:
    if host_bytes is None:
        return needed.device + needed.offloaded <= device_bytes
    return needed.device <= device_bytes and needed.offloaded <= host_bytes


def _smaller(sft: SftConfig, *, offload: bool) -> list[tuple[str, SftConfig]]:
    """Return changes that need less memory, the gentlest first."""
    checkpointing = sft.model_copy(update={"gradient_checkpointing": True})
    changes = [("set sft.gradient_checkpointing=true", checkpointing)]
    stages = [stage for stage in (1, 2, 3) if stage > sft.zero.stage] if sft.world_size > 1 else []
    for stage in stages:
        zero = sft.zero.model_copy(update={"stage": stage})
        changes.append((f"set sft.zero.stage={stage}", _with(sft, zero)))
        changes.append((f"set sft.zero.stage={stage} and sft.gradient_checkpointing=true", _with(checkpointing, zero)))
    if offload:
        zero = ZeroConfig(stage=max(sft.zero.stage, 1), offload_optimizer=True)
        words = f"set sft.zero={{stage: {zero.stage}, offload_optimizer: true}} and sft.gradient_checkpointing=true"
        changes.append((words, _with(checkpointing, zero)))
        zero = ZeroConfig(stage=3, offload_optimizer=True, offload_parameters=True)
        changes.append(("set sft.zero={stage: 3, offload_optimizer: true, offload_parameters: true}", _with(checkpointing, zero)))
    for length in (sft.max_length // 2, sft.max_length // 4):
        if length >= 8:
            shorter = checkpointing.model_copy(update={"max_length": length, "row_tokens": None})
            changes.append((f"set sft.max_length={length} and sft.gradient_checkpointing=true", shorter))
    zero = ZeroConfig(stage=3)
    for count in (2 * sft.world_size, 4 * sft.world_size, 8 * sft.world_size):
        more = checkpointing.model_copy(update={"world_size": count})
        changes.append((f"set sft.world_size={count}, sft.zero.stage=3 and sft.gradient_checkpointing=true", _with(more, zero)))
    return changes


def _with(sft: SftConfig, zero: ZeroConfig) -> SftConfig:
    return sft.model_copy(update={"zero": zero})
