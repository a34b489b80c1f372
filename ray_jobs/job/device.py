"""What models compute on: as the configuration says, else what the cluster or this machine has."""

from __future__ import annotations

import os
from pathlib import Path

import ray

from ray_jobs.job.runtime import Context


def device_kind(context: Context) -> str:
    """Return what runs train on, `cpu` or `cuda`: as `resources` says, else what the cluster or this machine has."""
    resources = context.experiment.resources
    if resources.device is not None:
        return resources.device
    if resources.use_gpu is not None:
        return "cuda" if resources.use_gpu else "cpu"
    if resources.max_gpus is not None:
        return "cuda"
    if resources.address or os.environ.get("RAY_ADDRESS"):
        context.connect()
    if ray.is_initialized():
        return "cuda" if ray.cluster_resources().get("GPU", 0) else "cpu"
    return "cuda" if Path("/dev/nvidia0").exists() else "cpu"
