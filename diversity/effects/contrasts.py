"""Arms against each other: differences of slopes, and the most diverse datasets against those of strategies without a level."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diversity.effects.ledger import generator_for, of_arm
from diversity.effects.permutation import permutation_p, smallest_p
from diversity.effects.regression import Slope, mean_of, slope_difference
from diversity.effects.schema import MIN_LEVELS, SCORE, SUBSETS, Row, arm_name
from diversity.effects.slopes import DRAWS, FAMILY, ONE_SEED, Measured, adjust, chosen, columns_of, constant, inference, weights_of, within
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
    for place in _places(scored, measured):
        arms = {(arm["strategy"], arm["control"]): (arm, found) for arm, found in place if measured.ledger.levels(arm, found)}
        pairs = [(a, b) for a, b in itertools.combinations(arms, 2) if a[1] == b[1] == "none"]
        pairs += [(arm, (arm[0], "none")) for arm in arms if arm[1] != "none" and (arm[0], "none") in arms]
        lines = {(name, subset): _arm_line(found, subset) for name, (_, found) in arms.items() for subset in SUBSETS}
        counts = {(a, b): measured.ledger.count(arms[a][0], of_arm(arms[a][0]), of_arm(arms[b][0])) for a, b in pairs}
        for (a, b), subset in itertools.product(pairs, SUBSETS):
            head = {**arms[a][0], "kind": "difference", "other": arm_name(*b), "predictor": "level", "subset": subset, "method": "ols"}
            head |= counts[a, b]
            first, second = lines[a, subset], lines[b, subset]
            if first is not None and second is not None:
                rows.append(_difference(head, first, second, measured))
            elif head["missing"] or head["diverged"]:
                rows.append({**head, "note": f"a slope needs {MIN_LEVELS} different values of level in both arms"})
    adjust(rows, FAMILY)
    return rows


def _places(scored: Sequence[Row], measured: Measured) -> list[list[tuple[Row, list[Row]]]]:
    """Return the arms of each score and size, scored or planned, with their scored rows."""
    places: dict[tuple[Any, ...], list[tuple[Row, list[Row]]]] = {}
    for arm, found in measured.ledger.arms(scored):
        places.setdefault(tuple(arm[name] for name in (*SCORE, "size")), []).append((arm, found))
    return list(places.values())


@dataclass(frozen=True)
class _ArmLine:
    """An arm's slope on level, and what it rests on.

    Attributes:
        line: the slope.
        units: the datasets.
        weights: `(n,)` how much each bears on the slope.
        blocks: `(n,)` the groups within which they are shuffled.
        kind: of the design.
    """

    line: Slope
    units: list[Row]
    weights: NDArray[np.float64]
    blocks: NDArray[np.int64]
    kind: Kind


def _arm_line(group: Sequence[Row], subset: str) -> _ArmLine | None:
    """Return an arm's slope on level, or None where it has none."""
    units = chosen(group, "level", subset)
    x, y = columns_of(units, "level")
    if len(np.unique(x)) < MIN_LEVELS:
        return None
    design, sizes = design_of(x, seed_labels(units)), [unit["size"] for unit in units]
    used = [unit for unit, is_used in zip(units, design.used, strict=True) if is_used]
    weights, blocks = weights_of(x, design, sizes)[design.used], blocks_of(design, sizes)[design.used]
    return _ArmLine(line_through(x, y, design), used, weights, blocks, design.kind)


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
    weights = np.concatenate([first.weights, -second.weights])
    difference, error = measured.over_prompts(head, slope_difference(first.line, second.line), both, weights)
    shuffled = {"p_permutation": p, "p_smallest": smallest_p(own, blocks, x)}
    return {**head, **inference(difference), "sd_between": None, "se_prompts": error, **shuffled}


def contrast_rows(scored: Sequence[Row], measured: Measured) -> list[Row]:
    """Return each arm at its highest level less each strategy without a level, by Welch: is more diverse better than not to choose?

    The highest level is that of the plan, whatever became of its runs: another level is not what was asked.

    Args:
        scored: rows of RESULTS_SCHEMA with a value.
        measured: what else is known.
    """
    rows: list[Row] = []
    for place in _places(scored, measured):
        levels = [measured.ledger.levels(arm, found) for arm, found in place]
        flat = {(arm["strategy"], arm["control"]): found for (arm, found), dial in zip(place, levels, strict=True) if not dial}
        for (arm, found), dial in zip(place, levels, strict=True):
            for other in opponents(flat, arm["control"]) if dial else ():
                head = {**arm, "kind": "contrast", "other": arm_name(*other), "level": max(dial), "method": "welch"}
                mine = [row for row in found if row["level"] == head["level"]]
                rows.append(_contrast(head, {"strategy": other[0], "control": other[1], "size": arm["size"]}, mine, flat[other], measured))
    adjust(rows, (*SCORE, "size", "control", "other"))
    return rows


def opponents(flat: Collection[tuple[str, str]], control: str) -> list[tuple[str, str]]:
    """Return what an arm is compared with: each strategy without a level under the arm's control, or where there is none, under none.

    Args:
        flat: (strategy, control) of everything without a level.
        control: of the arm.
    """
    pairs = [(strategy, control if (strategy, control) in flat else "none") for strategy in dict.fromkeys(name for name, _ in flat)]
    return [pair for pair in pairs if pair in flat]


def _contrast(head: Row, other: Row, mine: Sequence[Row], others: Sequence[Row], measured: Measured) -> Row:
    head = {**head, **measured.ledger.count(head, of_arm(head, [head["level"]]), of_arm(other))}
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
