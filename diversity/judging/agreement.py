"""How far a judge agrees with itself, in the other order and when asked again, and with other judges; and how it likes a place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from diversity.effects.clustered import Estimate, estimate, mean_and_error

POINTS = {"A>>B": 4, "A>B": 3, "A=B": 2, "B>A": 1, "B>>A": 0}
TIE = 0.5


@dataclass(frozen=True)
class Agreement:
    """Pairs of verdicts on the same answers.

    Attributes:
        share: of pairs with the same winner, ties included.
        kappa: Cohen's, beyond chance, quadratically weighted over the points of the scale; NaN where one value is all there is.
        n: pairs.
    """

    share: float
    kappa: float
    n: int


def position_bias(verdicts: pa.Table) -> Estimate | None:
    """Return P(the answer that stands first wins) - 0.5 over verdicts that are no ties; None where there is none.

    With balanced orders it is the judge's and not the answers': 0 is none, +0.5 is a judge that always takes the first.
    """
    rows = [row for row in _rows(verdicts) if row["score"] != TIE]
    if not rows:
        return None
    first = np.array([_first(row) > TIE for row in rows], np.float64)
    groups = np.array([row["group"] for row in rows])
    value, se = mean_and_error(first - 0.5, groups)
    return estimate(value, se, len(rows), len(np.unique(groups)))


def over_orders(verdicts: pa.Table) -> Agreement | None:
    """Return the agreement of a judge with itself when the answers change places; None where no pair was judged in both orders."""
    return _agreement(_pairs(row for row in _rows(verdicts) if row["repeat"] == 0) if len(verdicts) else [])


def over_repeats(verdicts: pa.Table) -> Agreement | None:
    """Return the agreement of a judge with itself when it is asked the same again; None where nothing was repeated."""
    by_place: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in _rows(verdicts):
        by_place[_place(row), row["order"]].append(row)
    return _agreement([(rows[0], row) for rows in by_place.values() for row in rows[1:]])


def between(first: pa.Table, second: pa.Table) -> Agreement | None:
    """Return the agreement of two judges on the verdicts that both gave on one pair in one order; None where there is none."""
    theirs = {(_place(row), row["order"]): row for row in _rows(second) if row["repeat"] == 0}
    mine = [row for row in _rows(first) if row["repeat"] == 0]
    return _agreement([(row, theirs[_place(row), row["order"]]) for row in mine if (_place(row), row["order"]) in theirs])


def kappa(first: Sequence[int], second: Sequence[int], points: int) -> float:
    """Return Cohen's kappa with quadratic weights of two ratings in 0…points-1; NaN where chance alone would agree fully."""
    table = np.zeros((points, points))
    np.add.at(table, (np.asarray(first, np.int64), np.asarray(second, np.int64)), 1)
    table /= table.sum()
    distance = np.subtract.outer(np.arange(points), np.arange(points)) ** 2
    chance = (np.outer(table.sum(axis=1), table.sum(axis=0)) * distance).sum()
    return float(1 - (table * distance).sum() / chance) if chance > 0 else float("nan")


def _rows(verdicts: pa.Table) -> list[dict[str, Any]]:
    """Return the verdicts that a judge gave; identical answers say nothing of it."""
    names = ["set", "prompt_id", "group", "order", "repeat", "outcome", "label", "p_first", "score"]
    if "answerer" in verdicts.column_names:
        names += ["answerer", "baseline"]
    return [row for row in verdicts.select(names).to_pylist() if row["outcome"] == "ok"]


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    return row.get("answerer"), row.get("baseline"), row["set"], row["prompt_id"]


def _first(row: dict[str, Any]) -> float:
    """Return the score of the answer that stood first."""
    return row["score"] if row["order"] == 1 else 1 - row["score"]


def _pairs(rows: Iterable[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the verdicts of both orders on each pair."""
    by_place: dict[Any, dict[int, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        by_place[_place(row)][row["order"]] = row
    return [(found[0], found[1]) for found in by_place.values() if len(found) == 2]


def _agreement(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> Agreement | None:
    if not pairs:
        return None
    same = [np.sign(a["score"] - TIE) == np.sign(b["score"] - TIE) for a, b in pairs]
    first, second = [_points(a) for a, _ in pairs], [_points(b) for _, b in pairs]
    return Agreement(float(np.mean(same)), kappa(first, second, points=len(POINTS)), len(pairs))


def _points(row: dict[str, Any]) -> int:
    """Return a verdict on the scale 0…4, the answerer's much better answer being 4; a probability goes to the nearest point."""
    if row["label"] is None:
        return int(np.clip(np.floor(row["score"] * 5), 0, 4))
    first = POINTS[row["label"]]
    return first if row["order"] == 1 else 4 - first
