"""What a sweep costs beside training and scoring: `python -m benchmarks.sweep_overhead [--runs 3] [--both]`.

Overhead = wall - sum over runs of (training steps + scoring), one run at a time, from the call of the stage on a connected Ray to its end.
The runs are real: the built-in corpus, SmolLM2-135M, Ray Tune, Ray Train, DeepSpeed; they are only short. `--both` repeats them with Ray
Train's preemption watcher, an actor of its own for each run, switched on and off.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks.corpora import print_table

LIMIT_S = 30
WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
CONFIG = {
    "experiment": "overhead",
    "corpus": {"paths": ["builtin:python-docs"], "limit": 1500},
    "profile": {"typings": ["response-micro"], "band": {"low": 10, "high": 500, "scaled": True}},
    "sft": {"budget": {"response_tokens": 256}, "response_tokens_per_step": 128, "max_length": 256},
    "evaluation": {"heldout": {"in": {"fraction": 0.02}, "out": None}, "evaluators": [{"name": "nll", "max_samples": 8, "strata": True}]},
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--cpus", type=float, default=1.9, help="cores of a rank; with the driver's 0.1 a run holds two")
    parser.add_argument("--storage", type=Path, help="where prepared datasets are kept for the next time; a temporary folder by default")
    parser.add_argument("--both", action="store_true", help="with and without Ray Train's preemption watcher")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.side:
        print(json.dumps(measure(given.storage, given.side)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        storage = given.storage or Path(folder)
        prepare(storage, given.runs, given.cpus)
        sides = {"default": {}} if not given.both else {"watcher on": {WATCHER: "1"}, "watcher off": {WATCHER: "0"}}
        found = {name: _side(storage, str(number), variables) for number, (name, variables) in enumerate(sides.items())}
    for name, one in found.items():
        report(name, one)
    if given.both:
        on, off = (overhead(one) for one in found.values())
        print(f"\nwatcher on / off: {on:.1f} s / {off:.1f} s a run, {on / off:.2f} times")
    return 0


def prepare(storage: Path, runs: int, cpus: float) -> None:
    """Seal corpus, held-out samples, profile and datasets, which are no part of what is measured."""
    config = {
        **CONFIG,
        "storage": str(storage),
        "grid": {"strategies": ["random"], "sizes": [64], "subset_seeds": list(range(runs))},
        "resources": {"num_cpus": 2, "cpus_per_rank": cpus, "use_gpu": False},
        "stages": ["ingest", "heldout", "profile_corpus", "build_datasets"],
    }
    path = storage / "overhead.yaml"
    storage.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config))
    subprocess.run([sys.executable, "-m", "ray_jobs.pipeline", str(path)], check=True, stderr=subprocess.DEVNULL)


def _side(storage: Path, seed: str, variables: dict[str, str]) -> dict[str, Any]:
    """Run a sweep in a process of its own; every side trains anew, under a seed that nobody had."""
    command = [sys.executable, "-m", "benchmarks.sweep_overhead", "--side", seed, "--storage", str(storage)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **variables})
    return json.loads(done.stdout.splitlines()[-1])


def measure(storage: Path, side: str) -> dict[str, Any]:
    """Return the wall time of a sweep on a connected Ray, and what its trials report."""
    from ray_jobs import sweep
    from ray_jobs.job.experiment import load_experiment
    from ray_jobs.job.process import configure_process
    from ray_jobs.job.runtime import Context
    from ray_jobs.tools import frames

    configure_process()
    logging.getLogger("ray_jobs").setLevel(logging.WARNING)
    path, seed = storage / "overhead.yaml", int(time.time()) * 10 + int(side)
    overrides = (f"sft.training_seeds=[{seed}]",)
    context = Context(load_experiment(path, overrides, inside_job=False), path, overrides)
    started = time.perf_counter()
    context.connect()
    connected = time.perf_counter()
    sweep.run(context)
    wall = time.perf_counter() - connected
    frame = frames.result_grid(context).get_dataframe()
    return {"connect_s": connected - started, "wall_s": wall, "runs": json.loads(frame.to_json(orient="records"))}


def overhead(found: dict[str, Any]) -> float:
    """Return the seconds a run beside training and scoring."""
    busy = sum(run["train_s"] + run["score_s"] for run in found["runs"])
    return (found["wall_s"] - busy) / len(found["runs"])


def parts(found: dict[str, Any]) -> list[tuple[str, float]]:
    """Return the mean seconds a run of every part of the overhead; they add up to it."""
    runs, n = found["runs"], len(found["runs"])
    mean = {name: sum(run.get(name) or 0.0 for run in runs) / n for name in {key for run in runs for key in run if _number(runs, key)}}
    setup = {name: mean.get(f"setup/{name}", 0.0) for name in ("data_s", "load_s", "engine_s", "resume_s", "ceiling_s")}
    rows = [
        ("Tune: start, end, between trials", found["wall_s"] / n - mean["time_total_s"]),
        ("trial actor", mean["time_total_s"] - mean["trial_s"]),
        ("Train: controller, placement, worker start and end", mean["trial_s"] - mean["run_s"]),
        ("import", mean["import_s"]),
        ("data", setup["data_s"]),
        ("model load", setup["load_s"]),
        ("engine", setup["engine_s"]),
        ("checkpoint looked for, speed measured", setup["resume_s"] + setup["ceiling_s"]),
        ("export", mean["export_s"]),
    ]
    known = sum(seconds for _, seconds in rows)
    return [*rows, ("seal and the rest", overhead(found) - known)]


def _number(runs: list[dict[str, Any]], key: str) -> bool:
    return all(isinstance(run.get(key), (int, float)) or run.get(key) is None for run in runs)


def report(name: str, found: dict[str, Any]) -> None:
    runs = found["runs"]
    busy = sum(run["train_s"] + run["score_s"] for run in runs) / len(runs)
    title = f"{name}: {len(runs)} runs one by one, {busy:.1f} s of training and scoring each; connecting took {found['connect_s']:.1f} s"
    rows = [(part, f"{seconds:.1f}") for part, seconds in parts(found)]
    total = overhead(found)
    rows.append((f"overhead a run (limit {LIMIT_S})", f"{total:.1f}{'' if total <= LIMIT_S else ' MISSED'}"))
    print_table(title, ("part", "s a run"), rows)


if __name__ == "__main__":
    raise SystemExit(main())
