"""How much of a score's error over prompts reaches an effect, from the sealed scores of single samples.

All runs answer the same prompts, so most of a score's error over prompts is common to all runs and drops out of a slope. What doesn't is
how differently single prompts answer to the level: every prompt has a slope of its own, and an effect is the mean of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from diversity.artifact import Storage
from diversity.effects.schema import SCORE, Row
from diversity.effects.scores import SAMPLE_SCORES_SCHEMA
from training.evaluators import SampleFigures, mean_and_error
from training.evaluators.likelihood_win_rate import places_of

MEAN = 1e-6  # a score is the mean of its samples if it lies this near to it, relative to the largest sample


def prompts_table(storage: Storage, entries: Mapping[str, Any], results: pa.Table) -> pa.Table:
    """Return the primary scores of single samples, SAMPLE_SCORES_SCHEMA, of all runs that sealed them.

    Args:
        storage: where scores lie.
        entries: the index, as `Index.read` gives it.
        results: RESULTS_SCHEMA.
    """
    wanted: dict[str, set[tuple[str, ...]]] = {}
    for row in results.to_pylist():
        path = entries.get("scores", {}).get(f"{row['cell']}_t{row['training_seed']}")
        if row["primary"] and path is not None:
            wanted.setdefault(path, set()).add(tuple(row[name] for name in SCORE))
    found = [SAMPLE_SCORES_SCHEMA.empty_table()]
    for path, scores in wanted.items():
        artifact = storage.at(path)
        table = artifact.read("samples") if artifact.parts("samples") else None
        if table is not None and set(SAMPLE_SCORES_SCHEMA.names) <= set(table.column_names):
            found += [_of_score(table, score).select(SAMPLE_SCORES_SCHEMA.names).cast(SAMPLE_SCORES_SCHEMA) for score in sorted(scores)]
    return pa.concat_tables(found).combine_chunks()


def _of_score(table: pa.Table, score: tuple[str, ...]) -> pa.Table:
    masks = [pc.equal(table[name], value) for name, value in zip(SCORE, score, strict=True)]
    return table.filter(pc.and_(pc.and_(masks[0], masks[1]), masks[2]))


class PromptErrors:
    """Gives `diversity.effects.slopes.PromptError` for the primary score.

    Args:
        results: RESULTS_SCHEMA.
        prompts: `prompts_table` of them.
    """

    def __init__(self, results: pa.Table, prompts: pa.Table) -> None:
        self.prompts = prompts
        self.values = {(row["run"], *(row[name] for name in SCORE)): row["value"] for row in results.to_pylist() if row["primary"]}
        self.read: dict[tuple[str, ...], SampleFigures | None] = {}

    def __call__(self, head: Row, weights: Mapping[str, float]) -> tuple[float, int] | None:
        """Return (standard error over prompts of the weighted sum of runs, prompt groups); None where samples of a run are not known."""
        if not head["primary"]:
            return None
        score = tuple(head[name] for name in SCORE)
        found = {run: self._samples(run, score) for run, weight in weights.items() if weight}
        figures = [one for one in found.values() if one is not None]
        if not figures or len(figures) < len(found):
            return None
        common = sorted(set(figures[0].ids).intersection(*(one.ids for one in figures[1:])))
        if not common:
            return None
        total = np.zeros(len(common))
        for run, one in zip(found, figures, strict=True):
            total += weights[run] * one.values[places_of(one, common)]
        groups = figures[0].groups[places_of(figures[0], common)]
        _, error = mean_and_error(total, groups)
        return (error, len(np.unique(groups))) if np.isfinite(error) else None

    def _samples(self, run: str, score: tuple[str, ...]) -> SampleFigures | None:
        """Return a run's figures of single samples; None where there are none, or the score is another thing than their mean."""
        key = (run, *score)
        if key not in self.read:
            self.read[key] = self._read(key, score)
        return self.read[key]

    def _read(self, key: tuple[str, ...], score: tuple[str, ...]) -> SampleFigures | None:
        if key not in self.values:
            return None
        table = _of_score(self.prompts.filter(pc.equal(self.prompts["run"], key[0])), score)
        values = table["value"].to_numpy().astype(np.float64)
        if not len(values) or not np.isfinite(values).all() or abs(values.mean() - self.values[key]) > MEAN * np.abs(values).max():
            return None
        groups, tokens = table["group"].to_numpy(), table["tokens"].to_numpy()
        return SampleFigures(table["sample_id"].to_pylist(), groups, tokens, values)
