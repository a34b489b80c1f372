"""What an auditor reads from sealed files: the corpus, the types of each sample and the order of types, as plain numpy arrays."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

TEXTS = ("source", "instruction", "response", "messages", "tools", "score")


@dataclass(frozen=True)
class Types:
    """The types of each sample: row i has `values[bounds[i]:bounds[i+1]]`, numbers in 0..n_types-1."""

    bounds: np.ndarray
    values: np.ndarray
    n_types: int

    @cached_property
    def lengths(self) -> np.ndarray:
        """Return how many types each sample has."""
        return np.diff(self.bounds)

    def covered(self, rows: np.ndarray) -> np.ndarray:
        """Return the mask `(M,) bool` of the types that some of the rows have."""
        chosen = np.zeros(len(self.lengths), bool)
        chosen[rows] = True
        mask = np.zeros(self.n_types, bool)
        mask[self.values[np.repeat(chosen, self.lengths)]] = True
        return mask

    def pairs(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (row, type) of each incidence of the rows, row by row in the order given."""
        lengths = self.lengths[rows]
        before = np.cumsum(lengths) - lengths
        return np.repeat(rows, lengths), self.values[np.repeat(self.bounds[rows] - before, lengths) + np.arange(lengths.sum())]

    def births(self, position: np.ndarray, closure: str) -> np.ndarray:
        """Return the smallest k at which each sample is in the pool, 0 for samples without types: METHOD's definition, row by row."""
        found = np.zeros(len(self.lengths), np.int64)
        typed = self.lengths > 0
        if typed.any():
            last = np.maximum if closure == "strict" else np.minimum
            found[typed] = last.reduceat(position[self.values], self.bounds[:-1][typed])
        return found


@dataclass(frozen=True)
class Ground:
    """What datasets are held against: the sealed corpus and its typings, one entry a sample in the order of ids.

    Attributes:
        ids: `(n,) S32`, ascending.
        digests: `(n, 2) uint64` of source, texts, messages, tools and score, see `digests`.
        sources: of each sample.
        tokens: model tokens of each side.
        types: by typing.
        positions: of the types in the pruning, 1 = given up last, by typing; of those typings that datasets are chosen by.
        births: the smallest k at which each sample is in the pool, 0 for none, likewise.
        window: response lengths of a corpus derived by the control `length-window`.
        scores: quality of each sample, `(n,) float64`, NaN where it has none; None where no sample has one.
        text_types: types counted again from the text, by typing; empty without `--from-text`.
    """

    ids: np.ndarray
    digests: np.ndarray
    sources: np.ndarray
    tokens: Mapping[str, np.ndarray]
    types: Mapping[str, Types]
    positions: Mapping[str, np.ndarray]
    births: Mapping[str, np.ndarray]
    window: tuple[int, int] | None = None
    text_types: Mapping[str, Types] = field(default_factory=dict)
    scores: np.ndarray | None = None


def digests(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Return (`(n, 2) uint64` digests of all that a sample holds, `(n,) bool` whether id and texts follow from messages and tools)."""
    found, sound = [], np.ones(len(table), bool)
    columns = (table.column(name).to_pylist() for name in ("sample_id", *TEXTS))
    for row, (sample, source, instruction, response, stored, tools, score) in enumerate(zip(*columns, strict=True)):
        messages = [_present(message) for message in stored]
        said = messages if tools is None else {"messages": messages, "tools": json.loads(tools)}
        hashed = hashlib.blake2b(canonical(said), digest_size=16)
        sides = ("\n\n".join(text for m in messages if m["role"] == role for text in _says(m)) for role in ("user", "assistant"))
        sound[row] = hashed.hexdigest() == sample and tuple(sides) == (instruction, response)
        hashed.update(canonical([source, instruction, response, score]))
        found.append(hashed.digest())
    return np.frombuffer(b"".join(found), np.uint64).reshape(-1, 2), sound


def _present(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored message as training data spells it: what is there, tool calls as JSON values, whole weights without a point."""
    found = {key: value for key, value in message.items() if value is not None}
    if "tool_calls" in found:
        found["tool_calls"] = json.loads(found["tool_calls"])
    if "weight" in found and found["weight"] < 2**53 and found["weight"] == int(found["weight"]):
        found["weight"] = int(found["weight"])
    return found


def _says(message: Mapping[str, Any]) -> list[str]:
    """Return what a turn adds to its side: its content, then its tool calls; empty content beside a call is nothing."""
    calls = [canonical(message["tool_calls"]).decode()] if "tool_calls" in message else []
    return ([message["content"]] if message.get("content") or ("content" in message and not calls) else []) + calls


def id_strings(column: pa.ChunkedArray) -> np.ndarray:
    """Return ids as `(n,) S32`."""
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype="S32")


def canonical(value: Any) -> bytes:
    """Return the JSON spelling that ids and content hashes are hashes of: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
