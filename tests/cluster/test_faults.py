"""Every fault on one real cluster of three raylets, and a cut network."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.faults import FAULTS, NEED_MOUNT
from tests.cluster.ground import Ground, mounted
from tests.cluster.machine import Machine
from tests.ray_jobs.heads import ROOT

MOMENTS = {"worker": "profile", "read-only storage": "build", "full storage": "profile"}  # the others: in training, after a checkpoint


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    started = Machine.start()
    try:
        yield started
    finally:
        started.stack.close()


@pytest.fixture(scope="module")
def ground(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    laid = Ground.lay(tmp_path_factory.mktemp("ground"))
    laid.baseline(machine)
    return laid


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost(machine: Machine, ground: Ground, table: Any, fault: str, tmp_path: Path) -> None:
    stage = MOMENTS.get(fault, "sweep")
    if fault in NEED_MOUNT and os.geteuid() != 0:
        pytest.skip("needs root, to mount a file system")
    if fault == "drain notice":
        ground = ground.with_longer_runs(machine, steps=320)  # ranks ask every 5 s, and to give notice takes some seconds too
    if fault in NEED_MOUNT:
        with mounted(tmp_path / "mount") as mount:
            outcome = ground.run(machine, stage, fault, 0.5, mount)
    else:
        outcome = ground.run(machine, stage, fault, 0.5)
    table("faults", [outcome.row()])
    assert outcome.hit and outcome.sound, (outcome, sorted(ground.folder.glob("*.log"))[-1].read_text()[-3000:])
    if fault == "drain notice":
        logs = "".join(path.read_text() for path in ground.folder.glob("drain-notice*.log"))
        assert "saving a checkpoint" in logs and outcome.starts == 1


CUT = """
import ray, sys, time
ray.init(logging_level="ERROR", log_to_driver=False)
@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
def work(i):
    time.sleep(12)
    return i
tasks = [work.remote(i) for i in range(2)]
print("working", flush=True)
began = time.time()
assert ray.get(tasks) == [0, 1]
print(f"ended {time.time() - began:.0f}", flush=True)
"""


@pytest.mark.parametrize("kept_alive", [True, False])
def test_a_cut_network_is_noticed(root: None, table: Any, kept_alive: bool, tmp_path: Path) -> None:
    """Three nodes in network namespaces; one cable is pulled. With the variables of cluster.yaml the work ends; without, it hangs."""
    done = subprocess.run(
        ["sh", str(ROOT / "tests/cluster/cut.sh"), str(tmp_path), str(ROOT / ".venv/bin"), "1" if kept_alive else "0", "90"],
        input=CUT, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    if "no namespaces" in done.stderr:
        pytest.skip("needs network namespaces")
    ended = re.search(r"ended (\d+)", done.stdout)
    table("cut network", [{"keepalive": kept_alive, "work of 12 s ended after, s": ended.group(1) if ended else "not within 90"}])
    assert "working" in done.stdout, done.stderr
    assert bool(ended) is kept_alive
