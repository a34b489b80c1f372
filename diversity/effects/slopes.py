"""How a score changes with diversity: slopes of each arm, what lies at the ends, and whether a line fits.

An arm is a strategy under a control. Its datasets are the unit, and `units.Design` says what the error of its slope is taken from.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diversity.effects.ledger import Ledger, generator_for, of_arm
from diversity.effects.permutation import permutation_p, smallest_p
from diversity.effects.regression import FEW_DOF, Others, Slope, bayesian_ridge, holm, lack_of_fit, mean_of, slope_difference
from diversity.effects.schema import MIN_LEVELS, PREDICTORS, SCORE, SUBSETS, Row, grouped, head_of
from diversity.effects.units import Design, blocks_of, datasets, design_of, line_through, runs_of, seed_labels

DRAWS = 1999
FAMILY = (*SCORE, "size", "control", "predictor", "subset")
ONE_SEED = "all levels come of one subset seed, and what they share can't be told from what the level does"
PromptError = Callable[[Row, Mapping[str, float]], tuple[float, int] | None]
"""(columns of a score, weight of each run) -> (standard error over prompts of the weighted sum, prompts), None where it isn't known."""


@dataclass(frozen=True)
class Measured:
    """What effects are computed from beside the scores themselves.

    Attributes:
        ledger: which runs were planned, and what became of them.
        seed: of shuffles that are drawn.
        prompt_error: error over prompts of a weighted sum of runs' scores, or None.
        predictors: what slopes are taken on.
    """

    ledger: Ledger
    seed: int = 0
    prompt_error: PromptError | None = None
    predictors: Sequence[str] = PREDICTORS

    def over_prompts(self, head: Row, line: Slope, units: Sequence[Row], weights: NDArray[np.float64]) -> tuple[Slope, float | None]:
        """Return the line with the error over prompts added to its own, and that error; the line as it is where nothing is known of it.

        Prompts are crossed with runs: each has a slope of its own, and how these differ reaches the slope of the mean over prompts whatever
        the number of runs. The two variances add up (a little too large: what is peculiar to a run and a prompt stands in both), with
        the degrees of freedom of `with_error`.
        """
        if self.prompt_error is None or not line.se > 0:
            return line, None
        by_run: dict[str, float] = {}
        for unit, weight in zip(units, weights, strict=True):
            for run in unit["runs"]:  # two arms may share one
                by_run[run] = by_run.get(run, 0.0) + float(weight) / len(unit["runs"])
        found = self.prompt_error(head, by_run)
        if found is None or found[1] < 2:
            return line, None
        return with_error(line, found[0], found[1] - 1), found[0]


def slope_rows(scored: Sequence[Row], measured: Measured) -> list[Row]:
    """Return the slopes on level, k / M and coverage, with and without level 0: of each arm at each size, and over sizes.

    Beside each slope on level stand the difference of its ends from the means of levels (`ends`), and the test of lack of fit (`fit`).
    Sizes are pooled on measured coverage, and on level and k / M only where every level has the same k at all sizes: elsewhere a level is
    not the same diversity at different sizes.

    Args:
        scored: rows of RESULTS_SCHEMA with a value.
        measured: what else is known.
    """
    rows: list[Row] = []
    for arm, group in measured.ledger.arms(scored):
        if measured.ledger.levels(arm, group):
            for predictor, subset in itertools.product(measured.predictors, SUBSETS):
                rows += _slopes({**arm, "kind": "slope", "predictor": predictor, "subset": subset}, group, measured)
            rows += shape_rows({**arm, "kind": "ends"}, group, measured)
    dialled = [row for row in scored if row["level"] is not None]
    for key, group in grouped(dialled, (*SCORE, "control", "strategy")):
        if len({row["size"] for row in group}) > 1:
            chosen = measured.predictors if _one_k(group) else [name for name in measured.predictors if name == "coverage"]
            for predictor, subset in itertools.product(chosen, SUBSETS):
                head = {**head_of(key, group, "slope"), "size": None, "predictor": predictor, "subset": subset}
                rows += _slopes(head, group, measured)
    adjust([row for row in rows if row["kind"] == "slope"], FAMILY)
    return rows


def adjust(rows: Sequence[Row], family: Sequence[str]) -> None:
    """Write Holm's p into the rows that have one, over each family of tests; one whose runs are missing or diverged is a test too."""
    tested = [row for row in rows if row.get("p") is not None and np.isfinite(row["p"])]
    coming = [row for row in rows if row.get("p") is None and (row.get("missing") or row.get("diverged"))]
    for key, group in grouped(tested, family):
        more = sum(all(row.get(name) == value for name, value in key.items()) for row in coming)
        adjusted = holm([*(row["p"] for row in group), *[1.0] * more])
        for row, p in zip(group, adjusted, strict=False):
            row["p_holm"] = p


def with_error(line: Slope, error: float, dof: int) -> Slope:
    """Return the line with an independent standard error, of so many degrees of freedom, added to its own.

    Degrees of freedom are Satterthwaite's, but no more than keep the interval from becoming narrower than the line's own: few seeds often
    tell far too small an error, and the formula trusts it. Under 3 the line's own are kept, as in `slope_difference`.
    """
    from scipy import stats

    se, found = float(np.hypot(line.se, error)), line.dof
    if line.dof >= FEW_DOF:
        own = float(stats.t.ppf(0.975, line.dof)) * line.se
        found = int(se**4 / (line.se**4 / line.dof + error**4 / dof) + 1e-9)
        while found > line.dof and float(stats.t.ppf(0.975, found)) * se < own:
            found -= 1
    return Slope(line.estimate, se, found, line.n, line.residual_sd, line.intercept)


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


def constant(y: NDArray[np.float64]) -> str:
    """Return what is said of scores that are all equal, "" where they differ."""
    if np.ptp(y) > 1e-12 * max(1e-300, float(np.abs(y).max())):
        return ""
    return f"the scores of all {len(y)} datasets are equal, {y[0]:.4g}: there is nothing to compare"


def chosen(group: Sequence[Row], predictor: str, subset: str) -> list[Row]:
    """Return the datasets of an arm that a slope on the predictor is taken over, in order of their cells."""
    units = datasets(row for row in group if row[predictor] is not None and (subset == "all" or row["level"] > 0))
    return sorted(units, key=lambda unit: unit["cell"])


def columns_of(units: Sequence[Row], predictor: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return predictor and score of each dataset."""
    return np.array([unit[predictor] for unit in units], np.float64), np.array([unit["value"] for unit in units], np.float64)


def weights_of(x: NDArray[np.float64], design: Design, sizes: Sequence[int]) -> NDArray[np.float64]:
    """Return `(n,)` weights w with which `line_through` is the sum of w y: how much each dataset bears on the slope."""
    weights, pooled = np.zeros(len(x)), np.asarray(sizes)
    apart = design.labels if design.kind == "a slope a subset seed" else np.zeros(len(x), np.int64)
    lines = 0
    for label in np.unique(apart[design.used]):
        mine = design.used & (apart == label)
        free = Others(int(mine.sum()), pooled[mine], None).residuals(x[mine])
        if (length := float(free @ free)) > 1e-12 * max(1.0, float(x[mine] @ x[mine])):
            weights[mine] = free / length
            lines += 1
    return weights / max(1, lines)


def _one_k(group: Sequence[Row]) -> bool:
    """Return whether every level has one k, whatever the size."""
    return all(len({row["k"] for row in rows}) == 1 and rows[0]["k"] is not None for _, rows in grouped(group, ("level",)))


def _slopes(head: Row, group: Sequence[Row], measured: Measured) -> list[Row]:
    """Return the rows of one slope and of its Bayesian ridge, or one row that says why there is none."""
    units = chosen(group, head["predictor"], head["subset"])
    x, y = columns_of(units, head["predictor"])
    counts = measured.ledger.count(head, of_arm(head))
    head = {**head, **counts, "given": "", **_resting_on(units)}
    if (levels := len(np.unique(x))) < MIN_LEVELS:
        note = f"a slope needs {MIN_LEVELS} different values of {head['predictor']}, there are {levels}"
        return [{**head, "method": "ols", "note": note}]
    if note := constant(y):
        return [{**head, "method": "ols", "note": note}]
    design, sizes = design_of(x, seed_labels(units)), [unit["size"] for unit in units]
    head = {**head, "design": design.kind, "length_ratio": _length_ratio(units)}
    try:
        line = line_through(x, y, design, sizes)
    except ValueError as error:
        return [{**head, "method": "ols", "note": str(error)}]
    used = [unit for unit, is_used in zip(units, design.used, strict=True) if is_used]
    row = {**head, **_resting_on(used), "method": "ols", "note": ONE_SEED if design.kind == "one subset seed" else None}
    if head["predictor"] == "level":
        row |= _shuffled(x, y, design, sizes, generator_for(measured.seed, *(head.get(n) for n in ("kind", *FAMILY, "strategy"))))
    line, row["se_prompts"] = measured.over_prompts(head, line, units, weights_of(x, design, sizes))
    ridge = bayesian_ridge(100 * x, y)  # in per cent, as the paper's lines
    ridge_se = 100 * float(np.sqrt(ridge.covariance[0, 0]))
    return [
        {**row, **inference(line)},
        {**head, "method": "bayesian-ridge", "estimate": 100 * float(ridge.weights[0]), "se": ridge_se},
    ]


def _resting_on(units: Sequence[Row]) -> Row:
    """Return how many datasets and runs a figure rests on, and their error over samples, as columns."""
    return {"n": len(units), "runs": runs_of(units), "se_within": within(units)}


def _shuffled(x: NDArray[np.float64], y: NDArray[np.float64], design: Design, sizes: Sequence[int], generator: np.random.Generator) -> Row:
    """Return p by shuffling levels within seeds, and the smallest that it could be."""
    blocks, used = blocks_of(design, sizes), design.used
    p = permutation_p(x[used], y[used], generator, blocks[used], draws=DRAWS)
    return {"p_permutation": p, "p_smallest": smallest_p(x[used], blocks[used])}


def _length_ratio(units: Sequence[Row]) -> float | None:
    """Return the mean response length at the highest level over that at the lowest."""
    known = [unit for unit in units if unit.get("samples") and unit.get("response_tokens") and unit["level"] is not None]
    if not known:
        return None
    ends = [pick(unit["level"] for unit in known) for pick in (min, max)]
    low, high = ([u["response_tokens"] / u["samples"] for u in known if u["level"] == end] for end in ends)
    return float(np.mean(high) / np.mean(low)) if ends[0] < ends[1] else None


def shape_rows(head: Row, group: Sequence[Row], measured: Measured) -> list[Row]:
    """Return what a line can't say of an arm: the difference of its ends from the means of levels, and p that the means lie on a line."""
    units = chosen(group, "level", "all")
    x, y = columns_of(units, "level")
    if len(np.unique(x)) < MIN_LEVELS or constant(y):
        return []
    labels = seed_labels(units)
    design = design_of(x, labels)
    blocks = None if design.kind == "independent datasets" else labels
    head = {**head, "predictor": "level", "subset": "all", "given": "", "design": design.kind}
    rows = [{**head, "method": "level-means", "level": float(x.max()), **_ends(head, units, x, y, design, measured)}]
    fit = lack_of_fit(x, y, blocks)
    if np.isfinite(fit.p):
        found = {"kind": "fit", "method": "f-test", "estimate": fit.statistic, "dof": fit.within, "p": fit.p}
        rows.append({**head, "n": len(units), "runs": runs_of(units), **found})
    return rows


def _ends(head: Row, units: Sequence[Row], x: NDArray[np.float64], y: NDArray[np.float64], design: Design, measured: Measured) -> Row:
    """Return the mean at the highest level less that at the lowest: by seed where seeds have both, else by Welch."""
    top, bottom = x == x.max(), x == x.min()
    apart = np.zeros(len(x), np.int64) if design.kind == "independent datasets" else design.labels
    pairs = [(top & (apart == label), bottom & (apart == label)) for label in np.unique(apart)]
    pairs = [(high, low) for high, low in pairs if high.any() and low.any()]
    if not pairs:
        note = "no subset seed has both ends"
        return {"n": len(units), "runs": runs_of(units), "estimate": float(y[top].mean() - y[bottom].mean()), "note": note}
    weights = sum((high / high.sum() - low / low.sum() for high, low in pairs), np.zeros(len(x))) / len(pairs)
    if design.kind == "independent datasets":
        change = slope_difference(mean_of(y[top]), mean_of(y[bottom]))
    else:
        change = mean_of([y[high].mean() - y[low].mean() for high, low in pairs])
    change, error = measured.over_prompts(head, change, units, weights)
    resting = [unit for unit, weight in zip(units, weights, strict=True) if weight]
    return {"n": len(resting), "runs": runs_of(resting), **inference(change), "se_prompts": error}
