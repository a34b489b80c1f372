"""What a judge said becomes a verdict: an outcome, a label or a probability, and the answerer's score."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from diversity.judging import style
from diversity.judging.rubrics import LABELS, Rubric
from diversity.llm.reading import Answer, Tokens

VERDICTS_SCHEMA = pa.schema(
    [
        pa.field("set", pa.string()),
        pa.field("prompt_id", pa.string()),
        pa.field("group", pa.int32()),
        pa.field("category", pa.string()),
        pa.field("order", pa.int8()),  # 0: the baseline's answer stood first; 1: the answerer's
        pa.field("repeat", pa.int16()),
        pa.field("outcome", pa.string()),  # one of OUTCOMES
        pa.field("label", pa.string()),  # as the judge gave it: A is the answer that stood first
        pa.field("p_first", pa.float64()),  # that the first is better, by log-probabilities
        pa.field("score", pa.float64()),  # the answerer's: 1 wins, 0.5 ties; null unless ok or same
        pa.field("longer", pa.int32()),  # characters of the answerer's answer less those of the baseline's
        *(pa.field(name, pa.float64()) for name in style.COLUMNS),  # its markdown beside the baseline's, see `style`
        pa.field("prompt_tokens", pa.int32()),
        pa.field("completion_tokens", pa.int32()),
        pa.field("served_model", pa.string()),
        pa.field("raw", pa.large_string()),  # the judge's text; of a refusal, its reason
    ]
)
OUTCOMES = {
    "ok": "a verdict",
    "same": "the answers are identical: a tie that is not asked",
    "unanswered": "one of the two has no answer",
    "too_long": "longer than the judge takes",
    "refused": "the endpoint refused",
    "cut": "the judge came to its most tokens without a label",
    "no_verdict": "the judge gave no label",
    "ambiguous": "the judge's last label is none of the rubric's",
}
SCORED = ("ok", "same")
_LABEL = re.compile(r"\[\[([AB<>=]+)\]\]")
_LOOSE = re.compile(r"\[([AB<>=]+)\]")
_TURNED = {
    "A<B": "B>A",
    "A<<B": "B>>A",
    "B<A": "A>B",
    "B<<A": "A>>B",
    "B=A": "A=B",
}
_TOO_LONG = re.compile(r"context[ _]length|maximum context|too long|max_model_len|too many tokens|longer than", re.IGNORECASE)


@dataclass(frozen=True)
class Verdict:
    """What a judge's answer says of the answer that stands first."""

    outcome: str
    label: str | None = None
    p_first: float | None = None

    def first_score(self) -> float | None:
        """Return the score of the answer that stands first."""
        if self.label is not None:
            return LABELS[self.label]
        return self.p_first


def read_verdict(rubric: Rubric, answer: Answer) -> Verdict:
    """Return the verdict in a judge's answer.

    The last label binds: a judge may quote an answer, or weigh labels before it decides. A label that the rubric doesn't have is no
    verdict, and neither is an answer that has none.
    """
    if answer.kind == "refused":
        return Verdict("too_long" if _TOO_LONG.search(answer.text) else "refused")
    if rubric.verdict == "logprobs":
        p = first_is_better(answer.logprobs[0]) if answer.logprobs else None
        return Verdict("no_verdict") if p is None else Verdict("ok", p_first=p)
    label = _json_label(answer.text) if rubric.verdict == "json" else _text_label(answer.text)
    if label in LABELS:
        return Verdict("ok", label)
    if label:
        return Verdict("ambiguous")
    return Verdict("cut" if answer.kind == "cut" else "no_verdict")


def first_is_better(place: Tokens) -> float | None:
    """Return P(A) / (P(A) + P(B)) among the likeliest tokens at a place; None where neither is there. A missing one counts 0."""
    chances = {"A": 0.0, "B": 0.0}
    for text, value in place:
        if text.strip() in chances:
            chances[text.strip()] += math.exp(value)
    total = chances["A"] + chances["B"]
    return chances["A"] / total if total > 0 else None


def verdict_row(asked: dict[str, Any], verdict: Verdict, answer: Answer | None) -> dict[str, Any]:
    """Return a row of `VERDICTS_SCHEMA`.

    Args:
        asked: its columns up to `repeat`, `longer`, and those of `style`.
        verdict: on the answer that stood first.
        answer: the judge's; None where it wasn't asked.
    """
    first = 0.5 if verdict.outcome == "same" else verdict.first_score()
    score = None if first is None or verdict.outcome not in SCORED else first if asked["order"] == 1 else 1 - first
    said = answer or Answer("", "")
    return {
        **asked,
        "outcome": verdict.outcome,
        "label": verdict.label,
        "p_first": verdict.p_first,
        "score": score,
        "prompt_tokens": said.prompt_tokens,
        "completion_tokens": said.completion_tokens,
        "served_model": said.model,
        "raw": said.text if answer is not None else None,
    }


def outcomes(verdicts: pa.Table) -> dict[str, int]:
    """Return how many verdicts have each outcome, all of `OUTCOMES` named: their sum is what was asked."""
    found: Sequence[str] = verdicts["outcome"].to_pylist()
    return {name: found.count(name) for name in OUTCOMES}


def known_label(label: str) -> str:
    """Return a label in the rubrics' spelling where it is only turned round: `A<B` is `B>A`."""
    return _TURNED.get(label, label)


def _text_label(text: str) -> str | None:
    """Return the last label in a text, in the rubric's spelling where it is only turned round."""
    upper = text.upper()
    found = _LABEL.findall(upper) or _LOOSE.findall(upper)
    return known_label(found[-1]) if found else None


def _json_label(text: str) -> str | None:
    """Return the verdict of the JSON object in a text: the whole of it, or from its first brace to its last."""
    start, end = text.find("{"), text.rfind("}")
    try:
        value = json.loads(text[start : end + 1]) if 0 <= start < end else None
    except (ValueError, RecursionError):
        return None
    label = value.get("verdict") if isinstance(value, dict) else None
    if not isinstance(label, str):
        return None
    return known_label(label.upper().strip(" []"))
