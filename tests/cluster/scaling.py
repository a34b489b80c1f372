"""A head whose autoscaler (v2, as `ray up` and KubeRay start it) starts and ends nodes on this machine; and what was seen of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.ray_jobs.heads import ALONE, ROOT, Head, free_ports, running_head

HEAD_ID = "f" * 51 + "00000"  # as Ray's fake provider expects the head's own
SPOT = {"InstanceType": "made-up", "InstanceMarketOptions": {"MarketType": "spot"}}
LISTS = ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands", "setup_commands", "head_setup_commands")
MORE_LISTS = ("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
EMPTY: dict[str, Any] = {name: [] for name in (*LISTS, *MORE_LISTS)} | {"docker": {}, "auth": {}, "file_mounts": {}}


@dataclass
class Cloud:
    """What a test asks of a scaling cluster.

    Attributes:
        head: the head; clients run by `head.run`.
        log: calls of the provider, a JSON line each.
        watched: samples of the watcher, a JSON line each.
        idle_s: after so many idle seconds a node goes.
    """

    head: Head
    log: Path
    watched: Path
    idle_s: float

    @property
    def events(self) -> list[dict[str, Any]]:
        """Return the provider's calls so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    @contextmanager
    def told(self, what: str) -> Iterator[None]:
        """Have the provider behave otherwise for a while: `none` has no capacity, `slow` takes its time (fake_provider.py)."""
        file = self.log.with_suffix(f".{what}")
        file.touch()
        try:
            yield
        finally:
            file.unlink()

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Return what the watcher saw so far."""
        return [json.loads(line) for line in self.watched.read_text().splitlines() if line.endswith("}")]

    def nodes(self, at: float | None = None) -> dict[str, int]:
        """Return how many nodes of each kind there are, or were at a time, as the provider knows it."""
        alive: dict[str, str] = {}
        for event in self.events:
            if at is not None and event["t"] > at:
                break
            if event["event"] == "create":
                alive[event["what"]] = event["kind"]
            elif event["event"] == "terminate":
                alive.pop(event["what"], None)
        return {kind: list(alive.values()).count(kind) for kind in set(alive.values())}

    def peaks(self, since: float, until: float) -> dict[str, int]:
        """Return the largest number of nodes of each kind within a time."""
        times = [since, *(event["t"] for event in self.events if since <= event["t"] <= until)]
        counted = [self.nodes(at) for at in times]
        return {kind: max(one.get(kind, 0) for one in counted) for kind in {kind for one in counted for kind in one}}

    def node_seconds(self, since: float, until: float) -> tuple[float, float]:
        """Return the seconds for which nodes were there, and those in which the watcher saw them in use."""
        began: dict[str, float] = {}
        there = 0.0
        for event in self.events:
            if event["event"] == "create":
                began[event["what"]] = event["t"]
            elif event["event"] == "terminate" and since <= event["t"]:
                there += min(event["t"], until) - max(began.pop(event["what"]), since)
        there += sum(until - max(start, since) for start in began.values() if start < until)
        used, before = 0.0, since
        for sample in self.samples:
            if since <= sample["t"] <= until:
                used += (sample["t"] - before) * sum(busy for _, busy in sample["nodes"])
                before = sample["t"]
        return there, used

    def first_use(self, since: float) -> float:
        """Return the seconds from a time until a worker node was first seen in use."""
        return next(
            (sample["t"] - since for sample in self.samples if sample["t"] > since and any(busy for _, busy in sample["nodes"])), -1
        )

    def wait_for_none(self, seconds: float) -> float:
        """Wait until all nodes are gone, and return how long that took; a time-out returns -1."""
        started = time.time()
        while self.nodes():
            if time.time() - started > seconds:
                return -1.0
            time.sleep(0.25)
        return time.time() - started


@contextmanager
def scaling_head(folder: Path, kinds: Mapping[str, Mapping[str, Any]], idle_s: float, head_cpus: int = 1) -> Iterator[Cloud]:
    """Start a head with CPUs for drivers and an autoscaler over these kinds of nodes, and watch it."""
    (port,) = free_ports(1)
    folder.mkdir(parents=True, exist_ok=True)
    written = yaml.safe_load((ROOT / "cluster.yaml").read_text("utf-8"))
    config = EMPTY | {
        "cluster_name": written["cluster_name"],
        "max_workers": sum(kind["max_workers"] for kind in kinds.values()),
        "upscaling_speed": written["upscaling_speed"],
        "idle_timeout_minutes": idle_s / 60,
        "file_mounts_sync_continuously": False,
        "provider": {
            "type": "external",
            "module": "fake_provider.Provider",
            "gcs_address": f"127.0.0.1:{port}",
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "foreground_node_launch": True,
            "log": str(folder / "provider.jsonl"),
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": head_cpus, "driver": 1}, "node_config": {}, "max_workers": 0},
            **{name: {"node_config": {}, "min_workers": 0, **kind} for name, kind in kinds.items()},
        },
        "head_node_type": "ray.head.default",
    }
    (folder / "ray_bootstrap_config.yaml").write_text(json.dumps(config))  # where a head of `ray up` has it: in the home folder
    options = [
        "--num-cpus",
        str(head_cpus),
        "--resources",
        '{"driver": 1}',
        "--autoscaling-config",
        str(folder / "ray_bootstrap_config.yaml"),
    ]
    variables = ALONE | {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "PYTHONPATH": f"{ROOT}:{ROOT}/cluster:{ROOT}/tests/cluster",
        "SFT_DIVERSITY_CACHE": str(Path.home() / ".cache" / "sft-diversity"),
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    with running_head(options, variables, port) as head:
        watched = folder / "watched.jsonl"
        watched.touch()
        with (folder / "watch.log").open("wb") as log:
            watcher = subprocess.Popen(
                [sys.executable, "-m", "tests.cluster.watch", str(watched)],
                cwd=ROOT,
                env={**head.environment, "RAY_ADDRESS": head.address},
                stdout=log,
                stderr=log,
            )
        try:
            yield Cloud(head, folder / "provider.jsonl", watched, idle_s)
        finally:
            watcher.kill()
            watcher.wait(10)
            for event in Path("/proc").glob("[0-9]*/environ"):  # nodes' processes that outlived the provider
                try:
                    if f"RAY_AUTH_TOKEN_PATH={head.folder}/token".encode() in event.read_bytes() and int(event.parent.name) != os.getpid():
                        os.kill(int(event.parent.name), 9)
                except OSError:
                    continue
