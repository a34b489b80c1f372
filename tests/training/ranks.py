"""Train on several gloo ranks: processes of their own that run one job after the other and hand back what rank 0 found."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi", "omicron", "pi"]


def samples(count: int, *, longest: int = 12) -> pa.Table:
    """Return samples of many lengths, sorted by id."""
    from diversity.corpus.samples import sample_id

    rows = []
    for i in range(count):
        answer = " ".join(WORDS[(i * 7 + j * 3) % len(WORDS)] for j in range(1 + i * 5 % longest))
        messages = [{"role": "user", "content": f"Say {i} words."}, {"role": "assistant", "content": answer}]
        rows.append({"sample_id": sample_id(messages), "messages": messages})
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["sample_id"]))


def train(
    model: Path,
    sft: dict[str, Any],
    *,
    count: int = 24,
    seed: int = 0,
    checkpoints: Path | None = None,
    out: Path | None = None,
    other_world: Path | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train one job on the ranks that there are and return its losses, rows of a step and weights.

    With checkpoints, resume by them; or by those of another number of ranks, which count as the same run.
    """
    from training import checkpoint, export
    from training.config import SftConfig
    from training.sft import Job, fine_tune

    job = Job(model, samples(count), SftConfig(**sft), seed, device)
    folder = checkpoint.CheckpointFolder(checkpoints, "run") if checkpoints else None
    if other_world is not None:
        trained = fine_tune(
            job, resume=lambda engine: checkpoint.load_other_world(engine, other_world, lambda ranks: "run"), universal=True
        )
    else:
        trained = fine_tune(job, resume=folder.resume if folder else None, checkpoint=folder.save if folder else None)
    if out:
        export.export(trained.engine, model, out, job.sft)
    weights = export.consolidate(trained.engine)
    return {
        "losses": trained.rows["loss"].to_pylist(),
        "rows": trained.rows.drop_columns("seconds").to_pylist(),
        "weights": {name: tensor.float().numpy().copy() for name, tensor in (weights or {}).items()},
    }


def on_ranks(world_size: int, jobs: list[dict[str, Any]], device: str = "cpu", call: str = "tests.training.ranks:train") -> list[Any]:
    """Return what a function, `train` by default, gives for each of the jobs on rank 0 of so many new processes, on CPUs or a GPU each."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "jobs").write_bytes(pickle.dumps(jobs))
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "LOCAL_WORLD_SIZE": str(world_size), "OMP_NUM_THREADS": "1"}
        environment["DS_ACCELERATOR"] = device
        ranks = [
            subprocess.Popen(
                [sys.executable, __file__, folder, str(rank), str(world_size), device, call],
                env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(world_size)
        ]
        errors = [rank.communicate()[1] for rank in ranks]
        if any(rank.returncode for rank in ranks):
            raise RuntimeError("\n".join(errors))
        return pickle.loads(Path(folder, "found").read_bytes())


# Rows of 64 tokens and 96 response tokens a step: several rows in every step. The rate is high, so that a wrong gradient shows.
SFT: dict[str, Any] = {
    "budget": {"response_tokens": 480},
    "response_tokens_per_step": 96,
    "max_length": 64,
    "lr": 3e-3,
    "warmup": 0.2,
    "weight_decay": 0.1,
    "checkpoint_every": 2,
}
ZEROS: list[dict[str, Any]] = [
    *({"stage": stage} for stage in range(4)),
    {"stage": 2, "offload_optimizer": True},
    {"stage": 3, "offload_optimizer": True, "offload_parameters": True},
]


LONG_STEPS = 32
LONG: dict[str, Any] = {
    **SFT,
    "precision": "fp32",  # on the command line `auto` follows the processor
    "budget": {"response_tokens": 96 * LONG_STEPS},
    "lr": 1e-3,
    "checkpoint_every": 4,
    "world_size": 2,
    "zero": {"stage": 2},
}


@dataclass(frozen=True)
class TwoRanks:
    """What two ranks gave for each of `ZEROS`: in one go, and resumed from the checkpoint at step 4 of 5; stage 3's export; and `LONG`."""

    whole: list[dict[str, Any]]
    resumed: list[dict[str, Any]]
    checkpoints: list[Path]
    hf: Path
    long: dict[str, Any]


def train_on_two_ranks(model: Path, folder: Path) -> TwoRanks:
    """Return it, trained by two processes in all; checkpoints and export lie in the folder, for everyone to read."""
    checkpoints = [folder / str(number) for number in range(len(ZEROS))]
    jobs: list[dict[str, Any]] = [
        {"model": model, "sft": {**SFT, "world_size": 2, "zero": zero}, "checkpoints": place}
        for zero, place in zip(ZEROS, checkpoints, strict=True)
    ]
    jobs[3]["out"] = folder / "hf"
    *found, long = on_ranks(2, [*jobs, *jobs, {"model": model, "sft": LONG}])
    return TwoRanks(found[: len(ZEROS)], found[len(ZEROS) :], checkpoints, folder / "hf", long)


def alone() -> None:
    """Have torch.distributed for this process alone, until it ends: DeepSpeed can't follow a group that is made anew."""
    import torch

    from training.engine import prepare_process

    prepare_process("cpu", 1)
    os.environ.setdefault("LOCAL_RANK", "0")
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)


def _main(folder: str, rank: int, world_size: int, device: str, call: str) -> None:
    import torch

    from diversity.config import load
    from training.engine import prepare_process
    from training.ranks import group_backend

    prepare_process(device, 1)
    if device == "cuda":
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group(group_backend(device), init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    function = load(call)
    found = [function(**job, device=device) for job in pickle.loads(Path(folder, "jobs").read_bytes())]
    if rank == 0:
        Path(folder, "found").write_bytes(pickle.dumps(found))
    torch.distributed.barrier()


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
