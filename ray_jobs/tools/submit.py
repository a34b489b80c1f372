"""One command for a job on a cluster: `sft-diversity submit CONFIG [key=value …] [--cluster cluster.yaml --up --down]`.

The configuration is read here, where its relative paths mean something, and travels with the code in a folder of its own. The log is
followed until the work ends, and the exit code is the work's. `--up` starts the cluster of a cluster file first, `--down` ends it
afterwards, whatever came of the work: what is sealed lies in the storage, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


class HeadLost(UserError):
    """The dashboard answers no more: what became of the job can't be known."""


def pack(values: dict[str, Any], folder: Path) -> None:
    """Write what a job takes along: our packages as they are here, and the configuration with all paths resolved."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    (folder / CONFIG).write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), "utf-8")


def send(client: JobSubmissionClient, experiment: Experiment, stage: str, folder: Path, name: str) -> str:
    """Submit the job and return its id; a head that has just started refuses for a while.

    Raises:
        UserError: it is refused for another reason, or for too long.
    """
    deadline = time.monotonic() + AGENT_S
    about = {"experiment": experiment.experiment, "storage": experiment.storage, "stage": stage}
    while True:
        try:
            return client.submit_job(
                entrypoint=f"python -m ray_jobs.{stage} {CONFIG}",
                runtime_env={"working_dir": str(folder)},
                submission_id=name,
                metadata=about,
            )
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise UserError(f"the job is refused: {_short(error)}") from None
        time.sleep(2)


def follow(client: JobSubmissionClient, job: str, write: Callable[[str], object], lost_s: float = LOST_S) -> int:
    """Hand on the job's log until it ends, and return its exit code. A broken connection is made again, and the log goes on where it was.

    Raises:
        HeadLost: the dashboard has not answered for `lost_s` seconds.
    """
    written, answered = 0, time.monotonic()

    async def tail() -> None:
        nonlocal written, answered
        seen = 0
        async for chunk in client.tail_job_logs(job):
            answered = time.monotonic()
            new = chunk[max(0, written - seen) :]
            seen += len(chunk)
            if new:
                write(new)
                written += len(new)

    while True:
        try:
            asyncio.run(tail())
            info = client.get_job_info(job)
            answered = time.monotonic()
            if info.status.is_terminal():
                return exit_code(info.status, info.driver_exit_code)
        except (ConnectionError, RuntimeError, OSError) as error:  # what the client raises, as it finds no or half an answer
            if time.monotonic() - answered > lost_s:
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


@contextmanager
def tunnel(cluster: Path) -> Iterator[str]:
    """Have the dashboard of a cluster's head on a free port of this machine, through SSH; yields its address."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command, environment = ray_command("dashboard", str(cluster), "--port", str(port), cluster=cluster)
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


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
    """Submit what the command line asks for to a head, and return the exit code of the work."""
    values = resolved_values(given.config, given.overrides, inside_job=False)
    experiment = load_experiment(given.config, given.overrides, inside_job=False)
    client = connect(address, wait_s)
    name = given.name or f"{experiment.experiment}-{time.strftime('%Y%m%d-%H%M%S')}"
    with tempfile.TemporaryDirectory(prefix="sft-diversity-") as folder:
        pack(values, Path(folder))
        job = send(client, experiment, given.stage, Path(folder), name)
    logger.info("%s runs on %s; ray job stop %s ends it", job, address, job)
    if given.detach:
        return 0
    try:
        return follow(client, job, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        stays = " and the cluster stays, and costs" if given.cluster else ""
        print(f"\nsubmit: {job} goes on{stays}; ray job logs -f {job} follows it, ray job stop {job} ends it", file=sys.stderr)
        given.down = False
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = argparse.ArgumentParser(prog="sft-diversity submit", description="Run an experiment on a cluster, and follow it.")
    made.add_argument("config", type=Path, help="the experiment's YAML file")
    made.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys with YAML values; paths are this machine's")
    made.add_argument("--stage", default="pipeline", choices=["pipeline", *STAGES], help="one stage in place of all")
    made.add_argument("--address", help="the dashboard's URL (default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265)")
    made.add_argument("--cluster", type=Path, metavar="FILE", help="a cluster file of `ray up`: its head is reached through SSH")
    made.add_argument("--up", action="store_true", help="start that cluster first; one that is up already is kept")
    made.add_argument("--down", action="store_true", help="end that cluster when the work has ended, well or not")
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
    try:
        if given.up:
            launcher("up", "-y", str(given.cluster), cluster=given.cluster)
        if given.cluster and not given.address:
            with tunnel(given.cluster) as address:
                code = run_there(given, address, TUNNEL_S)
        else:
            code = run_there(given, given.address or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265", 0)
    except HeadLost:
        given.down = False  # perhaps only the way there is broken, and the work goes on
        raise
    finally:
        if given.down:
            launcher("down", "-y", str(given.cluster), cluster=given.cluster)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
