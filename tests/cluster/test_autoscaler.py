"""A profile on a cluster that begins with no worker: Ray's autoscaler starts one, the work runs there, and it goes when it is idle.

Autoscaler v2, as `ray up` and KubeRay start it, over nodes that are processes of this machine; test_scale does more of it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from diversity.artifact import Storage
from ray_jobs.job.index import Index
from tests.cluster.scaling import Cloud, scaling_head

IDLE_S = 5.0


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    with scaling_head(tmp_path / "cloud", {"cpu_worker": {"resources": {"CPU": 2}, "max_workers": 1}}, IDLE_S, head_cpus=0) as started:
        yield started


def test_a_profile_runs_on_the_worker_that_it_makes_the_cluster_start(cloud: Cloud, tmp_path: Path) -> None:
    rows = [{"instruction": f"Count to {i}.", "response": " ".join(str(j) for j in range(1, i + 1))} for i in range(1, 61)]
    corpus = tmp_path / "data.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert not cloud.nodes()
    done = cloud.head.run(
        sys.executable,
        *("-m", "ray_jobs.pipeline", "ray_jobs/configs/demo.yaml"),
        *(f"storage={tmp_path}/runs", f"corpus.paths=[{corpus}]", "stages=[ingest, profile_corpus]", "evaluation.heldout=null"),
        *("profile.typings=[response-micro@word]", "profile.band={low: 2, high: 55, scaled: false}"),
        *("grid={strategies: [response-micro@word], sizes: [10]}",),
        *("resources.max_cpus=2", "resources.shared_storage=true"),
        timeout=240,
        RAY_ADDRESS=cloud.head.address,
        SFT_DIVERSITY_CACHE=str(tmp_path / "cache"),
    )
    assert done.returncode == 0, done.stderr
    assert [event["event"] for event in cloud.events][:1] == ["create"], "the head has no CPU: every task ran on the new worker"
    assert cloud.wait_for_none(IDLE_S + 30) >= 0, "the worker goes when it is idle"
    storage = Storage(f"{tmp_path}/runs")
    profile = storage.at(Index(storage, "demo").read()["profile"]["response-micro@word"])
    types = profile.read("types")
    # "j" is in the responses of j..60; the band keeps what 2 to 55 samples have,
    # single digits among them (which are the model's own tokens).
    expected = {str(j): 61 - j for j in range(1, 61) if 2 <= 61 - j <= 55}
    assert {row["label"]: row["df"] for row in types.to_pylist()} == expected
