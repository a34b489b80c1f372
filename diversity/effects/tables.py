"""The effects of an experiment as one tidy table, from the tidy table of its results.

`slope` rows say how a score changes with diversity for one strategy, size and control; `correlation` rows how a posterior metric goes
with the score over all runs. What there are too few runs for is a row with a note instead of a number: a report can say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from diversity.effects.correlation import Kind, correlation
from diversity.effects.regression import bayesian_ridge, holm, ols, permutation_p

MIN_LEVELS = 3  # two levels always lie on a line
MIN_RUNS = 7  # a correlation over fewer has an interval from about -1 to 1
PREDICTORS = ("level", "share", "coverage")
KINDS: tuple[Kind, ...] = ("pearson", "spearman")

RESULTS_SCHEMA = pa.schema(
    [
        ("cell", pa.string()),
        ("strategy", pa.string()),
        ("size", pa.int64()),
        ("level", pa.float64()),
        ("subset_seed", pa.int64()),
        ("control", pa.string()),
        ("samples", pa.int64()),
        ("instruction_tokens", pa.int64()),
        ("response_tokens", pa.int64()),
        ("pool_size", pa.int64()),
        ("k", pa.int64()),
        ("M", pa.int64()),
        ("share", pa.float64()),  # k / M
        ("coverage", pa.float64()),  # of the strategy's own typing
        ("training_seed", pa.int64()),
        ("run", pa.string()),
        ("evaluator", pa.string()),
        ("split", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("se", pa.float64()),
        ("n", pa.int64()),
        ("higher_is_better", pa.bool_()),
        ("primary", pa.bool_()),
    ]
)
"""One row for each cell, training seed and score; a cell without a score has one row whose columns from training_seed on are null."""

EFFECTS_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),  # slope | correlation
        ("method", pa.string()),  # ols | bayesian-ridge | pearson | spearman
        ("evaluator", pa.string()),
        ("split", pa.string()),
        ("metric", pa.string()),
        ("primary", pa.bool_()),
        ("strategy", pa.string()),  # of a slope
        ("size", pa.int64()),  # null: over sizes, size held fixed
        ("control", pa.string()),  # of a slope
        ("predictor", pa.string()),  # level | share | coverage, or a posterior metric
        ("side", pa.string()),  # of a posterior metric
        ("variant", pa.string()),  # of a posterior metric
        ("subset", pa.string()),  # all | without level 0
        ("given", pa.string()),  # what is held fixed: "" or mean_length
        ("n", pa.int64()),
        ("estimate", pa.float64()),  # slope: change of the score from 0 to 1 of the predictor
        ("se", pa.float64()),
        ("low", pa.float64()),  # 95%
        ("high", pa.float64()),
        ("p", pa.float64()),
        ("p_permutation", pa.float64()),
        ("p_holm", pa.float64()),  # over the strategies of one score, size, control, predictor and subset
        ("note", pa.string()),
    ]
)

Row = dict[str, Any]


def effects_table(results: pa.Table, metrics: pa.Table | None = None, *, seed: int = 0, bootstraps: int = 1000) -> pa.Table:
    """Return slopes of every score for every strategy, and correlations of every posterior metric with every score.

    Args:
        results: rows of RESULTS_SCHEMA.
        metrics: the posterior metrics, METRICS_SCHEMA with a column `cell`; None leaves the correlations out.
        seed: of shuffles and resamples.
        bootstraps: resamples of runs for the intervals of correlations.
    """
    generator = np.random.default_rng(seed)
    rows = slope_rows(results, generator)
    if metrics is not None:
        rows += correlation_rows(results, metrics, generator, bootstraps)
    return pa.Table.from_pylist([{name: row.get(name) for name in EFFECTS_SCHEMA.names} for row in rows], schema=EFFECTS_SCHEMA)


def slope_rows(results: pa.Table, generator: np.random.Generator) -> list[Row]:
    """Return the slopes on level, k / M and coverage, with and without level 0, each strategy, size and control on its own."""
    scored = [row for row in results.to_pylist() if row["value"] is not None and row["level"] is not None]
    rows: list[Row] = []
    for key, group in _grouped(scored, ("evaluator", "split", "metric", "size", "control", "strategy")):
        head = {**key, "kind": "slope", "primary": group[0]["primary"]}
        for predictor in PREDICTORS:
            for subset in ("all", "without level 0"):
                used = [row for row in group if row[predictor] is not None and (subset == "all" or row["level"] > 0)]
                rows += _slopes({**head, "predictor": predictor, "subset": subset}, used, generator)
    _adjust(rows)
    return rows


def correlation_rows(results: pa.Table, metrics: pa.Table, generator: np.random.Generator, bootstraps: int) -> list[Row]:
    """Return the correlations of posterior metrics with scores over runs; a run that several cells share counts once.

    The score is turned so that more is better. Where there are several sizes there is also a row over all of them with the size held
    fixed, since size moves both.
    """
    measured: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in metrics.to_pylist():
        measured.setdefault((row["side"], row["metric"], row["variant"]), {})[row["cell"]] = row["value"]
    scored = [row for row in results.to_pylist() if row["value"] is not None]
    rows: list[Row] = []
    for key, group in _grouped(scored, ("evaluator", "split", "metric")):
        runs = list({row["run"]: row for row in reversed(group)}.values())[::-1]
        sizes = sorted({row["size"] for row in runs})
        for size in [*sizes, None] if len(sizes) > 1 else sizes:
            within = [row for row in runs if size in (None, row["size"])]
            for (side, metric, variant), values in measured.items():
                head = {**key, "kind": "correlation", "primary": group[0]["primary"], "size": size, "side": side}
                head |= {"predictor": metric, "variant": variant}
                lengths = measured.get((side, "mean_length", "per-sample"))
                rows += _correlations(head, within, values, None, generator, bootstraps)
                if lengths is not None and metric != "mean_length":
                    rows += _correlations(head, within, values, lengths, generator, bootstraps)
    return rows


def _grouped(rows: Iterable[Row], names: tuple[str, ...]) -> list[tuple[Row, list[Row]]]:
    """Return (values of those columns, rows that have them), in order of appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return [(dict(zip(names, key, strict=True)), group) for key, group in groups.items()]


def _slopes(head: Row, used: list[Row], generator: np.random.Generator) -> list[Row]:
    x = np.array([row[head["predictor"]] for row in used], np.float64)
    y = np.array([row["value"] for row in used], np.float64)
    head = {**head, "given": "", "n": len(used)}
    if (levels := len(np.unique(x))) < MIN_LEVELS:
        return [
            {**head, "method": "ols", "note": f"a slope needs {MIN_LEVELS} different values of {head['predictor']}, there are {levels}"}
        ]
    blocks = np.array([row["subset_seed"] for row in used])
    groups = blocks if len(np.unique(blocks)) > 1 else None
    try:
        line = ols(x, y, groups)
    except ValueError as error:
        return [{**head, "method": "ols", "note": str(error)}]
    low, high = line.interval()
    shuffled = permutation_p(x, y, generator, groups, draws=1999) if head["predictor"] == "level" else None
    ridge = bayesian_ridge(100 * x, y)  # in per cent, as the paper's lines
    ridge_se = 100 * float(np.sqrt(ridge.covariance[0, 0]))
    return [
        {
            **head,
            "method": "ols",
            "estimate": line.estimate,
            "se": line.se,
            "low": low,
            "high": high,
            "p": line.p,
            "p_permutation": shuffled,
        },
        {**head, "method": "bayesian-ridge", "estimate": 100 * float(ridge.weights[0]), "se": ridge_se},
    ]


def _adjust(rows: list[Row]) -> None:
    """Write Holm's p over the strategies of each family of least-squares slopes."""
    family = ("evaluator", "split", "metric", "size", "control", "predictor", "subset")
    tested = [row for row in rows if row["method"] == "ols" and row.get("p") is not None]
    for _, group in _grouped(tested, family):
        for row, adjusted in zip(group, holm([row["p"] for row in group]), strict=True):
            row["p_holm"] = adjusted


def _correlations(
    head: Row,
    runs: list[Row],
    values: Mapping[str, float],
    lengths: Mapping[str, float] | None,
    generator: np.random.Generator,
    bootstraps: int,
) -> list[Row]:
    needed = (values,) if lengths is None else (values, lengths)
    used = [row for row in runs if all(np.isfinite(table.get(row["cell"], np.nan)) for table in needed)]
    head = {**head, "given": "" if lengths is None else "mean_length", "n": len(used)}
    if len(used) < MIN_RUNS:
        return [{**head, "method": kind, "note": f"a correlation needs {MIN_RUNS} runs, there are {len(used)}"} for kind in KINDS]
    x = np.array([values[row["cell"]] for row in used])
    y = np.array([row["value"] if row["higher_is_better"] else -row["value"] for row in used])
    fixed: list[NDArray[np.float64]] = []
    if lengths is not None:
        fixed.append(np.array([lengths[row["cell"]] for row in used]))
    sizes = np.array([row["size"] for row in used])
    fixed += [(sizes == size).astype(np.float64) for size in np.unique(sizes)[1:]]
    given = np.column_stack(fixed) if fixed else None
    rows = []
    for kind in KINDS:
        found = correlation(x, y, kind, given, bootstraps, generator)
        rows.append({**head, "method": kind, "estimate": found.estimate, "low": found.low, "high": found.high})
    return rows
