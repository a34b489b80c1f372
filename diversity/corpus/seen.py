"""What was seen in rows beside samples: why some can't be used, what they look like, what would help, and what nobody carries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diversity.corpus.formats import format_of
from diversity.corpus.samples import Rejection

LOOKED_AT = 5000  # cells of unusable rows whose columns are told
SHOWN_CHARS = 120
MOST_TOLD = 20
# Columns that other data has in the place of ours, for what an error proposes.
ASKED = ("instruction", "prompt", "question", "query", "problem", "input", "text")
SAID = ("response", "output", "completion", "answer", "solution", "reply", "chosen")
CONVERSATIONS = ("messages", "conversations", "conversation", "dialog", "dialogue", "turns", "chat", "data")


@dataclass
class Seen:
    """What rows that can't be used look like, and what the others hold that nothing reads.

    Attributes:
        unused: how many rows hold something in a column, or in a key of a message, that is not carried.
        columns: how many of the first unusable rows have each column.
        roles: how many of their messages each role has, as written.
        examples: (file, row number, excerpt) of the first row with each reason.
    """

    unused: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)
    examples: dict[str, tuple[str, int, str]] = field(default_factory=dict)

    def refuse(self, file: str, number: int, row: Any, why: Rejection) -> None:
        """Take in a row that can't be used."""
        self.examples.setdefault(why.reason, (file, number, why.excerpt))
        if isinstance(row, Mapping) and self.columns.total() < LOOKED_AT:
            self.columns.update(str(name) for name in row)
            self.roles.update(roles_of(row))

    def add(self, other: Seen) -> None:
        """Take in what another batch saw."""
        self.unused.update(other.unused)
        self.columns.update(other.columns)
        self.roles.update(other.roles)
        self.examples = {**other.examples, **self.examples}

    def explained(self, reason: str) -> list[str]:
        """Return an example of a reason, what the rows have, and what would help; each a part of a sentence."""
        parts = []
        if reason in self.examples:
            file, row, shown = self.examples[reason]
            parts.append(f"e.g. {file}, row {row}: {' '.join(shown[:SHOWN_CHARS].split())}")
        return [part for part in (*parts, self.told(), hint(reason, self.columns)) if part]

    def plain(self) -> dict[str, Any]:
        """Return it as JSON values; `of` reads them again."""
        return {**{name: dict(getattr(self, name)) for name in ("unused", "columns", "roles")}, "examples": self.examples}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Seen:
        """Return what `plain` gave."""
        counts = {name: Counter(plain[name]) for name in ("unused", "columns", "roles")}
        return cls(**counts, examples={reason: (file, row, shown) for reason, (file, row, shown) in plain["examples"].items()})

    def told(self) -> str:
        """Return columns and roles as written, for people."""
        columns = f"the columns are {', '.join(name for name, _ in commonest_first(self.columns)[:12])}" if self.columns else ""
        roles = f"the roles {', '.join(name for name, _ in commonest_first(self.roles)[:8])}" if self.roles else ""
        return " and ".join(part for part in (columns, roles) if part)


def told_unused(unused: Mapping[str, int]) -> str:
    """Return what no field reads, for people: column `foo` of 300 rows."""
    told = [f"`{name}` of {count} rows" for name, count in commonest_first(unused)]
    return ", ".join(told[:MOST_TOLD]) + (f" and {len(told) - MOST_TOLD} others" if len(told) > MOST_TOLD else "")


def hint(reason: str, columns: Mapping[str, int]) -> str:
    """Return what would make rows usable that have these columns and are refused for this reason."""
    if reason.startswith("preference row"):
        return "to learn the chosen answers: corpus.columns='{instruction: prompt, response: chosen}' (conversations: '{messages: chosen}')"
    written = {name.strip().lower(): name for name in columns}
    asked, said = (next((written[name] for name in names if name in written), None) for names in (ASKED, SAID))
    if asked and said and format_of(frozenset({asked, said})) is None:
        return f"map them, e.g. corpus.columns='{{instruction: {asked}, response: {said}}}'"
    turns = next((name for name in CONVERSATIONS if name in columns), None)
    if turns:
        return f"map them, e.g. corpus.columns='{{messages: {turns}}}'"
    return "map other columns with corpus.columns" if "column" in reason or "missing" in reason else ""


def roles_of(row: Mapping[str, Any]) -> list[str]:
    """Return who speaks in a row's conversations, as written."""
    turns = [turn for value in row.values() if isinstance(value, list) for turn in value if isinstance(turn, Mapping)]
    return [str(turn.get("role") or turn.get("from"))[:40] for turn in turns if turn.get("role") or turn.get("from")]


def commonest_first(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return (name, count), the largest counts first, ties by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
