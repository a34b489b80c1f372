"""A real cluster of three raylets on this machine: its processes, and how it is made whole again."""

from __future__ import annotations

import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

import psutil

from tests.ray_jobs.heads import ALONE, Head, joined_node, running_head

KEEPALIVE = {"RAY_grpc_client_keepalive_time_ms": "10000", "RAY_grpc_client_keepalive_timeout_ms": "10000"}
RANK, TASK = re.compile(r"^ray::.*TrainWorker"), re.compile(r"^ray::(?!IDLE|_|.*(TrainWorker|Controller|Act|Agent))")


@dataclass
class Machine:
    """A head with one CPU for drivers and two nodes of two CPUs, all on this machine; what a fault took is started again."""

    head: Head
    nodes: list[int]
    stack: ExitStack
    variables: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def start(cls, nodes: int = 2, variables: Mapping[str, str] | None = None) -> Machine:
        """Start head and nodes; a start that failed on a busy machine is tried once more."""
        environment = {**KEEPALIVE, **ALONE, "OMP_NUM_THREADS": "1", **(variables or {})}
        for attempt in range(2):
            stack = ExitStack()
            try:
                head = stack.enter_context(running_head(["--num-cpus", "1", "--resources", '{"driver": 1}'], environment))
                return cls(head, [stack.enter_context(joined_node(head, node_options(head))) for _ in range(nodes)], stack, environment)
            except (RuntimeError, TimeoutError):
                stack.close()
                if attempt:
                    raise
        raise AssertionError

    def repair(self) -> None:
        """Have a whole cluster again: a new one if the head is gone, else nodes for those that are gone."""
        if not any(b"gcs_server" in line for line in self.commands(self.head.session)):
            self.stack.close()
            new = Machine.start(len(self.nodes), self.variables)
            self.head, self.nodes, self.stack = new.head, new.nodes, new.stack
            return
        for place, node in enumerate(self.nodes):
            if not any(b"raylet/raylet" in line for line in self.commands(node)):
                end_processes(node)
                self.nodes[place] = self.stack.enter_context(joined_node(self.head, node_options(self.head)))

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


def node_options(head: Head) -> list[str]:
    """Return a node's options: two CPUs and, as on a machine of its own, its own folder: in one, nodes delete each other's code."""
    return ["--num-cpus", "2", "--temp-dir", f"{head.folder}/{secrets.token_hex(2)}"]


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
