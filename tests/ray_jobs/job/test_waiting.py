"""Tasks are started so many at a time: what waits for a core is what an autoscaler starts nodes for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from ray_jobs.job.waiting import finished


def work(number: int, bad: int | None = None) -> int:
    time.sleep(0.01 * (number % 3))
    if number == bad:
        raise ValueError(f"task {number}")
    return number


@pytest.mark.parametrize("at_once", [1, 3, 12, 20, None])
def test_no_more_than_so_many_are_started_and_not_done(ray_local: None, at_once: int | None) -> None:
    task, drawn, most = ray.remote(work), list[Any](), list[int]()

    def coming() -> Iterator[Any]:
        for number in range(12):
            most.append(len(ray.wait(drawn, num_returns=len(drawn), timeout=0)[1]) if drawn else 0)
            drawn.append(task.remote(number))
            yield drawn[-1]

    assert finished("numbers", coming(), 12, at_once=at_once) == list(range(12))
    assert len(drawn) == 12 and (at_once is None or max(most) < at_once)


def test_the_first_error_is_raised_and_nothing_more_is_started(ray_local: None) -> None:
    task, started = ray.remote(work), list[int]()

    def coming() -> Iterator[Any]:
        for number in range(12):
            started.append(number)
            yield task.remote(number, 2)

    with pytest.raises(ValueError, match="task 2"):
        finished("numbers", coming(), 12, at_once=2)
    assert len(started) <= 5


def test_no_tasks_are_no_wait(ray_local: None) -> None:
    assert finished("nothing", iter([]), 0, at_once=2) == []
