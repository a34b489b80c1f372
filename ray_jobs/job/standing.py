"""What an autoscaler was asked for: withdrawn on every way out, and where a process was killed, by the next job of ours.

`request_resources` stands until somebody calls it again: nodes that were asked for come, and stay, with nobody left to use them. There is
one such request in a cluster, whoever made it. So whoever asks writes down beside it which job asks, and a job that starts withdraws the
request of one that has ended. Ray Train asks as well, for the nodes of a run and through an actor that outlives it: it withdraws that when
`fit` returns, and else the request stands for 180 s more; so its name is written down too. What a job that is no job of ours asked for is
never touched.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.experimental import internal_kv

logger = logging.getLogger(__name__)

NAMESPACE = b"sft-diversity"
ASKED = b"standing-request"
TRAINING = b"training-request/"  # and the name under which Ray Train asks
COORDINATOR = "AutoscalingCoordinator"  # the actor's name and namespace
PATIENCE_S = 10.0
AGAIN_S = 30.0  # another job's request, or its withdrawal, takes the place of ours


@contextmanager
def asking(bundles: Sequence[Mapping[str, float]]) -> Iterator[Callable[[], None]]:
    """Have the autoscaler asked for bundles that must be had at the same time, until the block is left, however it is left.

    Yields what is to be called while waiting: now and then it asks again.
    """
    job = ray.get_runtime_context().get_job_id()
    asked = -AGAIN_S

    def ask() -> None:
        nonlocal asked
        if time.monotonic() - asked >= AGAIN_S:
            asked = time.monotonic()
            internal_kv._internal_kv_put(ASKED, json.dumps({"job": job}).encode(), namespace=NAMESPACE)  # first: it may be killed here
            request_resources(bundles=[dict(bundle) for bundle in bundles])

    try:
        ask()
        yield ask
    finally:
        try:
            if _asked_by() == job:
                _withdraw()
        except Exception as error:  # the cluster is gone; what ended the wait is what must be told
            logger.warning("the request for nodes could not be withdrawn: %s", error)


def coordinate_here() -> None:
    """Have the actor through which Ray Train asks stand on this process's node, which is the head as a rule.

    It is made where the first run's driver stands, stays for good, and a node on which it stands is never idle.
    """
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator

    get_or_create_autoscaling_coordinator()


@contextmanager
def training(run_id: str) -> Iterator[None]:
    """Have it written down, until the block ends well, that Ray Train asks for nodes for a run of this job, by its own id of the run."""
    key = TRAINING + f"train-{run_id}".encode()
    internal_kv._internal_kv_put(key, ray.get_runtime_context().get_job_id().encode(), namespace=NAMESPACE)
    yield
    internal_kv._internal_kv_del(key, namespace=NAMESPACE)


def withdraw_left_behind() -> bool:
    """Withdraw what jobs of ours that have ended asked for, and return whether there was such a request."""
    found = False
    job = _asked_by()
    if job is not None and _ended(job):
        logger.warning("withdrawing the request for nodes that job %s, which has ended, left standing", job)
        _withdraw()
        found = True
    for key in internal_kv._internal_kv_list(TRAINING, namespace=NAMESPACE):
        job = (internal_kv._internal_kv_get(key, namespace=NAMESPACE) or b"").decode()
        if not _ended(job):
            continue
        with suppress(ValueError):  # there is no such actor: nobody asks any more
            coordinator = ray.get_actor(COORDINATOR, namespace=COORDINATOR)
            ray.get(coordinator.cancel_request.remote(key.removeprefix(TRAINING).decode()), timeout=PATIENCE_S)
            found = True
        internal_kv._internal_kv_del(key, namespace=NAMESPACE)
    return found


def end_and_withdraw(address: str) -> None:
    """End this process's job on a cluster, and withdraw what it asked for: its actors would ask again while they live."""
    job = ray.get_runtime_context().get_job_id()
    ray.shutdown()
    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    until = time.monotonic() + PATIENCE_S
    while not _ended(job) and time.monotonic() < until:
        time.sleep(0.1)
    withdraw_left_behind()
    ray.shutdown()


def _asked_by() -> str | None:
    found = internal_kv._internal_kv_get(ASKED, namespace=NAMESPACE)
    return None if found is None else json.loads(found)["job"]


def _withdraw() -> None:
    request_resources(bundles=[])
    internal_kv._internal_kv_del(ASKED, namespace=NAMESPACE)


def _ended(job: str) -> bool:
    """Return whether the cluster reports a job as ended, or knows it no more."""
    worker: Any = ray._private.worker.global_worker
    jobs = {key.hex(): info for key, info in worker.gcs_client.get_all_job_info().items()}
    return job not in jobs or jobs[job].is_dead
