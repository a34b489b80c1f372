"""One dataset becomes one model: the train loop, on a DeepSpeed engine.

Without Ray, alone or on several ranks:

    python -m training.sft DATASET --out FOLDER --model builtin:smollm2-135m budget='{response_tokens: 1024}'
    torchrun --nproc-per-node 2 -m training.sft DATASET --out FOLDER zero.stage=2

The loss of a step is the mean over the response tokens of its global batch, whatever the ranks, rows and packing that carry them.
DeepSpeed averages gradients over ranks and knows nothing of rows, so a row's summed loss is scaled by world size / response tokens.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from diversity.artifact import digest
from diversity.config import UserError, parse
from diversity.keys import sample_keys
from training.chat import ChatEncoder, Encoded, fit, load_tokenizer
from training.checkpoint import CheckpointFolder, export
from training.config import SftConfig, learning_rate, run_fingerprint
from training.engine import build_engine, free_memory, load_model, prepare_process, process_group, shape_of
from training.model_source import model_digest, resolve_model
from training.packing import Step, collate, model_inputs, plan_steps
from training.zero import Memory, refuse_what_cannot_fit

logger = logging.getLogger("training.sft")  # as `python -m`, too

TRAIN_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("loss", pa.float64()),
        ("lr", pa.float64()),
        ("response_tokens", pa.int64()),
        ("tokens", pa.int64()),
        ("seconds", pa.float64()),
    ]
)
PROGRESS_EVERY_S = 5.0


class NonFiniteLoss(UserError):
    """A loss that is no number; the message names the step and the samples of the batch."""


@dataclass(frozen=True)
class Job:
    """One fine-tuning.

    Attributes:
        model: a Hugging Face folder on this node.
        samples: a dataset's rows; `sample_id` and `messages` are read, sorted by sample_id.
        sft: how.
        training_seed: seed of the data order, and of adapters and dropout where there are any.
        device: `cpu` or `cuda`.
    """

    model: Path
    samples: pa.Table
    sft: SftConfig
    training_seed: int
    device: str


@dataclass(frozen=True)
class Data:
    """What a run learns from: encoded samples that fit, and every step's batch; the same on all ranks."""

    encoded: list[Encoded]
    sample_ids: list[str]
    steps: list[Step]
    counts: dict[str, int]
    chat_template: str


@dataclass
class Trained:
    """A finished run: the engine with the trained weights, a row for each step, figures for its manifest, and its chat template."""

    engine: Any
    rows: pa.Table
    chat_template: str
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> torch.nn.Module:
        """Return the trained causal language model; with ZeRO stage 3 a rank holds only its part of the weights."""
        return self.engine.module.model


SaveCheckpoint = Callable[[Any, int, list[dict[str, Any]]], None]  # of the engine, the steps done, their rows; called on all ranks


def prepare_data(job: Job, world_size: int) -> Data:
    """Return the encoded samples and the plan of all steps.

    Raises:
        UserError: no sample fits.
    """
    sft = job.sft
    encoder = ChatEncoder(load_tokenizer(job.model), sft.template)
    whole = encoder.encode_all(job.samples["messages"].to_pylist())
    fitted = [fit(one, sft.max_length, sft.overlong) for one in whole]
    kept = [i for i, one in enumerate(fitted) if one is not None]
    if not kept:
        raise UserError(f"none of {len(whole)} samples fits sft.max_length={sft.max_length}")
    encoded = [one for one in fitted if one is not None]
    cut = sum(len(fitted[i] or ()) < len(whole[i]) for i in kept)
    ids = job.samples["sample_id"].to_pylist()
    steps = plan_steps(
        np.array([len(one) for one in encoded]),
        np.array([one.response_tokens for one in encoded]),
        budget_tokens=sft.budget.response_tokens,
        epochs=sft.budget.epochs,
        tokens_per_step=sft.response_tokens_per_step,
        max_length=sft.max_length,
        row_tokens=sft.capacity,
        seed=job.training_seed,
        world_size=world_size,
        keys=sample_keys([ids[i] for i in kept]),
    )
    counts = {"samples": len(encoded), "truncated": cut, "dropped": len(whole) - len(kept)}
    return Data(encoded, [ids[i] for i in kept], steps, counts, encoder.chat_template)


def fine_tune(
    job: Job,
    *,
    resume: Callable[[Any], tuple[int, list[dict[str, Any]]]] | None = None,
    checkpoint: SaveCheckpoint | None = None,
    memory: tuple[int, int | None] | None = None,
) -> Trained:
    """Return the trained engine. Every rank calls this; torch.distributed runs already (`engine.process_group`).

    Args:
        job: what is trained, on what.
        resume: loads a checkpoint into a new engine and returns the steps done and their rows.
        checkpoint: saves one, every `sft.checkpoint_every` steps.
        memory: bytes that a rank can have on its device, and on its host for what is offloaded; None checks nothing.

    Raises:
        NonFiniteLoss: a step's loss is no number.
        DoesNotFit: the run's estimate exceeds `memory`.
    """
    world_size, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    if world_size != job.sft.world_size:
        raise UserError(f"this run is of sft.world_size={job.sft.world_size}, and there are {world_size} ranks")
    started = time.perf_counter()
    data = prepare_data(job, world_size)
    precision = job.sft.resolved_precision(job.device)
    model = load_model(job.model, job.sft, precision, seed=job.training_seed)
    shape = shape_of(model)
    device_bytes, host_bytes = memory if memory else (sys.maxsize, None)
    needed = refuse_what_cannot_fit(shape, job.sft, precision, device_bytes=device_bytes, host_bytes=host_bytes)
    engine = build_engine(model, job.sft, precision, job.device)
    done, rows = resume(engine) if resume else (0, [])
    if rank == 0:
        logger.info("%s", describe(data, shape.parameters, needed))
    progress = Progress(len(data.steps), done, speaks=rank == 0)
    setup_s = time.perf_counter() - started
    for step in range(done, len(data.steps)):
        rows.append(_one_step(engine, job, data, step, rank, world_size))
        progress.tell(rows)
        every = job.sft.checkpoint_every
        if checkpoint and every and (step + 1) % every == 0 and step + 1 < len(data.steps):
            checkpoint(engine, step + 1, rows)
    return Trained(engine, pa.Table.from_pylist(rows, schema=TRAIN_SCHEMA), data.chat_template, _summary(data, rows, setup_s))


def _one_step(engine: Any, job: Job, data: Data, step: int, rank: int, world_size: int) -> dict[str, Any]:
    """Take one optimizer step and return its row."""
    started = time.perf_counter()
    plan = data.steps[step]
    rate = learning_rate(step, len(data.steps), job.sft)
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    if job.sft.lora is not None and job.sft.lora.dropout:
        torch.manual_seed(int(digest([job.training_seed, step, rank])[:15], 16))  # so that a resumed run drops the same
    total = torch.zeros((), device=engine.device, dtype=torch.float64)
    for part in plan.ranks[rank]:
        batch = collate(data.encoded, part)
        labels = torch.from_numpy(batch.labels).to(engine.device)
        loss = engine(labels=labels, **model_inputs(batch, engine.module.model, engine.device))
        engine.backward(loss * (world_size / plan.response_tokens), scale_wrt_gas=False)
        total += loss.detach()
    torch.distributed.all_reduce(total)
    summed = total.item()
    if not math.isfinite(summed):
        raise NonFiniteLoss(_blame(data, plan))
    engine.step()
    return {
        "step": step,
        "loss": summed / plan.response_tokens,
        "lr": rate,
        "response_tokens": plan.response_tokens,
        "tokens": plan.tokens,
        "seconds": time.perf_counter() - started,
    }


def _blame(data: Data, plan: Step, shown: int = 20) -> str:
    ids = [data.sample_ids[i] for i in plan.samples]
    more = f" and {len(ids) - shown} more" if len(ids) > shown else ""
    return (
        f"the loss of step {plan.number} is not finite; lower sft.lr, or look at the samples of its batch: {', '.join(ids[:shown])}{more}"
    )


def describe(data: Data, parameters: int, needed: Memory) -> str:
    """Return one line on what is about to be trained."""
    response, total = sum(step.response_tokens for step in data.steps), sum(step.tokens for step in data.steps)
    return (
        f"{data.counts['samples']} samples ({data.counts['truncated']} cut, {data.counts['dropped']} dropped), {len(data.steps)} steps, "
        f"{response} response tokens of {total}, {data.steps[-1].epoch:.2f} epochs; {parameters / 1e6:.1f}M parameters: {needed}"
    )


class Progress:
    """Rank 0's line every few seconds: step, loss, tokens a second, time left."""

    def __init__(self, steps: int, done: int, *, speaks: bool) -> None:
        self.steps, self.first, self.speaks = steps, done, speaks
        self.started = self.told = time.perf_counter()

    def tell(self, rows: Sequence[dict[str, Any]]) -> None:
        """Say where the run stands, if it is time."""
        now, done = time.perf_counter(), len(rows)
        if not self.speaks or (done < self.steps and now - self.told < PROGRESS_EVERY_S):
            return
        self.told = now
        seconds = now - self.started
        tokens = sum(row["tokens"] for row in rows[self.first :])
        left = seconds / max(done - self.first, 1) * (self.steps - done)
        speed = tokens / max(seconds, 1e-9)
        logger.info("step %d of %d: loss %.4f, %.0f tokens/s, %.0f s left", done, self.steps, rows[-1]["loss"], speed, left)


def _summary(data: Data, rows: Sequence[dict[str, Any]], setup_s: float) -> dict[str, Any]:
    seconds = sum(row["seconds"] for row in rows)
    tokens = sum(row["tokens"] for row in rows)
    return {
        **data.counts,
        "steps": len(rows),
        "epochs": data.steps[-1].epoch,
        "response_tokens": sum(row["response_tokens"] for row in rows),
        "tokens": tokens,
        "first_loss": rows[0]["loss"],
        "last_loss": rows[-1]["loss"],
        "setup_s": setup_s,
        "train_s": seconds,
        "tokens_per_s": tokens / max(seconds, 1e-9),
    }


def read_samples(path: Path) -> pa.Table:
    """Return a dataset's rows from a sealed folder, a folder of parquet files, or one file, sorted by sample_id.

    Raises:
        UserError: there is nothing of the kind.
    """
    folder = path / "data" if (path / "data").is_dir() else path
    files = sorted(folder.glob("*.parquet")) if folder.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise UserError(f"{path} is neither a parquet file nor a folder that holds some: give a dataset of build_datasets")
    tables = [pq.read_table(file) for file in files]
    if missing := {"sample_id", "messages"} - set(tables[0].column_names):
        raise UserError(f"{files[0]} has no column {' and '.join(sorted(missing))}")
    return pa.concat_tables([table.select(["sample_id", "messages"]) for table in tables]).sort_by("sample_id")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one fine-tuning from the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.sft", description="Fine-tune a model on one dataset, without Ray.")
    parser.add_argument("dataset", type=Path, help="a sealed dataset's folder, a folder of parquet files, or one file")
    parser.add_argument("--model", default="builtin:smollm2-135m", help="a builtin name, a Hugging Face folder, or a hub id")
    parser.add_argument("--out", type=Path, required=True, help="a new folder: hf/, train.parquet, and checkpoints while it runs")
    parser.add_argument("--seed", type=int, default=0, help="training seed")
    parser.add_argument("--threads", type=int, help="CPU threads of a rank")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="what the config calls sft, e.g. budget='{response_tokens: 4096}'")
    given = parser.parse_intermixed_args(argv)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logging.getLogger("training").setLevel(logging.INFO)
    try:
        _run(given)
    except UserError as error:
        print(f"sft: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _run(given: argparse.Namespace) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    values: dict[str, Any] = {"world_size": int(os.environ.get("WORLD_SIZE", "1"))}
    for setting in given.settings:
        key, _, text = setting.partition("=")
        *parents, last = key.split(".")
        node = values
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = yaml.safe_load(text)
    sft = parse(SftConfig, values)
    prepare_process(device, given.threads)
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    cache = Path(os.environ.get("SFT_DIVERSITY_CACHE") or Path.home() / ".cache" / "sft-diversity")
    job = Job(resolve_model(given.model, cache), read_samples(given.dataset), sft, given.seed, device)
    with process_group(device):
        run = run_fingerprint(
            content=digest(job.samples["sample_id"].to_pylist()),
            model=model_digest(job.model, cache),
            sft=sft,
            training_seed=given.seed,
            device=device,
        )
        folder = CheckpointFolder(given.out / "checkpoints", run)
        trained = fine_tune(job, resume=folder.resume, checkpoint=folder.save, memory=free_memory(device))
        export(trained.engine, job.model, given.out / "hf", sft, chat_template=trained.chat_template)
        if torch.distributed.get_rank() == 0:
            pq.write_table(trained.rows, given.out / "train.parquet")
            print(json.dumps({"run": run, **trained.summary}, indent=1))
            folder.remove()


if __name__ == "__main__":
    raise SystemExit(main())
