"""How a sample looks in the formats of other trainers, and which samples a format can't hold.

What a sample says beside role and content (its `beside`, a set of the words below) decides that together with the roles of its turns. A
format holds what its readers act on: where they would drop a tool call, a weight or reasoning in silence, the sample does not fit.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from diversity.corpus.samples import MESSAGE_FIELDS, compact_text, messages_of
from diversity.datasets.card import Exported, axolotl_snippet, dataset_info
from diversity.datasets.dataset import DATASET_SCHEMA

Row = dict[str, Any]
Roles = tuple[str, ...]
Beside = frozenset[str]
Fits = Callable[[Roles, Beside], str | None]

TOOLS = "tools"
CALLS = "tool calls"
CALL_IDS = "ids of tool calls"
SAID_AND_CALLED = "text beside a tool call"
OTHERS_CALL = "a tool call by another than the assistant"
NAMES = "names of speakers"
REASONING = "reasoning apart from the answer"
WEIGHTS = "turns of weight 0"
FULL_WEIGHTS = "turns of weight 1"
PLAIN: Beside = frozenset()


@dataclass(frozen=True)
class Format:
    """How a dataset looks to those who read the format.

    Attributes:
        suffix: of the files, `.jsonl` or `.parquet`.
        row: turns a sample into what is written, given what the samples of its dataset hold beside role and content; None writes
            `columns` as they are. `messages` and `tools` are JSON values.
        fits: why a conversation of these roles, with this beside, can't be held, or None.
        columns: of parquet files, empty for JSONL.
        beside: name and content of the files that go with the data, from the URI of the folder and what was exported.
    """

    suffix: str
    row: Callable[[Row, Beside], Row] | None = None
    fits: Fits | None = None
    columns: tuple[str, ...] = ()
    beside: Callable[[str, Sequence[Exported]], Mapping[str, str]] = field(default=lambda folder, exported: {})


def shapes(batch: pa.Table) -> Iterator[tuple[Roles, Beside]]:
    """Yield (roles, beside) of each sample; texts are only looked at where there is something beside them.

    Args:
        batch: `messages` and `tools`.
    """
    tools = batch["tools"].to_pylist()
    start = 0
    for chunk in batch["messages"].chunks:
        flat = chunk.flatten()
        roles, lengths = pc.struct_field(flat, "role").to_pylist(), chunk.value_lengths().to_pylist()
        rows = None if _plain(flat) else chunk.to_pylist()
        for number, (length, stop) in enumerate(zip(lengths, accumulate(lengths), strict=True)):
            beside = PLAIN if rows is None else beside_of(messages_of(rows[number]))
            if tools[start + number] is not None:
                beside = beside | {TOOLS}
            yield tuple(roles[stop - length : stop]), beside
        start += len(chunk)


def beside_of(messages: Sequence[Row]) -> Beside:
    """Return what messages hold beside role and content."""
    found = set()
    for message in messages:
        if "tool_calls" in message:
            found.add(CALLS)
            if message["role"] != "assistant":
                found.add(OTHERS_CALL)
            if message.get("content") is not None:
                found.add(SAID_AND_CALLED)
            if any(call.keys() != {"type", "function"} or call["type"] != "function" for call in message["tool_calls"]):
                found.add(CALL_IDS)
        if "tool_call_id" in message:
            found.add(CALL_IDS)
        if "name" in message:
            found.add(NAMES)
        if "reasoning_content" in message:
            found.add(REASONING)
        if "weight" in message:
            found.add(FULL_WEIGHTS if message["weight"] == 1 else WEIGHTS)
    return frozenset(found)


def fields_of(beside: Beside) -> tuple[str, ...]:
    """Return the fields of messages that samples with this beside may have."""
    wanted = {"role", "content"}
    wanted |= {"tool_calls"} if CALLS in beside else set()
    wanted |= {"tool_call_id"} if CALL_IDS in beside else set()
    wanted |= {"name"} if NAMES in beside else set()
    wanted |= {"reasoning_content"} if REASONING in beside else set()
    wanted |= {"weight"} if beside & {WEIGHTS, FULL_WEIGHTS} else set()
    return tuple(name for name in MESSAGE_FIELDS if name in wanted)


def _plain(flat: pa.StructArray) -> bool:
    """Return whether all messages are role and content."""
    lacking = (flat.field(name).null_count == len(flat) for name in MESSAGE_FIELDS[2:])
    return not flat.field("content").null_count and all(lacking)


def _named(sample: Row) -> Row:
    return {"sample_id": sample["sample_id"], "source": sample["source"]}


def _whole(sample: Row, used: Beside) -> Row:
    """Everything that there is; tools and score only where the sample has some."""
    return {name: value for name, value in sample.items() if value is not None or name not in ("tools", "score")}


def _alpaca(sample: Row, used: Beside) -> Row:
    user, assistant = sample["messages"]
    return {"instruction": user["content"], "input": "", "output": assistant["content"], **_named(sample)}


def _function_call(message: Row) -> str:
    """Return tool calls as ShareGPT writes them: JSON of one function with its arguments, or of a list of them; arguments as objects."""
    functions = [dict(call.get("function", call)) for call in message["tool_calls"]]
    for function in functions:
        if isinstance(function.get("arguments"), str):
            function["arguments"] = _value_of(function["arguments"])
    return json.dumps(functions[0] if len(functions) == 1 else functions, ensure_ascii=False)


def _value_of(text: str) -> Any:
    """Return the value that a text is the JSON of; the text itself where that is none, or can't be spelled again: NaN, 1e999, too deep."""
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(text)
        json.loads(compact_text([[[[[[value]]]]]]).encode())  # it will stand some levels deeper; a lone surrogate has no UTF-8
        return value
    return text


def _sharegpt(sample: Row, used: Beside) -> Row:
    names = {"user": "human", "assistant": "gpt", "tool": "observation"}
    turns = []
    for message in sample["messages"]:
        if "tool_calls" in message:
            called = _function_call(message)
            turn = {"from": "function_call", "value": called, **_exact_calls(message, called)}
        else:
            turn = {"from": names.get(message["role"], message["role"]), "value": message["content"]}
        turns.append(turn | ({"weight": message["weight"]} if "weight" in message else {}))
    tools = {"tools": _tools_text(sample)} if TOOLS in used else {}
    return {"conversations": turns, **tools, **_named(sample)}


def _exact_calls(message: Row, called: str) -> Row:
    """Return the tool calls as text beside a `function_call` turn that does not give them back exactly."""
    again = json.loads(called)
    functions = again if isinstance(again, list) else [again]
    same = compact_text([{"type": "function", "function": one} for one in functions]) == compact_text(message["tool_calls"])
    return {} if same else {"tool_calls": compact_text(message["tool_calls"])}


def _tools_text(sample: Row) -> str:
    return json.dumps(sample["tools"], ensure_ascii=False) if sample["tools"] is not None else ""


def _llama_factory(sample: Row, used: Beside) -> Row:
    """Turns of role and content, a tool call as its JSON; what says more than that stands beside it, where LLaMA-Factory does not look."""
    turns = []
    for message in sample["messages"]:
        if "tool_calls" in message:
            called = _function_call(message)
            turns.append({**message, "role": "function_call", "content": called})
            del turns[-1]["tool_calls"]
            turns[-1] |= _exact_calls(message, called)
        else:
            turns.append(message)
    tools = {"tools": _tools_text(sample)} if TOOLS in used else {}
    return {"messages": turns, **tools, **_named(sample)}


def _axolotl(sample: Row, used: Beside) -> Row:
    turns = [{**m, "training": bool(m["weight"])} if "weight" in m else m for m in sample["messages"]]
    tools = {"tools": sample["tools"]} if sample["tools"] is not None else {}
    return {"messages": turns, **tools, **_named(sample)}


def _prompt_completion(sample: Row, used: Beside) -> Row:
    return {**sample, "prompt": sample["messages"][:-1], "completion": sample["messages"][-1:]}


@lru_cache(maxsize=4096)
def _one_exchange(roles: Roles, beside: Beside) -> str | None:
    """Alpaca has one field for the instruction and one for the answer."""
    if roles == ("user", "assistant"):
        return min(beside, default=None)
    return "a system turn" if "system" in roles else "several turns"


@lru_cache(maxsize=4096)
def _alternating(roles: Roles, beside: Beside) -> str | None:
    """LLaMA-Factory's converter takes a system turn at the start, then user (or tool) and assistant by turns; it skips all else."""
    if lost := beside & {SAID_AND_CALLED, OTHERS_CALL, REASONING, WEIGHTS}:
        return min(lost)
    turns = roles[1:] if roles[0] == "system" else roles
    asked, answered = set(turns[0::2]), set(turns[1::2])
    if asked <= {"user", "tool"} and answered <= {"assistant"}:
        return "no answer to the last turn" if len(turns) % 2 else None
    return "turns that do not alternate"


@lru_cache(maxsize=4096)
def _said_by_turns(roles: Roles, beside: Beside) -> str | None:
    """ShareGPT has a speaker and a text for each turn."""
    return min(beside & {CALL_IDS, SAID_AND_CALLED, OTHERS_CALL, NAMES, REASONING, WEIGHTS}, default=None)


@lru_cache(maxsize=4096)
def _unweighted(roles: Roles, beside: Beside) -> str | None:
    """TRL learns every answer alike."""
    return WEIGHTS if WEIGHTS in beside else None


@lru_cache(maxsize=4096)
def _one_answer(roles: Roles, beside: Beside) -> str | None:
    """Of prompt and completion only the completion is trained on."""
    if roles[-1] != "assistant":
        return "no answer to the last turn"
    return "several answers" if roles.count("assistant") > 1 else _unweighted(roles, beside)


_IDS = ("sample_id", "source")
FORMATS = {
    "jsonl": Format(".jsonl", _whole),
    "hf": Format(".parquet", columns=tuple(DATASET_SCHEMA.names)),
    "trl": Format(".parquet", fits=_unweighted, columns=("messages", "tools", *_IDS)),
    "trl-prompt-completion": Format(".parquet", _prompt_completion, _one_answer, ("prompt", "completion", "tools", *_IDS)),
    "llama-factory": Format(".jsonl", _llama_factory, _alternating, beside=dataset_info),
    "axolotl": Format(".jsonl", _axolotl, beside=axolotl_snippet),
    "sharegpt": Format(".jsonl", _sharegpt, _said_by_turns),
    "alpaca": Format(".jsonl", _alpaca, _one_exchange),
}
