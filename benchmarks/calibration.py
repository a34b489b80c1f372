"""Nominal against observed: false claims, coverage and power of the verdict, by planted effects: `python -m benchmarks.calibration`.

Every design is simulated many times and goes through the functions that `analyze`, `compare` and `power` use. Prints what was promised,
what came, and whether it is within bounds: false claims ≤ 0.06 at a nominal 0.05, coverage ≥ 0.94 at 0.95, and the power that `power` tells
within 0.03 of how often the whole rule claims. Returns 1 where one is not.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from diversity.effects import RESULTS_SCHEMA
from diversity.effects.best import best_rows
from diversity.effects.comparing import compare_cells
from diversity.effects.contrasts import contrast_rows, difference_rows
from diversity.effects.ledger import Ledger
from diversity.effects.plan import Plan, PlanConfig, mark
from diversity.effects.posterior import correlation_rows
from diversity.effects.power import PlannedContrast, PlannedSlope, Simulation
from diversity.effects.schema import PLANNED_SCHEMA
from diversity.effects.slopes import Measured, slope_rows
from diversity.effects.tables import table_of
from diversity.effects.verdict import claim_of

Row = dict[str, Any]
SEVEN, THREE, ENDS = tuple(j / 6 for j in range(7)), (0.0, 0.5, 1.0), (0.0, 0.0, 0.5, 1.0, 1.0)
NESTED = 0.8  # of the noise of a level is that of the level below, in one subset seed: they share so many samples
CHUNK = 20
TOLD = 8000  # simulations behind the power that is promised
CLAIMED = ("better", "worse")


def scores(
    generator: np.random.Generator,
    levels: Sequence[float | None],
    seeds: int,
    *,
    strategy: str = "response-micro",
    own: bool = False,
    effect: float = 0.0,
    curve: float = 0.0,
    nested: float = 0.0,
    training: int = 1,
    training_sd: float = 0.0,
    shared_top: int = 0,
) -> list[Row]:
    """Return rows of results of one arm whose datasets scatter with standard deviation 1.

    Args:
        generator: of the noise.
        levels: with repeats for more seeds at a level; (None,) for a strategy without a level.
        seeds: subset seeds of each.
        strategy: its name.
        own: seeds of its own for each level.
        effect: change from level 0 to 1 along a line.
        curve: height of an inverted U over it.
        nested: correlation of neighbouring levels of one seed.
        training: runs on each dataset.
        training_sd: standard deviation of one run on a dataset.
        shared_top: how many different datasets the seeds have at level 1; 0: as many as seeds.
    """
    rows = []
    distinct = sorted(set(levels), key=lambda level: -1 if level is None else level)
    before: dict[int, float] = {}
    for j, level in enumerate(distinct):
        runs: dict[int, list[float]] = {}
        for s in range(seeds * levels.count(level)):
            noise = nested * before.get(s, generator.normal()) + np.sqrt(1 - nested**2) * generator.normal()
            before[s] = noise
            content = s % shared_top if shared_top and level == 1 else s
            x = 0.0 if level is None else level
            value = effect * x + curve * 4 * x * (1 - x) + noise
            values = runs.setdefault(content, [value + training_sd * generator.normal() for _ in range(training)])
            seed = s + 1000 * j if own else s
            for t, found in enumerate(values):
                cell = f"{strategy}_l{level}_s{seed}"
                row: Row = {"cell": cell, "strategy": strategy, "size": 1000, "level": level, "subset_seed": seed, "control": "none"}
                row |= {
                    "training_seed": t,
                    "run": f"{strategy} {level} {content if shared_top and level == 1 else seed} {t}",
                    "value": found,
                }
                row |= {"share": level, "coverage": level, "evaluator": "nll", "split": "out", "metric": "nll", "primary": True}
                rows.append({**row, "se": None, "higher_is_better": True, "samples": 1000, "content": None})
    return rows


def measured(rows: Sequence[Row], **more: Any) -> Measured:
    """Return what `slope_rows` wants beside the scores, slopes on level alone."""
    table = pa.Table.from_pylist([{name: row.get(name) for name in RESULTS_SCHEMA.names} for row in rows], schema=RESULTS_SCHEMA)
    return Measured(Ledger(table), seed=int(1e6 * abs(rows[0]["value"])), predictors=("level",), **more)


def effects(rows: Sequence[Row], make: Callable[..., list[Row]] = slope_rows, **more: Any) -> list[Row]:
    """Return the rows of effects as `verdict` reads them."""
    return table_of(make(rows, measured(rows, **more))).to_pylist()


def is_slope(row: Row) -> bool:
    """Return whether it is a slope over all levels."""
    return row["kind"] == "slope" and row["method"] == "ols" and row["subset"] == "all"


def slope_claimed(generator: np.random.Generator, arms: int = 1, **design: Any) -> bool:
    """Return whether any of some arms is claimed to have an effect."""
    rows = [row for i in range(arms) for row in scores(generator, strategy=f"arm-{i}", **design)]
    return any(claim_of(row) in CLAIMED for row in effects(rows) if is_slope(row))


def first_claimed(generator: np.random.Generator, arms: int, effect: float, **design: Any) -> bool:
    """Return whether the first of some arms is claimed, which alone has an effect."""
    rows = [row for i in range(arms) for row in scores(generator, strategy=f"arm-{i}", effect=0 if i else effect, **design)]
    return next(claim_of(row) in CLAIMED for row in effects(rows) if is_slope(row) and row["strategy"] == "arm-0")


def covered(row: Row | None, truth: float) -> bool | None:
    """Return whether an interval holds the truth; None where there is no interval."""
    return None if row is None or row["low"] is None else bool(row["low"] <= truth <= row["high"])


def slope_covers(generator: np.random.Generator, kind: str = "slope", effect: float = 1.0, **design: Any) -> bool | None:
    """Return whether the interval of the slope, or of its ends, holds the true change."""
    found = effects(scores(generator, effect=effect, **design))
    return covered(
        next((row for row in found if row["kind"] == kind and row["subset"] == "all" and row["method"] != "bayesian-ridge"), None), effect
    )


def contrast_of(generator: np.random.Generator, top: int, others: int, effect: float = 0.0) -> Row:
    """Return the contrast of the highest level of an arm less random, on so many datasets."""
    rows = scores(generator, THREE, top, effect=effect)
    return effects([*rows, *scores(generator, (None,), others, strategy="random")], contrast_rows)[0]


def contrast_claimed(generator: np.random.Generator, top: int, others: int, effect: float = 0.0) -> bool:
    """Return whether the contrast is claimed."""
    return claim_of(contrast_of(generator, top, others, effect)) in CLAIMED


def contrast_covers(generator: np.random.Generator, top: int, others: int) -> bool | None:
    """Return whether the contrast's interval holds 0."""
    return covered(contrast_of(generator, top, others), 0.0)


def difference_covers(generator: np.random.Generator, **design: Any) -> bool | None:
    """Return whether the interval of the difference of two slopes holds the true one."""
    rows = [*scores(generator, strategy="a", effect=1.0, **design), *scores(generator, strategy="b", **design)]
    return covered(effects(rows, difference_rows)[0], 1.0)


def confirmatory_claimed(generator: np.random.Generator) -> bool:
    """Return whether either of two primary effects, or both, is claimed among six arms that have none."""
    rows = [row for i in range(6) for row in scores(generator, ENDS, 5, strategy=f"arm-{i}")]
    rows += scores(generator, (None,), 10, strategy="random")
    planned = pa.Table.from_pylist([{name: row[name] for name in PLANNED_SCHEMA.names} for row in rows], schema=PLANNED_SCHEMA)
    known = measured(rows)
    found = slope_rows(rows, known) + contrast_rows(rows, known)
    mark(found, Plan(PlanConfig.model_validate({"primary": [{"strategy": "arm-0"}, {"strategy": "arm-0", "less": "random"}]}), planned))
    return any(claim_of(row) in CLAIMED for row in table_of(found).to_pylist() if row["role"] == "confirmatory")


def equivalence_claimed(generator: np.random.Generator, margin: float, **design: Any) -> bool:
    """Return whether a change as large as the margin is called too small to matter."""
    rows = scores(generator, effect=margin, **design)
    planned = pa.Table.from_pylist([{name: row[name] for name in PLANNED_SCHEMA.names} for row in rows], schema=PLANNED_SCHEMA)
    found = slope_rows(rows, measured(rows))
    mark(found, Plan(PlanConfig(margin=margin), planned))
    return any(row["p_equivalence"] < 0.05 for row in table_of(found).to_pylist() if is_slope(row))


def compare_claimed(generator: np.random.Generator, **design: Any) -> bool:
    """Return whether two experiments that differ in nothing are told apart over their cells."""
    first = scores(generator, **design)
    noise: dict[str, float] = {}
    second = [{**row, "run": "b " + row["run"], "value": row["value"] + noise.setdefault(row["run"], generator.normal())} for row in first]
    found = compare_cells(first, second).difference
    low, high = found.interval() if found is not None else (0.0, 0.0)
    return not low <= 0 <= high


def correlation_covers(generator: np.random.Generator, datasets: int, arms: int, training: int, method: str, held: bool) -> bool | None:
    """Return whether the interval of a metric's correlation with the score holds 0.6, that of both where length is held fixed."""
    rows, metric, length = [], [], []
    for i in range(datasets):
        y, z = generator.normal(), generator.normal()
        x = 0.6 * y + 0.8 * generator.normal()
        made = scores(generator, (None,), 1, strategy=f"arm-{i % arms}", training=training)
        cell, about = f"cell {i}", generator.normal(size=training)
        for row, away in zip(made, about - about.mean(), strict=True):  # training runs scatter about the score of their dataset
            rows.append({**row, "cell": cell, "run": f"{cell} {row['training_seed']}", "value": y + held * z + away})
        for column, name, variant, figure in ((metric, "entropy", "pooled", x + held * z), (length, "mean_length", "per-sample", z)):
            column.append({"cell": cell, "side": "response", "metric": name, "variant": variant, "value": figure})
    found = correlation_rows(rows, pa.Table.from_pylist([*metric, *length]), generator, 300)
    wanted = [r for r in found if r["predictor"] == "entropy" and r["method"] == method and r["given"] == ("mean_length" if held else "")]
    truth = 0.6 if method == "pearson" else 6 / np.pi * np.arcsin(0.3)
    row = table_of(wanted).to_pylist()[0]
    return covered(row, truth)


def best_holds(generator: np.random.Generator, **design: Any) -> bool:
    """Return whether the kept set holds one of seven equally good levels, any of which may be called the best: hardest to promise."""
    rows = scores(generator, **design)
    (row,) = best_rows(rows, int(1e6 * abs(rows[0]["value"])))
    kept = 1 + (int(row["note"].split()[0]) if row["note"][0].isdigit() else 0)
    return bool(generator.random() < kept / 7)


def prompts_cover(generator: np.random.Generator, prompts: int, spread: float) -> bool | None:
    """Return whether the slope's interval holds the change over all prompts there could be, each of which has a slope of its own."""
    rows = scores(generator, ENDS, 5, effect=1.0)
    own = spread * generator.normal(size=prompts)
    by_run = {row["run"]: row["value"] + row["level"] * own for row in rows}
    rows = [{**row, "value": float(by_run[row["run"]].mean())} for row in rows]

    def error(_: Row, weights: dict[str, float]) -> tuple[float, int]:
        total = sum(weight * by_run[run] for run, weight in weights.items())
        return float(np.std(total, ddof=1) / np.sqrt(prompts)), prompts

    return covered(next(row for row in effects(rows, prompt_error=error) if is_slope(row)), 1.0)


@dataclass(frozen=True)
class Promise:
    """One row of the table.

    Attributes:
        what: `false claims`, `coverage` or `power`.
        design: in words.
        nominal: what is promised.
        simulate: one simulation: whether it was claimed or covered; None where nothing was said.
    """

    what: str
    design: str
    nominal: float
    simulate: Callable[[np.random.Generator], bool | None]

    def kept(self, observed: float) -> bool:
        """Return whether what came is within the bounds."""
        if self.what == "false claims":
            return observed <= self.nominal + 0.01
        if self.what == "coverage":
            return observed >= self.nominal - 0.01
        return abs(observed - self.nominal) <= 0.03


def promises() -> list[Promise]:
    """Return everything that is held against simulation."""
    false, cover, found = "false claims", "coverage", []
    for design, options in {
        "7 levels, seeds of their own": {"levels": SEVEN, "seeds": 1, "own": True},
        "3 levels x 5 seeds of their own": {"levels": THREE, "seeds": 5, "own": True},
        "7 levels x 3 seeds, nested": {"levels": SEVEN, "seeds": 3, "nested": NESTED},
        "3 levels x 6 seeds, nested": {"levels": THREE, "seeds": 6, "nested": NESTED},
        "10, 5, 10 datasets, nested": {"levels": ENDS, "seeds": 5, "nested": NESTED},
        "7 x 1 seed x 3 training seeds": {"levels": SEVEN, "seeds": 1, "training": 3, "training_sd": 1.0},
        "3 x 3 seeds x 3 training seeds": {"levels": THREE, "seeds": 3, "training": 3, "training_sd": 1.0},
        "3 x 2 seeds (36 orders)": {"levels": THREE, "seeds": 2},
        "10 seeds, 4 different at level 1": {"levels": THREE, "seeds": 10, "shared_top": 4},
        "6 arms, 10, 5, 10 datasets": {"levels": ENDS, "seeds": 5, "arms": 6},
    }.items():
        found.append(Promise(false, f"slope, {design}", 0.05, partial(slope_claimed, **options)))
    found += [
        Promise(false, "two primary effects of a plan", 0.05, confirmatory_claimed),
        Promise(false, "contrast 10 v 10", 0.05, partial(contrast_claimed, top=10, others=10)),
        Promise(false, "contrast 3 v 10", 0.05, partial(contrast_claimed, top=3, others=10)),
        Promise(false, "compare, shared runs", 0.05, partial(compare_claimed, levels=THREE, seeds=10, shared_top=4)),
        Promise(false, "compare, 7 levels x 4 seeds", 0.05, partial(compare_claimed, levels=SEVEN, seeds=4)),
        Promise(false, "equivalence at the margin", 0.05, partial(equivalence_claimed, margin=1.5, levels=ENDS, seeds=5)),
        Promise(cover, "slope, 7 levels, seeds of their own", 0.95, partial(slope_covers, levels=SEVEN, seeds=1, own=True)),
        Promise(cover, "slope, 7 levels x 4 seeds, nested", 0.95, partial(slope_covers, levels=SEVEN, seeds=4, nested=NESTED)),
        Promise(
            cover, "slope, 3 x 3 seeds x 3 training seeds", 0.95, partial(slope_covers, levels=THREE, seeds=3, training=3, training_sd=1.0)
        ),
        Promise(cover, "f(1) - f(0), inverted U, 3 x 6 seeds", 0.95, partial(slope_covers, kind="ends", levels=THREE, seeds=6, curve=4.0)),
        Promise(cover, "difference of slopes, 3 x 6 seeds", 0.95, partial(difference_covers, levels=THREE, seeds=6)),
        Promise(cover, "contrast 2 v 10", 0.95, partial(contrast_covers, top=2, others=10)),
        Promise(cover, "contrast 10 v 10", 0.95, partial(contrast_covers, top=10, others=10)),
        Promise(cover, "best set, 7 levels x 3 seeds", 0.95, partial(best_holds, levels=SEVEN, seeds=3)),
        Promise(cover, "best set, 7 x 2 x 3 training seeds", 0.95, partial(best_holds, levels=SEVEN, seeds=2, training=3, training_sd=1.0)),
        Promise(cover, "slope over new prompts", 0.95, partial(prompts_cover, prompts=60, spread=6.0)),
    ]
    for method, held, datasets, arms, training in (
        ("pearson", False, 21, 3, 3),
        ("pearson", True, 42, 6, 1),
        ("spearman", False, 21, 3, 3),
        ("spearman", True, 9, 1, 1),
    ):
        design = f"{method}, {datasets} datasets" + f" x {training} training seeds" * (training > 1) + ", length held" * held
        found.append(
            Promise(
                cover, design, 0.95, partial(correlation_covers, datasets=datasets, arms=arms, training=training, method=method, held=held)
            )
        )
    return found + powers()


def powers() -> list[Promise]:
    """Return what `power` promises for some changes, each to be held against the whole rule."""
    found = []
    for design, levels, seeds, own, change, arms in (
        ("7 levels, seeds of their own", SEVEN, 1, True, 4.0, 1),
        ("7 levels x 3 seeds of their own", SEVEN, 3, True, 2.0, 1),
        ("3 levels x 2 seeds", THREE, 2, False, 6.0, 1),
        ("0, 0, 1/2, 1, 1 x 2 seeds", ENDS, 2, False, 3.0, 1),
        ("10, 5, 10 datasets", ENDS, 5, False, 1.4, 1),
        ("first of 6 arms, 10, 5, 10 datasets", ENDS, 5, False, 1.6, 6),
    ):
        told = Simulation(PlannedSlope.of(levels, seeds, own), arms, simulations=TOLD).power(change)
        simulate = partial(first_claimed, arms=arms, effect=change, levels=levels, seeds=seeds, own=own)
        found.append(Promise("power", f"slope, {design}, {change:g} sigma", told, simulate))
    for top, others, change in ((10, 10, 1.33), (3, 10, 3.0)):
        told = Simulation(PlannedContrast(top, others), simulations=TOLD).power(change)
        found.append(
            Promise(
                "power",
                f"contrast {top} v {others}, {change:g} sigma",
                told,
                partial(contrast_claimed, top=top, others=others, effect=change),
            )
        )
    return found


def chunk(task: tuple[int, int, int]) -> tuple[int, list[bool | None], float]:
    """Return some simulations of one promise, and their CPU seconds."""
    index, first, count = task
    promise, started = KNOWN[index], time.process_time()
    return index, [promise.simulate(np.random.default_rng([index, first + i])) for i in range(count)], time.process_time() - started


KNOWN: list[Promise] = []


def observed(known: list[Promise], simulations: int, workers: int, limit_s: float = float("inf")) -> tuple[dict[int, list[bool]], float]:
    """Return what was said in each promise's simulations, and CPU seconds of all of them.

    All promises go on side by side, so that after `limit_s` seconds each has about as many simulations as the others.
    """
    KNOWN[:] = known
    tasks = [(i, first, min(CHUNK, simulations - first)) for first in range(0, simulations, CHUNK) for i in range(len(known))]
    found: dict[int, list[bool]] = {i: [] for i in range(len(known))}
    spent, started = 0.0, time.monotonic()
    with multiprocessing.get_context("fork").Pool(workers) if workers > 1 else nullcontext() as pool:
        for index, said, seconds in map(chunk, tasks) if pool is None else pool.imap(chunk, tasks):
            found[index] += [bool(one) for one in said if one is not None]
            spent += seconds
            if time.monotonic() - started > limit_s:
                break
    return found, spent


def main(argv: list[str] | None = None) -> int:
    """Print the table and return whether all promises were kept as an exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration")
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="stop after so many seconds with the simulations there are")
    parser.add_argument("--only", default="", help="designs whose name has this")
    given = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    known = [promise for promise in promises() if given.only in f"{promise.what} {promise.design}"]
    slope_claimed(np.random.default_rng(0), levels=SEVEN, seeds=3)  # compile once, before the processes part
    started = time.monotonic()
    found, spent = observed(known, given.simulations, given.workers, given.limit_s)
    print("| | design | nominal | observed | simulations | |\n|---|---|---|---|---|---|")
    kept = True
    for i, promise in enumerate(known):
        rate = float(np.mean(found[i])) if found[i] else float("nan")
        fine = promise.kept(rate)
        kept &= fine
        print(
            f"| {promise.what} | {promise.design} | {promise.nominal:.3f} | {rate:.3f} | {len(found[i]):,} | {'' if fine else 'NOT KEPT'} |"
        )
    print(f"\n{spent:.0f} CPU seconds, {time.monotonic() - started:.0f} s on {given.workers} workers")
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
