"""What each fault breaks, of a cluster of three raylets or of a storage, and at which moment of which stage it may come."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.machine import RANK, TASK, Machine, end_processes, kill_one
from tests.ray_jobs.heads import ROOT, heard

# What a driver's log, or the storage, shows once a stage is at work.
STAGES = {
    "ingest": re.compile(r"ingest: \d+ inputs"),
    "profile": re.compile(r"profile_corpus: \d+ artifacts"),
    "build": re.compile(r"\d+ datasets: \d+ to build"),
    "sweep": None,  # the first checkpoint
}


@dataclass
class Trial:
    """One experiment with one fault.

    Attributes:
        command: of the pipeline.
        storage: its own.
        mount: the file system that the storage lies on, if it has one of its own.
    """

    command: list[str]
    storage: Path
    log: Path
    mount: Path | None = None
    process: subprocess.Popen[bytes] | None = None
    mend: list[str] | None = None
    said: list[str] = field(default_factory=list)

    def start(self, machine: Machine) -> None:
        """Start the driver."""
        environment = {**machine.head.environment, "RAY_ADDRESS": machine.head.address}
        with self.log.open("ab") as stream:
            given = {"cwd": ROOT, "env": environment, "stdin": subprocess.DEVNULL, "preexec_fn": heard}
            self.process = subprocess.Popen(self.command, stdout=stream, stderr=stream, **given)

    def reached(self, stage: str) -> bool:
        """Return whether a stage is at work."""
        pattern = STAGES[stage]
        if pattern is None:
            return any(self.storage.glob("train/*/checkpoint_*"))
        return bool(pattern.search(self.log.read_text()))

    def end(self, seconds: float) -> int | None:
        """Wait for the driver, and return its exit code; None where it had to be killed."""
        assert self.process
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            return None


def raylet(machine: Machine, trial: Trial) -> str:
    """Kill one node's raylet; its workers go with it."""
    return kill_one(machine.busiest, lambda line: "raylet/raylet" in line.split()[0])


def node(machine: Machine, trial: Trial) -> str:
    """Kill all processes of a node."""
    end_processes(machine.busiest[0])
    return "a node"


def worker(machine: Machine, trial: Trial) -> str:
    """Kill a worker that runs a task."""
    return kill_one(machine.nodes, TASK.match)


def rank(machine: Machine, trial: Trial) -> str:
    """Kill a training rank."""
    return kill_one(machine.nodes, RANK.match)


def driver(machine: Machine, trial: Trial) -> str:
    """Kill the driver."""
    assert trial.process
    trial.process.kill()
    return "the driver"


def interrupt(machine: Machine, trial: Trial) -> str:
    """Press Ctrl-C."""
    assert trial.process
    trial.process.send_signal(signal.SIGINT)
    return "the driver, by SIGINT"


def head(machine: Machine, trial: Trial) -> str:
    """Kill all processes of the head, and the driver, which runs there."""
    assert trial.process
    end_processes(machine.head.session)
    trial.process.kill()
    return "head and driver"


def gcs(machine: Machine, trial: Trial) -> str:
    """Kill the control store alone; Ray ends the head for it, and the driver finds that out by itself."""
    return kill_one([machine.head.session], lambda line: "gcs_server" in line)


def drain(machine: Machine, trial: Trial) -> str:
    """Give notice of preemption, 25 s ahead, to a node with ranks."""
    identity = machine.node_id(machine.busiest[0])
    command = ["drain-node", "--node-id", identity, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot reclaim"]
    done = machine.head.run(
        ROOT / ".venv/bin/ray", *command, "--deadline-remaining-seconds", "25", timeout=60, RAY_ADDRESS=machine.head.address
    )
    return "notice to a node" if done.returncode == 0 else f"refused: {done.stderr[-200:]}"


def read_only(machine: Machine, trial: Trial) -> str:
    """Make the storage read-only for a while, for whoever opens a file: a mount that is written to stays, so another lies over it."""
    assert trial.mount
    place = str(trial.mount)
    for command in (["--bind", place, place], ["-o", "remount,bind,ro", place]):
        subprocess.run(["mount", *command], check=True)
    trial.mend = ["umount", "--lazy", place]
    return "storage is read-only"


def full(machine: Machine, trial: Trial) -> str:
    """Fill the storage."""
    assert trial.mount
    with suppress(OSError), open(trial.mount / "filler", "wb") as stream:
        while True:
            stream.write(b"\0" * 65536)
            stream.flush()
    trial.mend = ["rm", str(trial.mount / "filler")]
    return "storage is full"


FAULTS: dict[str, Callable[[Machine, Trial], str]] = {
    "raylet": raylet,
    "node": node,
    "worker": worker,
    "rank": rank,
    "driver": driver,
    "Ctrl-C": interrupt,
    "head": head,
    "GCS alone": gcs,
    "drain notice": drain,
    "read-only storage": read_only,
    "full storage": full,
}
NEED_MOUNT = ("read-only storage", "full storage")
IN_DATA = ("raylet", "node", "worker", "driver", "Ctrl-C", "head", "GCS alone", "read-only storage", "full storage")
IN_SWEEP = tuple(name for name in FAULTS if name != "worker")
