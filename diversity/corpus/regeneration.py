"""Every instruction answered anew by one model, so that the quality of responses does not vary with where an instruction comes from.

What is asked is the conversation up to the last assistant turn; what comes back takes that turn's place, and what followed it is dropped. A
refused, cut or empty answer leaves no sample and is counted by its reason. The paper had all its responses from one model; which prompt and
sampling it used is not known, so those are ours.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pydantic import Field

from diversity.corpus.excerpts import excerpt
from diversity.corpus.ingestion import REJECTED_SCHEMA
from diversity.corpus.samples import Message, Sample, messages_of, sample_id, samples_table, texts
from diversity.llm.budget import BudgetConfig
from diversity.llm.model import ModelConfig
from diversity.llm.reading import Answer

REASONS = {"refused": "the model's endpoint refused", "cut": "the answer came to its most tokens", "empty": "the answer is empty"}
SENT = ("role", "content", "tool_calls", "name", "tool_call_id")
BEFORE_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string()),
        pa.field("old_sample_id", pa.string()),
        pa.field("source", pa.string()),
        pa.field("old_response", pa.large_string()),
        pa.field("old_turn", pa.large_string()),  # the one turn that the new response stands for; the same where there is one turn
        pa.field("response", pa.large_string()),
        pa.field("tokens", pa.int32()),  # of the new response, as the endpoint counts them; 0 where it doesn't
    ]
)


class RegenerateConfig(ModelConfig):
    """Who answers every instruction anew, and how.

    Attributes:
        system: put before conversations that have no system turn of their own; null puts none.
        budget: the most that may be spent.
        max_lost: share of instructions that may come to nothing (refused, cut, empty) before the stage ends with an error.
        ifd_samples: samples whose instruction-following difficulty is compared before and after; 0 leaves it out.
    """

    system: str | None = None
    budget: BudgetConfig = BudgetConfig()
    max_lost: float = Field(default=0.1, ge=0, le=1)
    ifd_samples: int = Field(default=128, ge=0)

    def identity(self) -> dict[str, Any]:
        """Return what decides the new responses: model, sampling, what is put before and what is asked again, not where it is asked."""
        return {"parameters": self.parameters(), "system": self.system, **self.endpoint.identity()}


@dataclass
class Regenerated:
    """What became of some samples.

    Attributes:
        samples: with their new responses.
        before: BEFORE_SCHEMA, beside them.
        rejected: REJECTED_SCHEMA of those that came to nothing.
        reasons: how many came to nothing, by reason.
    """

    samples: list[Sample]
    before: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    reasons: Counter[str]

    @classmethod
    def empty(cls) -> Regenerated:
        """Return nothing yet."""
        return cls([], [], [], Counter())


def request(config: RegenerateConfig, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of the request for a sample's new response.

    Args:
        config: who is asked.
        row: of SAMPLE_SCHEMA.
    """
    messages = [{name: message[name] for name in SENT if name in message} for message in asked(messages_of(row["messages"]))]
    for message in messages:
        message["tool_calls"] = _as_text(message["tool_calls"]) if "tool_calls" in message else None
    messages = [{name: value for name, value in message.items() if name != "tool_calls" or value is not None} for message in messages]
    if config.system is not None and not any(message["role"] == "system" for message in messages):
        messages.insert(0, {"role": "system", "content": config.system})
    tools = {"tools": json.loads(row["tools"])} if row.get("tools") else {}
    return {**config.parameters(), "messages": messages, **tools}


def asked(messages: Sequence[Message]) -> list[Message]:
    """Return a conversation up to its last assistant turn."""
    last = max(place for place, message in enumerate(messages) if message["role"] == "assistant")
    return list(messages[:last])


def add(found: Regenerated, row: Mapping[str, Any], answer: Answer, number: int) -> None:
    """Add what became of a sample.

    Args:
        found: what is known so far.
        row: of SAMPLE_SCHEMA.
        answer: the new response.
        number: of the row in its corpus.
    """
    kind = "cut" if answer.kind == "cut" else answer.kind if answer.text.strip() else "empty"
    text = answer.text
    if kind != "ok":
        found.reasons[kind] += 1
        reason = REASONS[kind] + (f": {text[:120]}" if kind == "refused" else "")
        found.rejected.append({"file": row["sample_id"], "row": number, "reason": reason, "excerpt": excerpt(row["instruction"])})
        return
    messages = [*asked(messages_of(row["messages"])), {"role": "assistant", "content": text}]
    instruction, response = texts(messages)
    name = sample_id(messages, row.get("tools"))
    found.samples.append(Sample(name, row["source"], instruction, response, messages, "regenerated", row.get("tools")))
    found.before.append(
        {
            "sample_id": name,
            "old_sample_id": row["sample_id"],
            "source": row["source"],
            "old_response": row["response"],
            "old_turn": texts([messages_of(row["messages"])[len(messages) - 1]])[1],
            "response": response,
            "tokens": answer.completion_tokens,
        }
    )


def tables(found: Regenerated) -> tuple[pa.Table, pa.Table, pa.Table, int]:
    """Return (samples sorted by sample_id and each once, what they were before, rejected, duplicates dropped).

    Conversations that were told apart by nothing but their last answer are one sample now: that of the smallest source stays.
    """
    order = sorted(range(len(found.samples)), key=lambda place: (found.samples[place].sample_id, found.samples[place].source, place))
    names = [found.samples[place].sample_id for place in order]
    kept = [place for rank, place in enumerate(order) if not rank or names[rank] != names[rank - 1]]
    samples = samples_table([found.samples[place] for place in kept])
    before = pa.Table.from_pylist([found.before[place] for place in kept], schema=BEFORE_SCHEMA)
    return samples, before, pa.Table.from_pylist(found.rejected, schema=REJECTED_SCHEMA), len(order) - len(kept)


def _as_text(calls: Any) -> Any:
    """Return tool calls as chat completions want them: arguments as JSON text."""
    found = []
    for call in calls:
        function = dict(call.get("function", call))
        if not isinstance(function.get("arguments", ""), str):
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
        found.append({**call, "function": function} if "function" in call else function)
    return found
