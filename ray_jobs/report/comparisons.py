"""Evaluators that compare runs: read the sealed figures of single samples, and add rows to an experiment's results.

They are computed here and not at the end of a sweep, because which runs an experiment has changes with its grid: a run's scores are
sealed once and must not depend on others, whereas results are made anew whenever the grid has grown.
"""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from diversity.artifact import Artifact, Storage
from diversity.config import load
from diversity.effects.scores import SCORES_SCHEMA
from diversity.filesystems import each
from training.evaluators import EVALUATORS, EvaluatorConfig, SampleFigures

logger = logging.getLogger(__name__)

SCORE_COLUMNS = tuple(SCORES_SCHEMA.names[1:])
Figures = dict[str, SampleFigures]  # by split


@dataclass(frozen=True)
class Scored:
    """A cell's run with sealed scores: its columns of the results that no score changes, and the artifact."""

    facts: dict[str, Any]
    scores: Artifact

    @property
    def arm(self) -> tuple[Any, Any]:
        """Return what compared runs have in common."""
        return self.facts["size"], self.facts["control"]


def with_comparisons(storage: Storage, entries: Mapping[str, Any], results: pa.Table, comparisons: Sequence[EvaluatorConfig]) -> pa.Table:
    """Return the results with the rows of every comparison that the configuration names, each behind its run's own scores.

    Args:
        storage: where the scores lie.
        entries: the index, as `Index.read` gives it.
        results: RESULTS_SCHEMA.
        comparisons: `EvaluationConfig.comparisons`.
    """
    runs = _scored(storage, entries, results)
    added: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for comparison in comparisons:
        for run, row in _compare_all(runs, comparison):
            added[_key(run.facts)].append(row)
    if not added:
        return results
    woven: list[dict[str, Any]] = []
    for key, rows in itertools.groupby(results.to_pylist(), key=_key):
        woven += [*rows, *added.pop(key, [])]
    return pa.Table.from_pylist(woven, schema=results.schema)


def _key(row: Mapping[str, Any]) -> str:
    return f"{row['cell']}_t{row['training_seed']}"


def _scored(storage: Storage, entries: Mapping[str, Any], results: pa.Table) -> list[Scored]:
    """Return the runs of the results, one for each cell and training seed."""
    found: dict[str, Scored] = {}
    for row in results.to_pylist():
        key = _key(row)
        if row["run"] is not None and key not in found:
            facts = {name: value for name, value in row.items() if name not in SCORE_COLUMNS}
            found[key] = Scored(facts, storage.at(entries["scores"][key]))
    return list(found.values())


def _compare_all(runs: Sequence[Scored], comparison: EvaluatorConfig) -> Iterator[tuple[Scored, dict[str, Any]]]:
    """Yield each run and a row of its comparison with the runs that the options name; arm by arm, so that few are in memory."""
    compare, against = load(EVALUATORS[comparison.name].function), comparison.parsed().against
    arms: dict[tuple[Any, Any], list[Scored]] = defaultdict(list)
    for run in runs:
        arms[run.arm].append(run)
    for (size, control), arm in arms.items():
        opponents = {run.scores.path: run.scores for run in arm if run.facts["strategy"] == against}
        if not opponents:
            logger.info("%s: no run of %s at size %s with control %s to compare with", comparison.name, against, size, control)
            continue
        theirs = dict(zip(opponents, _each_figures(opponents.values(), comparison), strict=True))
        mine = {run.scores.path: run.scores for run in arm}
        for path, figures in zip(mine, _each_figures(mine.values(), comparison), strict=True):
            rows = [
                {**{name: getattr(score, name) for name in SCORE_COLUMNS if name != "evaluator"}, "evaluator": comparison.name}
                for split, own in figures.items()
                for score in compare(split, own, [other[split] for name, other in theirs.items() if name != path and split in other])
            ]
            for run in arm:
                if run.scores.path == path:
                    yield from ((run, {**run.facts, **row}) for row in rows)


def _each_figures(scores: Any, comparison: EvaluatorConfig) -> list[Figures]:
    return each(lambda artifact: sample_figures(artifact, str(comparison.reads)), scores)


def sample_figures(scores: Artifact, evaluator: str) -> Figures:
    """Return the figures of single samples of a sealed run by one evaluator, whose metric has its name, by split."""
    table = scores.read("samples") if scores.parts("samples") else None
    if table is None or "group" not in table.column_names:
        logger.warning("%s: sealed by an earlier version, without what comparisons need: left out of them", scores.path)
        return {}
    mine = table.filter(pc.and_(pc.equal(table["evaluator"], evaluator), pc.equal(table["metric"], evaluator)))
    found = {}
    for split in pc.unique(mine["split"]).to_pylist():
        rows = mine.filter(pc.equal(mine["split"], split))
        columns = [np.asarray(rows[name].to_numpy()) for name in ("group", "tokens", "value")]
        found[split] = SampleFigures(rows["sample_id"].to_pylist(), *columns)
    return found
