"""Placement groups that a killed driver of ours left behind: found by the mark that our jobs carry, and released.

A placement group that nobody uses holds its CPUs and GPUs until somebody removes it, and the runs of the next driver would wait for them.
Every job of an experiment carries a mark in its metadata. What a job with this experiment's mark made, and the cluster reports that job
as ended, is ours and left behind. Whatever another job made, or one that still runs, is never touched.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import ray
from ray.job_config import JobConfig

from diversity.artifact import digest

logger = logging.getLogger(__name__)

MARK = "sft-diversity"
GONE = "REMOVED"


def job_config(storage: str, experiment: str) -> JobConfig:
    """Return what `ray.init` is to be given, so that this job is known as the experiment's."""
    return JobConfig(metadata={MARK: mark(storage, experiment)})


def mark(storage: str, experiment: str) -> str:
    """Return what the jobs of an experiment, and no others, have in common."""
    return digest([storage, experiment])


def release_left_behind(storage: str, experiment: str) -> list[str]:
    """Remove the placement groups of this experiment's ended jobs, and return their ids.

    A Ray without its dashboard (a process's own) can't list them, and has none from before.
    """
    from ray.util.placement_group import PlacementGroup, remove_placement_group
    from ray.util.state.exception import RayStateApiException

    try:
        left = list(left_behind(storage, experiment))
    except RayStateApiException as error:
        logger.debug("placement groups can't be listed: %s", error)
        return []
    for group in left:
        logger.warning("releasing placement group %s, left by a driver of this experiment that has ended", group)
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group))))
    return left


def left_behind(storage: str, experiment: str) -> Iterator[str]:
    """Yield the ids of placement groups that jobs of this experiment made which have ended."""
    from ray.util.state import list_placement_groups

    ended = ended_jobs(mark(storage, experiment))
    if not ended:
        return
    for group in list_placement_groups(limit=10_000, raise_on_missing_output=False):
        if group.creator_job_id in ended and group.state != GONE:
            yield group.placement_group_id


def ended_jobs(wanted: str) -> set[str]:
    """Return the ids of the jobs with a mark that the cluster reports as ended."""
    # The jobs API tells the metadata of a submission, not of its driver; the control store knows both of every job.
    worker: Any = ray._private.worker.global_worker
    jobs = worker.gcs_client.get_all_job_info()
    return {job.hex() for job, info in jobs.items() if info.is_dead and info.config.metadata.get(MARK) == wanted}
