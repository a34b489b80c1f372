"""What a row says: rows of every known format become messages, tools and what stands beside them, or a reason why not.

A row's format is told by the row's own columns and never by its neighbours: shuffled rows, other blocks and mixed files give the same
samples. What a row holds and no field reads is named, so that whoever counts rows can say what was not carried.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from diversity.corpus.excerpts import kind_of
from diversity.corpus.formats import BESIDE, OURS, PREFERENCE, TELLING, format_of
from diversity.corpus.turns import Unusable, as_list, as_tools, called, read_turns

Message = dict[str, Any]

_OUR_ID = re.compile("[0-9a-f]{32}")
_BESIDE = frozenset().union(*BESIDE.values())


class Read(NamedTuple):
    """What one row says, before it has an id.

    Attributes:
        format: its name in `formats.FORMATS`, or `mapped`.
        messages: with only the keys that are present.
        tools: as JSON values, or None.
        source: the row's own, or None.
        score: the row's quality score, or None.
        unused: columns, and keys of messages as `messages[].key`, that hold something and were not read.
    """

    format: str
    messages: list[Message]
    tools: list[Any] | None
    source: str | None
    score: float | None
    unused: tuple[str, ...]


def read_row(row: Any, columns: Mapping[str, str] | None = None) -> Read:
    """Return what a row says.

    Args:
        row: what a reader yielded.
        columns: field to column, as in `CorpusConfig.columns`; fields that it doesn't name are found by themselves.

    Raises:
        Unusable: it says nothing that can be learnt, or something that can't be carried.
    """
    if not isinstance(row, Mapping):
        raise Unusable(f"row is no object ({kind_of(row)})")
    fields = _Fields(row, columns or {})
    name, messages = fields.conversation()
    messages = _with_reasoning(messages, fields.beside("reasoning"))
    messages = [*_system(messages, fields.beside("system")), *_history(fields.beside("history"), fields), *messages]
    _check(messages)
    source, tools, score = fields.beside("source", str), as_tools(fields.beside("tools")), _score(fields.beside("score"))
    return Read(name, messages, tools, source, score, fields.unused())


def plain_pair(row: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Return (format, instruction, response) of a row that holds one exchange in texts and nothing beside; None for any other row.

    Most rows of most corpora are such. What this returns, `read_row` says too, in several times the time.
    """
    columns = _pair_columns(tuple(row))
    if columns is None:
        return None
    name, asked, said, more = columns
    instruction, response, added = row[asked], row[said], row[more] if more else None
    if type(instruction) is not str or type(response) is not str or not (added is None or type(added) is str):
        return None
    if name == "prompt-completion" and instruction.startswith("["):
        return None  # perhaps messages as text
    if added:
        instruction = f"{instruction}\n\n{added}"
    return (name, instruction, response) if instruction and response and not instruction.isspace() and not response.isspace() else None


@lru_cache(maxsize=1024)
def _pair_columns(names: tuple[str, ...]) -> tuple[str, str, str, str | None] | None:
    """Return (format, columns of instruction, response and input) where rows with these columns are one exchange and hold nothing else."""
    name = format_of(TELLING.intersection(names))
    if name not in ("alpaca", "prompt-completion"):
        return None
    asked, *others = sorted(names, key=lambda column: column not in ("instruction", "prompt"))
    more = "input" if name == "alpaca" and "input" in others else None
    said = [column for column in others if column != more]
    return (name, asked, said[0], more) if len(said) == 1 else None


def read_prompt(value: Any) -> list[Message]:
    """Return the messages of a prompt: a text, or a conversation that ends with the user's turn.

    Raises:
        Unusable: it is neither.
    """
    messages = [{"role": "user", "content": value}] if isinstance(value, str) else read_turns(value)
    if not messages or messages[-1]["role"] != "user":
        raise Unusable("the last turn is not the user's")
    if not _filled(messages[-1]):
        raise Unusable("prompt is empty")
    return messages


def detect_format(row: Mapping[str, Any]) -> str | None:
    """Return the first format all of whose columns hold something, else the first whose columns exist, else None."""
    there = TELLING.intersection(row)
    return format_of(frozenset(name for name in there if row[name] is not None)) or format_of(there)


class _Fields:
    """A row by its fields. Which columns were read is remembered, so that the others can be named."""

    def __init__(self, row: Mapping[str, Any], columns: Mapping[str, str]) -> None:
        self._row = row
        self._columns = columns
        self._alone = _BESIDE.isdisjoint(row)  # nothing stands beside the conversation, as in most rows
        self._read: set[str] = set()
        self.keys: set[str] = set()  # keys of messages that nothing reads

    def conversation(self) -> tuple[str, list[Message]]:
        """Return (format, messages) of the row's own columns, without what stands beside them."""
        if "messages" in self._columns:
            if self._columns["messages"] not in self._row:
                raise Unusable("messages is missing")
            return "mapped", read_turns(self._either(self._columns["messages"]), self.keys)
        if "instruction" in self._columns:
            sides = (self._side("instruction", self._columns["instruction"]), self._side("response", self._columns["response"]))
            return "mapped", self._pair(*sides, self._input())
        name = detect_format(self._row)
        if name in ("messages", "sharegpt"):
            return name, read_turns(
                self._either("messages") if name == "messages" else self._either("conversations", "conversation"), self.keys
            )
        if name == "alpaca":
            sides = (self._side("instruction", "instruction"), self._side("response", "output", "response"))
            return name, self._pair(*sides, self._input("input"))
        if name == "prompt-completion":
            return name, self._prompt_and_completion()
        raise Unusable(_nothing_known(self._row))

    def beside(self, field: str, kind: type = object) -> Any:
        """Return what a field beside the conversation holds, if it is of this kind, or None.

        The columns are those of the mapping, else the usual ones.
        """
        usual = () if self._alone else BESIDE.get(field, ())
        for column in (self._columns[field],) if field in self._columns else usual:
            value = _present(self._row.get(column))
            if value is not None and isinstance(value, kind):
                self._read.add(column)
                return value
        return None

    def unused(self) -> tuple[str, ...]:
        """Return the names of what holds something and was not read, in order."""
        if not self.keys and self._read.issuperset(self._row):
            return ()
        ours = _OUR_ID.fullmatch(str(self._row.get("sample_id"))) is not None
        ignored = self._read | OURS | {"instruction", "response"} if ours else self._read  # in our own exports texts follow from messages
        columns = [str(name) for name, value in self._row.items() if name not in ignored and _present(value) is not None]
        return (*columns, *sorted(self.keys)) if columns or self.keys else ()

    def _prompt_and_completion(self) -> list[Message]:
        """Return the turns of a prompt and of a completion, each a text or a list of messages."""
        prompt, completion = self._either("prompt"), self._either("completion", "response")
        spelt = _spells_turns(prompt) and _spells_turns(completion)
        if isinstance(prompt, str) and isinstance(completion, str) and not spelt:
            return self._pair(prompt, completion, self._input())
        if prompt is None or completion is None:
            return self._pair(self._side("instruction", "prompt"), self._side("response", "completion", "response"), None)
        sides = (("instruction", "user", prompt), ("response", "assistant", completion))
        asked, said = (
            [{"role": role, "content": value}] if isinstance(value, str) and not spelt else self._listed(side, value)
            for side, role, value in sides
        )
        return [*asked, *said]

    def _listed(self, side: str, value: Any) -> list[Message]:
        if as_list(value) is None:
            raise Unusable(f"{side} is no string ({kind_of(value)})")
        return read_turns(value, self.keys)

    def _input(self, usual: str | None = None) -> Any:
        """Return what is said beside the instruction, in the mapping's column or the usual one."""
        column = self._columns.get("input", usual)
        return None if column is None else self._either(column)

    def _pair(self, instruction: str, response: str, value: Any) -> list[Message]:
        """Return the messages of a single turn; null and NaN, which tables write for no input, are none."""
        if _present(value) is not None:
            if not isinstance(value, str):
                raise Unusable(f"input is no string ({kind_of(value)})")
            instruction = f"{instruction}\n\n{value}"
        for name, text in (("instruction", instruction), ("response", response)):
            if not text or text.isspace():
                raise Unusable(f"{name} is empty")
        return [{"role": "user", "content": instruction}, {"role": "assistant", "content": response}]

    def _side(self, name: str, *columns: str) -> str:
        """Return the text of a side.

        Raises:
            Unusable: it is missing, or no string.
        """
        value = self._either(*columns)
        if isinstance(value, str):
            return value
        if not any(column in self._row for column in columns):
            raise Unusable(f"{name} is missing")
        raise Unusable(f"{name} is no string ({kind_of(value)})")

    def _either(self, *columns: str) -> Any:
        """Return the first of the columns that holds something, else None."""
        for column in columns:
            if self._row.get(column) is not None:
                self._read.add(column)
                return self._row[column]
        return None


def _spells_turns(text: Any) -> bool:
    """Return whether a text is a list of messages as JSON, as tables hold it."""
    turns = as_list(text) if isinstance(text, str) and text.startswith("[") else None
    return bool(turns) and all(isinstance(turn, Mapping) and not turn.keys().isdisjoint(("role", "from")) for turn in turns or ())


def _present(value: Any) -> Any:
    """Return a value, or None for what stands for nothing: null, NaN, an empty text or list."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return None if isinstance(value, (str, list, tuple, dict)) and not value else value


def _system(messages: list[Message], system: Any) -> list[Message]:
    """Return the system turn that a column adds: none where the conversation begins with the same one."""
    if system is None:
        return []
    if not isinstance(system, str):
        raise Unusable(f"system is no string ({kind_of(system)})")
    turn = {"role": "system", "content": system}
    return [] if messages[:1] == [turn] else [turn]


def _history(history: Any, fields: _Fields) -> list[Message]:
    """Return the turns of Alpaca's history, pairs of a question and an answer; a list of messages is taken as one."""
    if history is None:
        return []
    pairs = as_list(history)
    if pairs is None:
        raise Unusable(f"history is no list ({kind_of(history)})")
    turns: list[Message] = []
    for number, pair in enumerate(pairs):
        listed = as_list(pair)
        if listed is None:
            return read_turns(pairs, fields.keys) if number == 0 else _no_history()
        if len(listed) != 2 or not all(isinstance(text, str) for text in listed):
            _no_history()
        turns += [{"role": "user", "content": listed[0]}, {"role": "assistant", "content": listed[1]}]
    return turns


def _no_history() -> list[Message]:
    raise Unusable("history is no list of pairs of texts")


def _with_reasoning(messages: list[Message], reasoning: Any) -> list[Message]:
    """Return the messages with a column's reasoning in the last assistant's turn."""
    if reasoning is None:
        return messages
    if not isinstance(reasoning, str):
        raise Unusable(f"reasoning is no string ({kind_of(reasoning)})")
    for place in reversed(range(len(messages))):
        if messages[place]["role"] == "assistant":
            if messages[place].get("reasoning_content", reasoning) != reasoning:
                raise Unusable("reasoning in a column and another in the answer")
            return [*messages[:place], {**messages[place], "reasoning_content": reasoning}, *messages[place + 1 :]]
    return messages


def _score(value: Any) -> float | None:
    """Return a quality score; text that spells a number is one."""
    if value is None:
        return None
    try:
        score = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise Unusable(f"score is no number ({kind_of(value)})")
    return score


def _filled(message: Message) -> bool:
    content = message.get("content") or ""
    return called(message) or bool(content and not content.isspace())


def _check(messages: list[Message]) -> None:
    """Check that somebody asks something and is answered, and that an answer is learnt.

    Raises:
        Unusable: no non-empty user turn before an assistant turn with text or a tool call, or none that counts.
    """
    asked = answered = False
    for message in messages:
        if message["role"] == "user" and not asked:
            asked = _filled(message)
        elif asked and message["role"] == "assistant" and _filled(message):
            answered = True
            if message.get("weight", 1):
                return
    raise Unusable("nothing to learn: every answer has weight 0" if answered else "no user turn followed by an assistant turn")


def _nothing_known(row: Mapping[str, Any]) -> str:
    """Return the reason for a row of no format: what it is instead, or the side that is missing where there is the other."""
    if row.keys() >= PREFERENCE:
        return "preference row (chosen and rejected)"
    if any(name in row for name in ("instruction", "prompt")):
        return "response is missing"
    if any(name in row for name in ("output", "response", "completion")):
        return "instruction is missing"
    if "text" in row:
        return "a text without instruction and response"
    return "no known columns"
