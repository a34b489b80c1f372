"""Many tasks, so many at a time: they are started, waited for, and told of."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterable
from typing import Any

import ray

from ray_jobs.job import telemetry

logger = logging.getLogger(__name__)


def finished(
    what: str, references: Iterable[Any], count: int, *, per_task: int = 1, total: int | None = None, at_once: int | None = None
) -> list[Any]:
    """Wait for tasks, say every few seconds how many are done, and return what they gave in order, or raise the first error.

    Args:
        what: what a task's product is called in the log.
        references: of the tasks; with `at_once`, an iterator that starts the next task when it is asked for one.
        count: of the tasks.
        per_task: how many things a task makes.
        total: how many there are in all, where the last task makes fewer.
        at_once: how many tasks may be started and not done. For what waits for a core an autoscaler starts nodes, and where it may start no
            more CPU nodes, GPU nodes.
    """
    total = total if total is not None else per_task * count
    started, waiting, gave, said, coming = list[Any](), list[Any](), dict[Any, Any](), 0.0, iter(references)
    while True:
        room = None if at_once is None else at_once - len(waiting)
        new = list(itertools.islice(coming, room))
        started += new
        waiting += new
        if not waiting:
            return [gave[reference] for reference in started]
        done, waiting = ray.wait(waiting, num_returns=1, timeout=5)
        for reference in done:
            gave[reference] = ray.get(reference)
        left = count - len(started) + len(waiting)
        if time.monotonic() - said > 5 or not left:
            said = time.monotonic()
            logger.info("%s: %d of %d", what, min(total, per_task * (count - left)), total)
            telemetry.tell("parts_done", count - left, what=what)
            telemetry.tell("parts_left", left, what=what)
