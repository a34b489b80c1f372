"""Ids and texts of many samples at once, as `samples.sample_id` and `samples.texts` give them one by one, in a quarter of the time.

A dataset is hashed again when it is sealed. Most of that time went into a dict for every message; here a column of messages is taken
apart as a whole, and only strings become Python objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from json.encoder import encode_basestring as quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from diversity.corpus.samples import texts


def hashed(table: pa.Table) -> Iterator[tuple[str, str, bool]]:
    """Yield (sample_id as given, sample_id by its messages, whether the text columns agree with the messages) for every row.

    Args:
        table: sample_id, messages, instruction, response.
    """
    for batch in table.select(["sample_id", "messages", "instruction", "response"]).to_batches():
        messages = batch.column("messages")
        flat, bounds = messages.flatten(), _bounds(messages)
        roles, contents = flat.field("role"), flat.field("content")
        found = _ids(roles.to_pylist(), contents.to_pylist(), bounds)
        yield from zip(batch.column("sample_id").to_pylist(), found, _agree(batch, roles, contents, bounds).tolist(), strict=True)


def _bounds(messages: pa.ListArray) -> np.ndarray:
    """Return `(n+1,)`: the messages of row i are bounds[i] to bounds[i+1] of the flattened ones."""
    return np.append(0, np.cumsum(pc.list_value_length(messages).to_numpy(zero_copy_only=False)))


def _ids(roles: list[str], contents: list[str], bounds: np.ndarray) -> Iterator[str]:
    """Yield blake2b-128 of the canonical JSON of every row: keys in order, no spaces, UTF-8."""
    ends = {role: f',"role":{quote(role)}}}' for role in set(roles)}
    spelled = [f'{{"content":{quote(content)}{ends[role]}' for role, content in zip(roles, contents, strict=True)]
    starts = bounds.tolist()
    for start, stop in zip(starts, starts[1:], strict=False):
        yield blake2b(f"[{','.join(spelled[start:stop])}]".encode(), digest_size=16).hexdigest()


def _agree(batch: pa.RecordBatch, roles: pa.Array, contents: pa.Array, bounds: np.ndarray) -> np.ndarray:
    """Return whether instruction and response are what the messages say, `(n,) bool`; one question with one answer is compared by Arrow."""
    first = bounds[:-1]
    plain = np.diff(bounds) == 2
    for step, role in enumerate(("user", "assistant")):
        is_role = pc.equal(roles, role).to_numpy(zero_copy_only=False)
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
        agree[row] = texts(one["messages"]) == (one["instruction"], one["response"])
    return agree
