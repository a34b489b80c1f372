"""A Ray head of a test's own: its own ports, temporary folder, token and processes, beside any other Ray of the machine."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARIES = Path(sys.executable).parent
RAY = BINARIES / "ray"
# A node that is one of several on a machine must not kill its work for the memory that something else takes.
ALONE = {"RAY_memory_monitor_refresh_ms": "0"}
INHERITED = ("RAY_", "PYTEST_")  # an address, a token or an authentication mode of the machine must not reach the head


heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # for a child: a shell has SIGINT ignored in what it runs in the background


@dataclass
class Head:
    """A running head.

    Attributes:
        address: of its control store, for drivers and nodes.
        dashboard: URL that jobs are submitted to.
        environment: of its own processes and of clients that may use it.
        folder: holds the token and, under `ray/`, what Ray writes.
        log: what `ray start` said.
        session: id of the session of its processes.
    """

    address: str
    dashboard: str
    environment: dict[str, str]
    folder: Path
    log: Path
    session: int = 0

    def run(self, *command: str | Path, timeout: float, **changes: str | None) -> subprocess.CompletedProcess[str]:
        """Run a command as a client of this head, in the repository; keyword arguments set or, as None, unset variables."""
        environment = {**self.environment, **{name: value for name, value in changes.items() if value is not None}}
        for name in [name for name, value in changes.items() if value is None]:
            environment.pop(name, None)
        return subprocess.run(
            [str(part) for part in command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now, above those of Ray's workers and below those that systems lend to outgoing connections.

    One that the system itself hands out could be lent to any other process's connection before the server that it is for has it.
    """
    with ExitStack() as sockets:
        found: list[int] = []
        while len(found) < count:
            port, one = 20_000 + secrets.randbelow(12_768), sockets.enter_context(socket.socket())
            with suppress(OSError):
                one.bind(("", port))
                found.append(port)
        return found


@contextmanager
def running_head(options: Sequence[str] = (), variables: dict[str, str] | None = None, port: int | None = None) -> Iterator[Head]:
    """Start a head with token authentication, wait until it answers, and end all of its processes afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="head-", dir="/tmp"))  # short: Ray's sockets lie in it, and their paths may have 107 bytes
    token = folder / "token"
    token.write_text(secrets.token_hex(16))
    token.chmod(0o600)
    gcs, dashboard, client, *others = free_ports(9)
    gcs = port or gcs
    environment = {name: value for name, value in os.environ.items() if not name.startswith(INHERITED)}
    environment |= {
        "PATH": f"{BINARIES}:{environment.get('PATH', '')}",  # a job's entrypoint is a shell command: its `python` is the head's
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # by default 15: a worker would wait until other tests leave it a core
        **(variables or {}),
    }
    names = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port", "runtime-env-agent-port")
    numbers = [option for name, number in zip(names, others, strict=False) for option in (f"--{name}", str(number))]
    ports = ["--port", str(gcs), "--dashboard-port", str(dashboard), "--ray-client-server-port", str(client), *numbers]
    log = folder / "start.log"
    try:
        with _ray_start(["--head", "--temp-dir", str(folder / "ray"), *ports, *options], folder, environment, log) as starter:
            yield Head(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", environment, folder, log, starter.pid)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def joined_node(head: Head, options: Sequence[str] = ()) -> Iterator[int]:
    """Join a node, a raylet of its own on this machine, to a head; yield the session of its processes, and end them afterwards."""
    log = head.folder / f"node-{secrets.token_hex(4)}.log"
    with _ray_start(["--address", head.address, *options], head.folder, head.environment, log) as starter:
        yield starter.pid


@contextmanager
def _ray_start(options: Sequence[str], folder: Path, environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `ray start --block` in a session of its own, wait until it says that it runs, and end that session afterwards."""
    command = [str(RAY), "start", "--block", *options]
    with log.open("w") as stream:
        starter = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        wait_for(lambda: "Ray runtime started" in log.read_text() or starter.poll() is not None, 120, f"ray start: {log.read_text()}")
        if starter.poll() is not None:
            raise RuntimeError(f"ray start ended with {starter.returncode}: {log.read_text()}")
        yield starter
    finally:
        end_session(starter)


def wait_for(true: Callable[[], object], seconds: float, what: str, pause: float = 0.25) -> None:
    """Wait until a function returns something true.

    Raises:
        TimeoutError: it didn't within the seconds.
    """
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:.0f} s: {what}")
        time.sleep(pause)


def end_session(starter: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads a session of its own, with all that it started and nothing else (`ray stop` ends every Ray there is)."""
    with suppress(ProcessLookupError):
        os.killpg(starter.pid, signal.SIGKILL)
    starter.wait(10)
    for stat in Path("/proc").glob("[0-9]*/stat"):  # Ray's workers have groups of their own; without /proc they go when they notice
        with suppress(OSError):
            session = stat.read_text().rpartition(")")[2].split()[3]
            if session == str(starter.pid):
                os.kill(int(stat.parent.name), signal.SIGKILL)
