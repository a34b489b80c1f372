"""The analysis of a large grid, and its report: `python -m benchmarks.analysis [--cells 10000] [--bootstraps 1000]`.

Made-up results of six strategies, random, three sizes and as many subset seeds as it takes, two scores, twenty posterior metrics. Prints
seconds of every part of the analysis, of drawing the report, and the report's bytes, each with its limit; and, for the correlations, what
the usual way costs: one pair of columns and one resample at a time, with scipy, timed on a few resamples and scaled up.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from diversity.cell import TYPINGS
from diversity.effects import EFFECTS_SCHEMA, RESULTS_SCHEMA, effects_table
from diversity.effects.best import best_rows
from diversity.effects.contrasts import contrast_rows, difference_rows
from diversity.effects.ledger import Ledger
from diversity.effects.partial import dataset_facts, partial_rows, spread_rows
from diversity.effects.posterior import correlation_rows
from diversity.effects.schema import COVERAGE_SCHEMA, SOURCES_SCHEMA, scored_rows
from diversity.effects.slopes import Measured, slope_rows
from ray_jobs.report.data import CELLS_SCHEMA, ReportData
from ray_jobs.report.page import render

LIMIT_S, LIMIT_BYTES = 60, 6_000_000
SIZES, LEVELS, METRICS = (10_000, 20_000, 30_000), 7, 10
SOURCES = ("forum", "code", "encyclopaedia", "dialogue")


def made_up(cells: int, seed: int = 0) -> dict[str, pa.Table]:
    """Return the tables of at least so many scored cells."""
    generator = np.random.default_rng(seed)
    names = [(typing, j / (LEVELS - 1)) for typing in TYPINGS for j in range(LEVELS)] + [("random", None)]
    seeds = -(-cells // (len(names) * len(SIZES)))
    results, coverage, sources, metrics = [], [], [], []
    for subset in range(seeds):
        for size in SIZES:
            for strategy, level in names:
                dial = 0.8 if level is None else level
                label = "" if level is None else f"_l{int(100 * level + 1e-9):03d}"
                cell = f"{strategy}_n{size}{label}_s{subset}"
                length = 60 + 60 * dial * generator.uniform(0.9, 1.1)
                share = None if level is None else 0.3 + 0.7 * level
                row: dict[str, Any] = {"cell": cell, "strategy": strategy, "size": size, "level": level, "subset_seed": subset}
                row |= {
                    "control": "none",
                    "samples": size,
                    "share": share,
                    "coverage": share,
                    "content": hash_of(cell),
                    "M": 12000,
                    "pool_size": 2 * size,
                }
                row |= {"k": None if share is None else round(12000 * share), "instruction_tokens": 40 * size}
                row |= {"response_tokens": round(length * size), "training_seed": 0, "run": f"{hash_of(cell)}", "evaluator": "nll"}
                row |= {"instruction_length": 40.0, "response_length": length, "dataset": f"datasets/{hash_of(cell)}"}
                for split in ("out", "in"):
                    value = 1.6 - 0.03 * dial + generator.normal(0, 0.02)
                    score = {"metric": "nll", "split": split, "value": value, "se": 0.01, "n": 2000, "higher_is_better": False}
                    results.append({**row, **score, "primary": split == "out"})
                coverage += [
                    {"cell": cell, "typing": typing, "coverage": 0.5 + 0.3 * dial + generator.normal(0, 0.05)} for typing in TYPINGS
                ]
                counts = generator.multinomial(size, [0.4, 0.3, 0.2, 0.1]).tolist()
                sources += [{"cell": cell, "source": source, "samples": n} for source, n in zip(SOURCES, counts, strict=True)]
                for side in ("instruction", "response"):
                    measured = [("mean_length", "per-sample", length)]
                    measured += [(f"metric_{i}", "pooled", dial + generator.normal()) for i in range(1, METRICS)]
                    metrics += [{"cell": cell, "side": side, "metric": m, "variant": v, "value": x} for m, v, x in measured]

    def table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
        return pa.Table.from_pylist([{name: row[name] for name in schema.names} for row in rows], schema=schema)

    return {
        "results": table(results, RESULTS_SCHEMA),
        "cells": table(results[::2], CELLS_SCHEMA),
        "coverage": table(coverage, COVERAGE_SCHEMA),
        "sources": table(sources, SOURCES_SCHEMA),
        "metrics": pa.Table.from_pylist(metrics),
    }


def hash_of(cell: str) -> str:
    """Return a name as long as a fingerprint, so that the report has its real size."""
    from hashlib import blake2b

    return blake2b(cell.encode(), digest_size=16).hexdigest()


def usual_way(tables: dict[str, pa.Table], bootstraps: int, tried: int = 2) -> float:
    """Return the seconds that every correlation over all runs would take, one pair and one resample at a time."""
    from scipy import stats

    rows = [row for row in tables["results"].to_pylist() if row["primary"]]
    x, y = np.array([row["coverage"] or 0.8 for row in rows]), np.array([row["value"] for row in rows])
    generator = np.random.default_rng(0)
    started = time.perf_counter()
    for _ in range(tried):
        drawn = generator.integers(len(x), size=len(x))
        stats.pearsonr(x[drawn], y[drawn])
        stats.spearmanr(x[drawn], y[drawn])
    one = (time.perf_counter() - started) / tried
    sizes, held, scores = 2, 2, 2  # each size and all of them together cost about two of the whole; plain and with length held; two scores
    return one * bootstraps * sizes * held * scores * 2 * METRICS


def main(argv: list[str] | None = None) -> int:
    """Print the table and return whether every limit was kept as an exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.analysis")
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--bootstraps", type=int, default=1000)
    given = parser.parse_args(argv)
    tables = made_up(given.cells)
    scored = scored_rows(tables["results"])
    effects_table(made_up(500)["results"], made_up(500)["metrics"], bootstraps=2)  # compile what is compiled once on a machine
    counts = [f"{tables[name].num_rows:,} {name}" for name in ("cells", "results", "metrics")]
    print(f"{', '.join(counts)}, {given.bootstraps:,} bootstraps")

    generator = np.random.default_rng(0)
    measured = Measured(Ledger(tables["results"]))
    facts = dataset_facts(tables["results"], tables["coverage"], tables["sources"])
    parts: dict[str, Callable[[], Any]] = {
        "slopes": lambda: slope_rows(scored, measured),
        "differences": lambda: difference_rows(scored, measured),
        "contrasts": lambda: contrast_rows(scored, measured),
        "partial effects, spread": lambda: partial_rows(scored, facts) + spread_rows(scored),
        "best cells": lambda: best_rows(scored, measured),
        "correlations": lambda: correlation_rows(scored, tables["metrics"], generator, given.bootstraps),
    }
    rows, total = [], 0.0
    for name, part in parts.items():
        started = time.perf_counter()
        rows += part()
        took = time.perf_counter() - started
        total += took
        print(f"  {name:<24} {took:7.1f} s")
    print(f"  {'analysis':<24} {total:7.1f} s   limit {LIMIT_S} s")
    naive = usual_way(tables, given.bootstraps)
    print(f"  {'correlations, one by one':<24} {naive:7.1f} s   (estimate from a few resamples)")
    effects = pa.Table.from_pylist([{n: plain(row.get(n)) for n in EFFECTS_SCHEMA.names} for row in rows], schema=EFFECTS_SCHEMA)
    tables.pop("metrics")
    started = time.perf_counter()
    page = render(ReportData("large", None, [], effects=effects, planned=tables["cells"].num_rows, **tables))
    size = len(page.encode())
    print(f"  {'report':<24} {time.perf_counter() - started:7.1f} s")
    print(f"  {'report, bytes':<24} {size:>9,}   limit {LIMIT_BYTES:,}")
    return 0 if total <= LIMIT_S and size <= LIMIT_BYTES else 1


def plain(value: Any) -> Any:
    """Return null for what is not a number."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


if __name__ == "__main__":
    raise SystemExit(main())
