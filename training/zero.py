"""Our configuration as DeepSpeed's, and the memory that a rank will need: refused before anything starts if it can't fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diversity.config import UserError
from training.config import Precision, SftConfig

GIB = 2**30


class WillNotFit(UserError):
    """A run that needs more memory than a rank has; the message says what would help."""


def deepspeed_config(config: SftConfig, *, precision: Precision) -> dict[str, Any]:
    """Return DeepSpeed's configuration for one of our runs.

    Batches are ours: every optimizer step makes as many backward passes as its rows need, so DeepSpeed's own accumulation is off
    (`managed_gradient_accumulation`) and `step()` is the boundary.
    """
    zero: dict[str, Any] = {"stage": config.zero.stage}
    if config.zero.stage:
        # overlapping communication needs streams that a CPU does not have, and at stage 1 a boundary that DeepSpeed counts itself
        zero["overlap_comm"] = False
    if config.zero.stage == 3:
        zero |= {"stage3_gather_16bit_weights_on_model_save": False, "stage3_param_persistence_threshold": 10_000}
    if config.zero.offload in ("optimizer", "all"):
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    if config.zero.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": False}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.clip or 0.0,
        "zero_optimization": zero,
        "bf16": {"enabled": precision == "bf16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }


@dataclass(frozen=True)
class Shape:
    """What of a model the memory depends on: parameters in all and trained, and the sizes of its activations."""

    parameters: int
    trained: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int


@dataclass(frozen=True)
class Memory:
    """Bytes that one rank needs, on its device and on its host."""

    device: int
    host: int
    weights: int
    gradients: int
    optimizer: int
    activations: int

    def describe(self) -> str:
        """Return the estimate for people."""
        parts = {"weights": self.weights, "gradients": self.gradients, "optimizer": self.optimizer, "activations": self.activations}
        listed = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
        return f"{self.device / GIB:.2f} GiB a rank ({listed}; {self.host / GIB:.2f} of them on the host)"


def estimate(shape: Shape, config: SftConfig, *, precision: Precision, world_size: int) -> Memory:
    """Return about what a rank needs: P parameters, t trained ones, W ranks, b bytes a number.

    Weights b P, gradients b t, optimizer 12 t (fp32 copy and AdamW's two moments; 8 t without a copy at fp32 stage 0). Stage 1 divides
    the optimizer by W, stage 2 the gradients too, stage 3 the weights too. Activations of a row of l tokens: about 20 hidden + 4
    intermediate numbers a layer (2 hidden with gradient checkpointing, and one layer in full), and the logits three times, of which
    one in fp32. An estimate, not a bound: fragmentation and buckets come on top.
    """
    size = 2 if precision == "bf16" else 4
    stage, offload = config.zero.stage, config.zero.offload
    weights = size * shape.parameters // (world_size if stage == 3 else 1)
    gradients = size * shape.trained // (world_size if stage >= 2 else 1)
    per_parameter = 8 if precision == "fp32" and stage == 0 else 12
    optimizer = per_parameter * shape.trained // (world_size if stage >= 1 else 1)
    layer = 20 * shape.hidden + 4 * shape.intermediate
    per_token = (2 * shape.hidden * shape.layers + layer) if config.gradient_checkpointing else layer * shape.layers
    activations = config.capacity * (size * per_token + (2 * size + 4) * shape.vocabulary)
    host = (optimizer if offload != "none" else 0) + (weights if offload == "all" else 0)
    total = weights + gradients + optimizer + activations
    return Memory(total - host, host, weights, gradients, optimizer, activations)


def require_fit(memory: Memory, config: SftConfig, *, available: int, world_size: int) -> None:
    """Refuse a run whose state can't fit.

    Args:
        memory: the estimate.
        config: for the advice.
        available: bytes that a rank can have on its device.
        world_size: ranks.

    Raises:
        WillNotFit: it needs more.
    """
    if memory.device <= available:
        return
    advice = []
    if memory.activations > memory.device // 3:
        advice += ["sft.gradient_checkpointing=true"] * (not config.gradient_checkpointing) + ["a smaller sft.max_length"]
    if config.zero.stage < 3 and world_size > 1:
        advice.append(f"sft.zero.stage={config.zero.stage + 1}")
    if config.zero.offload == "none":
        advice.append("sft.zero.offload=optimizer (stage 1 to 3)")
    if config.lora is None:
        advice.append("sft.lora={}")
    advice.append("a larger sft.world_size with a ZeRO stage above 0")
    raise WillNotFit(
        f"the run needs about {memory.describe()}, and a rank has {available / GIB:.2f} GiB: try {', or '.join(advice)}"
    )
