"""Made-up tables in the form of an experiment's: for tests of the report alone, nothing here was measured."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pyarrow as pa

from diversity.cell import TYPINGS, Cell
from diversity.effects import COVERAGE_SCHEMA, RESULTS_SCHEMA, SOURCES_SCHEMA, effects_table
from diversity.metrics import METRICS_SCHEMA, PAPER_METRICS
from ray_jobs.report.data import CELLS_SCHEMA, Curve, Pair, ReportData, TypeList

SLOPES = dict(zip(TYPINGS, (0.0, -0.02, 0.03, 0.0, -0.04, -0.08), strict=True))  # of NLL, so negative is better
SOURCES = ("alpaca", "flan", "code", "medical", "trivia", "dialogue", "maths", "legal", "shell", "poems")


def cells(sizes=(10000,), levels=7, seeds=(0,)):
    grid = []
    for size in sizes:
        for seed in seeds:
            grid += [Cell(t, size, Fraction(j, levels - 1), seed) for t in TYPINGS for j in range(levels)]
            grid.append(Cell("random", size, None, seed))
    return grid


def tables(grid, scored=lambda cell: True, seed=0):
    """Return (cells, coverage, sources, results, metrics) of a grid; `scored` says which cells have a run."""
    generator = np.random.default_rng(seed)
    rows, coverage, sources, results, metrics = [], [], [], [], []
    for cell in grid:
        level = None if cell.level is None else float(cell.level)
        dial = 0.8 if level is None else level
        M = 12000 if "micro" in cell.strategy else 800 if "macro" in cell.strategy else 6000
        k = None if level is None else round(M * (0.3 + 0.7 * level))
        length = (60 + 90 * dial if cell.strategy.endswith("micro") else 90 + 30 * dial) * generator.uniform(0.96, 1.04)
        describe = {**cell.describe(), "cell": cell.name}
        row = {
            **describe,
            "samples": cell.size,
            "k": k,
            "M": None if k is None else M,
            "share": None if k is None else k / M,
            "pool_size": round(cell.size * (1.5 + 8 * dial)),
            "coverage": None if k is None else k / M,
            "instruction_tokens": 40 * cell.size,
            "response_tokens": round(length * cell.size),
            "instruction_length": 40.0,
            "response_length": length,
            "dataset": f"datasets/{cell.name}",
        }
        rows.append(row)
        for typing in TYPINGS:
            own = typing == cell.strategy
            share = k / M if own else min(1.0, (0.55 + 0.3 * dial + 0.05 * TYPINGS.index(typing) / 5) * (cell.size / 30000) ** 0.15)
            coverage.append({"cell": cell.name, "typing": typing, "coverage": share})
        mix = generator.dirichlet(np.linspace(6, 1, len(SOURCES)) * (0.5 + 2 * dial))
        sources += [{"cell": cell.name, "source": s, "samples": n} for s, n in zip(SOURCES, generator.multinomial(cell.size, mix).tolist())]
        run = {"training_seed": 0, "run": f"run-{cell.name}", "evaluator": "nll", "metric": "nll_per_token", "higher_is_better": False}
        base = 1.62 - 0.06 * np.log(cell.size / 10000) + SLOPES.get(cell.strategy, 0) * dial
        if scored(cell):
            for split, shift in (("out", 0.0), ("in", -0.15)):
                value = base + shift + generator.normal(0, 0.012)
                results.append({**row, **run, "split": split, "value": value, "se": 0.01, "n": 2000, "primary": split == "out"})
        else:
            results.append(row)
        for side in ("instruction", "response"):
            for metric in PAPER_METRICS:
                value = length if metric == "mean_length" else 0.4 + 0.2 * dial + generator.normal(0, 0.08)
                variant = "per-sample" if metric == "mean_length" else "pooled"
                metrics.append({"cell": cell.name, "side": side, "metric": metric, "variant": variant, "value": value})

    def pick(found, schema):
        return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in found], schema=schema)

    return (
        pick(rows, CELLS_SCHEMA),
        pick(coverage, COVERAGE_SCHEMA),
        pick(sources, SOURCES_SCHEMA),
        pick(results, RESULTS_SCHEMA),
        pick(metrics, METRICS_SCHEMA.append(pa.field("cell", pa.string()))),
    )


def curve(typing="response-micro", n=25000):
    df = np.maximum(1, 115000 / np.arange(1, n + 1) ** 0.62 * np.exp(-np.arange(n) / 4200)).astype(np.int64)
    band = {"low": 10, "high": 500, "n_high": int((df > 500).sum()), "n_low": int((df < 10).sum())}
    band["n_mid"] = n - band["n_high"] - band["n_low"]
    return Curve(typing, df, band)


def report_data(grid, scored=lambda cell: True, note="These tables are made up.", bootstraps=200):
    found, coverage, sources, results, metrics = tables(grid, scored)
    samples = [("Name three <b>rivers</b> & their seas.", "The Rhine, the Po and the Volga…\n\nA second paragraph.")] * 2
    return ReportData(
        experiment="made-up",
        note=note,
        facts=[("corpus", "114,660 samples"), ("model", "builtin:smollm2-135m"), ("embedder", "static"), ("tagger", "keyphrase")],
        cells=found,
        coverage=coverage,
        sources=sources,
        results=results,
        effects=effects_table(results, metrics, coverage, sources, bootstraps=bootstraps),
        planned=len(grid),
        curves=[curve(), curve("instruction-micro", 18000)],
        types=[TypeList("response-meso", 5607, [("write code", 900)], [("bird <song>", 3), ("a+", 3)], [("write code", 900)])],
        pairs=[
            Pair("response-micro", "level 0", "level 1", samples, samples),
            Pair("response-meso", "level 0", "level 1", samples, samples),
        ],
    )
