"""The canonical sample: ids by the contract's own words, every format, every reason for rejecting, nothing dropped in silence."""

from __future__ import annotations

import hashlib
import json
import math
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.config import ConfigError, parse
from diversity.corpus.config import CorpusConfig
from diversity.corpus.excerpts import excerpt
from diversity.corpus.formats import FORMATS, KNOWN_COLUMNS
from diversity.corpus.json_rows import Unreadable, parse_json
from diversity.corpus.rows import detect_format
from diversity.corpus.samples import (
    SAMPLE_SCHEMA,
    Rejection,
    Sample,
    _any_sample,
    messages_of,
    sample_id,
    samples_table,
    stored,
    texts,
    to_sample,
)
from diversity.corpus.turns import Unusable, read_turns

ANY_TEXT = st.text(st.characters(blacklist_categories=()), max_size=40)
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), ANY_TEXT, st.binary(max_size=10))
VALUES = st.recursive(
    LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(ANY_TEXT, inner, max_size=3)), max_leaves=8
)
NO_PAIR = "no user turn followed by an assistant turn"
COLUMNS = ["instruction", "input", "output", "response", "prompt", "completion", "messages", "conversations", "source", "other"]
TURNS = st.lists(
    st.one_of(VALUES, st.fixed_dictionaries({}, optional=dict.fromkeys(("role", "content", "from", "value"), VALUES))), max_size=4
)
HOSTILE_ROWS = st.one_of(
    VALUES,
    st.dictionaries(st.sampled_from(COLUMNS), st.one_of(VALUES, TURNS), max_size=5),
    st.fixed_dictionaries({"messages": TURNS}),
)


def sample(row: object, **options: object) -> Sample:
    found = to_sample(row, default_source="f.jsonl", **options)
    assert isinstance(found, Sample), found
    return found


def reason(row: object, **options: object) -> str:
    found = to_sample(row, default_source="f.jsonl", **options)
    assert isinstance(found, Rejection), found
    return found.reason


def contract_id(messages: list[dict[str, str]]) -> str:
    """The sentence of the contract, written out."""
    text = json.dumps(messages, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


@given(st.lists(st.tuples(st.text(max_size=20), st.text()), max_size=5))
def test_sample_id_is_the_contracts(turns: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": content} for role, content in turns]
    assert sample_id(messages) == contract_id(messages)


def test_every_format_gives_the_same_sample() -> None:
    rows = [
        {"instruction": "Add.", "input": "", "output": "2"},
        {"instruction": "Add.", "response": "2"},
        {"prompt": "Add.", "completion": "2"},
        {"conversations": [{"from": "human", "value": "Add."}, {"from": "gpt", "value": "2"}]},
        {"messages": [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "2"}]},
        {"messages": np.array([{"role": "user", "content": "Add."}, {"role": "assistant", "content": "2"}], dtype=object)},
    ]
    found = [sample(row) for row in rows]
    assert len({s.sample_id for s in found}) == 1
    assert {(s.instruction, s.response, s.source) for s in found} == {("Add.", "2", "f.jsonl")}
    assert [s.format for s in found] == ["alpaca", "alpaca", "prompt-completion", "sharegpt", "messages", "messages"]
    mapped = sample({"question": "Add.", "answer": "2"}, columns={"instruction": "question", "response": "answer"})
    assert (mapped.sample_id, mapped.format) == (found[0].sample_id, "mapped")


@pytest.mark.parametrize(
    ("given_input", "instruction"),
    [("", "Add."), (None, "Add."), (math.nan, "Add."), ("1+1", "Add.\n\n1+1"), (" ", "Add.\n\n "), ("None", "Add.\n\nNone")],
)
def test_alpaca_input_is_appended_when_there_is_one(given_input: object, instruction: str) -> None:
    assert sample({"instruction": "Add.", "input": given_input, "output": " 2\n"}).instruction == instruction


def test_nothing_is_stripped() -> None:
    kept = sample({"instruction": "\ufeff a\r\n\u2028\x00", "output": "<|endoftext|> None\\n "})
    assert (kept.instruction, kept.response) == ("\ufeff a\r\n\u2028\x00", "<|endoftext|> None\\n ")


def test_several_turns_and_a_system_turn() -> None:
    turns = [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("tool", "t"), ("assistant", "d")]
    found = sample({"messages": [{"role": role, "content": text} for role, text in turns]})
    assert (found.instruction, found.response) == ("a\n\nc", "b\n\nd")
    assert [(m["role"], m["content"]) for m in found.messages] == turns


def test_source_is_the_rows_own_or_the_files() -> None:
    row = {"instruction": "a", "output": "b"}
    assert [sample({**row, "source": source}).source for source in ("x", "", None, 5)] == ["x", "f.jsonl", "f.jsonl", "f.jsonl"]
    mapped = sample({"q": "a", "a": "b", "origin": "web"}, columns={"instruction": "q", "response": "a", "source": "origin"})
    assert mapped.source == "web"


def test_what_is_not_carried_is_named_whatever_columns_stand_beside_it() -> None:
    def unused(row: dict[str, Any], **columns: str) -> tuple[str, ...]:
        return sample(row, columns=columns or None).unused

    pair = {"instruction": "a", "output": "b"}
    assert unused({**pair, "source": 5}) == ("source",)
    assert unused({**pair, "sample_id": 7, "context": "c", "score": 3.0}) == ("sample_id", "context", "score"), (
        "a foreign id is no export of ours"
    )
    ours = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "sample_id": "0f" * 16, "source": "x"}
    assert unused({**ours, "instruction": "a", "response": "b", "chosen_for": 1}) == ()
    assert unused({**ours, "score": 1.0}) == ("score",) and unused({**ours, "score": 1.0}, score="score") == ()
    assert unused({**ours, "context": "c"}, input="context") == ("context",), "messages have no input"


def test_a_mapping_reads_the_columns_that_it_names_and_no_other() -> None:
    asked = {"instruction": "question", "response": "answer"}
    index = sample({"": 0, "question": "a", "answer": "b"}, columns=asked)
    assert (index.instruction, index.unused) == ("a", ("",)), "the unnamed column of a table's index is no input"
    assert sample({"prompt": "a", "completion": "b", "context": "c"}, columns={"input": "context"}).instruction == "a\n\nc"


def test_prompt_and_completion_as_json_text_are_turns() -> None:
    prompt, completion = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}], [{"role": "assistant", "content": "b"}]
    found = sample({"prompt": json.dumps(prompt), "completion": json.dumps(completion)})
    assert found.messages == [*prompt, *completion]
    for answer in ("[1, 2]", "[]", "[b]", '[{"content": "b"}]', "b"):
        plain = sample({"prompt": "[a]", "completion": answer})
        assert [turn["content"] for turn in plain.messages] == ["[a]", answer], "a text that is no conversation stays one"
        assert sample({"prompt": json.dumps(prompt), "completion": answer}).messages[0]["content"] == json.dumps(prompt)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (["a", "b"], "row is no object (list)"),
        ("text", "row is no object (string)"),
        (None, "row is no object (null)"),
        ({}, "no known columns"),
        ({"id": 1}, "no known columns"),
        ({"instruction": "a"}, "response is missing"),
        ({"output": "b"}, "instruction is missing"),
        ({"instruction": "a", "output": None}, "response is no string (null)"),
        ({"instruction": "a", "output": math.nan}, "response is no string (NaN)"),
        ({"instruction": "a", "output": ["b"]}, "response is no string (list)"),
        ({"instruction": {"x": 1}, "output": "b"}, "instruction is no string (object)"),
        ({"instruction": 7, "output": "b"}, "instruction is no string (number)"),
        ({"instruction": "a", "input": ["x"], "output": "b"}, "input is no string (list)"),
        ({"instruction": "a", "output": ""}, "response is empty"),
        ({"instruction": " \n\u3000\u2028", "output": "b"}, "instruction is empty"),
        ({"instruction": "a", "output": "\ud800"}, "lone surrogate"),
        ({"instruction": "a", "output": "b", "source": "\udfff"}, "lone surrogate"),
        ({"messages": []}, NO_PAIR),
        ({"messages": "text"}, "conversation is no list (string)"),
        ({"messages": ["text"]}, "message is no object (string)"),
        ({"messages": [{"content": "a"}, {"role": "assistant", "content": "b"}]}, "message without role"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]}, "message without content"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]}, "message without content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "content part 'text' without text"),
        ({"messages": [{"role": 3, "content": "a"}]}, "message's role is no string (number)"),
        ({"messages": [{"role": "assistant", "content": "b"}, {"role": "user", "content": "a"}]}, NO_PAIR),
        ({"messages": [{"role": "user", "content": " "}, {"role": "assistant", "content": "b"}]}, NO_PAIR),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": ""}]}, NO_PAIR),
    ],
)
def test_rejections_name_the_reason(row: object, why: str) -> None:
    assert reason(row) == why


def test_mapped_columns_that_are_missing() -> None:
    columns = {"instruction": "q", "response": "a"}
    assert reason({"q": "x"}, columns=columns) == "response is missing"
    assert reason({"instruction": "x", "output": "y"}, columns=columns) == "instruction is missing"
    assert reason({"q": "x"}, columns={"messages": "chat"}) == "messages is missing"


def test_a_table_with_columns_of_several_formats_is_told_apart_by_what_is_filled() -> None:
    assert detect_format({"messages": None, "instruction": "a", "output": "b"}) == "alpaca"
    assert detect_format({"messages": [], "prompt": "a", "prompt_id": 1}) == "messages"
    assert detect_format({"instruction": None, "output": "b"}) == "alpaca"
    assert detect_format({"prompt": "a", "response": "b"}) == "prompt-completion"
    assert detect_format({"question": "a"}) is None


@given(st.dictionaries(st.sampled_from(sorted({*KNOWN_COLUMNS, "question"})), st.none() | st.just("a")))
def test_the_format_is_the_first_whose_columns_hold_something_else_the_first_whose_columns_exist(row: dict[str, Any]) -> None:
    filled = {name for name, value in row.items() if value is not None}
    naive = [name for columns in (filled, set(row)) for name, groups in FORMATS if all(group & columns for group in groups)]
    assert detect_format(row) == next(iter(naive), None)


@settings(max_examples=400)
@given(HOSTILE_ROWS)
def test_any_row_is_a_sample_or_a_rejection(row: object) -> None:
    found = to_sample(row, default_source="f")
    if isinstance(found, Rejection):
        assert found.reason and len(found.excerpt) <= 300
        found.excerpt.encode("utf-8")
        return
    assert found.instruction.strip() and found.response.strip() and found.source
    said = found.messages if found.tools is None else {"messages": found.messages, "tools": json.loads(found.tools)}
    assert found.sample_id == contract_id(said) and texts(found.messages) == (found.instruction, found.response)
    table = samples_table([found, found])
    table.validate(full=True)
    assert table.schema == SAMPLE_SCHEMA
    row = table.to_pylist()[1]
    assert row == {name: getattr(found, name) for name in SAMPLE_SCHEMA.names} | {"messages": stored(found.messages)}
    assert messages_of(row["messages"]) == found.messages


@settings(max_examples=300)
@given(st.one_of(st.binary(max_size=60), VALUES.map(repr).map(lambda text: text.encode("utf-8", "surrogatepass"))))
def test_any_line_is_parsed_or_unreadable(line: bytes) -> None:
    value = parse_json(line)
    if isinstance(value, Unreadable):
        assert value.reason in ("invalid UTF-8", "invalid JSON")
        value.excerpt.encode("utf-8")


def test_lines_at_the_edge_of_json() -> None:
    assert parse_json(b'{"a": "\\u0000 \x00 \xe2\x80\xa8"}\r\n') == {"a": "\x00 \x00 \u2028"}
    assert reason(parse_json(b'{"instruction": "a", "output": "\\ud83d"}')) == "lone surrogate"
    assert sample(parse_json(b'{"instruction": "a", "output": "\\ud83d\\ude00"}')).response == "\U0001f600"
    assert reason(parse_json(b'{"instruction": "a", "output": NaN}')) == "response is no string (NaN)"
    for broken in (b"{", b"{'a': 1}", b'{"a": 1}}', b"[" * 100_000, b"1" * 5_000, b""):
        assert parse_json(broken).reason == "invalid JSON"
    for broken in (b'{"a": "\xff"}', b"\xed\xa0\x80", b"\xff\xfe{\x00}\x00"):
        assert parse_json(broken).reason == "invalid UTF-8"


def test_excerpts_of_anything_are_short_unicode() -> None:
    loop: list[object] = []
    loop.append(loop)
    for value in (b"\xff" * 1000, "\ud800" * 1000, {"a": object()}, {("x",): 1}, loop, 10**5000, {"a": "x" * 10**6}):
        shown = excerpt(value)
        assert len(shown.encode("utf-8")) <= 2000


def test_samples_table_of_nothing_has_the_schema() -> None:
    assert samples_table([]).schema == SAMPLE_SCHEMA and len(samples_table([])) == 0
    message = SAMPLE_SCHEMA.field("messages").type.value_type
    assert [field.name for field in message] == ["role", "content", "tool_calls", "name", "tool_call_id", "reasoning_content", "weight"]


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"instructions": "q", "response": "a"}, "did you mean 'instruction'"),
        ({"instruction": "q"}, "both instruction and response"),
        ({"messages": "m", "instruction": "q", "response": "a"}, "not both"),
    ],
)
def test_column_mappings_that_make_no_sense(columns: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse(CorpusConfig, {"paths": ["x.jsonl"], "columns": columns})


def test_real_bad_rows_are_survived(real_data) -> None:  # type: ignore[no-untyped-def]
    """What real sources hold: rows as the sources have them (some cut off), so that each must be parsed, rejected or unreadable."""
    lines = [line for line in (real_data / "bad_rows.jsonl").read_bytes().split(b"\n") if line]
    outcomes = {}
    for line in lines:
        bad = json.loads(line)
        try:
            row = json.loads(bad["excerpt"])
        except ValueError:
            assert isinstance(parse_json(bad["excerpt"].encode()), Unreadable)
            continue
        if isinstance(row, list) and len(row) == 3 and isinstance(row[0], str):
            row = dict(zip(("instruction", "input", "output"), row, strict=True))
        outcomes.setdefault(bad["reason"], []).append(to_sample(row, default_source=bad["source"]))
    assert {found.reason for found in outcomes["empty-response"]} <= {"response is empty", "instruction is empty"}
    assert all(isinstance(found, Rejection) for found in outcomes["file-not-utf8"] + outcomes["very-long(>20k chars)"])
    for kept in ("literal-backslash-n", "eos-token-text-in-completion", "html-entities", "junk-response"):
        assert any(isinstance(found, Sample) for found in outcomes[kept]), kept


PAIRS = st.dictionaries(
    st.sampled_from(["instruction", "input", "output", "response", "prompt", "completion", "source", "other"]),
    st.sampled_from(["a", "é\ud800", "", " ", "NUL\x00", "two\n\nlines", '[{"role": "user", "content": "a"}]']) | LEAVES,
    max_size=4,
)


@given(PAIRS | HOSTILE_ROWS, st.sampled_from(["f.jsonl", "\ud800.jsonl"]))
@settings(max_examples=400)
def test_the_short_way_for_plain_pairs_gives_what_the_long_way_gives(row: Any, source: str) -> None:
    short, long = to_sample(row, default_source=source), _any_sample(row, source, None)
    assert short == long and type(short) is type(long)


@given(
    st.dictionaries(
        st.sampled_from(["role", "from", "content", "value", "name"]), st.sampled_from(["user", "GPT", "function_call", "", None, 1])
    )
)
@settings(max_examples=300)
def test_the_short_way_for_plain_turns_gives_what_the_long_way_gives(turn: dict[str, Any]) -> None:
    def read(given: Any) -> Any:
        try:
            return read_turns([given])
        except Unusable as error:
            return str(error)

    assert read(turn) == read(MappingProxyType(turn)), "a mapping that is no dict goes the long way"
