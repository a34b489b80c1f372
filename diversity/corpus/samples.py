"""The canonical sample: rows of every known format become samples, or a reason for rejecting them.

Nothing is stripped or normalised, so that two people who ingest the same rows get the same ids. A row's format is told by the row's own
columns and never by its neighbours: shuffled rows, other blocks and mixed files give the same samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from json.encoder import encode_basestring as _quote
from typing import Any

import pyarrow as pa

from diversity.corpus.excerpts import excerpt, kind_of
from diversity.corpus.formats import FORMATS, ROLES

MESSAGE_TYPE = pa.struct([pa.field("role", pa.string()), pa.field("content", pa.large_string())])
SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string()),
        pa.field("source", pa.string()),
        pa.field("instruction", pa.large_string()),
        pa.field("response", pa.large_string()),
        pa.field("messages", pa.list_(MESSAGE_TYPE)),
    ]
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One usable row. `messages` is what training sees; the texts are what typing sees."""

    sample_id: str
    source: str
    instruction: str
    response: str
    messages: list[dict[str, str]]
    format: str


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a row can't be used, and how it begins."""

    reason: str
    excerpt: str


class _Unusable(Exception):
    """Carries the reason out of the depth of a row."""


def canonical_json(messages: Iterable[Mapping[str, str]]) -> bytes:
    """Return the UTF-8 bytes that a sample's id is the hash of.

    They are those of `json.dumps(messages, ensure_ascii=False, sort_keys=True, separators=(",", ":"))`, put together by hand from the
    encoder's own string quoting because that takes a third of the time.

    Raises:
        UnicodeEncodeError: a text holds a lone surrogate.
    """
    spelled = [f'{{"content":{_quote(message["content"])},"role":{_quote(message["role"])}}}' for message in messages]
    return f"[{','.join(spelled)}]".encode()


def sample_id(messages: Iterable[Mapping[str, str]]) -> str:
    """Return blake2b-128 of the canonical JSON of the messages, as 32 hex digits."""
    return blake2b(canonical_json(messages), digest_size=16).hexdigest()


def texts(messages: Iterable[Mapping[str, str]]) -> tuple[str, str]:
    """Return (instruction, response): the user's turns and the assistant's, each joined by a blank line."""
    user: list[str] = []
    assistant: list[str] = []
    for message in messages:
        if message["role"] == "user":
            user.append(message["content"])
        elif message["role"] == "assistant":
            assistant.append(message["content"])
    return "\n\n".join(user), "\n\n".join(assistant)


def detect_format(row: Mapping[str, Any]) -> str | None:
    """Return the first format all of whose columns hold something, else the first whose columns exist, else None."""
    for columns in ({name for name, value in row.items() if value is not None}, row.keys()):
        for name, groups in FORMATS:
            if all(not group.isdisjoint(columns) for group in groups):
                return name
    return None


def to_sample(row: Any, *, default_source: str, columns: Mapping[str, str] | None = None) -> Sample | Rejection:
    """Return the sample that a row holds, or why it holds none.

    Args:
        row: what a reader yielded; anything but an object is rejected.
        default_source: the source of rows without a `source` column of their own.
        columns: a mapping as in `CorpusConfig.columns`; it replaces detection.
    """
    try:
        if not isinstance(row, Mapping):
            raise _Unusable(f"row is no object ({kind_of(row)})")
        name, messages = _mapped(row, columns) if columns else _detected(row)
        instruction, response = texts(messages)
        source = row.get(columns.get("source", "source") if columns else "source")
        if not isinstance(source, str) or not source:
            source = default_source
        source.encode("utf-8")
        return Sample(sample_id(messages), source, instruction, response, messages, name)
    except _Unusable as error:
        return Rejection(str(error), excerpt(row))
    except UnicodeEncodeError:
        return Rejection("lone surrogate", excerpt(row))


def to_prompt(value: Any) -> list[dict[str, str]] | Rejection:
    """Return the messages of a prompt, a text or a conversation that ends with the user's turn, or why it is none."""
    try:
        messages = [{"role": "user", "content": value}] if isinstance(value, str) else _turns(value)
        if not messages or messages[-1]["role"] != "user":
            raise _Unusable("the last turn is not the user's")
        if not messages[-1]["content"] or messages[-1]["content"].isspace():
            raise _Unusable("prompt is empty")
        canonical_json(messages)
        return messages
    except _Unusable as error:
        return Rejection(str(error), excerpt(value))
    except UnicodeEncodeError:
        return Rejection("lone surrogate", excerpt(value))


def samples_table(samples: Sequence[Sample]) -> pa.Table:
    """Return the samples as a table of `SAMPLE_SCHEMA`, in the order given."""
    roles = pa.array([message["role"] for sample in samples for message in sample.messages], pa.string())
    contents = pa.array([message["content"] for sample in samples for message in sample.messages], pa.large_string())
    offsets = [0]
    for sample in samples:
        offsets.append(offsets[-1] + len(sample.messages))
    messages = pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.StructArray.from_arrays([roles, contents], fields=list(MESSAGE_TYPE))
    )
    arrays = [
        pa.array([sample.sample_id for sample in samples], pa.string()),
        pa.array([sample.source for sample in samples], pa.string()),
        pa.array([sample.instruction for sample in samples], pa.large_string()),
        pa.array([sample.response for sample in samples], pa.large_string()),
        messages,
    ]
    return pa.Table.from_arrays(arrays, schema=SAMPLE_SCHEMA)


def _detected(row: Mapping[str, Any]) -> tuple[str, list[dict[str, str]]]:
    """Return (format, messages) of a row whose columns say what it is."""
    name = detect_format(row)
    if name == "messages":
        return name, _conversation(row["messages"])
    if name == "sharegpt":
        return name, _conversation(_either(row, "conversations", "conversation"))
    if name == "alpaca":
        response = _side("response", row, "output", "response")
        return name, _pair(_with_input(_side("instruction", row, "instruction"), row.get("input")), response)
    if name == "prompt-completion":
        return name, _pair(_side("instruction", row, "prompt"), _side("response", row, "completion", "response"))
    raise _Unusable(_nothing_known(row))


def _mapped(row: Mapping[str, Any], columns: Mapping[str, str]) -> tuple[str, list[dict[str, str]]]:
    """Return (format, messages) of a row by a column mapping."""
    if "messages" in columns:
        if columns["messages"] not in row:
            raise _Unusable("messages is missing")
        return "mapped", _conversation(row[columns["messages"]])
    instruction = _side("instruction", row, columns["instruction"])
    response = _side("response", row, columns["response"])
    return "mapped", _pair(_with_input(instruction, row.get(columns.get("input", ""))), response)


def _nothing_known(row: Mapping[str, Any]) -> str:
    """Return the reason for a row of no format: the side that is missing where there is the other."""
    if any(name in row for name in ("instruction", "prompt")):
        return "response is missing"
    if any(name in row for name in ("output", "response", "completion")):
        return "instruction is missing"
    return "no known columns"


def _side(name: str, row: Mapping[str, Any], *columns: str) -> str:
    """Return the text of a side.

    Raises:
        _Unusable: it is missing, or no string.
    """
    value = _either(row, *columns)
    if isinstance(value, str):
        return value
    if not any(column in row for column in columns):
        raise _Unusable(f"{name} is missing")
    raise _Unusable(f"{name} is no string ({kind_of(value)})")


def _either(row: Mapping[str, Any], *columns: str) -> Any:
    """Return the first of the columns that holds something, else None."""
    return next((row[column] for column in columns if row.get(column) is not None), None)


def _with_input(instruction: str, value: Any) -> str:
    """Return the instruction with Alpaca's input. null and NaN, which tables write for no input, are none."""
    if value is None or value == "" or kind_of(value) == "NaN":
        return instruction
    if not isinstance(value, str):
        raise _Unusable(f"input is no string ({kind_of(value)})")
    return f"{instruction}\n\n{value}"


def _pair(instruction: str, response: str) -> list[dict[str, str]]:
    """Return the messages of a single turn.

    Raises:
        _Unusable: a side is empty or only white space.
    """
    for name, text in (("instruction", instruction), ("response", response)):
        if not text or text.isspace():
            raise _Unusable(f"{name} is empty")
    return [{"role": "user", "content": instruction}, {"role": "assistant", "content": response}]


def _conversation(turns: Any) -> list[dict[str, str]]:
    """Return the messages of a conversation, with ShareGPT's role names made the usual ones.

    Raises:
        _Unusable: no list of objects with role and content; no non-empty user turn before a non-empty assistant turn.
    """
    messages = _turns(turns)
    asked = False
    for message in messages:
        filled = bool(message["content"]) and not message["content"].isspace()
        if filled and message["role"] == "user":
            asked = True
        elif filled and asked and message["role"] == "assistant":
            return messages
    raise _Unusable("no user turn followed by an assistant turn")


def _turns(turns: Any) -> list[dict[str, str]]:
    """Return a conversation's messages, whoever speaks."""
    if hasattr(turns, "tolist"):
        turns = turns.tolist()
    if not isinstance(turns, (list, tuple)):
        raise _Unusable(f"conversation is no list ({kind_of(turns)})")
    return [_message(turn) for turn in turns]


def _message(turn: Any) -> dict[str, str]:
    if not isinstance(turn, Mapping):
        raise _Unusable(f"message is no object ({kind_of(turn)})")
    role, content = _either(turn, "role", "from"), _either(turn, "content", "value")
    if role is None or role == "":
        raise _Unusable("message without role")
    if not isinstance(role, str):
        raise _Unusable(f"message's role is no string ({kind_of(role)})")
    if content is None:
        raise _Unusable("message without content")
    if not isinstance(content, str):
        raise _Unusable(f"message's content is no string ({kind_of(content)})")
    return {"role": ROLES.get(role, role), "content": content}
