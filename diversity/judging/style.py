"""How an answer is dressed: its headers, list items and bold words, as Arena-Hard counts them, beside those of another answer.

A judge may like markdown as it may like length. What stands in fenced code is no markdown: `#` begins a comment there.
"""

from __future__ import annotations

import re
from functools import lru_cache

COLUMNS = ("more_headers", "more_lists", "more_bold")
_CODE = re.compile(r"^[ \t]*(```|~~~).*?(?:^[ \t]*\1[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_KINDS = (
    re.compile(r"^ {0,3}#{1,6}[ \t]+\S", re.MULTILINE),
    re.compile(r"^[ \t]*(?:[-*+]|\d+[.)])[ \t]+\S", re.MULTILINE),
    re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
)


@lru_cache(maxsize=1 << 14)
def markdown(text: str) -> tuple[int, int, int]:
    """Return how many headers, list items and bold runs a text has outside of code."""
    plain = _CODE.sub("", text)
    headers, items, bold = (sum(1 for _ in kind.finditer(plain)) for kind in _KINDS)
    return headers, items, bold


def more_markdown(own: str, other: str) -> dict[str, float]:
    """Return, for each kind, (a - b) / (a + b + 1) of two answers' counts: 0 where they have as many, within (-1, 1)."""
    pairs = zip(COLUMNS, markdown(own), markdown(other), strict=True)
    return {name: (a - b) / (a + b + 1) for name, a, b in pairs}
