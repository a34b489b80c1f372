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


def test_the_next_job_withdraws_what_a_killed_one_left_and_nothing_else(ray_local: None) -> None:
    address = ray.get_runtime_context().gcs_address
    job = subprocess.Popen(
        [sys.executable, "-c", KILLED, address], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=None
    )
    try:
        assert job.stdout is not None and job.stdout.readline() == "asked\n"
        assert not standing.withdraw_left_behind(), "it is alive"
        assert asked() == [{"CPU": 64}]
    finally:
        job.send_signal(signal.SIGKILL)
        job.wait(30)
    stop = time.monotonic() + 60
    while not standing.withdraw_left_behind() and time.monotonic() < stop:
        time.sleep(0.5)
    assert asked() == []
    assert not standing.withdraw_left_behind()
