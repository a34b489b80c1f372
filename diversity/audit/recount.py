"""What is sealed about a typing, found out again: frequencies and band, the order of types step by step, and all of it from the text.

Nothing of the profile's or the pruning's code is called. Text is tokenised by the plain Hugging Face tokenizer (or tiktoken's own
encoding, where that is the unit), one text after the other, and counted by numpy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from diversity.audit.ground import Types

_GONE = np.int64(1) << 60

Tokenise = Callable[[Sequence[str]], list[list[Any]]]


def frequency_faults(types: Types, table: pa.Table, band: tuple[int, int] | None) -> list[str]:
    """Return what is wrong with a sealed typing's own figures.

    Args:
        types: the sealed types of each sample.
        table: the sealed table of types: type, content, df.
        band: lowest and highest df of a type, where the typing has a band.
    """
    faults = []
    df = np.bincount(types.values, minlength=types.n_types)
    if len(df) != types.n_types or (len(types.values) and types.values.min() < 0):
        return [f"type numbers outside 0..{types.n_types - 1}"]
    rising = np.diff(types.values) > 0
    starts = types.bounds[1:-1]
    inside = np.ones(len(rising), bool)
    inside[starts[(starts > 0) & (starts < len(types.values))] - 1] = False
    if repeated := int((~rising & inside).sum()):
        faults.append(f"{repeated} types out of order or twice in a sample")
    if wrong := int((table.column("df").to_numpy() != df).sum()):
        faults.append(f"{wrong} types whose df is not the number of samples that have them")
    low, high = band or (1, types.lengths.size)
    if outside := int(((df < low) | (df > high)).sum()):
        faults.append(f"{outside} types whose df is outside {low} to {high}")
    return faults


def order_fault(types: Types, contents: Sequence[bytes], position: np.ndarray, algorithm: str) -> str:
    """Return the first fault of an order of types, "" where there is none.

    Args:
        types: the sealed types of each sample.
        contents: of the types, which settle ties.
        position: `(M,)`, 1 = given up last.
        algorithm: `peel` is replayed step by step: each type given up is the one that fewest remaining samples have. `static` goes by
            df. Of any other only that positions are a permutation is checked here.
    """
    if not np.array_equal(np.sort(position), np.arange(1, types.n_types + 1)):
        return f"positions are no permutation of 1..{types.n_types}"
    ties = np.array(
        [int.from_bytes(hashlib.blake2b(c, digest_size=8, key=bytes(8), person=b"peel").digest(), "big") for c in contents], np.uint64
    )
    by_tie = np.lexsort((np.arange(types.n_types), ties))
    removal = np.argsort(-position)
    counts = np.bincount(types.values, minlength=types.n_types)[by_tie].astype(np.int64)
    if algorithm == "static":
        expected = by_tie[np.argsort(counts, kind="stable")]
        off = np.flatnonzero(expected != removal)
        return f"type {removal[off[0]]} is given up where type {expected[off[0]]} has fewer samples" if len(off) else ""
    if algorithm != "peel":
        return ""
    place = np.empty(types.n_types, np.int64)
    place[by_tie] = np.arange(types.n_types)
    owners = np.repeat(np.arange(len(types.lengths)), types.lengths)[np.argsort(types.values, kind="stable")]
    starts = np.concatenate([[0], np.cumsum(np.bincount(types.values, minlength=types.n_types))])
    alive = np.ones(len(types.lengths), bool)
    for t in removal:
        least = int(np.argmin(counts))
        if place[t] != least:
            return f"type {t} is given up at position {position[t]} where type {by_tie[least]} has fewer samples left, or the smaller tie"
        counts[least] = _GONE
        leaving = owners[starts[t] : starts[t + 1]]
        leaving = leaving[alive[leaving]]
        if len(leaving):
            alive[leaving] = False
            np.subtract.at(counts, place[types.pairs(leaving)[1]], 1)
    return ""


@dataclass(frozen=True)
class TextTypes:
    """A micro typing as the text has it.

    Attributes:
        types: of each sample.
        units: token ids, or words as UTF-8, of types 0..M-1, ascending.
        df: of each type.
        tokens: of each sample.
    """

    types: Types
    units: list[Any]
    df: np.ndarray
    tokens: np.ndarray


def count_text(texts: Iterable[Sequence[str]], tokenise: Tokenise, band: tuple[int, int]) -> TextTypes:
    """Return the types of texts: the distinct units with a df in the band, both ends included.

    Args:
        texts: in the order of samples, batch by batch.
        tokenise: a batch of texts to lists of token ids, or of words as UTF-8.
        band: lowest and highest df.
    """
    numbers: dict[Any, int] = {}
    distinct, lengths = [], []
    for batch in texts:
        for units in tokenise(batch):
            lengths.append(len(units))
            distinct.append(np.array([numbers.setdefault(unit, len(numbers)) for unit in set(units)], np.int64))
    counts = np.array([len(row) for row in distinct])
    flat = np.concatenate(distinct) if distinct else np.zeros(0, np.int64)
    df = np.bincount(flat, minlength=len(numbers))
    units = list(numbers)
    inside = sorted((units[i], i) for i in np.flatnonzero((df >= band[0]) & (df <= band[1])).tolist())
    lookup = np.full(len(numbers), -1, np.int64)
    lookup[[i for _, i in inside]] = np.arange(len(inside))
    found = lookup[flat]
    rows = np.repeat(np.arange(len(counts)), counts)[found >= 0]
    ordered = np.lexsort((found[found >= 0], rows))
    bounds = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(counts)))])
    types = Types(bounds, found[found >= 0][ordered], len(inside))
    return TextTypes(types, [unit for unit, _ in inside], df[[i for _, i in inside]], np.array(lengths))


def text_faults(found: TextTypes, sealed: Types, units: Sequence[Any], df: np.ndarray, tokens: np.ndarray) -> list[str]:
    """Return how a sealed micro typing differs from what was counted in the text.

    Args:
        found: counted in the text.
        sealed: types of each sample as they are sealed.
        units: token ids, or words as UTF-8, of the sealed types.
        df: of the sealed types.
        tokens: of each sample, as they are sealed.
    """
    faults = []
    counted, stated = dict(zip(found.units, found.df.tolist(), strict=True)), dict(zip(units, df.tolist(), strict=True))
    if other := set(counted) ^ set(stated):
        faults.append(f"{len(other)} types are in the band of one and not of the other, e.g. {min(other)!r}")
    if wrong := [unit for unit in set(counted) & set(stated) if counted[unit] != stated[unit]]:
        faults.append(f"{len(wrong)} types have another df, e.g. {min(wrong)!r}")
    if found.units != list(units) and not other:
        faults.append("types are numbered in another order")
    if (off := int((found.tokens != tokens).sum())) != 0:
        faults.append(f"{off} samples have another number of tokens")
    if not faults and not (np.array_equal(found.types.bounds, sealed.bounds) and np.array_equal(found.types.values, sealed.values)):
        rows = zip(pairwise(found.types.bounds), pairwise(sealed.bounds), strict=True)
        differ = sum(not np.array_equal(found.types.values[a:b], sealed.values[c:d]) for (a, b), (c, d) in rows)
        faults.append(f"{differ} samples have other types")
    return faults


def _words(text: str) -> list[str]:
    """Return the lower-cased words: between white space, and at Unicode's word boundaries in runs of scripts without spaces."""
    import regex

    found = []
    for run in text.lower().split():
        unspaced = regex.search(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]", run)
        pieces = regex.split(r"(?V1w)\b", run) if unspaced else [run]
        found += [piece for piece in pieces if not unspaced or regex.search(r"[\p{L}\p{M}\p{N}]", piece)]
    return found


def plain_tokeniser(unit: str, folder: Path | None) -> Tokenise:
    """Return what cuts texts into the units of a micro typing, by the plainest means there are.

    Args:
        unit: "" for the tokenizer in the folder, `word`, or a tiktoken encoding.
        folder: holds tokenizer.json. Text that spells a special token is ordinary text.
    """
    if unit == "word":
        return lambda batch: [[word.encode() for word in _words(text)] for text in batch]
    if unit:
        import tiktoken

        encoding = tiktoken.get_encoding(unit)
        return lambda batch: [encoding.encode(text, disallowed_special=()) for text in batch]
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(folder or ".") / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return lambda batch: [one.ids for one in tokenizer.encode_batch(list(batch), add_special_tokens=False)]
