"""Our config as a DeepSpeed config, and what a run needs of a rank's memory. Pure functions, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diversity.config import UserError
from training.config import Precision, SftConfig, ZeroConfig

GIB = 2**30
BUCKET = 50_000_000  # gradients that are reduced at once: enough for a fast exchange, small beside a model
WHOLE_BUCKET = 500_000_000  # the same at stage 0, and at stage 1 in bf16, where DeepSpeed does not let us say it
LIVE_PARAMETERS = 500_000_000  # gathered by stage 3 at once
LOGITS_AT_ONCE = 2**28  # of a row, on a GPU, where `training.loss` makes them in pieces


class DoesNotFit(UserError):
    """A run that can't fit into the memory of its ranks; the message says what would."""


def deepspeed_config(sft: SftConfig, precision: Precision, device: str = "cpu") -> dict[str, Any]:
    """Return DeepSpeed's config for a run.

    The train loop owns the accumulation boundary (`managed_gradient_accumulation` off) and scales each micro-batch's loss by itself,
    because the number of rows in a step follows from its response tokens and so differs from step to step. Gradients are accumulated
    and reduced in fp32 always (DeepSpeed would round the sums to bf16 before it reduces them): stage 0 in bf16 therefore keeps fp32
    parameters and computes under autocast. With stage 1 a gradient in bf16 goes into its fp32 sum as soon as it is there.

    Args:
        sft: the run's configuration.
        precision: resolved.
        device: `cpu` or `cuda`; what is offloaded from a GPU lies in pinned memory.
    """
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": sft.clip or 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": _zero_section(sft.zero, device),
        "communication_data_type": "fp32",
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
    if precision == "bf16" and sft.zero.number == 0:
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    elif precision == "bf16":
        config["bf16"] = {"enabled": True, "immediate_grad_update": sft.zero.number == 1 and not sft.zero.offload_optimizer}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def parameters_in_bf16(zero: ZeroConfig, precision: Precision) -> bool:
    """Return whether the model itself is held in bf16, with fp32 copies in the optimizer."""
    return precision == "bf16" and zero.number > 0


def _zero_section(zero: ZeroConfig, device: str) -> dict[str, Any]:
    section: dict[str, Any] = {"stage": zero.number}
    if zero.number:
        # With stage 1 gradients are reduced once a step, after the last row: there is nothing that it could overlap with.
        section |= {"contiguous_gradients": True, "overlap_comm": zero.number > 1, "reduce_scatter": zero.number > 1}
        section["reduce_bucket_size"] = BUCKET
    if zero.number == 3:
        section |= {"stage3_param_persistence_threshold": 10_000, "stage3_gather_16bit_weights_on_model_save": True}
        section |= {"stage3_max_live_parameters": LIVE_PARAMETERS, "stage3_prefetch_bucket_size": BUCKET}
    pinned = device == "cuda"
    if zero.offload_optimizer:
        section["offload_optimizer"] = {"device": "cpu", "pin_memory": pinned}
    if zero.offload_parameters:
        section["offload_param"] = {"device": "cpu", "pin_memory": pinned}
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
        key_width: heads of keys times their width; 0 takes `attention_width`.
        whole_logits: whether a row's logits are held as a whole.
        positions: of a sample at most, where the model has a table of them; None where it computes any.
    """

    parameters: int
    trainable: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    block_weights: int = 0
    attention_width: int = 0
    key_width: int = 0
    whole_logits: bool = False
    positions: int | None = None

    @property
    def learns_all(self) -> bool:
        """Return whether all weights learn, not adapters only."""
        return self.trainable == self.parameters


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank: on its device, and in CPU memory beside that where something is offloaded.

    Attributes:
        parameters: of the model.
        gradients: summed up over a step's rows.
        optimizer: AdamW's moments, and beyond stage 0 the fp32 copy of the parameters.
        buffers: what DeepSpeed and autocast hold beside these at the worst moment of a step.
        activations: of one row, and the logits that are held at once.
        offloaded: in CPU memory.
    """

    parameters: int
    gradients: int
    optimizer: int
    buffers: int
    activations: int
    offloaded: int

    @property
    def device(self) -> int:
        """Return the bytes on the rank's device."""
        return self.parameters + self.gradients + self.optimizer + self.buffers + self.activations

    def __str__(self) -> str:
        names = ("parameters", "gradients", "optimizer", "buffers", "activations")
        text = " + ".join(f"{name} {getattr(self, name) / GIB:.2f}" for name in names)
        offloaded = f", {self.offloaded / GIB:.2f} GiB offloaded" if self.offloaded else ""
        return f"{text} = {self.device / GIB:.2f} GiB a rank{offloaded}"


def estimate_memory(shape: ModelShape, sft: SftConfig, precision: Precision) -> Memory:
    """Return the bytes that one rank needs at the worst moment of a step, with AdamW in fp32.

    State is that of the ZeRO paper's table (arXiv 1910.02054, section 3). Beside it lie DeepSpeed's buffers (`_buffers`), and the
    activations of a full row of packed tokens (`block_bytes`) with two copies of the logits that are held at once.
    """
    ranks, stage = sft.world_size, sft.zero.number
    half = parameters_in_bf16(sft.zero, precision)
    width = 2 if half else 4
    parameters = shape.parameters * width // (ranks if stage == 3 else 1)
    gradients = shape.trainable * 4 // (ranks if stage >= 2 else 1)
    # Two moments; beyond stage 0 also the fp32 copy of the parameters that the optimizer steps.
    optimizer = shape.trainable * (12 if stage else 8) // (ranks if stage else 1)
    buffers = _buffers(shape, sft, precision)
    kept, working = block_bytes(shape, sft, precision)
    logits = sft.capacity * shape.vocabulary
    logits = logits if shape.whole_logits else min(logits, LOGITS_AT_ONCE)
    activations = sft.capacity * (shape.layers * kept + working) + ((2 if precision == "bf16" else 4) + 4) * logits
    offloaded = 0
    if sft.zero.offload_optimizer:
        # Gradients are summed up beside the optimizer; on the device they are there as long as a backward pass needs them.
        offloaded, optimizer = offloaded + optimizer + gradients, 0
        gradients = shape.trainable * width // (1 if stage == 1 else shape.layers)
    if sft.zero.offload_parameters:
        offloaded, parameters = offloaded + parameters, 2 * parameters // shape.layers
    return Memory(parameters, gradients, optimizer, buffers, activations, offloaded)


def _buffers(shape: ModelShape, sft: SftConfig, precision: Precision) -> int:
    """Return the bytes that a step needs for a while beside state and activations, as DeepSpeed 0.19.8 is written.

    Stage 0: the parameters cast by autocast while a row is on its way, and later, where there are ranks to reduce them over, a bucket of
    gradients side by side. Stage 1 in bf16: such a bucket, unless the gradients of all matrices, which are one tensor, fill it alone.
    Stage 2: while rows are on their way two buckets in turn and one of them in fp32, and later a flat copy of this rank's gradients.
    Stage 3: a bucket that is always there, another that is reduced with its copy in fp32, and the parameters that are gathered.
    """
    stage, learnt = sft.zero.number, shape.trainable
    half = parameters_in_bf16(sft.zero, precision)
    width = 2 if half else 4
    bucket, whole = min(BUCKET, learnt), min(WHOLE_BUCKET, learnt)
    reduced = bucket * (width + (4 if half else 0))
    if stage == 0:
        return max(2 * shape.parameters if precision == "bf16" else 0, 4 * whole if sft.world_size > 1 else 0)
    if stage == 1 and half and not sft.zero.offload_optimizer:
        return 4 * learnt if learnt < WHOLE_BUCKET else 0
    if stage < 3:
        return max(bucket * width + reduced, 0 if sft.zero.offload_optimizer else 4 * learnt // sft.world_size)
    return 4 * BUCKET + reduced + width * min(shape.parameters, LIVE_PARAMETERS)


def block_bytes(shape: ModelShape, sft: SftConfig, precision: Precision) -> tuple[int, int]:
    """Return the bytes a token that a transformer block keeps for its backward pass, and those that are there for one block at a time.

    Kept are the inputs of matrix products, of attention and of what lies between. Each of the two norms keeps its input in fp32 and the
    scaled input beside what the next product takes; fused, it keeps its input alone. SwiGLU keeps gate, its sigmoid's product, and the
    other half; fused, the two halves. Where all is computed again one hidden vector is kept; where only the cheap parts are (`selective`),
    what products and attention give.
    """
    moving = 2 if precision == "bf16" else 4
    heads, keys = shape.attention_width or shape.hidden, shape.key_width or shape.attention_width or shape.hidden
    attended = moving * (2 * heads + 2 * keys)  # query, key, value and the output
    stream = moving if parameters_in_bf16(sft.zero, precision) else 4  # under autocast the residual stream stays in fp32
    if sft.kernels == "fused":
        norm, gated = stream + moving, 2
    else:
        norm, gated = (4 + stream + moving if stream == 2 else 8 + (moving if moving == 2 else 4)), 3
    whole = 2 * shape.hidden * norm + attended + moving * shape.intermediate * (gated + 1)
    if sft.gradient_checkpointing == "selective":
        products = attended + 2 * shape.hidden * moving + 2 * shape.intermediate * moving
        return products + stream * shape.hidden, whole
    if sft.gradient_checkpointing:
        return stream * shape.hidden, whole
    return whole, 0


def kept_back(device_bytes: int) -> int:
    """Return the bytes of a device that no run may count on: the libraries' own, and what allocators lose between their pieces."""
    return min(device_bytes // 4, max(GIB, device_bytes // 32))


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
    free, device_bytes = device_bytes, device_bytes - kept_back(device_bytes)
    if _fits(needed, device_bytes, host_bytes):
        return needed
    changes = _smaller(sft, offload=host_bytes is not None)
    fitting = (words for words, changed in changes if _fits(estimate_memory(shape, changed, precision), device_bytes, host_bytes))
    advice = next(fitting, "take a smaller model, LoRA, or more ranks with sft.zero.stage=3")
    kept = f" ({kept_back(free) / GIB:.2f} GiB are kept back)"
    raise DoesNotFit(f"this run does not fit: {needed}, and a rank has {free / GIB:.2f} GiB{kept}; {advice}")


def _fits(needed: Memory, device_bytes: int, host_bytes: int | None) -> bool:
    if host_bytes is None:
        return needed.device + needed.offloaded <= device_bytes
    return needed.device <= device_bytes and needed.offloaded <= host_bytes


def _smaller(sft: SftConfig, *, offload: bool) -> list[tuple[str, SftConfig]]:
    """Return changes that need less memory, the gentlest first."""
    checkpointing = sft.model_copy(update={"gradient_checkpointing": True})
    selective = sft.model_copy(update={"gradient_checkpointing": "selective"})
    changes = [] if sft.gradient_checkpointing else [("set sft.gradient_checkpointing=selective", selective)]
    changes.append(("set sft.gradient_checkpointing=true", checkpointing))
    stages = [stage for stage in (1, 2, 3) if stage > sft.zero.number] if sft.world_size > 1 else []
    for stage in stages:
        zero = sft.zero.model_copy(update={"stage": stage})
        changes.append((f"set sft.zero.stage={stage}", _with(sft, zero)))
        changes.append((f"set sft.zero.stage={stage} and sft.gradient_checkpointing=true", _with(checkpointing, zero)))
    if offload:
        zero = ZeroConfig(stage=sft.zero.number or 1, offload_optimizer=True)
        words = f"set sft.zero={{stage: {zero.number}, offload_optimizer: true}} and sft.gradient_checkpointing=true"
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
