"""Ids and texts of a column of messages against those of one sample at a time."""

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.corpus.rehash import hashed
from diversity.corpus.samples import SAMPLE_SCHEMA, sample_id, texts

TEXT = st.text(max_size=12) | st.sampled_from(['"', "\\", "\x00\x1f\u2028", "é\U0001f600", "", "\n\n", "\x7f"])
ROLE = st.sampled_from(["user", "assistant", "system", 'odd"role'])
MESSAGES = st.lists(st.fixed_dictionaries({"role": ROLE, "content": TEXT}), max_size=5)
PAIR = st.tuples(TEXT, TEXT).map(lambda pair: [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}])


@settings(max_examples=200, deadline=None)
@given(st.lists(PAIR | MESSAGES, min_size=1, max_size=8), st.lists(st.integers(0, 7), max_size=3), st.integers(1, 4))
def test_every_row_equals_one_sample_at_a_time(rows, altered, chunk):
    samples = []
    for number, messages in enumerate(rows):
        instruction, response = texts(messages)
        changed = number in altered
        samples.append(
            {
                "sample_id": "0" * 32 if changed else sample_id(messages),
                "source": "a",
                "instruction": instruction,
                "response": response + "x" if changed else response,
                "messages": messages,
            }
        )
    whole = pa.Table.from_pylist(samples, schema=SAMPLE_SCHEMA)
    table = pa.concat_tables([whole.slice(start, chunk) for start in range(0, len(whole), chunk)])
    for row, (given_id, found, agree) in zip(samples, hashed(table), strict=True):
        assert given_id == row["sample_id"]
        assert found == sample_id(row["messages"])
        assert agree == (texts(row["messages"]) == (row["instruction"], row["response"]))


def test_a_missing_text_agrees_with_nothing():
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    row = {"sample_id": sample_id(messages), "source": "a", "instruction": None, "response": "b", "messages": messages}
    assert [agree for _, _, agree in hashed(pa.Table.from_pylist([row], schema=SAMPLE_SCHEMA))] == [False]
