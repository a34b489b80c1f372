"""Words as units: what stands between white space, cut at Unicode's word boundaries where a script is written without spaces.

Chinese, Japanese, Thai, Lao, Khmer and Burmese have no spaces between words: a text of theirs would be one word, of its own, and any
such corpus as diverse as can be. Inside a run that holds a letter of these scripts the boundaries of Unicode's annex 29 cut; without a
dictionary they give characters or short clusters, as n-grams of words here do, too (`diversity.corpus.text_match`). What holds no letter
or digit, such as a full stop between two characters, is no word there. Runs of other scripts stay whole, marks and all, as in the paper.
"""

from __future__ import annotations

from collections.abc import Iterable

import regex

_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")
_BOUNDARY = regex.compile(r"(?V1w)\b")
_LETTERS, _LATIN = regex.compile(r"\p{L}"), regex.compile(r"\p{Latin}")
_LETTER = regex.compile(r"[\p{L}\p{M}\p{N}]")


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, in order and with repeats."""
    runs = text.lower().split()
    if text.isascii() or not _UNSPACED.search(text):
        return runs
    return [word for run in runs for word in (_cut(run) if _UNSPACED.search(run) else (run,))]


def other_scripts(texts: Iterable[str]) -> float:
    """Return the share of texts more than half of whose letters are not Latin, of those that have letters."""
    foreign = lettered = 0
    for text in texts:
        letters = len(_LETTERS.findall(text))
        lettered += letters > 0
        foreign += 2 * len(_LATIN.findall(text)) < letters
    return foreign / max(1, lettered)


def _cut(run: str) -> list[str]:
    return [piece for piece in _BOUNDARY.split(run) if _LETTER.search(piece)]
