"""Tokenizers as flat arrays of ids: the Hugging Face tokenizer is the truth, its tiktoken twin the fast path.

A text that spells a special token is ordinary text on both paths, and nothing is added to it. The fast path is taken
only where its equality can be shown:

* merges and pre-tokenizer are checked by `diversity/typings/twin.py`;
* a text goes to Hugging Face when it holds a byte that the vocabulary lacks (a placeholder id shows it), a code point
  that Unicode had not assigned when this Python was built (the two regex libraries know different versions), a form
  that the normaliser would change, an added token that is no control token, or white space that overflows the regex.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from diversity.config import ConfigError, near_matches
from diversity.typings.twin import Inexact, is_byte_level, mergeable_ranks, ordinary_added_tokens, token_bytes, twin_pattern
from diversity.typings.words import words_of

log = logging.getLogger(__name__)

VERSION = 2  # of the ids that a tokenizer.json gives to texts, raised whenever they change
_NO_TEXT = "<|never allowed, so never found|>"
_CUT = 20_000


class Encoder(Protocol):
    """Turns texts into token ids."""

    size: int
    """Ids are in [0, size)."""

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return (ids (tokens,) int32, offsets (n + 1,) int64): text i has ids[offsets[i]:offsets[i + 1]]."""

    def contents(self) -> list[bytes]:
        """Return the content of each id: its bytes where ids stand for bytes, else the token as UTF-8."""


class HuggingFaceEncoder:
    """A fast tokenizer of the `tokenizers` package, without special tokens, truncation, padding or templates."""

    def __init__(self, spec: dict[str, Any]) -> None:
        """Load it.

        Args:
            spec: the parsed tokenizer.json. Special `added_tokens` are left out: they would match inside a text. All others keep their ids.
        """
        from tokenizers import Tokenizer

        ordinary = ordinary_added_tokens(spec)
        plain = dict(spec, truncation=None, padding=None, post_processor=None, added_tokens=ordinary)
        self._tokenizer = Tokenizer.from_str(json.dumps(plain))
        names = self._tokenizer.get_vocab(with_added_tokens=True)
        self._names, self._numbers = names, np.arange(max(names.values()) + 1, dtype=np.int32)
        # Tokens outside of the vocabulary are numbered in their order, so anew where special ones are left out.
        if ordinary and len(ordinary) < len(spec["added_tokens"]):
            whole = Tokenizer.from_str(json.dumps(spec)).get_vocab(with_added_tokens=True)
            self._names = {name: whole[name] for name in names}
            self._numbers[list(names.values())] = list(self._names.values())
        self.size = max(self._names.values()) + 1
        self._bytes = is_byte_level(spec)
        self._contents: list[bytes] = []

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return (ids (tokens,) int32, offsets (n + 1,) int64).

        Raises:
            ConfigError: the tokenizer can't encode a text, as one that lacks the token for unknown words can't.
        """
        try:
            found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # the package raises bare ones
            raise ConfigError(f"the tokenizer can't encode the texts: {' '.join(str(error).split())}") from None
        ids, offsets = flatten([np.asarray(one.ids, np.int32) for one in found])
        return self._numbers[ids], offsets

    def contents(self) -> list[bytes]:
        """Return the content of each id; an id that no token has gets empty bytes."""
        if not self._contents:
            self._contents = [b""] * self.size
            for name, number in self._names.items():
                self._contents[number] = token_bytes(name) if self._bytes else name.encode()
        return self._contents


class ExactEncoder:
    """The tiktoken twin of a byte-level BPE tokenizer, which hands what it can't encode to Hugging Face."""

    def __init__(self, spec: dict[str, Any]) -> None:
        """Build the twin.

        Raises:
            Inexact: equality can't be shown for this tokenizer.
        """
        import tiktoken

        self._slow = HuggingFaceEncoder(spec)
        self.size = self._slow.size
        self._normalised = spec.get("normalizer") is not None
        added = [re.escape(token["content"]) for token in ordinary_added_tokens(spec)]
        self._added = re.compile("|".join(added)) if added else None
        ranks = mergeable_ranks(spec)
        missing = [bytes([b]) for b in range(256) if bytes([b]) not in ranks]
        self._placeholder = self.size
        ranks.update({byte: self.size + i for i, byte in enumerate(missing)})
        self.encoding = tiktoken.Encoding(
            "exact",
            pat_str=twin_pattern(spec),
            mergeable_ranks=ranks,
            special_tokens={_NO_TEXT: self.size + len(missing)},
        )
        self._encode = self.encoding.encode_to_numpy

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return (ids (tokens,) int32, offsets (n + 1,) int64)."""
        parts: list[np.ndarray | None] = [self._fast(text) for text in texts]
        rest = [i for i, part in enumerate(parts) if part is None]
        if rest:
            ids, offsets = self._slow.encode([texts[i] for i in rest])
            for j, i in enumerate(rest):
                parts[i] = ids[offsets[j] : offsets[j + 1]]
        return flatten([part for part in parts if part is not None])

    def _fast(self, text: str) -> np.ndarray | None:
        """Return the ids, or None where only Hugging Face knows them."""
        if not text.isascii() and (_has_unassigned(text) or not self._is_normal(text)):
            return None
        if self._added and self._added.search(text):
            return None
        try:
            ids = self._encode(text, disallowed_special=())
        except ValueError:  # the regex ran out of stack on a long run of white space
            return None
        return ids if len(ids) == 0 or ids.max() < self._placeholder else None

    def _is_normal(self, text: str) -> bool:
        return not self._normalised or unicodedata.is_normalized("NFC", text)

    def contents(self) -> list[bytes]:
        """Return the bytes of each id."""
        return self._slow.contents()


class TiktokenEncoder:
    """One of tiktoken's own encodings, by name."""

    def __init__(self, name: str) -> None:
        """Load it from tiktoken's cache (`TIKTOKEN_CACHE_DIR`).

        Raises:
            ConfigError: no such encoding, or its file can't be had.
        """
        import tiktoken

        check_unit(name)
        try:
            self._encoding = tiktoken.get_encoding(name)
        except Exception as error:  # requests, hashes and files fail in as many ways
            raise ConfigError(
                f"unit {name!r}: tiktoken can't load it ({type(error).__name__}); set TIKTOKEN_CACHE_DIR to a folder that holds it"
            ) from error
        self.size = self._encoding.max_token_value + 1

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return (ids (tokens,) int32, offsets (n + 1,) int64)."""
        return flatten([self._one(text) for text in texts])

    def _one(self, text: str) -> np.ndarray:
        try:
            return self._encoding.encode_to_numpy(text, disallowed_special=())
        except ValueError:  # the regex ran out of stack on a long run of white space: stated cuts, so still one result
            cuts = range(0, len(text), _CUT)
            return np.concatenate([self._encoding.encode_to_numpy(text[i : i + _CUT], disallowed_special=()) for i in cuts])

    def contents(self) -> list[bytes]:
        """Return the bytes of each id; ids of special tokens and gaps get empty bytes."""
        found = [b""] * self.size
        for value in self._encoding.token_byte_values():
            found[self._encoding.encode_single_token(value)] = value
        return found


class WordEncoder:
    """Lower-cased words, numbered in order of first appearance in the texts that this encoder has seen.

    For metrics of one side at a time, which count tokens and never ask which they are; `diversity.typings.tokens` types a corpus by words.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self.size = 0

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return (ids (tokens,) int32, offsets (n + 1,) int64)."""
        numbers = self._numbers
        rows = [np.array([numbers.setdefault(word, len(numbers)) for word in words_of(text)], np.int32) for text in texts]
        self.size = len(numbers)
        return flatten(rows)

    def contents(self) -> list[bytes]:
        """Return the words in the order of their numbers."""
        return [word.encode() for word in self._numbers]


def check_unit(unit: str, others: Iterable[str] = ()) -> None:
    """Check that a unit is `word`, one of tiktoken's encodings, or one of the others.

    Raises:
        ConfigError: it is none; the message names the near matches.
    """
    import tiktoken

    known = ["word", *others, *tiktoken.list_encoding_names()]
    if unit not in known:
        raise ConfigError(f"unknown unit {unit!r}{near_matches(unit, known)}")


def load_encoder(unit: str, folder: Path | None, *, exact: bool = True, check_on: Sequence[str] = ()) -> Encoder:
    """Return the encoder of a micro unit.

    Args:
        unit: "" for the model's own tokenizer, or the name of a tiktoken encoding.
        folder: the model's folder with tokenizer.json; needed for the unit "".
        exact: whether the tiktoken twin may be used. It changes the speed, never the ids.
        check_on: texts that the twin must encode as Hugging Face does, or else it is not used.

    Raises:
        ConfigError: the unit or the tokenizer can't be had.
    """
    if unit:
        return TiktokenEncoder(unit)
    spec = read_spec(folder)
    if exact:
        try:
            twin = ExactEncoder(spec)
            if not disagreements(spec, twin, check_on):
                return twin
            log.warning("%s: the tiktoken twin differs on a text of this corpus, so the Hugging Face tokenizer is used", folder)
        except Inexact as reason:
            log.info("%s: no exact tiktoken twin (%s), so the Hugging Face tokenizer is used", folder, reason)
    return HuggingFaceEncoder(spec)


def read_spec(folder: Path | None) -> dict[str, Any]:
    """Return the parsed tokenizer.json of a model's folder.

    Raises:
        ConfigError: it isn't there or isn't JSON.
    """
    if folder is None:
        raise ConfigError("the model's tokenizer is wanted, but no model folder is given")
    path = Path(folder) / "tokenizer.json"
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} isn't there: micro types need a fast tokenizer (tokenizer.json)") from None
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from None


def disagreements(spec: dict[str, Any], encoder: Encoder, texts: Sequence[str]) -> list[int]:
    """Return the indices of the texts that the encoder and the spec's Hugging Face tokenizer encode differently."""
    ids, offsets = encoder.encode(texts)
    truth, bounds = HuggingFaceEncoder(spec).encode(texts)
    pairs = zip(itertools.pairwise(offsets), itertools.pairwise(bounds), strict=True)
    return [i for i, ((a, b), (c, d)) in enumerate(pairs) if not np.array_equal(ids[a:b], truth[c:d])]


def flatten(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return (values int32, offsets (n + 1,) int64) of n arrays, one behind the other."""
    offsets = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    flat = np.concatenate(parts) if parts else np.empty(0)
    return flat.astype(np.int32, copy=False), offsets


def label(content: bytes) -> str:
    """Return a content as a person can read it: bytes that are no UTF-8 are escaped."""
    return content.decode("utf-8", "backslashreplace")


def _has_unassigned(text: str) -> bool:
    """Return whether a code point is one that this Python's Unicode has not assigned."""
    return any(unicodedata.category(char) == "Cn" for char in set(text))
