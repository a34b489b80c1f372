"""A process that dies at any storage operation loses nothing: `python -m benchmarks.crash_points [--points N] [--seed S] [--twice]`.

The stages ingest, heldout, profile_corpus and build_datasets of a small experiment run in one process without a cluster, on a storage that
kills the process (SIGKILL) ahead of the n-th operation that changes something: every n, or N of them drawn at random. (Between two changes
nothing differs, so a kill ahead of a read is one ahead of the next change. A file's closing is a change: until then it is half.) Then the
same command runs again, and every file must hold the same bytes as after a run that nobody killed, and what was sealed before must not have
been made again. With `--twice` the second run is killed too, at a change drawn at random, and a third one follows.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import yaml

from benchmarks.corpora import print_table
from diversity.artifact import KINDS, Storage
from diversity.typings.encoders import Encoder, load_encoder
from ray_jobs.job.experiment import load_experiment
from ray_jobs.job.runtime import Context, run_stage
from ray_jobs.tasks import profiling
from tests.here import in_this_process
from tests.storages import WatchedStorage, content

STAGES = ("ingest", "heldout", "profile_corpus", "build_datasets")
WORDS = ("river", "stone", "bird", "music", "bread", "winter", "light", "paper", "glass", "town", "answer", "question", "short", "old")


@functools.cache
def encoder(unit: str, folder: Path | None) -> Encoder:
    """Return an encoder, loaded once for all processes that are forked from this one."""
    return load_encoder(unit, folder)


def experiment(folder: Path, rows: int = 60) -> Path:
    """Write a small corpus and its configuration, and return the latter's path."""
    draw = random.Random(0)
    texts = [[" ".join(draw.choices(WORDS, k=length)) for length in (6, 18)] for _ in range(rows)]
    lines = [json.dumps({"instruction": f"{asked} {number}", "output": answer}) for number, (asked, answer) in enumerate(texts)]
    (folder / "rows.jsonl").write_text("\n".join([*lines, lines[0], '{"instruction": "no answer"}']) + "\n")
    settings = {
        "experiment": "crash",
        "storage": str(folder / "runs"),
        "corpus": {"paths": [str(folder / "rows.jsonl")]},
        "stages": list(STAGES),
        "profile": {"typings": ["instruction-micro", "response-micro"], "band": {"low": 2, "high": 50}},
        "grid": {"strategies": ["response-micro", "random"], "sizes": [8], "levels": 2},
        "evaluation": {"heldout": {"in": {"fraction": 0.1}}},
    }
    config = folder / "crash.yaml"
    config.write_text(yaml.safe_dump(settings))
    return config


@dataclass
class Count:
    """The changes of a storage, by the stage that they are of; at one of them the process dies."""

    dies_at: int | None = None
    done: int = 0
    stage: str = ""
    of_stage: list[str] = field(default_factory=list)

    def before(self, operation: str, path: str) -> None:
        """Count an operation that changes something, or die ahead of it."""
        if operation in ("look", "list", "read"):
            return
        if self.done == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.done += 1
        self.of_stage.append(self.stage)


def run(config: Path, storage: str, count: Count) -> None:
    """Run the stages on a storage, each operation counted."""
    context = Context(load_experiment(config, [f"storage={storage}"], inside_job=False), config)
    context.__dict__["storage"] = WatchedStorage(storage, count.before)
    with in_this_process(), patch.object(profiling, "load_encoder", lambda unit, folder, **ignored: encoder(unit, folder)):
        for stage in STAGES:
            count.stage = stage
            run_stage(context, stage)


def apart(work: Callable[[], None]) -> int:
    """Do the work in a process forked for it, and return its exit code; negative: the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def visible(storage: Storage) -> dict[str, bytes]:
    """Return what a storage holds for readers: every file but those of writers that have not sealed."""
    return {path: found for path, found in content(storage).items() if not any(part.startswith(".") for part in path.split("/"))}


def seals(storage: Path) -> dict[str, int]:
    """Return when each artifact was sealed."""
    return {path.parent.name: path.stat().st_mtime_ns for kind in KINDS for path in storage.glob(f"{kind}/*/manifest.json")}


def tried(config: Path, folder: Path, point: int, expected: dict[str, bytes], second: int | None) -> tuple[str, int, int]:
    """Kill a run at an operation and go on; return what came of it, the seals that were there, and the bytes left for `clean`."""
    storage = folder / f"killed-{point}"

    def once(dies_at: int | None) -> int:
        return apart(lambda: run(config, str(storage), Count(dies_at)))

    if once(point) != -signal.SIGKILL:
        return "was not killed", 0, 0
    if second is not None and once(second) not in (0, -signal.SIGKILL):
        return "failed when it went on", 0, 0
    before = seals(storage)
    if once(None) != 0:
        return "failed when it went on", 0, 0
    after = seals(storage)
    found = visible(Storage(str(storage)))
    left = sum(path.stat().st_size for path in storage.rglob("*") if path.is_file()) - sum(map(len, found.values()))
    if any(after[name] != sealed for name, sealed in before.items()):
        return "made again what was sealed", len(before), left
    outcome = "the same bytes" if found == expected else "other bytes"
    shutil.rmtree(storage)
    return outcome, len(before), left


def main(argv: Sequence[str] | None = None) -> int:
    """Kill at every point that is asked for, print the table, and return whether all went well."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, help="so many operations, drawn at random; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--twice", action="store_true", help="kill the second run too")
    given = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="crash-points-") as temporary:
        folder = Path(temporary)
        os.environ["SFT_DIVERSITY_CACHE"] = os.environ.get("SFT_DIVERSITY_CACHE") or str(Path.home() / ".cache/sft-diversity")
        config = experiment(folder)

        count = Count()
        run(config, str(folder / "whole"), count)  # here, so that tokenizer and compiled code are ready in every process forked from this
        of_stage = count.of_stage
        expected = visible(Storage(str(folder / "whole")))
        draw = random.Random(given.seed)
        points = sorted(draw.sample(range(len(of_stage)), given.points)) if given.points else list(range(len(of_stage)))
        outcomes, reused, most = Counter[tuple[str, str]](), Counter[str](), 0
        for number, point in enumerate(points):
            if number and number % 50 == 0:
                print(f"{number} of {len(points)} points", file=sys.stderr, flush=True)
            second = draw.randrange(len(of_stage)) if given.twice else None
            outcome, seals_before, left = tried(config, folder, point, expected, second)
            outcomes[of_stage[point], outcome] += 1
            reused[of_stage[point]] += seals_before
            most = max(most, left)
    rows = [
        [
            stage,
            of_stage.count(stage),
            sum(n for (of, _), n in outcomes.items() if of == stage),
            outcomes[stage, "the same bytes"],
            reused[stage],
        ]
        for stage in STAGES
    ]
    rows.append(["all", *(sum(row[column] for row in rows) for column in range(1, 5))])
    print_table(
        f"SIGKILL ahead of a change of the storage{', twice' * given.twice}, then the same command ({len(expected)} files compared)",
        ["stage", "changes", "killed at", "ended with the same bytes", "seals found and kept"],
        rows,
    )
    bad = {f"{stage}: {outcome}": n for (stage, outcome), n in outcomes.items() if outcome != "the same bytes"}
    print(f"\nleft for `clean` by a killed run: {most / 1e3:.0f} kB at most; {bad or 'nothing else came of it'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
