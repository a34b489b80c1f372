"""What a killed driver of an experiment left on a real cluster is released; another experiment's, and a living driver's, never."""

from __future__ import annotations

import os
import subprocess
import sys

from ray_jobs.job.placement import mark
from tests.ray_jobs.heads import running_head

DRIVER = """
import sys, time, ray
from ray.util.placement_group import placement_group
from ray_jobs.job.placement import job_config
ray.init(address="auto", job_config=job_config("/storage", sys.argv[1]), logging_level="ERROR")
group = placement_group([{"CPU": 1}], lifetime="detached")
ray.get(group.ready())
print(group.id.hex(), flush=True)
time.sleep(600)
"""
NEXT = """
import json, time, ray
from ray.util.state import list_placement_groups
from ray_jobs.job.placement import ended_jobs, mark, release_left_behind
ray.init(address="auto", logging_level="ERROR")
while not (ended_jobs(mark("/storage", "ours")) and ended_jobs(mark("/storage", "other"))):
    time.sleep(0.2)
released = release_left_behind("/storage", "ours")
again = release_left_behind("/storage", "ours")
print(json.dumps([released, again, {g.placement_group_id: g.state for g in list_placement_groups()}]))
"""


def test_only_what_an_ended_driver_of_ours_left_is_released() -> None:
    import json

    with running_head(["--num-cpus", "3"]) as head:
        environment = {**head.environment, "RAY_ADDRESS": head.address, "PYTHONPATH": os.getcwd()}
        drivers = []
        try:
            for experiment in ("ours", "other", "ours"):
                command = [sys.executable, "-c", DRIVER, experiment]
                drivers.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
            left, others, living = [driver.stdout.readline().strip() for driver in drivers if driver.stdout]
            drivers[0].kill()
            drivers[1].kill()
            done = head.run(sys.executable, "-c", NEXT, timeout=120, RAY_ADDRESS=head.address)
        finally:
            for driver in drivers:
                driver.kill()
                driver.wait(10)
    assert done.returncode == 0, done.stderr
    released, again, states = json.loads(done.stdout)
    assert released == [left] and again == []
    assert states == {left: "REMOVED", others: "CREATED", living: "CREATED"}


def test_marks_tell_storages_and_experiments_apart() -> None:
    assert len({mark("/a", "x"), mark("/a", "y"), mark("/b", "x")}) == 3 and mark("/a", "x") == mark("/a", "x")


def test_a_ray_of_this_process_has_nothing_left_behind(ray_local: None) -> None:
    from ray_jobs.job.placement import release_left_behind

    assert release_left_behind("/storage", "ours") == []
