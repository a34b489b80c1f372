"""One dataset becomes one model: the train loop, on a DeepSpeed engine.

Without Ray, alone or on several ranks:

    python -m training.sft DATASET --out FOLDER --model builtin:smollm2-135m budget='{response_tokens: 1024}'
    torchrun --nproc-per-node 2 -m training.sft DATASET --out FOLDER zero.stage=2
    torchrun --nproc-per-node 4 -m training.sft DATASET --out NEW --resume-from FOLDER/checkpoints zero.stage=2

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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from diversity.artifact import digest
from diversity.config import ConfigError, UserError, parse
from training.chat import ChatFormat
from training.checkpoint import CheckpointFolder, load_other_world
from training.config import SEEDS, SftConfig, learning_rate, run_fingerprint
from training.data import Data, Job, prepare_data, read_samples
from training.engine import build_engine, check_offload, free_memory, load_model, prepare_process, process_group, shape_of
from training.export import dry_export, export
from training.flops import matmul_ceiling, step_flops, wait_for
from training.hardware import has_fast_bf16
from training.memory import let_optimizer_go
from training.model_source import model_digest, resolve_model
from training.packing import Step, collate, learnt, model_inputs
from training.probe import settle
from training.progress import Progress, describe, summary
from training.ranks import any_rank, smallest
from training.trackers import Trackers, flat, open_trackers
from training.zero import ModelShape, refuse_what_cannot_fit

logger = logging.getLogger("training.sft")  # as `python -m`, too

TRAIN_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("loss", pa.float64()),
        ("lr", pa.float64()),
        ("response_tokens", pa.int64()),
        ("tokens", pa.int64()),
        ("seconds", pa.float64()),
        ("flops", pa.float64()),
    ]
)


class NonFiniteLoss(UserError):
    """A loss that is no number, or weights with which the next one would be; the message names the step and the samples of the batch."""


@dataclass
class Trained:
    """A finished run: the engine with the trained weights, a row for each step, how samples looked, and figures for its manifest."""

    engine: Any
    rows: pa.Table
    chat: ChatFormat
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> torch.nn.Module:
        """Return the trained causal language model; with ZeRO stage 3 a rank holds only its part of the weights."""
        return self.engine.module.model

    def let_optimizer_go(self) -> None:
        """Free what only training needs; the model stays. After this nothing more can be trained, checkpointed or exported."""
        let_optimizer_go(self.engine)


SaveCheckpoint = Callable[[Any, int, list[dict[str, Any]]], None]  # of the engine, the steps done, their rows; called on all ranks
OpenTrackers = Callable[[list[dict[str, Any]]], Trackers]


def fine_tune(
    job: Job,
    *,
    resume: Callable[[Any], tuple[int, list[dict[str, Any]]]] | None = None,
    checkpoint: SaveCheckpoint | None = None,
    memory: tuple[int, int | None] | None = None,
    track: OpenTrackers | None = None,
    universal: bool = False,
    leaving: Callable[[], bool] | None = None,
) -> Trained:
    """Return the trained engine. Every rank calls this; torch.distributed runs already (`engine.process_group`).

    Args:
        job: what is trained, on what.
        resume: loads a checkpoint into a new engine and returns the steps done and their rows.
        checkpoint: saves one, every `sft.checkpoint_every` steps.
        memory: bytes that a rank can have on its device, and on its host for what is offloaded; None checks nothing.
        track: opens what the curve is told to, given the rows of the steps done; called on rank 0.
        universal: whether `resume` brings the state of another number of ranks.
        leaving: says whether a machine of this run is about to be taken away, so that a checkpoint is saved at once; called after steps on
            all ranks, which must get one answer.

    Raises:
        NonFiniteLoss: a step's loss is no number, or the trained weights are none.
        DoesNotFit: the run's estimate exceeds `memory`; no weight has been read by then.
        ExportError: the trained model could not be exported; no step has been taken by then.
    """
    job = replace(job, sft=job.sft.resolved(job.device))
    world_size, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    if world_size != job.sft.world_size:
        raise UserError(f"this run is of sft.world_size={job.sft.world_size}, and there are {world_size} ranks")
    clock = Clock()
    engine, data, shape = _ready(job, memory, universal, clock)
    done, rows = resume(engine) if resume else (0, [])
    clock.lap("resume_s")
    precision = job.sft.resolved_precision(job.device)
    ceiling = world_size * matmul_ceiling(job.device, torch.bfloat16 if precision == "bf16" else torch.float32)
    clock.lap("ceiling_s")
    progress = Progress(len(data.steps), done, ceiling=ceiling, speaks=rank == 0)
    trackers = track([_with_pace(row, ceiling) for row in rows]) if track and rank == 0 else None
    failed = True
    try:
        for step in range(done, len(data.steps)):
            row = _one_step(engine, job, data, step, rank, world_size)
            row["flops"] = step_flops(shape, [len(data.encoded[i]) for i in data.steps[step].samples], row["response_tokens"])
            rows.append(row)
            if step == done:
                clock.lap("first_step_s")
            progress.tell(rows)
            if trackers:
                trackers.step(_with_pace(row, ceiling))
            every = job.sft.checkpoint_every
            if checkpoint and step + 1 < len(data.steps) and ((every and (step + 1) % every == 0) or (leaving and leaving())):
                checkpoint(engine, step + 1, rows)
        if any_rank([not finite(engine.module.model)])[0]:
            raise NonFiniteLoss(_blame(data, data.steps[-1], f"the weights are not finite after step {len(data.steps) - 1}"))
        failed = False
    finally:
        if trackers:
            trackers.close(failed=failed)
    figures = summary(data.counts, data.steps, rows, clock.laps, ceiling, first=done)
    return Trained(engine, pa.Table.from_pylist(rows, schema=TRAIN_SCHEMA), data.chat, figures)


def _ready(job: Job, memory: tuple[int, int | None] | None, universal: bool, clock: Clock) -> tuple[Any, Data, ModelShape]:
    """Return the engine, the data dealt out to steps, and the model's shape, once nothing speaks against the run; as `fine_tune`."""
    world_size, leads = torch.distributed.get_world_size(), torch.distributed.get_rank() == 0
    data = prepare_data(job, world_size)
    clock.lap("data_s")
    precision = job.sft.resolved_precision(job.device)
    check_offload(job.sft, job.device)
    shape = shape_of(job.model, job.sft)
    data.refuse_ids_from(shape.vocabulary)
    data.refuse_longer_than(shape.positions)
    device_bytes, host_bytes = memory if memory else (sys.maxsize, None)
    # The least of all ranks: one that refuses alone would leave the others waiting for it.
    device_bytes, host_bytes = smallest(device_bytes), None if host_bytes is None else smallest(host_bytes)
    needed = refuse_what_cannot_fit(shape, job.sft, precision, device_bytes=device_bytes, host_bytes=host_bytes)
    if leads:
        logger.info("%s", describe(data.counts, data.steps, shape, needed, world_size))
    model = load_model(job.model, job.sft, precision, seed=job.training_seed)
    clock.lap("load_s")
    engine = build_engine(model, job.sft, precision, job.device, universal=universal)
    clock.lap("engine_s")
    verdict = settle(engine.module.model, engine.device)
    engine.module.pieces &= verdict.plain_head
    if verdict.rows == "alone":
        data = data.one_sample_a_row(world_size)
    if leads and verdict.rows != "bounds":
        logger.warning("%s", verdict.told())
    dry_export(engine.module.model, job.model, job.sft)
    clock.lap("probe_s")
    return engine, data, shape


def _with_pace(row: dict[str, Any], ceiling: float) -> dict[str, Any]:
    return {**row, "tokens_per_s": row["tokens"] / row["seconds"], "mfu": row["flops"] / row["seconds"] / ceiling}


class Clock:
    """Seconds of one part of the work after the other."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End a part."""
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now


def _one_step(engine: Any, job: Job, data: Data, step: int, rank: int, world_size: int) -> dict[str, Any]:
    """Take one optimizer step and return its row."""
    started = time.perf_counter()
    plan = data.steps[step]
    rate = learning_rate(step, len(data.steps), job.sft)
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    torch.manual_seed(int(digest([job.training_seed, step, rank])[:15], 16))  # a model may have dropout: a resumed run drops the same
    total = torch.zeros((), device=engine.device, dtype=torch.float64)  # read once, at the end: reading it makes the host wait
    for part in plan.ranks[rank]:
        batch = collate(data.encoded, part)
        loss = engine(**learnt(batch, engine.device), **model_inputs(batch, engine.module.model, engine.device))
        engine.backward(loss * (world_size / plan.response_tokens), scale_wrt_gas=False)
        total += loss.detach()
    torch.distributed.all_reduce(total)
    summed = total.item()
    if not math.isfinite(summed):
        raise NonFiniteLoss(_blame(data, plan, f"the loss of step {plan.number} is not finite"))
    engine.step()
    wait_for(job.device)  # the optimizer's kernels are part of the step
    return {
        "step": step,
        "loss": summed / plan.response_tokens,
        "lr": rate,
        "response_tokens": plan.response_tokens,
        "tokens": plan.tokens,
        "seconds": time.perf_counter() - started,
    }


def finite(model: torch.nn.Module) -> bool:
    """Return whether a model's weights are numbers; with ZeRO stage 3, this rank's part of them."""
    return all(bool(getattr(weight, "ds_tensor", weight).isfinite().all()) for weight in model.parameters())


def _blame(data: Data, plan: Step, fault: str, shown: int = 20) -> str:
    ids = [data.sample_ids[i] for i in plan.samples]
    more = f" and {len(ids) - shown} more" if len(ids) > shown else ""
    return f"{fault}; lower sft.lr, or look at the samples of its batch: {', '.join(ids[:shown])}{more}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one fine-tuning from the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.sft", description="Fine-tune a model on one dataset, without Ray.")
    parser.add_argument("dataset", type=Path, help="a sealed dataset's folder, a folder of parquet files, or one file")
    parser.add_argument("--model", default="builtin:smollm2-135m", help="a builtin name, a Hugging Face folder, or a hub id")
    parser.add_argument("--out", type=Path, required=True, help="a new folder: hf/, train.parquet, and checkpoints while it runs")
    parser.add_argument("--seed", type=int, default=0, help="training seed")
    parser.add_argument("--resume-from", type=Path, metavar="FOLDER", help="the checkpoints folder of this run on another number of ranks")
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


def put(values: dict[str, Any], setting: str) -> None:
    """Put `key=value` into nested values; a leading `sft.`, as a sweep's configuration has it, is left out.

    Raises:
        ConfigError: it is none, or a part of the key has a value already that holds no keys.
    """
    key, equals, text = setting.partition("=")
    if not key or not equals:
        raise ConfigError(f"a setting is key=value, not {setting!r}")
    *parents, last = key.removeprefix("sft.").split(".")
    node = values
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"{setting}: {parent} is already {node!r}, which holds no {last}: give one of the two")
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: {text!r} is no YAML value: {' '.join(str(error).split())[:160]}") from None


def _run(given: argparse.Namespace) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    values: dict[str, Any] = {"world_size": int(os.environ.get("WORLD_SIZE", "1"))}
    for setting in given.settings:
        put(values, setting)
    sft = parse(SftConfig, values).resolved(device, fast_bf16=device == "cpu" and has_fast_bf16())
    if not 0 <= given.seed < SEEDS:
        raise UserError(f"--seed is at least 0 and below 2**63, not {given.seed}")
    if sft.resume_world_size:
        raise UserError("resume_world_size is for a sweep: without Ray, give the other run's checkpoints by --resume-from FOLDER")
    if next((path for path in (given.out, *given.out.parents) if path.exists()), given.out).is_file():
        raise UserError(f"--out {given.out}: a file is there, and a folder is needed")
    prepare_process(device, given.threads)
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    cache = Path(os.environ.get("SFT_DIVERSITY_CACHE") or Path.home() / ".cache" / "sft-diversity")
    job = Job(resolve_model(given.model, cache), read_samples(given.dataset), sft, given.seed, device)
    with process_group(device):
        content, base = digest(job.samples["sample_id"].to_pylist()), model_digest(job.model, cache)

        def name(world_size: int) -> str:
            same = sft.model_copy(update={"world_size": world_size})
            return run_fingerprint(content=content, model=base, sft=same, training_seed=given.seed, device=device)

        run = name(sft.world_size)
        folder = CheckpointFolder(given.out / "checkpoints", run)
        about = {
            "run": run,
            "dataset": str(given.dataset),
            "model": given.model,
            **flat(sft.identity(training_seed=given.seed, device=device)),
        }

        def track(rows: list[dict[str, Any]]) -> Trackers:
            return open_trackers(sft.trackers, given.out / "tensorboard", run, about, rows)

        elsewhere = given.resume_from if given.resume_from and not folder.whole() else None
        resume = (lambda engine: load_other_world(engine, elsewhere, name)) if elsewhere else folder.resume
        memory = free_memory(device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        trained = fine_tune(job, resume=resume, checkpoint=folder.save, memory=memory, track=track, universal=elsewhere is not None)
        export(trained.engine, job.model, given.out / "hf", sft, chat=trained.chat)
        if torch.distributed.get_rank() == 0:
            pq.write_table(trained.rows, given.out / "train.parquet")
            print(json.dumps({"run": run, **trained.summary}, indent=1))
            folder.remove()


if __name__ == "__main__":
    raise SystemExit(main())
