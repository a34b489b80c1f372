"""Nothing that an autoscaler was asked for stays behind: whichever way a job ends, and when it is killed, with the next one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from ray.autoscaler._private.constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
from ray.autoscaler.sdk import request_resources
from ray.experimental import internal_kv

from ray_jobs.job import standing
from ray_jobs.job.runtime import ResourcesNotAvailable
from ray_jobs.tasks import trials

ROOT = Path(__file__).resolve().parents[3]
DEMAND = trials.Demand(ranks=1, cpus_per_rank=64, driver_cpus=0.5, gpu=False)
KILLED = """
import os, sys, ray
from ray_jobs.job import standing
ray.init(address=sys.argv[1], logging_level="ERROR")
with standing.asking([{"CPU": 64}]):
    print("asked", flush=True)
    sys.stdin.read()
"""
TRAINING = """
import sys, ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import ResourceRequestPriority
from ray_jobs.job import standing
ray.init(address=sys.argv[1], logging_level="ERROR")
standing.coordinate_here()
coordinator = ray.get_actor(standing.COORDINATOR, namespace=standing.COORDINATOR)
options = {"expire_after_s": 600, "priority": ResourceRequestPriority.HIGH}  # as Ray Train asks, for longer
ray.get(coordinator.request_resources.remote(requester_id="train-killed", resources=[{"CPU": 64}], **options))
ray.get(coordinator.request_resources.remote(requester_id="another", resources=[{"CPU": 32}], **options))
with standing.training("killed"):
    print("asked", flush=True)
    sys.stdin.read()
"""


def asked() -> list[dict[str, float]]:
    """Return what stands, read where the autoscaler reads it."""
    return json.loads(internal_kv._internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL) or "[]")


@pytest.mark.parametrize("way", [None, KeyboardInterrupt, SystemExit, RuntimeError])
def test_nothing_stands_after_any_way_out(ray_local: None, monkeypatch: pytest.MonkeyPatch, way: type[BaseException] | None) -> None:
    seen = []

    def sleep(seconds: float) -> None:
        seen.append(asked())
        if way is not None:
            raise way
        monkeypatch.setattr(trials, "_has", lambda demand: True)  # the nodes came

    monkeypatch.setattr(trials.time, "sleep", sleep)
    if way is None:
        trials.wait_for_one(DEMAND, wait_s=60)
    else:
        with pytest.raises(way):
            trials.wait_for_one(DEMAND, wait_s=60)
    assert seen == [DEMAND.bundles] and asked() == []


def test_nothing_stands_after_giving_up(ray_local: None) -> None:
    with pytest.raises(ResourcesNotAvailable):
        trials.wait_for_one(DEMAND, wait_s=0)
    assert asked() == [] and standing._asked_by() is None


@pytest.mark.parametrize(
    ("program", "before", "after"),
    [(KILLED, [{"CPU": 64}], []), (TRAINING, [{"CPU": 64}, {"CPU": 32}], [{"CPU": 32}])],
    ids=["ours", "Ray Train's"],
)
def test_the_next_job_withdraws_what_a_killed_one_left_and_nothing_else(
    ray_local: None, program: str, before: list[dict[str, float]], after: list[dict[str, float]]
) -> None:
    address = ray.get_runtime_context().gcs_address
    job = subprocess.Popen(
        [sys.executable, "-c", program, address], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=None
    )
    try:
        assert job.stdout is not None and job.stdout.readline() == "asked\n"
        assert not standing.withdraw_left_behind(), "it is alive"
        assert asked() == before
    finally:
        job.send_signal(signal.SIGKILL)
        job.wait(30)
    stop = time.monotonic() + 60
    while not standing.withdraw_left_behind() and time.monotonic() < stop:
        time.sleep(0.5)
    assert asked() == after
    assert not standing.withdraw_left_behind()
    if after:
        ray.kill(ray.get_actor(standing.COORDINATOR, namespace=standing.COORDINATOR))
        request_resources(bundles=[])
