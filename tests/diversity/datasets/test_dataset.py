"""The check at the seal: every planted fault is found."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest

from diversity.cell import FULL, Cell
from diversity.corpus.samples import sample_id
from diversity.datasets.dataset import DATASET_SCHEMA, Corpus, DatasetError, check, content_hash, id_array
from diversity.typings.incidence import Incidence

CELL = Cell("response-meso", 3, Fraction(1))


def sample(instruction: str, response: str, source: str = "s") -> dict:
    messages = [{"role": "user", "content": instruction}, {"role": "assistant", "content": response}]
    return {
        "sample_id": sample_id(messages),
        "source": source,
        "instruction": instruction,
        "response": response,
        "messages": messages,
        "chosen_for": -1,
    }


CORPUS_ROWS = sorted((sample(f"question {i}", f"answer {i}", "ab"[i % 2]) for i in range(6)), key=lambda row: row["sample_id"])
IDS = np.array([row["sample_id"] for row in CORPUS_ROWS], dtype="S32")
# row i has types i % 3 and, for even i, type 3
INCIDENCE = Incidence.from_lists(pa.array([[i % 3, 3] if i % 2 == 0 else [i % 3] for i in range(6)], pa.list_(pa.int32())), 4)
CORPUS = Corpus(IDS, {"response": np.arange(6, dtype=np.int32)}, {"response-meso": INCIDENCE})


def table(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=DATASET_SCHEMA)


def test_a_sound_dataset_is_described_from_its_own_rows() -> None:
    chosen = [CORPUS_ROWS[0], CORPUS_ROWS[1], CORPUS_ROWS[2]]
    found = check(table(chosen), CELL, CORPUS, np.ones(4, bool), {"covered": 4, "bound": 4})
    assert found["samples"] == 3 and found["tokens"] == {"response": 3} and found["coverage"] == {"response-meso": 1.0}
    assert sum(found["sources"].values()) == 3 and found["cell"]["level"] == 1.0
    assert found["content"] == content_hash(id_array(table(chosen).column("sample_id"))[::-1])


def altered(**change: object) -> list[dict]:
    return [{**CORPUS_ROWS[0], **change}, *CORPUS_ROWS[1:3]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (CORPUS_ROWS[:2], "2 samples instead of 3"),
        ([CORPUS_ROWS[1], CORPUS_ROWS[0], CORPUS_ROWS[2]], "not ascending and unique"),
        ([CORPUS_ROWS[0], CORPUS_ROWS[0], CORPUS_ROWS[1]], "not ascending and unique"),
        (sorted([*CORPUS_ROWS[:2], sample("foreign", "sample")], key=lambda r: r["sample_id"]), "not in the corpus"),
        (altered(messages=CORPUS_ROWS[1]["messages"]), "not the hash of its messages"),
        (altered(response="another"), "disagree with its messages"),
        (altered(instruction="another"), "disagree with its messages"),
    ],
)
def test_planted_faults_are_found(rows: list[dict], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        check(table(rows), CELL, CORPUS)


def test_coverage_is_what_the_target_says_and_nothing_beyond_it() -> None:
    rows = table([CORPUS_ROWS[i] for i in (1, 3, 5)])  # types 1, 0, 2: not type 3
    three, four, two = np.array([1, 1, 1, 0], bool), np.ones(4, bool), np.array([1, 1, 0, 0], bool)
    check(rows, CELL, CORPUS, three, {"covered": 3, "bound": 3})
    check(rows, CELL, CORPUS, four, {"covered": 3, "bound": 4})  # one that the size does not hold is no error
    check(rows, CELL, CORPUS, two, {"covered": 2, "bound": 2}, closure="loose")
    for kept, target, message in (
        (two, {"covered": 2, "bound": 2}, "1 types are covered that the level does not keep"),
        (four, {"covered": 4, "bound": 4}, "3 of 4 kept types are covered, not 4 as its target says"),
        (four, {"covered": 2, "bound": 4}, "not 2 as its target says"),
        (four, {"covered": 3, "bound": 2}, "more than the bound 2"),
        (four, {"covered": 3}, "more than the bound None"),
        (four, None, "not None as its target says"),
    ):
        with pytest.raises(DatasetError, match=message):
            check(rows, CELL, CORPUS, kept, target)


def test_the_whole_corpus_is_all_of_its_rows() -> None:
    found = check(table(CORPUS_ROWS), Cell(FULL, 0, None), CORPUS)
    assert found["samples"] == 6 and found["coverage"] == {"response-meso": 1.0}
    with pytest.raises(DatasetError, match="full-corpus_nall_s0: 5 samples instead of 6"):
        check(table(CORPUS_ROWS[1:]), Cell(FULL, 0, None), CORPUS)
    with pytest.raises(DatasetError, match="random_n3_s0_tokens: no sample"):
        check(table([]), Cell("random", 3, None, 0, "tokens"), CORPUS)
