"""Public layouts of training data, each a file of its own: what is in it, and what has to come out."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ASK, SAY = "Which rivers flow through Vienna?", "The Danube."
TOOL = {
    "type": "function",
    "function": {"name": "search", "description": "finds", "parameters": {"type": "object", "properties": {"q": {"type": "string"}}}},
}
CALL = {"id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"q": "Vienna"}'}}
BARE = {"type": "function", "function": {"name": "search", "arguments": {"q": "Vienna"}}}


def m(role: str, content: str | None = None, **beside: Any) -> dict[str, Any]:
    return {"role": role, **({} if content is None else {"content": content}), **beside}


PLAIN = [m("user", ASK), m("assistant", SAY)]
SYSTEM = [m("system", "Be brief."), *PLAIN]
CALLED = [m("user", ASK), m("assistant", tool_calls=[CALL]), m("tool", "3 hits", tool_call_id="c1"), m("assistant", SAY)]
FUNCTION = [m("user", ASK), m("assistant", tool_calls=[BARE]), m("tool", "3 hits"), m("assistant", SAY)]
TURNS = [m("user", "Hello"), m("assistant", "Hi"), *PLAIN]
THOUGHT = [m("user", ASK), m("assistant", SAY, reasoning_content="Think of Austria.")]
WEIGHED = [m("user", ASK), m("assistant", "The Rhine.", weight=0), m("user", "again"), m("assistant", SAY, weight=1)]


def sharegpt(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": who, "value": said} for who, said in turns]


HUMAN = sharegpt(("human", ASK), ("gpt", SAY))


@dataclass(frozen=True)
class Layout:
    """One file: its name, how it is written, and the messages and tools of its only sample; or why its rows can't be used."""

    name: str
    write: Callable[[Path], Any]
    messages: list[dict[str, Any]] | None = field(default_factory=lambda: PLAIN)
    tools: list[Any] | None = None
    columns: dict[str, str] | None = None
    reason: str = ""
    unused: tuple[str, ...] = ()
    suffix: str = ".jsonl"


def line(row: Any) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def raw(data: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(data)


def parquet(row: dict[str, Any], schema: pa.Schema | None = None) -> Callable[[Path], Any]:
    return lambda path: pq.write_table(pa.Table.from_pylist([row], schema=schema), path)


def cells(row: dict[str, str], delimiter: str = ",", encoding: str = "utf-8") -> Callable[[Path], Any]:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(row), delimiter=delimiter)
    writer.writeheader()
    writer.writerow(row)
    return raw(text.getvalue().encode(encoding))


ALPACA = {"instruction": ASK, "input": "", "output": SAY}
MAPS = pa.schema([("messages", pa.list_(pa.map_(pa.string(), pa.string())))])
LISTS = pa.schema([("messages", pa.struct([("role", pa.list_(pa.string())), ("content", pa.list_(pa.string()))]))])
NESTED = {
    "messages": [
        m("user", ASK, tool_calls=None),
        {**m("assistant"), "content": None, "tool_calls": [BARE]},
        m("assistant", SAY, tool_calls=None),
    ]
}
PREFERENCE = {"prompt": ASK, "chosen": SAY, "rejected": "The Rhine."}

LAYOUTS = [
    Layout("alpaca", line(ALPACA)),
    Layout("alpaca, input", line({**ALPACA, "input": "Name one."}), [m("user", f"{ASK}\n\nName one."), m("assistant", SAY)]),
    Layout("alpaca, response", line({"instruction": ASK, "response": SAY})),
    Layout("alpaca, system", line({**ALPACA, "system": "Be brief."}), SYSTEM),
    Layout("alpaca, history", line({**ALPACA, "history": [["Hello", "Hi"]]}), TURNS),
    Layout("alpaca, history of null", line({**ALPACA, "history": None})),
    Layout("alpaca, tools", line({**ALPACA, "tools": json.dumps([TOOL])}), PLAIN, [TOOL]),
    Layout(
        "dolly",
        line({"instruction": ASK, "context": "Name one.", "response": SAY, "category": "qa"}),
        PLAIN,
        unused=("context", "category"),
    ),
    Layout(
        "dolly, mapped",
        line({"instruction": ASK, "context": "Name one.", "response": SAY}),
        [m("user", f"{ASK}\n\nName one."), m("assistant", SAY)],
        columns={"input": "context"},
    ),
    Layout(
        "open-orca, mapped",
        line({"system_prompt": "Be brief.", "question": ASK, "response": SAY}),
        SYSTEM,
        columns={"instruction": "question", "response": "response"},
    ),
    Layout(
        "medical-o1, mapped",
        line({"Question": ASK, "Complex_CoT": "Think of Austria.", "Response": SAY}),
        THOUGHT,
        columns={"instruction": "Question", "response": "Response", "reasoning": "Complex_CoT"},
    ),
    Layout("gsm8k, mapped", line({"question": ASK, "answer": SAY}), columns={"instruction": "question", "response": "answer"}),
    Layout("prompt, completion", line({"prompt": ASK, "completion": SAY})),
    Layout("prompt, response", line({"prompt": ASK, "response": SAY})),
    Layout("prompt, completion as messages", line({"prompt": PLAIN[:1], "completion": PLAIN[1:]})),
    Layout("prompt as messages, tools", line({"prompt": FUNCTION[:1], "completion": FUNCTION[1:], "tools": [TOOL]}), FUNCTION, [TOOL]),
    Layout("sharegpt", line({"conversations": HUMAN})),
    Layout("sharegpt, id", line({"id": "7", "conversations": HUMAN}), unused=("id",)),
    Layout("sharegpt, conversation", line({"conversation": HUMAN})),
    Layout("sharegpt, system", line({"system": "Be brief.", "conversations": HUMAN}), SYSTEM),
    Layout("sharegpt, system turn", line({"conversations": sharegpt(("system", "Be brief."), ("human", ASK), ("gpt", SAY))}), SYSTEM),
    Layout("sharegpt, user and assistant", line({"conversations": sharegpt(("user", ASK), ("assistant", SAY))})),
    Layout("sharegpt, Human and Assistant", line({"conversations": sharegpt(("Human", ASK), ("Assistant", SAY))})),
    Layout(
        "sharegpt, function call",
        line(
            {
                "conversations": sharegpt(
                    ("human", ASK),
                    ("function_call", '{"name": "search", "arguments": {"q": "Vienna"}}'),
                    ("observation", "3 hits"),
                    ("gpt", SAY),
                ),
                "tools": json.dumps([TOOL]),
            }
        ),
        FUNCTION,
        [TOOL],
    ),
    Layout(
        "sharegpt, weight",
        line(
            {
                "conversations": [
                    {"from": "human", "value": ASK},
                    {"from": "gpt", "value": "The Rhine.", "weight": 0},
                    {"from": "human", "value": "again"},
                    {"from": "gpt", "value": SAY, "weight": 1},
                ]
            }
        ),
        WEIGHED,
    ),
    Layout("messages", line({"messages": PLAIN})),
    Layout("messages, system column", line({"messages": PLAIN, "system": "Be brief."}), SYSTEM),
    Layout("messages, developer", line({"messages": [m("developer", "Be brief."), *PLAIN]}), SYSTEM),
    Layout(
        "messages, tool calls",
        line({"messages": [*CALLED[:1], {**CALLED[1], "content": None}, *CALLED[2:]], "tools": [TOOL]}),
        CALLED,
        [TOOL],
    ),
    Layout(
        "messages, function_call",
        line(
            {
                "messages": [
                    m("user", ASK),
                    {"role": "assistant", "content": None, "function_call": BARE["function"]},
                    m("function", "3 hits", name="search"),
                    m("assistant", SAY),
                ],
                "functions": [TOOL],
            }
        ),
        [FUNCTION[0], FUNCTION[1], m("tool", "3 hits", name="search"), FUNCTION[3]],
        [TOOL],
    ),
    Layout("messages, reasoning_content", line({"messages": THOUGHT}), THOUGHT),
    Layout("messages, thinking", line({"messages": [m("user", ASK), m("assistant", SAY, thinking="Think of Austria.")]}), THOUGHT),
    Layout("messages, weight", line({"messages": WEIGHED}), WEIGHED),
    Layout(
        "messages, parts of text",
        line({"messages": [m("user", [{"type": "text", "text": ASK[:5]}, {"type": "text", "text": ASK[5:]}]), m("assistant", SAY)]}),
    ),
    Layout(
        "messages, an image",
        line({"messages": [m("user", [{"type": "image_url", "image_url": {"url": "x"}}]), m("assistant", SAY)]}),
        None,
        reason="content part 'image_url' is no text",
    ),
    Layout(
        "messages, unknown role",
        line({"messages": [m("usr", ASK), m("assistant", SAY)]}),
        None,
        reason="unknown role 'usr': did you mean 'user'?",
    ),
    Layout("messages, a further key", line({"messages": [m("user", ASK, lang="en"), m("assistant", SAY)]}), unused=("messages[].lang",)),
    Layout("messages as JSON text", cells({"messages": json.dumps(PLAIN)}), suffix=".csv"),
    Layout("messages as Python prints them", cells({"messages": repr(PLAIN)}), suffix=".csv"),
    Layout("messages, parquet", parquet({"messages": PLAIN}), suffix=".parquet"),
    Layout("messages, maps", parquet({"messages": [list(one.items()) for one in PLAIN]}, MAPS), suffix=".parquet"),
    Layout(
        "messages, struct of lists", parquet({"messages": {"role": ["user", "assistant"], "content": [ASK, SAY]}}, LISTS), suffix=".parquet"
    ),
    Layout(
        "messages, nulls filled in",
        parquet(NESTED),
        [m("user", ASK), m("assistant", tool_calls=[BARE]), m("assistant", SAY)],
        suffix=".parquet",
    ),
    Layout("parquet, further columns", parquet({**ALPACA, "embedding": [0.1], "id": 7}), unused=("embedding", "id"), suffix=".parquet"),
    Layout("preference", line(PREFERENCE), None, reason="preference row (chosen and rejected)"),
    Layout("preference, mapped", line(PREFERENCE), columns={"instruction": "prompt", "response": "chosen"}, unused=("rejected",)),
    Layout("text only", line({"text": ASK}), None, reason="a text without instruction and response"),
    Layout("an array in .jsonl", raw(json.dumps([ALPACA]).encode())),
    Layout("pretty-printed objects", raw(json.dumps(ALPACA, indent=2).encode() + b"\n"), suffix=".jsonl"),
    Layout("under a key", raw(json.dumps({"version": "1", "data": [ALPACA]}).encode()), suffix=".json"),
    Layout("under its first key", raw(json.dumps({"data": [ALPACA], "version": "1"}, indent=1).encode()), suffix=".json"),
    Layout("column by column", raw(json.dumps({name: [value] for name, value in ALPACA.items()}).encode()), suffix=".json"),
    Layout("column by column, pandas", raw(json.dumps({name: {"0": value} for name, value in ALPACA.items()}).encode()), suffix=".json"),
    Layout("UTF-16", raw((json.dumps(ALPACA) + "\n").encode("utf-16"))),
    Layout("UTF-16 without a mark", raw((json.dumps(ALPACA) + "\n").encode("utf-16-be"))),
    Layout("gzip without a suffix", raw(gzip.compress(json.dumps(ALPACA).encode())), suffix=""),
    Layout("CSV", cells(ALPACA), suffix=".csv"),
    Layout("CSV, semicolons", cells(ALPACA, ";"), suffix=".csv"),
    Layout("CSV, bars", cells(ALPACA, "|"), suffix=".csv"),
    Layout("CSV, tabs", cells(ALPACA, "\t"), suffix=".csv"),
    Layout("CSV, UTF-16", cells(ALPACA, "\t", "utf-16"), suffix=".csv"),
    Layout(
        "CSV, mapped, semicolons",
        cells({"frage": ASK, "antwort": SAY}, ";"),
        columns={"instruction": "frage", "response": "antwort"},
        suffix=".csv",
    ),
]
