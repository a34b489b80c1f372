"""Arena-Hard's own judgments, `model_judgment/<judge>/<model>.jsonl` of both versions, as verdicts; and its own score of them.

Each line holds two games: in the first, A is the baseline's answer, in the second the model's. The answers themselves lie in
`model_answer/<model>.jsonl` beside it; where they are there, length and style can be controlled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from diversity.config import UserError
from diversity.corpus.json_rows import is_unicode
from diversity.judging.answer_sets import response_of
from diversity.judging.rubrics import LABELS, STRENGTH
from diversity.judging.style import more_markdown
from diversity.judging.verdicts import VERDICTS_SCHEMA, Verdict, known_label, verdict_row
from diversity.judging.win_rates import STRONG
from diversity.llm.reading import Answer

SET = "arena-hard"
FIRST_BASELINE = "gpt-4-0314"  # of version 0.1, whose files don't name it


class JudgmentsError(UserError):
    """A file that holds no judgments of Arena-Hard."""


def read_judgments(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """Return (verdicts, facts) of a file of judgments of one model.

    Facts are `model`, `baseline`, `annotators`, `lengths` (whether the answers were there) and `arena_hard`, its own score: strong verdicts
    count three times, and a line without two verdicts is left out whole.

    Raises:
        JudgmentsError: it holds none, or several models', or the answers beside it can't be read.
    """
    rows = list(_lines(path))
    names = {side: sorted({str(row.get(side) or other) for row in rows}) for side, other in (("model", ""), ("baseline", FIRST_BASELINE))}
    if len(names["model"]) > 1:
        raise JudgmentsError(f"{path} holds judgments of {', '.join(names['model'])}: one model a file")
    folder = path.parents[2] / "model_answer" if len(path.parents) > 2 else path.parent
    answers = {name: _answers(folder / f"{name}.jsonl") for name in (names["model"][0], *names["baseline"])}
    found, known = [], True
    for group, row in enumerate(rows):
        own, other = (answers[name].get(_id(row)) for name in (names["model"][0], str(row.get("baseline") or FIRST_BASELINE)))
        known &= own is not None and other is not None
        apart = {"longer": len(own or "") - len(other or ""), **more_markdown(own or "", other or "")}
        for turn, game in enumerate(row["games"]):
            head = {"set": SET, "prompt_id": _id(row), "group": group, "category": _category(row), "order": turn, "repeat": 0}
            found.append(
                verdict_row({**head, **apart}, _verdict(game), Answer(_said(game), "stop", model=str(row.get("judge") or "") or None))
            )
    facts = {"model": names["model"][0], "baseline": ", ".join(names["baseline"]), "lengths": known}
    judges = sorted({str(row.get("judge") or path.parent.name) for row in rows})
    table = pa.Table.from_pylist(found, schema=VERDICTS_SCHEMA)
    return table, {**facts, "annotators": judges, "arena_hard": own_score(table)}


def own_score(verdicts: pa.Table) -> float:
    """Return Arena-Hard's score, in percent: the mean over verdicts with strong ones three times, of lines that have both.

    A prompt that was judged twice counts twice, as in its own script. NaN where no line has both.
    """
    by_line: dict[int, list[Mapping[str, Any]]] = {}
    for row in verdicts.select(["group", "label", "score"]).to_pylist():
        by_line.setdefault(row["group"], []).append(row)
    total = weights = 0.0
    for rows in by_line.values():
        if len(rows) == 2 and all(row["score"] is not None for row in rows):
            for row in rows:
                weight = STRONG if abs(STRENGTH[row["label"]]) == 2 else 1.0
                total, weights = total + weight * row["score"], weights + weight
    return 100 * total / weights if weights else float("nan")


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the lines of a file of judgments."""
    rows = _json_lines(path)
    if not rows or any(not _holds_games(row) for row in rows):
        raise JudgmentsError(f"{path} holds no judgments: lines with uid or question_id, and two games each")
    for name in ("uid", "question_id", "category", "model", "baseline", "judge"):
        if any(not is_unicode(str(row.get(name))) for row in rows):
            raise JudgmentsError(f"{path}: a line's {name} holds half of a surrogate pair")
    yield from rows


def _json_lines(path: Path) -> list[Any]:
    try:
        return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]
    except (OSError, ValueError, RecursionError) as error:
        raise JudgmentsError(f"{path} can't be read as JSON lines: {error}") from None


def _holds_games(row: Any) -> bool:
    return isinstance(row, Mapping) and bool(_id(row)) and isinstance(games := row.get("games"), Sequence) and len(games) == 2


def _id(row: Mapping[str, Any]) -> str:
    return str(row.get("uid") or row.get("question_id") or "")


def _category(row: Mapping[str, Any]) -> str | None:
    return None if row.get("category") is None else str(row["category"])


def _verdict(game: Any) -> Verdict:
    """Return what a game came to: its label, or none where the judge's words had none or the game failed."""
    score = game.get("score") if isinstance(game, Mapping) else None
    if score is None:
        return Verdict("no_verdict")
    label = known_label(str(score))
    return Verdict("ok", label) if label in LABELS else Verdict("ambiguous")


def _said(game: Any) -> str:
    """Return the judge's words, a text in version 0.1 and an object in version 2."""
    said = game.get("judgment") if isinstance(game, Mapping) else None
    return str(said.get("answer") or "") if isinstance(said, Mapping) else str(said or "")


def _answers(path: Path) -> dict[str, str]:
    """Return a model's answers by prompt; none where there is no such file."""
    if not path.is_file():
        return {}
    return {_id(row): text for row in _json_lines(path) if isinstance(row, Mapping) and (text := response_of(row)) is not None}
