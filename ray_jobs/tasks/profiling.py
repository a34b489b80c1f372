"""What the workers of `profile_corpus` do: tokenise, embed and tag a span of rows, then make types of what all spans gave.

Plain functions and classes, so that they run without a cluster in a test. Spans hand over to the next step by files in a folder
of the artifact that they belong to, which is removed once the artifact is sealed: Ray runs a task again whose worker died, at
whatever point that was.
"""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diversity.artifact import Artifact
from diversity.cell import SIDES, typing_parts
from diversity.config import UserError
from diversity.typings.embedders import Embedder, EmbedderConfig, embed, load_embedder
from diversity.typings.encoders import Encoder, load_encoder
from diversity.typings.neighbours import nearest_centroid, one_thread
from diversity.typings.taggers import TaggerConfig
from diversity.typings.tags import TagCounter, normalise
from diversity.typings.tokens import (
    CHECKED,
    VOCABULARY_SCHEMA,
    WORD,
    BandConfig,
    Frequencies,
    TokenCounter,
    TypeMapper,
    WordCounter,
    WordTyper,
    band_types,
    frequencies,
    merge_vocabularies,
    token_vocabulary,
    type_lookup,
)
from diversity.typings.topics import LABELLED, TopicsConfig, described, k_means_topics, topics, train, training_rows
from diversity.typings.typed import Typed, summarise
from ray_jobs.job.process import cache_folder
from ray_jobs.tasks.corpus_rows import CorpusRows
from training.model_source import resolve_model

logger = logging.getLogger(__name__)

STAGING = ".staging"  # of a name that isn't published
Assigned = tuple[np.ndarray, np.ndarray]


class Work(Protocol):
    """What is done to every span of rows for one artifact."""

    @property
    def artifact(self) -> Artifact:
        """Return the artifact that the rows are worked on for."""

    def open(self, tools: Tools, table: pa.Table) -> Callable[[int, pa.Table], None]:
        """Load what is needed and return the function of (number of the span, its rows) that writes into the artifact."""


class Tools:
    """The tokenizers of a worker, each loaded once."""

    def __init__(self, tokenizers: Mapping[str, str]) -> None:
        """Remember whose tokenizer each unit is, "" being the model's own; folders are resolved on this node when they are needed."""
        self._tokenizers = tokenizers
        self._encoders: dict[str, Encoder] = {}

    def encoder(self, unit: str, texts: Sequence[str]) -> Encoder:
        """Return the encoder of a unit; its fast path is checked on the texts."""
        if unit not in self._encoders:
            named = self._tokenizers.get(unit)
            folder = resolve_model(named, cache_folder(), tokenizer_only=True) if named else None
            self._encoders[unit] = load_encoder("" if named else unit, folder, check_on=texts[:CHECKED])
        return self._encoders[unit]


@dataclass(frozen=True)
class Tokenise:
    """Count the tokens of each row; for words, only the span's dictionary."""

    artifact: Artifact
    typing: str

    def open(self, tools: Tools, table: pa.Table) -> Callable[[int, pa.Table], None]:
        """Load the tokenizer."""
        side, _, unit = typing_parts(self.typing)
        if unit == WORD:
            return partial(self._words, WordCounter(side))
        return partial(self._tokens, TokenCounter(side, tools.encoder(unit, table[side][:CHECKED].to_pylist())))

    def _words(self, counter: WordCounter, span: int, table: pa.Table) -> None:
        self.artifact.write(counter(table), f"{STAGING}/frequencies/part-{span:05d}.parquet")

    def _tokens(self, counter: TokenCounter, span: int, table: pa.Table) -> None:
        counts = counter(table)
        found = frequencies(counts, counter.encoder.size)
        seen = np.flatnonzero(found.df)
        sparse = pa.table({"token_id": pa.array(seen.astype(np.int32)), "df": found.df[seen], "tf": found.tf[seen]})
        self.artifact.write(sparse, f"{STAGING}/frequencies/part-{span:05d}.parquet")
        self.artifact.write(counts.drop_columns(["counts"]), f"{STAGING}/counts/part-{span:05d}.parquet")


@dataclass(frozen=True)
class Embed:
    """Embed one side of each row, in fixed groups: spans start at multiples of the group. The device is the driver's decision."""

    artifact: Artifact
    side: str
    config: EmbedderConfig
    device: str = "cpu"

    def open(self, tools: Tools, table: pa.Table) -> Callable[[int, pa.Table], None]:
        """Load the embedder."""
        del tools, table
        return partial(self._embed, load_embedder(self.config, self.device))

    def _embed(self, embedder: Embedder, span: int, table: pa.Table) -> None:
        texts = table[self.side].to_pylist()
        starts = range(0, len(texts), self.config.group)
        vectors = np.concatenate([embedder(texts[start : start + self.config.group]) for start in starts])
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), embedder.dimension)
        self.artifact.write(pa.table({"sample_id": table["sample_id"], "embedding": column}), f"data/part-{span:05d}.parquet")


@dataclass(frozen=True)
class Tag:
    """Give each row its raw tags."""

    artifact: Artifact
    side: str
    config: TaggerConfig

    def open(self, tools: Tools, table: pa.Table) -> Callable[[int, pa.Table], None]:
        """Load the tagger."""
        del tools, table
        return partial(self._tag, TagCounter(self.config, self.side, self.artifact.storage))

    def _tag(self, counter: TagCounter, span: int, table: pa.Table) -> None:
        self.artifact.write(counter(table), f"{STAGING}/tags/part-{span:05d}.parquet")
        told = {"outcome": list(counter.outcomes), "count": pa.array(counter.outcomes.values(), pa.int64())}
        if counter.outcomes:
            self.artifact.write(pa.table(told), f"{STAGING}/outcomes/part-{span:05d}.parquet")


class SpanWorker:
    """A Ray Data UDF: takes numbers of spans, does all work on the rows of each, and returns the numbers with their rows."""

    def __init__(self, rows: CorpusRows, spans: Sequence[tuple[int, int]], works: Sequence[Work], tokenizers: Mapping[str, str]) -> None:
        """Remember what to do; tools are loaded with the first span."""
        self._rows, self._spans, self._works = rows, spans, works
        self._tools = Tools(tokenizers)
        self._open: list[Callable[[int, pa.Table], None]] = []

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return `span` and `rows` of the spans done, and as `error` what a person can mend, pickled: Ray Data loses an error's type."""
        error = None
        try:
            for span in batch["span"].to_pylist():
                self._do(span)
        except UserError as fault:
            error = pickle.dumps(fault)
        done = [stop - start for start, stop in (self._spans[span] for span in batch["span"].to_pylist())]
        errors = pa.array([error] * len(done), pa.binary())
        return pa.table({"span": batch["span"].cast(pa.int64()), "rows": pa.array(done, pa.int64()), "error": errors})

    def _do(self, span: int) -> None:
        start, stop = self._spans[span]
        table = self._rows.read(start, stop, ["sample_id", *SIDES])
        if not self._open:
            self._open = [work.open(self._tools, table) for work in self._works]
        for do in self._open:
            do(span, table)


def count_types(work: Tokenise, n: int, band: BandConfig, tokenizers: Mapping[str, str]) -> np.ndarray | list[str]:
    """Write the types and the vocabulary of a micro typing, and return what turns rows into types: a lookup table, or words.

    Raises:
        NoTypesError: no token lies in the band.
    """
    artifact, unit = work.artifact, typing_parts(work.typing)[2]
    blocks = (_read(artifact, path) for path in artifact.parts(f"{STAGING}/frequencies"))  # one at a time: they grow with the corpus
    if unit == WORD:
        vocabulary, size = merge_vocabularies(blocks, n), 0
    else:
        encoder = Tools(tokenizers).encoder(unit, [])
        size = encoder.size
        found = Frequencies(n, np.zeros(size, np.int64), np.zeros(size, np.int64))
        for block in blocks:
            ids = block["token_id"].to_numpy()
            found.df[ids] += block["df"].to_numpy()
            found.tf[ids] += block["tf"].to_numpy()
        vocabulary = token_vocabulary(found, encoder.contents())
    types, figures = band_types(work.typing, vocabulary, band)
    artifact.write(types, "types/part-00000.parquet")
    artifact.write(vocabulary.table.cast(VOCABULARY_SCHEMA), "vocabulary/part-00000.parquet")
    artifact.write(pa.table({name: [value] for name, value in figures.items()}), f"{STAGING}/band/part-00000.parquet")
    return types["label"].to_pylist() if unit == WORD else type_lookup(types, size)


def type_spans(work: Tokenise, rows: CorpusRows, spans: Sequence[tuple[int, tuple[int, int]]], lookup: Any) -> dict[str, int]:
    """Write the types of some spans, given as (number, (start, stop)), and return n, nnz, empty and tokens of their rows."""
    side, _, unit = typing_parts(work.typing)
    typer: Callable[[pa.Table], pa.Table] = WordTyper(side, lookup) if unit == WORD else TypeMapper(lookup)
    totals = {"n": 0, "nnz": 0, "empty": 0, "tokens": 0}
    for span, (start, stop) in spans:
        if unit == WORD:
            table = typer(rows.read(start, stop, ["sample_id", side]))
        else:
            table = typer(_read(work.artifact, work.artifact.folder(f"{STAGING}/counts/part-{span:05d}.parquet")))
        work.artifact.write(table, f"data/part-{span:05d}.parquet")
        found = {**summarise(table["types"]), "tokens": int(table["tokens"].to_numpy().sum(dtype=np.int64))}
        totals = {name: totals[name] + found[name] for name in totals}
    return totals


def seal_micro(work: Tokenise, sealing: dict[str, Any], *totals: dict[str, int]) -> None:
    """Seal a micro typing whose spans are written."""
    if _sealed(work.artifact):
        return
    figures = {name: sum(total[name] for total in totals) for name in totals[0]}
    band = work.artifact.read(f"{STAGING}/band").to_pylist()[0]
    n_types = work.artifact.read("types", columns=["type"]).num_rows
    _seal(work.artifact, {**sealing, "typing": work.typing, **figures, "M": n_types, "band": band})


def seal_embeddings(work: Embed, sealing: dict[str, Any], n: int) -> None:
    """Seal the embeddings of a side."""
    _seal(work.artifact, {**sealing, "side": work.side, "n": n})


def make_tags(work: Tag, typing: str, embedder: EmbedderConfig, sealing: dict[str, Any]) -> None:
    """Normalise the raw tags of a side and seal its meso typing."""
    if _sealed(work.artifact):
        return
    raw = work.artifact.read(f"{STAGING}/tags")
    outcomes: Counter[str] = Counter()
    for path in work.artifact.parts(f"{STAGING}/outcomes"):
        told = _read(work.artifact, path)
        outcomes.update(dict(zip(told["outcome"].to_pylist(), told["count"].to_pylist(), strict=True)))
    _write(work.artifact, normalise(raw, typing, work.config, partial(embed, config=embedder), outcomes), sealing)


def make_topics(
    artifact: Artifact, typing: str, rows: CorpusRows, embeddings: Artifact, config: TopicsConfig, sealing: dict[str, Any]
) -> None:
    """Cluster the sealed embeddings of a side and seal its macro typing."""
    if _sealed(artifact):
        return
    side = typing_parts(typing)[0]
    table = rows.read(0, len(rows), ["sample_id", "source", side])
    stored = embeddings.read(columns=["sample_id", "embedding"])
    if not stored["sample_id"].equals(table["sample_id"]):
        raise ValueError(f"{embeddings.uri} holds other rows than the corpus")
    vectors = _vectors(stored)
    del stored
    _write(artifact, topics(table, vectors, typing, config), sealing)


def train_topics(embeddings: Artifact, config: TopicsConfig, device: str = "cpu") -> np.ndarray:
    """Return the centroids of k-means for the sealed embeddings of a side."""
    rows = CorpusRows.of(embeddings)
    with one_thread():
        return train(_vectors(rows.read(0, training_rows(len(rows), config), ["embedding"])), len(rows), config, device)


def assign_topics(
    rows: CorpusRows, embeddings: Artifact, blocks: Sequence[tuple[int, int]], centroids: np.ndarray, device: str = "cpu"
) -> Assigned:
    """Return the nearest centroid of each row of some blocks, and the cosine to it.

    Raises:
        ValueError: the embeddings are of other rows.
    """
    stored, found = CorpusRows.of(embeddings), []
    for start, stop in blocks:
        table = stored.read(start, stop, ["sample_id", "embedding"])
        if not table["sample_id"].equals(rows.read(start, stop, ["sample_id"])["sample_id"]):
            raise ValueError(f"{embeddings.uri} holds other rows than the corpus")
        with one_thread():
            found.append(nearest_centroid(_vectors(table), centroids, device))
    return np.concatenate([labels for labels, _ in found]), np.concatenate([cosine for _, cosine in found])


def seal_topics(
    artifact: Artifact,
    typing: str,
    rows: CorpusRows,
    config: TopicsConfig,
    sealing: dict[str, Any],
    *assigned: tuple[np.ndarray, np.ndarray],
) -> None:
    """Seal the macro typing of samples that were assigned to centroids, pieces in the order of the rows."""
    if _sealed(artifact):
        return
    found = k_means_topics(np.concatenate([labels for labels, _ in assigned]), np.concatenate([cosine for _, cosine in assigned]))
    side = typing_parts(typing)[0]
    texts = rows.read(0, min(LABELLED, len(rows)), [side])[side].to_pylist()
    table = rows.read(0, len(rows), ["sample_id", "source"])
    _write(artifact, described(table, texts, typing, found, config), sealing)


def _vectors(table: pa.Table) -> np.ndarray:
    """Return the column `embedding` as (n, d) float32."""
    return table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)


def warm_up() -> None:
    """Load the clustering packages once, so that compiled code lies in this node's cache before two tasks want it."""
    import fast_hdbscan

    spread = np.random.default_rng(0).normal(size=(200, 5))
    fast_hdbscan.fast_hdbscan(spread, min_samples=5, min_cluster_size=10, max_cluster_size=50)


def _write(artifact: Artifact, typed: Typed, sealing: dict[str, Any]) -> None:
    for folder, table in typed.tables.items():
        artifact.write(table, f"{folder}/part-00000.parquet")
    _seal(artifact, {**sealing, **typed.summary()})


def _seal(artifact: Artifact, manifest: dict[str, Any]) -> None:
    artifact.seal(manifest)
    artifact.remove(STAGING)


def _sealed(artifact: Artifact) -> bool:
    """Return whether another job has sealed the artifact, or this task has, before its worker died; what is left of the work goes."""
    if artifact.sealed:
        artifact.remove(STAGING)
        artifact.discard()
    return artifact.sealed


def _read(artifact: Artifact, path: str) -> pa.Table:
    return pq.read_table(path, filesystem=artifact.storage.filesystem()[0])
