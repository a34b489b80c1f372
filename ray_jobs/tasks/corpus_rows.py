"""Rows of a sealed corpus by number, so that work is cut where we say and not where a file ends; and how a derived corpus is sealed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from diversity.artifact import Artifact, Storage
from diversity.corpus.ingestion import REJECTED_SCHEMA, ContentHash, counted
from diversity.corpus.samples import SAMPLE_SCHEMA
from ray_jobs.job.waiting import finished

PART_ROWS = 65_536


@dataclass(frozen=True)
class Part:
    """One parquet file: its path inside the storage's filesystem, and the rows of each of its row groups."""

    path: str
    groups: tuple[int, ...]


@dataclass(frozen=True)
class CorpusRows:
    """The rows of a corpus, numbered in the order of sample_id over all parts."""

    storage: Storage
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, corpus: Artifact) -> CorpusRows:
        """Return the rows of a sealed corpus; reads the footers only."""
        filesystem, _ = corpus.storage.filesystem()
        parts = []
        for path in corpus.parts():
            metadata = pq.read_metadata(path, filesystem=filesystem)
            parts.append(Part(path, tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))))
        return cls(corpus.storage, tuple(parts))

    def __len__(self) -> int:
        """Return the number of samples."""
        return sum(sum(part.groups) for part in self.parts)

    def spans(self, rows: int) -> list[tuple[int, int]]:
        """Return (start, stop) of consecutive spans of so many rows; the last one may be shorter."""
        return [(start, min(start + rows, len(self))) for start in range(0, len(self), rows)]

    def read(self, start: int, stop: int, columns: Sequence[str]) -> pa.Table:
        """Return the rows start to stop (without it); only the row groups that hold them are read."""
        return pa.concat_tables(self._pieces(start, stop, list(columns)))

    def _pieces(self, start: int, stop: int, columns: list[str]) -> Iterator[pa.Table]:
        filesystem, _ = self.storage.filesystem()
        before = 0
        for part in self.parts:
            ends = list(accumulate(part.groups, initial=before))
            wanted = [i for i in range(len(part.groups)) if ends[i] < stop and ends[i + 1] > start]
            if wanted:
                with pq.ParquetFile(part.path, filesystem=filesystem) as file:
                    table = file.read_row_groups(wanted, columns=columns)
                first = ends[wanted[0]]
                yield table.slice(max(0, start - first), min(stop, ends[wanted[-1] + 1]) - max(start, first))
            before = ends[-1]


def read_part(artifact: Artifact, path: str, columns: list[str] | None = None) -> pa.Table:
    """Return the rows of one parquet file of an artifact, by the path that `parts` gives."""
    return pq.read_table(path, columns=columns, filesystem=artifact.storage.filesystem()[0])


def derive_corpus(
    corpus: Artifact, rows: np.ndarray, target: Artifact, facts: Mapping[str, Any], at_once: int, scores: np.ndarray | None = None
) -> None:
    """Seal a corpus of some rows of another one, written by Ray tasks.

    Args:
        corpus: sealed.
        rows: `(n,)` ascending row numbers, at least one.
        target: not sealed.
        facts: what its manifest says.
        at_once: how many tasks may wait for a core.
        scores: `(n,)` what the samples' score is in the derived corpus; None leaves what it was.
    """
    read, begun, write = CorpusRows.of(corpus), target.begin(), ray.remote(_write_part)
    cuts = range(0, len(rows), PART_ROWS)
    written = (
        write.remote(read, rows[i : i + PART_ROWS], begun, number, None if scores is None else scores[i : i + PART_ROWS])
        for number, i in enumerate(cuts)
    )
    parts = finished("parts written", written, len(cuts), at_once=at_once)
    seal_corpus(begun, parts, {**facts, "derived_from": corpus.path, "group_by": corpus.manifest["group_by"]})


def _write_part(read: CorpusRows, rows: np.ndarray, target: Artifact, number: int, scores: np.ndarray | None) -> dict[str, int]:
    """Write one part of a derived corpus and return its samples of each source."""
    start = int(rows[0])
    samples = read.read(start, int(rows[-1]) + 1, SAMPLE_SCHEMA.names).take(pa.array(rows - start))
    if scores is not None:
        samples = samples.set_column(SAMPLE_SCHEMA.get_field_index("score"), SAMPLE_SCHEMA.field("score"), pa.array(scores, pa.float64()))
    target.write(samples, f"data/part-{number:05d}.parquet")
    return dict(counted(samples["source"]))


def seal_corpus(target: Artifact, sources: Sequence[Mapping[str, int]], facts: Mapping[str, Any]) -> None:
    """Seal a corpus that is a part of another one, out of its written parts; nothing is rejected here.

    Args:
        target: its parts are written.
        sources: samples of each source, for every part.
        facts: what its manifest says beside content hash, samples and sources.
    """
    target.write(REJECTED_SCHEMA.empty_table(), "rejected/part-00000.parquet")
    content = ContentHash()
    for part in target.parts():
        content.update(read_part(target, part, ["sample_id", "source"]))
    totals: dict[str, int] = {}
    for counts in sources:
        for source, count in counts.items():
            totals[source] = totals.get(source, 0) + count
    totals = dict(sorted(totals.items()))
    target.seal({**facts, "content_hash": content.hexdigest(), "samples": sum(totals.values()), "sources": totals})
