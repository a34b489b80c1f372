"""A profile on a cluster that begins with no worker: Ray's autoscaler starts one, and the work runs there.

Ray's fake provider starts nodes as processes of this machine, and is else the autoscaler that `ray up` starts on a head.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from diversity.artifact import Storage
from ray_jobs.job.index import Index
from tests.ray_jobs.heads import ROOT, Head, free_ports, running_head

if sys.platform != "linux":
    pytest.skip("Ray runs clusters of several nodes on Linux only", allow_module_level=True)


def fake_cluster(port: int) -> dict[str, object]:
    """Return a cluster of the shape of cluster.yaml, on this machine: a head that takes no tasks, and up to one CPU worker."""
    written = yaml.safe_load((ROOT / "cluster.yaml").read_text("utf-8"))
    commands: dict[str, object] = {key: [] for key in written if key.endswith("commands")}
    return {
        **commands,
        "worker_setup_commands": [],
        "cluster_name": written["cluster_name"],
        "max_workers": 1,
        "upscaling_speed": written["upscaling_speed"],
        "idle_timeout_minutes": written["idle_timeout_minutes"],
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"127.0.0.1:{port}",
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "foreground_node_launch": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0, "driver": 1}, "node_config": {}, "max_workers": 0},
            "cpu_worker": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 1},
        },
        "head_node_type": "ray.head.default",
        "docker": {},
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
    }


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    (port,) = free_ports(1)
    config = tmp_path / "cluster.json"
    config.write_text(json.dumps(fake_cluster(port)))
    options = ["--num-cpus", "0", "--resources", '{"driver": 1}', "--autoscaling-config", str(config)]
    variables = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": "f" * 51 + "00000",  # the head's own, as the fake provider expects it
    }
    with running_head(options, variables, port) as started:
        yield started


def cpus(head: Head) -> float:
    """Return the cores of the cluster's nodes that are alive, as a client sees them."""
    program = "import ray; ray.init(logging_level='ERROR', log_to_driver=False); print(ray.cluster_resources().get('CPU', 0))"
    done = head.run(sys.executable, "-c", program, timeout=60, RAY_ADDRESS=head.address)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split()[-1])


def test_a_profile_runs_on_the_worker_that_it_makes_the_cluster_start(head: Head, tmp_path: Path) -> None:
    rows = [{"instruction": f"Count to {i}.", "response": " ".join(str(j) for j in range(1, i + 1))} for i in range(1, 61)]
    corpus = tmp_path / "data.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert cpus(head) == 0
    done = head.run(
        sys.executable,
        *("-m", "ray_jobs.pipeline", "ray_jobs/configs/demo.yaml"),
        *(f"storage={tmp_path}/runs", f"corpus.paths=[{corpus}]", "stages=[ingest, profile_corpus]", "evaluation.heldout=null"),
        *("profile.typings=[response-micro@word]", "profile.band={low: 2, high: 55, scaled: false}"),
        *("grid={strategies: [response-micro@word], sizes: [10]}",),
        *("resources.max_cpus=2", "resources.shared_storage=true"),
        timeout=180,
        RAY_ADDRESS=head.address,
        SFT_DIVERSITY_CACHE=str(tmp_path / "cache"),
    )
    assert done.returncode == 0, done.stderr
    assert cpus(head) == 2, "the head has none: every task of the profile ran on the new worker"
    storage = Storage(f"{tmp_path}/runs")
    profile = storage.at(Index(storage, "demo").read()["profile"]["response-micro@word"])
    types = profile.read("types")
    # "j" is in the responses of j..60; the band keeps what 2 to 55 samples have,
    # single digits among them (which are the model's own tokens).
    expected = {str(j): 61 - j for j in range(1, 61) if 2 <= 61 - j <= 55}
    assert {row["label"]: row["df"] for row in types.to_pylist()} == expected
