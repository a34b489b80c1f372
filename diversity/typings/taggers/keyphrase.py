"""Keyphrases as tags: a lexical stand-in for the tags that a language model would give, for English text only.

A text's tags are its intent (`ask:what`, `do:write`: the first word of an instruction), the form it has (code, list,
table, link, formula, number, another script), and its phrases: runs of words between stop words and marks, cut from the
end into at most three words, the most frequent in the text first. Forms say little about a corpus of one kind only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from diversity.artifact import Storage
from diversity.typings.english import STOP_WORDS
from diversity.typings.taggers import TaggerConfig

_VERSION = 1
_MAX_CHARS = 4000
_MAX_WORDS = 3
_WORD = re.compile(r"[^\W\d_](?:[\w'-]*\w)?\+*#?")
_CUT = re.compile(r"[^\w' +#-]+|(?<!\w)\d[\w.,]*|_")
_FIRST = re.compile(r"\W*([A-Za-z]+)(?:['’]s)?\b(?=[ ,?]|$)")
_QUESTION = "what how why who whom whose when where which is are was were do does did can could will would should has have if"
_ASKS = frozenset(_QUESTION.split())
_FORMS = (
    ("form:code", re.compile(r"```|^[ \t]*(?:def|class|import|from|function|public|private|#include|SELECT|<\?php)\b|[;{][ \t]*$", re.M)),
    ("form:list", re.compile(r"^[ \t]*(?:[-*•]|\d+[.)])[ \t]+\S.*\n(?:.*\n)*?[ \t]*(?:[-*•]|\d+[.)])[ \t]+\S", re.M)),
    ("form:table", re.compile(r"^[ \t]*\|.*\|.*\|[ \t]*$|\t.*\t", re.M)),
    ("form:link", re.compile(r"https?://|www\.")),
    ("form:formula", re.compile(r"\$[^$\n]+\$|\\(?:frac|sum|int|sqrt)\b|\d\s*[-+*/^=×÷]\s*\(?\d")),
    ("form:number", re.compile(r"\A\W*[-+]?\d[\d.,:/%\s-]*\W*\Z")),
    ("form:cjk", re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")),
    ("form:cyrillic", re.compile(r"[\u0400-\u04ff]{3}")),
    ("form:arabic", re.compile(r"[\u0600-\u06ff]{2}")),
    ("form:indic", re.compile(r"[\u0900-\u0dff]{2}")),
    ("form:emoji", re.compile(r"[\U0001f300-\U0001faff]")),
)


class KeyphraseTagger:
    """Raw tags by rules: no model, no state, each text on its own."""

    def __init__(self, config: TaggerConfig, side: str, storage: Storage | None = None) -> None:
        """Remember how much of a text is read: of a response the configured first characters, else the first 4000."""
        del storage
        self._instruction = side == "instruction"
        self._chars = _MAX_CHARS if self._instruction else config.response_chars

    @staticmethod
    def identity(config: TaggerConfig) -> dict[str, Any]:
        """Return the version of the rules."""
        return {"name": config.name, "version": _VERSION}

    def __call__(self, texts: Sequence[str]) -> list[list[str]]:
        """Return each text's raw tags: intent, forms, then phrases by their number in the text and their place."""
        return [self._tags(text[: self._chars]) for text in texts]

    def _tags(self, text: str) -> list[str]:
        found = [name for name, pattern in _FORMS if pattern.search(text)]
        phrases = Counter(_phrases(text.lower().replace("’", "'")))
        if self._instruction and (intent := _intent(text)):
            found.insert(0, intent)
            phrases.pop(intent.partition(":")[2], None)  # one of do:x and x
        ranked = sorted(phrases, key=phrases.__getitem__, reverse=True)  # stable: equals stay in their order in the text
        return found + ranked


def _intent(text: str) -> str | None:
    """Return `ask:<word>` for a question word, `do:<word>` for another first word that is no stop word."""
    first = _FIRST.match(text)
    if first is None:
        return None
    word = first.group(1).lower()
    if word in _ASKS:
        return f"ask:{word}"
    return f"do:{word}" if word not in STOP_WORDS else None


def _phrases(text: str) -> list[str]:
    """Return the phrases of lower-cased text in their order."""
    found = []
    for piece in _CUT.split(text):
        run: list[str] = []
        for word in _WORD.findall(piece):
            if word in STOP_WORDS or len(word) < 2:
                found += _chunks(run)
                run = []
            else:
                run.append(word)
        found += _chunks(run)
    return found


def _chunks(run: list[str]) -> list[str]:
    """Return a run of words cut from its end into phrases of at most three, since an English phrase ends in its head."""
    ends = range(len(run), 0, -_MAX_WORDS)
    return [" ".join(run[max(0, end - _MAX_WORDS) : end]) for end in reversed(ends)]
