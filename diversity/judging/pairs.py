"""Which verdicts are asked: every prompt's pair of answers, in one order or both, once or repeatedly.

Which answer stands first goes by a keyed hash of the prompt alone, exactly half and half in every set, so that two answerers meet the
baseline in the same order on each prompt and a judge's liking for a place cancels between them. So do the prompts that are asked in both
orders, or repeatedly: they are the same for every answerer and every judge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from diversity.judging.config import JudgeConfig
from diversity.judging.rubrics import JSON_SCHEMA, Rubric
from diversity.judging.style import more_markdown
from diversity.judging.verdicts import VERDICTS_SCHEMA, Verdict, read_verdict, verdict_row
from diversity.keys import order, priorities, sample_keys
from diversity.llm.asking import request_key
from diversity.llm.reading import Answer


@dataclass(frozen=True)
class Slot:
    """One verdict that is wanted.

    Attributes:
        columns: of its row, up to `repeat`, `longer`, and those of `style`.
        key: of the request that asks for it; None where nothing is asked.
        body: of the request.
        outcome: where nothing is asked, why.
    """

    columns: dict[str, Any]
    key: str | None
    body: dict[str, Any] | None
    outcome: str = ""


@dataclass(frozen=True)
class Design:
    """Orders and repeats by prompt, for all answerers and judges of an experiment.

    Attributes:
        first: of each prompt, which order is asked where only one is.
        both_rank: its place in the order in which prompts are asked in both orders.
        repeat_rank: its place in the order in which they are asked repeatedly.
    """

    first: Mapping[str, int]
    both_rank: Mapping[str, int]
    repeat_rank: Mapping[str, int]

    @classmethod
    def of(cls, prompts: pa.Table) -> Design:
        """Return the design of prompt sets (`PROMPTS_SCHEMA`)."""
        ids, place = np.unique(prompts["prompt_id"].to_numpy(zero_copy_only=False), return_index=True)
        sets = prompts["set"].to_numpy(zero_copy_only=False)[place]
        keys = sample_keys(ids.tolist())
        first: dict[str, int] = {}
        ranked = priorities(keys, 0, "judging order")
        for name in np.unique(sets):
            members = np.flatnonzero(sets == name)
            first |= {str(ids[one]): rank % 2 for rank, one in enumerate(members[order(ranked[members])])}
        ranks = [{str(ids[one]): rank for rank, one in enumerate(order(priorities(keys, 0, tag)))} for tag in ("judging both", "repeat")]
        return cls(first, *ranks)

    def asked(self, prompt_id: str, judge: JudgeConfig) -> list[tuple[int, int]]:
        """Return (order, repeat) of every verdict that a judge is asked for on a prompt."""
        first = self.first[prompt_id]
        both = judge.orders == "both" or self.both_rank[prompt_id] < judge.both_on
        found = [(first, 0), (1 - first, 0)] if both else [(first, 0)]
        repeats = judge.repeats if self.repeat_rank[prompt_id] < judge.repeated_on else 1
        return found + [(first, repeat) for repeat in range(1, repeats)]


def slots(prompts: pa.Table, answers: pa.Table, baseline: pa.Table, judge: JudgeConfig, rubric: Rubric, design: Design) -> Iterator[Slot]:
    """Yield every verdict that is wanted on one answerer's answers against a baseline's.

    Args:
        prompts: PROMPTS_SCHEMA; all, or those that count.
        answers: ANSWERS_SCHEMA.
        baseline: ANSWERS_SCHEMA.
        judge: who is asked.
        rubric: what it is told.
        design: orders and repeats.
    """
    mine, theirs = _responses(answers), _responses(baseline)
    names = ("set", "prompt_id", "group", "category", "prompt")
    for row in prompts.select(names).to_pylist():
        prompt, prompt_id = row.pop("prompt"), row["prompt_id"]
        own, other = mine.get(prompt_id), theirs.get(prompt_id)
        apart = {} if own is None or other is None else {"longer": len(own) - len(other), **more_markdown(own, other)}
        for turn, repeat in design.asked(prompt_id, judge):
            columns = {**row, "order": turn, "repeat": repeat, **apart}
            if own is None or other is None:
                yield Slot(columns, None, None, "unanswered")
            elif own == other:
                yield Slot(columns, None, None, "same")
            else:
                body = request(rubric, judge, prompt, *((other, own) if turn == 0 else (own, other)))
                size = sum(len(message["content"]) for message in body["messages"])
                if judge.max_input_chars is not None and size > judge.max_input_chars:
                    yield Slot(columns, None, None, "too_long")
                else:
                    yield Slot(columns, request_key(body, repeat), body)


def request(rubric: Rubric, judge: JudgeConfig, question: str, answer_a: str, answer_b: str) -> dict[str, Any]:
    """Return the body of the request for a verdict."""
    body = {**judge.parameters(), "messages": rubric.messages(question, answer_a, answer_b)}
    if rubric.verdict == "logprobs":
        return {**body, "max_tokens": 1, "logprobs": True, "top_logprobs": judge.top_logprobs}
    if rubric.verdict == "json":
        schema = {"name": "verdict", "strict": True, "schema": JSON_SCHEMA}
        return {**body, "response_format": {"type": "json_schema", "json_schema": schema}}
    return body


def verdict_table(wanted: list[Slot], rubric: Rubric, answers: Mapping[str, Answer]) -> pa.Table:
    """Return the verdicts of all slots, in their order; every request must be answered."""
    rows = []
    for slot in wanted:
        if slot.key is None:
            rows.append(verdict_row(slot.columns, Verdict(slot.outcome), None))
        else:
            answer = answers[slot.key]
            rows.append(verdict_row(slot.columns, read_verdict(rubric, answer), answer))
    return pa.Table.from_pylist(rows, schema=VERDICTS_SCHEMA)


def judge_identity(judge: JudgeConfig, rubric: Rubric) -> dict[str, Any]:
    """Return what decides a judge's verdicts beside the answers: model, rubric, orders, repeats, what is asked again; not where."""
    asked = judge.model_dump(mode="json", include={"orders", "both_on", "repeats", "repeated_on", "max_input_chars", "top_logprobs"})
    named = {"parameters": judge.parameters(), "rubric": rubric.digest, "version": rubric.version}
    return {**named, **asked, **judge.endpoint.identity()}


def _responses(answers: pa.Table) -> dict[str, str]:
    """Return the responses by prompt, without those that were refused."""
    rows = answers.select(["prompt_id", "response", "refused"]).to_pylist()
    return {row["prompt_id"]: row["response"] for row in rows if not row["refused"]}
