"""Made-up rows of results for tests of the analysis."""

from __future__ import annotations

import pyarrow as pa

from diversity.effects import RESULTS_SCHEMA

LEVELS = [j / 6 for j in range(7)]


def result(strategy, level, value, *, size=1000, seed=0, run=None, split="out", higher=False, **more):
    cell = f"{strategy}_n{size}_l{level}_s{seed}"
    row = {"cell": cell, "strategy": strategy, "size": size, "level": level, "subset_seed": seed, "control": "none", "value": value}
    row |= {"share": level, "coverage": level, "run": run or f"run {cell} {split}", "evaluator": "nll", "split": split, "metric": "nll"}
    return {**row, "se": None, "higher_is_better": higher, "primary": split == "out", **more}


def table(rows):
    return pa.Table.from_pylist([{name: row.get(name) for name in RESULTS_SCHEMA.names} for row in rows], schema=RESULTS_SCHEMA)


def metric_table(values, side="response", metric="entropy", variant="pooled"):
    return pa.Table.from_pylist([{"cell": c, "side": side, "metric": metric, "variant": variant, "value": v} for c, v in values.items()])


def picked(effects, **wanted):
    return [row for row in effects.to_pylist() if all(row[name] == value for name, value in wanted.items())]


def noisy(slopes, generator, seeds=3, sd=0.1, levels=LEVELS):
    return [
        result(s, x, 2 + b * x + generator.normal(0, sd), seed=seed) for s, b in slopes.items() for seed in range(seeds) for x in levels
    ]
