"""Ids and texts of a column of messages against those of one sample at a time."""

import hashlib
import json

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.corpus.rehash import hashed
from diversity.corpus.samples import SAMPLE_SCHEMA, compact_text, messages_of, sample_id, stored, texts

TEXT = st.text(max_size=12) | st.sampled_from(['"', "\\", "\x00\x1f\u2028", "é\U0001f600", "", "\n\n", "\x7f"])
ROLE = st.sampled_from(["user", "assistant", "system", 'odd"role'])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=5,
)
CALLS = st.lists(st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": TEXT, "arguments": JSON})}), min_size=1, max_size=2)
BESIDE = {
    "name": TEXT,
    "tool_call_id": TEXT,
    "reasoning_content": TEXT,
    "weight": st.sampled_from([0, 1, 2, 0.5, 1e300]),
    "tool_calls": CALLS,
}
PLAIN = st.lists(st.fixed_dictionaries({"role": ROLE, "content": TEXT}), max_size=5)
CALLING = st.fixed_dictionaries({"role": ROLE, "tool_calls": CALLS})
MESSAGES = PLAIN | st.lists(st.fixed_dictionaries({"role": ROLE, "content": TEXT}, optional=BESIDE) | CALLING, max_size=4)
TOOLS = st.none() | st.lists(JSON, min_size=1, max_size=2).map(compact_text)
PAIR = st.tuples(TEXT, TEXT).map(lambda pair: [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(PAIR | MESSAGES, TOOLS), min_size=1, max_size=8), st.lists(st.integers(0, 7), max_size=3), st.integers(1, 4))
def test_every_row_equals_one_sample_at_a_time(rows, altered, chunk):
    samples = []
    for number, (messages, tools) in enumerate(rows):
        instruction, response = texts(messages)
        changed = number in altered
        samples.append(
            {
                "sample_id": "0" * 32 if changed else sample_id(messages, tools),
                "source": "a",
                "instruction": instruction,
                "response": response + "x" if changed else response,
                "messages": stored(messages),
                "tools": tools,
            }
        )
    whole = pa.Table.from_pylist(samples, schema=SAMPLE_SCHEMA)
    table = pa.concat_tables([whole.slice(start, chunk) for start in range(0, len(whole), chunk)])
    for row, (given_id, found, agree) in zip(samples, hashed(table), strict=True):
        messages = messages_of(row["messages"])
        assert given_id == row["sample_id"]
        assert found == sample_id(messages, row["tools"])
        assert agree == (texts(messages) == (row["instruction"], row["response"]))


@given(MESSAGES, TOOLS)
def test_messages_come_back_from_a_table_as_they_went_in_and_ids_are_the_contracts(messages, tools):
    again = messages_of(pa.array([stored(messages)], SAMPLE_SCHEMA.field("messages").type).to_pylist()[0])
    assert again == messages and [set(one) for one in again] == [set(one) for one in messages]
    said = messages if tools is None else {"messages": messages, "tools": json.loads(tools)}
    text = json.dumps(said, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    assert sample_id(again, tools) == sample_id(messages, tools) == hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def test_a_missing_text_agrees_with_nothing():
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    row = {"sample_id": sample_id(messages), "source": "a", "instruction": None, "response": "b", "messages": messages}
    assert [agree for _, _, agree in hashed(pa.Table.from_pylist([row], schema=SAMPLE_SCHEMA))] == [False]
