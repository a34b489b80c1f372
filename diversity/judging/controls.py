"""Answers whose verdict is known beforehand: clean ones spoilt on purpose, a null answer, and a clean one with a tail that says nothing.

They are made from the baseline's own answers and judged against them, as any answerer is. What is spoilt must lose, the null answer must
lose, and the tail must not win. Which prompts they are made for, and how they are spoilt, goes by keyed hashes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence

import pyarrow as pa

from diversity.judging.answer_sets import answer_row, answers_table
from diversity.keys import order, priorities, sample_keys

KEPT = 0.3  # of a truncated answer
NULL_ANSWER = "I have read the request."
TAIL = "\n\nThis is the end of the answer."
_SENTENCE = re.compile(r"[^.!?\n]+(?:[.!?]+|\n+|$)\s*")


def truncated(text: str, other: str) -> str | None:
    """Return the first third of an answer, up to a word's end; None where it has fewer than ten words."""
    del other
    words = text.split(" ")
    return " ".join(words[: max(1, int(KEPT * len(words)))]) if len(words) >= 10 else None


def shuffled(text: str, other: str) -> str | None:
    """Return an answer's sentences in a keyed order; None where it has fewer than three, or the order is theirs."""
    del other
    sentences = [match[0].strip() for match in _SENTENCE.finditer(text) if match[0].strip()]
    spelled = [f"{place} {sentence}".encode(errors="surrogatepass") for place, sentence in enumerate(sentences)]
    keys = [hashlib.blake2b(one, digest_size=8).digest() for one in spelled]
    moved = [sentences[place] for place in sorted(range(len(sentences)), key=keys.__getitem__)]
    return " ".join(moved) if len(sentences) >= 3 and moved != sentences else None


def swapped(text: str, other: str) -> str | None:
    """Return the answer to another prompt; None where it is the same."""
    return other if other != text and other.strip() else None


def repeated(text: str, other: str) -> str | None:
    """Return an answer said three times over."""
    del other
    return "\n\n".join([text.strip()] * 3) if text.strip() else None


def null(text: str, other: str) -> str | None:
    """Return the answer that answers nothing."""
    del other
    return NULL_ANSWER if text != NULL_ANSWER and text.strip() else None


def tailed(text: str, other: str) -> str | None:
    """Return the answer with a tail that adds nothing."""
    del other
    return text.rstrip() + TAIL if text.strip() else None


SPOILT: dict[str, Callable[[str, str], str | None]] = {
    "truncated": truncated,
    "sentences shuffled": shuffled,
    "answer to another prompt": swapped,
    "said three times": repeated,
}
NEUTRAL: dict[str, Callable[[str, str], str | None]] = {"null answer": null, "neutral tail": tailed}
CONTROLS = SPOILT | NEUTRAL


def controls(clean: pa.Table, pairs: int) -> dict[str, pa.Table]:
    """Return answers by the name of their control, `ANSWERS_SCHEMA` each, for at most so many prompts.

    Args:
        clean: the answers that they are made from and judged against.
        pairs: prompts of each kind.
    """
    rows = [row for row in clean.select(["prompt_id", "response", "refused"]).to_pylist() if not row["refused"] and row["response"].strip()]
    ids = [row["prompt_id"] for row in rows]
    places = order(priorities(sample_keys(ids), 0, "calibration")).tolist() if rows else []
    texts = [rows[place]["response"] for place in places]
    return {name: _made(spoil, [ids[place] for place in places], texts, pairs) for name, spoil in CONTROLS.items()}


def _made(spoil: Callable[[str, str], str | None], ids: Sequence[str], texts: Sequence[str], pairs: int) -> pa.Table:
    found = []
    for place, (prompt_id, text) in enumerate(zip(ids, texts, strict=True)):
        made = spoil(text, texts[(place + 1) % len(texts)])
        if made is not None and made != text:
            found.append(answer_row(prompt_id, made))
        if len(found) == pairs:
            break
    return answers_table(found)
