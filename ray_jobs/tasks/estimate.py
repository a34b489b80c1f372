"""How long a sweep's runs take and what they cost, by the speed of runs that are sealed: what a plan says before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from diversity.artifact import Artifact
from ray_jobs.job.experiment import ResourcesConfig
from ray_jobs.tasks.trials import Demand

MEASURED = 20  # sealed runs that are looked at, the first ones


@dataclass(frozen=True)
class Speed:
    """What sealed runs took.

    Attributes:
        runs: how many were measured.
        tokens_per_s: response tokens that a run trained on in a second of training; mean over the runs.
        slowest: the least of them.
        fastest: the most of them.
        besides_s: mean seconds of a run beside training: reading, loading, sealing, scoring.
    """

    runs: int
    tokens_per_s: float
    slowest: float
    fastest: float
    besides_s: float

    @classmethod
    def of(cls, sealed: Sequence[tuple[Artifact, Artifact | None]]) -> Speed | None:
        """Return the speed of sealed models and their scores, or None where there are none."""
        speeds, besides = [], []
        for model, scores in sealed[:MEASURED]:
            manifest: dict[str, Any] = model.manifest
            speeds.append(manifest["response_tokens"] / max(manifest["train_s"], 1e-9))
            scoring = scores.manifest["seconds"] if scores is not None and scores.sealed else 0.0
            first_step = manifest.get("setup", {}).get("first_step_s", 0.0)  # counted in both
            besides.append(manifest.get("setup_s", 0.0) - first_step + scoring)
        if not speeds:
            return None
        return cls(len(speeds), sum(speeds) / len(speeds), min(speeds), max(speeds), sum(besides) / len(besides))


def estimate(
    tokens: Sequence[int], speed: Speed | None, demand: Demand, resources: ResourcesConfig, *, cpus: float, gpus: float
) -> Iterator[str]:
    """Yield what the runs that are left will take: hours of runs, GPU-hours or CPU-hours, hours on the clock, and the cost.

    Args:
        tokens: response tokens that each of them trains on.
        speed: of sealed runs.
        demand: of one run.
        resources: prices.
        cpus: of the cluster at its full size; 0 where that is not known.
        gpus: likewise.
    """
    yield f"{sum(tokens):,} response tokens to train on"
    if not tokens:
        return
    if speed is None:
        yield "how long that takes is not known before a run of this kind is sealed: train one first, with grid.train=[<its cell's name>]"
        return
    measured = f"{speed.tokens_per_s:,.0f} response tokens/s ({speed.slowest:,.0f} to {speed.fastest:,.0f} in {speed.runs} sealed runs)"
    hours = (sum(tokens) / speed.tokens_per_s + len(tokens) * speed.besides_s) / 3600
    yield f"at {measured} and {speed.besides_s:.0f} s a run for the rest: {hours:.2f} hours of runs"
    unit, each = ("GPU", float(demand.ranks)) if demand.gpu else ("CPU", demand.cpus)
    price = resources.price_per_gpu_hour if demand.gpu else resources.price_per_cpu_hour
    cost = "" if price is None else f", {hours * each * price:,.2f} at {price:g} each"
    yield f"{hours * each:.2f} {unit}-hours{cost}"
    at_once = min(int((cpus + 1e-6) // demand.cpus), int((gpus + 1e-6) // demand.ranks) if demand.gpu else len(tokens), len(tokens))
    if at_once >= 1:
        yield f"about {hours / at_once:.2f} hours on the clock with {at_once} runs at once"
