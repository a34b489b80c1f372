"""The formats that rows come in, told by their columns; the columns that say something beside them; and what a mapping may name."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache

from diversity.config import near_matches

MAPPABLE = ("instruction", "input", "response", "messages", "system", "history", "tools", "reasoning", "source", "score")

# Who speaks, in lower case, as the formats write it. `CALL` marks a turn that holds nothing but a tool call as JSON.
CALL = "function_call"
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "ai"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "ipython", "tool_response", "function_response"), "tool"),
    **dict.fromkeys((CALL, "tool_call"), CALL),
}

# Formats in the order in which they are tried. A row is of a format if it has at least one column of each group.
FORMATS: tuple[tuple[str, tuple[frozenset[str], ...]], ...] = (
    ("messages", (frozenset({"messages"}),)),
    ("sharegpt", (frozenset({"conversations", "conversation"}),)),
    ("alpaca", (frozenset({"instruction"}), frozenset({"output", "response"}))),
    ("prompt-completion", (frozenset({"prompt"}), frozenset({"completion", "response"}))),
)
# Fields that any format may have beside its own, by the columns that hold them unless a mapping says otherwise; the first counts.
BESIDE: dict[str, tuple[str, ...]] = {
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "tools": ("tools", "functions"),
    "reasoning": ("reasoning_content", "thinking", "reasoning"),
    "source": ("source",),
}
OURS = frozenset({"sample_id", "chosen_for"})  # what our own exports say about a sample; it is found out again
PREFERENCE = frozenset({"chosen", "rejected"})
_FORMATS_OWN = frozenset({"input", "text"}).union(*(group for _, groups in FORMATS for group in groups))
TELLING = frozenset().union(*(group for _, groups in FORMATS for group in groups))
KNOWN_COLUMNS = _FORMATS_OWN.union(PREFERENCE, OURS, *BESIDE.values())


@lru_cache(maxsize=1 << len(TELLING))
def format_of(columns: frozenset[str]) -> str | None:
    """Return the first format that has one of the columns in each of its groups; rows of a file have few sets of them."""
    return next((name for name, groups in FORMATS if all(not group.isdisjoint(columns) for group in groups)), None)


def wanted(names: Collection[str], mapped: Collection[str]) -> list[str]:
    """Return which columns of a table can matter: all of them where its names make no known format and the mapping does not find its own.

    Args:
        names: of the table's columns.
        mapped: columns that a mapping names.
    """
    told = format_of(TELLING.intersection(names)) is not None or (len(mapped) > 0 and set(mapped) <= set(names))
    return [name for name in names if not told or name in KNOWN_COLUMNS or name in mapped]


def check_columns(columns: dict[str, str]) -> dict[str, str]:
    """Return the mapping if it names a conversation, both sides of an exchange, or only what stands beside a format that is known.

    Raises:
        ValueError: a field that doesn't exist (with its near matches), or one that is needed and not there.
    """
    for field in columns:
        if field not in MAPPABLE:
            raise ValueError(f"columns: unknown field {field!r}{near_matches(field, MAPPABLE)}")
    sides = {"instruction", "response"} & columns.keys()
    if len(sides) == 1 and "messages" not in columns:
        raise ValueError("columns: map either messages, or both instruction and response")
    if "messages" in columns and {"instruction", "input", "response"} & columns.keys():
        raise ValueError("columns: map messages, or instruction and response, but not both")
    return columns
