"""Results with planted effects, or none, and what the analysis says of one simulation of them: claimed, or covered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from diversity.effects.schema import PLANNED_SCHEMA
from diversity.effects.slopes import Measured, slope_rows
from diversity.effects.tables import table_of
from diversity.effects.verdict import claim_of

Row = dict[str, Any]
SEVEN, THREE, ENDS = tuple(j / 6 for j in range(7)), (0.0, 0.5, 1.0), (0.0, 0.0, 0.5, 1.0, 1.0)
NESTED = 0.8  # of the noise of a level is that of the level below, in one subset seed: they share so many samples
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
    (row,) = best_rows(rows, measured(rows))
    kept = 1 + (int(row["note"].split()[0]) if row["note"][0].isdigit() else 0)
    return bool(generator.random() < kept / 7)


def prompts_cover(generator: np.random.Generator, prompts: int, spread: float, **design: Any) -> bool | None:
    """Return whether the slope's interval holds the change over all prompts there could be, each of which has a slope of its own."""
    rows = scores(generator, effect=1.0, **design)
    own = spread * generator.normal(size=prompts)
    by_run = {row["run"]: row["value"] + row["level"] * own for row in rows}
    rows = [{**row, "value": float(by_run[row["run"]].mean())} for row in rows]

    def error(_: Row, weights: dict[str, float]) -> tuple[float, int]:
        total = sum(weight * by_run[run] for run, weight in weights.items())
        return float(np.std(total, ddof=1) / np.sqrt(prompts)), prompts

    return covered(next(row for row in effects(rows, prompt_error=error) if is_slope(row)), 1.0)
