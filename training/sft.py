"""One fine-tuning: a dataset and a model go in, an engine with trained weights and a row for every step come out.

    python -m training.sft DATASET --model builtin:smollm2-135m --out FOLDER [key=value ...]
    torchrun --nproc-per-node 2 -m training.sft DATASET ... world_size=2

DATASET is a parquet file or a dataset's folder. It needs no Ray: this is also what every rank of a Ray Train run calls.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

os.environ.setdefault("DS_ACCELERATOR", "cpu" if not Path("/dev/nvidiactl").exists() else "cuda")

import torch
import torch.distributed as dist
from torch import nn

from diversity.config import UserError
from training import checkpoint, zero
from training.chat import Chat, Tokenised, tokenise
from training.config import Precision, SftConfig, learning_rate
from training.loss import attention_implementation, token_nll
from training.packing import Batch, Row, Stream

logger = logging.getLogger(__name__)

TRAIN_SCHEMA = pa.schema(
    [
        ("step", pa.int32()),
        ("loss", pa.float64()),
        ("lr", pa.float64()),
        ("grad_norm", pa.float64()),
        ("response_tokens", pa.int64()),
        ("tokens", pa.int64()),
        ("seconds", pa.float64()),
    ]
)
PROGRESS_SECONDS = 10.0


class NonFiniteLoss(UserError):
    """A loss that is not a number; the message names the step and the samples of the row that gave it."""


@dataclass(frozen=True)
class World:
    """Which of how many processes this is, and what it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Return whether this is the rank that speaks and writes."""
        return self.rank == 0


@dataclass
class Trained:
    """A finished fine-tuning.

    Attributes:
        engine: DeepSpeed's engine, whose module computes with the trained weights.
        chat: tokenizer and template it was trained with.
        rows: one for each optimizer step, `TRAIN_SCHEMA`.
        summary: what a manifest states about the run.
    """

    engine: Any
    chat: Chat
    rows: list[dict[str, Any]]
    summary: dict[str, Any]


@dataclass
class Loop:
    """The state of a run between two optimizer steps."""

    engine: Any
    tokenised: Tokenised
    stream: Stream
    config: SftConfig
    world: World
    seed: int
    label: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    def step(self, number: int) -> None:
        """Learn one global batch: its loss is the mean over its response tokens, whatever the ranks, rows and micro steps.

        Raises:
            NonFiniteLoss: before the optimizer has touched the weights.
        """
        started = time.perf_counter()
        shares = self.stream.shares(number)
        batch = Batch.of(self.tokenised, shares, capacity=self.config.capacity, world_size=self.world.size)
        if self.config.lora is not None and self.config.lora.dropout:
            torch.manual_seed((self.seed * 1_000_003 + number) * self.world.size + self.world.rank)
        size = self.stream.size(number)
        losses = torch.zeros(len(batch.rows), self.world.size, dtype=torch.float64)
        for micro_step, row in enumerate(batch.of_rank(self.world.rank)):
            losses[micro_step, self.world.rank] = self._backward(row, size)
        losses = checkpoint.synchronise(losses.to(self.world.device)).cpu().flatten()
        self._require_finite(losses, batch, number)
        rate = learning_rate(number, self.stream.steps, self.config)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        loss, seconds = float(losses.sum()) / size, time.perf_counter() - started
        values = (number, loss, rate, float("nan") if norm is None else float(norm), size, batch.tokens, seconds)
        self.rows.append(dict(zip(TRAIN_SCHEMA.names, values, strict=True)))

    def _backward(self, row: Row, size: int) -> float:
        """Add a row's gradients and return its summed loss."""
        nll = token_nll(self.engine, row, self.world.device).sum()
        # DeepSpeed averages gradients over the ranks, so their sum is asked for; a row that only keeps step has weight zero.
        self.engine.backward(nll * (self.world.size / size if row.counts else 0.0), scale_wrt_gas=False)
        return float(nll.detach()) if row.counts else 0.0

    def _require_finite(self, losses: torch.Tensor, batch: Batch, number: int) -> None:
        bad = torch.nonzero(~torch.isfinite(losses)).flatten().tolist()
        if bad:
            ids = ", ".join(batch.sample_ids(bad[0]))
            raise NonFiniteLoss(f"{self.label}: the loss of step {number} is {float(losses[bad[0]])}; samples of its row: {ids}")

    def progress(self, number: int, started: float) -> None:
        """Say how far the run is."""
        row, steps = self.rows[-1], self.stream.steps
        here = self.rows[-(number + 1) :]
        speed = sum(one["response_tokens"] for one in here) / max(1e-9, sum(one["seconds"] for one in here))
        left = sum(self.stream.size(later) for later in range(number + 1, steps)) / speed
        logger.info(
            "%s: step %d/%d loss %.4f, %.0f response tokens/s, %.0f s so far, %.0f s left",
            self.label, number + 1, steps, row["loss"], speed, time.perf_counter() - started, left,
        )  # fmt: skip


def train(
    samples: pa.Table,
    folder: Path,
    config: SftConfig,
    *,
    seed: int,
    world: World,
    checkpoints: checkpoint.Checkpoints | None = None,
    label: str = "sft",
) -> Trained:
    """Return the model of a folder, fine-tuned on samples. Every rank calls it with the same arguments.

    Args:
        samples: with the columns sample_id and messages.
        folder: Hugging Face folder of the model.
        config: everything about the fine-tuning.
        seed: of data order and LoRA's start.
        world: this process's place; the process group exists.
        checkpoints: where to keep checkpoints and find the one to go on from; None keeps nothing.
        label: name of the run in messages.

    Raises:
        NonFiniteLoss: the loss became infinite or no number.
        WillNotFit: the estimate of memory exceeds what there is.
    """
    started = time.perf_counter()
    keep: checkpoint.Checkpoints = checkpoints or checkpoint.NoCheckpoints()
    chat = Chat(folder, config.template)
    tokenised = tokenise(samples, chat, max_length=config.max_length, overlong=config.overlong)
    lengths = tokenised.response_tokens()
    stream = Stream(tokenised.sample_ids, lengths, config.budget.tokens(int(lengths.sum())), config.response_tokens_per_step, seed)
    tokenised_at = time.perf_counter()
    engine, shape = make_engine(folder, config, seed=seed, world=world)
    built = time.perf_counter()
    loop = Loop(engine, tokenised, stream, config, world, seed, label)
    first = _resume(loop, keep)
    if world.main:
        where = f"from step {first} of" if first else "of"
        logger.info("%s: %s %d steps, %d response tokens in %d samples", label, where, stream.steps, stream.total, len(lengths))
    spoken = begun = time.perf_counter()
    for number in range(first, stream.steps):
        loop.step(number)
        if world.main and (time.perf_counter() - spoken > PROGRESS_SECONDS or number + 1 == stream.steps):
            spoken = time.perf_counter()
            loop.progress(number, begun)
        done = number + 1
        if config.checkpoint_every and done % config.checkpoint_every == 0 and done < stream.steps:
            state = {"next_step": done, "rows": loop.rows}
            keep.save(done, lambda target, state=state: checkpoint.save_state(engine, target, state))  # type: ignore[misc]
    seconds = {
        "tokenise": tokenised_at - started,
        "engine": built - tokenised_at,
        "steps": time.perf_counter() - begun,
    }
    summary = {
        "steps": stream.steps,
        "response_tokens": stream.total,
        "tokens": sum(row["tokens"] for row in loop.rows),
        "epochs": stream.total / stream.per_epoch,
        "dataset_response_tokens": stream.per_epoch,
        **tokenised.counts,
        "parameters": shape.parameters,
        "trained_parameters": shape.trained,
        "template": chat.template,
        "world_size": world.size,
        "final_loss": loop.rows[-1]["loss"],
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }
    return Trained(engine, chat, loop.rows, summary)


def _resume(loop: Loop, checkpoints: checkpoint.Checkpoints) -> int:
    """Return the step to go on with: 0, or the one after the newest checkpoint."""
    with checkpoints.latest() as found:
        if found is None:
            return 0
        state = checkpoint.load_state(loop.engine, found)
    loop.rows[:] = state["rows"]
    return int(state["next_step"])


def make_engine(folder: Path, config: SftConfig, *, seed: int, world: World) -> tuple[Any, zero.Shape]:
    """Return DeepSpeed's engine around the model of a folder, and the model's shape.

    Raises:
        WillNotFit: the estimate of memory exceeds what the rank has.
    """
    import deepspeed
    import deepspeed.ops
    from transformers.integrations import HfDeepSpeedConfig

    precision = config.resolved_precision(world.device.type)
    ds_config = zero.deepspeed_config(config, precision=precision)
    # A C++ extension for gloo on shared memory takes minutes to compile; gloo alone does the same.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    torch.manual_seed(seed)
    # While this object lives, transformers loads a model for stage 3 in pieces, so that no rank ever holds it whole.
    partitioned = HfDeepSpeedConfig({**ds_config, "train_batch_size": world.size}) if config.zero.stage == 3 else None
    model = load_model(folder, config, precision, world.device)
    del partitioned
    shape = model_shape(model)
    memory = zero.estimate(shape, config, precision=precision, world_size=world.size)
    zero.require_fit(memory, config, available=available_memory(world), world_size=world.size)
    if world.main:
        logger.info("%.1f M parameters, about %s", shape.parameters / 1e6, memory.describe())
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.lr,
        betas=config.betas,
        fused=world.device.type == "cuda" and config.zero.offload == "none",
    )
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config, dist_init_required=False)
    engine.train()
    return engine, shape


def load_model(folder: Path, config: SftConfig, precision: Precision, device: torch.device) -> nn.Module:
    """Return the model with its weights, ready for packed rows, checkpointing and LoRA as configured."""
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention_implementation(device.type))
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    if config.lora is not None:
        import peft

        lora = config.lora
        adapters = peft.LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.targets, task_type="CAUSAL_LM"
        )
        model = peft.get_peft_model(model, adapters)
    return model


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the trained parameters: matrices with weight decay, norms and biases without."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not weight_decay:
        return [{"params": trained, "weight_decay": 0.0}]
    matrices = [parameter for parameter in trained if len(getattr(parameter, "ds_shape", parameter.shape)) > 1]
    others = [parameter for parameter in trained if len(getattr(parameter, "ds_shape", parameter.shape)) <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def model_shape(model: Any) -> zero.Shape:
    """Return what of a model its memory depends on."""
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    config = model.config
    return zero.Shape(
        parameters=sum(size for size, _ in sizes),
        trained=sum(size for size, trained in sizes if trained),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=getattr(config, "intermediate_size", 4 * config.hidden_size),
        vocabulary=config.vocab_size,
    )


def available_memory(world: World) -> int:
    """Return the bytes that a rank can have: its GPU's, or its share of the host's free memory."""
    if world.device.type == "cuda":
        return int(0.95 * torch.cuda.get_device_properties(world.device).total_memory)
    import psutil

    local = int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    return psutil.virtual_memory().available // max(1, local)


def train_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Return the rows of a run's steps as the table that is stored beside its weights."""
    return pa.Table.from_pylist(rows, schema=TRAIN_SCHEMA)


def init_process_group() -> World:
    """Join the group that torchrun describes in the environment, or make one of this process alone.

    Returns:
        this process's place.
    """
    cuda = torch.cuda.is_available()
    local = int(os.environ.setdefault("LOCAL_RANK", "0"))
    backend = "nccl" if cuda else "gloo"
    if "RANK" in os.environ and "MASTER_ADDR" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if cuda:
        torch.cuda.set_device(local)
    return World(dist.get_rank(), dist.get_world_size(), torch.device("cuda", local) if cuda else torch.device("cpu"))


Report = Callable[[dict[str, Any]], None]


if __name__ == "__main__":
    from training.command import main

    raise SystemExit(main())
