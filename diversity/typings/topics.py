"""Macro typing: embeddings → neighbours → UMAP layout → HDBSCAN with a cap on cluster size; k-means for large corpora.

K-means is trained on the first rows of the corpus, which are a random sample, since a corpus is sorted by content hash; rows are then
assigned in fixed blocks, so that workers and how the work is cut change nothing.

The recipe's settings are ours, measured on 117,000 real samples; the paper's are not known. HDBSCAN runs on the layout,
never on the embeddings themselves (60-80% noise). Exact duplicate texts are clustered once, in the order of sample_id,
because duplicates break "the first neighbour is the row itself", and row order changes labels. The same rows and seed
give the same topics on one kind of machine; across machines nothing is promised, so topics are sealed, not recomputed.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from diversity.cell import typing_parts
from diversity.config import Config
from diversity.typings.english import STOP_WORDS
from diversity.typings.layout import layout, start_positions
from diversity.typings.neighbours import (
    BLOCK,
    EXACT_BELOW,
    cosine_neighbours,
    k_means,
    mean_vectors,
    nearest_centroid,
    one_thread,
)
from diversity.typings.typed import DATA_SCHEMA, TYPES_SCHEMA, NoTypesError, Typed, list_array, types_table

log = logging.getLogger(__name__)

MACRO_TYPES_SCHEMA = TYPES_SCHEMA.append(pa.field("central", pa.list_(pa.string())))
_LABEL_WORD = re.compile(r"[^\W\d_][\w'-]+")
_LABEL_CHARS, _LABEL_WORDS, _CENTRAL = 1000, 4, 3
RECIPE = 2  # rises with every change that gives the same texts other topics: they are then sealed under another name
LABELLED = 200_000  # texts that label words are counted in: the first ones
_TRAINED = 64  # training samples of a centroid


class TopicsConfig(Config):
    """How embeddings become topics.

    Attributes:
        method: `density` (UMAP and HDBSCAN), `k-means`, or `auto`: density up to `density_limit` samples.
        density_limit: see `method`.
        neighbours: of each text in the graph, itself included.
        epochs: of the layout.
        min_samples: of HDBSCAN.
        min_cluster_size: texts of a topic, at least; None is max(10, round(n / 5000)).
        max_share: texts of a topic, at most, as a share of n, but never below 4 x min_cluster_size; 1 lifts the cap.
        clusters: of k-means; None is min(2000, n / 100).
        min_topics: fewer are an error.
        seed: of the layout and of k-means.
    """

    method: Literal["auto", "density", "k-means"] = "auto"
    density_limit: int = Field(default=200_000, ge=1)
    neighbours: int = Field(default=15, ge=3)
    epochs: int = Field(default=200, ge=1)
    min_samples: int = Field(default=5, ge=1)
    min_cluster_size: int | None = Field(default=None, ge=2)
    max_share: float = Field(default=0.01, gt=0, le=1)
    clusters: int | None = Field(default=None, ge=2)
    min_topics: int = Field(default=7, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**31 - 1)  # k-means takes a signed one of 32 bits, and one more

    def by_density(self, n: int) -> bool:
        """Return whether n samples go through UMAP and HDBSCAN."""
        return self.method == "density" or (self.method == "auto" and n <= self.density_limit)

    def centroids(self, n: int) -> int:
        """Return the number of clusters of k-means on n samples."""
        return min(n, self.clusters or max(2, min(2000, n // 100)))

    def sizes(self, n: int) -> tuple[int, int]:
        """Return (min_cluster_size, max_cluster_size) for n distinct texts."""
        smallest = self.min_cluster_size or max(10, round(n / 5000))
        return smallest, max(math.ceil(self.max_share * n), 4 * smallest)


def estimate_seconds(n: int, config: TopicsConfig) -> float:
    """Return about how many seconds the topics of n texts take on one core, by figures measured at 117,000."""
    if not config.by_density(n):
        clusters = config.centroids(n)
        return 2 + 1.3e-8 * clusters * (n + _TRAINED * 20 * clusters)
    search = 7e-9 * n * n if n < EXACT_BELOW else 5 + 6e-5 * n
    return 5 + search + n * (1.8e-6 * config.epochs + 9e-5)


def topics(table: pa.Table, vectors: np.ndarray, typing: str, config: TopicsConfig | None = None) -> Typed:
    """Return a macro typing: at most one topic a sample, none for noise.

    Args:
        table: sample_id and the side's text, sorted by sample_id; with `source`, agreement with it goes to the manifest.
        vectors: (n, d) float32 unit vectors in the same order.
        typing: `instruction-macro` or `response-macro`.
        config: the recipe.

    Raises:
        NoTypesError: fewer topics than `min_topics`.
    """
    config = config or TopicsConfig()
    log.info("%s: %d texts; about %.0f s", typing, len(table), estimate_seconds(len(table), config))
    with one_thread():
        if config.by_density(len(table)):
            found = density_topics(table[typing_parts(typing)[0]].to_pylist(), vectors, typing, config)
        else:
            centroids = train(vectors[: training_rows(len(table), config)], len(table), config)
            blocks = [nearest_centroid(vectors[a:b], centroids) for a, b in assignment_blocks(len(table))]
            found = k_means_topics(*map(np.concatenate, zip(*blocks, strict=True)))
    spoken = table[typing_parts(typing)[0]].take(pa.array(found.rows[:LABELLED]))
    return described(table, spoken.to_pylist(), typing, found, config)


def density_topics(texts: Sequence[str], vectors: np.ndarray, typing: str, config: TopicsConfig) -> Clusters:
    """Return the clusters of the distinct texts by UMAP and HDBSCAN."""
    first, of = distinct_texts(texts)
    log.info("%s: %d distinct texts of %d", typing, len(first), len(texts))
    own = np.ascontiguousarray(vectors[first])
    labels, count = by_first_row(density_clusters(own, config))
    if count == 0:
        return Clusters("density", first, labels, np.zeros(len(first), np.float32), 0, labels[of])
    centroids = mean_vectors(own, labels, count)
    cosine = np.einsum("nd,nd->n", own, centroids[labels])  # of noise it is never read
    return Clusters("density", first, labels, cosine, count, labels[of])


def training_rows(n: int, config: TopicsConfig) -> int:
    """Return how many of the first rows k-means is trained on."""
    return min(n, _TRAINED * config.centroids(n))


def train(sample: np.ndarray, n: int, config: TopicsConfig, device: str = "cpu") -> np.ndarray:
    """Return the centroids for n samples out of the vectors of the first `training_rows`, on a device as `k_means` has it."""
    return k_means(sample, min(len(sample), config.centroids(n)), seed=config.seed, device=device)


def assignment_blocks(n: int) -> list[tuple[int, int]]:
    """Return (start, stop) of the rows that are assigned together: fixed, since the size of a product may decide its last bits."""
    return [(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]


def k_means_topics(labels: np.ndarray, cosine: np.ndarray) -> Clusters:
    """Return the clusters of all samples by their nearest centroids."""
    labels, count = by_first_row(labels)
    return Clusters("k-means", np.arange(len(labels)), labels, cosine, count, labels)


def described(table: pa.Table, texts: Sequence[str], typing: str, found: Clusters, config: TopicsConfig) -> Typed:
    """Return the macro typing of clusters: types with labels and central samples, and what the manifest tells.

    Args:
        table: sample_id, and `source` where it is known, of all samples.
        texts: of the first `LABELLED` rows that were clustered; labels are made of their words.
        typing: its name.
        found: the clusters.
        config: the recipe.

    Raises:
        NoTypesError: fewer topics than `min_topics`.
    """
    check_topics(typing, found.count, len(found.rows), config.min_topics, "profile.topics.min_topics")
    of_samples, n = found.of_samples, len(table)
    sources = table["source"].to_numpy(zero_copy_only=False) if "source" in table.column_names else None
    manifest = {
        "method": found.method,
        "distinct": len(found.rows),
        "noise": round(float((of_samples < 0).mean()), 4),
        "largest": round(float(np.bincount(of_samples[of_samples >= 0]).max() / n), 4),
        **(agreement(of_samples, sources) if sources is not None else {}),
    }
    log.info("%s: %d topics, %s", typing, found.count, manifest)
    return Typed(typing, _data_table(table["sample_id"], of_samples), _types(table["sample_id"], texts, found), manifest)


def check_topics(typing: str, count: int, distinct: int, least: int, asked_by: str) -> None:
    """Raise NoTypesError where there are fewer topics than are asked for."""
    if count < least:
        raise NoTypesError(
            f"{typing}: {count} topics in {distinct:,} distinct texts, and {asked_by} is {least}: "
            "take more samples, or lower profile.topics.min_cluster_size"
        )


@dataclass(frozen=True)
class Clusters:
    """Clusters of a corpus.

    Attributes:
        method: `density` or `k-means`.
        rows: (m,) rows of the corpus that were clustered: of equal texts the first, or all.
        labels: (m,) their clusters, numbered by first row; -1 is noise.
        cosine: (m,) to the mean, or the centroid, of one's own cluster.
        count: number of clusters.
        of_samples: (n,) the cluster of each sample.
    """

    method: str
    rows: np.ndarray
    labels: np.ndarray
    cosine: np.ndarray
    count: int
    of_samples: np.ndarray


def density_clusters(vectors: np.ndarray, config: TopicsConfig) -> np.ndarray:
    """Return (n,) labels, -1 for noise, of unit vectors without duplicates of texts."""
    from fast_hdbscan import fast_hdbscan

    n = len(vectors)
    smallest, largest = config.sizes(n)
    if n <= smallest:
        return np.full(n, -1)
    started = time.monotonic()
    neighbours, distances = cosine_neighbours(vectors, config.neighbours)
    log.info("neighbours of %d texts: %.0f s", n, time.monotonic() - started)
    started = time.monotonic()
    start = start_positions(vectors, config.seed)
    positions = layout(neighbours, distances, start, epochs=config.epochs, seed=config.seed)
    log.info("layout: %.0f s", time.monotonic() - started)
    started = time.monotonic()
    labels = fast_hdbscan(
        positions.astype(np.float64),
        min_samples=config.min_samples,
        min_cluster_size=smallest,
        max_cluster_size=largest,
        cluster_selection_method="eom",
    )[0]
    log.info("clusters of %d to %d texts: %.0f s", smallest, largest, time.monotonic() - started)
    return np.asarray(labels)


def distinct_texts(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return (first (m,), of (n,)): the first row of each distinct text, and each row's place in `first`."""
    seen: dict[str, int] = {}
    of = np.fromiter((seen.setdefault(text, len(seen)) for text in texts), np.int64, len(texts))
    return np.unique(of, return_index=True)[1], of


def by_first_row(labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the labels numbered by their first row, which has the smallest sample_id, and how many there are."""
    values, first = np.unique(labels[labels >= 0], return_index=True)
    renumber = np.full(int(labels.max(initial=-1)) + 2, -1, np.int64)
    renumber[values[np.argsort(first)]] = np.arange(len(values))
    return renumber[labels], len(values)


def label_words(texts: Sequence[str], labels: np.ndarray, count: int) -> list[str]:
    """Return a label for each topic: its words of highest class-based TF-IDF.

    W = tf(word, topic) / words(topic) x log(1 + A / f(word)), A = mean words of a topic, f = occurrences in all topics.
    Ties go to the word that comes first in the alphabet. Only the first 1000 characters of a text are read.
    """
    index: dict[str, int] = {}
    rows = [
        [w for w in _LABEL_WORD.findall(text[:_LABEL_CHARS].lower()) if w not in STOP_WORDS] if label >= 0 else []
        for text, label in zip(texts, labels, strict=True)
    ]
    codes = np.fromiter((index.setdefault(word, len(index)) for word in chain.from_iterable(rows)), np.int64)
    if not len(codes):
        return ["(no words)"] * count
    words = np.array(list(index), dtype=object)
    alphabetical = np.empty(len(words), np.int64)
    alphabetical[np.argsort(words)] = np.arange(len(words))
    topic = np.repeat(labels, [len(row) for row in rows])
    pairs, times = np.unique(topic * len(words) + codes, return_counts=True)
    pair_topic, pair_word = pairs // len(words), pairs % len(words)
    totals = np.bincount(topic, minlength=count)
    weight = times / totals[pair_topic] * np.log1p(totals.mean() / np.bincount(codes)[pair_word])
    order = np.lexsort((alphabetical[pair_word], -weight, pair_topic))
    starts = np.searchsorted(pair_topic[order], np.arange(count + 1))
    best = [words[pair_word[order[a : min(b, a + _LABEL_WORDS)]]] for a, b in zip(starts[:-1], starts[1:], strict=True)]
    return [", ".join(found) or "(no words)" for found in best]


def agreement(labels: np.ndarray, sources: Sequence[str]) -> dict[str, float]:
    """Return how far topics only restate the sources: normalised mutual information, purity, and one-source topics.

    nmi = I(topic; source) / mean of the two entropies and purity = share of rows of their topic's commonest source, both
    over rows with a topic; one_source = share of topics of which at least 90% is one source.
    """
    kept = labels >= 0
    codes = np.unique(np.asarray(sources, dtype=object).astype(str), return_inverse=True)[1][kept]
    table = np.zeros((int(labels.max()) + 1, int(codes.max()) + 1))
    np.add.at(table, (labels[kept], codes), 1)
    joint, rows, columns = table / table.sum(), table.sum(1) / table.sum(), table.sum(0) / table.sum()
    cells = joint > 0
    information = (joint[cells] * np.log(joint[cells] / np.outer(rows, columns)[cells])).sum()
    entropies = [-(p[p > 0] * np.log(p[p > 0])).sum() for p in (rows, columns)]
    purity = table.max(axis=1).sum() / table.sum()
    return {
        "source_nmi": round(float(information / max(np.mean(entropies), 1e-12)), 4),
        "source_purity": round(float(purity), 4),
        "one_source": round(float((table.max(axis=1) >= 0.9 * table.sum(axis=1)).mean()), 4),
    }


def _data_table(ids: Any, labels: np.ndarray) -> pa.Table:
    """Return DATA_SCHEMA rows with one type, or none for noise."""
    inside = labels >= 0
    bounds = np.concatenate([[0], np.cumsum(inside)])
    return pa.Table.from_arrays([ids, list_array(labels[inside], bounds)], names=DATA_SCHEMA.names).cast(DATA_SCHEMA)


def _types(ids: pa.ChunkedArray, texts: Sequence[str], found: Clusters) -> pa.Table:
    """Return MACRO_TYPES_SCHEMA rows: content is the smallest sample_id, central the samples nearest to the mean."""
    inside = found.of_samples >= 0
    smallest = np.flatnonzero(inside)[np.unique(found.of_samples[inside], return_index=True)[1]]
    contents = [sample.encode() for sample in ids.take(pa.array(smallest)).to_pylist()]
    words = label_words(texts, found.labels[: len(texts)], found.count)
    df = np.bincount(found.of_samples[inside], minlength=found.count)
    order = np.lexsort((np.arange(len(found.rows)), -found.cosine, found.labels))
    starts = np.searchsorted(found.labels[order], np.arange(found.count))
    ends = np.append(starts[1:], len(order))
    nearest = [found.rows[order[a : min(b, a + _CENTRAL)]] for a, b in zip(starts, ends, strict=True)]
    central = [ids.take(pa.array(rows)).to_pylist() for rows in nearest]
    base = types_table(contents, words, df)
    return base.append_column("central", pa.array(central, pa.list_(pa.string()))).cast(MACRO_TYPES_SCHEMA)
