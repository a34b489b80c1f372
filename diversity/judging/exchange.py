"""Answers and verdicts in the files of AlpacaEval and Arena-Hard, out and in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from diversity.config import UserError
from diversity.corpus.json_rows import is_unicode
from diversity.judging import alpaca_eval
from diversity.judging.style import more_markdown
from diversity.judging.verdicts import SCORED, VERDICTS_SCHEMA

FORMATS = ("alpaca-eval", "arena-hard")


class ExchangeError(UserError):
    """A file that isn't what its format says."""


def alpaca_outputs(prompts: pa.Table, answers: pa.Table, generator: str) -> list[dict[str, Any]]:
    """Return AlpacaEval's `model_outputs` of answers, in the order of the prompts."""
    found = _responses(answers)
    return [
        {"dataset": row["category"] or row["set"], "instruction": row["prompt"], "output": found[row["prompt_id"]], "generator": generator}
        for row in _ordered(prompts)
        if row["prompt_id"] in found
    ]


def alpaca_annotations(
    prompts: pa.Table, answers: pa.Table, baseline: pa.Table, verdicts: pa.Table, *, generator: str, against: str, annotator: str
) -> list[dict[str, Any]]:
    """Return AlpacaEval's `annotations`: output_1 is the baseline's, preference 1 its win, 2 the model's, null no verdict.

    A prompt's verdicts (orders, repeats) become one preference, their mean.
    """
    mine, theirs = _responses(answers), _responses(baseline)
    scored: dict[tuple[str, str], list[float]] = {}
    for row in verdicts.select(["set", "prompt_id", "outcome", "score"]).to_pylist():
        if row["outcome"] in SCORED:
            scored.setdefault((row["set"], row["prompt_id"]), []).append(row["score"])
    found = []
    for row in _ordered(prompts):
        place = (row["set"], row["prompt_id"])
        if row["prompt_id"] in mine and row["prompt_id"] in theirs:
            preference = 1 + sum(scored[place]) / len(scored[place]) if place in scored else None
            found.append(
                {
                    "instruction": row["prompt"],
                    "output_1": theirs[row["prompt_id"]],
                    "generator_1": against,
                    "dataset": row["category"] or row["set"],
                    "output_2": mine[row["prompt_id"]],
                    "generator_2": generator,
                    "annotator": annotator,
                    "preference": preference,
                }
            )
    return found


def arena_answers(prompts: pa.Table, answers: pa.Table, model: str) -> list[dict[str, Any]]:
    """Return Arena-Hard's `model_answer` lines (v2)."""
    rows = {row["prompt_id"]: row for row in answers.to_pylist() if not row["refused"]}
    found = []
    for row in _ordered(prompts):
        if row["prompt_id"] in rows:
            one = rows[row["prompt_id"]]
            messages = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": {"answer": one["response"]}}]
            uid = row["native_id"] or row["prompt_id"]
            metadata = {"token_len": one["tokens"]}
            found.append({"uid": uid, "ans_id": row["prompt_id"], "model": model, "messages": messages, "metadata": metadata})
    return found


def read_annotations(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """Return (verdicts, facts) of AlpacaEval's `annotations.json`; the facts hold AlpacaEval's own figures.

    Raises:
        ExchangeError: it holds no annotations, or several models', or one of them is none.
    """
    rows = _annotations(path)
    names = {side: sorted({str(row.get(side)) for row in rows}) for side in ("generator_1", "generator_2", "annotator")}
    if len(names["generator_2"]) > 1 or len(names["generator_1"]) > 1:
        models, baselines = (", ".join(names[side]) for side in ("generator_2", "generator_1"))
        raise ExchangeError(f"{path} holds answers of {models} against {baselines}: one pair a file")
    values = alpaca_eval.preferences([row["preference"] for row in rows])
    found = [
        {
            "set": str(row.get("dataset") or "alpaca"),
            "prompt_id": _named(row["instruction"]),
            "group": place,
            "order": 0,
            "repeat": 0,
            "outcome": "no_verdict" if value != value else "same" if row["output_1"] == row["output_2"] else "ok",
            "p_first": None if value != value else 1 - value,
            "score": None if value != value else float(value),
            "longer": int(own - theirs),
            **more_markdown(row["output_2"] or "", row["output_1"] or ""),
        }
        for place, (row, value, theirs, own) in enumerate(zip(rows, values, *lengths(path), strict=True))
    ]
    facts = {"model": names["generator_2"][0], "baseline": names["generator_1"][0], "annotators": names["annotator"]}
    return pa.Table.from_pylist(found, schema=VERDICTS_SCHEMA), {**facts, "alpaca_eval": alpaca_eval.win_rate(values)}


def lengths(path: Path) -> list[np.ndarray]:
    """Return the characters of the baseline's and of the model's outputs, `(n,)` each, in the order of the annotations."""
    rows = _annotations(path)
    return [np.array([len(row[side] or "") for row in rows], np.int64) for side in ("output_1", "output_2")]


def _annotations(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of annotations."""
    try:
        rows = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ExchangeError(f"{path} can't be read as JSON: {error}") from None
    wanted = ("instruction", "output_1", "output_2", "preference")
    if not isinstance(rows, list) or not rows or any(not isinstance(row, dict) or any(name not in row for name in wanted) for row in rows):
        raise ExchangeError(f"{path} holds no annotations: a list of objects with {', '.join(wanted)}")
    for number, row in enumerate(rows):
        if (wrong := _wrong(row)) is not None:
            raise ExchangeError(f"{path}: row {number}: {wrong}")
    return rows


def _wrong(row: Mapping[str, Any]) -> str | None:
    """Return what is wrong with an annotation, if anything is."""
    if not isinstance(row["instruction"], str):
        return "its instruction is no text"
    for name in ("output_1", "output_2"):
        if row[name] is not None and not isinstance(row[name], str):
            return f"its {name} is no text"
    for name in ("instruction", "output_1", "output_2", "dataset", "generator_1", "generator_2", "annotator"):
        if isinstance(row.get(name), str) and not is_unicode(row[name]):
            return f"its {name} holds half of a surrogate pair"
    given = row["preference"]
    if given is None or (
        isinstance(given, (int, float)) and not isinstance(given, bool) and (given == 0 or 1 <= given <= 2 or given != given)
    ):
        return None
    return f"its preference is {given!r:.40}, and not null, 0 (a tie) or from 1 (the baseline wins) to 2"


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]], lines: bool) -> None:
    """Write rows as a JSON list, or as one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) if lines else json.dumps(rows, ensure_ascii=False, indent=1)
    path.write_text(text, "utf-8")


def _ordered(prompts: pa.Table) -> list[dict[str, Any]]:
    """Return the prompts of each set in its own order: AlpacaEval's difficulties and folds go by row."""
    rows = prompts.select(["set", "row", "prompt_id", "native_id", "category", "prompt"]).to_pylist()
    return sorted(rows, key=lambda row: (row["set"], row["row"]))


def _responses(answers: pa.Table) -> dict[str, str]:
    rows = answers.select(["prompt_id", "response", "refused"]).to_pylist()
    return {row["prompt_id"]: row["response"] for row in rows if not row["refused"]}


def _named(instruction: str) -> str:
    from diversity.corpus.samples import sample_id

    return sample_id([{"role": "user", "content": instruction}])
