"""What a worker of ours is set up with."""

from __future__ import annotations

import os

import ray


def test_a_worker_finds_its_own_ray_among_several(ray_local: None) -> None:
    """Ray Train's actors ask for "the" Ray of the machine, and fail where there are two."""
    asked = ray.remote(num_cpus=0)(lambda: os.environ.get("RAY_ADDRESS"))
    assert ray.get(asked.remote()) == ray.get_runtime_context().gcs_address
