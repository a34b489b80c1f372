"""The dashboard asks for what the code tells, and nothing else: names against names. No scrape of a running cluster is compared yet."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ray_jobs.job import telemetry
from training import ray_signals

ROOT = Path(__file__).resolve().parents[2]
OF_RAY = {"ray_resources"}


def told() -> set[str]:
    """Return every series of ours, as Prometheus sees it."""
    counters = {*telemetry.COUNTERS, *ray_signals.COUNTERS}
    return {f"ray_sft_diversity_{name}_total" for name in counters} | {f"ray_sft_diversity_{name}" for name in telemetry.GAUGES}


def asked() -> set[str]:
    """Return every series that a panel of the dashboard asks for."""
    board = json.loads((ROOT / "cluster" / "grafana.json").read_text("utf-8"))
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    return {name for expression in expressions for name in re.findall(r"ray_\w+", expression)}


def test_every_panel_asks_for_what_is_told_and_all_that_is_told_is_shown() -> None:
    assert asked() == told() | OF_RAY


def test_tags_name_kinds_and_never_samples_or_runs() -> None:
    keys = {key for _, tags in (*telemetry.COUNTERS.values(), *telemetry.GAUGES.values()) for key in tags}
    assert keys <= {"stage", "what"}


def test_what_is_told_before_there_is_a_ray_waits(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(telemetry, "_waiting", [])
    heard: list[tuple[str, float, dict[str, str]]] = []

    class Heard:
        def __init__(self, name: str, **about: object) -> None:
            self.name = name

        def inc(self, value: float, tags: dict[str, str]) -> None:
            heard.append((self.name, value, tags))

        set = inc

    monkeypatch.setattr(telemetry, "Counter", Heard)
    monkeypatch.setattr(telemetry, "Gauge", Heard)
    monkeypatch.setattr(telemetry, "_made", {})
    monkeypatch.setattr(telemetry.ray, "is_initialized", lambda: False)
    telemetry.add("samples", 3, stage="ingest")
    telemetry.add("samples", 0, stage="ingest")
    assert not heard
    monkeypatch.setattr(telemetry.ray, "is_initialized", lambda: True)
    telemetry.tell("runs_left", 2)
    assert heard == [("sft_diversity_samples", 3, {"stage": "ingest"}), ("sft_diversity_runs_left", 2, {})]
    assert not telemetry._waiting
