"""Held-out samples: whole groups, chosen by content alone, and leaks found as a naive search finds them."""

from __future__ import annotations

import json
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.config import ConfigError, parse
from diversity.corpus.config import CorpusConfig
from diversity.corpus.heldout import (
    HELDOUT_SCHEMA,
    HeldoutConfig,
    InConfig,
    NothingToHoldOut,
    PromptsConfig,
    Sought,
    candidate_groups,
    choose_groups,
    find,
    groups,
    held_out,
    leaks,
    prompt_table,
    without_leaks,
)
from diversity.corpus.inputs import read_corpus
from diversity.corpus.prompts import NoPrompt
from diversity.corpus.samples import Sample, messages_of, sample_id, samples_table, to_sample
from diversity.corpus.text_match import GRAM_WORDS, character_classes, gram_hashes, gram_texts, normalise, text_hashes

WORDS = st.sampled_from(["a", "b", "C", "dé", "中", "文", "ไ", "x1", "…", "-", "😀", " ", "\n", "\u2028", "ﬁ", "Σ", "İ", "e\u0301", "\x00"])
TEXTS = st.one_of(st.text(max_size=30), st.lists(WORDS, max_size=40).map("".join), st.lists(WORDS, max_size=40).map(" ".join))


def table(*pairs: tuple[str, str], source: str = "s") -> pa.Table:
    found = [to_sample({"instruction": q, "output": a, "source": source}, default_source="f") for q, a in pairs]
    assert all(isinstance(sample, Sample) for sample in found), found
    return samples_table(found)


def array(texts: list[str]) -> pa.Array:
    return pa.array(texts, pa.large_string())


def naive_normalise(text: str, apart: bool = False) -> str:
    """The docstring's sentence, a character at a time; case and NFKC are pyarrow's, whose Unicode is not Python's."""
    lowered = pc.utf8_lower(pc.utf8_normalize(array([text]), "NFKC"))[0].as_py()
    classes = character_classes()
    words = "".join(f" {c} " if apart and classes[ord(c)] == 3 else c if classes[ord(c)] >= 2 else " " for c in lowered)
    if words.strip(" "):
        return " ".join(word for word in words.split(" ") if word)
    return " ".join(part for part in "".join(" " if classes[ord(c)] == 1 else c for c in lowered).split(" ") if part)


def naive_hash(data: bytes) -> int:
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = (value ^ value >> shift) * factor % 2**64
    return (value ^ value >> 31) or 1


def naive_grams(text: str) -> list[tuple[str, ...]]:
    words = naive_normalise(text, apart=True).split(" ")
    return [tuple(words[i : i + GRAM_WORDS]) for i in range(len(words) - GRAM_WORDS + 1)] if words != [""] else []


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXTS, max_size=5))
def test_normalising_equals_the_naive_way(texts: list[str]) -> None:
    assert normalise(array(texts)).to_pylist() == [naive_normalise(text) for text in texts]
    assert gram_texts(array(texts)).to_pylist() == [naive_normalise(text, apart=True) for text in texts]
    assert text_hashes(array(texts)).tolist() == [naive_hash(text.encode()) for text in texts]


def test_normalising_by_example() -> None:
    texts = ["  What's\tUP,\u2028Doc?! ", "ＦＵＬＬ ﬁne", "😀 !!", "???", " ... ? ", "日本語 text", "a_b-c", ""]
    assert normalise(array(texts)).to_pylist() == ["what s up doc", "full fine", "😀 !!", "???", "... ?", "日本語 text", "a b c", ""]
    assert gram_texts(array(["日本語 text"])).to_pylist() == ["日 本 語 text"]
    assert normalise(pa.chunked_array([array(["A"]), array(["x", "B!"]).slice(1)])).to_pylist() == ["a", "b"]


def test_character_classes_agree_with_unicodedata_where_both_know_a_character() -> None:
    classes = character_classes()
    ours = {point for point in range(0x3000) if classes[point] >= 2}
    theirs = {point for point in range(0x3000) if unicodedata.category(chr(point))[0] in "LMN"}
    unassigned = {point for point in range(0x3000) if unicodedata.category(chr(point)) == "Cn"}
    assert ours - unassigned == theirs


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXTS, max_size=5))
def test_grams_are_those_of_the_words(texts: list[str]) -> None:
    offsets, hashes = gram_hashes(array(texts))
    expected = [gram for text in texts for gram in naive_grams(text)]
    assert np.diff(offsets).tolist() == [len(naive_grams(text)) for text in texts]
    assert len(hashes) == len(expected) and (hashes != 0).all()
    by_gram = dict(zip(expected, hashes.tolist(), strict=True))
    assert [by_gram[gram] for gram in expected] == hashes.tolist()
    assert len(set(by_gram.values())) == len(by_gram)


def test_a_gram_hash_does_not_depend_on_where_it_stands() -> None:
    words = [f"w{i % 7}{'x' * (i % 3)}" for i in range(200)]
    _, all_hashes = gram_hashes(array([" ".join(words)]))
    alone = [gram_hashes(array([" ".join(words[i : i + GRAM_WORDS])]))[1][0] for i in range(len(all_hashes))]
    assert alone == all_hashes.tolist()


def naive_leaks(held: pa.Table, corpus: pa.Table) -> list[tuple[bool, bool, bool]]:
    responses = {naive_normalise(text) for text in corpus["response"].to_pylist()}
    prompts = {naive_normalise(text) for text in corpus["instruction"].to_pylist()}
    grams = {gram for side in ("instruction", "response") for text in corpus[side].to_pylist() for gram in naive_grams(text)}
    out = []
    for row in held.to_pylist():
        own = naive_grams(row["response"])
        hits = sum(gram in grams for gram in own)
        out.append(
            (
                naive_normalise(row["response"]) in responses,
                bool(own) and 2 * hits >= len(own),
                naive_normalise(row["instruction"]) in prompts,
            )
        )
    return out


PAIRS = st.lists(st.tuples(TEXTS, TEXTS).filter(lambda pair: all(text.strip() for text in pair)), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(PAIRS, PAIRS, st.data())
def test_leaks_equal_the_naive_search(held: list[tuple[str, str]], corpus: list[tuple[str, str]], data: st.DataObject) -> None:
    copied = data.draw(st.lists(st.sampled_from(held), max_size=2))
    corpus = corpus + [(answer, "so: " + question + answer + " end") for question, answer in copied]
    held_table, corpus_table = table(*held), table(*corpus)
    sought = Sought.of(held_table)
    whole = find(corpus_table, sought)
    masks = leaks(held_table, sought, whole)
    assert list(zip(*(masks[name].tolist() for name in ("response", "grams", "prompt")), strict=True)) == naive_leaks(
        held_table, corpus_table
    )
    parts = find(corpus_table.slice(0, 1), sought).union(find(corpus_table.slice(1), sought))
    assert all(np.array_equal(getattr(parts, name), getattr(whole, name)) for name in ("responses", "prompts", "grams"))


def test_leaked_samples_are_dropped_and_counted() -> None:
    long = " ".join(f"word{i}" for i in range(40))
    half = " ".join([f"word{i}" for i in range(26)] + [f"other{i}" for i in range(13)])  # 14 of its 27 grams
    third = " ".join([f"word{i}" for i in range(20)] + [f"other{i}" for i in range(20)])  # 8 of its 28 grams
    corpus = table(("q", long), ("Hello there", "None"))
    held = table(("1", long.upper()), ("2", half), ("3", third), ("4", "none."), ("hello, THERE", "fresh"), ("6", "no ne"))
    sought = Sought.of(held)
    kept, counts = without_leaks(held, "in", "prompt", sought, find(corpus, sought))
    assert counts == {"samples": 3, "leaked": 3, "leaked_response": 2, "leaked_grams": 2, "prompt_in_corpus": 1}
    assert sorted(kept["response"].to_pylist()) == sorted([third, "fresh", "no ne"])
    assert kept.schema == HELDOUT_SCHEMA and set(kept["split"].to_pylist()) == {"in"}
    assert "hello there" in kept["group"].to_pylist()


def corpus_of(sizes: list[int]) -> pa.Table:
    return table(*((f"prompt {group}{'!' * (i % 3)}", f"answer {group} {i}") for group, size in enumerate(sizes) for i in range(size)))


def choice(samples: pa.Table, config: InConfig, by: str = "prompt", parts: int = 1, share: float = 1.0) -> set[str]:
    size = len(samples)
    cuts = [samples.slice(i * size // parts, (i + 1) * size // parts - i * size // parts) for i in range(parts)]
    chosen, left = choose_groups([candidate_groups(part, config, by, share) for part in cuts], config, size, share)
    if left and share < 1:
        return choice(samples, config, by, parts)
    return set(samples.filter(pa.array(held_out(samples, chosen, by)))["sample_id"].to_pylist())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=40), st.floats(0.05, 0.6), st.integers(0, 3), st.randoms(use_true_random=False))
def test_whole_groups_in_any_order_and_any_parts(sizes: list[int], fraction: float, seed: int, random) -> None:  # type: ignore[no-untyped-def]
    samples, config = corpus_of(sizes), InConfig(fraction=fraction, seed=seed)
    wanted = max(round(fraction * len(samples)), 1)
    if min(sizes) > wanted:
        with pytest.raises(NothingToHoldOut, match="raise fraction"):
            choice(samples, config)
        return
    chosen = choice(samples, config)
    assert 0 < len(chosen) <= wanted
    for group in set(groups(samples, "prompt").to_pylist()):
        members = {
            row["sample_id"] for row, name in zip(samples.to_pylist(), groups(samples, "prompt").to_pylist(), strict=True) if name == group
        }
        assert members <= chosen or not members & chosen
    order = list(range(len(samples)))
    random.shuffle(order)
    assert choice(samples.take(order), config, parts=3) == chosen
    for share in (0.0, 0.1, 0.5, 0.9):
        assert choice(samples, config, share=share) == chosen, "early groups are all that are looked at, or not enough"


def test_single_samples_meet_the_fraction_exactly_and_seeds_differ() -> None:
    samples = corpus_of([1] * 3000)
    picks = [choice(samples, InConfig(fraction=0.02, seed=seed), parts=4) for seed in range(3)]
    assert [len(pick) for pick in picks] == [60, 60, 60]
    assert len(picks[0] & picks[1]) < 20


def test_by_source_takes_whole_sources() -> None:
    samples = pa.concat_tables([table(*((f"p {source} {i}", "x") for i in range(5)), source=f"m.{source}") for source in range(30)])
    chosen = choice(samples, InConfig(fraction=0.2), by="source", parts=3)
    taken = samples.filter(pc.is_in(samples["sample_id"], pa.array(sorted(chosen))))
    assert len(taken) == 30 and len(set(taken["source"].to_pylist())) == 6


def test_config_reads_in_and_says_what_is_wrong() -> None:
    assert parse(HeldoutConfig, {}).in_ == InConfig()
    assert parse(HeldoutConfig, {"in": {"fraction": 0.1}, "out": None}).model_dump(by_alias=True)["in"]["fraction"] == 0.1
    for values, told in (
        ({"in": None}, "give in or out"),
        ({"in": {"fraction": 1.5}}, "in.fraction"),
        ({"in": {"fractoin": 0.1}}, "did you mean 'fraction'"),
        ({"inn": {}}, "unknown key"),
        ({"out": {"paths": []}}, "which files"),
        ({"out": {"path": ["x"]}}, "did you mean 'paths'"),
    ):
        with pytest.raises(ConfigError, match=told):
            parse(HeldoutConfig, values)


def test_prompts_are_read_once_each_and_counted(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "asked.jsonl"
    talk = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "C?"}]
    path.write_text("".join(json.dumps({"question": value, "reference": None}) + "\n" for value in ("why?", " ", "why?", talk)))
    none = HELDOUT_SCHEMA.empty_table()
    table, counts = prompt_table(PromptsConfig(paths=[str(path)], column="question"), none)
    assert table.schema == HELDOUT_SCHEMA
    assert counts == {"rows_read": 4, "samples": 2, "in_other_splits": 0, "duplicates": 1, "blank": 1}
    assert table["instruction"].to_pylist() == ["why?", "a\n\nC?"] and table["response"].to_pylist() == ["", ""]
    assert messages_of(table["messages"].to_pylist()[1])[1] == {"role": "assistant", "content": "b"}
    assert set(table["split"].to_pylist()) == {"prompts"} and set(table["source"].to_pylist()) == {"asked.jsonl"}
    assert table["sample_id"].to_pylist() == [sample_id(messages_of(messages)) for messages in table["messages"].to_pylist()]
    setting = r"row 0 has no prompt in 'question' \(evaluation.heldout.prompts.column\)"
    for rows, told in (([7], setting), ([""], "none of 1 rows"), ([talk[:2]], "the last turn is not the user's")):
        path.write_text("".join(json.dumps({"question": value}) + "\n" for value in rows))
        with pytest.raises(NoPrompt, match=told):
            prompt_table(PromptsConfig(paths=[str(path)], column="question"), none)


def test_the_real_split_has_the_known_leaks(real_data) -> None:  # type: ignore[no-untyped-def]
    """256 of the 2,000 real held-out responses occur in the corpus (counted when that split was made)."""
    corpus, rejected, ingested = read_corpus(CorpusConfig(paths=[str(real_data / "corpus.parquet")]))
    assert len(corpus) == 117_000 == ingested.rows_read and not len(rejected) and len(ingested.sources) == 31
    held, _, _ = read_corpus(CorpusConfig(paths=[str(real_data / "heldout.parquet")]))
    sought = Sought.of(held)
    _, counts = without_leaks(held, "in", "prompt", sought, find(corpus, sought))
    assert counts["leaked_response"] == 256 and counts["leaked"] < 400 and counts["prompt_in_corpus"] <= 4
