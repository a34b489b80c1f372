"""The canonical sample: what a row says to the model, as messages and tools, under an id that covers all of it.

Nothing is stripped or normalised, so that two people who ingest the same rows get the same ids. In Python a message is a dict that has
only the keys that are present, its tool calls parsed; in tables every message has every field, null where it is absent, and its tool
calls are JSON text with the keys in the order in which they came, since chat templates show them in it. The id covers canonical JSON.
`messages_of` and `stored` turn one into the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from json.encoder import encode_basestring as _quote
from typing import Any, NamedTuple

import pyarrow as pa

from diversity.corpus.excerpts import excerpt
from diversity.corpus.rows import plain_pair, read_prompt, read_row
from diversity.corpus.turns import Unusable, plain_number

Message = dict[str, Any]

MESSAGE_TYPE = pa.struct(
    [
        pa.field("role", pa.string()),
        pa.field("content", pa.large_string()),
        pa.field("tool_calls", pa.large_string()),
        pa.field("name", pa.string()),
        pa.field("tool_call_id", pa.string()),
        pa.field("reasoning_content", pa.large_string()),
        pa.field("weight", pa.float64()),
    ]
)
MESSAGE_FIELDS = tuple(field.name for field in MESSAGE_TYPE)
SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string()),
        pa.field("source", pa.string()),
        pa.field("instruction", pa.large_string()),
        pa.field("response", pa.large_string()),
        pa.field("messages", pa.list_(MESSAGE_TYPE)),
        pa.field("tools", pa.large_string()),
        pa.field("score", pa.float64()),
    ]
)


class Sample(NamedTuple):
    """One usable row. `messages` and `tools` are what training sees; the texts are what typing sees.

    `tools` is JSON text or None; `score` the corpus's own quality score, no part of the id; `unused` names what the row holds
    and nothing reads.
    """

    sample_id: str
    source: str
    instruction: str
    response: str
    messages: list[Message]
    format: str
    tools: str | None = None
    score: float | None = None
    unused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a row can't be used, and how it begins."""

    reason: str
    excerpt: str


_encode = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False).encode


_ROLES = {role: _quote(role) for role in ("system", "user", "assistant", "tool")}
_as_it_is = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def compact_text(value: Any) -> str:
    """Return the JSON of a value with its keys in the order that they have, no spaces; errors as `canonical_text`."""
    return _as_it_is(value)


def canonical_text(value: Any) -> str:
    """Return the canonical JSON of a value: keys in order, no spaces, nothing escaped that need not be.

    Raises:
        ValueError: NaN or infinity.
        TypeError: something that JSON does not know.
    """
    return _encode(value)


def canonical_json(messages: Iterable[Mapping[str, Any]], tools: str | None = None) -> bytes:
    """Return the UTF-8 bytes that a sample's id is the hash of.

    They are those of `json.dumps(messages, ensure_ascii=False, sort_keys=True, separators=(",", ":"))`; with tools, of
    `{"messages": messages, "tools": tools}`. Plain messages are put together by hand from the encoder's own string quoting, which takes
    a third of the time.

    Args:
        messages: as in Python, only with the keys that are present.
        tools: JSON text.

    Raises:
        UnicodeEncodeError: a text holds a lone surrogate.
    """
    spelled = ",".join(
        [
            f'{{"content":{_quote(message["content"])},"role":{_ROLES.get(message["role"]) or _quote(message["role"])}}}'
            if len(message) == 2 and "content" in message
            else _encode(message)
            for message in messages
        ]
    )
    return (f"[{spelled}]" if tools is None else f'{{"messages":[{spelled}],"tools":{_encode(json.loads(tools))}}}').encode()


def sample_id(messages: Iterable[Mapping[str, Any]], tools: str | None = None) -> str:
    """Return blake2b-128 of the canonical JSON of the messages, and of the tools where there are some, as 32 hex digits."""
    return blake2b(canonical_json(messages, tools), digest_size=16).hexdigest()


def texts(messages: Iterable[Mapping[str, Any]]) -> tuple[str, str]:
    """Return (instruction, response): what the user's turns say and what the assistant's do, joined by blank lines.

    A turn says its content and then, as canonical JSON, its tool calls. What it thinks (`reasoning_content`) is no part of it (ours).
    """
    said: dict[str, list[str]] = {"user": [], "assistant": []}
    for message in messages:
        if message["role"] not in said:
            continue
        content, calls = message.get("content"), message.get("tool_calls")
        if content is not None and (content or calls is None):
            said[message["role"]].append(content)
        if calls is not None:
            said[message["role"]].append(_encode(calls))
    return "\n\n".join(said["user"]), "\n\n".join(said["assistant"])


def messages_of(row_messages: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Return the messages of a row as read from a table: only the keys that are present, tool calls parsed.

    A weight that is a whole number is an int, so that it is spelled as training data spells it.
    """
    found = []
    for stored_message in row_messages:
        message = {name: value for name, value in stored_message.items() if value is not None}
        if isinstance(message.get("tool_calls"), str):
            message["tool_calls"] = json.loads(message["tool_calls"])
        if "weight" in message:
            message["weight"] = plain_number(message["weight"])
        found.append(message)
    return found


def stored(messages: Iterable[Mapping[str, Any]]) -> list[Message]:
    """Return messages as a table holds them, the reverse of `messages_of`: every field, tool calls as JSON text."""
    found = []
    for message in messages:
        row = {name: message.get(name) for name in MESSAGE_FIELDS}
        if row["tool_calls"] is not None:
            row["tool_calls"] = _as_it_is(row["tool_calls"])
        found.append(row)
    return found


def to_sample(row: Any, *, default_source: str, columns: Mapping[str, str] | None = None) -> Sample | Rejection:
    """Return the sample that a row holds, or why it holds none.

    Args:
        row: what a reader yielded; anything but an object is rejected.
        default_source: the source of rows without a `source` column of their own.
        columns: a mapping as in `CorpusConfig.columns`; it goes before detection.
    """
    if not columns and type(row) is dict and (pair := plain_pair(row)) is not None:
        try:
            return _plain_sample(default_source, *pair)
        except UnicodeEncodeError:
            pass  # told below
    return _any_sample(row, default_source, columns)


def _plain_sample(source: str, format: str, instruction: str, response: str) -> Sample:
    """Return the sample of one exchange in texts; errors as `canonical_json`."""
    source.encode("utf-8")
    messages = [{"role": "user", "content": instruction}, {"role": "assistant", "content": response}]
    return Sample(sample_id(messages), source, instruction, response, messages, format)


def _any_sample(row: Any, default_source: str, columns: Mapping[str, str] | None) -> Sample | Rejection:
    """Return the sample of a row of whatever format, or why it holds none."""
    try:
        found = read_row(row, columns)
        tools = None if found.tools is None else _as_it_is(found.tools)
        instruction, response = texts(found.messages)
        source = found.source or default_source
        source.encode("utf-8")
        identity = sample_id(found.messages, tools)
        return Sample(identity, source, instruction, response, found.messages, found.format, tools, found.score, found.unused)
    except Unusable as error:
        return Rejection(str(error), excerpt(row))
    except UnicodeEncodeError:
        return Rejection("lone surrogate", excerpt(row))
    except (ValueError, TypeError, RecursionError):
        return Rejection("tools or tool calls that JSON can't spell", excerpt(row))


def to_prompt(value: Any) -> list[Message] | Rejection:
    """Return the messages of a prompt, a text or a conversation that ends with the user's turn, or why it is none."""
    try:
        messages = read_prompt(value)
        canonical_json(messages)
        return messages
    except Unusable as error:
        return Rejection(str(error), excerpt(value))
    except UnicodeEncodeError:
        return Rejection("lone surrogate", excerpt(value))
    except (ValueError, TypeError, RecursionError):
        return Rejection("tool calls that JSON can't spell", excerpt(value))


def samples_table(samples: Sequence[Sample]) -> pa.Table:
    """Return the samples as a table of `SAMPLE_SCHEMA`, in the order given."""
    offsets = [0]
    for sample in samples:
        offsets.append(offsets[-1] + len(sample.messages))
    flat = _messages_array([message for sample in samples for message in sample.messages])
    columns = {
        name: pa.array([getattr(sample, name) for sample in samples], SAMPLE_SCHEMA.field(name).type)
        for name in SAMPLE_SCHEMA.names
        if name != "messages"
    }
    columns["messages"] = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat)
    return pa.Table.from_arrays([columns[name] for name in SAMPLE_SCHEMA.names], schema=SAMPLE_SCHEMA)


def _messages_array(messages: list[Message]) -> pa.StructArray:
    """Return messages as an array of `MESSAGE_TYPE`; where all are plain, what they lack costs nothing."""
    if any(len(message) > 2 or "content" not in message for message in messages):
        return pa.array(stored(messages), MESSAGE_TYPE)
    columns = [
        pa.array([message[field.name] for message in messages], field.type)
        if field.name in ("role", "content")
        else pa.nulls(len(messages), field.type)
        for field in MESSAGE_TYPE
    ]
    return pa.StructArray.from_arrays(columns, fields=list(MESSAGE_TYPE))
