"""Rows of a sealed corpus by number, so that the work is cut where we say and not where a file happens to end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq

from diversity.artifact import Artifact, Storage


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
