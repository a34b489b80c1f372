"""The best cell of each size, and which others may as well be the best."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diversity.effects.ledger import generator_for, of_size
from diversity.effects.partial import pooled_sd
from diversity.effects.schema import SCORE, Row, arm_name, grouped, head_of
from diversity.effects.slopes import Measured, within
from diversity.effects.units import datasets, runs_of

DRAWS = 4000
NUMBERS = 8_000_000  # at most so many random numbers


def best_rows(scored: Sequence[Row], measured: Measured) -> list[Row]:
    """Return the arm and level with the best mean score at each size, its interval, and which others may as well be the best.

    The mean of the best of many is too good by selection, and its interval says nothing of that. The note counts the others that Gupta's
    subset selection keeps: with 95% confidence the truly best one is among those. Without two datasets at any one level nothing is known
    of the spread, and the row has only the mean.

    Args:
        scored: rows of RESULTS_SCHEMA with a value.
        measured: what else is known.
    """
    rows: list[Row] = []
    for key, group in grouped(scored, (*SCORE, "size")):
        cells = [(k, datasets(found)) for k, found in grouped(group, ("strategy", "control", "level"))]
        values = [[unit["value"] for unit in units] for _, units in cells]
        sign = 1.0 if group[0]["higher_is_better"] else -1.0
        means, counts = np.array([np.mean(v) for v in values]), np.array([len(v) for v in values])
        best = int(np.argmax(sign * means))
        arm, units = cells[best]
        head = {**head_of(key, group, "best"), **arm, "method": "mean", "n": len(units), "runs": runs_of(units), "se_within": within(units)}
        head |= {"estimate": means[best], **measured.ledger.count(head, of_size(key["size"]))}
        sd, dof = pooled_sd(values)
        if not dof or not sd > 0:
            rows.append({**head, "note": "no level has two datasets that differ, so nothing is known of its uncertainty"})
            continue
        kept = _kept(sign * means, counts, sd, dof, generator_for(measured.seed, "best", *key.values()))
        names = [arm_name(k["strategy"], k["control"]) + ("" if k["level"] is None else f" at level {k['level']:.2g}") for k, _ in cells]
        others = [names[i] for i in np.argsort(-sign * means) if kept[i] and i != best]
        rows.append({**head, **_interval(means[best], sd, dof, int(counts[best])), "note": _told(others)})
    return rows


def _interval(mean: float, sd: float, dof: int, count: int) -> Row:
    from scipy import stats

    se = sd / float(np.sqrt(count))
    half = float(stats.t.ppf(0.975, dof)) * se
    return {"se": se, "low": mean - half, "high": mean + half, "dof": dof, "sd_between": sd}


def _kept(means: np.ndarray, counts: np.ndarray, sd: float, dof: int, generator: np.random.Generator) -> np.ndarray:
    """Return whether Gupta's selection keeps each; larger means are better.

    One is kept unless it lies further below the leader than the best of the others would lie above it, were all equal, in 95% of draws.
    """
    n = len(means)
    if n == 1:
        return np.array([True])
    draws = int(np.clip(NUMBERS // n, 200, DRAWS))
    spread = 1 / np.sqrt(generator.chisquare(dof, draws) / dof)
    errors = generator.standard_normal((draws, n)) * sd * spread[:, None] / np.sqrt(counts)
    order = np.argmax(errors, axis=1)
    top = errors[np.arange(draws), order]
    second = np.partition(errors, -2, axis=1)[:, -2]
    allowed = np.array([np.quantile(np.where(order == i, second, top) - errors[:, i], 0.95) for i in range(n)])
    return np.asarray(means >= means.max() - allowed)


def _told(others: Sequence[str]) -> str:
    if not others:
        return "no other may be the best (95%)"
    shown = "; ".join(others[:3]) + (f"; and {len(others) - 3} more" if len(others) > 3 else "")
    return f"{len(others)} {'other' if len(others) == 1 else 'others'} may as well be the best (95%): {shown}"
