"""An experiment's index and seals become tidy tables: cells, coverage, sources, results and posterior metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from diversity.artifact import Artifact, ArtifactError, Storage
from diversity.cell import SIDES, Cell
from diversity.datasets.dataset import read
from diversity.effects import COVERAGE_SCHEMA, RESULTS_SCHEMA, SOURCES_SCHEMA
from diversity.filesystems import each
from diversity.metrics import METRICS_SCHEMA
from ray_jobs.report.data import CELLS_SCHEMA, Pair, TypeList
from ray_jobs.report.distinct import distinct_table

logger = logging.getLogger(__name__)

CELL_METRICS_SCHEMA = METRICS_SCHEMA.append(pa.field("cell", pa.string()))
SHOWN_SAMPLES = 3
SHOWN_CHARACTERS = 320
SHOWN_TYPES = 24


@dataclass(frozen=True)
class Gathered:
    """What an experiment has so far.

    Attributes:
        cells: CELLS_SCHEMA, one row for each sealed dataset, in the grid's order.
        coverage: COVERAGE_SCHEMA.
        sources: SOURCES_SCHEMA.
        results: RESULTS_SCHEMA.
        distinct: DISTINCT_SCHEMA: how many different datasets stand behind the cells.
        metrics: CELL_METRICS_SCHEMA.
        parents: paths of all artifacts that were read, the parents of whatever is made from the tables.
    """

    cells: pa.Table
    coverage: pa.Table
    sources: pa.Table
    results: pa.Table
    distinct: pa.Table
    metrics: pa.Table
    parents: list[str]


def gather(
    storage: Storage,
    entries: Mapping[str, Any],
    cells: Sequence[Cell],
    training_seeds: Sequence[int],
    differs: Callable[[Mapping[str, Any]], str] = lambda scores: "",
) -> Gathered:
    """Return the tables of all cells whose dataset is sealed, with the scores and metrics that are.

    Args:
        storage: where the artifacts lie.
        entries: the index, as `Index.read` gives it.
        cells: the grid's cells; others in the index are of an earlier grid and left out.
        training_seeds: of the grid's runs.
        differs: in what the run of a manifest of scores is another than is asked for, or ""; such runs are left out.
    """
    datasets = _sealed(storage, entries.get("datasets", {}), [cell.name for cell in cells])
    manifests = dict(zip(datasets, each(lambda artifact: artifact.manifest, datasets.values()), strict=True))
    known = [cell for cell in cells if cell.name in manifests]
    facts = {cell.name: _cell_row(cell, datasets[cell.name], manifests[cell.name]) for cell in known}
    keys = {f"{cell.name}_t{seed}": (cell.name, seed) for cell in known for seed in training_seeds}
    scores = _sealed(storage, entries.get("scores", {}), list(keys))
    metrics = _sealed(storage, entries.get("metrics", {}), list(facts))
    results: list[dict[str, Any]] = []
    found = list(zip(scores, each(_manifest_and_rows, scores.values()), strict=True))
    others = each(differs, (manifest for _, (manifest, _) in found))
    for (key, (manifest, table)), other in zip(found, others, strict=True):
        name, seed = keys[key]
        if manifest.get("content", manifests[name]["content"]) != manifests[name]["content"]:
            logger.warning("%s: its scores are of an earlier dataset, left out", key)
            continue
        if other:
            logger.warning("%s: its scores are of a run with %s, left out", key, other)
            continue
        results += [{**facts[name], **row, "training_seed": seed} for row in table]
    scored = {row["cell"] for row in results}
    results += [row for name, row in facts.items() if name not in scored]
    order = {name: i for i, name in enumerate(facts)}
    results.sort(key=lambda row: order[row["cell"]])
    measured = zip(metrics, each(_manifest_and_rows, metrics.values()), strict=True)
    return Gathered(
        cells=_table(facts.values(), CELLS_SCHEMA),
        coverage=_table(
            ({"cell": c, "typing": t, "coverage": v} for c in facts for t, v in manifests[c]["coverage"].items()), COVERAGE_SCHEMA
        ),
        sources=_table(({"cell": c, "source": s, "samples": n} for c in facts for s, n in manifests[c]["sources"].items()), SOURCES_SCHEMA),
        results=_table(results, RESULTS_SCHEMA),
        distinct=distinct_table(list(facts.values()), lambda row: sample_ids(storage, row)),
        metrics=_table(({**row, "cell": name} for name, (_, rows) in measured for row in rows), CELL_METRICS_SCHEMA),
        parents=[artifact.path for group in (datasets, scores, metrics) for artifact in group.values()],
    )


def distinct_of(storage: Storage, datasets: Mapping[Cell, Artifact]) -> pa.Table:
    """Return how many different datasets stand behind cells and what they share, as DISTINCT_SCHEMA.

    Args:
        storage: where they lie.
        datasets: sealed, by cell.
    """
    contents = each(lambda artifact: artifact.manifest.get("content"), datasets.values())
    rows = [
        {**cell.describe(), "cell": cell.name, "dataset": artifact.path, "content": content}
        for (cell, artifact), content in zip(datasets.items(), contents, strict=True)
    ]
    return distinct_table(rows, lambda row: sample_ids(storage, row))


def sample_ids(storage: Storage, row: Mapping[str, Any]) -> list[str]:
    """Return the sample ids of the dataset of a row of CELLS_SCHEMA; none where an earlier version sealed it without."""
    dataset = storage.at(row["dataset"])
    try:
        return read(dataset, ["sample_id"])["sample_id"].to_pylist()
    except (ArtifactError, pa.ArrowInvalid, KeyError):
        return []


def sample_pairs(storage: Storage, cells: pa.Table) -> list[Pair]:
    """Return the first samples of the least and the most diverse dataset of each strategy, at the smallest size."""
    rows = [row for row in cells.to_pylist() if row["level"] is not None and row["control"] == "none"]
    pairs = []
    for strategy in dict.fromkeys(row["strategy"] for row in rows):
        mine = [row for row in rows if row["strategy"] == strategy]
        smallest = min(row["size"] for row in mine)
        mine = sorted((row for row in mine if row["size"] == smallest), key=lambda row: (row["level"], row["subset_seed"]))
        if mine[0]["level"] < mine[-1]["level"]:
            low, high = mine[0], mine[-1]
            texts = [_first_samples(storage.at(row["dataset"])) for row in (low, high)]
            pairs.append(Pair(strategy, low["cell"], high["cell"], *texts))
    return pairs


def type_lists(storage: Storage, entries: Mapping[str, Any], typings: Sequence[str]) -> list[TypeList]:
    """Return some types of each typing whose peel is sealed, by their labels.

    Args:
        storage: where the peels lie.
        entries: the index, as `Index.read` gives it.
        typings: which typings.
    """
    found = []
    for typing, peel in _sealed(storage, entries.get("peel", {}), typings).items():
        rows = peel.read(columns=["label", "position", "df"]).sort_by("position").to_pylist()
        largest = sorted(rows, key=lambda row: -row["df"])
        shown = ([(_short(row["label"]), row["df"]) for row in some[:SHOWN_TYPES]] for some in (rows, rows[::-1], largest))
        found.append(TypeList(typing, len(rows), *shown))
    return found


def _first_samples(dataset: Artifact) -> list[tuple[str, str]]:
    table = read(dataset, list(SIDES)).slice(0, SHOWN_SAMPLES)
    columns = [[_short(text) for text in table[side].to_pylist()] for side in SIDES]
    return list(zip(*columns, strict=True))


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1].rstrip() + "…"


def _cell_row(cell: Cell, dataset: Artifact, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return one row of CELLS_SCHEMA out of a dataset's manifest."""
    target = manifest.get("target") or {}
    k, types = target.get("k_realised"), target.get("M")
    samples = manifest["samples"]
    tokens = {f"{side}_tokens": manifest["tokens"][side] for side in SIDES}
    return {
        **cell.describe(),
        "size": cell.size or samples,  # the whole corpus has a size once it is known
        **tokens,
        "cell": cell.name,
        "samples": samples,
        "k": k,
        "M": types,
        "share": k / types if k is not None and types else None,
        "pool_size": manifest.get("pool_size"),
        "coverage": manifest["coverage"].get(cell.strategy),
        "content": manifest.get("content"),
        **{f"{side}_length": tokens[f"{side}_tokens"] / samples for side in SIDES},
        "dataset": dataset.path,
    }


def _sealed(storage: Storage, entries: Mapping[str, str], keys: Iterable[str]) -> dict[str, Artifact]:
    """Return the artifacts of those keys that the index has and that are sealed."""
    named = {key: storage.at(entries[key]) for key in keys if key in entries}
    sealed = each(lambda artifact: artifact.sealed, named.values())
    return {key: artifact for (key, artifact), there in zip(named.items(), sealed, strict=True) if there}


def _manifest_and_rows(artifact: Artifact) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return artifact.manifest, artifact.read().to_pylist()


def _table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)
