"""Arms against each other: differences of slopes, and the most diverse datasets against those of strategies without a level."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diversity.effects.ledger import generator_for, of_arm
from diversity.effects.permutation import permutation_p, smallest_p
from diversity.effects.regression import Slope, mean_of, slope_difference
from diversity.effects.schema import MIN_LEVELS, SCORE, SUBSETS, Row, arm_name, grouped, head_of
from diversity.effects.slopes import DRAWS, FAMILY, ONE_SEED, Measured, adjust, chosen, columns_of, constant, inference, within
from diversity.effects.units import Kind, blocks_of, datasets, design_of, line_through, runs_of, seed_labels


def difference_rows(scored: Sequence[Row], measured: Measured) -> list[Row]:
    """Return the differences of slopes on level: between strategies without a control, and between a strategy's controls and none.

    Each slope has the error of its design; their difference has Welch's degrees of freedom. The permutation p shuffles the residuals of
    the model with one common slope within each arm and seed (Freedman and Lane), since the arms themselves need not be exchangeable.

    Args:
        scored: rows of RESULTS_SCHEMA with a value.
        measured: what else is known.
    """
    rows: list[Row] = []
    dialled = [row for row in scored if row["level"] is not None]
    for key, group in grouped(dialled, (*SCORE, "size")):
        arms = {(k["strategy"], k["control"]): found for k, found in grouped(group, ("strategy", "control"))}
        pairs = [(a, b) for a, b in itertools.combinations(arms, 2) if a[1] == b[1] == "none"]
        pairs += [(arm, (arm[0], "none")) for arm in arms if arm[1] != "none" and (arm[0], "none") in arms]
        lines = {(arm, subset): _arm_line(found, subset) for arm, found in arms.items() for subset in SUBSETS}
        for (a, b), subset in itertools.product(pairs, SUBSETS):
            head = {**head_of(key, group, "difference"), "strategy": a[0], "control": a[1], "other": arm_name(*b)}
            head |= {"predictor": "level", "subset": subset, "method": "ols"}
            first, second = lines[a, subset], lines[b, subset]
            if first is not None and second is not None:
                rows.append(_difference(head, first, second, measured))
    adjust(rows, FAMILY)
    return rows


@dataclass(frozen=True)
class _ArmLine:
    """An arm's slope on level, the datasets that it rests on, the groups within which these are shuffled, and the design's kind."""

    line: Slope
    units: list[Row]
    blocks: NDArray[np.int64]
    kind: Kind


def _arm_line(group: Sequence[Row], subset: str) -> _ArmLine | None:
    """Return an arm's slope on level, or None where it has none."""
    units = chosen(group, "level", subset)
    x, y = columns_of(units, "level")
    if len(np.unique(x)) < MIN_LEVELS:
        return None
    design = design_of(x, seed_labels(units))
    used = [unit for unit, is_used in zip(units, design.used, strict=True) if is_used]
    return _ArmLine(line_through(x, y, design), used, blocks_of(design, [unit["size"] for unit in units])[design.used], design.kind)


def _difference(head: Row, first: _ArmLine, second: _ArmLine, measured: Measured) -> Row:
    """Return the difference of two arms' slopes on level."""
    if "one subset seed" in (first.kind, second.kind):
        head = {**head, "design": "one subset seed", "note": ONE_SEED}
    both = [*first.units, *second.units]
    head = {**head, "given": "", "n": len(both), "runs": runs_of(both), "se_within": within(both)}
    x, y = columns_of(both, "level")
    own = np.where(np.arange(len(both)) < len(first.units), x, 0.0)
    blocks = np.concatenate([first.blocks, second.blocks + 1_000_000])
    draws = generator_for(measured.seed, *(head.get(name) for name in ("kind", *FAMILY, "strategy", "other")))
    p = permutation_p(own, y, draws, blocks, covariates=x, draws=DRAWS)
    shuffled = {"p_permutation": p, "p_smallest": smallest_p(own, blocks, x)}
    return {**head, **inference(slope_difference(first.line, second.line)), "sd_between": None, **shuffled}


def contrast_rows(scored: Sequence[Row], measured: Measured) -> list[Row]:
    """Return each arm at its highest level less each strategy without a level, by Welch: is more diverse better than not to choose?

    Args:
        scored: rows of RESULTS_SCHEMA with a value.
        measured: what else is known.
    """
    rows: list[Row] = []
    for key, group in grouped(scored, (*SCORE, "size")):
        arms = [(k, found) for k, found in grouped(group, ("strategy", "control"))]
        flat = {(k["strategy"], k["control"]): found for k, found in arms if found[0]["level"] is None}
        for arm, found in arms:
            if found[0]["level"] is None:
                continue
            top = max(row["level"] for row in found)
            mine = [row for row in found if row["level"] == top]
            for strategy in dict.fromkeys(name for name, _ in flat):
                control = arm["control"] if (strategy, arm["control"]) in flat else "none"
                if (strategy, control) in flat:
                    head = {**head_of(key, group, "contrast"), **arm, "other": arm_name(strategy, control), "level": top, "method": "welch"}
                    other = {"strategy": strategy, "control": control, "size": head["size"]}
                    rows.append(_contrast(head, other, mine, flat[strategy, control], measured))
    adjust(rows, (*SCORE, "size", "control", "other"))
    return rows


def _contrast(head: Row, other: Row, mine: Sequence[Row], others: Sequence[Row], measured: Measured) -> Row:
    upper, flat = of_arm(head, [head["level"]]), of_arm(other)
    head = {**head, **measured.ledger.count(head, lambda row: upper(row) or flat(row))}
    first, second = (sorted(datasets(rows), key=lambda unit: unit["cell"]) for rows in (mine, others))
    both = [*first, *second]
    head = {**head, "given": "", "subset": "all", "n": len(both), "runs": runs_of(both), "se_within": within(both)}
    if min(len(first), len(second)) < 2:
        return {**head, "note": f"a contrast needs 2 datasets of each, there are {len(first)} and {len(second)}"}
    _, y = columns_of(both, "level")
    if note := constant(y):
        return {**head, "note": note}
    is_mine = np.arange(len(y)) < len(first)
    difference = slope_difference(mean_of(y[is_mine]), mean_of(y[~is_mine]))
    weights = np.where(is_mine, 1 / len(first), -1 / len(second))
    difference, error = measured.over_prompts(head, difference, both, weights)
    names = (*SCORE, "kind", "size", "control", "strategy", "other")
    p = permutation_p(is_mine, y, generator_for(measured.seed, *(head.get(name) for name in names)), draws=DRAWS)
    shuffled = {"p_permutation": p, "p_smallest": smallest_p(is_mine)}
    return {**head, **inference(difference), "sd_between": None, "se_prompts": error, **shuffled}
