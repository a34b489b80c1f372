"""What each kind of diversity does with the others held fixed: partial effects over all runs, and how much runs scatter, and from what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from diversity.effects.regression import ols
from diversity.effects.schema import MIN_DOF, SCORE, Row, grouped, head_of
from diversity.effects.slopes import adjust, inference, within
from diversity.effects.units import datasets, runs_of, seed_labels, single_runs

LENGTHS = {"response_length": "response_tokens", "instruction_length": "instruction_tokens"}
ENTROPY = "source_entropy"
HELD = (*LENGTHS, ENTROPY)
GIVEN = "the other coverages, lengths of both sides, source entropy, subset seeds"


def dataset_facts(results: pa.Table, coverage: pa.Table, sources: pa.Table) -> dict[str, dict[str, float]]:
    """Return for each cell: coverage of every typing, log2 of the mean tokens of each side, and source entropy in bits.

    Args:
        results: rows of RESULTS_SCHEMA.
        coverage: rows of COVERAGE_SCHEMA.
        sources: rows of SOURCES_SCHEMA.
    """
    facts: dict[str, dict[str, float]] = {}
    for row in results.select(["cell", "samples", *LENGTHS.values()]).to_pylist():
        for name, tokens in LENGTHS.items():
            if row["samples"] and row[tokens]:
                facts.setdefault(row["cell"], {})[name] = float(np.log2(row[tokens] / row["samples"]))
    for row in coverage.to_pylist():
        facts.setdefault(row["cell"], {})[row["typing"]] = row["coverage"]
    counts: dict[str, list[int]] = {}
    for row in sources.to_pylist():
        counts.setdefault(row["cell"], []).append(row["samples"])
    for cell, samples in counts.items():
        shares = np.array([count for count in samples if count > 0], float)
        shares /= shares.sum()
        facts.setdefault(cell, {})[ENTROPY] = float(-(shares * np.log2(shares)).sum())
    return facts


def partial_rows(scored: Sequence[Row], facts: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """Return the effect of each typing's coverage given the others, lengths and source entropy, over the datasets of all strategies.

    One regression for each score and size, and one over sizes, with an intercept for each subset seed and size. Coverages go together, so
    an effect that is plain alone may be lost here: the note tells by how much its variance is inflated. Only typings count that all
    datasets were measured on.

    Args:
        scored: rows of RESULTS_SCHEMA with a value.
        facts: of `dataset_facts`.
    """
    rows: list[Row] = []
    for key, group in grouped(scored, SCORE):
        units = [unit for unit in datasets(group) if unit["cell"] in facts]
        sizes = sorted({unit["size"] for unit in units})
        for size in [*sizes, None] if len(sizes) > 1 else sizes:
            used = [unit for unit in units if size in (None, unit["size"])]
            rows += _partials({**head_of(key, group, "partial"), "size": size, "method": "ols", "given": GIVEN}, used, facts)
    adjust(rows, (*SCORE, "size"))
    return rows


def spread_rows(scored: Sequence[Row]) -> list[Row]:
    """Return how far apart runs lie that should agree, by what differs between them; each arm at each size.

    `prompts`: a run's own standard error over the samples of the split (within). `training-seed`: standard deviation between runs of one
    dataset. `subset-seed`: standard deviation between the means of datasets of one level; it holds 1/r of the former's variance where
    there are r training seeds (between). Here alone runs are told apart: an effect's error comes from datasets.

    Args:
        scored: rows of RESULTS_SCHEMA with a value.
    """
    rows: list[Row] = []
    for key, group in grouped(scored, (*SCORE, "size", "control", "strategy")):
        head, runs = head_of(key, group, "spread"), single_runs(group)
        if (error := within(runs)) is not None:
            rows.append({**head, "method": "prompts", "estimate": error, "n": len(datasets(group)), "runs": len(runs)})
        units = datasets(group)
        of_run = {run: unit["cell"] for unit in units for run in unit["runs"]}
        repeats = [[row["value"] for row in found] for _, found in grouped([{**r, "of": of_run[r["run"]]} for r in runs], ("of",))]
        levels = [[unit["value"] for unit in found] for _, found in grouped(units, ("level",))]
        for method, groups in (("training-seed", repeats), ("subset-seed", levels)):
            sd, dof = pooled_sd(groups)
            if dof:
                rows.append({**head, "method": method, "estimate": sd, "n": len(units), "runs": len(runs), "dof": dof})
    return rows


def pooled_sd(groups: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Return the standard deviation within groups and its degrees of freedom; NaN and 0 where no group has two values."""
    dof = sum(len(group) - 1 for group in groups)
    if not dof:
        return float("nan"), 0
    squares = sum(float(np.sum((np.asarray(group) - np.mean(group)) ** 2)) for group in groups)
    return float(np.sqrt(squares / dof)), dof


def _partials(head: Row, units: Sequence[Row], facts: Mapping[str, Mapping[str, float]]) -> list[Row]:
    typings = [name for name in facts[units[0]["cell"]] if name not in HELD] if units else []
    names = [name for name in (*typings, *HELD) if all(name in facts[unit["cell"]] for unit in units)]
    x = np.array([[facts[unit["cell"]][name] for name in names] for unit in units])
    names = [name for i, name in enumerate(names) if np.ptp(x[:, i]) > 0]  # what is the same everywhere explains nothing
    head = {**head, "n": len(units), "runs": runs_of(units), "se_within": within(units)}
    if not names:
        return []
    x = np.array([[facts[unit["cell"]][name] for name in names] for unit in units])
    y = np.array([unit["value"] for unit in units])
    sizes = np.array([unit["size"] for unit in units])
    _, blocks = np.unique(np.column_stack([seed_labels(units), sizes]), axis=0, return_inverse=True)
    blocks = blocks.ravel()
    if (dof := len(units) - len(names) - int(blocks.max()) - 1) < MIN_DOF:
        note = f"{len(names)} partial effects need {len(units) - dof + MIN_DOF} datasets, there are {len(units)}"
        return [{**head, "predictor": name, "note": note} for name in names]
    return [{**head, "predictor": name, **_partial(x, y, i, blocks)} for i, name in enumerate(names)]


def _partial(x: NDArray[np.float64], y: NDArray[np.float64], column: int, blocks: NDArray[np.int64]) -> Row:
    others = np.delete(x, column, axis=1)
    scale = others.std(axis=0)
    others = (others - others.mean(axis=0)) / np.where(scale > 0, scale, 1)
    try:
        alone, held = ols(x[:, column], y, blocks), ols(x[:, column], y, blocks, others)
    except ValueError as error:
        return {"note": str(error)}
    inflation = (held.se / held.residual_sd) ** 2 / (alone.se / alone.residual_sd) ** 2 if held.residual_sd > 0 < alone.residual_sd else 1.0
    return {**inference(held), "note": f"variance inflated {inflation:.1f} times by what is held fixed"}
