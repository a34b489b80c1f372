"""How a model is fine-tuned: everything that a run's scores depend on beside its dataset and its model. Imports no torch."""

from __future__ import annotations

import importlib.util
import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from diversity.artifact import fingerprint
from diversity.config import Config, ConfigError
from diversity.typings import encoders
from training.trackers import TrackersConfig

Stage = Literal[0, 1, 2, 3]
Precision = Literal["fp32", "bf16"]

VERSION = 3  # raised whenever the code changes what a run computes from the same inputs

SEEDS = 2**63  # training seeds lie below: torch and 64-bit columns hold those

# What changes neither the weights nor the scores, or is an axis of its own, so that it is no part of a run's identity.
NOT_IDENTITY = frozenset(
    {
        "training_seeds",
        "resume_world_size",
        "row_tokens",
        "precision",
        "gradient_checkpointing",
        "kernels",
        "checkpoint_every",
        "max_failures",
        "keep",
        "retrain",
        "trackers",
    }
)


class BudgetConfig(Config):
    """How long a run trains: exactly one of the two.

    Attributes:
        response_tokens: response tokens in all, whatever the dataset's length; a shorter dataset is repeated.
        epochs: passes over the dataset; a fraction is allowed.
    """

    response_tokens: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _one_of_two(self) -> BudgetConfig:
        if (self.response_tokens is None) == (self.epochs is None):
            raise ValueError("give either {response_tokens: T} or {epochs: E}")
        return self

    def tokens(self, per_epoch: int) -> int:
        """Return the response tokens of a run over a dataset that holds so many response tokens."""
        if self.response_tokens is not None:
            return self.response_tokens
        return max(1, round((self.epochs or 0) * per_epoch))


class ZeroConfig(Config):
    """How DeepSpeed spreads a model's state over the ranks.

    Attributes:
        stage: 0 nothing, 1 optimizer state, 2 gradients too, 3 parameters too. None is 1 for bf16 on a GPU, where the model itself is
            then held in bf16, and else 0; with something offloaded, the least stage that can.
        offload_optimizer: keep the optimizer's state in the memory of the host; stages 1 to 3.
        offload_parameters: keep parameters there; stage 3.
    """

    stage: Stage | None = None
    offload_optimizer: bool = False
    offload_parameters: bool = False

    @model_validator(mode="after")
    def _possible(self) -> ZeroConfig:
        if self.offload_optimizer and self.stage == 0:
            raise ValueError("offload_optimizer needs stage 1, 2 or 3, not 0")
        if self.offload_parameters and self.stage not in (None, 3):
            raise ValueError(f"offload_parameters needs stage 3, not {self.stage}")
        return self

    @property
    def number(self) -> Stage:
        """Return the stage as a number; where it is left open, what it is at least."""
        if self.stage is not None:
            return self.stage
        return 3 if self.offload_parameters else 1 if self.offload_optimizer else 0

    def resolved(self, *, half_on_gpu: bool) -> ZeroConfig:
        """Return the same with its stage said."""
        return self.model_copy(update={"stage": 1 if half_on_gpu and self.stage is None and self.number == 0 else self.number})


class LoraConfig(Config):
    """Train low-rank additions to the linear layers in place of all weights; the export merges them.

    Attributes:
        rank: inner dimension r.
        alpha: the addition is scaled by alpha / r.
        dropout: on the addition's input, in [0, 1).
        targets: names of linear layers, or `all-linear`.
    """

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: list[str] | Literal["all-linear"] = "all-linear"


class SftConfig(Config):
    """One fine-tuning. The loss is the mean over the response tokens of a global batch.

    Attributes:
        budget: response tokens or epochs.
        training_seeds: seeds of the data order, of dropout and of LoRA's start; every dataset is trained with each.
        world_size: ranks of a run.
        resume_world_size: under Ray, ranks on which the same run was begun before: where that one left a checkpoint and this one has none,
            this one goes on from it, through DeepSpeed's universal checkpoint. None begins anew.
        max_length: tokens of a sample, prompt and response, that the model sees at most.
        overlong: longer samples lose the end of their response (`truncate`), or are left out (`drop`); both are counted.
        template: chat template; `auto` reads the model's own, and takes `plain` for a base model without one.
        response_tokens_per_step: size of the global batch of an optimizer step, in response tokens, exactly.
        row_tokens: tokens that pass through the model at once on a rank, at least max_length; None takes max_length.
        lr: peak learning rate.
        schedule: how it falls to zero after the warm-up; `constant` does not fall.
        warmup: share of the steps in which it rises from zero.
        clip: largest norm of the gradient; None does not clip.
        weight_decay: of matrices (not of norms and biases).
        betas: of AdamW.
        zero: DeepSpeed's ZeRO stage and offload.
        precision: `auto` is bf16 on a GPU and where every node's CPU multiplies bf16, and fp32 on other CPUs; a run's name holds which.
        gradient_checkpointing: compute activations twice to save memory; `selective` keeps what matrix products and attention give and
            computes the rest again.
        kernels: `fused` takes norms, rotary embeddings and SwiGLU of liger-kernel, on GPUs only; `auto` does where it is installed, and
            is `plain` elsewhere. The name of a run holds it where it is `fused`.
        lora: train low-rank additions only; None trains all weights.
        checkpoint_every: steps between checkpoints from which a killed run goes on; None makes none.
        max_failures: how often a run's ranks are started again after a failure, from the last checkpoint.
        keep: which weights stay once scores are sealed: none, those of the best run for each strategy and size, or all.
        retrain: allow training again what has been trained, where weights are asked for that are gone.
        trackers: where curves go beside train.parquet and TensorBoard.
    """

    budget: BudgetConfig = BudgetConfig(epochs=3)
    training_seeds: list[Annotated[int, Field(ge=0, lt=SEEDS)]] = Field(default=[0], min_length=1)
    world_size: int = Field(default=1, ge=1)
    resume_world_size: int | None = Field(default=None, ge=1)
    max_length: int = Field(default=2048, ge=8)
    overlong: Literal["truncate", "drop"] = "truncate"
    template: Literal["auto", "chatml", "llama-2", "llama-3", "plain"] = "auto"
    response_tokens_per_step: int = Field(default=16384, ge=1)
    row_tokens: int | None = Field(default=None, ge=8)
    lr: float = Field(default=2e-5, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.03, ge=0, lt=1)
    clip: float | None = Field(default=1.0, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    zero: ZeroConfig = ZeroConfig()
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gradient_checkpointing: bool | Literal["selective"] = False
    kernels: Literal["auto", "plain", "fused"] = "auto"
    lora: LoraConfig | None = None
    checkpoint_every: int | None = Field(default=200, ge=1)
    max_failures: int = Field(default=2, ge=0)
    keep: Literal["scores", "best", "all"] = "scores"
    retrain: bool = False
    trackers: TrackersConfig = TrackersConfig()

    @field_validator("training_seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"training_seeds are distinct, not {seeds}")
        return seeds

    @field_validator("betas")
    @classmethod
    def _betas_in_range(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas lie in [0, 1), not {betas}")
        return betas

    @model_validator(mode="after")
    def _consistent(self) -> SftConfig:
        if self.row_tokens is not None and self.row_tokens < self.max_length:
            raise ValueError(f"row_tokens {self.row_tokens} is below max_length {self.max_length}: a sample must fit a row")
        if self.resume_world_size == self.world_size:
            raise ValueError(f"resume_world_size {self.world_size} is this run's own world_size, at which a run resumes in any case")
        tokens = self.budget.response_tokens
        if tokens is not None and tokens < self.response_tokens_per_step:
            raise ValueError(
                f"budget.response_tokens {tokens} is below response_tokens_per_step {self.response_tokens_per_step}: not one whole step"
            )
        return self

    @property
    def capacity(self) -> int:
        """Return the most tokens of a row."""
        return self.row_tokens or self.max_length

    def resolved_precision(self, device: str, *, fast_bf16: bool = False) -> Precision:
        """Return the precision on a kind of device, `cpu` or `cuda`, and on CPUs by whether they multiply bf16."""
        if self.precision == "auto":
            return "bf16" if device == "cuda" or fast_bf16 else "fp32"
        return self.precision

    def resolved(self, device: str, *, fast_bf16: bool = False) -> SftConfig:
        """Return the same with nothing left open: precision, ZeRO's stage and kernels. What is said already stays.

        Args:
            device: kind of device, `cpu` or `cuda`.
            fast_bf16: whether every CPU that trains multiplies bf16.

        Raises:
            ConfigError: fused kernels are asked for on a CPU, or are not installed.
        """
        precision = self.resolved_precision(device, fast_bf16=fast_bf16)
        zero = self.zero.resolved(half_on_gpu=device == "cuda" and precision == "bf16")
        return self.model_copy(update={"precision": precision, "zero": zero, "kernels": self._resolved_kernels(device)})

    def _resolved_kernels(self, device: str) -> Literal["plain", "fused"]:
        installed = importlib.util.find_spec("liger_kernel") is not None
        if self.kernels == "fused" and device != "cuda":
            raise ConfigError("kernels: fused ones run on GPUs only: set sft.kernels=plain")
        if self.kernels == "fused" and not installed:
            raise ConfigError("kernels: fused ones are of liger-kernel, which is not installed: pip install 'sft-diversity[gpu]'")
        return "plain" if self.kernels == "plain" or device != "cuda" or not installed else "fused"

    def identity(self, *, training_seed: int, device: str) -> dict[str, Any]:
        """Return what a run's fingerprint holds of this: all that changes weights, seed and kind of device included."""
        settled = self.resolved(device)
        chosen = settled.model_dump(mode="json", exclude=set(NOT_IDENTITY))
        resolved = {"capacity": self.capacity, "precision": settled.precision}
        fused = {"kernels": "fused"} if settled.kernels == "fused" else {}
        return {**chosen, **resolved, **fused, "training_seed": training_seed, "device": device}


def run_fingerprint(*, content: str, model: str, sft: SftConfig, training_seed: int, device: str) -> str:
    """Return the name of a run: cells that choose the same samples share it.

    Args:
        content: blake2b of the dataset's sorted sample_ids, the `content` of its manifest.
        model: digest of the model folder's weights, config and tokenizer.
        sft: the configuration; only its identity counts.
        training_seed: seed of the data order, and of anything else that is random in training.
        device: kind of device, `cpu` or `cuda`; with the precision it decides the last bits.
    """
    identity = {**sft.identity(training_seed=training_seed, device=device), "encoder": encoders.VERSION}
    return fingerprint(stage="sft", version=VERSION, config=identity, parents=[content, model])


def learning_rate(step: int, steps: int, config: SftConfig) -> float:
    """Return the learning rate of a step, counted from 0 to steps - 1: a linear rise, then the schedule's fall towards zero.

    The rise takes round(warmup * steps) steps. With p the share of the remaining steps that is done, cosine is
    lr (1 + cos(pi p)) / 2 and linear lr (1 - p); constant does not fall. The last step still has a rate above zero.
    """
    rising = round(config.warmup * steps)
    if step < rising:
        return config.lr * (step + 1) / (rising + 1)
    done = (step - rising) / max(1, steps - rising)
    falling = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}
    return config.lr * falling[config.schedule]
