"""Which sealed results a tool is asked about: an experiment's folder, its configuration, or a results file."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from diversity.artifact import ArtifactError, Storage
from diversity.config import ConfigError
from diversity.effects.comparing import common_scores, of_score
from diversity.effects.schema import SCORE, Row, scored_rows
from ray_jobs.job.experiment import load_experiment
from ray_jobs.job.runtime import absolute, inside_job
from ray_jobs.report.distinct import distinct_lines
from ray_jobs.report.folder import located

FILE = "results.parquet"
DISTINCT = "distinct.parquet"
TARGET_HELP = "CONFIG.yaml, <storage>/experiments/<name>, <storage>/results/<fingerprint>, or a results.parquet"


def read_scored(target: str) -> tuple[str, list[Row]]:
    """Return the name of an experiment and the rows of its results that have a score.

    Args:
        target: see `TARGET_HELP`.

    Raises:
        ArtifactError: nothing is sealed there, it is no table of results, or no run has a score.
    """
    name, folder, file = _place(target)
    storage, inside = located(folder)
    file = f"{inside}{file}"
    if not storage.exists(file):
        raise ArtifactError(f"{target}: there is no {storage.uri}/{file}; make it with: python -m ray_jobs.analyze")
    filesystem, root = storage.filesystem()
    try:
        table = pq.read_table(f"{root}/{file}", filesystem=filesystem)
    except pa.ArrowInvalid:
        raise ArtifactError(f"{target}: {storage.uri}/{file} is no Parquet file") from None
    if lacking := [name for name in ("cell", "run", *SCORE, "value") if name not in table.column_names]:
        raise ArtifactError(f"{target}: {storage.uri}/{file} is no table of results, it has no column {lacking[0]}")
    rows = scored_rows(table)
    if not rows:
        raise ArtifactError(f"{target}: no run has a score; make them with: python -m ray_jobs.sweep")
    return name, rows


def overlap_lines(target: str) -> list[str]:
    """Return what the results say of different datasets and what they share, a line for each arm; none where they don't say it."""
    _, folder, _ = _place(target)
    storage, inside = located(folder)
    file = f"{inside}{DISTINCT}"
    if not storage.exists(file):
        return []
    filesystem, root = storage.filesystem()
    return distinct_lines(pq.read_table(f"{root}/{file}", filesystem=filesystem))


def one_score(first: Sequence[Row], second: Sequence[Row], wanted: str | None) -> tuple[str, list[Row], list[Row]]:
    """Return the name of a score that both have and the rows of each: the wanted one, else the first primary one, else the first.

    Args:
        first: rows of results.
        second: rows of results; the same as first where there is one experiment.
        wanted: `evaluator/split/metric`, or None.

    Raises:
        ConfigError: both have no score in common, or not that one; the message names those that there are.
    """
    names = {"/".join(score): score for score in common_scores(first, second)}
    if not names:
        raise ConfigError("the two experiments have no score in common")
    if wanted is not None and wanted not in names:
        raise ConfigError(f"--score {wanted}: there is no such score; there is {', '.join(names)}")
    name = wanted or next(iter(names))
    return name, of_score(first, names[name]), of_score(second, names[name])


def _place(target: str) -> tuple[str, str, str]:
    """Return (name, folder, file in the folder) of a target."""
    if target.endswith((".yaml", ".yml")):
        experiment = load_experiment(Path(target), [], inside_job=inside_job())
        target = f"{experiment.storage}/experiments/{experiment.experiment}"
    path = absolute(target.rstrip("/").removesuffix("/index.json"))
    if path.endswith(".parquet"):
        folder, file = posixpath.split(path)
        return posixpath.basename(folder), folder, file
    storage = Storage(path)
    if not storage.exists("index.json"):
        return posixpath.basename(path), path, FILE
    root = posixpath.dirname(posixpath.dirname(path))
    entry = json.loads(storage.read_bytes("index.json"))["artifacts"].get("results")
    if entry is None:
        raise ArtifactError(f"{path}/index.json names no results; make them with: python -m ray_jobs.analyze")
    return posixpath.basename(path), f"{root}/{entry}", FILE


__all__ = ["SCORE", "TARGET_HELP", "one_score", "overlap_lines", "read_scored"]
