"""`submit --up --down` with cluster/ssh.yaml on three machines behind real sshd, from no cluster to a finished sweep and back to none; and
the script of cluster/skypilot.yaml on two of them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_jobs.job.experiment import resolved_values
from tests.cluster import tiny
from tests.cluster.ground import PATIENCE
from tests.cluster.hosts import Hosts, running_hosts
from tests.ray_jobs.heads import ROOT, wait_for

RESOURCES = "resources={data_workers: 4, max_cpus: 6, driver_resource: true, shared_storage: true, wait_s: 300}"


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    if os.geteuid() != 0 or not shutil.which("rsync") or not shutil.which("sshd", path="/usr/sbin"):
        pytest.skip("needs root, sshd and rsync: apt-get install --no-install-recommends openssh-server rsync")
    with running_hosts(tmp_path / "hosts") as hosts:
        tiny.make_corpus(hosts.shared / "corpus")
        tiny.make_model(hosts.shared / "model")
        yield hosts


def submitted(hosts: Hosts, name: str, storage: str, *more: str) -> tuple[subprocess.Popen[bytes], Path]:
    """Start `submit` as somebody at another machine would, with a home of his own; return it, and what it says."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(hosts.token), "RAY_USAGE_STATS_ENABLED": "0"}
    environment = {**kept, **token, "HOME": str(hosts.home), "RAY_TMPDIR": str(hosts.home)}  # Ray's launcher keeps its state in the latter
    command = [sys.executable, "-m", "ray_jobs.tools.submit", *experiment(storage, Path("/storage")), RESOURCES]
    log = hosts.home / f"{name}.log"
    with log.open("wb") as stream:
        given: dict[str, Any] = {"cwd": ROOT, "env": environment, "stdin": subprocess.DEVNULL, "stdout": stream, "stderr": stream}
        return subprocess.Popen([*command, "--cluster", str(hosts.cluster_file), "--name", name, *more], **given), log


def experiment(storage: Path | str, shared: Path) -> list[str]:
    return [tiny.CONFIG, *tiny.experiment(storage, shared / "corpus", shared / "model"), tiny.ALL_STAGES, "evaluation.heldout.out=null"]


def test_from_no_cluster_to_a_finished_sweep_and_back(hosts: Hosts, tmp_path: Path, table: Any) -> None:
    """A second job finds the cluster up, leaves it as it is, and doesn't end it under the first one."""
    began = time.monotonic()
    first, said = submitted(hosts, "first", "/storage/runs", "--up")
    jobs = [first]
    try:
        wait_for(lambda: "profile_corpus: done" in said.read_text() or first.poll() is not None, 300 * PATIENCE, "a stage")
        assert first.poll() is None, said.read_text()[-6000:]
        up = time.monotonic() - began
        second, also_said = submitted(hosts, "second", "/storage/other", "--up", "--down", "--stage", "ingest")
        jobs.append(second)
        assert second.wait(300 * PATIENCE) == 0, also_said.read_text()[-6000:]
        wait_for(lambda: tiny.checkpoints(hosts.shared / "runs") or first.poll() is not None, 300 * PATIENCE, "a checkpoint")
        nodes = hosts.nodes()
        assert first.wait(600 * PATIENCE) == 0, said.read_text()[-6000:]
        work = time.monotonic() - began
        third, told = submitted(hosts, "third", "/storage/runs", "--down")
        jobs.append(third)
        assert third.wait(300 * PATIENCE) == 0, told.read_text()[-6000:]
    finally:
        for job in jobs:
            job.kill()
    alone = [sys.executable, "-m", "ray_jobs.pipeline", *experiment(tmp_path / "alone", hosts.shared)]
    subprocess.run(alone, cwd=ROOT, check=True, capture_output=True)
    same = {True: "equal", False: "DIFFERENT"}
    row = {
        "machines with Ray": nodes,
        "command to the first sealed stages, s": up,
        "to a finished sweep, s": work,
        "data": same[tiny.data_hash(hosts.shared / "runs") == tiny.data_hash(tmp_path / "alone")],
        "losses": same[tiny.losses(hosts.shared / "runs") == tiny.losses(tmp_path / "alone")],
        "machines with Ray after --down": hosts.nodes(),
    }
    table("submit --up --down with cluster/ssh.yaml: sshd and rsync are real, docker is a stand-in", [row])
    assert nodes == 3 and hosts.nodes() == 0 and row["data"] == row["losses"] == "equal"
    assert "submit: other jobs run there (first), so the cluster stays" in also_said.read_text()
    assert "3 of 3 sealed already" in told.read_text() or "0 to do" in told.read_text(), told.read_text()[-3000:]
    assert hosts.token.read_text() not in said.read_text() + also_said.read_text() + told.read_text()


def test_the_skypilot_task_on_two_machines(hosts: Hosts, table: Any) -> None:
    """Its script, as SkyPilot runs it on every node at once; what SkyPilot itself has there is not."""
    task = yaml.safe_load((ROOT / "cluster" / "skypilot.yaml").read_text("utf-8"))
    overrides = [*experiment("/storage/runs", Path("/storage"))[1:], RESOURCES]
    values = resolved_values(ROOT / tiny.CONFIG, overrides, inside_job=False)
    (hosts.shared / "experiment.yaml").write_text(yaml.safe_dump(values), "utf-8")
    given = {"CONFIG": "/storage/experiment.yaml", "STORAGE": "/storage/runs", "CORPUS": "/storage/corpus"}
    nodes = {"SKYPILOT_NODE_IPS": "\n".join(hosts.addresses[:2]), "SKYPILOT_NUM_NODES": "2", "RAY_AUTH_TOKEN": hosts.token.read_text()}
    running = []
    try:
        for rank in range(2):
            variables = {**task["envs"], **given, **nodes, "SKYPILOT_NODE_RANK": str(rank)}
            told = " ".join(f"-e {name}={shlex.quote(value)}" for name, value in variables.items())
            hosts.at(rank, f"docker run --name sky -v /srv/sft-diversity:/storage {told} image bash").wait(60)
            script = shlex.quote(f"cd {ROOT} && {{ {task['run']}\n}}")
            running.append(hosts.at(rank, f"docker exec sky bash -c {script}"))
        head, worker = running
        wait_for(lambda: tiny.checkpoints(hosts.shared / "runs") or head.poll() is not None, 300 * PATIENCE, "a checkpoint")
        at_work = hosts.nodes()
        codes = [head.wait(300 * PATIENCE), worker.wait(120 * PATIENCE)]
    finally:
        for process in running:
            process.kill()
    ended = time.monotonic()
    wait_for(lambda: not hosts.nodes(), 120 * PATIENCE, "the worker's raylet, which looks for its head for a minute")
    said = [(hosts.home / f"at-{rank}.log").read_text() for rank in range(2)]
    runs = len(tiny.losses(hosts.shared / "runs"))
    row = {"machines with Ray": at_work, "runs sealed": runs, "exit codes": codes, "then to no Ray, s": time.monotonic() - ended}
    table("the script of cluster/skypilot.yaml", [row])
    assert codes == [0, 0], said[0][-3000:] + said[1][-1500:]
    assert at_work == 2 and runs == 2
