"""What the tasks of `build_datasets` do: load arrays from sealed artifacts, prune, choose, write and check, measure.

Plain functions, so that they run without a cluster in a test; `build_datasets` wraps them as Ray tasks. Arrays come out of the object
store read-only and are shared by all tasks of a node.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from diversity.artifact import Artifact
from diversity.cell import SIDES, Cell, GridConfig, typing_parts
from diversity.datasets import dataset
from diversity.datasets.dataset import Choice, Corpus, id_array
from diversity.keys import content_priorities, sample_keys
from diversity.metrics import METRICS_SCHEMA, measure
from diversity.selection import strategies
from diversity.selection.peel import TypedInputs
from diversity.selection.strategies import Inputs, Picks, SelectionConfig, closure_of, needs, select
from diversity.typings.encoders import Encoder, load_encoder
from diversity.typings.incidence import Incidence, Typing, assign_nearest
from ray_jobs.job.process import cache_folder
from training.model_source import resolve_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sources:
    """The sealed artifacts and settings that every dataset of a grid is made from.

    `peels` are those of the typings that it dials; `scores` what a scorer gave, in the place of the corpus's own.
    """

    corpus: Artifact
    profiles: Mapping[str, Artifact]
    embeddings: Mapping[str, Artifact]
    model: str
    selection: SelectionConfig
    grid: GridConfig
    peels: Mapping[str, Artifact] = field(default_factory=dict)
    scores: Artifact | None = None


@dataclass(frozen=True)
class Samples:
    """The corpus without its texts, one entry a row.

    Attributes:
        ids: `(n,) S32`, ascending.
        keys: `(n,) uint64`.
        source: `(n,) int32` codes into `source_names`.
        source_names: ascending.
        tokens: model tokens of each side, `(n,) int32`.
        scores: quality, `(n,) float64` with NaN where a sample has none; None where no sample has one.
    """

    ids: np.ndarray
    keys: np.ndarray
    source: np.ndarray
    source_names: list[str]
    tokens: Mapping[str, np.ndarray]
    scores: np.ndarray | None = None


def load_scores(sources: Sources) -> np.ndarray | None:
    """Return the samples' scores in corpus order, NaN where there is none, or None where no sample has one."""
    column = (sources.scores or sources.corpus).read(columns=["score"]).column("score")
    return None if column.null_count == len(column) else column.to_numpy().astype(np.float64)


def load_samples(sources: Sources) -> Samples:
    """Return the corpus without its texts."""
    table = sources.corpus.read(columns=["sample_id", "source"])
    names = sorted(set(table.column("source").unique().to_pylist()))
    codes = table.column("source").combine_chunks().dictionary_encode()
    renumber = np.searchsorted(names, codes.dictionary.to_pylist()).astype(np.int32)
    tokens = {side: _column(sources.profiles[f"{side}-micro"], "tokens") for side in SIDES}
    return Samples(
        ids=id_array(table.column("sample_id")),
        keys=sample_keys(table.column("sample_id")),
        source=renumber[codes.indices.to_numpy()],
        source_names=names,
        tokens=tokens,
        scores=load_scores(sources),
    )


def load_typing(sources: Sources, typing: str) -> Typing:
    """Return a typing of the corpus; macro outliers join their nearest topic where `selection.outliers` says so."""
    profile = sources.profiles[typing]
    types = profile.read("types", columns=["type", "content", "label"]).sort_by("type")
    incidence = Incidence.from_lists(profile.read(columns=["types"]).column("types"), len(types))
    side, granularity, _ = typing_parts(typing)
    if granularity == "macro" and sources.selection.outliers == "nearest":
        incidence = assign_nearest(incidence, embedding_matrix(sources.embeddings[side]))
    return Typing(typing, incidence, types.column("content").to_pylist(), types.column("label").to_pylist())


def embedding_matrix(artifact: Artifact) -> np.ndarray:
    """Return the `(n, d) float32` embeddings of a side, in corpus order."""
    column = artifact.read(columns=["embedding"]).column("embedding").combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def load_tokens(sources: Sources, side: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a side's model tokens as (ids int32, offsets int64), in corpus order."""
    return _encoder(sources.model).encode(sources.corpus.read(columns=[side]).column(side).to_pylist())


def prune_typing(typing: Typing, samples: Samples, selection: SelectionConfig, peel: Artifact) -> TypedInputs:
    """Return a pruned typing, out of its sealed artifact, or computed and sealed now."""
    if peel.sealed:
        position = peel.read(columns=["position"]).column("position").to_numpy()
        birth = peel.read("births").column("birth").to_numpy()
        return TypedInputs(typing.incidence, content_priorities(typing.content), position, birth)
    pruned = strategies.prune_typing(typing.name, typing.incidence, typing.content, samples.keys, selection)
    rows = {
        "type": pa.array(np.arange(typing.incidence.n_types), pa.int32()),
        "content": pa.array(typing.content, pa.binary()),
        "position": pa.array(pruned.position, pa.int32()),
        "label": pa.array(typing.label, pa.string()),
        "df": pa.array(typing.incidence.df(), pa.int64()),
    }
    target = peel.begin()
    target.write(pa.table(rows))
    target.write(pa.table({"birth": pa.array(pruned.birth, pa.int32())}), "births/part-00000.parquet")
    target.seal({"typing": typing.name, "M": typing.incidence.n_types, "nnz": typing.incidence.nnz, "algorithm": selection.algorithm})
    logger.info("%s: %d types pruned (%d incidences)", typing.name, typing.incidence.n_types, typing.incidence.nnz)
    return pruned


def choose(sources: Sources, cells: Sequence[Cell], samples: Samples, typings: Sequence[str], *pruned: TypedInputs) -> list[Picks] | Picks:
    """Return the picks of cells whose strategies need no other typings than those given; of one cell bare, as Ray wants it."""
    inputs = Inputs(
        sample_keys=samples.keys,
        tokens=samples.tokens,
        source=samples.source,
        source_names=samples.source_names,
        typed=dict(zip(typings, pruned, strict=True)),
        grid=sources.grid,
        embeddings=lambda side: embedding_matrix(sources.embeddings[side]),
        token_ids=lambda side: load_tokens(sources, side),
        scores=None if samples.scores is None else functools.partial(np.asarray, samples.scores),
    )
    picks = [select(inputs, cell, sources.selection) for cell in cells]
    return picks if len(picks) > 1 else picks[0]


def write_and_seal(
    sources: Sources,
    cells: Sequence[Cell],
    artifacts: Sequence[Artifact],
    samples: Samples,
    typings: Sequence[str],
    *loaded: Any,
) -> list[str]:
    """Write a batch of datasets in one pass, read each again, check and seal it; return their names.

    `loaded` is the `Typing` of each of `typings`, then the `Picks` of each cell: Ray resolves references only at the top level of a call.
    """
    known, picks = loaded[: len(typings)], loaded[len(typings) :]
    incidences = {typing: one.incidence for typing, one in zip(typings, known, strict=True)}
    corpus = Corpus(samples.ids, samples.tokens, incidences, samples.scores)
    targets = [artifact.begin() for artifact in artifacts]
    chosen = {target: Choice(pick.rows, pick.chosen_for) for target, pick in zip(targets, picks, strict=True)}
    materialise = sources.selection.materialise
    if materialise:
        dataset.write(sources.corpus, chosen)
    else:
        dataset.write_picks(samples.ids, chosen)
    for cell, target, pick in zip(cells, targets, picks, strict=True):
        written = target.read() if materialise else dataset.through_to(sources.corpus, target.read())
        found = dataset.check(written, cell, corpus, pick.kept, pick.target, closure=closure_of(cell.strategy, sources.selection))
        facts = {"pool_size": pick.pool_size, "materialised": materialise, "made_from": made_from(sources, cell)}
        target.seal({**found, **facts, **({"target": pick.target} if pick.target else {})})
    return [cell.name for cell in cells]


def made_from(sources: Sources, cell: Cell) -> dict[str, Any]:
    """Return what a dataset was made from, for whoever has nothing but its folder; paths are relative to the storage."""
    largest = [max(sources.grid.sizes)] if sources.selection.kmin_from == "largest" else []
    return {
        "corpus": sources.corpus.path,
        "profiles": {typing: artifact.path for typing, artifact in sources.profiles.items()},
        "embeddings": {side: artifact.path for side, artifact in sources.embeddings.items()},
        "peels": {typing: sources.peels[typing].path for typing in needs(cell, sources.grid).typings if typing in sources.peels},
        **({"scores": sources.scores.path} if sources.scores else {}),
        "model": sources.model,
        "selection": sources.selection.model_dump(mode="json", exclude={"materialise"}),
        "grid": {
            "sizes": sorted({cell.size, *largest}),
            "levels": [] if cell.level is None else [str(cell.level)],
            "random_quota_from": sources.grid.random_quota_from,
        },
    }


def measure_dataset(sources: Sources, cell: Cell, source: Artifact, target: Artifact, samples: Samples) -> str:
    """Compute and seal the posterior metrics of a sealed dataset, both sides; returns its name."""
    table = dataset.read(source, ["sample_id", *SIDES])
    rows = np.searchsorted(samples.ids, id_array(table.column("sample_id")))
    encoder = _encoder(sources.model)
    parts = []
    for side in SIDES:
        texts = table.column(side).to_pylist()
        ids, offsets = encoder.encode(texts)
        vectors = embedding_matrix(sources.embeddings[side])[rows] if side in sources.embeddings else None
        parts.append(measure(side, tokens=ids, offsets=offsets, texts=texts, embeddings=vectors))
    written = target.begin()
    written.write(pa.concat_tables(parts).cast(METRICS_SCHEMA))
    written.seal({"cell": cell.describe(), "dataset": source.path})
    return cell.name


@functools.cache
def _encoder(model: str) -> Encoder:
    """Return the model's tokenizer, out of this node's cache; made once a process, since that takes longer than a small dataset."""
    return load_encoder("", resolve_model(model, cache_folder(), tokenizer_only=True))


def _column(artifact: Artifact, name: str) -> np.ndarray:
    return artifact.read(columns=[name]).column(name).to_numpy()
