"""Answers to prompt sets, whoever gave them: a run, a base or hub model, an endpoint, or an imported file. One schema for all."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from diversity.config import UserError
from diversity.corpus.files import find_files
from diversity.corpus.json_rows import is_unicode
from diversity.corpus.readers import read_rows
from diversity.corpus.samples import Rejection, sample_id, to_prompt
from diversity.llm.reading import Answer

ANSWERS_SCHEMA = pa.schema(
    [
        pa.field("prompt_id", pa.string()),
        pa.field("response", pa.large_string()),
        pa.field("tokens", pa.int32()),  # null where nobody counted them
        pa.field("chars", pa.int32()),
        pa.field("finished", pa.bool_()),  # whether it ended by itself; null where nobody knows
        pa.field("refused", pa.bool_()),
    ]
)
RESPONSE_COLUMNS = ("response", "output", "answer")
IMPORT_COLUMNS = ["prompt_id", "instruction", "prompt", "uid", "question_id", "id", "generator", "model", "messages", "choices"]


class AnswersError(UserError):
    """A file of answers that does not answer these prompts."""


def answer_row(
    prompt_id: str, response: str, *, tokens: int | None = None, finished: bool | None = None, refused: bool = False
) -> dict[str, Any]:
    """Return a row of `ANSWERS_SCHEMA`; a refused one has no response."""
    text = "" if refused else response
    return {
        "prompt_id": prompt_id,
        "response": text,
        "tokens": tokens,
        "chars": len(text),
        "finished": finished,
        "refused": refused,
    }


def from_model(prompt_id: str, answer: Answer) -> dict[str, Any]:
    """Return the row of what an endpoint answered."""
    refused = answer.kind == "refused"
    tokens = answer.completion_tokens or None
    return answer_row(prompt_id, answer.text, tokens=tokens, finished=None if refused else answer.kind != "cut", refused=refused)


def answers_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return rows as a table in the order of prompt_id."""
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["prompt_id"]), schema=ANSWERS_SCHEMA)


def counts(answers: pa.Table, prompts: int) -> dict[str, int]:
    """Return what a manifest says of answers: how many there are, are missing, refused, empty, or cut at their most tokens."""
    rows = answers.select(["refused", "chars", "finished"]).to_pylist()
    refused = sum(row["refused"] for row in rows)
    return {
        "answers": len(rows),
        "missing": prompts - len(rows),
        "refused": refused,
        "empty": sum(row["chars"] == 0 for row in rows) - refused,
        "cut": sum(row["finished"] is False for row in rows),
    }


def references(prompts: pa.Table, chosen: str | None = None) -> pa.Table:
    """Return the answers that a set's own files give, of those prompts that have one.

    Args:
        prompts: PROMPTS_SCHEMA.
        chosen: only those of this model.
    """
    rows: dict[str, dict[str, Any]] = {}
    for row in prompts.select(["prompt_id", "reference", "reference_model"]).to_pylist():
        if row["reference"] and (chosen is None or row["reference_model"] == chosen):
            rows.setdefault(row["prompt_id"], answer_row(row["prompt_id"], row["reference"]))
    return answers_table(list(rows.values()))


def import_answers(paths: Sequence[str], prompts: pa.Table, generator: str | None = None) -> tuple[pa.Table, dict[str, int]]:
    """Return (answers, counts) of files that others wrote.

    Read are AlpacaEval's `model_outputs`, joined by the instruction, Arena-Hard's `model_answer` of both versions, joined by its id, and
    rows with `prompt_id` or `prompt` and a response. A row that says what it answers is joined by that alone, whatever its id.

    Args:
        paths: the files.
        prompts: PROMPTS_SCHEMA.
        generator: only rows of this generator or model.

    Raises:
        AnswersError: no row answers a prompt, two rows answer one, an id is that of several prompts, a response is no Unicode, or a file
            holds several generators and none is named.
    """
    by_native: dict[str, set[str]] = defaultdict(set)
    for row in prompts.select(["native_id", "prompt_id"]).to_pylist():
        if row["native_id"]:
            by_native[row["native_id"]].add(row["prompt_id"])
    known = set(prompts["prompt_id"].to_pylist())
    found: dict[str, dict[str, Any]] = {}
    counted: Counter[str] = Counter()
    generators: set[str] = set()
    for shown, row in _rows(paths):
        named = str(row.get("generator") or row.get("model") or row.get("model_id") or "")
        if generator is not None and named != generator:
            counted["of another generator"] += 1
            continue
        generators.add(named)
        prompt_id, response = _prompt_of(shown, row, by_native, known), response_of(row)
        if prompt_id is None or response is None:
            counted["no prompt of these" if response is not None else "no response"] += 1
            continue
        if prompt_id in found and found[prompt_id]["response"] != response:
            raise AnswersError(f"{shown}: two answers to the prompt {prompt_id}; name the generator that counts")
        if not is_unicode(response):
            raise AnswersError(f"{shown}: the answer to the prompt {prompt_id} holds half of a surrogate pair")
        found[prompt_id] = answer_row(prompt_id, response)
    if len(generators) > 1:
        raise AnswersError(f"{', '.join(paths)}: answers of {', '.join(sorted(generators))}; name the one that counts (generator)")
    if not found:
        raise AnswersError(f"{', '.join(paths)}: no row answers a prompt of these sets ({_told(counted) or 'no rows'})")
    return answers_table(list(found.values())), dict(counted)


def _told(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counted.items())


def _rows(paths: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for file in find_files(paths):
        for number, row in read_rows(file, columns=[*IMPORT_COLUMNS, *RESPONSE_COLUMNS]):
            if not isinstance(row, Mapping):
                raise AnswersError(f"{file.shown}: row {number} is no object")
            yield file.shown, row


def _prompt_of(shown: str, row: Mapping[str, Any], by_native: Mapping[str, set[str]], known: set[str]) -> str | None:
    """Return which prompt a row answers: what it says itself, else by an id of its set."""
    if isinstance(row.get("prompt_id"), str):
        return row["prompt_id"] if row["prompt_id"] in known else None
    if said := row.get("instruction") or row.get("prompt"):
        messages = to_prompt(said)
        prompt_id = None if isinstance(messages, Rejection) else sample_id(messages)
        return prompt_id if prompt_id in known else None
    for name in ("uid", "question_id", "id"):
        if row.get(name) is not None and (found := by_native.get(str(row[name]))):
            if len(found) > 1:
                raise AnswersError(f"{shown}: {name} {row[name]!r} is that of {len(found)} prompts; give prompt_id or instruction")
            return next(iter(found))
    return None


def response_of(row: Mapping[str, Any]) -> str | None:
    """Return a row's answer: a column of its own, or the last turn of Arena-Hard's messages or choices."""
    for name in RESPONSE_COLUMNS:
        if isinstance(row.get(name), str):
            return row[name]
    content = _first(row, "messages", -1).get("content")
    if content is None:
        content = _first(_first(row, "choices", 0), "turns", 0).get("content")
    answer = content.get("answer") if isinstance(content, Mapping) else content
    return answer if isinstance(answer, str) else None


def _first(row: Mapping[str, Any], name: str, place: int) -> Mapping[str, Any]:
    """Return the object at a place of a list in a row; an empty one where there is none."""
    held = row.get(name)
    one = held[place] if isinstance(held, list) and held else None
    return one if isinstance(one, Mapping) else {}
