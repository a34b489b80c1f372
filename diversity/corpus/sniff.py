"""What a file is, by its first bytes: names lie (an array in `.jsonl`, gzip without a suffix, semicolons in `.csv`), bytes do not."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs

from diversity.corpus.files import InputFile, ReadError, suffixes_of
from diversity.corpus.formats import KNOWN_COLUMNS

HEAD_BYTES = 1 << 20
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
TABLES = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"}
BOMS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
DELIMITERS = (",", ";", "\t", "|")
BOM = codecs.BOM_UTF8

_decoder = json.JSONDecoder(strict=False)


@dataclass(frozen=True)
class Kind:
    """What a file is.

    Attributes:
        form: `parquet`, `arrow`, `csv`, `lines` (JSON, a value a line) or `document` (JSON of any other layout).
        packed: `gzip`, `bz2`, `xz`, `zstd`, or "".
        encoding: of its text; anything but `utf-8` is read through a decoder.
        delimiter: between the cells of `csv`.
    """

    form: str
    packed: str = ""
    encoding: str = "utf-8"
    delimiter: str = ""

    @property
    def told(self) -> str:
        """Return what it is, for people."""
        names = {"lines": "JSON lines", "document": "JSON document", "csv": f"CSV with {self.delimiter!r}"}
        parts = [names.get(self.form, self.form), self.packed, "" if self.encoding == "utf-8" else self.encoding]
        return ", ".join(part for part in parts if part)


def sniff(file: InputFile, columns: Collection[str] = ()) -> Kind:
    """Return what a file is by its first mebibyte; its name decides where the bytes leave it open.

    Args:
        file: from `find_files`.
        columns: columns beyond the known ones that a mapping names.

    Raises:
        OSError: it can't be opened; ReadError: it is text of no known kind.
    """
    suffix, _ = suffixes_of(file.name)
    with opened_raw(file) as raw:
        magic = raw.read(8)
    packed = next((name for start, name in PACKED.items() if magic.startswith(start)), "")
    if not packed and (table := next((form for start, form in TABLES.items() if magic.startswith(start)), "")):
        return Kind(table)
    with opened(file, Kind("", packed)) as stream:
        head = _head(stream)
    if suffix in (".parquet", ".arrow", ".feather", ".ipc") and head:
        return Kind("parquet" if suffix == ".parquet" else "arrow")  # its reader says what is wrong with it
    encoding = _encoding(head)
    text = head.decode(encoding, "ignore") if encoding != "utf-8" else head.removeprefix(BOM).decode("utf-8", "surrogateescape")
    if suffix in (".csv", ".tsv"):
        return Kind("csv", packed, encoding, _delimiter(text, "\t" if suffix == ".tsv" else ",", {*KNOWN_COLUMNS, *columns}))
    return Kind("lines" if _holds_lines(text, suffix) else "document", packed, encoding)


def looks_like_data(file: InputFile) -> bool:
    """Return whether a file whose name says nothing holds a table or JSON."""
    kind = sniff(file)
    if kind.form in ("parquet", "arrow"):
        return True
    with opened(file, kind) as stream:
        return _head(stream).removeprefix(BOM).lstrip()[:1] in (b"{", b"[")


@contextmanager
def opened_raw(file: InputFile) -> Iterator[Any]:
    """Open a file's bytes as they are."""
    filesystem = file.filesystem()
    if isinstance(filesystem, pafs.LocalFileSystem):
        with open(file.path, "rb") as raw:
            yield raw
    else:
        with filesystem.open_input_file(file.path) as raw:
            yield raw


@contextmanager
def opened(file: InputFile, kind: Kind, start: int = 0) -> Iterator[io.BufferedReader]:
    """Open a file as a buffered stream of unpacked bytes in UTF-8, from byte `start` of it."""
    filesystem = file.filesystem()
    local = isinstance(filesystem, pafs.LocalFileSystem)
    with ExitStack() as stack:
        raw: Any = stack.enter_context(io.FileIO(file.path) if local else filesystem.open_input_file(file.path))
        raw.seek(start)
        if kind.packed == "gzip":
            raw = stack.enter_context(gzip.GzipFile(fileobj=raw))
        elif kind.packed == "bz2":
            raw = stack.enter_context(bz2.BZ2File(raw))
        elif kind.packed == "xz":
            raw = stack.enter_context(lzma.LZMAFile(raw))
        elif kind.packed == "zstd":
            raw = stack.enter_context(pa.CompressedInputStream(raw if not local else pa.PythonFile(raw), "zstd"))
        yield io.BufferedReader(raw if kind.encoding == "utf-8" else _Recoded(raw, kind.encoding), 1 << 20)


class _Recoded(io.RawIOBase):
    """A stream of text in another encoding, as UTF-8."""

    def __init__(self, raw: Any, encoding: str) -> None:
        self._raw = raw
        self._decode = codecs.getincrementaldecoder(encoding)().decode
        self._encoding = encoding
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            chunk = self._raw.read(1 << 16)
            try:
                self._rest = self._decode(chunk, final=not chunk).encode("utf-8")
            except UnicodeError:
                raise ReadError(f"invalid {self._encoding.upper()}") from None
            if not chunk:
                break
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _head(stream: BinaryIO) -> bytes:
    """Return the first mebibyte of a stream."""
    head = b""
    while len(head) < HEAD_BYTES and (chunk := stream.read(HEAD_BYTES - len(head))):
        head += chunk
    return head


def _encoding(head: bytes) -> str:
    """Return the encoding that a byte-order mark or the places of zero bytes tell."""
    marked = next((name for mark, name in BOMS.items() if head.startswith(mark)), None)
    if marked:
        return marked
    start = head[:256]
    even, odd = start[0::2].count(0), start[1::2].count(0)
    if len(start) >= 4 and 4 * max(even, odd) > len(start) and 20 * min(even, odd) < len(start):
        return "utf-16-le" if odd > even else "utf-16-be"
    return "utf-8"


def _delimiter(text: str, usual: str, known: Collection[str]) -> str:
    """Return what stands between the cells: what gives the first record most of the known columns; the usual one where none does."""
    found = {mark: len(set(_first_record(text, mark)) & set(known)) for mark in dict.fromkeys((usual, *DELIMITERS))}
    best = max(found, key=lambda mark: found[mark])
    if found[best]:
        return best
    cells = {mark: len(_first_record(text, mark)) for mark in found}
    return usual if cells[usual] > 1 else max(cells, key=lambda mark: cells[mark])


def _first_record(text: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(text[:65536], newline=""), delimiter=delimiter), [])
    except csv.Error:
        return []


def _holds_lines(text: str, suffix: str) -> bool:
    """Return whether JSON holds a value a line.

    Where the first line is a whole object, more of them follow; one object alone may hold all rows. A broken first line in a `.jsonl` is
    a broken row, unless a value that goes on over several lines begins there.
    """
    text = text.lstrip()
    line, _, rest = text.partition("\n")
    first = _value(line)
    if isinstance(first, dict):
        return bool(rest.strip())
    if isinstance(first, list):
        return suffix != ".json" and (bool(rest.strip()) or not any(isinstance(one, dict) for one in first))
    if suffix == ".json" or not line.startswith(("{", "[")):
        return suffix != ".json"
    inside = text[1:].lstrip() if text.startswith("[") else text
    try:
        _, end = _decoder.raw_decode(inside)
    except (ValueError, RecursionError):
        return not (line.startswith("[") and line.rstrip() == "[") and line.rstrip() not in ("{", "[{")
    return text.startswith("{") and end <= len(line)


def _value(line: str) -> Any:
    try:
        return json.loads(line, strict=False)
    except (ValueError, RecursionError):
        return None
