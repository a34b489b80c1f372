"""Micro typing: tokenise, count in how many samples each token occurs, keep the tokens of a band as types.

A corpus passes in blocks of rows. A tokenizer's ids are known beforehand, so a block is encoded once (`TokenCounter`),
its frequencies are arrays that add up (`Frequencies`), and a lookup table turns ids into types (`TypeMapper`). Words
have no ids beforehand: a block counts its own dictionary (`WordCounter`), dictionaries are merged
(`merge_vocabularies`), and a second pass types the rows (`WordTyper`). Nothing depends on how rows are cut into blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numba import njit
from pydantic import Field, model_validator

from diversity.cell import typing_parts
from diversity.config import Config
from diversity.typings.encoders import Encoder, label, load_encoder
from diversity.typings.typed import DATA_SCHEMA, TYPES, TYPES_SCHEMA, NoTypesError, Typed, flat_lists, list_array
from diversity.typings.words import words_of

WORD = "word"
PAPER_N = 117_000
FLOOR = (3, 50)  # lowest and highest document frequency of a scaled band, however small the corpus
MERGED_AT_ONCE = 1 << 20  # rows of blocks' dictionaries that wait to be added up
CHECKED = 500  # texts on which a tokenizer's fast path is compared with the slow one at every run

COUNTS_SCHEMA = pa.schema([("sample_id", pa.string()), ("tokens", pa.int32()), ("ids", TYPES), ("counts", TYPES)])
MICRO_SCHEMA = DATA_SCHEMA.append(pa.field("tokens", pa.int32()))
MICRO_TYPES_SCHEMA = TYPES_SCHEMA.append(pa.field("token_id", pa.int32())).append(pa.field("tf", pa.int64()))
VOCABULARY_SCHEMA = pa.schema([("content", pa.binary()), ("label", pa.string()), ("df", pa.int64()), ("tf", pa.int64())])


class BandConfig(Config):
    """Which document frequencies make a token a type: low to high, both included.

    Attributes:
        low: lowest document frequency.
        high: highest document frequency.
        scaled: read both as frequencies in 117,000 samples, and scale them to the corpus: low to no less than 3, high to no less than 50
            or itself (ours; else a corpus of some hundred samples has an empty band).
    """

    low: int = Field(default=10, ge=1)
    high: int = Field(default=500, ge=1)
    scaled: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> BandConfig:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self

    def limits(self, n: int) -> tuple[int, int]:
        """Return the band (low, high) for a corpus of n samples."""
        if not self.scaled:
            return self.low, self.high
        low = max(FLOOR[0], round(self.low * n / PAPER_N))
        return low, max(low, min(FLOOR[1], self.high), round(self.high * n / PAPER_N))


@dataclass(frozen=True)
class Frequencies:
    """How often each token id occurs: in how many samples (df), and in all (tf); both (size,) int64."""

    n: int
    df: np.ndarray
    tf: np.ndarray

    def __add__(self, other: Frequencies) -> Frequencies:
        """Return the frequencies of both corpora together."""
        return Frequencies(self.n + other.n, self.df + other.df, self.tf + other.tf)


@dataclass(frozen=True)
class Vocabulary:
    """All tokens seen, in the order in which types are numbered.

    Attributes:
        n: samples.
        table: content, label, df, tf.
        token_ids: the tokenizer's id of each row, ascending; for words None, and rows ascend by content.
    """

    n: int
    table: pa.Table
    token_ids: np.ndarray | None


class TokenCounter:
    """A block of samples → the number of tokens, and the distinct token ids with their counts, of each sample."""

    def __init__(self, side: str, encoder: Encoder) -> None:
        """Remember the side (`instruction` or `response`) and the tokenizer."""
        self._side = side
        self.encoder = encoder

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return COUNTS_SCHEMA rows in the order of the samples; ids ascend within a row."""
        ids, offsets = self.encoder.encode(table[self._side].to_pylist())
        bounds, distinct, counts = distinct_rows(ids, offsets, self.encoder.size)
        tokens = pa.array(np.diff(offsets).astype(np.int32))
        columns = [table["sample_id"], tokens, list_array(distinct, bounds), list_array(counts, bounds)]
        return pa.Table.from_arrays(columns, names=COUNTS_SCHEMA.names).cast(COUNTS_SCHEMA)


class TypeMapper:
    """A block of counted samples → their types, by a lookup table from token id to type."""

    def __init__(self, lookup: np.ndarray) -> None:
        """Keep the table.

        Args:
            lookup: (size,) int32; -1 where a token id is no type. It ascends where it is none.
        """
        self._lookup = lookup

    def __call__(self, counts: pa.Table) -> pa.Table:
        """Return MICRO_SCHEMA rows in the order of the samples."""
        ids, bounds = flat_lists(counts["ids"])
        types = self._lookup[ids]
        kept = types >= 0
        inside = np.concatenate([[0], np.cumsum(kept)])[bounds]
        columns = [counts["sample_id"], list_array(types[kept], inside), counts["tokens"]]
        return pa.Table.from_arrays(columns, schema=MICRO_SCHEMA)


class WordCounter:
    """A block of samples → its dictionary of lower-cased words with df and tf, ascending by content."""

    def __init__(self, side: str) -> None:
        """Remember the side."""
        self._side = side

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return VOCABULARY_SCHEMA rows; the label is the word."""
        index: dict[str, int] = {}
        rows = [words_of(text) for text in table[self._side].to_pylist()]
        codes = np.fromiter((index.setdefault(word, len(index)) for word in chain.from_iterable(rows)), np.int32)
        _, distinct, counts = distinct_rows(codes, _bounds(rows), max(1, len(index)))
        df = np.bincount(distinct, minlength=len(index))
        tf = np.bincount(distinct, weights=counts, minlength=len(index)).astype(np.int64)
        words = list(index)
        contents = pa.array([word.encode() for word in words], pa.binary())
        columns = [contents, pa.array(words, pa.string()), pa.array(df, pa.int64()), pa.array(tf, pa.int64())]
        return pa.Table.from_arrays(columns, schema=VOCABULARY_SCHEMA).sort_by("content")


class WordTyper:
    """A block of samples → their word types."""

    def __init__(self, side: str, words: Sequence[str]) -> None:
        """Keep the types: word i is type i."""
        self._side = side
        self._lookup = {word: number for number, word in enumerate(words)}

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return MICRO_SCHEMA rows in the order of the samples."""
        rows = [words_of(text) for text in table[self._side].to_pylist()]
        bounds = _bounds(rows)
        codes = np.fromiter((self._lookup.get(word, -1) for word in chain.from_iterable(rows)), np.int32)
        kept = codes >= 0
        inside = np.concatenate([[0], np.cumsum(kept)])[bounds]
        inside, types, _ = distinct_rows(codes[kept], inside, max(1, len(self._lookup)))
        columns = [table["sample_id"], list_array(types, inside), pa.array(np.diff(bounds).astype(np.int32))]
        return pa.Table.from_arrays(columns, names=MICRO_SCHEMA.names).cast(MICRO_SCHEMA)


def frequencies(counts: pa.Table, size: int) -> Frequencies:
    """Return the frequencies of a block that `TokenCounter` counted; they add up over blocks."""
    ids, _ = flat_lists(counts["ids"])
    times, _ = flat_lists(counts["counts"])
    tf = np.bincount(ids, weights=times, minlength=size).astype(np.int64)  # exact: float64 holds integers to 2^53
    return Frequencies(counts.num_rows, np.bincount(ids, minlength=size).astype(np.int64), tf)


def token_vocabulary(found: Frequencies, contents: Sequence[bytes]) -> Vocabulary:
    """Return all tokens that occur, ascending by id."""
    seen = np.flatnonzero(found.df).astype(np.int32)
    texts = [contents[i] for i in seen.tolist()]
    columns = [
        pa.array(texts, pa.binary()),
        pa.array([label(text) for text in texts], pa.string()),
        pa.array(found.df[seen]),
        pa.array(found.tf[seen]),
    ]
    return Vocabulary(found.n, pa.Table.from_arrays(columns, schema=VOCABULARY_SCHEMA), seen)


def merge_vocabularies(blocks: Iterable[pa.Table], n: int) -> Vocabulary:
    """Return the dictionary of n samples out of those of their blocks, ascending by content; few blocks are held at a time."""
    merged, waiting = VOCABULARY_SCHEMA.empty_table(), 0
    tables = [merged]
    for block in blocks:
        tables.append(block)
        waiting += block.num_rows
        if waiting > max(MERGED_AT_ONCE, merged.num_rows):
            merged, waiting = _add_up(tables), 0
            tables = [merged]
    return Vocabulary(n, _add_up(tables).sort_by("content"), None)


def _add_up(tables: Sequence[pa.Table]) -> pa.Table:
    """Return VOCABULARY_SCHEMA with each content once, and its df and tf of all tables together."""
    both = pa.concat_tables([table.select(["content", "df", "tf"]) for table in tables]).combine_chunks()
    coded = both["content"].combine_chunks().dictionary_encode()
    codes, contents = coded.indices.to_numpy(), coded.dictionary
    df, tf = (np.bincount(codes, weights=both[name].to_numpy(), minlength=len(contents)) for name in ("df", "tf"))
    columns = [contents, contents.cast(pa.string()), pa.array(df.astype(np.int64)), pa.array(tf.astype(np.int64))]
    return pa.Table.from_arrays(columns, schema=VOCABULARY_SCHEMA)


def band_types(typing: str, vocabulary: Vocabulary, band: BandConfig) -> tuple[pa.Table, dict[str, int]]:
    """Return the table of types (MICRO_TYPES_SCHEMA) and the band's figures for the manifest.

    Raises:
        NoTypesError: no token lies in the band; the message names the band's counts.
    """
    low, high = band.limits(vocabulary.n)
    df = vocabulary.table["df"].to_numpy()
    inside = np.flatnonzero((df >= low) & (df <= high))
    figures = {
        "low": low,
        "high": high,
        "n_low": int((df < low).sum()),
        "n_mid": len(inside),
        "n_high": int((df > high).sum()),
    }
    if not len(inside):
        raise NoTypesError(
            f"{typing}: no token has a document frequency from {low} to {high} in {vocabulary.n:,} samples "
            f"({figures['n_low']:,} lie below, {figures['n_high']:,} above): change profile.band, e.g. scaled: true"
        )
    kept = vocabulary.table.take(pa.array(inside))
    token_ids = np.full(len(df), -1, np.int32) if vocabulary.token_ids is None else vocabulary.token_ids
    numbers = pa.array(np.arange(len(inside), dtype=np.int32))
    columns = [numbers, kept["content"], kept["label"], kept["df"], pa.array(token_ids[inside]), kept["tf"]]
    return pa.Table.from_arrays(columns, schema=MICRO_TYPES_SCHEMA), figures


def type_lookup(types: pa.Table, size: int) -> np.ndarray:
    """Return (size,) int32: the type of each token id, or -1."""
    lookup = np.full(size, -1, np.int32)
    lookup[types["token_id"].to_numpy()] = types["type"].to_numpy()
    return lookup


def micro(
    table: pa.Table, typing: str, *, folder: Path | None = None, band: BandConfig | None = None, encoder: Encoder | None = None
) -> Typed:
    """Return a micro typing of a table of samples, in this process.

    Args:
        table: sample columns, sorted by sample_id.
        typing: e.g. `response-micro`, `response-micro@word`, `instruction-micro@o200k_base`.
        folder: the model's folder with tokenizer.json, where the typing names no other unit.
        band: which document frequencies count.
        encoder: the typing's tokenizer, where it is loaded already.

    Raises:
        NoTypesError: no token in the band.
    """
    side, _, unit = typing_parts(typing)
    band = band or BandConfig()
    if unit == WORD:
        vocabulary = merge_vocabularies([WordCounter(side)(table)], table.num_rows)
        types, figures = band_types(typing, vocabulary, band)
        data = WordTyper(side, types["label"].to_pylist())(table)
    else:
        counter = TokenCounter(side, encoder or load_encoder(unit, folder, check_on=table[side][:CHECKED].to_pylist()))
        counts = counter(table)
        found = frequencies(counts, counter.encoder.size)
        vocabulary = token_vocabulary(found, counter.encoder.contents())
        types, figures = band_types(typing, vocabulary, band)
        data = TypeMapper(type_lookup(types, counter.encoder.size))(counts)
    return Typed(typing, data, types, {"band": figures}, {"vocabulary": vocabulary.table})


def _bounds(rows: Sequence[Sequence[Any]]) -> np.ndarray:
    bounds = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=bounds[1:])
    return bounds


@njit(cache=True)
def distinct_rows(ids, offsets, size):  # type: ignore[no-untyped-def]
    """Return (bounds (n + 1,) int64, distinct int32, counts int32): the distinct ids of each row, ascending.

    Args:
        ids: (tokens,) int32 in [0, size).
        offsets: (n + 1,) int64: row i is ids[offsets[i]:offsets[i + 1]].
        size: number of possible ids; a scratch array of that length is kept.
    """
    n = len(offsets) - 1
    times = np.zeros(size, np.int32)
    bounds = np.zeros(n + 1, np.int64)
    distinct = np.empty(len(ids), np.int32)
    counts = np.empty(len(ids), np.int32)
    end = 0
    for i in range(n):
        start = end
        for j in range(offsets[i], offsets[i + 1]):
            t = ids[j]
            if times[t] == 0:
                distinct[end] = t
                end += 1
            times[t] += 1
        distinct[start:end].sort()
        for j in range(start, end):
            counts[j] = times[distinct[j]]
            times[distinct[j]] = 0
        bounds[i + 1] = end
    return bounds, distinct[:end].copy(), counts[:end].copy()
