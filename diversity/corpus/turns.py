"""The turns of a conversation: lists however they arrive, roles however they are written, content, tool calls, reasoning, weights."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping
from typing import Any

from diversity.config import near_matches
from diversity.corpus.excerpts import kind_of
from diversity.corpus.formats import CALL, ROLES

Message = dict[str, Any]

REASONING = ("reasoning_content", "thinking", "reasoning")
WEIGHT = ("weight", "train", "training", "loss")
KNOWN_KEYS = frozenset({"role", "from", "content", "value", "tool_calls", "function_call", "name", "tool_call_id", *REASONING, *WEIGHT})
TEXT_PARTS = ("text", "input_text", "output_text")


class Unusable(Exception):
    """Carries the reason out of the depth of a row."""


def read_turns(turns: Any, unknown: set[str] | None = None) -> list[Message]:
    """Return a conversation's messages, whoever speaks.

    Args:
        turns: a list of objects; also as JSON text, as an object of lists, or of maps.
        unknown: gets `messages[].key` for every key of a turn that nothing reads.

    Raises:
        Unusable: no list of objects with a known role and content.
    """
    listed = as_list(turns)
    if listed is None:
        raise Unusable(f"conversation is no list ({kind_of(turns)})")
    return [_message(turn, unknown) for turn in listed]


def as_list(value: Any) -> list[Any] | None:
    """Return a list however it arrives, or None.

    Known are lists, arrays, their JSON text (or what Python prints for them, as tables saved as CSV hold it), and an object of lists of
    one length, which is how `datasets` stores a list of objects.
    """
    if isinstance(value, (list, tuple)):
        return list(value)
    if hasattr(value, "tolist"):
        return as_list(value.tolist())
    if isinstance(value, str):
        found = decoded(value)
        return as_list(found) if isinstance(found, (list, dict)) else None
    if isinstance(value, Mapping) and value:
        columns = [column.tolist() if hasattr(column, "tolist") else column for column in value.values()]
        if all(isinstance(column, (list, tuple)) for column in columns) and len({len(column) for column in columns}) == 1:
            return [dict(zip(value.keys(), cells, strict=True)) for cells in zip(*columns, strict=True)]
    return None


def decoded(text: str) -> Any:
    """Return the list or object that a text spells in JSON, or as Python prints it; None where it spells neither."""
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


def as_tools(value: Any) -> list[Any] | None:
    """Return the tools that a model is given, each an object, or None.

    Raises:
        Unusable: they are no list of objects.
    """
    if value is None:
        return None
    found = decoded(value) if isinstance(value, str) else value
    found = [found] if isinstance(found, Mapping) and "name" in {*found, *found.get("function", ())} else as_list(found)
    if found is None:
        raise Unusable(f"tools are no list ({kind_of(value)})")
    tools = [decoded(tool) if isinstance(tool, str) else _as_object(tool) for tool in found]
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise Unusable("tools are no list of objects")
    return tools or None


def called(message: Mapping[str, Any]) -> bool:
    """Return whether a message calls a tool."""
    return "tool_calls" in message


def _as_object(value: Any) -> Any:
    """Return an object however it arrives: a map of a table is a list of pairs."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
        return dict(value)
    return value


def _message(turn: Any, unknown: set[str] | None) -> Message:
    if type(turn) is dict and len(turn) == 2 and type(content := turn.get("content", turn.get("value"))) is str:
        role = turn.get("role", turn.get("from"))
        if type(role) is str and (known := ROLES.get(role)) not in (None, CALL):
            return {"role": known, "content": content}  # as most turns are
    given, turn = turn, decoded(turn) if isinstance(turn, str) else _as_object(turn)
    if not isinstance(turn, Mapping):
        raise Unusable(f"message is no object ({kind_of(given)})")
    role = _role(_first(turn, "role", "from"))
    message: Message = {"role": role}
    content = _first(turn, "content", "value")
    if role == CALL:
        message = {"role": "assistant"}
        if turn.get("tool_calls") is None:
            message["tool_calls"] = _calls_of_text(content)
    elif type(content) is str:
        message["content"] = content
    elif content is not None:
        message |= _of_parts(content)
    if len(turn) > 2 or "content" not in message:
        message |= _beside(turn)
        if unknown is not None:
            unknown.update(f"messages[].{key}" for key, value in turn.items() if key not in KNOWN_KEYS and value is not None)
    if "content" not in message and "tool_calls" not in message:
        raise Unusable("message without content")
    return message


def _role(written: Any) -> str:
    """Return the usual name of who speaks.

    Raises:
        Unusable: there is none, or none that is known; the reason names it and what is near.
    """
    if written is None or written == "":
        raise Unusable("message without role")
    if not isinstance(written, str):
        raise Unusable(f"message's role is no string ({kind_of(written)})")
    known = ROLES.get(written) or ROLES.get(written.lower().replace("-", "_"))
    if known is None:
        raise Unusable(f"unknown role {written[:40]!r}{near_matches(written.lower(), ROLES)}")
    return known


def _of_parts(content: Any) -> Message:
    """Return content and reasoning out of a list of parts; texts are joined as they stand, as chat templates do.

    Raises:
        Unusable: a part that is no text; the reason names its type.
    """
    parts = as_list(content) if not isinstance(content, Mapping) else [content]
    if parts is None or (isinstance(content, Mapping) and "text" not in content):
        raise Unusable(f"message's content is no string ({kind_of(content)})")
    said: dict[str, list[str]] = {}
    for part in parts:
        part = _as_object(part)
        kind = "text" if isinstance(part, str) else (part.get("type") or "text") if isinstance(part, Mapping) else kind_of(part)
        text = (
            part if isinstance(part, str) else part.get("thinking" if kind == "thinking" else "text") if isinstance(part, Mapping) else None
        )
        if kind not in (*TEXT_PARTS, "thinking", "reasoning"):
            raise Unusable(f"content part {str(kind)[:40]!r} is no text")
        if not isinstance(text, str):
            raise Unusable(f"content part {kind!r} without text")
        said.setdefault("content" if kind in TEXT_PARTS else "reasoning_content", []).append(text)
    return {name: "".join(texts) for name, texts in said.items()}


def _beside(turn: Mapping[str, Any]) -> Message:
    """Return what a turn holds beside role and content.

    Raises:
        Unusable: something of it is not what its name says.
    """
    found: Message = {}
    calls = _first(turn, "tool_calls")
    if calls is None and turn.get("function_call") is not None:
        calls = [{"type": "function", "function": turn["function_call"]}]
    if calls is not None and (checked := _checked_calls(calls)):
        found["tool_calls"] = checked
    for name, keys in (("name", ("name",)), ("tool_call_id", ("tool_call_id",)), ("reasoning_content", REASONING)):
        value = _first(turn, *keys)
        if value is not None:
            if not isinstance(value, str):
                raise Unusable(f"message's {name} is no string ({kind_of(value)})")
            found[name] = value
    weight = _first(turn, *WEIGHT)
    if weight is not None:
        found["weight"] = _weight(weight)
    return found


def _checked_calls(calls: Any) -> list[Any]:
    """Return tool calls as they are, each an object that names a function."""
    listed = [calls] if isinstance(calls, Mapping) and "name" in {*calls, *(calls.get("function") or ())} else as_list(calls)
    if listed is None:
        raise Unusable(f"tool calls are no list ({kind_of(calls)})")
    found = [decoded(call) if isinstance(call, str) else _as_object(call) for call in listed]
    for call in found:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise Unusable("tool call without the name of a function")
    return found


def _calls_of_text(value: Any) -> list[Any]:
    """Return the tool calls of ShareGPT's `function_call` turn: JSON of one function with its arguments, or of a list of them."""
    found = decoded(value) if isinstance(value, str) else value
    listed = [found] if isinstance(found, Mapping) else found
    if not isinstance(listed, list) or not listed:
        raise Unusable("function call is no JSON object")
    for call in listed:
        if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
            raise Unusable("function call without the name of a function")
    return [{"type": "function", "function": dict(call)} for call in listed]


def _weight(value: Any) -> int | float:
    """Return how much a turn counts: 0 is not learnt."""
    if not isinstance(value, (bool, int, float)) or not math.isfinite(value) or value < 0:
        raise Unusable(f"message's weight is no number from 0 on ({kind_of(value)})")
    return plain_number(value)


def plain_number(value: float) -> float | int:
    """Return a number as training data spells it: whole ones (up to where floats hold every one) without a point."""
    return int(value) if float(value).is_integer() and abs(value) < 2**53 else float(value)


def _first(turn: Mapping[str, Any], *keys: str) -> Any:
    """Return the first of the keys that holds something, else None."""
    for key in keys:
        value = turn.get(key)
        if value is not None:
            return value
    return None
