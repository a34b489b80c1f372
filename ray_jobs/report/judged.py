"""Judged scores join an experiment's results: the rows that `judge` sealed for each run, behind the run's own."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from diversity.artifact import Storage
from diversity.effects.scores import SCORES_SCHEMA

SCORE_COLUMNS = tuple(SCORES_SCHEMA.names[1:])
PRIMARY_METRIC = "judged_win_rate"


def with_judgments(storage: Storage, entries: Mapping[str, Any], results: pa.Table) -> tuple[pa.Table, list[str]]:
    """Return (results with every judge's rows, paths of what was read).

    The verdict rests on a judge only where the plan named it and it passed calibration: then its win rate is primary and nothing else.

    Args:
        storage: where the artifacts lie.
        entries: the index, as `Index.read` gives it.
        results: RESULTS_SCHEMA.
    """
    paths = entries.get("judged", {})
    if not paths:
        return results, []
    primary = _primary(storage, entries)
    woven: list[dict[str, Any]] = []
    read: list[str] = [entries["judging"]] if "judging" in entries else []
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


def _primary(storage: Storage, entries: Mapping[str, Any]) -> str | None:
    """Return the judge that the verdict rests on, if one was named and passed."""
    if "judging" not in entries or not (artifact := storage.at(entries["judging"])).sealed:
        return None
    manifest = artifact.manifest
    return manifest["primary"] if manifest["primary_passed"] else None
