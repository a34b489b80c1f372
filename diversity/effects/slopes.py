"""How a score changes with diversity: slopes of each arm, differences of slopes, and the most diverse datasets against the baselines.

The run is the unit; runs of one subset seed are a block with an intercept of its own. An arm is a strategy under a control.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diversity.effects.regression import Slope, bayesian_ridge, holm, ols, permutation_p, slope_difference
from diversity.effects.schema import MIN_LEVELS, PREDICTORS, SCORE, SUBSETS, Row, arm_name, grouped, head_of, single_runs

DRAWS = 1999
FAMILY = (*SCORE, "size", "control", "predictor", "subset")


def slope_rows(scored: Sequence[Row], generator: np.random.Generator) -> list[Row]:
    """Return the slopes on level, k / M and coverage, with and without level 0: of each arm at each size, and over sizes.

    Sizes are pooled on measured coverage, and on level and k / M only where every level has the same k at all sizes: elsewhere a level is
    not the same diversity at different sizes.

    Args:
        scored: rows of RESULTS_SCHEMA with a value.
        generator: of the shuffles.
    """
    dialled = [row for row in scored if row["level"] is not None]
    rows: list[Row] = []
    for key, group in grouped(dialled, (*SCORE, "size", "control", "strategy")):
        for predictor, subset in itertools.product(PREDICTORS, SUBSETS):
            rows += _slopes({**head_of(key, group, "slope"), "predictor": predictor, "subset": subset}, group, generator)
    for key, group in grouped(dialled, (*SCORE, "control", "strategy")):
        if len({row["size"] for row in group}) > 1:
            for predictor, subset in itertools.product(PREDICTORS if _one_k(group) else ("coverage",), SUBSETS):
                rows += _slopes({**head_of(key, group, "slope"), "size": None, "predictor": predictor, "subset": subset}, group, generator)
    adjust(rows, FAMILY)
    return rows


def difference_rows(scored: Sequence[Row], generator: np.random.Generator) -> list[Row]:
    """Return the differences of slopes on level: between strategies without a control, and between a strategy's controls and none.

    Welch's interval; the permutation p shuffles the residuals of the model with one common slope within each arm and block (Freedman and
    Lane), since the arms themselves need not be exchangeable.

    Args:
        scored: rows of RESULTS_SCHEMA with a value.
        generator: of the shuffles.
    """
    rows: list[Row] = []
    dialled = [row for row in scored if row["level"] is not None]
    for key, group in grouped(dialled, (*SCORE, "size")):
        arms = {(k["strategy"], k["control"]): found for k, found in grouped(group, ("strategy", "control"))}
        pairs = [(a, b) for a, b in itertools.combinations(arms, 2) if a[1] == b[1] == "none"]
        pairs += [(arm, (arm[0], "none")) for arm in arms if arm[1] != "none" and (arm[0], "none") in arms]
        for (a, b), subset in itertools.product(pairs, SUBSETS):
            head = {**head_of(key, group, "difference"), "strategy": a[0], "control": a[1], "other": arm_name(*b)}
            head |= {"predictor": "level", "subset": subset, "method": "ols"}
            if (row := _difference(head, arms[a], arms[b], generator)) is not None:
                rows.append(row)
    adjust(rows, FAMILY)
    return rows


def contrast_rows(scored: Sequence[Row], generator: np.random.Generator) -> list[Row]:
    """Return each arm at its highest level less each strategy without a level, by Welch: is more diverse better than not to choose?

    Args:
        scored: rows of RESULTS_SCHEMA with a value.
        generator: of the shuffles.
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
                    rows.append(_contrast(head, mine, flat[strategy, control], generator))
    adjust(rows, (*SCORE, "size", "control", "other"))
    return rows


def adjust(rows: list[Row], family: Sequence[str]) -> None:
    """Write Holm's p into the rows that have one, over each family of tests."""
    tested = [row for row in rows if row.get("p") is not None and np.isfinite(row["p"])]
    for _, group in grouped(tested, family):
        for row, adjusted in zip(group, holm([row["p"] for row in group]), strict=True):
            row["p_holm"] = adjusted


def inference(line: Slope) -> Row:
    """Return estimate, standard error, interval and p of a slope as columns."""
    low, high = line.interval()
    return {
        "estimate": line.estimate,
        "se": line.se,
        "low": low,
        "high": high,
        "p": line.p,
        "dof": line.dof,
        "sd_between": line.residual_sd,
    }


def within(rows: Sequence[Row]) -> float | None:
    """Return the root mean square of the runs' own standard errors over samples; None where they have none."""
    errors = [row["se"] for row in rows if row["se"] is not None and np.isfinite(row["se"])]
    return float(np.sqrt(np.mean(np.square(errors)))) if errors else None


def _one_k(group: Sequence[Row]) -> bool:
    """Return whether every level has one k, whatever the size."""
    return all(len({row["k"] for row in rows}) == 1 and rows[0]["k"] is not None for _, rows in grouped(group, ("level",)))


def _chosen(group: Sequence[Row], predictor: str, subset: str) -> list[Row]:
    return single_runs(row for row in group if row[predictor] is not None and (subset == "all" or row["level"] > 0))


def _blocks(rows: Sequence[Row]) -> NDArray[np.int64] | None:
    """Return each run's block: its subset seed and size; None where there is one block."""
    _, labels = np.unique([(row["subset_seed"], row["size"]) for row in rows], axis=0, return_inverse=True)
    return labels.ravel() if labels.any() else None


def _columns(rows: Sequence[Row], predictor: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.array([row[predictor] for row in rows], np.float64), np.array([row["value"] for row in rows], np.float64)


def _slopes(head: Row, group: Sequence[Row], generator: np.random.Generator) -> list[Row]:
    """Return the rows of one least-squares slope and of its Bayesian ridge, or one row that says why there is none."""
    used = _chosen(group, head["predictor"], head["subset"])
    head = {**head, "given": "", "n": len(used), "se_within": within(used)}
    x, y = _columns(used, head["predictor"])
    if (levels := len(np.unique(x))) < MIN_LEVELS:
        note = f"a slope needs {MIN_LEVELS} different values of {head['predictor']}, there are {levels}"
        return [{**head, "method": "ols", "note": note}]
    blocks = _blocks(used)
    try:
        line = ols(x, y, blocks)
    except ValueError as error:
        return [{**head, "method": "ols", "note": str(error)}]
    shuffled = permutation_p(x, y, generator, blocks, draws=DRAWS) if head["predictor"] == "level" else None
    ridge = bayesian_ridge(100 * x, y)  # in per cent, as the paper's lines
    ridge_se = 100 * float(np.sqrt(ridge.covariance[0, 0]))
    return [
        {**head, "method": "ols", **inference(line), "p_permutation": shuffled},
        {**head, "method": "bayesian-ridge", "estimate": 100 * float(ridge.weights[0]), "se": ridge_se},
    ]


def _difference(head: Row, first: Sequence[Row], second: Sequence[Row], generator: np.random.Generator) -> Row | None:
    """Return the difference of two arms' slopes on level, or None where one of them has no slope."""
    groups = [_chosen(group, "level", head["subset"]) for group in (first, second)]
    lines, labels = [], []
    for i, used in enumerate(groups):
        x, y = _columns(used, "level")
        blocks = _blocks(used)
        if len(np.unique(x)) < MIN_LEVELS:
            return None
        try:
            lines.append(ols(x, y, blocks))
        except ValueError:
            return None
        labels.append((np.zeros(len(used), np.int64) if blocks is None else blocks) + i * 1_000_000)
    both = [*groups[0], *groups[1]]
    head = {**head, "given": "", "n": len(both), "se_within": within(both)}
    x, y = _columns(both, "level")
    own = np.where(np.arange(len(both)) < len(groups[0]), x, 0.0)
    shuffled = permutation_p(own, y, generator, np.concatenate(labels), covariates=x, draws=DRAWS)
    return {**head, **inference(slope_difference(*lines)), "sd_between": None, "p_permutation": shuffled}


def _contrast(head: Row, mine: Sequence[Row], others: Sequence[Row], generator: np.random.Generator) -> Row:
    mine, others = single_runs(mine), single_runs(others)
    head = {**head, "given": "", "subset": "all", "n": len(mine) + len(others), "se_within": within([*mine, *others])}
    if min(len(mine), len(others)) < 2:
        return {**head, "note": f"a contrast needs 2 runs of each, there are {len(mine)} and {len(others)}"}
    difference = slope_difference(_mean(mine), _mean(others))
    _, y = _columns([*mine, *others], "level")
    is_mine = np.arange(len(y)) < len(mine)
    return {**head, **inference(difference), "sd_between": None, "p_permutation": permutation_p(is_mine, y, generator, draws=DRAWS)}


def _mean(rows: Sequence[Row]) -> Slope:
    """Return a mean as a slope is told: estimate, standard error, degrees of freedom."""
    values = np.array([row["value"] for row in rows])
    sd = float(values.std(ddof=1))
    return Slope(float(values.mean()), sd / float(np.sqrt(len(values))), len(values) - 1, len(values), sd, float(values.mean()))
