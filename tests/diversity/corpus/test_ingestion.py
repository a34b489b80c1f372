"""Rows become a corpus: everything is accounted for, duplicates and limits are decided by content, order and grouping leave no trace."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.config import ConfigError
from diversity.corpus.config import CorpusConfig
from diversity.corpus.files import ReadError
from diversity.corpus.ingestion import (
    LARGEST_BUCKETS,
    REJECTED_SCHEMA,
    STAGED_SCHEMA,
    Counts,
    TooManyRejected,
    batches,
    bucket_count,
    content_hash,
    limit_order,
    limit_threshold,
    merge,
    part_ranges,
    split_by_bucket,
    within_limit,
)
from diversity.corpus.inputs import Inputs, read_corpus, samples_of
from diversity.corpus.readers import spans
from diversity.corpus.samples import SAMPLE_SCHEMA, Rejection, to_sample

CELLS = st.sampled_from(["a", "b", "c", "", None, 7, "\ud800"])
ROWS = st.lists(
    st.one_of(
        st.fixed_dictionaries({"instruction": CELLS, "output": CELLS}, optional={"source": st.sampled_from(["s", "t", None])}), st.just([1])
    ),
    max_size=40,
)


def staged(rows: list[object], digest: str = "d", first: int = 0) -> list[pa.Table]:
    numbered = enumerate(rows, first)
    return [batch.samples for batch in batches(numbered, file="f", source="f", digest=digest)]


@settings(max_examples=80, deadline=None)
@given(ROWS, st.integers(1, 7))
def test_merging_equals_a_dictionary(rows: list[object], cuts: int) -> None:
    tables = list(itertools.chain(*(staged(rows[i::cuts], digest=f"{i}") for i in range(cuts))))
    samples, duplicates = merge(tables)
    best: dict[str, tuple[str, str, int]] = {}
    lost = Counter[str]()
    for i in range(cuts):
        for row, value in enumerate(rows[i::cuts]):
            found = to_sample(value, default_source="f")
            if isinstance(found, Rejection):
                continue
            key = (found.source, f"{i}", row)
            if found.sample_id in best:
                lost[max(best[found.sample_id], key)[0]] += 1
                key = min(best[found.sample_id], key)
            best[found.sample_id] = key
    assert samples["sample_id"].to_pylist() == sorted(best)
    assert samples["source"].to_pylist() == [best[name][0] for name in sorted(best)]
    assert duplicates == lost
    assert samples.schema == SAMPLE_SCHEMA


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_every_row_is_a_sample_a_duplicate_or_a_rejection(rows: list[object]) -> None:
    found = list(batches(enumerate(rows), file="f", source="f", digest="d"))
    assert all(batch.samples.schema == STAGED_SCHEMA and batch.rejected.schema == REJECTED_SCHEMA for batch in found)
    samples, duplicates = merge([batch.samples for batch in found])
    assert len(samples) + sum(duplicates.values()) + sum(len(batch.rejected) for batch in found) == len(rows)
    numbers = [row for batch in found for column in (batch.samples["row"], batch.rejected["row"]) for row in column.to_pylist()]
    assert sorted(numbers) == list(range(len(rows)))


TEXT = st.text(
    st.one_of(st.sampled_from('ab \x00\u2028\u0085\r\n\t\ufeff"\\é中😀'), st.characters(exclude_categories=["Cs"])), min_size=1, max_size=12
)
USABLE = TEXT.filter(lambda text: not text.isspace())
WRONG = st.one_of(
    st.none(), st.booleans(), st.floats(), st.integers(), st.just(""), st.just(" \n"), st.lists(TEXT, max_size=2), st.just("\ud800")
)
TURNS = {
    "user": lambda text: {"role": "user", "content": text},
    "assistant": lambda text: {"role": "assistant", "content": text},
}
GOOD = st.one_of(
    st.builds(lambda a, b: {"instruction": a, "output": b}, USABLE, USABLE),
    st.builds(lambda a, b: {"prompt": a, "completion": b}, USABLE, USABLE),
    st.builds(lambda a, b: {"messages": [TURNS["user"](a), TURNS["assistant"](b)]}, USABLE, USABLE),
    st.builds(lambda a, b: {"conversations": [{"from": "human", "value": a}, {"from": "gpt", "value": b}]}, USABLE, USABLE),
)
BAD = st.one_of(
    st.builds(lambda a, b: {"instruction": a, "output": b}, TEXT, WRONG),
    st.builds(lambda a, b: {"prompt": a, "completion": b}, WRONG, TEXT),
    st.builds(lambda a, b: {"messages": [TURNS["assistant"](a), TURNS["user"](b)]}, USABLE, USABLE),
    st.builds(lambda a, b: {"messages": [{"role": a, "content": "x"}, b]}, WRONG, st.one_of(WRONG, TEXT)),
    st.builds(lambda a: {"instruction": a}, TEXT),
    st.dictionaries(TEXT, TEXT, max_size=2).filter(lambda row: not {"instruction", "prompt", "output", "messages"} & row.keys()),
    st.one_of(st.none(), TEXT, st.lists(TEXT, max_size=2)),
)
GARBAGE = st.one_of(
    st.binary(min_size=1, max_size=30).map(lambda data: b"\xff" + data.replace(b"\n", b"")),
    st.sampled_from(
        [b"{broken", b'{"instruction": "a", "output": "b"', b'{"a":1}{"b":2}', b"\x00", b'{"instruction": "\xff"}', b"[" * 5000]
    ),
)
LINES = st.lists(
    st.one_of(GOOD.map(lambda r: (r, True)), BAD.map(lambda r: (r, False)), GARBAGE.map(lambda r: (r, False))), min_size=1, max_size=25
)


@settings(max_examples=150, deadline=None)
@given(LINES, st.booleans(), st.booleans(), st.sampled_from([b"\n", b"\r\n"]), st.booleans(), st.integers(20, 400))
def test_a_messy_file_loses_no_row(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[tuple[object, bool]],
    escaped: bool,
    bom: bool,
    newline: bytes,
    last: bool,
    size: int,
) -> None:
    """Whatever stands in a file, in whatever parts it is read: every line is accounted for, and no good one is lost."""
    written, wanted = [], set()
    for value, good in lines:
        plain = not escaped and not isinstance(value, bytes) and "\\ud800" not in json.dumps(value)
        written.append(value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=not plain).encode())
        if good:
            wanted.add(to_sample(value, default_source="x").sample_id)
    path = tmp_path_factory.mktemp("messy") / "rows.jsonl"
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + newline.join(written) + (newline if last else b""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diversity.corpus.inputs.spans", lambda file: spans(file, size))
        found = [batch for unit in Inputs([str(path)]).units() for batch in unit.batches(None)]
    samples, duplicates = merge([batch.samples for batch in found])
    rejected = pa.concat_tables([batch.rejected for batch in found])
    blank = sum(line.isspace() for line in written)
    assert len(samples) + sum(duplicates.values()) + len(rejected) == len(written) - blank
    assert wanted <= set(samples["sample_id"].to_pylist())
    numbers = {number for batch in found for column in (batch.samples["row"], batch.rejected["row"]) for number in column.to_pylist()}
    assert len(numbers) == len(written) - blank and numbers <= set(range(len(written)))
    assert all(reason and excerpt is not None for reason, excerpt in zip(rejected["reason"].to_pylist(), rejected["excerpt"].to_pylist()))


def test_batches_are_cut_by_text_and_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"instruction": "x" * 100, "output": str(i)} for i in range(50)] + [[]] * 50
    whole = staged(rows)
    monkeypatch.setattr("diversity.corpus.ingestion.BATCH_CHARS", 1000)
    monkeypatch.setattr("diversity.corpus.ingestion.BATCH_ROWS", 8)
    cut = staged(rows)
    assert len(whole) == 1 and len(cut) > 10
    assert pa.concat_tables(cut).equals(pa.concat_tables(whole))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 300), st.sampled_from([1, 2, 8, 64]), st.integers(1, 5000))
def test_buckets_in_order_are_the_order_of_the_ids(n: int, n_buckets: int, part_bytes: int) -> None:
    table = pa.concat_tables(staged([{"instruction": str(i), "output": "x"} for i in range(n)]))
    buckets = split_by_bucket(table, n_buckets)
    sizes = [buckets[b].nbytes if b in buckets else 0 for b in range(n_buckets)]
    runs = part_ranges(sizes, part_bytes)
    assert [b for run in runs for b in run] == list(range(n_buckets))
    assert all(len(run) == 1 or sum(sizes[b] for b in run) <= part_bytes for run in runs)
    parts = [merge([buckets[b] for b in run if b in buckets])[0] for run in runs]
    assert pa.concat_tables(parts).equals(merge([table])[0])


def test_bucket_count_follows_the_bytes() -> None:
    counts = [bucket_count([("plain", size)]) for size in (0, 10**6, 10**8, 10**9, 10**10, 10**13)]
    assert counts == sorted(counts) and counts[0] == 1 and counts[-1] == LARGEST_BUCKETS
    assert all(count & (count - 1) == 0 for count in counts)
    assert bucket_count([("packed", 10**9)]) > bucket_count([("plain", 10**9)])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 120), st.integers(1, 150), st.integers(1, 5), st.randoms(use_true_random=False))
def test_the_limit_takes_the_same_samples_from_any_parts(n: int, limit: int, cuts: int, random) -> None:  # type: ignore[no-untyped-def]
    merged, _ = merge(staged([{"instruction": str(i), "output": "x"} for i in range(n)]))
    places = limit_order(merged["sample_id"])
    expected = {merged["sample_id"][int(i)].as_py() for i in np.argsort(places)[:limit]}
    parts = [merged.take(pa.array(range(i, n, cuts), pa.int64())) for i in range(cuts)]
    lowest = [np.sort(limit_order(part["sample_id"]))[:limit] for part in parts]
    random.shuffle(lowest)
    threshold = limit_threshold(lowest, limit)
    kept = [name for part in parts for name in within_limit(part, threshold)["sample_id"].to_pylist()]
    assert set(kept) == expected and len(kept) == min(limit, n)


def test_content_hash_is_that_of_the_rows_and_not_of_the_parts() -> None:
    merged, _ = merge(staged([{"instruction": str(i), "output": "x", "source": "s"} for i in range(50)]))
    cut = pa.concat_tables([merged.slice(0, 7), merged.slice(7)])
    assert content_hash(cut) == content_hash(merged) == content_hash(merged.combine_chunks())
    assert content_hash(merged.slice(1)) != content_hash(merged)
    other = merged.set_column(1, SAMPLE_SCHEMA.field("source"), pa.array(["t"] * 50))
    assert content_hash(other) != content_hash(merged)
    assert content_hash(SAMPLE_SCHEMA.empty_table()) == content_hash(SAMPLE_SCHEMA.empty_table())


def test_too_many_rejected_names_the_three_commonest_reasons() -> None:
    counts = Counts(rows_read=100, rejected=Counter({"a": 5, "b": 3, "c": 3, "d": 1}))
    counts.check(0.12)
    with pytest.raises(TooManyRejected, match=r"12 of 100 rows .* a \(5\); b \(3\); c \(3\)"):
        counts.check(0.11)
    with pytest.raises(TooManyRejected, match="no rows"):
        Counts().check(1.0)


def test_reading_files_renamed_shuffled_and_twice(tmp_path: Path) -> None:
    rows = [f'{{"instruction": "q{i}", "output": "a{i % 7}", "source": "s{i % 3}"}}' for i in range(200)]
    (tmp_path / "one.jsonl").write_text("\n".join([*rows, '{"instruction": ""}']))
    (tmp_path / "two.jsonl").write_text("\n".join(reversed(rows)))
    config = CorpusConfig(paths=[str(tmp_path / "one.jsonl")])
    samples, rejected, counts = read_corpus(config)
    assert (len(samples), rejected["row"].to_pylist(), rejected["reason"].to_pylist()) == (200, [200], ["response is missing"])
    both, _, more = read_corpus(CorpusConfig(paths=[str(tmp_path)]))
    assert content_hash(both) == content_hash(samples) and both.equals(samples)
    figures = more.manifest()
    assert figures["rows_read"] == 401 == figures["samples"] + figures["duplicates"] + figures["rejected"] + figures["beyond_limit"]
    assert figures["duplicates_by_source"] == {"s0": 67, "s1": 67, "s2": 66}
    assert counts.manifest()["formats"] == {str(tmp_path / "one.jsonl"): {"alpaca": 200}}
    few, _, limited = read_corpus(config.model_copy(update={"limit": 50}))
    assert (len(few), limited.samples, limited.beyond_limit) == (50, 50, 150)
    assert set(few["sample_id"].to_pylist()) <= set(samples["sample_id"].to_pylist())


def test_roots_are_names_and_bytes_but_never_folders(tmp_path: Path) -> None:
    for folder, name, text in (("a", "x.jsonl", "{}"), ("b", "x.jsonl", "{}"), ("c", "y.jsonl", "{}"), ("d", "x.jsonl", "[]")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(text)
    roots = {folder: Inputs([str(tmp_path / folder)]).roots for folder in "abcd"}
    assert roots["a"] == roots["b"] and len({str(roots[folder]) for folder in "acd"}) == 3
    assert Inputs([str(tmp_path / "a"), "builtin:python-docs"]).group_by == "prompt"
    assert Inputs(["builtin:python-docs"]).group_by == "source"


def test_unknown_inputs_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'python-docs'"):
        Inputs(["builtin:python-doc"])
    with pytest.raises(ReadError, match=r"corpus\.paths is empty"):
        Inputs([])


def test_tables_and_dataframes_without_files() -> None:
    frame = pd.DataFrame({"instruction": ["a", "b", None], "input": ["", None, "x"], "output": ["1", "2", "3"]})
    samples, rejected, counts = samples_of(frame, source="notebook")
    assert sorted(samples["instruction"].to_pylist()) == ["a", "b"] and set(samples["source"].to_pylist()) == {"notebook"}
    assert rejected["reason"].to_pylist() == ["instruction is no string (null)"]
    same, _, _ = samples_of(pa.Table.from_pandas(frame), source="notebook")
    assert same.equals(samples) and counts.rows_read == 3
    mapped, _, _ = samples_of(pa.table({"q": ["a"], "r": ["1"]}), columns={"instruction": "q", "response": "r"})
    assert mapped["sample_id"][0].as_py() in samples["sample_id"].to_pylist()
