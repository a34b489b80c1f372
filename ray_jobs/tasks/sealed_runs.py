"""Whether a sealed run is of a configuration: from manifests alone, so that it can be asked anywhere, without cluster and model.

The index finds a run by its cell, and the last one that was entered counts. After an override, such as another learning rate, that may be
a run of the settings before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diversity.artifact import Storage
from ray_jobs.job.experiment import Experiment


def other_settings(storage: Storage, experiment: Experiment, scores: Mapping[str, Any]) -> str:
    """Return in what a scored run differs from the configuration, for people; empty where it is the configuration's own.

    Args:
        storage: where the run lies.
        experiment: the configuration. The kind of device, on CPUs the precision, and kernels that are left open are the run's own business.
        scores: the manifest of the run's scores.
    """
    wanted = experiment.evaluation.identity()
    if scores.get("evaluators", wanted) != wanted:
        return "other evaluation.evaluators"
    model = storage.artifact("models", scores.get("run", "none"))
    if not model.sealed:
        return ""
    run = model.manifest
    if run["model"] != experiment.model and not (run["model"].startswith("/") or experiment.model.startswith("/")):
        return f"model={run['model']}"
    has, kernels = run["sft"], experiment.sft.kernels
    plain = experiment.sft.model_copy(update={"kernels": "plain"})  # whether fused ones are installed here is beside the point
    settled = plain.resolved(has["device"], fast_bf16=has["precision"] == "bf16")
    asked = settled.identity(training_seed=has["training_seed"], device=has["device"])
    if kernels == "fused" or (kernels == "auto" and "kernels" in has):
        asked["kernels"] = "fused"
    return ", ".join(f"sft.{name}={has.get(name)}" for name in sorted({*has, *asked}) if has.get(name) != asked.get(name))
