"""What computes: decided once by the driver, and handed down. No worker looks for a GPU by itself.

Ray does not hide a machine's GPUs from tasks and actors that asked for none, so a worker that took what it sees would load onto a GPU
that is somebody else's, and what it makes would depend on where it ran.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable

import ray

from ray_jobs.job.runtime import Context, once
from training.config import SftConfig
from training.hardware import has_fast_bf16

logger = logging.getLogger(__name__)


@once
def device_kind(context: Context) -> str:
    """Return what the experiment computes on, `cpu` or `cuda`: as `resources` says, else what its Ray has, or will have once it starts."""
    resources = context.experiment.resources
    if resources.device is not None:
        return resources.device
    if resources.use_gpu is not None:
        return "cuda" if resources.use_gpu else "cpu"
    if resources.max_gpus is not None:
        return "cuda" if resources.max_gpus else "cpu"
    if context.address:
        context.connect()
    found = ray.cluster_resources().get("GPU", 0) if ray.is_initialized() else local_gpus()
    return "cuda" if found else "cpu"


def local_gpus() -> int:
    """Return the GPUs that a Ray of this process's own would find on this machine, those that CUDA_VISIBLE_DEVICES hides left out."""
    from ray._private.accelerators import get_accelerator_manager_for_resource  # what `ray.init` itself asks; there is no public name

    manager = get_accelerator_manager_for_resource("GPU")
    if manager is None:
        return 0
    found, visible = manager.get_current_node_num_accelerators(), manager.get_current_process_visible_accelerator_ids()
    return min(found, len(visible)) if visible is not None else found


def gpus(context: Context) -> int:
    """Return the GPUs that data passes may take: none where the experiment computes on CPUs. Ray runs already."""
    return int(ray.cluster_resources().get("GPU", 0)) if device_kind(context) == "cuda" else 0


def faiss_device(context: Context) -> str:
    """Return what topics are clustered on: a GPU where there is one and faiss-gpu is what is installed."""
    return device_kind(context) if not _installed("faiss-cpu") and _installed("faiss-gpu") else "cpu"


@once
def resolved_sft(context: Context) -> SftConfig:
    """Return the configuration of training with nothing left open: precision, ZeRO's stage and kernels follow from what computes."""
    sft, device = context.experiment.sft, device_kind(context)
    fast_bf16 = sft.precision == "auto" and device == "cpu" and fast_bf16_everywhere(context)
    found = sft.resolved(device, fast_bf16=fast_bf16)
    logger.info("runs train on %s in %s, ZeRO stage %d, %s kernels", device, found.precision, found.zero.number, found.kernels)
    return found


def fast_bf16_everywhere(context: Context, ask: Callable[[], bool] = has_fast_bf16) -> bool:
    """Return whether every node that could train multiplies bf16: a run's name holds its precision, so one answer must do for all of them.

    Args:
        context: of the experiment.
        ask: what a node is asked.
    """
    if not context.address:
        return ask()
    context.connect()
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0)]
    asked = ray.remote(num_cpus=0, max_retries=3)(ask)
    strategies = [ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    have = ray.get([asked.options(scheduling_strategy=strategy).remote() for strategy in strategies])
    if any(have) and not all(have):
        logger.warning("%d of %d nodes multiply bf16: sft.precision=auto is fp32, the same for all", sum(have), len(have))
    return bool(have) and all(have)


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
