"""What a plan says of time and cost is plain arithmetic over sealed runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from diversity.artifact import Artifact, Storage
from ray_jobs.job.experiment import ResourcesConfig
from ray_jobs.tasks.estimate import Speed, estimate
from ray_jobs.tasks.trials import Demand

CPU, GPU = Demand(ranks=2, cpus_per_rank=1, driver_cpus=0.5, gpu=False), Demand(ranks=4, cpus_per_rank=1, driver_cpus=0.1, gpu=True)
SPEED = Speed(runs=2, tokens_per_s=1000, slowest=800, fastest=1200, besides_s=60)


def sealed(storage: Storage, number: int, train_s: float, seconds: float | None) -> tuple[Artifact, Artifact | None]:
    model = (
        storage.artifact("models", f"m{number}")
        .begin()
        .seal({"response_tokens": 1200, "train_s": train_s, "setup_s": 5.0, "setup": {"first_step_s": 1.0}})
    )
    return model, None if seconds is None else storage.artifact("scores", f"s{number}").begin().seal({"seconds": seconds})


def test_speed_is_the_mean_over_sealed_runs(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    assert Speed.of([]) is None
    pairs = [sealed(storage, 0, 1.0, 10.0), sealed(storage, 1, 2.0, None)]
    assert Speed.of(pairs) == Speed(runs=2, tokens_per_s=900, slowest=600, fastest=1200, besides_s=9.0)


def test_hours_cost_and_clock() -> None:
    lines = list(estimate([3_600_000, 1_800_000], SPEED, GPU, ResourcesConfig(price_per_gpu_hour=2.5), cpus=100, gpus=9))
    hours = (5_400_000 / 1000 + 2 * 60) / 3600
    assert lines[0] == "5,400,000 response tokens to train on" and f"{hours:.2f} hours of runs" in lines[1]
    assert "1,000 response tokens/s (800 to 1,200 in 2 sealed runs) and 60 s a run" in lines[1]
    assert lines[2] == f"{4 * hours:.2f} GPU-hours, {4 * hours * 2.5:,.2f} at 2.5 each"
    assert lines[3] == f"about {hours / 2:.2f} hours on the clock with 2 runs at once"


@pytest.mark.parametrize(("cpus", "gpus", "last"), [(100, 3, "GPU-hours"), (3, 8, "GPU-hours"), (5, 8, "with 1 runs at once")])
def test_runs_that_do_not_fit_have_no_clock(cpus: float, gpus: float, last: str) -> None:
    lines = list(estimate([100] * 5, SPEED, GPU, ResourcesConfig(), cpus=cpus, gpus=gpus))
    assert lines[-1].endswith(last) and "at 2" not in lines[2]


def test_cpu_runs_count_cores_with_their_drivers() -> None:
    lines = list(estimate([3_540_000], SPEED, CPU, ResourcesConfig(price_per_cpu_hour=0.1, price_per_gpu_hour=99), cpus=10, gpus=0))
    assert lines[2] == "2.50 CPU-hours, 0.25 at 0.1 each" and lines[3].endswith("with 1 runs at once")


def test_nothing_is_promised_without_a_measurement() -> None:
    assert list(estimate([], SPEED, CPU, ResourcesConfig(), cpus=1, gpus=0)) == ["0 response tokens to train on"]
    assert "not known before a run of this kind is sealed" in list(estimate([5], None, CPU, ResourcesConfig(), cpus=1, gpus=0))[1]
