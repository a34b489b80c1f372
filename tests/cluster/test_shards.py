"""Shards in actors on three nodes give what one machine gives: the tests of one machine, in a driver of a real cluster."""

from __future__ import annotations

import sys

from tests.cluster.conftest import ROOT
from tests.ray_jobs.heads import joined_node, running_head


def test_three_raylets_give_what_one_machine_gives() -> None:
    """For 1, 2 and 7 shards."""
    with running_head(["--num-cpus", "1"]) as head, joined_node(head), joined_node(head):
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "one_machine"]
        files = ["tests/ray_jobs/tasks/test_shards.py"]
        done = head.run(*command, *files, timeout=300, TEST_RAY_ADDRESS=head.address, PYTHONPATH=str(ROOT))
    assert done.returncode == 0 and "5 passed" in done.stdout, done.stdout + done.stderr
