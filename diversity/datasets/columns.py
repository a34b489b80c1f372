"""Exports in parquet: only the fields that a dataset uses, and the names that the package `datasets` gives to their types.

A field that is null everywhere is left out, since chat templates ask whether a message *has* tool calls. JSON text is declared as
`Json`, so that `load_dataset` gives back the objects; where messages hold more than role and content, TRL's are JSON themselves, because
a column of structs would fill what a message lacks with nulls.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from diversity.corpus.samples import MESSAGE_TYPE, compact_text, messages_of
from diversity.datasets.dataset import DATASET_SCHEMA
from diversity.datasets.layouts import TOOLS, Beside, Row, fields_of

_CONVERSATIONS = ("messages", "prompt", "completion")


def schema_of(columns: tuple[str, ...], beside: Beside, scored: bool, *, whole_messages: bool) -> pa.Schema:
    """Return the schema of a parquet file, with the description of its types that `datasets` reads.

    Args:
        columns: of the format.
        beside: what the dataset's samples hold beside role and content.
        scored: whether any has a score.
        whole_messages: a message that holds more is one JSON object.
    """
    kept = [name for name in columns if (name != "tools" or TOOLS in beside) and (name != "score" or scored)]
    fields, features = [], {}
    for name in kept:
        if name not in _CONVERSATIONS:
            kind = pa.json_() if name == "tools" else DATASET_SCHEMA.field(name).type
            features[name] = _JSON if name == "tools" else _feature(kind)
        elif whole_messages and len(fields_of(beside)) > 2:
            kind, features[name] = pa.list_(pa.json_()), {"feature": _JSON, "_type": "List"}
        else:
            named = [_json_field(MESSAGE_TYPE.field(field)) for field in fields_of(beside)]
            described = {field.name: _JSON if field.name == "tool_calls" else _feature(field.type) for field in named}
            kind, features[name] = pa.list_(pa.struct(named)), {"feature": described, "_type": "List"}
        fields.append(pa.field(name, kind))
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def table_of(batch: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return columns of a dataset as the schema has them."""
    columns = [_messages(batch[name], schema.field(name).type) if name == "messages" else batch[name] for name in schema.names]
    return pa.Table.from_arrays([column.cast(kind) for column, kind in zip(columns, schema.types, strict=True)], schema=schema)


def table_of_rows(rows: list[Row], schema: pa.Schema) -> pa.Table:
    """Return rows, with messages and tools as JSON values, as the schema has them."""
    columns = [pa.array([_cell(row[field.name], field) for row in rows], _spelled(field.type)).cast(field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _spelled(kind: pa.DataType) -> pa.DataType:
    """Return a type with its JSON as the text that spells it."""
    if pa.types.is_list(kind):
        return pa.list_(_spelled(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _spelled(field.type)) for field in kind])
    return pa.string() if isinstance(kind, pa.JsonType) else kind


_JSON = {"_type": "Json"}


def _json_field(field: pa.Field) -> pa.Field:
    return pa.field(field.name, pa.json_()) if field.name == "tool_calls" else field


def _feature(kind: pa.DataType) -> dict[str, Any]:
    return {"dtype": {"double": "float64"}.get(str(kind), str(kind)), "_type": "Value"}


def _cell(value: Any, field: pa.Field) -> Any:
    if field.name == "tools":
        return None if value is None else compact_text(value)
    if field.name not in _CONVERSATIONS:
        return value
    if pa.types.is_struct(field.type.value_type):
        return [{**message, **_calls_text(message)} for message in value]
    return [compact_text(message) for message in value]


def _calls_text(message: Row) -> Row:
    return {"tool_calls": compact_text(message["tool_calls"])} if "tool_calls" in message else {}


def _messages(column: pa.ChunkedArray, kind: pa.ListType) -> pa.ChunkedArray:
    return pa.chunked_array(_converted(column, kind), kind)


def _converted(column: pa.ChunkedArray, kind: pa.ListType) -> Iterator[pa.Array]:
    for chunk in column.chunks:
        if not pa.types.is_struct(kind.value_type):
            spelled = [[compact_text(message) for message in messages_of(row)] for row in chunk.to_pylist()]
            yield pa.array(spelled, _spelled(kind)).cast(kind)
            continue
        flat, lengths = chunk.flatten(), pc.list_value_length(chunk).to_numpy(zero_copy_only=False)
        offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int32())
        named = list(kind.value_type)
        columns = [flat.field(field.name).cast(field.type) for field in named]
        yield pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays(columns, fields=named))
