"""The unit of inference is the dataset: cells of one content are one, its runs are averaged, subset seeds tell what hangs together.

Two runs on one dataset agree about that dataset and say nothing of the next one, so counting both would make an error too small. Levels of
one subset seed share most of their samples, so their noise goes together: seeds are what is independent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diversity.effects.regression import Slope, mean_slope, ols
from diversity.effects.schema import PREDICTORS, Row, grouped

Kind = Literal["a slope a subset seed", "independent datasets", "one subset seed"]


class Components:
    """Disjoint sets of keys, joined pair by pair (union-find)."""

    def __init__(self) -> None:
        self.parents: dict[Any, Any] = {}

    def find(self, key: Any) -> Any:
        """Return what stands for the set that the key is in."""
        root = self.parents.setdefault(key, key)
        while root != self.parents[root]:
            root = self.parents[root]
        while self.parents[key] != root:
            self.parents[key], key = root, self.parents[key]
        return root

    def join(self, first: Any, second: Any) -> None:
        """Make the two one set."""
        self.parents[self.find(first)] = self.find(second)


def single_runs(rows: Iterable[Row]) -> list[Row]:
    """Return one row for each run: cells that choose the same samples share it, and it counts once. For the scatter between runs."""
    return [group[0] for _, group in grouped(rows, ("run",))]


def datasets(rows: Iterable[Row]) -> list[Row]:
    """Return one row for each dataset, whatever the order of the rows.

    Cells are one dataset where they have one content, or share a run. Its value is the mean over its runs (training seeds), its predictors
    are the means over its cells, and `seeds` holds all subset seeds that gave it. `runs` are the names of its runs.

    Args:
        rows: scored rows of RESULTS_SCHEMA, all of one score.
    """
    rows = list(rows)
    cells, runs = ({row[name] for row in rows} for name in ("cell", "run"))
    contents = [row["content"] for row in rows if row.get("content") is not None]
    if len(cells) == len(runs) == len(rows) and len(set(contents)) == len(contents):  # nothing is shared
        return [{**row, "seeds": (row["subset_seed"],), "runs": [row["run"]]} for row in rows]
    return merged(rows)


def merged(rows: Sequence[Row]) -> list[Row]:
    """Return what `datasets` does, whatever is shared."""
    same = Components()
    for row in rows:
        same.join(("cell", row["cell"]), ("run", row["run"]))
        if row.get("content") is not None:
            same.join(("cell", row["cell"]), ("content", row["content"]))
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(same.find(("cell", row["cell"])), []).append(row)
    return [_dataset(group) for group in groups.values()]


def _dataset(group: Sequence[Row]) -> Row:
    cells = {row["cell"]: row for row in group}
    found = dict(min(cells.values(), key=lambda row: row["cell"]))
    values = {row["run"]: row["value"] for row in group}
    found["value"] = float(np.mean([values[run] for run in sorted(values)]))
    errors = [row["se"] for row in group if row["se"] is not None and np.isfinite(row["se"])]
    found["se"] = float(np.sqrt(np.mean(np.square(errors)))) if errors else None
    for name in PREDICTORS:
        known = [row[name] for _, row in sorted(cells.items()) if row[name] is not None]
        found[name] = float(np.mean(known)) if known else None
    found["seeds"] = tuple(sorted({row["subset_seed"] for row in group}))
    found["runs"] = sorted(values)
    return found


def runs_of(units: Iterable[Row]) -> int:
    """Return how many runs are behind some datasets."""
    return len({run for unit in units for run in unit["runs"]})


@dataclass(frozen=True)
class Design:
    """How the datasets of an arm hang together, which says what the error of a slope is taken from.

    `a slope a subset seed`: every seed gives a slope, and what counts is how these differ. Valid whatever the levels of a seed share, and
    with unequal errors too (Ibragimov and Mueller 2010). Seeds that share a dataset are one. `independent datasets`: no seed has two
    levels, so all datasets are drawn apart, and least squares over them is exact. `one subset seed`: nothing tells the level's effect from
    what the levels of this draw share; the line over its datasets is told, and nothing is claimed.

    Attributes:
        kind: which of the three.
        labels: `(n,)` the seed, or set of seeds that share datasets, of each dataset.
        used: `(n,) bool`: datasets that a slope rests on; under `a slope a subset seed` those of seeds with at least two values of x.
    """

    kind: Kind
    labels: NDArray[np.int64]
    used: NDArray[np.bool_]


def seed_labels(units: Sequence[Row]) -> NDArray[np.int64]:
    """Return a number for each dataset: those whose subset seeds are connected by shared datasets have one number."""
    same = Components()
    for unit in units:
        for seed in unit["seeds"]:
            same.join(seed, unit["seeds"][0])
    roots = [same.find(unit["seeds"][0]) for unit in units]
    return np.unique(roots, return_inverse=True)[1].ravel().astype(np.int64) if roots else np.empty(0, np.int64)


def design_of(x: NDArray[np.float64], labels: NDArray[np.int64]) -> Design:
    """Return how datasets with these values of the predictor and these seeds hang together."""
    names, places = np.unique(labels, return_inverse=True)
    several = np.array([len(np.unique(x[labels == name])) > 1 for name in names], bool)
    if not several.any():
        return Design("independent datasets", labels, np.ones(len(x), bool))
    used = several[places.ravel()]
    return Design("a slope a subset seed" if several.sum() > 1 else "one subset seed", labels, used)


def line_through(x: NDArray[np.float64], y: NDArray[np.float64], design: Design, sizes: Sequence[int] | None = None) -> Slope:
    """Return the slope of y on x with the error that the design allows.

    Args:
        x: `(n,)` predictor of each dataset.
        y: `(n,)` its score.
        design: of these datasets.
        sizes: `(n,)` of datasets whose sizes are pooled; each size has an intercept of its own.

    Raises:
        ValueError: x does not vary beside the sizes.
    """
    pooled = np.zeros(len(x), np.int64) if sizes is None else np.asarray(sizes)
    if design.kind != "a slope a subset seed":
        chosen = design.used
        return ols(x[chosen], y[chosen], pooled[chosen])
    lines = []
    for label in np.unique(design.labels[design.used]):
        mine = design.labels == label
        try:
            lines.append(ols(x[mine], y[mine], pooled[mine]))
        except ValueError:  # this seed has one level at each size
            continue
    if not lines:
        raise ValueError("no subset seed has two levels at one size, so there is no slope")
    return mean_slope(lines)


def blocks_of(design: Design, sizes: Sequence[int]) -> NDArray[np.int64]:
    """Return the groups within which datasets are shuffled: of one seed and size, or of one size where datasets are independent."""
    labels = np.zeros(len(design.labels), np.int64) if design.kind == "independent datasets" else design.labels
    return np.unique(np.column_stack([labels, np.asarray(sizes)]), axis=0, return_inverse=True)[1].ravel().astype(np.int64)
