"""Files become streams of raw rows: JSON, JSONL, CSV, parquet and Arrow, packed or not, in memory that the file's size doesn't touch.

A row that can't even be decoded comes out as `Unreadable`, with a reason and how it begins, so that it is counted and the rest is
read on. What makes the remainder of a file unreadable (a truncated gzip, a broken footer, a file that is gone) is an error that
names the file. Lines are split at newline bytes only: real JSONL holds U+2028 and carriage returns inside its strings.
"""

from __future__ import annotations

import csv
import io
import itertools
import lzma
import sys
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from diversity.corpus.excerpts import excerpt
from diversity.corpus.files import InputFile, ReadError
from diversity.corpus.formats import KNOWN_COLUMNS, wanted
from diversity.corpus.json_rows import MAX_ROW_BYTES, Row, Unreadable, document_rows, is_unicode, parse_json
from diversity.corpus.sniff import BOM, Kind, opened, sniff

BATCH_ROWS = 2048
SPLIT_BYTES = 16 << 20
LINES = Kind("lines")


@dataclass(frozen=True)
class Span:
    """A part of a file that one task reads: bytes of a JSONL file, row groups of a parquet file, or the whole (stop is None).

    `first_row` is the number of its first row, so that row numbers are the file's whatever the parts are.
    """

    start: int = 0
    stop: int | None = None
    first_row: int = 0


WHOLE = Span()


def read_rows(file: InputFile, span: Span = WHOLE, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield (row number, object or `Unreadable`) of a file, or of a part of it.

    Rows are numbered from 0: lines of JSONL (blank ones are passed over but counted), records of CSV, elements of a JSON array,
    rows of a table.

    Args:
        file: from `find_files`.
        span: from `spans`.
        columns: columns beyond the known ones that a mapping needs; other columns of parquet files are not read.

    Raises:
        ReadError: the file can't be opened or read to its end.
    """
    if file.size == 0:
        return
    with _named(file):
        kind = sniff(file, columns or ())
        if kind.form == "parquet":
            yield from _parquet_rows(file, span, columns)
        elif kind.form == "arrow":
            yield from _arrow_rows(file, columns)
        else:
            with opened(file, kind, span.start) as stream:
                if kind.form == "csv":
                    yield from _csv_rows(stream, kind.delimiter)
                elif kind.form == "document":
                    yield from document_rows(stream, {*KNOWN_COLUMNS, *(columns or ())})
                else:
                    yield from _line_rows(stream, span)


def spans(file: InputFile, size: int = SPLIT_BYTES) -> list[Span]:
    """Return the parts of a file that can be read apart: about `size` bytes each, or the whole where a file can't be split.

    Raises:
        ReadError: the file can't be read.
    """
    if file.size == 0:
        return [WHOLE]
    with _named(file):
        kind = sniff(file)
        if kind.form == "parquet":
            with file.filesystem().open_input_file(file.path) as stream:
                return _row_group_spans(pq.ParquetFile(stream).metadata, size)
        splittable = kind == LINES and file.size > size
        if splittable and isinstance(file.filesystem(), pafs.LocalFileSystem):
            with open(file.path, "rb") as stream:
                return _line_spans(stream, size)
    return [WHOLE]


def _line_spans(stream: BinaryIO, size: int) -> list[Span]:
    """Return spans that begin at line starts, with the number of the lines before each."""
    starts, rows = [0], [0]
    position = lines = 0
    while chunk := stream.read(8 << 20):
        behind = starts[-1] + size - position
        cut = chunk.find(b"\n", max(behind, 0)) if behind < len(chunk) else -1
        if cut >= 0:
            starts.append(position + cut + 1)
            rows.append(lines + chunk.count(b"\n", 0, cut + 1))
        lines += chunk.count(b"\n")
        position += len(chunk)
    stops = [*starts[1:], position]
    return [Span(a, b, row) for a, b, row in zip(starts, stops, rows, strict=True) if b > a]


def _row_group_spans(metadata: pq.FileMetaData, size: int) -> list[Span]:
    """Return runs of row groups of about `size` uncompressed bytes."""
    found: list[Span] = []
    start = first_row = rows = gathered = 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        gathered += metadata.row_group(group).total_byte_size
        if gathered >= size or group == metadata.num_row_groups - 1:
            found.append(Span(start, group + 1, first_row))
            start, first_row, gathered = group + 1, rows, 0
    return found or [WHOLE]


@contextmanager
def _named(file: InputFile) -> Iterator[None]:
    """Turn what a broken file raises into one error that names it."""
    try:
        yield
    except FileNotFoundError:
        raise ReadError(f"{file.shown}: is not there (any more)") from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError, csv.Error, pa.ArrowException, ReadError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise ReadError(message if message.startswith(file.shown) else f"{file.shown}: can't be read: {message}") from None


def _line_rows(stream: BinaryIO, span: Span) -> Iterator[Row]:
    """Yield the rows of JSON lines. A BOM and the carriage return before a newline are no part of a line."""
    position, row = span.start, span.first_row
    while span.stop is None or position < span.stop:
        line = stream.readline(MAX_ROW_BYTES + 1)
        if not line:
            return
        position += len(line)
        if row == 0 and line.startswith(BOM):
            line = line[len(BOM) :]
        if len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
            position += _skip_line(stream)
            yield row, Unreadable(f"row longer than {MAX_ROW_BYTES >> 20} MiB", excerpt(line))
        elif not line.isspace() and line:
            yield row, parse_json(line)
        row += 1


def _skip_line(stream: BinaryIO) -> int:
    """Read to the end of the line and return how many bytes that was."""
    skipped = 0
    while rest := stream.readline(1 << 20):
        skipped += len(rest)
        if rest.endswith(b"\n"):
            break
    return skipped


def _csv_rows(stream: BinaryIO, delimiter: str) -> Iterator[Row]:
    """Yield the records of a CSV file: every cell is the string as written. A blank file has none.

    A quote that doesn't belong takes in lines up to the next one, or all of them. Besides the broken record, each line that would be one by
    itself counts as a row that can't be read.
    """
    csv.field_size_limit(sys.maxsize)
    lines = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    current: list[str] = []  # lines of the record at hand
    records = csv.reader(_noted(lines, current), delimiter=delimiter, strict=True)
    header = distinct(next(records, []))
    if not header:
        return
    row = 0
    while True:
        current.clear()
        begins = records.line_num + 1
        try:
            record = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            for number, line in enumerate(current):
                if number == 0 or len(next(csv.reader([line], delimiter=delimiter))) == len(header):
                    yield row, Unreadable("invalid CSV", f"line {begins + number}: {error}, in the record that begins at line {begins}")
                    row += 1
        else:
            if record:
                yield row, _record(header, record)
                row += 1


def _noted(lines: Iterable[str], notes: list[str]) -> Iterator[str]:
    for line in lines:
        notes.append(line)
        yield line


def _record(header: list[str], record: list[str]) -> Any:
    """Return a CSV record as an object, or why it can't be one."""
    if len(record) > len(header):
        return Unreadable("more cells than columns", excerpt(",".join(record)))
    if not all(map(is_unicode, record)):
        return Unreadable("invalid UTF-8", excerpt(",".join(record)))
    return dict(zip(header, record, strict=False))


def distinct(names: Sequence[str]) -> list[str]:
    """Return the names of columns, a repeated one with its number: the first is meant, and the others are seen."""
    found: dict[str, None] = {}
    for name in names:
        again = (f"{name}.{number}" for number in itertools.count(1))
        found[name if name not in found else next(other for other in again if other not in found)] = None
    return list(found)


def _parquet_rows(file: InputFile, span: Span, columns: Sequence[str] | None) -> Iterator[Row]:
    """Yield the rows of a parquet file's row groups. Columns that no format knows are read only where those that are known say nothing."""
    with file.filesystem().open_input_file(file.path) as stream:
        parquet = pq.ParquetFile(stream)
        read = wanted(parquet.schema_arrow.names, columns or ())
        groups = range(span.start, parquet.num_row_groups if span.stop is None else span.stop)
        row = span.first_row
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS, row_groups=list(groups), columns=read):
            yield from table_rows(batch, row, columns or ())
            row += batch.num_rows


def unread(file: InputFile, span: Span, columns: Sequence[str] | None) -> Counter[str]:
    """Return how many rows of a parquet file hold something in each column that is not read.

    Raises:
        ReadError: the file can't be read.
    """
    found: Counter[str] = Counter()
    if file.size == 0:
        return found
    with _named(file):
        if sniff(file).form != "parquet":
            return found
        with file.filesystem().open_input_file(file.path) as stream:
            parquet = pq.ParquetFile(stream)
        read = set(wanted(parquet.schema_arrow.names, columns or ()))
        for group in range(span.start, parquet.num_row_groups if span.stop is None else span.stop):
            chunks, held = parquet.metadata.row_group(group), dict[str, int]()
            for index in range(chunks.num_columns):
                chunk = chunks.column(index)
                name = chunk.path_in_schema.split(".")[0]
                nulls = chunk.statistics.null_count or 0 if chunk.path_in_schema == name and chunk.statistics else 0
                if name not in read:
                    held[name] = max(held.get(name, 0), chunks.num_rows - nulls)
            found.update(held)
    return +found


def _arrow_rows(file: InputFile, columns: Sequence[str] | None) -> Iterator[Row]:
    """Yield the rows of an Arrow file (feather too) or stream, told apart by its first bytes."""
    with file.filesystem().open_input_file(file.path) as stream:
        magic = stream.read(6)
        stream.seek(0)
        if magic == b"ARROW1":
            reader = pa.ipc.open_file(stream)
            batches: Iterator[pa.RecordBatch] = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            batches = iter(pa.ipc.open_stream(stream))
        row = 0
        for batch in batches:
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield from table_rows(batch.slice(start, BATCH_ROWS), row + start, columns or ())
            row += batch.num_rows


def table_rows(batch: pa.RecordBatch | pa.Table, first_row: int = 0, mapped: Collection[str] = ()) -> Iterator[Row]:
    """Yield the rows of a batch as objects; a row with a cell that can't be decoded, in a column that matters, is `Unreadable`.

    Args:
        batch: any columns.
        first_row: the number of its first row.
        mapped: columns that matter beside the known ones.
    """
    names = distinct(batch.schema.names)
    try:
        cells = [_cells(column) for column in batch.columns]
    except (UnicodeDecodeError, ValueError, OverflowError):
        needed = {*KNOWN_COLUMNS, *mapped}
        for index in range(batch.num_rows):
            yield first_row + index, _decoded(batch, index, needed)
        return
    for index, values in enumerate(zip(*cells, strict=True)):
        yield first_row + index, dict(zip(names, values, strict=True))


def _cells(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return a column's cells. A field of an object that is null is absent: tables fill in what other rows' objects have."""
    found: list[Any] = column.to_pylist()
    return list(map(_without_nulls, found)) if pa.types.is_nested(column.type) else found


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(held) for name, held in value.items() if held is not None}
    if isinstance(value, list):
        return [_without_nulls(held) for held in value]
    return value


def _decoded(batch: pa.RecordBatch | pa.Table, index: int, needed: Collection[str]) -> Any:
    """Return one row of a batch, cell by cell; of a column that nobody reads the cell may be anything."""
    row: dict[str, Any] = {}
    for name, column in zip(distinct(batch.schema.names), batch.columns, strict=True):
        try:
            row[name] = _cells(column.slice(index, 1))[0]
        except (ValueError, OverflowError) as error:
            if isinstance(error, UnicodeDecodeError):
                row[name] = Unreadable("invalid UTF-8", excerpt(error.object))
            else:
                row[name] = Unreadable("cell that Python can't hold", f"{name}: {error}")
            if name in needed:
                return row[name]
    return row
