"""JSON rows: single lines, and documents too large to hold, decoded value by value through a window."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from diversity.corpus.excerpts import excerpt
from diversity.corpus.files import ReadError

MAX_ROW_BYTES = 64 << 20
CHUNK_CHARS = 1 << 20
LONGEST_TOKEN = 16  # characters: a literal, a number's exponent or an escape that the window's end may cut

Row = tuple[int, Any]

_decoder = json.JSONDecoder(strict=False)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that could not be decoded."""

    reason: str
    excerpt: str


def parse_json(line: bytes) -> Any:
    """Return the JSON value of a line, or why there is none. Raw control characters inside strings are kept, NUL too."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return Unreadable("invalid UTF-8", excerpt(line))
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return Unreadable("invalid JSON", excerpt(line))


def document_rows(stream: BinaryIO) -> Iterator[Row]:
    """Yield the elements of a JSON array, or the objects of a file that is really JSON lines, as many `.json` files are.

    Raises:
        ReadError: the document breaks off or is no JSON, after which nothing can be told apart.
    """
    text = _Text(stream)
    is_array = text.peek() == "["
    if is_array:
        text.at += 1
    row = 0
    while (head := text.peek()) not in ("", "]"):
        value = text.value()
        yield row, value
        row += 1
        separator = text.peek()
        if is_array and separator == ",":
            text.at += 1
        elif is_array and separator not in ("]", ""):
            raise ReadError(f"invalid JSON after row {row - 1}: ',' or ']' expected, not {separator!r}")
    if is_array and head != "]":
        raise ReadError(f"the JSON array breaks off after {row} rows")
    if is_array:
        text.at += 1
    if text.peek():
        raise ReadError(f"something follows the JSON array after {row} rows")


class _Text:
    """A window on a JSON document that grows until it holds the next value and forgets what has been read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self._buffer = ""
        self._ended = False
        self.at = 0

    def peek(self) -> str:
        """Return the next character that is no white space; "" at the end."""
        while True:
            while self.at < len(self._buffer):
                if self._buffer[self.at] not in " \t\r\n":
                    return self._buffer[self.at]
                self.at += 1
            if self._ended:
                return ""
            self._grow(CHUNK_CHARS)

    def value(self) -> Any:
        """Return the JSON value here, or `Unreadable` where its bytes are no UTF-8."""
        step = CHUNK_CHARS
        while True:
            try:
                value, end = _decoder.raw_decode(self._buffer, self.at)
            except json.JSONDecodeError as error:
                self._check_hope(error)
            except RecursionError:
                raise ReadError("nested too deeply") from None
            else:
                if self._ended or self._buffer[end - 1] in '}]"' or end + LONGEST_TOKEN <= len(self._buffer):
                    break  # a number that stands at the window's end may go on behind it
            self._grow(step)
            step *= 2
        written, self.at = self._buffer[self.at : end], end
        return value if is_unicode(written) else Unreadable("invalid UTF-8", excerpt(written))

    def _check_hope(self, error: json.JSONDecodeError) -> None:
        """Raise unless more text may mend the error: it lies at the end of the window, or in a string that has no end yet."""
        unfinished = "Unterminated string" in error.msg or error.pos >= len(self._buffer) - LONGEST_TOKEN
        if self._ended or not unfinished or len(self._buffer) - self.at > MAX_ROW_BYTES:
            shown = excerpt(self._buffer[max(error.pos - 20, 0) : error.pos + 20])
            raise ReadError(f"invalid JSON: {error.msg} near {shown!r}") from None

    def _grow(self, step: int) -> None:
        chunk = self._stream.read(step)
        self._ended = not chunk
        self._buffer = self._buffer[self.at :] + self._decode(chunk, final=not chunk)
        self.at = 0


def is_unicode(text: str) -> bool:
    """Return whether the text holds no surrogate, and so can be written as UTF-8."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
