"""The formats that rows come in, told by their columns, and the columns that a mapping may name."""

from __future__ import annotations

from diversity.config import near_matches

MAPPABLE = ("instruction", "input", "response", "messages", "source")
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}

# Formats in the order in which they are tried. A row is of a format if it has at least one column of each group.
FORMATS: tuple[tuple[str, tuple[frozenset[str], ...]], ...] = (
    ("messages", (frozenset({"messages"}),)),
    ("sharegpt", (frozenset({"conversations", "conversation"}),)),
    ("alpaca", (frozenset({"instruction"}), frozenset({"output", "response"}))),
    ("prompt-completion", (frozenset({"prompt"}), frozenset({"completion", "response"}))),
)
KNOWN_COLUMNS = frozenset({"input", "source"}).union(*(group for _, groups in FORMATS for group in groups))


def check_columns(columns: dict[str, str]) -> dict[str, str]:
    """Return the mapping if it names `messages`, or both `instruction` and `response`.

    Raises:
        ValueError: a field that doesn't exist (with its near matches), or one that is needed and not there.
    """
    for field in columns:
        if field not in MAPPABLE:
            raise ValueError(f"columns: unknown field {field!r}{near_matches(field, MAPPABLE)}")
    if "messages" not in columns and not {"instruction", "response"} <= columns.keys():
        raise ValueError("columns: map either messages, or both instruction and response")
    if "messages" in columns and {"instruction", "input", "response"} & columns.keys():
        raise ValueError("columns: map messages, or instruction and response, but not both")
    return columns
