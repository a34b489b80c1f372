"""Prompt sets as they are: AlpacaEval's, Arena-Hard's of both versions, or any file with a prompt in each row.

A prompt is named by its messages (`prompt_id`, as a sample is), so that one prompt in two sets is asked once. Prompts that are equal after
normalisation are one group, which is what errors go by.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from diversity.config import Config, UserError
from diversity.corpus.files import find_files
from diversity.corpus.json_rows import is_unicode
from diversity.corpus.readers import read_rows
from diversity.corpus.samples import MESSAGE_TYPE, Rejection, sample_id, stored, texts, to_prompt
from diversity.corpus.text_match import normalise

PROMPTS_SCHEMA = pa.schema(
    [
        pa.field("set", pa.string()),
        pa.field("row", pa.int32()),  # in the set's own order
        pa.field("prompt_id", pa.string()),
        pa.field("native_id", pa.string()),  # as the set's own files have it
        pa.field("category", pa.string()),
        pa.field("group", pa.int32()),
        pa.field("prompt", pa.large_string()),
        pa.field("messages", pa.list_(MESSAGE_TYPE)),
        pa.field("reference", pa.large_string()),
        pa.field("reference_model", pa.string()),
    ]
)
PROMPT_COLUMNS = ("prompt", "instruction", "messages", "turns", "question")
REFERENCE_COLUMNS = ("reference", "output")
ID_COLUMNS = ("uid", "question_id", "id")
CATEGORY_COLUMNS = ("category", "subset", "cluster", "dataset")
MODEL_COLUMNS = ("reference_model", "generator")
TEXT_COLUMNS = {"native_id": ID_COLUMNS, "category": CATEGORY_COLUMNS, "reference": REFERENCE_COLUMNS, "reference_model": MODEL_COLUMNS}
READ_COLUMNS = [*PROMPT_COLUMNS, *REFERENCE_COLUMNS, *ID_COLUMNS, *CATEGORY_COLUMNS, *MODEL_COLUMNS]


class PromptSetConfig(Config):
    """One set of prompts.

    Attributes:
        paths: its files.
        column: holds the prompt, a text or messages; null finds it: `prompt`, `instruction`, `messages`, `turns`, `question`.
        where: rows that count, by the values of their columns, e.g. `{source: [alpaca_eval_2]}`; null takes all.
        limit: the first so many prompts; null takes all.
    """

    paths: list[str] = Field(min_length=1)
    column: str | None = None
    where: dict[str, list[str]] | None = None
    limit: int | None = Field(default=None, ge=1)


class NoPrompts(UserError):
    """A set without a prompt, or a row that holds none."""


def read_prompt_sets(sets: Mapping[str, PromptSetConfig]) -> tuple[pa.Table, dict[str, dict[str, int]]]:
    """Return (`PROMPTS_SCHEMA` table sorted by set and prompt_id, counts by set).

    Raises:
        ReadError: a file can't be found or read.
        NoPrompts: a set has no prompt, or a row what can't be one.
    """
    rows: list[dict[str, Any]] = []
    counts = {}
    for name, config in sets.items():
        counted: Counter[str] = Counter()
        found: dict[str, dict[str, Any]] = {}
        for row in _read(name, config, counted):
            if row["prompt_id"] in found:
                counted["duplicates"] += 1
            elif config.limit is None or len(found) < config.limit:
                found[row["prompt_id"]] = {**row, "row": len(found)}
        if not found:
            raise NoPrompts(f"judging.prompts.{name}: none of {counted['rows']} rows holds a prompt")
        rows += found.values()
        counts[name] = {"prompts": len(found), **{key: counted[key] for key in sorted(counted)}}
    rows.sort(key=lambda row: (row["set"], row["prompt_id"]))
    groups = normalise(pa.array([row["prompt"] for row in rows], pa.large_string())).dictionary_encode().indices.to_numpy()
    table = pa.Table.from_pylist([{**row, "group": int(group)} for row, group in zip(rows, groups, strict=True)], schema=PROMPTS_SCHEMA)
    return table, counts


def asked_once(prompts: pa.Table) -> pa.Table:
    """Return `sample_id`, `messages` and `group` (a text) of every prompt of all sets, each once, as evaluators want them."""
    _, first = np.unique(prompts["prompt_id"].to_numpy(zero_copy_only=False), return_index=True)
    taken = prompts.take(pa.array(first))
    groups = taken["group"].cast(pa.string())
    return pa.table({"sample_id": taken["prompt_id"], "messages": taken["messages"], "group": groups})


def _read(name: str, config: PromptSetConfig, counted: Counter[str]) -> Iterator[dict[str, Any]]:
    extra = [*READ_COLUMNS, *([config.column] if config.column else []), *(config.where or {})]
    for file in find_files(config.paths):
        for number, row in read_rows(file, columns=extra):
            counted["rows"] += 1
            if not isinstance(row, Mapping):
                raise NoPrompts(f"judging.prompts.{name}: {file.shown}: row {number} is no object")
            if config.where and any(str(row.get(column)) not in values for column, values in config.where.items()):
                counted["left out by where"] += 1
                continue
            value = _prompt(row, config.column, counted)
            if isinstance(value, str) and not value.strip():
                counted["blank"] += 1
                continue
            messages = to_prompt(value)
            if isinstance(messages, Rejection):
                raise NoPrompts(f"judging.prompts.{name}: {file.shown}: row {number} holds no prompt: {messages.reason}")
            said = {column: _text(row, names) for column, names in TEXT_COLUMNS.items()}
            if wrong := [column for column, text in said.items() if text is not None and not is_unicode(text)]:
                raise NoPrompts(f"judging.prompts.{name}: {file.shown}: row {number}: its {wrong[0]} holds half of a surrogate pair")
            said["reference"] = said["reference"] or None
            yield {"set": name, "prompt_id": sample_id(messages), "prompt": texts(messages)[0], "messages": stored(messages), **said}


def _prompt(row: Mapping[str, Any], column: str | None, counted: Counter[str]) -> Any:
    """Return a row's prompt; of Arena-Hard's list of turns, the first."""
    if column is not None:
        return row.get(column)
    name = next((name for name in PROMPT_COLUMNS if row.get(name) is not None), None)
    value = row.get(name) if name else None
    if name != "turns" or not isinstance(value, list) or not value:
        return value
    counted["later turns not asked"] += len(value) - 1
    return value[0].get("content") if isinstance(value[0], Mapping) else value[0]


def _text(row: Mapping[str, Any], columns: tuple[str, ...]) -> str | None:
    found = next((row[column] for column in columns if row.get(column) is not None), None)
    return found if found is None or isinstance(found, str) else str(found)
