"""How many different datasets stand behind the cells of a level, and how much they share: seeds are repeats only as far as they differ.

Ten subset seeds that choose the same samples are one dataset, and two that share nine tenths of them are hardly two.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from diversity.effects.schema import arm_name, grouped

Row = dict[str, Any]
Ids = Callable[[Row], Sequence[str]]
READ_A_LEVEL = 4  # datasets whose samples are compared, of those of one arm and level

DISTINCT_SCHEMA = pa.schema(
    [
        ("strategy", pa.string()),
        ("size", pa.int64()),
        ("control", pa.string()),
        ("level", pa.float64()),
        ("cells", pa.int64()),
        ("datasets", pa.int64()),  # different ones
        ("between_seeds", pa.float64()),  # mean share of samples that two different datasets of the level have in common
        ("between_levels", pa.float64()),  # share that one subset seed's datasets of this level and the next lower have in common
    ]
)


def distinct_table(cells: Sequence[Row], ids: Ids) -> pa.Table:
    """Return one row for each arm and level with more than nothing to compare.

    Args:
        cells: strategy, size, control, level, subset_seed, cell, content, of sealed datasets.
        ids: gives the sample ids of a cell's dataset; asked for at most `READ_A_LEVEL` of a level.
    """
    rows = []
    for key, arm in grouped(cells, ("strategy", "size", "control")):
        below: dict[int, set[str]] = {}
        for level, group in sorted(grouped(arm, ("level",)), key=lambda item: -1.0 if item[0]["level"] is None else item[0]["level"]):
            different = {row["content"] or row["cell"]: row for row in sorted(group, key=lambda row: -row["subset_seed"])}
            first = sorted(different.values(), key=lambda row: row["subset_seed"])[:READ_A_LEVEL]
            here = {row["subset_seed"]: set(ids(row)) for row in first}
            pairs = [_share(a, b) for a, b in itertools.combinations(here.values(), 2)]
            nested = [_share(found, below[seed]) for seed, found in here.items() if seed in below]
            row = {**key, **level, "cells": len(group), "datasets": len(different)}
            rows.append({**row, "between_seeds": _mean(pairs), "between_levels": _mean(nested)})
            below = here
    return pa.Table.from_pylist(rows, schema=DISTINCT_SCHEMA)


def distinct_lines(distinct: pa.Table) -> list[str]:
    """Return a line for each arm that has several subset seeds: different datasets by level, and what they share."""
    lines = []
    for key, rows in grouped(distinct.to_pylist(), ("strategy", "size", "control")):
        if max(row["cells"] for row in rows) < 2:
            continue
        counts = ", ".join(f"{row['datasets']} of {row['cells']}" + _at(row) for row in rows)
        shares = [row["between_seeds"] for row in rows if row["between_seeds"] is not None]
        levels = [row["between_levels"] for row in rows if row["between_levels"] is not None]
        told = f"; two subset seeds share {np.mean(shares):.0%} of their samples" if shares else ""
        told += f", two neighbouring levels of one seed {np.mean(levels):.0%}" if levels else ""
        lines.append(f"{arm_name(key['strategy'], key['control'])}, {key['size']:,} samples: different datasets {counts}{told}")
    return lines


def _at(row: Row) -> str:
    return "" if row["level"] is None else f" at level {row['level']:.2g}"


def _share(first: set[str], second: set[str]) -> float:
    return len(first & second) / max(1, min(len(first), len(second)))


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
