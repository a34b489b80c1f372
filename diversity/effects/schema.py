"""The tidy tables of an experiment, named once: what a cell is, what a score is, results and effects."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from diversity.effects.scores import SCORES_SCHEMA

logger = logging.getLogger(__name__)

Row = dict[str, Any]

MIN_LEVELS = 3  # two levels always lie on a line
MIN_DATASETS = 7  # a correlation over fewer has an interval from about -1 to 1
MIN_DOF = 3  # a partial effect with fewer degrees of freedom left has an interval that says nothing
PREDICTORS = ("level", "share", "coverage")
SUBSETS = ("all", "without level 0")

CELL_FIELDS = [
    pa.field("cell", pa.string()),
    pa.field("strategy", pa.string()),
    pa.field("size", pa.int64()),
    pa.field("level", pa.float64()),
    pa.field("subset_seed", pa.int64()),
    pa.field("control", pa.string()),
    pa.field("samples", pa.int64()),
    pa.field("instruction_tokens", pa.int64()),
    pa.field("response_tokens", pa.int64()),
    pa.field("pool_size", pa.int64()),
    pa.field("k", pa.int64()),
    pa.field("M", pa.int64()),
    pa.field("share", pa.float64()),  # k / M
    pa.field("coverage", pa.float64()),  # of the strategy's own typing
    pa.field("content", pa.string()),  # hash of the dataset's sorted sample ids: cells of one content are one dataset
]
SCORE = ("evaluator", "split", "metric")
"""What tells one score from another."""

RESULTS_SCHEMA = pa.schema([*CELL_FIELDS, ("training_seed", pa.int64()), *SCORES_SCHEMA])
"""One row for each cell, training seed and score; a cell without a score has one row whose columns from training_seed on are null."""

COVERAGE_SCHEMA = pa.schema([("cell", pa.string()), ("typing", pa.string()), ("coverage", pa.float64())])
SOURCES_SCHEMA = pa.schema([("cell", pa.string()), ("source", pa.string()), ("samples", pa.int64())])

PLANNED_SCHEMA = pa.schema([*CELL_FIELDS[:6], ("training_seed", pa.int64())])
"""One row for each run that was planned, trained or not: what says how much is missing."""

EFFECTS_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),  # slope | ends | fit | difference | contrast | partial | spread | best | correlation
        (
            "method",
            pa.string(),
        ),  # ols | bayesian-ridge | level-means | welch | f-test | pearson | spearman | mean, or what a spread is over
        ("evaluator", pa.string()),
        ("split", pa.string()),
        ("metric", pa.string()),
        ("primary", pa.bool_()),
        ("higher_is_better", pa.bool_()),
        ("strategy", pa.string()),
        ("size", pa.int64()),  # null: over sizes, size held fixed
        ("control", pa.string()),
        ("other", pa.string()),  # difference, contrast: the arm that is taken away
        ("level", pa.float64()),  # contrast, best: where
        ("predictor", pa.string()),  # level | share | coverage, or what a partial effect or correlation is of
        ("side", pa.string()),  # of a posterior metric
        ("variant", pa.string()),  # of a posterior metric
        ("subset", pa.string()),  # all | without level 0
        ("given", pa.string()),  # what is held fixed
        ("design", pa.string()),  # slope: what its error is taken from: see `units.Design`
        ("n", pa.int64()),  # datasets, which are the unit
        ("runs", pa.int64()),  # runs behind them
        ("planned", pa.int64()),  # runs that were planned, one for each cell and training seed
        ("missing", pa.int64()),  # of them without a score
        ("diverged", pa.int64()),  # of them with one that is not finite
        ("dof", pa.int64()),  # residual degrees of freedom
        ("estimate", pa.float64()),  # slope: change of the score from 0 to 1 of the predictor, along a line
        ("se", pa.float64()),
        ("low", pa.float64()),  # 95%
        ("high", pa.float64()),
        ("p", pa.float64()),
        ("p_permutation", pa.float64()),
        ("p_smallest", pa.float64()),  # the smallest p that shuffling so few datasets can give; null where they are many
        ("p_holm", pa.float64()),  # over the plan's primary effects, or over what was explored together: see `slopes.FAMILY`
        ("p_equivalence", pa.float64()),  # of an effect that is no smaller than the margin, by two one-sided tests
        ("margin", pa.float64()),  # the plan's smallest effect of interest
        ("role", pa.string()),  # confirmatory | exploratory
        ("sd_between", pa.float64()),  # of datasets about the line or their mean
        ("se_within", pa.float64()),  # root mean square of the runs' standard errors over samples
        ("se_prompts", pa.float64()),  # slope, ends, difference, contrast: its standard error over prompts, already part of se
        ("length_ratio", pa.float64()),  # slope: mean response length at the highest level over that at the lowest
        ("note", pa.string()),
    ]
)


def grouped(rows: Iterable[Row], names: Sequence[str]) -> list[tuple[Row, list[Row]]]:
    """Return (values of those columns, rows that have them), in order of appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return [(dict(zip(names, key, strict=True)), group) for key, group in groups.items()]


def arm_name(strategy: str, control: str) -> str:
    """Return what an arm is called where one text must say it: the strategy, and its control if it has one."""
    return strategy if control == "none" else f"{strategy}, {control}"


def is_finite(row: Row) -> bool:
    """Return whether a row has a score that is a number; infinity or NaN is what a run that diverged leaves."""
    return row["value"] is not None and math.isfinite(row["value"])


def scored_rows(results: pa.Table) -> list[Row]:
    """Return the rows of results with a finite score; others, of runs that diverged, are told in the log and counted in the verdict.

    A standard error that is not finite, as of one prompt group, is none.
    """
    rows = [row for row in results.to_pylist() if row["value"] is not None]
    if diverged := sorted({row["run"] for row in rows if not is_finite(row)}):
        logger.warning("%d runs have a score that is not finite, left out of the analysis: %s", len(diverged), ", ".join(diverged[:3]))
    return [finite_error(row) for row in rows if is_finite(row)]


def finite_error(row: Row) -> Row:
    """Return a row of results with None for a standard error that is not finite."""
    return row if row["se"] is None or math.isfinite(row["se"]) else {**row, "se": None}


def head_of(key: Row, group: Sequence[Row], kind: str) -> Row:
    """Return the columns that all effects of a group of results share."""
    return {**key, "kind": kind, "primary": group[0]["primary"], "higher_is_better": group[0]["higher_is_better"]}
