"""What was planned, what came, what diverged: an effect that rests on a part of its runs says so; what is missing may be what tells."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from diversity.effects.schema import SCORE, Row, grouped, is_finite

Key = tuple[Any, ...]
ARM = ("strategy", "control", "size")


class Ledger:
    """The runs of an experiment by what became of them, one for each cell and training seed.

    Args:
        results: rows of RESULTS_SCHEMA, finite or not.
        planned: rows of PLANNED_SCHEMA; None takes the runs that results have, so that none is missing.
    """

    def __init__(self, results: pa.Table, planned: pa.Table | None = None) -> None:
        rows = [row for row in results.to_pylist() if row["value"] is not None]
        self.planned: dict[Key, Row] = {_run(row): row for row in (rows if planned is None else planned.to_pylist())}
        self.scores: dict[Key, Row] = {}
        self.finite: dict[Key, set[Key]] = {}
        self.diverged: dict[Key, set[Key]] = {}
        for row in rows:
            self.scores.setdefault(_score(row), {name: row[name] for name in (*SCORE, "primary", "higher_is_better")})
            found = self.finite if is_finite(row) else self.diverged
            found.setdefault(_score(row), set()).add(_run(row))

    def count(self, score: Mapping[str, Any], *wanted: Callable[[Row], bool]) -> Row:
        """Return planned, missing and diverged runs of one score among the planned cells that are wanted by any, as columns of effects."""
        runs = {run for run, row in self.planned.items() if any(one(row) for one in wanted)}
        diverged = runs & self.diverged.get(_score(score), set())
        left = runs - diverged - self.finite.get(_score(score), set())
        return {"planned": len(runs), "missing": len(left), "diverged": len(diverged)}

    def arms(self, scored: Sequence[Row]) -> list[tuple[Row, list[Row]]]:
        """Return (columns of a score and of an arm at one size, its scored rows), planned arms without a scored row included.

        A primary score is there for every run. Another may not be meant for all arms: of it those are included whose runs diverged.

        Args:
            scored: rows of RESULTS_SCHEMA with a value.
        """
        found = {(*_score(key), *_arm(key)): rows for key, rows in grouped(scored, (*SCORE, *ARM))}
        for score, head in self.scores.items():
            diverged = self.diverged.get(score, set())
            for run, row in self.planned.items():
                if head["primary"] or run in diverged:
                    found.setdefault((*score, *_arm(row)), [])
        return [({**self.scores[key[: len(SCORE)]], **dict(zip(ARM, key[len(SCORE) :], strict=True))}, rows) for key, rows in found.items()]

    def levels(self, arm: Mapping[str, Any], scored: Iterable[Row]) -> set[float]:
        """Return the levels of an arm, planned or scored; none for a strategy without levels."""
        wanted = of_arm(arm)
        rows = [*(row for row in self.planned.values() if wanted(row)), *scored]
        return {row["level"] for row in rows if row["level"] is not None}


def of_arm(head: Mapping[str, Any], levels: Iterable[float] | None = None) -> Callable[[Row], bool]:
    """Return whether a planned row belongs to an arm (strategy, control, and size unless that is None), at one of some levels."""
    chosen = None if levels is None else set(levels)

    def wanted(row: Row) -> bool:
        of_size = head["size"] is None or row["size"] == head["size"]
        mine = of_size and (row["strategy"], row["control"]) == (head["strategy"], head["control"])
        return mine and (chosen is None or row["level"] in chosen)

    return wanted


def of_size(size: int) -> Callable[[Row], bool]:
    """Return whether a planned row has a size."""
    return lambda row: bool(row["size"] == size)


def generator_for(seed: int, *names: Any) -> np.random.Generator:
    """Return a source of randomness that belongs to one effect by its names, so that no other effect or order of rows changes it."""
    name = hashlib.blake2b("\n".join(map(str, names)).encode(), digest_size=8).digest()
    return np.random.default_rng([seed, int.from_bytes(name, "big")])


def _score(row: Mapping[str, Any]) -> Key:
    return tuple(row[name] for name in SCORE)


def _arm(row: Mapping[str, Any]) -> Key:
    return tuple(row[name] for name in ARM)


def _run(row: Mapping[str, Any]) -> Key:
    return row["cell"], row["training_seed"]
