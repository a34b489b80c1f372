"""Datasets measured side by side: every figure is that of `diversity.metrics` on the same samples, or on as many of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diversity.artifact import Storage
from diversity.config import ConfigError
from diversity.corpus.files import ReadError
from diversity.metrics import METRICS, PAPER_METRICS, compression_ratio, entropy, mean_pairwise_distance, token_counts, vendi
from diversity.metrics.measuring import MEASURED_SCHEMA, Measured, measure_datasets, read_dataset, sequences_of, side_by_side
from diversity.typings.encoders import WordEncoder

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]


def rows(n, seed=0, vocabulary=8):
    rng = np.random.default_rng(seed)
    return [
        {
            "instruction": f"ask {i} " + " ".join(rng.choice(WORDS[:vocabulary], 6)),
            "response": " ".join(rng.choice(WORDS[:vocabulary], rng.integers(4, 40))),
        }
        for i in range(n)
    ]


def vectors(texts):
    return np.array([[len(text), text.count("a") + 1, text.count("e"), text.count("t")] for text in texts], np.float32)


def dataset(name, n, **more):
    return Measured(name, pa.Table.from_pylist(rows(n, **more)))


def found(table):
    return {(row["dataset"], row["side"], row["metric"], row["variant"]): row["value"] for row in table.to_pylist()}


def test_every_figure_is_that_of_the_metric_on_the_side():
    one = dataset("one", 50)
    table = measure_datasets([one], WordEncoder, vectors, metrics=list(METRICS))
    assert table.schema == MEASURED_SCHEMA and set(table["dataset"].to_pylist()) == {"one"}
    values = found(table)
    for side in ("instruction", "response"):
        texts = one.samples[side].to_pylist()
        assert values["one", side, "entropy", "pooled"] == entropy(token_counts(sequences_of(texts, WordEncoder())))
        assert values["one", side, "compression_ratio", "pooled"] == compression_ratio(texts)
        assert values["one", side, "embedding_distance", "pooled"] == mean_pairwise_distance(vectors(texts))
    assert not any(key[3].startswith(("first-", "samples-")) for key in values)  # nothing to match a single dataset with


def test_matched_variants_are_over_as_much_as_the_smallest_has():
    small, large = dataset("small", 40), dataset("large", 160, seed=1)
    table = measure_datasets([large, small], WordEncoder, vectors, metrics=["entropy", "vendi", "compression_ratio"], sides=["response"])
    values = found(table)
    tokens = sum(len(text.split()) for text in small.samples["response"].to_pylist())
    assert {key[3] for key in values} == {"pooled", "df", f"first-{tokens}", "samples-40"}
    for metric in ("entropy", "compression_ratio"):
        matched = values["small", "response", metric, f"first-{tokens}"]
        assert matched == pytest.approx(values["small", "response", metric, "pooled"], rel=0.05)  # all of it, in another order
    order = np.random.default_rng(0).permutation(160)[:40]
    assert values["large", "response", "vendi", "samples-40"] == vendi(vectors(large.samples["response"].to_pylist())[order])
    assert values["small", "response", "vendi", "samples-40"] == pytest.approx(values["small", "response", "vendi", "pooled"])


def test_a_matched_number_of_tokens_and_none():
    one = dataset("one", 30)
    values = found(measure_datasets([one], WordEncoder, metrics=["entropy"], sides=["response"], matched=100))
    assert math.isfinite(values["one", "response", "entropy", "first-100"])
    two = measure_datasets([one, dataset("two", 20)], WordEncoder, metrics=["entropy"], sides=["response"], matched=False)
    assert {row["variant"] for row in two.to_pylist()} == {"pooled", "df"}


def test_less_diverse_data_is_less_diverse_on_every_metric_with_an_orientation():
    narrow, wide = dataset("narrow", 80, vocabulary=2), dataset("wide", 80, vocabulary=8)
    table = measure_datasets(
        [narrow, wide],
        WordEncoder,
        metrics=["entropy", "effective_types", "self_bleu", "ngram_ratio_2", "self_repetition"],
        sides=["response"],
    )
    values = found(table)
    for row in table.to_pylist():
        if row["variant"].startswith("first-") and row["dataset"] == "narrow":
            other = values["wide", "response", row["metric"], row["variant"]]
            assert (row["value"] < other) == row["more_is_diverse"], row["metric"]


def test_without_an_embedder_the_papers_metrics_of_texts_remain():
    names = {row["metric"] for row in measure_datasets([dataset("one", 10)], WordEncoder).to_pylist()}
    assert names == {name for name in PAPER_METRICS if METRICS[name].needs != "embeddings"}


def test_what_cannot_be_measured_is_said():
    one = dataset("one", 10)
    with pytest.raises(ConfigError, match="unknown metric 'entrpy': did you mean 'entropy'"):
        measure_datasets([one], WordEncoder, metrics=["entrpy"])
    with pytest.raises(ConfigError, match="needs embeddings"):
        measure_datasets([one], WordEncoder, metrics=["vendi"])
    with pytest.raises(ConfigError, match="two datasets have one name"):
        measure_datasets([one, one], WordEncoder)
    with pytest.raises(ConfigError, match="empty: no sample"):
        measure_datasets([Measured("empty", one.samples.slice(0, 0))], WordEncoder)


def test_files_and_sealed_folders_are_read(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    made = rows(20)
    path.write_text("".join(json.dumps(row) + "\n" for row in [*made, made[3], {"instruction": "no answer"}]))
    one = read_dataset(str(path))
    assert len(one.samples) == 20 and one.note == "of 22 rows 1 duplicates, 1 rejected are left out"
    sealed = Storage(str(tmp_path / "runs")).artifact("datasets", "f00d").begin()
    sealed.write(one.samples.slice(0, 12))
    sealed.write(one.samples.slice(12), "data/part-00001.parquet")
    with pytest.raises(ReadError, match="nothing to read there"):
        read_dataset(sealed.uri)  # what a writer has so far is nobody else's
    sealed.seal({"cell": {"strategy": "random", "size": 20, "level": None, "control": "none"}})
    again = read_dataset(sealed.uri)
    assert len(read_dataset(f"{sealed.uri}/data").samples) == 20, "the folder with the rows is a folder of files"
    assert again.samples["response"].to_pylist() == one.samples["response"].to_pylist()
    assert again.note == "strategy random, size 20, control none"
    corpus = Storage(str(tmp_path / "runs")).artifact("corpus", "c0de").begin()
    corpus.write(one.samples)
    corpus.seal({})
    picks = Storage(str(tmp_path / "runs")).artifact("datasets", "abba").begin()
    picks.write(pa.table({"sample_id": one.samples["sample_id"].take([2, 5]), "row": [2, 5], "chosen_for": [-1, -1]}))
    picks.seal({"materialised": False, "made_from": {"corpus": "corpus/c0de"}})
    assert read_dataset(picks.uri).samples["response"].to_pylist() == one.samples["response"].take([2, 5]).to_pylist()
    profile = Storage(str(tmp_path / "runs")).artifact("profile", "beef").begin()
    profile.write(pa.table({"sample_id": ["a"], "types": [[1]]}))
    profile.seal({})
    with pytest.raises(ReadError, match="kind 'profile', which holds no samples"):
        read_dataset(profile.uri)
    pq.write_table(pa.Table.from_pylist([{"question": "q", "answer": "a b c"}]), tmp_path / "other.parquet")
    assert len(read_dataset(str(tmp_path / "other.parquet"), {"instruction": "question", "response": "answer"}).samples) == 1


def test_the_table_has_a_column_for_each_dataset():
    long = "x" * 50
    table = measure_datasets([dataset("one", 10), dataset(long, 12)], WordEncoder, metrics=["entropy", "mean_length"], sides=["response"])
    lines = side_by_side(table).splitlines()
    assert lines[0].split() == ["side", "metric", "variant", "one", "…" + "x" * 31]
    assert any(line.split()[1:4] == ["entropy", "↑", "pooled"] for line in lines) and any(
        "mean_length per-sample" in " ".join(line.split()) for line in lines
    )
    assert all(len(line.split()) == len(line.replace("↑", "").split()) + ("↑" in line) for line in lines)


def test_words_are_numbered_as_they_come():
    encoder = WordEncoder()
    ids, offsets = encoder.encode(["The cat the", "", "dog  CAT"])
    assert ids.tolist() == [0, 1, 0, 2, 1] and offsets.tolist() == [0, 3, 3, 5]
    assert encoder.contents() == [b"the", b"cat", b"dog"] and encoder.size == 3
