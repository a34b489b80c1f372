"""From nothing to two CPU nodes, to nothing, to two "GPU" nodes, to nothing, by Ray's autoscaler v2; and what every kind of end leaves.

The GPUs are made up: ranks ask for them, and compute on the CPU by gloo. The spot market is empty, so every GPU node comes by our fallback.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import tiny
from tests.cluster.scaling import SPOT, Cloud, scaling_head
from tests.ray_jobs.heads import ROOT, heard, wait_for

IDLE_S = 12.0
TRAIN_ASKS_S = 180.0  # for so long Ray Train's own request for a run's nodes outlives a driver that was killed
SLACK_S = 10.0  # beyond the idle time-out, until all nodes are gone
PATIENCE = float(os.environ.get("CLUSTER_TEST_PATIENCE", "1"))  # larger on a machine that is busy with other things
KINDS = {
    "cpu_worker": {"resources": {"CPU": 2}, "max_workers": 2},
    "gpu_worker": {"resources": {"CPU": 2, "GPU": 1}, "max_workers": 2, "node_config": SPOT},
}
RESOURCES = "resources={data_workers: 4, max_cpus: 9, max_gpus: 2, use_gpu: true, device: cpu, driver_resource: true, shared_storage: true"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("work")
    corpus = tiny.make_corpus(folder / "corpus", rows=25_000)  # so much that the work outlasts the coming of nodes
    return {"folder": folder, "corpus": corpus, "model": tiny.make_model(folder / "model")}


@pytest.fixture(scope="module")
def alone(work: dict[str, Path]) -> Path:
    """Return a storage with the data stages sealed by a Ray of this machine alone."""
    storage = work["folder"] / "alone"
    command = [*stage("pipeline", work, storage, tiny.DATA_STAGES), "resources={num_cpus: 2}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600 * PATIENCE, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return storage


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with scaling_head(tmp_path_factory.mktemp("cloud"), KINDS, IDLE_S) as started:
        yield started


def stage(name: str, work: dict[str, Path], storage: Path, *more: str, **settings: Any) -> list[str]:
    resources = f"{RESOURCES}, wait_s: {settings.pop('wait_s', 300)}}}"
    return [
        sys.executable,
        "-m",
        f"ray_jobs.{name}",
        tiny.CONFIG,
        *tiny.experiment(storage, work["corpus"], work["model"], **settings),
        resources,
        "profile.band.high=1000000",
        *more,
    ]


HOLD = """
import ray, time
ray.init(logging_level="ERROR", log_to_driver=False)
@ray.remote(num_cpus=1, resources={"driver": 0.5})
class Held:
    def held(self): return "held"
held = Held.remote()
print(ray.get(held.held.remote()), flush=True)
time.sleep(3600)
"""


@contextmanager
def head_held(cloud: Cloud) -> Iterator[None]:
    """Take the head's one CPU, so that every task of a data stage needs a worker: small work would else be done before one comes."""
    environment = {**cloud.head.environment, "RAY_ADDRESS": cloud.head.address}
    holder = subprocess.Popen([sys.executable, "-c", HOLD], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout and holder.stdout.readline().strip() == "held"
        yield
    finally:
        holder.kill()
        holder.wait(10)


def test_the_pipeline_goes_up_and_down_twice(cloud: Cloud, work: dict[str, Path], alone: Path, table: Any) -> None:
    storage = work["folder"] / "runs"
    rows, ends = [], []
    for part, command in (
        ("data stages", stage("pipeline", work, storage, tiny.DATA_STAGES)),
        ("sweep", stage("sweep", work, storage)),
    ):
        assert not cloud.nodes()
        with head_held(cloud) if part == "data stages" else nullcontext():
            began = time.time()
            done = cloud.head.run(*command, timeout=900 * PATIENCE, RAY_ADDRESS=cloud.head.address)
            ended = time.time()
        assert done.returncode == 0, done.stderr[-3000:]
        gone = cloud.wait_for_none((IDLE_S + SLACK_S) * PATIENCE)
        there, used = cloud.node_seconds(began, time.time())
        peaks = cloud.peaks(began, ended)
        ends.append((peaks, gone))
        rows.append(
            {
                "part": part,
                "peak": ", ".join(f"{count} {kind}" for kind, count in sorted(peaks.items())) or "none",
                "start to first use, s": cloud.first_use(began),
                "work, s": ended - began,
                "end to no node, s": gone,
                "node-seconds": there,
                "in use": used,
                "in use / paid": f"{used / there:.0%}" if there else "-",
            }
        )
    refused = [event for event in cloud.events if event["event"] == "refuse"]
    table(f"scale (autoscaler v2, idle time-out {IDLE_S:.0f} s; {len(refused)} spot launches refused, all made on demand)", rows)
    (data, data_gone), (sweep, sweep_gone) = ends
    assert data == {"cpu_worker": 2} and sweep.get("gpu_worker") == 2 and refused
    assert data_gone >= 0 and sweep_gone >= 0, "nodes stay"
    assert tiny.data_hash(storage) == tiny.data_hash(alone) != "none"


LEFT = """
import json, ray
ray.init(logging_level="ERROR", log_to_driver=False)
from ray.util.state import list_placement_groups
from ray._private.worker import global_worker
from ray.autoscaler.v2.sdk import get_cluster_resource_state
state = get_cluster_resource_state(global_worker.gcs_client)
assert state.node_states, "the head is one"
asked = sum(len(one.resource_requests) for one in state.cluster_resource_constraints)
groups = [group for group in list_placement_groups(limit=1000) if group.state not in ("REMOVED",)]
print(json.dumps([asked, len(groups)]))
"""


def left(cloud: Cloud) -> list[int]:
    """Return how many requests stand and how many placement groups there are."""
    done = cloud.head.run(sys.executable, "-c", LEFT, timeout=120, RAY_ADDRESS=cloud.head.address)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def ends_by(cloud: Cloud, command: list[str], storage: Path, how: int | None) -> tuple[int, str]:
    """Run a sweep; with a signal, send it once ranks train on both GPU nodes. Return its exit code and what it said."""
    environment = {**cloud.head.environment, "RAY_ADDRESS": cloud.head.address}
    given: dict[str, Any] = {"cwd": ROOT, "env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "preexec_fn": heard}
    process = subprocess.Popen(command, text=True, **given)
    try:
        if how is not None:
            wait_for(lambda: tiny.checkpoints(storage) or process.poll() is not None, 300 * PATIENCE, "a checkpoint")
            process.send_signal(how)
        _, said = process.communicate(timeout=600 * PATIENCE)
    finally:
        process.kill()
    return process.returncode, said


@pytest.mark.parametrize(
    ("end", "change", "how", "codes"),
    [
        ("success", {}, None, {0}),
        ("success, the driver of the run on a worker", {"more": ["resources.driver_resource=false"]}, None, {0}),
        ("user error", {"more": ["sft.lr=1.0e+30", "sft.clip=null"]}, None, {1}),
        ("wait time-out, too large a run", {"world_size": 3, "wait_s": 15, "more": ["resources.max_gpus=3"]}, None, {3}),
        ("wait time-out, nodes come late", {"wait_s": 4}, None, {3}),
        ("SIGINT", {"steps": 400}, signal.SIGINT, {130}),
        ("SIGTERM", {"steps": 400}, signal.SIGTERM, {143}),
        ("SIGKILL", {"steps": 400}, signal.SIGKILL, {-9}),
    ],
)
def test_nothing_is_left(
    cloud: Cloud, work: dict[str, Path], alone: Path, table: Any, end: str, change: dict[str, Any], how: int | None, codes: set[int]
) -> None:
    storage = work["folder"] / end.replace(" ", "-")
    shutil.copytree(alone, storage)
    settings = {name: value for name, value in change.items() if name != "more"}
    late = "come late" in end
    began = time.time()
    with head_held(cloud) if "on a worker" in end else cloud.told("slow") if late else nullcontext():
        code, said = ends_by(cloud, stage("sweep", work, storage, *change.get("more", []), **settings), storage, how)
        ended = time.time()
        if late:
            wait_for(cloud.nodes, 60 * PATIENCE, "the nodes that nobody waits for")
    time.sleep(5)  # nodes that were asked for last may come now
    gone = cloud.wait_for_none((IDLE_S + SLACK_S) * PATIENCE + (TRAIN_ASKS_S if how == signal.SIGKILL else 0))
    asked, groups = left(cloud)
    row = {"end": end, "exit code": code, "nodes at most": max(cloud.peaks(began, time.time()).values(), default=0)}
    last = max((event["t"] for event in cloud.events if event["event"] == "terminate"), default=0)
    table("no leak", [{**row, "end to no node, s": max(last - ended, 0.0), "standing requests": asked, "placement groups": groups}])
    assert code in codes, said[-3000:]
    assert gone >= 0, "nodes stay"
    assert asked == 0 and groups == 0


def test_without_any_capacity_the_job_says_so(cloud: Cloud, work: dict[str, Path], alone: Path, table: Any) -> None:
    storage = work["folder"] / "no-capacity"
    shutil.copytree(alone, storage)
    with cloud.told("none"):
        done = cloud.head.run(*stage("sweep", work, storage, wait_s=20), timeout=300 * PATIENCE, RAY_ADDRESS=cloud.head.address)
    said = done.stderr.strip().splitlines()[-1]
    on_demand = [event for event in cloud.events if event["event"] == "create" and event["kind"] == "gpu_worker"]
    table("no capacity", [
        {"market": "no spot", "outcome": f"{len(on_demand)} nodes came on demand", "exit code": 0},
        {"market": "none at all", "outcome": said, "exit code": done.returncode},
    ])  # fmt: skip
    assert on_demand and done.returncode == 3
    assert re.search(r"at its largest it would have .*2 x gpu_worker of 2 CPUs, 1 GPUs", said)
    assert cloud.wait_for_none((IDLE_S + SLACK_S) * PATIENCE) >= 0


def test_every_panel_of_the_dashboard_is_in_a_scrape(cloud: Cloud, work: dict[str, Path], table: Any) -> None:
    """A pipeline from nothing, killed in training and sent again, shows all that there is to show on the nodes' metrics ports."""
    storage, began = work["folder"] / "watched", time.time()
    more = [
        tiny.ALL_STAGES,
        "grid.train=[response-micro_n24_l000_s0]",
        "sft.checkpoint_every=50",
    ]  # trains for longer than metrics take to show
    command = stage("pipeline", work, storage, *more, steps=400)
    environment = {**cloud.head.environment, "RAY_ADDRESS": cloud.head.address}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        # At the second one Ray Train has taken note of the first.
        wait_for(lambda: len(tiny.checkpoints(storage)) > 1 or process.poll() is not None, 600 * PATIENCE, "two checkpoints")
        assert process.poll() is None
    finally:
        process.kill()
        process.wait(10)
    done = cloud.head.run(*command, timeout=900 * PATIENCE, RAY_ADDRESS=cloud.head.address)
    assert done.returncode == 0, done.stderr[-3000:]
    seen = {name for sample in cloud.samples if sample["t"] > began for name in sample.get("metrics", ())}
    assert seen, cloud.watched.with_name("watch.log").read_text()[-3000:]
    board = json.loads((ROOT / "cluster" / "grafana.json").read_text("utf-8"))
    rows = [
        {"panel": panel["title"], "expr": target["expr"], "in a scrape": set(re.findall(r"\bray_\w+", target["expr"])) <= seen}
        for panel in board["panels"]
        for target in panel["targets"]
    ]
    table("dashboard", rows)
    assert all(row["in a scrape"] for row in rows), sorted(name for name in seen if "sft" in name)
    assert cloud.wait_for_none((IDLE_S + SLACK_S) * PATIENCE) >= 0
