"""What a rank tells Ray while it trains, and what it is told: its device, figures for Prometheus, notices that its machine goes."""

from __future__ import annotations

import logging
import time
from functools import cache
from typing import Any

import ray.train

logger = logging.getLogger(__name__)

COUNTERS = {
    "tokens": "tokens that passed through models in training",
    "rank_seconds": "seconds of ranks in training steps; on `cuda`, GPU-seconds",
    "resumptions": "runs that went on from a checkpoint",
}
ASK_EVERY_S = 5  # for a notice of preemption, which comes 30 s (Google) or 120 s (AWS) ahead; asking is a barrier of all ranks


def rank_device(kind: str) -> Any:
    """Return this rank's device: `cpu` even where Ray Train has given the rank a GPU (`resources.device`)."""
    import torch
    from ray.train.torch import get_device

    return torch.device("cpu") if kind == "cpu" else get_device()


@cache
def counter(name: str) -> Any:
    """Return a counter of `COUNTERS`, for Prometheus; `ray_jobs/job/telemetry.py` says how such figures are seen."""
    from ray.util.metrics import Counter

    return Counter(f"sft_diversity_{name}", description=COUNTERS[name], tag_keys=("device",))


class Metered:
    """The trackers of a run, on rank 0, with what all of its ranks have done counted for Prometheus."""

    def __init__(self, trackers: Any, device: str) -> None:
        self.trackers, self.tags, self.ranks = trackers, {"device": device}, ray.train.get_context().get_world_size()

    def step(self, row: dict[str, Any]) -> None:
        """Take a step's row."""
        counter("tokens").inc(row["tokens"], self.tags)
        counter("rank_seconds").inc(row["seconds"] * self.ranks, self.tags)
        self.trackers.step(row)

    def close(self, *, failed: bool) -> None:
        """Close the trackers."""
        self.trackers.close(failed=failed)


class Notice:
    """Says, once for each, that a machine with ranks of this run is about to be taken away. Every rank calls it, and gets one answer.

    Ray Train's preemption watcher sees machines that are drained (a spot reclaim under KubeRay or a cloud's autoscaler). Where nobody
    drains, no notice comes, and a lost machine costs the steps since the last checkpoint.
    """

    def __init__(self, device: str, ask_every_s: float = ASK_EVERY_S) -> None:
        self.device, self.ask_every_s = device, ask_every_s
        self.asked = time.monotonic()
        self.known: set[str] = set()

    def __call__(self) -> bool:
        """Return whether a notice is new since the last call."""
        import torch

        due = torch.tensor(float(time.monotonic() - self.asked >= self.ask_every_s), device=rank_device(self.device))
        torch.distributed.broadcast(due, 0)  # rank 0's clock decides, or ranks would wait for each other in Ray Train's barrier
        if not due.item():
            return False
        self.asked = time.monotonic()
        info = ray.train.get_preemption_info()
        new = set(info.preempted_node_ids) - self.known if info else set()
        self.known |= new
        if new and ray.train.get_context().get_world_rank() == 0:
            logger.warning("%d machines of this run are about to go: saving a checkpoint", len(new))
        return bool(new)
