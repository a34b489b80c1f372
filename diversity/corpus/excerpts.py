"""How a row that can't be used begins, for people: a few hundred characters, valid UTF-8 whatever the row holds."""

from __future__ import annotations

import json
from typing import Any

EXCERPT_CHARS = 300


def excerpt(row: Any) -> str:
    """Return the beginning of a row for people, valid UTF-8 whatever the row holds."""
    if isinstance(row, bytes):
        return row[:EXCERPT_CHARS].decode("utf-8", "backslashreplace")[:EXCERPT_CHARS]
    try:
        shown = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False, default=repr)
    except (TypeError, ValueError, RecursionError) as error:
        shown = f"<{kind_of(row)} that can't be shown: {type(error).__name__}>"
    return shown[:EXCERPT_CHARS].encode("utf-8", "backslashreplace").decode("utf-8")[:EXCERPT_CHARS]


def kind_of(value: Any) -> str:
    """Return what a person calls the type of a JSON value."""
    if value is None:
        return "null"
    if isinstance(value, float) and value != value:
        return "NaN"
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "list", dict: "object"}
    return names.get(type(value), type(value).__name__)
