"""What `corpus.paths` names, as units of work: files in parts that can be read apart, and built-in corpora."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from diversity.config import lookup
from diversity.corpus.config import CorpusConfig
from diversity.corpus.contamination import Prompts, screen, tally
from diversity.corpus.files import BUILTIN, InputFile, content_digest, find_files, suffixes_of
from diversity.corpus.ingestion import (
    REJECTED_SCHEMA,
    Batch,
    Counts,
    above_score,
    batches,
    bucket_count,
    counted,
    limit_order,
    limit_threshold,
    merge,
    within_limit,
)
from diversity.corpus.readers import WHOLE, Span, read_rows, spans, table_rows, unread

PREFIX = "builtin:"
HEAD_FILES, HEAD_ROWS = 20, 200


@dataclass(frozen=True)
class Unit:
    """What one task reads: a part of a file, or a built-in corpus."""

    number: int
    what: InputFile | str
    digest: str
    span: Span = WHOLE

    @property
    def shown(self) -> str:
        """Return what is read, for people."""
        return self.what if isinstance(self.what, str) else self.what.shown

    def batches(self, columns: Mapping[str, str] | None) -> Iterator[Batch]:
        """Yield what the rows hold.

        Raises:
            ReadError: the file can't be read to its end.
        """
        if isinstance(self.what, str):
            rows: Iterator[tuple[int, Any]] = enumerate(_builtin(self.what).rows())
            return batches(rows, file=self.what, source=self.what, digest=self.digest)
        return self._of_file(self.what, columns)

    def _of_file(self, file: InputFile, columns: Mapping[str, str] | None) -> Iterator[Batch]:
        mapped = list(columns.values()) if columns else None
        rows = read_rows(file, self.span, mapped)
        for number, batch in enumerate(batches(rows, file=file.shown, source=file.name, digest=self.digest, columns=columns)):
            if number == 0:
                batch.seen.unused.update(unread(file, self.span, mapped))
            yield batch


class Inputs:
    """The files and built-in corpora of `corpus.paths`, found but not read.

    Args:
        paths: as in `CorpusConfig.paths`.
        cache: a JSON file that remembers the digests of local files.

    Raises:
        ReadError: something isn't there, or is of an unknown kind.
        ConfigError: a built-in corpus that doesn't exist.
    """

    def __init__(self, paths: Sequence[str], cache: Path | None = None) -> None:
        self._cache = cache
        self.builtin = sorted({path for path in paths if path.startswith(PREFIX)})
        for name in self.builtin:
            _builtin(name)
        others = [path for path in paths if not path.startswith(PREFIX)]
        self.files = find_files(others) if others or not self.builtin else []

    @cached_property
    def digests(self) -> dict[str, str]:
        """Return what names the content of each input, by the input as shown."""
        found = {name: _builtin(name).digest() for name in self.builtin}
        return found | {file.shown: content_digest(file, self._cache) for file in self.files}

    @property
    def roots(self) -> list[str]:
        """Return what a fingerprint needs: names (the source of rows without one), sizes and digests, never a folder or a time."""
        files = [f"{file.name}|{file.size}|{self.digests[file.shown]}" for file in self.files]
        return sorted([f"{name}|{self.digests[name]}" for name in self.builtin] + files)

    @property
    def group_by(self) -> str:
        """Return by what held-out samples are split: the `source` of a corpus that is all built in, else the prompt."""
        built = {_builtin(name).group_by for name in self.builtin}
        return built.pop() if len(built) == 1 and not self.files else "prompt"

    @property
    def n_buckets(self) -> int:
        """Return into how many buckets the samples are sorted."""
        return bucket_count([(_kind(file), file.size) for file in self.files])

    def check_heads(self, columns: Mapping[str, str] | None) -> None:
        """Look at the first rows of a few files, before anything is started to read them all.

        Raises:
            TooManyRejected: not one of those rows can be used, in a corpus of files alone. (Good ones may come later in a file:
                `max_rejected: 1` asks for no such look.)
            ReadError: a file can't be read.
        """
        counts = Counts()
        for file in self.files[:HEAD_FILES]:
            rows = islice(read_rows(file, columns=list(columns.values()) if columns else None), HEAD_ROWS)
            for batch in batches(rows, file=file.shown, source=file.name, digest="", columns=columns):
                reasons, read = counted(batch.rejected["reason"]), len(batch.samples) + len(batch.rejected)
                counts.add_batch(file.shown, read, reasons, batch.formats, batch.seen)
        if counts.rows_read and not self.builtin:
            counts.check(1.0, "first rows")

    def units(self) -> list[Unit]:
        """Return the units of work, large files in parts.

        Raises:
            ReadError: a file can't be read.
        """
        wholes: list[tuple[InputFile | str, Span]] = [(name, WHOLE) for name in self.builtin]
        parts = [(file, span) for file in self.files for span in spans(file)]
        return [
            Unit(number, what, self.digests[what if isinstance(what, str) else what.shown], span)
            for number, (what, span) in enumerate([*wholes, *parts])
        ]


def read_corpus(config: CorpusConfig) -> tuple[pa.Table, pa.Table, Counts]:
    """Return (samples, rejected rows, counts) of a corpus that fits in memory, read in this process.

    The samples are those of the stage `ingest` to the byte, which takes the same steps in parallel.

    Raises:
        ReadError: something can't be found or read.
        TooManyRejected: more rows can't be used than `max_rejected` allows.
    """
    found = [(unit.shown, batch) for unit in Inputs(config.paths).units() for batch in unit.batches(config.columns)]
    return _gather(found, config)


def samples_of(table: Any, source: str = "table", columns: dict[str, str] | None = None) -> tuple[pa.Table, pa.Table, Counts]:
    """Return (samples, rejected rows, counts) of an Arrow table or a DataFrame in a known format.

    Args:
        table: a `pyarrow.Table`, or anything that `pyarrow.Table.from_pandas` takes.
        source: the source of rows without a `source` column.
        columns: as in `CorpusConfig.columns`.

    Raises:
        TooManyRejected: not one row can be used.
    """
    arrow = table if isinstance(table, pa.Table) else pa.Table.from_pandas(table, preserve_index=False)
    config, mapped = CorpusConfig(columns=columns, max_rejected=1.0), list(columns.values()) if columns else ()
    found = [(source, batch) for batch in batches(table_rows(arrow, 0, mapped), file=source, source=source, digest=source, columns=columns)]
    return _gather(found, config)


def _gather(found: Sequence[tuple[str, Batch]], config: CorpusConfig) -> tuple[pa.Table, pa.Table, Counts]:
    """Return the samples of all batches in order and each once, the rejected rows, and the counts."""
    counts = Counts()
    for shown, batch in found:
        rows = len(batch.samples) + len(batch.rejected)
        counts.add_batch(shown, rows, counted(batch.rejected["reason"]), batch.formats, batch.seen)
    counts.check(config.max_rejected)
    merged, counts.duplicates = merge([batch.samples for _, batch in found])
    if config.contamination is not None:
        prompts, before = Prompts.read(config.contamination), len(merged)
        merged, report = screen(merged, prompts)
        counts.removed, counts.contamination = before - len(merged), tally(report, prompts)
    good = above_score(merged, config.min_score)
    threshold = limit_threshold([limit_order(good["sample_id"])], config.limit) if config.limit else None
    samples = within_limit(good, threshold)
    counts.samples, counts.below_score, counts.beyond_limit = len(samples), len(merged) - len(good), len(good) - len(samples)
    counts.check_scores(config.min_score)
    counts.sources = counted(samples["source"])
    rejected = pa.concat_tables([REJECTED_SCHEMA.empty_table(), *(batch.rejected for _, batch in found)])
    return samples, rejected, counts


def _kind(file: InputFile) -> str:
    suffix, packed = suffixes_of(file.name)
    return "packed" if packed else "columnar" if suffix == ".parquet" else "plain"


def _builtin(path: str) -> Any:
    """Return the built-in corpus of a name such as `builtin:python-docs`."""
    return lookup(BUILTIN, path.removeprefix(PREFIX), "built-in corpus")()
