"""What a typing makes of a corpus: the types of each sample, and a table of the types. Every granularity ends here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from diversity.config import UserError

TYPES = pa.list_(pa.int32())
DATA_SCHEMA = pa.schema([("sample_id", pa.string()), ("types", TYPES)])
TYPES_SCHEMA = pa.schema([("type", pa.int32()), ("content", pa.binary()), ("label", pa.string()), ("df", pa.int64())])


class NoTypesError(UserError, ValueError):
    """A typing without a single type, or with too few for what is asked; the message says which setting to change."""


@dataclass(frozen=True)
class Typed:
    """The result of a typing.

    Attributes:
        typing: its name, e.g. `response-micro`.
        data: sample_id and `types` (ascending type numbers, possibly none), rows in corpus order.
        types: type (0 .. M-1 in ascending order of content), content, label, df, and what the granularity adds.
        manifest: what is worth reading about it.
        extra: further tables by folder name, e.g. `vocabulary`.
    """

    typing: str
    data: pa.Table
    types: pa.Table
    manifest: dict[str, Any] = field(default_factory=dict)
    extra: Mapping[str, pa.Table] = field(default_factory=dict)

    @property
    def tables(self) -> dict[str, pa.Table]:
        """Return every table by the folder of the profile artifact that holds it."""
        return {"data": self.data, "types": self.types, **self.extra}

    def summary(self) -> dict[str, Any]:
        """Return the manifest's figures: n, M, nnz, empty (samples without a type), and the typing's own."""
        counts = summarise(self.data["types"])
        return {"typing": self.typing, "M": self.types.num_rows, **counts, **self.manifest}


def summarise(types: pa.ChunkedArray) -> dict[str, int]:
    """Return n, nnz and empty of a column of types."""
    lengths = pc.list_value_length(types)
    n = len(types)
    return {"n": n, "nnz": int(pc.sum(lengths).as_py() or 0), "empty": int(pc.sum(pc.equal(lengths, 0)).as_py() or 0)}


def list_array(values: np.ndarray, bounds: np.ndarray) -> pa.ListArray:
    """Return list<int32> rows: row i is values[bounds[i]:bounds[i + 1]].

    Raises:
        ValueError: a block of more than 2^31 - 1 values; cut it smaller.
    """
    if bounds[-1] > np.iinfo(np.int32).max:
        raise ValueError(f"{bounds[-1]:,} values in one block; use fewer rows a block")
    offsets = pa.array(bounds.astype(np.int32, copy=False))
    return pa.ListArray.from_arrays(offsets, pa.array(values.astype(np.int32, copy=False)))


def flat_lists(column: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return (values int32, bounds (n + 1,) int64) of a list column, whatever its chunks and slices."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    values = [chunk.flatten().to_numpy(zero_copy_only=False).astype(np.int32, copy=False) for chunk in chunks]
    lengths = [np.diff(chunk.offsets.to_numpy()) for chunk in chunks]
    bounds = np.zeros(len(column) + 1, np.int64)
    if len(column):
        np.cumsum(np.concatenate(lengths), out=bounds[1:])
    return (np.concatenate(values) if values else np.empty(0, np.int32)), bounds


def types_table(contents: Sequence[bytes], labels: Sequence[str], df: np.ndarray) -> pa.Table:
    """Return the table of types that are already in ascending order of content."""
    numbers = pa.array(np.arange(len(contents), dtype=np.int32))
    columns = [numbers, pa.array(contents, pa.binary()), pa.array(labels, pa.string()), pa.array(df, pa.int64())]
    return pa.Table.from_arrays(columns, schema=TYPES_SCHEMA)
