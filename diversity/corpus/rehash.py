"""Ids and texts of many samples at once, as `samples.sample_id` and `samples.texts` give them one by one, in a quarter of the time.

A dataset is hashed again when it is sealed. Most of that time went into a dict for every message; here a column of messages is taken
apart as a whole, and only strings become Python objects. What messages hold beside role and content is spelled only where there is some.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from json.encoder import encode_basestring as quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from diversity.corpus.samples import MESSAGE_FIELDS, canonical_text, messages_of, texts
from diversity.corpus.turns import plain_number

READ = ("sample_id", "messages", "instruction", "response", "tools")


def hashed(table: pa.Table) -> Iterator[tuple[str, str, bool]]:
    """Yield (sample_id as given, sample_id by its messages and tools, whether the text columns agree with the messages) for every row.

    Args:
        table: sample_id, messages, instruction, response, tools.
    """
    for batch in table.select(READ).to_batches():
        messages = batch.column("messages")
        flat, bounds = messages.flatten(), _bounds(messages)
        found = _ids(_spelled(flat), bounds, batch.column("tools").to_pylist())
        yield from zip(batch.column("sample_id").to_pylist(), found, _agree(batch, flat, bounds).tolist(), strict=True)


def _bounds(messages: pa.ListArray) -> np.ndarray:
    """Return `(n+1,)`: the messages of row i are bounds[i] to bounds[i+1] of the flattened ones."""
    return np.append(0, np.cumsum(pc.list_value_length(messages).to_numpy(zero_copy_only=False)))


def _spelled(flat: pa.StructArray) -> list[str]:
    """Return the canonical JSON of every message."""
    columns = {name: flat.field(name) for name in MESSAGE_FIELDS}
    if all(columns[name].null_count == len(flat) for name in MESSAGE_FIELDS[2:]) and not columns["content"].null_count:
        roles = columns["role"].to_pylist()
        ends = {role: f',"role":{quote(role)}}}' for role in set(roles)}
        return [f'{{"content":{quote(content)}{ends[role]}' for role, content in zip(roles, columns["content"].to_pylist(), strict=True)]
    parts: list[list[str]] = [[] for _ in range(len(flat))]
    for name in sorted(columns):
        for place, value in enumerate(columns[name].to_pylist()):
            if value is not None:
                text = _value(name, value)
                parts[place].append(f'"{name}":{text}')
    return [f"{{{','.join(found)}}}" for found in parts]


def _value(name: str, value: str | float) -> str:
    if isinstance(value, float):
        return repr(plain_number(value))
    return canonical_text(json.loads(value)) if name == "tool_calls" else quote(value)


def _ids(spelled: Sequence[str], bounds: np.ndarray, tools: Sequence[str | None]) -> Iterator[str]:
    """Yield blake2b-128 of the canonical JSON of every row: keys in order, no spaces, UTF-8."""
    starts = bounds.tolist()
    for start, stop, given in zip(starts, starts[1:], tools, strict=False):
        conversation = f"[{','.join(spelled[start:stop])}]"
        text = conversation if given is None else f'{{"messages":{conversation},"tools":{canonical_text(json.loads(given))}}}'
        yield blake2b(text.encode(), digest_size=16).hexdigest()


def _agree(batch: pa.RecordBatch, flat: pa.StructArray, bounds: np.ndarray) -> np.ndarray:
    """Return whether instruction and response are what the messages say, `(n,) bool`; one question with one answer is compared by Arrow."""
    roles, contents = flat.field("role"), flat.field("content")
    texted = pc.and_(pc.is_valid(contents), pc.is_null(flat.field("tool_calls"))).to_numpy(zero_copy_only=False)
    first = bounds[:-1]
    plain = np.diff(bounds) == 2
    for step, role in enumerate(("user", "assistant")):
        is_role = pc.equal(roles, role).to_numpy(zero_copy_only=False) & texted
        plain[plain] = is_role[first[plain] + step]
    agree = np.zeros(len(first), dtype=bool)
    rows = np.flatnonzero(plain)
    agree[rows] = True
    for step, side in enumerate(("instruction", "response")):
        said = contents.take(pa.array(first[rows] + step)).cast(pa.large_string())
        same = pc.equal(said, batch.column(side).take(pa.array(rows)).cast(pa.large_string()))
        agree[rows] &= pc.fill_null(same, False).to_numpy(zero_copy_only=False)
    for row in np.flatnonzero(~plain).tolist():
        one = batch.slice(row, 1).to_pylist()[0]
        agree[row] = texts(messages_of(one["messages"])) == (one["instruction"], one["response"])
    return agree
