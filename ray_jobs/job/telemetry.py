"""Figures of a running job for Prometheus, by Ray's own metrics: every node shows them on its metrics port as `ray_sft_diversity_…`.

Drivers tell them, since a process's series go when it ends; training ranks tell their own (`training/ray_signals.py`). Tags are names of
stages and of kinds of work, never of samples or runs: few series, and nothing of the data, because that port asks for no token.
What is told before there is a Ray waits for one; where none comes, nobody hears it, and nothing fails.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.util.metrics import Counter, Gauge

COUNTERS = {
    "samples": ("samples in artifacts that this job sealed", ("stage",)),
    "seals_reused": ("artifacts that were sealed already and so not made again", ("stage",)),
    "waited_seconds": ("seconds that a sweep waited for nodes", ()),
}
GAUGES = {
    "stage_running": ("1 while a stage runs", ("stage",)),
    "parts_done": ("tasks of a stage that are done", ("what",)),
    "parts_left": ("tasks of a stage that are not done yet", ("what",)),
    "runs_done": ("runs of a sweep that are trained and scored", ()),
    "runs_left": ("runs of a sweep that are not", ()),
    "runs_failed": ("runs of a sweep that failed", ()),
}
PREFIX = "sft_diversity_"
_made: dict[str, Any] = {}
_waiting: list[tuple[str, float, dict[str, str]]] = []  # told before there was a Ray to tell


def add(name: str, amount: float, **tags: str) -> None:
    """Add to a counter of `COUNTERS`."""
    if amount > 0:
        _waiting.append((name, amount, tags))
        flush()


def tell(name: str, value: float, **tags: str) -> None:
    """Set a gauge of `GAUGES`."""
    _waiting.append((name, value, tags))
    flush()


def flush() -> None:
    """Hand on what was told, if there is a Ray."""
    if not ray.is_initialized():
        return
    for name, value, tags in _waiting:
        if name in COUNTERS:
            _metric(Counter, name, COUNTERS[name]).inc(value, tags)
        else:
            _metric(Gauge, name, GAUGES[name]).set(value, tags)
    _waiting.clear()


def _metric(kind: Any, name: str, declared: tuple[str, tuple[str, ...]]) -> Any:
    if name not in _made:
        description, keys = declared
        _made[name] = kind(f"{PREFIX}{name}", description=description, tag_keys=keys)
    return _made[name]
