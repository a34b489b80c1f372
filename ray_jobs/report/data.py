"""What a report shows, as tidy tables and a few records: gathered from an experiment's index and seals, or made up by a test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from diversity.effects.schema import CELL_FIELDS

CELLS_SCHEMA = pa.schema([*CELL_FIELDS, ("instruction_length", pa.float64()), ("response_length", pa.float64()), ("dataset", pa.string())])
"""One row for each sealed dataset: what results say of a cell, mean tokens of each side, and the dataset's path in the storage."""


@dataclass(frozen=True)
class Curve:
    """The document frequencies of a micro typing's tokens, with the band: low, high, n_low, n_mid, n_high."""

    typing: str
    df: NDArray[np.integer]
    band: dict[str, int]


@dataclass(frozen=True)
class Pair:
    """Samples of a strategy's least and most diverse dataset, side by side; each sample is (instruction, response)."""

    strategy: str
    low: str
    high: str
    low_samples: Sequence[tuple[str, str]]
    high_samples: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class TypeList:
    """Some types of a typing, each (label, samples that have it), in the order in which pruning would drop them.

    Attributes:
        typing: which typing.
        types: how many there are (M).
        kept: those dropped last: what every level has.
        dropped: those dropped first: what only level 1 has.
        largest: those of most samples.
    """

    typing: str
    types: int
    kept: Sequence[tuple[str, int]]
    dropped: Sequence[tuple[str, int]]
    largest: Sequence[tuple[str, int]]


@dataclass(frozen=True)
class ReportData:
    """All that a report shows.

    Attributes:
        experiment: its name.
        note: the first line, or None.
        facts: (what, value) pairs about corpus, model and method.
        cells: CELLS_SCHEMA.
        coverage: COVERAGE_SCHEMA.
        sources: SOURCES_SCHEMA.
        results: `diversity.effects.RESULTS_SCHEMA`.
        effects: `diversity.effects.EFFECTS_SCHEMA`.
        typings: typing, types (M), mean (types of a sample that has any), empty (share of samples without one).
        curves: of the micro typings.
        pairs: samples to look at; empty where no text may be shown.
        types: what the types of each typing are, by their labels; empty where no text may be shown.
        planned: how many cells the grid has, built or not.
        distinct: `ray_jobs.report.distinct.DISTINCT_SCHEMA`, or None.
        regenerated: where one model answered every instruction anew: {metric, before, after} of the responses.
    """

    experiment: str
    note: str | None
    facts: Sequence[tuple[str, str]]
    cells: pa.Table
    coverage: pa.Table
    sources: pa.Table
    results: pa.Table
    effects: pa.Table
    planned: int
    distinct: pa.Table | None = None
    typings: Sequence[dict[str, Any]] = field(default=())
    curves: Sequence[Curve] = field(default=())
    pairs: Sequence[Pair] = field(default=())
    types: Sequence[TypeList] = field(default=())
    regenerated: Sequence[dict[str, Any]] = field(default=())
