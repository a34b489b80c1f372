"""Judged scores join an experiment's results: the rows that `judge` sealed for each run, behind the run's own."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from diversity.artifact import ArtifactError, Storage
from diversity.effects.scores import SCORES_SCHEMA

SCORE_COLUMNS = tuple(SCORES_SCHEMA.names[1:])
PRIMARY_METRIC = "judged_win_rate"


def with_judgments(storage: Storage, entries: Mapping[str, Any], results: pa.Table) -> tuple[pa.Table, list[str]]:
    """Return (results with every judge's rows, paths of what was read).

    Which scores count is what the report on judges says: the index may also hold those of runs that an earlier judging had. The verdict
    rests on a judge only where the plan named it and it passed calibration: then its win rate is primary and nothing else.

    Args:
        storage: where the artifacts lie.
        entries: the index, as `Index.read` gives it.
        results: RESULTS_SCHEMA.

    Raises:
        ArtifactError: the report on judges doesn't say which scores count: an earlier version made it.
    """
    if "judging" not in entries or not (report := storage.at(entries["judging"])).sealed:
        return results, []
    manifest = report.manifest
    if "judged" not in manifest:
        raise ArtifactError(f"{report.uri} was made by an earlier version: run judge again")
    paths = manifest["judged"]
    if not paths:
        return results, []
    primary = manifest["primary"] if manifest["primary_passed"] else None
    woven: list[dict[str, Any]] = []
    read = [report.path]
    for key, group in itertools.groupby(results.to_pylist(), key=lambda row: f"{row['cell']}_t{row['training_seed']}"):
        rows = list(group)
        if key in paths and rows[0]["run"] is not None and (artifact := storage.at(paths[key])).sealed:
            facts = {name: value for name, value in rows[0].items() if name not in SCORE_COLUMNS}
            rows += [{**facts, **{name: row[name] for name in SCORE_COLUMNS}} for row in artifact.read().to_pylist()]
            read.append(artifact.path)
        woven += rows
    if primary is not None:
        sets = {row["split"] for row in woven if row["evaluator"] == primary and row["metric"] == PRIMARY_METRIC}
        chosen = "all" if "all" in sets else next(iter(sorted(sets)), None)
        wanted = (primary, chosen, PRIMARY_METRIC)
        woven = [{**row, "primary": (row["evaluator"], row["split"], row["metric"]) == wanted} for row in woven]
    return pa.Table.from_pylist(woven, schema=results.schema), read
