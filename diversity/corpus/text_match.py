"""Texts compared by hashes: normalised whole, and as 13-grams of words.

Everything works on Arrow's buffers in compiled loops, so that a corpus is looked through at the speed of its bytes and none of its
n-grams is ever stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit

GRAM_WORDS = 13
# Classes of characters, as RE2 (inside pyarrow, so the same under every Python) knows Unicode.
SPACE, WORD, UNSPACED = 1, 2, 3
CLASSES = {
    SPACE: r"^[\s\p{Z}]$",
    WORD: r"^[\p{L}\p{M}\p{N}]$",
    UNSPACED: r"^[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]$",  # scripts written without spaces
}


@dataclass(frozen=True)
class Buffers:
    """Strings as two arrays for compiled loops: `offsets` (n+1,) int64 into `data` (bytes,) uint8."""

    offsets: np.ndarray
    data: np.ndarray

    @classmethod
    def of(cls, texts: pa.Array | pa.ChunkedArray) -> Buffers:
        """Return the buffers of an Arrow string array without nulls."""
        array = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
        array = array.cast(pa.large_string())
        _, offsets, data = array.buffers()
        if not len(array):
            return cls(np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.uint8))
        found = np.frombuffer(offsets, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
        return cls(found, np.frombuffer(data, dtype=np.uint8) if data else np.zeros(0, dtype=np.uint8))


def normalise(texts: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return the texts in NFKC and lower case, with every run of what is no letter, mark or digit made one space.

    A text of nothing else (an emoji, `???`) keeps its characters and only has its white space folded, so that it equals none but itself.
    """
    return _folded(texts, apart=False)


def gram_texts(texts: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return the normalised texts for n-grams of words: each character of a script without spaces is a word."""
    return _folded(texts, apart=True)


def _folded(texts: pa.Array | pa.ChunkedArray, apart: bool) -> pa.Array:
    lowered = pc.utf8_lower(pc.utf8_normalize(texts.cast(pa.large_string()), "NFKC"))
    buffers = Buffers.of(lowered)
    offsets, data = _fold(buffers.offsets, buffers.data, character_classes(), apart)
    return pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data))


@cache
def character_classes() -> np.ndarray:
    """Return the class of every code point, `(0x110000,) uint8`: `SPACE`, `WORD`, `UNSPACED` or 0."""
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    characters = pa.array([chr(point) for point in points])
    classes = np.zeros(0x110000, dtype=np.uint8)
    for number, pattern in CLASSES.items():
        matching = np.zeros(0x110000, dtype=bool)
        matching[points] = pc.match_substring_regex(characters, pattern).to_numpy(zero_copy_only=False)
        classes[matching & (classes == WORD) if number == UNSPACED else matching] = number
    return classes


def text_hashes(texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return the `(n,) uint64` hashes of the UTF-8 bytes: FNV-1a with the finaliser of splitmix64."""
    buffers = Buffers.of(texts)
    return _text_hashes(buffers.offsets, buffers.data)


def gram_hashes(texts: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return (`(n+1,) int64` offsets, `uint64` hashes) of the 13-grams of words of every text, in order and with repeats."""
    buffers = Buffers.of(gram_texts(texts))
    counts = _word_counts(buffers.offsets, buffers.data)
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(np.maximum(counts - GRAM_WORDS + 1, 0), out=offsets[1:])
    return offsets, _gram_hashes(buffers.offsets, buffers.data, offsets, GRAM_WORDS)


def mark_grams(texts: pa.Array | pa.ChunkedArray, table: np.ndarray, found: np.ndarray) -> None:
    """Set `found` at the slots of those 13-grams of the texts that are in the table."""
    buffers = Buffers.of(gram_texts(texts))
    _mark_grams(buffers.offsets, buffers.data, GRAM_WORDS, table, found)


def table_of(hashes: np.ndarray) -> np.ndarray:
    """Return an open-addressing table of the hashes, `uint64` with 0 for empty slots, at most half full."""
    distinct = np.unique(hashes)
    table = np.zeros(1 << max(2 * len(distinct), 1).bit_length(), dtype=np.uint64)
    _fill(distinct, table)
    return table


FNV_BASIS, FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
GRAM_BASE = np.uint64(0x9E3779B97F4A7C15)


@njit(cache=True)
def _finish(h: np.uint64) -> np.uint64:
    """Return the splitmix64 finaliser, with 0 (an empty slot) made 1."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    h = h ^ (h >> np.uint64(31))
    return np.uint64(1) if h == 0 else h


@njit(cache=True)
def _decode(data: np.ndarray, at: int) -> tuple[np.int64, int]:
    """Return (code point, length in bytes) of the character at a byte of valid UTF-8."""
    first = np.int64(data[at])
    if first < 0x80:
        return first, 1
    length = 2 if first < 0xE0 else 3 if first < 0xF0 else 4
    point = first & (0x7F >> length)
    for following in range(at + 1, at + length):
        point = point << 6 | np.int64(data[following]) & 0x3F
    return point, length


@njit(cache=True)
def _fold_one(data: np.ndarray, start: int, stop: int, classes: np.ndarray, apart: bool, symbols: bool, out: np.ndarray, end: int) -> int:
    """Write one text's kept characters to `out` from `end` on, single spaces between its runs; return where they end."""
    begin, gap, alone = end, False, False
    at = start
    while at < stop:
        point, length = _decode(data, at)
        kind = classes[point]
        kept = kind != SPACE if symbols else kind >= WORD
        if kept:
            separate = apart and kind == UNSPACED
            if end > begin and (gap or separate or alone):
                out[end] = 32
                end += 1
            for byte in range(at, at + length):
                out[end] = data[byte]
                end += 1
            alone = separate
        gap = not kept
        at += length
    return end


@njit(cache=True)
def _fold(offsets: np.ndarray, data: np.ndarray, classes: np.ndarray, apart: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return (offsets, bytes) of the folded texts."""
    out_offsets = np.zeros(len(offsets), dtype=np.int64)
    out = np.empty(2 * (offsets[-1] - offsets[0]) + 1, dtype=np.uint8)
    end = 0
    for i in range(len(offsets) - 1):
        begin = end
        end = _fold_one(data, offsets[i], offsets[i + 1], classes, apart, False, out, begin)
        if end == begin:
            end = _fold_one(data, offsets[i], offsets[i + 1], classes, apart, True, out, begin)
        out_offsets[i + 1] = end
    return out_offsets, out[:end].copy()


@njit(cache=True)
def _text_hashes(offsets: np.ndarray, data: np.ndarray) -> np.ndarray:
    out = np.empty(len(offsets) - 1, dtype=np.uint64)
    for i in range(len(out)):
        h = FNV_BASIS
        for j in range(offsets[i], offsets[i + 1]):
            h = (h ^ np.uint64(data[j])) * FNV_PRIME
        out[i] = _finish(h)
    return out


@njit(cache=True)
def _word_counts(offsets: np.ndarray, data: np.ndarray) -> np.ndarray:
    out = np.zeros(len(offsets) - 1, dtype=np.int64)
    for i in range(len(out)):
        inside = False
        for j in range(offsets[i], offsets[i + 1]):
            if data[j] == 32:
                inside = False
            elif not inside:
                inside = True
                out[i] += 1
    return out


@njit(cache=True)
def _next_word(data: np.ndarray, start: int, stop: int) -> tuple[int, np.uint64]:
    """Return (byte after the next word, its hash); the hash is 0 where there is no further word."""
    while start < stop and data[start] == 32:
        start += 1
    if start >= stop:
        return stop, np.uint64(0)
    h = FNV_BASIS
    while start < stop and data[start] != 32:
        h = (h ^ np.uint64(data[start])) * FNV_PRIME
        start += 1
    return start, _finish(h)


@njit(cache=True)
def _power(words: int) -> np.uint64:
    result = np.uint64(1)
    for _ in range(words):
        result *= GRAM_BASE
    return result


@njit(cache=True)
def _gram_hashes(offsets: np.ndarray, data: np.ndarray, gram_offsets: np.ndarray, words: int) -> np.ndarray:
    """Roll `sum of word hash * base**(words - 1 - place)` over each text and finish every full window."""
    out = np.empty(gram_offsets[-1], dtype=np.uint64)
    ring = np.zeros(words, dtype=np.uint64)
    leaving = _power(words)
    for i in range(len(offsets) - 1):
        at, rolled, seen = offsets[i], np.uint64(0), 0
        ring[:] = 0
        while True:
            at, word = _next_word(data, at, offsets[i + 1])
            if word == 0:
                break
            rolled = rolled * GRAM_BASE + word - ring[seen % words] * leaving
            ring[seen % words] = word
            seen += 1
            if seen >= words:
                out[gram_offsets[i] + seen - words] = _finish(rolled)
    return out


@njit(cache=True)
def find_slot(h: np.uint64, table: np.ndarray) -> np.uint64:
    """Return the slot that holds a hash, or the empty one where it would go."""
    mask = np.uint64(len(table) - 1)
    slot = h & mask
    while table[slot] != 0 and table[slot] != h:
        slot = (slot + np.uint64(1)) & mask
    return slot


@njit(cache=True)
def _fill(hashes: np.ndarray, table: np.ndarray) -> None:
    for h in hashes:
        table[find_slot(h, table)] = h


@njit(cache=True)
def slots(hashes: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return the `(n,) int64` slots that hold the hashes, or the empty ones where they would go."""
    out = np.empty(len(hashes), dtype=np.int64)
    for i in range(len(hashes)):
        out[i] = find_slot(hashes[i], table)
    return out


@njit(cache=True)
def mark(hashes: np.ndarray, table: np.ndarray, found: np.ndarray) -> None:
    """Set `found` at the slots of those hashes that are in the table."""
    for h in hashes:
        slot = find_slot(h, table)
        if table[slot] == h:
            found[slot] = True


@njit(cache=True)
def _mark_grams(offsets: np.ndarray, data: np.ndarray, words: int, table: np.ndarray, found: np.ndarray) -> None:
    """Mark the 13-grams of the texts that are in the table, text by text."""
    bounds = np.zeros(2, dtype=np.int64)
    for i in range(len(offsets) - 1):
        one = offsets[i : i + 2]
        bounds[1] = max(_word_counts(one, data)[0] - words + 1, 0)
        if bounds[1]:
            mark(_gram_hashes(one, data, bounds, words), table, found)
