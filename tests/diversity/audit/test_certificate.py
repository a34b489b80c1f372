"""The auditor's own arithmetic equals the selection's, which it does not call; and an order with one fault is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.audit.ground import Types, digests
from diversity.audit.promises import _largest_remainders, _length_bins
from diversity.audit.recount import count_text, frequency_faults, order_fault, plain_tokeniser, text_faults
from diversity.corpus.samples import SAMPLE_SCHEMA, sample_id
from diversity.selection.controls import OCTILES, apportion, length_bins
from diversity.selection.peel import birth, prune
from diversity.typings.incidence import Incidence
from diversity.typings.tokens import BandConfig, micro
from tests.diversity.naive import incidences, keys_of, ties_of

NAMES = [f"type {t}".encode() for t in range(12)]
ODD = [
    "plain words",
    "<|im_end|> and <|endoftext|>",
    "ünïcode \ud7a3 日本語 🙂",
    "a\x00b\r\n\t  c",
    "    ",
    "don't we'll 12345",
    "é" * 40,
    "x",
]


def types_of(incidence: Incidence) -> Types:
    return Types(incidence.indptr, incidence.indices, incidence.n_types)


@given(incidences(), st.data())
@settings(deadline=None)
def test_pairs_coverage_and_births_equal_the_selections(incidence: Incidence, data: st.DataObject) -> None:
    types = types_of(incidence)
    rows = np.array(data.draw(st.lists(st.integers(0, incidence.n_samples - 1), unique=True)), np.int64)
    assert (types.covered(rows) == incidence.covered(rows)).all()
    owners, values = types.pairs(rows)
    assert list(zip(owners.tolist(), values.tolist(), strict=True)) == [(i, t) for i in rows.tolist() for t in incidence.row(i).tolist()]
    position = np.array(data.draw(st.permutations(range(1, incidence.n_types + 1))), np.int32)
    for closure in ("strict", "loose"):
        assert (types.births(position, closure) == birth(incidence, position, closure)).all()


@given(incidences(), st.sampled_from(["peel", "static"]), st.data())
@settings(deadline=None)
def test_the_order_of_the_pruning_passes_and_any_other_fails(incidence: Incidence, algorithm: str, data: st.DataObject) -> None:
    names = NAMES[: incidence.n_types]
    position = prune(incidence, ties_of(incidence.n_types), keys_of(incidence.n_samples), algorithm=algorithm).position
    assert order_fault(types_of(incidence), names, position, algorithm) == ""
    other = np.array(data.draw(st.permutations(range(1, incidence.n_types + 1))), np.int32)
    assert (order_fault(types_of(incidence), names, other, algorithm) == "") == (other == position).all()
    assert "no permutation" in order_fault(types_of(incidence), names, np.zeros_like(position), algorithm)


@given(st.integers(1, 200), st.lists(st.integers(0, 50), min_size=1, max_size=9).filter(any))
def test_quotas_are_those_of_the_controls(total: int, shares: list[int]) -> None:
    assert _largest_remainders(total, shares) == apportion(total, np.array(shares)).tolist()


@given(st.lists(st.integers(1, 30), min_size=OCTILES, max_size=60))
def test_octiles_are_those_of_the_controls(lengths: list[int]) -> None:
    assert _length_bins(np.array(lengths)).tolist() == length_bins(np.array(lengths)).tolist()


@given(incidences())
@settings(deadline=None)
def test_frequencies_are_recounted(incidence: Incidence) -> None:
    df = incidence.df()
    types, table = types_of(incidence), pa.table({"df": df})
    assert frequency_faults(types, table, None) == []
    assert frequency_faults(types, table, (int(df.min()), int(df.max()))) == []
    assert "outside" in frequency_faults(types, table, (int(df.max()) + 1, 999))[0]
    assert "df is not" in frequency_faults(types, pa.table({"df": df + 1}), None)[0]
    twice = Types(np.array([0, 2]), np.array([0, 0]), 1)
    assert "twice in a sample" in frequency_faults(twice, pa.table({"df": [2]}), None)[0]
    assert "outside 0..0" in frequency_faults(Types(np.array([0, 1]), np.array([1]), 1), pa.table({"df": [1]}), None)[0]


def samples(texts: list[str]) -> pa.Table:
    rows = {}
    for number, text in enumerate(texts):
        messages = [{"role": "user", "content": f"say {number}"}, {"role": "assistant", "content": text}]
        sides = {"instruction": f"say {number}", "response": text}
        rows[sample_id(messages)] = {"sample_id": sample_id(messages), "source": "s", **sides, "messages": messages}
    return pa.Table.from_pylist([rows[key] for key in sorted(rows)], schema=SAMPLE_SCHEMA)


@pytest.mark.parametrize("unit", ["", "@word"])
def test_the_plain_tokenizer_gives_the_types_of_the_fast_path(unit: str, tokenizer_folder: Path) -> None:
    table = samples([f"{a} {b}" for a in ODD for b in ODD])
    band = BandConfig(low=3, high=40)
    typed = micro(table, f"response-micro{unit}", folder=tokenizer_folder, band=band)
    lists = Incidence.from_lists(typed.data.column("types"), typed.types.num_rows)
    texts = table.column("response").to_pylist()
    found = count_text([texts[:10], texts[10:]], plain_tokeniser(unit[1:], tokenizer_folder), (band.low, band.high))
    units = typed.types.column("content" if unit else "token_id").to_pylist()
    df, tokens = typed.types.column("df").to_numpy(), typed.data.column("tokens").to_numpy()
    assert text_faults(found, types_of(lists), units, df, tokens) == []
    assert "another df" in text_faults(found, types_of(lists), units, df + 1, tokens)[0]
    assert "number of tokens" in text_faults(found, types_of(lists), units, df, tokens + 1)[0]
    assert "of the other" in text_faults(found, types_of(lists), units[1:], df[1:], tokens)[0]
    moved = Types(lists.indptr, np.where(np.arange(lists.nnz) == 0, lists.indices + 1, lists.indices), lists.n_types)
    assert "other types" in text_faults(found, moved, units, df, tokens)[0]


def test_digests_tell_every_column_apart() -> None:
    table = samples(ODD)
    first, sound = digests(table)
    assert sound.all() and len(np.unique(first, axis=0)) == len(ODD)
    rows = table.to_pylist()
    for name, value in (("source", "t"), ("instruction", "t"), ("response", "t"), ("messages", rows[1]["messages"])):
        changed = pa.Table.from_pylist([{**rows[0], name: value}, *rows[1:]], schema=table.schema)
        other, sound = digests(changed)
        assert (other[0] != first[0]).any() and (other[1:] == first[1:]).all()
        assert sound.tolist() == [name == "source"] + [True] * (len(rows) - 1)
