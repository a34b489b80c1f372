"""One command for a job on a cluster: `sft-diversity submit CONFIG [key=value …] [--cluster cluster.yaml --up --down]`.

The configuration is read here, where its relative paths mean something, and travels with the code in a folder of its own. The log is
followed until the work ends, and the exit code is the work's. `--up` starts the cluster of a cluster file first, `--down` ends it
once the work has ended, well or not: what is sealed lies in the storage, and the same command goes on from there. Where it isn't known
whether the work has ended, or other jobs run there, the cluster stays.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import aiohttp
import yaml
from ray.job_submission import JobStatus, JobSubmissionClient

from diversity.config import UserError
from ray_jobs.job.experiment import STAGES, Experiment, load_experiment, resolved_values
from ray_jobs.job.process import PACKAGES
from ray_jobs.job.runtime import INTERRUPTED, tool

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
CONFIG = "experiment.yaml"
TUNNEL_S = 120.0  # until a head that is up lets its dashboard be reached
AGENT_S = 120.0  # until a head that has just started takes jobs
LOST_S = 120.0  # without an answer, after which the head counts as lost
AGAIN_S = 2.0  # between two tries of a tunnel
NOT_KNOWN = "it isn't known whether other jobs run there"
BROKEN = (OSError, RuntimeError, aiohttp.ClientError)  # what the client raises, as it finds no or half an answer


class HeadLost(UserError):
    """The dashboard answers no more: what became of the job can't be known."""


class Refused(UserError):
    """The head doesn't take the job."""


def pack(values: dict[str, Any], folder: Path) -> None:
    """Write what a job takes along: our packages as they are here, and the configuration with all paths resolved."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    (folder / CONFIG).write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), "utf-8")


def send(client: JobSubmissionClient, experiment: Experiment, stage: str, folder: Path, name: str) -> str:
    """Submit the job and return its id; a head that has just started refuses for a while, and a connection that breaks is made again.

    Raises:
        Refused: for another reason, or for too long.
        HeadLost: no answer came, so that the job may have been taken.
    """
    deadline, unanswered = time.monotonic() + AGENT_S, False
    about = {"experiment": experiment.experiment, "storage": experiment.storage, "stage": stage}
    while True:
        try:
            return client.submit_job(
                entrypoint=f"python -m ray_jobs.{stage} {CONFIG}",
                runtime_env={"working_dir": str(folder)},
                submission_id=name,
                metadata=about,
            )
        except OSError as error:
            unanswered = True
            if time.monotonic() > deadline:
                raise HeadLost(f"the head did not answer whether it takes {name}: {_short(error)}") from None
        except RuntimeError as error:
            if unanswered and "already exists" in str(error):
                return name
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise Refused(f"the job is refused: {_short(error)}") from None
        time.sleep(2)


def follow(client: JobSubmissionClient, job: str, write: Callable[[str], object], lost_s: float = LOST_S) -> int:
    """Hand on the job's log until it ends, and return its exit code. A broken connection is made again, and the log goes on where it was.

    Raises:
        HeadLost: whatever was asked of the dashboard for `lost_s` seconds, it did not answer.
    """
    written = 0
    failing: float | None = None  # since when no answer comes, or of an ended job no whole log

    async def tail() -> bool:
        nonlocal written
        seen = 0
        async for chunk in client.tail_job_logs(job):
            new = chunk[max(0, written - seen) :]
            seen += len(chunk)
            if new:
                write(new)
                written += len(new)
        return True

    while True:
        whole = False
        with suppress(*BROKEN):
            whole = asyncio.run(tail())
        since = time.monotonic() if failing is None else failing
        late = time.monotonic() - since > lost_s
        try:
            info = client.get_job_info(job)
            failing = since if info.status.is_terminal() else None
            if info.status.is_terminal() and (whole or late):
                return exit_code(info.status, info.driver_exit_code)
        except BROKEN as error:
            failing = since
            if late:
                raise HeadLost(
                    f"the head has not answered for {lost_s:.0f} s ({_short(error)}); if it is gone, start one and submit the same again: "
                    "what is sealed is skipped"
                ) from None
        time.sleep(1)


def exit_code(status: JobStatus, driver: int | None) -> int:
    """Return the exit code of the work: its driver's own, where Ray knows it."""
    if status == JobStatus.SUCCEEDED:
        return 0
    if driver:
        return driver if driver > 0 else 128 - driver  # as a shell has it, where a signal ended the driver
    return INTERRUPTED if status == JobStatus.STOPPED else 1


def others_at_work(client: JobSubmissionClient) -> str:
    """Return in words which jobs haven't ended on a head, where ours doesn't run; "" if there are none."""
    try:
        names = [str(one.submission_id or one.job_id) for one in client.list_jobs() if not one.status.is_terminal()]
    except BROKEN:
        return NOT_KNOWN
    return f"other jobs run there ({', '.join(names)})" if names else ""


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def ray_command(*arguments: str, cluster: Path) -> tuple[list[str], dict[str, str]]:
    """Return a command of Ray's launcher and its environment, in which the provider beside the cluster file can be imported."""
    beside = Path(sys.executable).with_name("ray")
    providers = [str(cluster.resolve().parent / "cluster"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, providers))}
    return [str(beside) if beside.exists() else "ray", *arguments], environment


def launcher(*arguments: str, cluster: Path) -> None:
    """Run Ray's launcher.

    Raises:
        UserError: it failed; what it said stands above.
    """
    command, environment = ray_command(*arguments, cluster=cluster)
    if code := subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=False).returncode:
        raise UserError(f"{' '.join(['ray', *arguments])} ended with {code}")


def is_up(cluster: Path) -> bool:
    """Return whether a cluster's head is set up. Ray's launcher would set it up once more, and end all jobs there."""
    command, environment = ray_command("get-head-ip", str(cluster), cluster=cluster)
    return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0


@contextmanager
def tunnel(cluster: Path) -> Iterator[str]:
    """Have the dashboard of a cluster's head on a free port of this machine, through SSH, made again when it ends; yields its address."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command, environment = ray_command("dashboard", str(cluster), "--port", str(port), cluster=cluster)
    done = threading.Event()
    keeper = threading.Thread(target=_keep, args=(command, environment, done), name="tunnel", daemon=True)
    heeded = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores one
    before = {number: signal.signal(number, _exit) for number in heeded}  # else SSH would outlive this process
    keeper.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        done.set()
        keeper.join()
        for number, handler in before.items():
            signal.signal(number, handler)


def _keep(command: Sequence[str], environment: dict[str, str], done: threading.Event) -> None:
    """Run a command again and again, and tell what it said where it ended by itself; once `done` is set, end it and all that it started."""
    told = ""
    while not done.is_set():
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True
            )
            while process.poll() is None and not done.wait(0.2):
                pass
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)  # Ray's command leaves its SSH behind
            process.wait()
            said.seek(0)
            lines = said.read().decode(errors="replace").split("\n")
        if not done.is_set() and told != (told := " | ".join(line.strip() for line in lines if line.strip())[-600:]):
            logger.warning("the way to the head ended, and is made again: %s", told or "it said nothing")
        done.wait(AGAIN_S)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def connect(address: str, wait_s: float = 0) -> JobSubmissionClient:
    """Return a client of the head's dashboard.

    Raises:
        UserError: nobody answers there, or the token isn't the cluster's.
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return JobSubmissionClient(address)
        except Exception as error:  # the client raises whatever its HTTP library, Ray's authentication or its own checks raise
            if time.monotonic() > deadline or "uthenticat" in str(error):
                raise UserError(f"{address}: {_first(error)}") from None
        time.sleep(2)


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def run_there(given: argparse.Namespace, address: str, wait_s: float) -> int:
    """Submit what the command line asks for, and return the exit code of the work; `given.stays` says why the cluster may not end."""
    values = resolved_values(given.config, given.overrides, inside_job=False)
    experiment = load_experiment(given.config, given.overrides, inside_job=False)
    client = connect(address, wait_s)
    name = given.name or f"{experiment.experiment}-{time.strftime('%Y%m%d-%H%M%S')}"
    with tempfile.TemporaryDirectory(prefix="sft-diversity-") as folder:
        pack(values, Path(folder))
        given.stays = "the work may go on"
        try:
            job = send(client, experiment, given.stage, Path(folder), name)
        except Refused:
            given.stays = others_at_work(client) if given.down else ""
            raise
    logger.info("%s runs on %s; ray job stop %s ends it", job, address, job)
    if given.detach:
        return 0
    try:
        code = follow(client, job, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        print(f"\nsubmit: {job} goes on; ray job logs -f {job} follows it, ray job stop {job} ends it", file=sys.stderr)
        return INTERRUPTED
    given.stays = others_at_work(client) if given.down else ""
    return code


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = argparse.ArgumentParser(prog="sft-diversity submit", description="Run an experiment on a cluster, and follow it.")
    made.add_argument("config", type=Path, help="the experiment's YAML file")
    made.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys with YAML values; paths are this machine's")
    made.add_argument("--stage", default="pipeline", choices=["pipeline", *STAGES], help="one stage in place of all")
    made.add_argument("--address", help="the dashboard's URL (default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265)")
    made.add_argument("--cluster", type=Path, metavar="FILE", help="a cluster file of `ray up`: its head is reached through SSH")
    made.add_argument("--up", action="store_true", help="start that cluster first; one that is up already is kept as it is")
    made.add_argument(
        "--down", action="store_true", help="end that cluster when the work is known to have ended, and no other job runs there"
    )
    made.add_argument("--name", help="the job's id (default: experiment and time)")
    made.add_argument("--detach", action="store_true", help="return as soon as the job is taken")
    return made


@tool("submit")
def main(argv: Sequence[str] | None = None) -> int:
    """Submit, follow, and leave nothing behind that was not asked for."""
    made = parser()
    given = made.parse_intermixed_args(argv)
    if (given.up or given.down) and not given.cluster:
        made.error("--up and --down need --cluster FILE")
    if given.down and given.detach:
        made.error("--down waits for the end of the work, and --detach does not")
    if given.cluster and not given.cluster.exists():
        raise UserError(f"there is no cluster file {given.cluster}")
    load_experiment(given.config, given.overrides, inside_job=False)  # before anything is paid for
    up = given.cluster is not None and is_up(given.cluster)
    if given.cluster and not (up or given.up or given.address):
        raise UserError(f"no head of {given.cluster} is up; add --up, which starts one")
    given.stays = NOT_KNOWN if up and given.down else ""
    try:
        if given.up and not up:
            launcher("up", "-y", str(given.cluster), cluster=given.cluster)
        if given.cluster and not given.address:
            with tunnel(given.cluster) as address:
                code = run_there(given, address, TUNNEL_S)
        else:
            code = run_there(given, given.address or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265", 0)
    finally:
        if given.stays and given.cluster:
            print(f"submit: {given.stays}, so the cluster stays, and costs; ray down {given.cluster} ends it", file=sys.stderr)
        elif given.down:
            launcher("down", "-y", str(given.cluster), cluster=given.cluster)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
