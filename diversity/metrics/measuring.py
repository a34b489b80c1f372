"""Posterior metrics of any dataset: both sides of files, sealed folders or tables, as many side by side as wanted.

Several datasets are compared fairly only where the amount of data is the same, since nearly every metric moves with it. So beside each
figure there is, by default, one over as many tokens (for embeddings, samples) as the smallest of the datasets has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from diversity.artifact import MANIFEST, Artifact, Storage
from diversity.cell import SIDES
from diversity.config import ConfigError, near_matches
from diversity.corpus.config import CorpusConfig
from diversity.corpus.files import ReadError, filesystem_of
from diversity.corpus.inputs import read_corpus
from diversity.corpus.seen import told_unused
from diversity.datasets.dataset import read as read_sealed
from diversity.metrics import METRICS, METRICS_SCHEMA, PAPER_METRICS, Sequences, measure
from diversity.typings.encoders import Encoder

MEASURED_SCHEMA = METRICS_SCHEMA.insert(0, pa.field("dataset", pa.string()))

Embed = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Measured:
    """A dataset to measure.

    Attributes:
        name: for people.
        samples: with at least the columns `instruction` and `response`.
        note: what became of rows that are not measured; "" where all are.
    """

    name: str
    samples: pa.Table
    note: str = ""


def read_dataset(path: str, columns: dict[str, str] | None = None, max_rejected: float = 1.0) -> Measured:
    """Return the dataset at a path: a sealed folder (dataset, corpus, held-out), or whatever ingest reads.

    Of a sealed folder the rows are taken as they are; of files each sample is taken once, and what was left out is noted.

    Args:
        path: a file, folder, glob or URI.
        columns: as in `CorpusConfig.columns`, for files in a format that is not known by itself.
        max_rejected: largest share of rows of files that may be unusable.

    Raises:
        UserError: nothing there, nothing usable, or a folder that holds no samples.
    """
    sealed = _sealed(path)
    if sealed is not None:
        return sealed
    samples, _, counts = read_corpus(CorpusConfig(paths=[path], columns=columns, max_rejected=max_rejected))
    left_out = {"duplicates": sum(counts.duplicates.values()), "rejected": sum(counts.rejected.values())}
    lost = ", ".join(f"{count:,} {what}" for what, count in left_out.items() if count)
    notes = [f"of {counts.rows_read:,} rows {lost} are left out"] if lost else []
    notes += [f"not carried: {told_unused(counts.seen.unused)}"] if counts.seen.unused else []
    return Measured(path, samples, "; ".join(notes))


def _sealed(path: str) -> Measured | None:
    """Return the samples of a sealed folder, or None where the path is none."""
    filesystem, inside = filesystem_of(path)
    if filesystem.get_file_info(f"{inside.rstrip('/')}/{MANIFEST}").type != pafs.FileType.File:
        return None
    artifact = _artifact(path if "://" in path else inside)
    manifest = artifact.manifest
    if manifest.get("materialised", True) and not set(SIDES) <= _columns(artifact):
        raise ReadError(f"{path}: a sealed folder of kind {artifact.kind!r}, which holds no samples to measure")
    cell = manifest.get("cell")
    return Measured(path, read_sealed(artifact, SIDES), _cell_note(cell) if isinstance(cell, dict) else "")


def _artifact(uri: str) -> Artifact:
    """Return the artifact whose folder this is: `<storage>/<kind>/<fingerprint>`, with the options of a URI behind."""
    folder, question, options = uri.partition("?")
    *storage, kind, fingerprint = folder.rstrip("/").split("/")
    return Artifact(Storage("/".join(storage) + question + options), kind, fingerprint)


def _columns(artifact: Artifact) -> set[str]:
    """Return the columns of an artifact's data; none where it has none."""
    filesystem, _ = artifact.storage.filesystem()
    parts = artifact.parts()
    return set(pq.read_schema(parts[0], filesystem=filesystem).names) if parts else set()


def _cell_note(cell: dict[str, object]) -> str:
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in cell.items() if value is not None
    )


def measure_datasets(
    datasets: Sequence[Measured],
    encoder: Callable[[], Encoder],
    embed: Embed | None = None,
    *,
    metrics: Sequence[str] | None = None,
    sides: Sequence[str] = SIDES,
    matched: bool | int = True,
    seed: int = 0,
) -> pa.Table:
    """Return the metrics of several datasets as rows of `MEASURED_SCHEMA`.

    Args:
        datasets: with different names.
        encoder: makes the tokenizer that all token metrics count by; called once for each dataset and side.
        embed: texts to (n, d) vectors; None leaves the metrics of embeddings out.
        metrics: names from `METRICS`; None takes the paper's, as far as there are inputs for them.
        sides: which sides.
        matched: True adds the matched variants over as much as the smallest dataset has, where there are several; a number adds those
            over so many tokens; False adds none.
        seed: of the random order behind the matched variants.

    Raises:
        ConfigError: an unknown metric, a metric of embeddings without `embed`, two datasets of one name, or an empty one.
    """
    names = _checked(metrics, embed is not None)
    if len({one.name for one in datasets}) < len(datasets):
        raise ConfigError("two datasets have one name: " + ", ".join(one.name for one in datasets))
    for one in datasets:
        if not len(one.samples):
            raise ConfigError(f"{one.name}: no sample to measure")
    wants_vectors = any(METRICS[name].needs == "embeddings" for name in names)
    found = []
    for side in sides:
        encoded = [encoder().encode(one.samples[side].to_pylist()) for one in datasets]
        fewest = min(int(offsets[-1]) for _, offsets in encoded)
        several = matched is True and len(datasets) > 1
        tokens = fewest if several else int(matched) if matched is not True and matched else None
        rows = min(len(one.samples) for one in datasets) if several else None
        for one, (ids, offsets) in zip(datasets, encoded, strict=True):
            texts = one.samples[side].to_pylist()
            vectors = embed(texts) if embed is not None and wants_vectors else None
            table = measure(
                side,
                tokens=ids,
                offsets=offsets,
                texts=texts,
                embeddings=vectors,
                metrics=names,
                matched_tokens=tokens,
                matched_samples=rows,
                seed=seed,
            )
            found.append(table.add_column(0, MEASURED_SCHEMA.field("dataset"), pa.array([one.name] * len(table), pa.string())))
    return pa.concat_tables(found)


def _checked(metrics: Sequence[str] | None, vectors: bool) -> list[str]:
    """Return the metrics to compute.

    Raises:
        ConfigError: one that doesn't exist, or that needs embeddings where there are none.
    """
    if metrics is None:
        return [name for name in PAPER_METRICS if vectors or METRICS[name].needs != "embeddings"]
    for name in metrics:
        if name not in METRICS:
            raise ConfigError(f"unknown metric {name!r}{near_matches(name, METRICS)}")
        if METRICS[name].needs == "embeddings" and not vectors:
            raise ConfigError(f"metric {name!r} needs embeddings, and no embedder is given")
    return list(metrics)


def side_by_side(table: pa.Table) -> str:
    """Return measured datasets as text: a line for each side, metric and variant, a column for each dataset.

    An arrow after a metric says which way is more diverse. Long names are cut at the front, where paths agree.
    """
    rows = table.to_pylist()
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    values = {(row["side"], row["metric"], row["variant"], row["dataset"]): row["value"] for row in rows}
    arrows = {row["metric"]: {True: " ↑", False: " ↓", None: ""}[row["more_is_diverse"]] for row in rows}
    lines = [["side", "metric", "variant", *(_short(name) for name in datasets)]]
    for side, metric, variant in dict.fromkeys(key[:3] for key in values):
        cells = [values.get((side, metric, variant, name)) for name in datasets]
        lines.append([side, metric + arrows[metric], variant, *("" if value is None else _figure(value) for value in cells)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    aligned = [
        [cell.ljust(width) if i < 3 else cell.rjust(width) for i, (cell, width) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in aligned)


def _short(name: str, most: int = 32) -> str:
    return name if len(name) <= most else "…" + name[1 - most :]


def _figure(value: float) -> str:
    return "–" if value != value else f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def sequences_of(texts: Sequence[str], encoder: Encoder) -> Sequences:
    """Return the token sequences of texts, for the functions of `diversity.metrics` that take them."""
    return Sequences(*encoder.encode(texts))
