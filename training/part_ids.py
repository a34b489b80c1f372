"""Parts of a conversation become token ids, so that training sees the ids that inference makes out of the same template.

A text between two special tokens is encoded as the tokenizer does it there. Where an answer begins, the ids before it are those of the
prompt alone, because a model that answers begins there too. Content that spells a special token is ordinary text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from diversity.typings.encoders import Encoder, ExactEncoder, HuggingFaceEncoder
from diversity.typings.twin import Inexact
from training.templates import EOS, Part


class PartEncoder:
    """Encodes parts with one tokenizer."""

    def __init__(self, tokenizer: Any, names: Iterable[str] = (), *, fast: bool | None = None) -> None:
        """Prepare an encoder.

        Args:
            tokenizer: a fast tokenizer of transformers.
            names: tokens that count as special beside those that the tokenizer says are.
            fast: encode every text by itself, with the tokenizer's exact twin; None does so where that is the same.
        """
        from tokenizers import Tokenizer

        spelled = tokenizer.backend_tokenizer.to_str()
        spec = json.loads(spelled)
        self.texts = _text_encoder(spelled)
        self.specials = special_tokens(tokenizer, spec)
        vocabulary = tokenizer.get_vocab()
        self.specials |= {name: vocabulary[name] for name in names if name in vocabulary}
        self.fast = _alone_is_the_same(self.texts, spec) if fast is None else fast
        self._hostile = any_of(self.specials)
        self._specials = {name: np.array([number], np.int32) for name, number in self.specials.items()}
        self._eos = tokenizer.eos_token
        if tokenizer.eos_token_id is not None:
            self._specials[EOS] = np.array([tokenizer.eos_token_id], np.int32)
        self._tokenizer = Tokenizer.from_str(spelled)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._spec = spec

    @cached_property
    def _plain(self) -> HuggingFaceEncoder:
        return HuggingFaceEncoder(self._spec)

    def missing(self, names: Iterable[str]) -> list[str]:
        """Return which of some special tokens the tokenizer does not have."""
        return [name for name in names if name not in self._specials]

    def encode(self, conversations: Sequence[Sequence[Part]]) -> list[list[np.ndarray]]:
        """Return each part's ids, `(l,) int32`, for many conversations."""
        if not self.fast:
            return [self._in_context(parts) for parts in conversations]
        texts = list(dict.fromkeys(part.text for parts in conversations for part in parts if not part.special))
        ids, bounds = self.texts.encode(texts)  # a text that comes again and again (a role, a header) is encoded once
        found = {text: ids[start:stop] for text, (start, stop) in zip(texts, pairwise(bounds.tolist()), strict=True)}
        return [[self._specials[part.text] if part.special else found[part.text] for part in parts] for parts in conversations]

    def _in_context(self, parts: Sequence[Part]) -> list[np.ndarray]:
        """Return each part's ids where a text's ids depend on what stands before it."""
        runs = [(special, [part.text for part in run]) for special, run in groupby(parts, key=lambda part: part.special)]
        found: list[np.ndarray] = []
        for number, (special, texts) in enumerate(runs):
            if special:
                found += [self._specials[text] for text in texts]
                continue
            before = runs[number - 1][1][-1] if number else ""
            after = runs[number + 1][1][0] if number + 1 < len(runs) else ""
            found += [np.array(ids, np.int32) for ids in self._section(texts, self._spelled(before), self._spelled(after))]
        return found

    def _spelled(self, special: str) -> str:
        return self._eos if special == EOS else special

    def _section(self, texts: Sequence[str], before: str, after: str) -> Iterator[list[int]]:
        """Yield the ids of each of the texts between two special tokens; those of a text never depend on the texts after it."""
        whole = self._ids(before, "".join(texts), after)
        for number, text in enumerate(texts[:-1]):
            first = self._ids(before, text, "")
            yield first
            if whole[: len(first)] == first and number == len(texts) - 2:
                yield whole[len(first) :]
                return
            before, whole = "\n", self._ids("\n", "".join(texts[number + 1 :]), after)
        yield whole

    def _ids(self, before: str, text: str, after: str) -> list[int]:
        """Return a text's ids between two special tokens, or after a line break where it goes on in the middle of a text."""
        if not text:
            return []
        if self._hostile.search(text):
            return self._hostile_ids(text)
        ids = self._tokenizer.encode(before + text + after, add_special_tokens=False).ids
        head, tail = self._edge(before), self._edge(after)
        if ids[: len(head)] != head:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids[len(head) : len(ids) - len(tail)]

    def _edge(self, text: str) -> list[int]:
        return [self.specials[text]] if text in self.specials else self._tokenizer.encode(text, add_special_tokens=False).ids

    def _hostile_ids(self, text: str) -> list[int]:
        """Return the ids of a text that spells a special token, as the ordinary text that it is."""
        plain = self._plain
        ids = [ids.tolist() for ids in (plain.encode(["\n" + text])[0], plain.encode(["\n"])[0])]
        return ids[0][len(ids[1]) :] if ids[0][: len(ids[1])] == ids[1] else plain.encode([text])[0].tolist()


def special_tokens(tokenizer: Any, spec: dict[str, Any] | None = None) -> dict[str, int]:
    """Return the tokens that no ordinary text yields, with their ids."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str()) if spec is None else spec
    found = {token["content"]: token["id"] for token in spec.get("added_tokens") or [] if token.get("special")}
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    return {**found, **{token: number for token, number in named if number is not None}}


def any_of(names: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that finds any of some tokens, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")


def _alone_is_the_same(texts: Encoder, spec: dict[str, Any]) -> bool:
    """Return whether a text has the same ids whatever stands before it: no space is put before texts, and no special token eats one."""
    eats = any(token.get(flag) for token in spec.get("added_tokens") or [] for flag in ("lstrip", "rstrip", "single_word"))
    return isinstance(texts, ExactEncoder) and not eats


@lru_cache(maxsize=2)
def _text_encoder(tokenizer_json: str) -> Encoder:
    """Return what typing counts tokens with, too: the exact fast twin of the tokenizer where there is one."""
    spec = json.loads(tokenizer_json)
    try:
        return ExactEncoder(spec)
    except Inexact:
        return HuggingFaceEncoder(spec)
