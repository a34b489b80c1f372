"""Faults on a real cluster of three raylets: what each breaks, at which moment, and how the work is brought to its end afterwards.

`Trial` is one experiment: the pipeline (data stages, then one run on two ranks) on a storage of its own, one fault while a stage works, the
cluster repaired, the same command again if it failed; and the question whether the same bytes and losses are there as without the fault.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.cluster import tiny
from tests.ray_jobs.heads import ROOT, Head, joined_node, running_head

KEEPALIVE = {"RAY_grpc_client_keepalive_time_ms": "10000", "RAY_grpc_client_keepalive_timeout_ms": "10000"}
PATIENCE = float(os.environ.get("CLUSTER_TEST_PATIENCE", "1"))  # larger on a machine that is busy with other things
# What a driver's log, or the storage, shows once a stage is at work.
STAGES = {
    "ingest": re.compile(r"ingest: \d+ inputs"),
    "profile": re.compile(r"profile_corpus: \d+ artifacts"),
    "build": re.compile(r"\d+ datasets: \d+ to build"),
    "sweep": None,  # the first checkpoint
}
RANK, TASK = re.compile(r"^ray::.*TrainWorker"), re.compile(r"^ray::(?!IDLE|.*TrainWorker|.*Controller|.*Actor)")
Losses = dict[str, list[float]]


@dataclass
class Machine:
    """A head with one CPU for drivers and two nodes of two CPUs, all on this machine; what a fault took is started again."""

    head: Head
    nodes: list[int]
    stack: ExitStack

    @classmethod
    def start(cls, nodes: int = 2) -> Machine:
        """Start head and nodes; a start that failed on a busy machine is tried once more."""
        for attempt in range(2):
            stack = ExitStack()
            try:
                head = stack.enter_context(
                    running_head(["--num-cpus", "1", "--resources", '{"driver": 1}'], {**KEEPALIVE, "OMP_NUM_THREADS": "1"})
                )
                return cls(head, [stack.enter_context(joined_node(head, ["--num-cpus", "2"])) for _ in range(nodes)], stack)
            except (RuntimeError, TimeoutError):
                stack.close()
                if attempt:
                    raise
        raise AssertionError

    def repair(self) -> None:
        """Have a whole cluster again: a new one if the head is gone, else nodes for those that are gone."""
        if not any(b"gcs_server" in line for line in self.commands(self.head.session)):
            self.stack.close()
            new = Machine.start(len(self.nodes))
            self.head, self.nodes, self.stack = new.head, new.nodes, new.stack
            return
        for place, node in enumerate(self.nodes):
            if not any(b"raylet/raylet" in line for line in self.commands(node)):
                end_processes(node)
                self.nodes[place] = self.stack.enter_context(joined_node(self.head, ["--num-cpus", "2"]))

    def commands(self, session: int) -> list[bytes]:
        """Return the command lines of a session's processes."""
        return [" ".join(process.cmdline()).encode() for process in processes(session)]

    @property
    def busiest(self) -> list[int]:
        """Return the nodes' sessions, those with training ranks first."""
        return sorted(self.nodes, key=lambda session: not any(RANK.match(line.decode()) for line in self.commands(session)))

    def node_id(self, session: int) -> str:
        """Return a node's id: Ray knows the port on which its raylet listens."""
        (raylet,) = [one for one in processes(session) if "raylet/raylet" in one.cmdline()[0]]
        ports = {one.laddr.port for one in raylet.net_connections() if one.status == psutil.CONN_LISTEN}
        program = (
            "import ray; ray.init(logging_level='ERROR', log_to_driver=False); "
            f"print(*[n['NodeID'] for n in ray.nodes() if n['NodeManagerPort'] in {ports}])"
        )
        return self.head.run(sys.executable, "-c", program, timeout=120, RAY_ADDRESS=self.head.address).stdout.strip()


def processes(session: int) -> list[psutil.Process]:
    """Return the living processes of a session."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE and process.cmdline():
                found.append(process)
    return found


def end_processes(session: int) -> None:
    """SIGKILL every process of a session: a machine that is gone."""
    for process in processes(session):
        with suppress(psutil.Error):
            process.kill()


def kill_one(sessions: list[int], wanted: Callable[[str], object]) -> str:
    """SIGKILL the first process whose command line is wanted, and return what it was; "" if there is none just now."""
    for _ in range(40):
        for session in sessions:
            for process in processes(session):
                with suppress(psutil.Error):
                    if wanted(line := " ".join(process.cmdline())):
                        process.kill()
                        return line.split()[0].rpartition("/")[2]
        time.sleep(0.1)
    return ""


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
    """Make the storage read-only for a while."""
    assert trial.mount
    subprocess.run(["mount", "-o", "remount,ro", str(trial.mount)], check=False)
    trial.mend = ["mount", "-o", "remount,rw", str(trial.mount)]
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
            self.process = subprocess.Popen(self.command, cwd=ROOT, env=environment, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL)

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
    losses_equal: bool

    @property
    def sound(self) -> bool:
        """Return whether all is as without the fault."""
        return self.data_equal and self.losses_equal

    def row(self) -> dict[str, object]:
        """Return it for a table."""
        ended = {0: "went on", None: "hung, was killed"}.get(self.first, f"ended with {self.first}")
        same = {True: "equal", False: "DIFFERENT"}
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

    @classmethod
    def lay(cls, folder: Path) -> Ground:
        """Make inputs and model."""
        return cls(folder, tiny.make_corpus(folder / "corpus"), tiny.make_model(folder / "model"))

    def trial(self, name: str, mount: Path | None = None, begun: bool = False) -> Trial:
        """Return a new trial on storage of its own: an empty one, or one where the data stages are sealed."""
        storage = (mount or self.folder) / f"{name}-{secrets.token_hex(3)}"
        if begun:
            shutil.copytree(self.folder / "begun", storage)
        resources = "resources={data_workers: 4, max_cpus: 5, driver_resource: true, shared_storage: true, wait_s: 300}"
        arguments = tiny.experiment(storage, self.corpus, self.model, steps=48)
        more = ["grid.train=[response-micro_n24_l000_s0]", "sft.checkpoint_every=6", "evaluation.heldout.out=null"]
        stages = "stages=[ingest, heldout, profile_corpus, build_datasets, sweep]"
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

    def run(self, machine: Machine, stage: str, fault: str, delay: float, mount: Path | None = None) -> Outcome:
        """Run a trial: the fault comes `delay` seconds after the stage has begun its work."""
        trial, began = self.trial(fault.replace(" ", "-"), mount, begun=stage == "sweep"), time.time()
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
        return Outcome(
            stage, fault, hit, first, starts, seconds, tiny.data_hash(trial.storage) == self.data, tiny.losses(trial.storage) == self.losses
        )


@contextmanager
def mounted(folder: Path, megabytes: int = 48) -> Iterator[Path]:
    """Have a file system of its own in memory; needs root."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)
