"""Whether a tokenizer.json has an exact `tiktoken.Encoding`, and out of what to build it.

tiktoken joins the neighbours whose union has the lowest id; a tokenizer.json lists its merges. The two take the same
steps when merge order is id order and the merges alone turn the spelling of each token into that token: while u and v
lie side by side and u + v is a token t, the merges so far inside t are those of t on its own; these end in t, so (u, v)
is one of them. Of pre-tokenizers only those known by heart have a twin.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Digits(individual_digits) cuts before the byte-level regex runs, so white space before a digit ends its piece.
_GPT2_DIGITS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


class Inexact(ValueError):
    """A tokenizer without an exact tiktoken twin; the message says why."""


def ordinary_added_tokens(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the added tokens that are vocabulary (as runs of spaces are in some models), not control."""
    return [token for token in spec.get("added_tokens") or [] if not token.get("special")]


def is_byte_level(spec: dict[str, Any]) -> bool:
    """Return whether token strings spell bytes in GPT-2's alphabet."""
    parts = _pre_tokenizers(spec)
    return spec["model"].get("type") == "BPE" and any(part["type"] == "ByteLevel" for part in parts)


def token_bytes(name: str) -> bytes:
    """Return the bytes of a token of a byte-level vocabulary; a token outside the byte alphabet is its UTF-8."""
    alphabet = _byte_alphabet()
    try:
        return bytes(alphabet[char] for char in name)
    except KeyError:
        return name.encode()


def mergeable_ranks(spec: dict[str, Any]) -> dict[bytes, int]:
    """Return the bytes and id of each token that the merges reach, as tiktoken wants them.

    Raises:
        Inexact: the model isn't plain byte-level BPE, its merges aren't in id order, or some token is not reached.
    """
    model = spec["model"]
    if not is_byte_level(spec):
        raise Inexact("no byte-level BPE")
    odd = [key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback") if model.get(key)]
    if odd:
        raise Inexact(f"it has {odd[0]}")
    vocab: dict[str, int] = model["vocab"]
    alphabet = _byte_alphabet()
    ranks = {bytes([byte]): vocab[char] for char, byte in alphabet.items() if char in vocab}
    last = -1
    for merge in model["merges"]:
        name = "".join(merge.split(" ") if isinstance(merge, str) else merge)
        number = vocab.get(name, -1)
        if number < last or number < 0:
            raise Inexact(f"merge order is not id order at {name!r}")
        last = number
        ranks[token_bytes(name)] = number
    if not model.get("ignore_merges"):
        _check_reached(spec, ranks)
    return ranks


def twin_pattern(spec: dict[str, Any]) -> str:
    """Return tiktoken's pattern for a pre-tokenizer known by heart.

    Raises:
        Inexact: it is another one, or there is a normaliser other than NFC.
    """
    normalizer = spec.get("normalizer")
    if normalizer is not None and normalizer != {"type": "NFC"}:
        raise Inexact(f"normalizer {normalizer.get('type')}")
    shape = [_shape(part) for part in _pre_tokenizers(spec)]
    if shape == ["bytes+regex"]:
        return _GPT2
    if shape == ["digits", "bytes+regex"]:
        return _GPT2_DIGITS
    for pattern in (_LLAMA3, _QWEN2):
        if shape == [pattern, "bytes"]:
            return pattern
    raise Inexact("a pre-tokenizer without a known twin")


def _shape(part: dict[str, Any]) -> str:
    """Return one word, or the pattern, for a pre-tokenizer whose behaviour is known; "?" for any other."""
    if part["type"] == "ByteLevel" and not part.get("add_prefix_space"):
        return "bytes+regex" if part.get("use_regex", True) else "bytes"
    if part["type"] == "Digits" and part.get("individual_digits"):
        return "digits"
    if part["type"] == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
        return str(part["pattern"].get("Regex", "?"))
    return "?"


def _pre_tokenizers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    found = spec.get("pre_tokenizer") or {"type": "none"}
    return found["pretokenizers"] if found["type"] == "Sequence" else [found]


def _check_reached(spec: dict[str, Any], ranks: dict[bytes, int]) -> None:
    """Raise Inexact unless the merges turn the spelling of each token into that token."""
    from tokenizers import Tokenizer

    model = Tokenizer.from_str(json.dumps({**_EMPTY_SPEC, "model": spec["model"]})).model
    spell = {byte: char for char, byte in _byte_alphabet().items()}
    for content, number in ranks.items():
        name = "".join(spell[byte] for byte in content)
        if [token.id for token in model.tokenize(name)] != [number]:
            raise Inexact(f"merges don't reach {name!r}")


_EMPTY_SPEC: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
}


@cache
def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's letter for each byte: printable Latin-1 stands for itself, the rest is counted up from U+0100."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(b): b for b in printable}, **{chr(256 + i): b for i, b in enumerate(others)}}
