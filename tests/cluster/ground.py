"""One pipeline, many faults: each trial runs it on a storage of its own, breaks something, mends it, and sends the same command again.

Then the question is whether the same bytes of data and the same losses are there as without a fault.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.cluster import tiny
from tests.cluster.faults import FAULTS, Trial
from tests.cluster.machine import Machine

PATIENCE = float(os.environ.get("CLUSTER_TEST_PATIENCE", "1"))  # larger on a machine that is busy with other things
Losses = dict[str, list[float]]


@dataclass
class Outcome:
    """A row of the table."""

    stage: str
    fault: str
    hit: str
    first: int | None
    starts: int
    seconds: float
    data_equal: bool
    losses_equal: bool | None

    @property
    def sound(self) -> bool:
        """Return whether all that was made is as without the fault."""
        return self.data_equal and self.losses_equal is not False

    def row(self) -> dict[str, object]:
        """Return it for a table."""
        ended = {0: "went on", None: "hung, was killed"}.get(self.first, f"ended with {self.first}")
        same = {True: "equal", False: "DIFFERENT", None: "not trained"}
        told = {"at": self.stage, "fault": self.fault, "hit": self.hit or "nobody was there", "the driver": ended}
        return {**told, "submitted": self.starts, "s": self.seconds, "data": same[self.data_equal], "losses": same[self.losses_equal]}


@dataclass
class Ground:
    """What all trials start from: inputs, model, and what a pipeline without a fault leaves."""

    folder: Path
    corpus: Path
    model: Path
    data: str = ""
    losses: Losses = field(default_factory=dict)
    steps: int = 48

    @classmethod
    def lay(cls, folder: Path) -> Ground:
        """Make inputs and model."""
        return cls(folder, tiny.make_corpus(folder / "corpus"), tiny.make_model(folder / "model"))

    def trial(self, name: str, mount: Path | None = None, *, begun: bool = False, stages: str = tiny.ALL_STAGES) -> Trial:
        """Return a new trial of some stages on storage of its own: an empty one, or one where the data stages are sealed."""
        storage = (mount or self.folder) / f"{name}-{secrets.token_hex(3)}"
        if begun:
            shutil.copytree(self.folder / "begun", storage)
        resources = "resources={data_workers: 4, max_cpus: 5, driver_resource: true, shared_storage: true, wait_s: 300}"
        arguments = tiny.experiment(storage, self.corpus, self.model, steps=self.steps)
        more = ["grid.train=[response-micro_n24_l000_s0]", f"sft.checkpoint_every={self.steps // 8}", "evaluation.heldout.out=null"]
        command = [sys.executable, "-m", "ray_jobs.pipeline", tiny.CONFIG, *arguments, resources, stages, *more]
        return Trial(command, storage, self.folder / f"{storage.name}.log", mount)

    def baseline(self, machine: Machine) -> float:
        """Run without a fault, the data stages first, keep what came of each, and return the seconds."""
        trial, began = self.trial("baseline"), time.time()
        whole = trial.command
        for trial.command in ([*whole, tiny.DATA_STAGES], whole):
            trial.start(machine)
            code = trial.end(900 * PATIENCE)
            assert code == 0, trial.log.read_text()[-3000:]
            if not (self.folder / "begun").exists():
                shutil.copytree(trial.storage, self.folder / "begun")
        self.data, self.losses = tiny.data_hash(trial.storage), tiny.losses(trial.storage)
        assert self.data != "none" and self.losses
        return time.time() - began

    def with_longer_runs(self, machine: Machine, steps: int) -> Ground:
        """Return the same ground for runs of more steps, for a fault that takes its time, with what such a run leaves."""
        other = replace(self, steps=steps)
        trial = other.trial("longer", begun=True)
        trial.start(machine)
        code = trial.end(900 * PATIENCE)
        assert code == 0, trial.log.read_text()[-3000:]
        other.losses = tiny.losses(trial.storage)
        return other

    def run(
        self, machine: Machine, stage: str, fault: str, delay: float, mount: Path | None = None, stages: str = tiny.ALL_STAGES
    ) -> Outcome:
        """Run a trial: the fault comes `delay` seconds after the stage has begun its work."""
        trial, began = self.trial(fault.replace(" ", "-"), mount, begun=stage == "sweep", stages=stages), time.time()
        trial.start(machine)
        assert trial.process
        while not trial.reached(stage) and trial.process.poll() is None and time.time() - began < 600 * PATIENCE:
            time.sleep(0.1)
        time.sleep(delay)
        hit = FAULTS[fault](machine, trial) if trial.process.poll() is None else ""
        if trial.mend:
            time.sleep(15)
        first = trial.end(300 * PATIENCE)
        if trial.mend:
            subprocess.run(trial.mend, check=False)
        starts, code = 1, first
        while code != 0 and starts < 4:
            machine.repair()
            trial.start(machine)
            code = trial.end(600 * PATIENCE)
            starts += 1
        machine.repair()
        seconds = time.time() - began
        if code != 0:
            return Outcome(stage, fault, hit, first, starts, seconds, False, False)
        losses = tiny.losses(trial.storage) == self.losses if "sweep" in stages else None
        return Outcome(stage, fault, hit, first, starts, seconds, tiny.data_hash(trial.storage) == self.data, losses)


@contextmanager
def mounted(folder: Path, megabytes: int = 256) -> Iterator[Path]:
    """Have a file system of its own in memory; needs root."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)
