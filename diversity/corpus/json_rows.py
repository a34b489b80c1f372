"""JSON rows: single lines, and documents too large to hold, decoded value by value through a window."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from diversity.corpus.excerpts import excerpt
from diversity.corpus.files import ReadError

MAX_ROW_BYTES = 64 << 20
CHUNK_CHARS = 1 << 20
LONGEST_TOKEN = 16  # characters: a literal, a number's exponent or an escape that the window's end may cut

Row = tuple[int, Any]

LONGEST_HEAD = 1 << 10
# An object whose first key holds a list of objects, up to the list's first element; and what may yet become one.
_WRAPPED = re.compile(r'\{\s*"(?P<key>[^"\\]{1,200})"\s*:\s*\[\s*(?=\{)(?!\{\s*"(?:role|from|content|value)")')
_BEGUN = re.compile(r'\{\s*("([^"\\]{0,200}("(\s*(:(\s*(\[\s*)?)?)?)?)?)?)?')

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
        return _decoder.decode(text)  # what `json.loads(…, strict=False)` does, which makes a decoder each time
    except (ValueError, RecursionError):
        return Unreadable("invalid JSON", excerpt(line))


def document_rows(stream: BinaryIO, known: Collection[str] = ()) -> Iterator[Row]:
    """Yield the rows of a JSON document: the elements of an array, or objects one after another however they are laid out.

    One object that is no row itself may hold them: as a list under a name of its own (`{"data": [{…}, …]}`), or column by column.

    Args:
        stream: bytes of the document.
        known: columns that rows may have; a list under such a name is a part of a row.

    Raises:
        ReadError: the document breaks off or is no JSON, after which nothing can be told apart; or it holds several lists of rows.
    """
    text = _Text(stream)
    if text.peek() == "{" and text.enter_list(known):
        yield from _elements(text, closing=True)
        return
    if text.peek() != "{":
        yield from _elements(text)
        return
    first, alone = text.value(), not text.peek()
    held = unfolded(first, known) if alone and isinstance(first, dict) else None
    yield from enumerate([first] if held is None else held)
    if not alone:
        yield from ((row + 1, value) for row, value in _elements(text))


def _elements(text: _Text, closing: bool = False) -> Iterator[Row]:
    """Yield the values from here on: of the array that begins here or (`closing`) has begun, else one after another."""
    is_array = closing or text.peek() == "["
    if is_array and not closing:
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
    if closing:
        text.leave_object()
    if text.peek():
        raise ReadError(f"something follows the JSON array after {row} rows")


def unfolded(value: dict[str, Any], known: Collection[str]) -> list[Any] | None:
    """Return the rows that one object holds without being one: a single list of objects, or columns; None if it is a row itself.

    Raises:
        ReadError: several lists of objects, such as the splits of a dataset.
    """
    lists = {name: held for name, held in value.items() if isinstance(held, list) and held and _is_row(held[0])}
    if not any(name in known for name in value):
        if len(lists) > 1:
            raise ReadError(f"the file holds several lists of rows: {', '.join(lists)}; write each into a file of its own")
        return next(iter(lists.values()), None)
    return _columns(value)


def _is_row(value: Any) -> bool:
    """Return whether a value may be a row: an object that is no turn of a conversation."""
    return isinstance(value, dict) and not {"role", "from"} & value.keys()


def _columns(value: dict[str, Any]) -> list[Any] | None:
    """Return the rows of an object of columns, each a list, or an object by row number as pandas writes it."""
    cells = list(value.values())
    if all(isinstance(column, dict) for column in cells) and all(column.keys() == cells[0].keys() for column in cells):
        if not cells[0] or not all(key.isdigit() for key in cells[0]):
            return None
        cells = [list(column.values()) for column in cells]
    if not all(isinstance(column, list) for column in cells) or len({len(column) for column in cells}) != 1:
        return None
    if any(isinstance(one, dict) for column in cells for one in column):
        return None  # a list of objects is one conversation
    return [dict(zip(value, row, strict=True)) for row in zip(*cells, strict=True)]


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

    def enter_list(self, known: Collection[str]) -> bool:
        """Step into the list of objects that an object's first key holds, where the key is no column of a row; say whether there is one."""
        begin, held = self.at, self._buffer
        match = _WRAPPED.match(held, begin)
        while match is None and not self._ended and len(held) - begin < LONGEST_HEAD and _BEGUN.fullmatch(held, begin):
            self._grow(CHUNK_CHARS)
            begin, held = self.at, self._buffer
            match = _WRAPPED.match(held, begin)
        if match is None or match["key"] in known:
            return False
        self.at = match.end()
        return True

    def leave_object(self) -> None:
        """Step over what follows the list that was entered, to the end of its object.

        Raises:
            ReadError: another list of rows.
        """
        while self.peek() == ",":
            self.at += 1
            self.peek()
            key = self.value()
            if self.peek() != ":":
                raise ReadError(f"invalid JSON: ':' expected after {str(key)[:40]!r}")
            self.at += 1
            self.peek()
            value = self.value()
            if isinstance(value, list) and value and _is_row(value[0]):
                raise ReadError(f"the file holds several lists of rows, {str(key)[:40]!r} too; write each into a file of its own")
        if self.peek() != "}":
            raise ReadError("the JSON object breaks off")
        self.at += 1

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
            except ValueError as error:  # an integer of thousands of digits
                raise ReadError(f"invalid JSON: {error}") from None
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
        if unfinished and not self._ended and len(self._buffer) - self.at > MAX_ROW_BYTES:
            raise ReadError(f"a value longer than {MAX_ROW_BYTES >> 20} MiB; write such data as JSON lines, a row each")
        if self._ended or not unfinished:
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
