import json
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.config import ConfigError
from diversity.typings import tokens
from diversity.typings.encoders import (
    ExactEncoder,
    HuggingFaceEncoder,
    TiktokenEncoder,
    disagreements,
    label,
    load_encoder,
    read_spec,
)
from diversity.typings.tokens import BandConfig, WordCounter, WordTyper, band_types, distinct_rows, frequencies, merge_vocabularies, micro
from diversity.typings.twin import _LLAMA3, _QWEN2, Inexact
from diversity.typings.typed import NoTypesError, flat_lists

HOSTILE = [
    "",
    " ",
    "\n\n \t x",
    "   12  3 4a  5",
    "don't DON'T I'LL we've 'S 's1",
    "<|im_start|>user\nhi<|im_end|><|endoftext|>",
    "<jupyter_code>",
    "\x00\x01\x7f\x85\u2028",
    "日本語 テキスト ½ ² ⅷ ٣ 𝟙",
    "e\u0301 \u1e9b\u0323 ﬁ ſ K",
    "🙂👩‍👩‍👧 \ufeff",
    "\U00011de3 1 \U00016ff4\U0010ffff",
    "\ue000\uf8ff",
    "a" * 5000,
    " " * 300_000 + "x",
    "\n" * 3000,
    "1" * 3000,
    "def f(x):\n    return x**2  # ok",
]
hostile_text = st.text(
    st.one_of(
        st.sampled_from(" \n\t\r\u00a0\u3000'’.,!?aZé1٣½_-<|>#"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=60,
)


@pytest.fixture(scope="module")
def spec(tokenizer_folder):
    return read_spec(tokenizer_folder)


@pytest.fixture(scope="module")
def exact(spec):
    return ExactEncoder(spec)


@pytest.fixture(scope="module")
def slow(spec):
    return HuggingFaceEncoder(spec)


def rows(encoder, texts):
    ids, offsets = encoder.encode(texts)
    return [ids[a:b].tolist() for a, b in zip(offsets[:-1], offsets[1:])]


def test_twin_of_the_real_tokenizer_on_hostile_texts(spec, exact):
    assert disagreements(spec, exact, HOSTILE) == []


@settings(max_examples=300, deadline=None)
@given(st.lists(hostile_text, max_size=8))
def test_twin_of_the_real_tokenizer_on_any_text(exact, slow, texts):
    assert rows(exact, texts) == rows(slow, texts)


def test_twin_on_code_points_of_every_kind(exact, slow):
    points = [*range(0x3000), *range(0x3000, 0x110000, 61)]
    texts = [f"a{c} {c}1  {c}{c}" for c in map(chr, points) if not 0xD800 <= ord(c) < 0xE000]
    assert rows(exact, texts) == rows(slow, texts)


def test_special_tokens_are_ordinary_text(exact, slow):
    for encoder in (exact, slow):
        ids = rows(encoder, ["<|im_start|>user"])[0]
        contents = encoder.contents()
        assert b"".join(contents[i] for i in ids) == b"<|im_start|>user"
        assert len(ids) > 2 and min(ids) > 16


def test_bytes_of_ids_spell_the_text(exact):
    text = "Füße 日本 123 don't\n"
    contents = exact.contents()
    assert b"".join(contents[i] for i in rows(exact, [text])[0]) == text.encode()
    assert label(b"\xe6\x97") == "\\xe6\\x97"


def trained(folder, pre_tokenizer, added=(), normalizer=None, model="BPE", control=()):
    """Return a small tokenizer of a shape that a model on a hub has."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    corpus = ["the quick brown fox isn't 1234 lazy dogs  \n\n def f(x): return x + 1", "naïve café ÉCOLE déjà", "    spaces"] * 20
    if model == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]", "<s>"], show_progress=False)
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizer
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False)
        if normalizer:
            tokenizer.normalizer = getattr(normalizers, normalizer)()
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens(list(control))
    tokenizer.add_tokens(list(added))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return read_spec(folder)


def shapes():
    from tokenizers import Regex, pre_tokenizers

    def split(pattern):
        cut = pre_tokenizers.Split(Regex(pattern), "isolated")
        return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    return {
        "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "llama3": split(_LLAMA3),
        "qwen2": split(_QWEN2),
    }


@pytest.mark.parametrize("name", ["gpt2", "llama3", "qwen2"])
def test_twins_of_the_known_shapes(tmp_path, name):
    from tokenizers import Tokenizer

    control = ["<|endoftext|>", "<|im_end|>"]  # outside of the vocabulary, and before the ordinary ones, as in Qwen's
    found = trained(tmp_path, shapes()[name], added=["<tool_call>", "<think>"], normalizer="NFC", control=control)
    fast, slow = ExactEncoder(found), HuggingFaceEncoder(found)
    whole = Tokenizer.from_str(json.dumps(found))
    whole.encode_special_tokens = True  # as the texts that they are
    ordinary = [token["id"] for token in found["added_tokens"] if not token["special"]]
    assert min(ordinary) == len(found["model"]["vocab"]) + len(control)

    def agree(texts):
        truth = [one.ids for one in whole.encode_batch(texts, add_special_tokens=False)]
        assert rows(fast, texts) == truth and rows(slow, texts) == truth

    agree([*HOSTILE[:-4], "x<tool_call>y <s><think>", "ſ's K'LL e\u0301", "def f(x):  \n\n\n return 12345", "<|im_end|>"])
    settings(max_examples=60, deadline=None)(given(st.lists(hostile_text, max_size=6))(agree))()
    assert [fast.contents()[number] for number in ordinary] == [b"<tool_call>", b"<think>"] and fast.size == max(ordinary) + 1


def test_tokenizers_without_a_twin_are_read_by_hugging_face(tmp_path, tokenizer_folder, spec, caplog):
    wordpiece = trained(tmp_path / "w", None, model="WordPiece")
    with pytest.raises(Inexact, match="byte-level"):
        ExactEncoder(wordpiece)
    assert isinstance(load_encoder("", tmp_path / "w"), HuggingFaceEncoder)
    swapped = json.loads(json.dumps(spec))
    merges = swapped["model"]["merges"]
    merges[5], merges[900] = merges[900], merges[5]
    with pytest.raises(Inexact, match="order"):
        ExactEncoder(swapped)
    assert isinstance(load_encoder("", tokenizer_folder, exact=False), HuggingFaceEncoder)
    odd = {**spec, "normalizer": {"type": "Lowercase"}}
    with pytest.raises(Inexact, match="Lowercase"):
        ExactEncoder(odd)


def test_unreached_tokens_have_no_twin(spec):
    broken = json.loads(json.dumps(spec))
    first = broken["model"]["merges"][0]
    broken["model"]["merges"] = [["Ġt", "qz"] if merge == first else merge for merge in broken["model"]["merges"]]
    broken["model"]["vocab"]["Ġtqz"] = broken["model"]["vocab"].pop("".join(first))
    with pytest.raises(Exception, match="reach|order|Ġt"):
        ExactEncoder(broken)


def test_a_twin_that_differs_on_the_corpus_is_not_used(tokenizer_folder, monkeypatch, caplog):
    monkeypatch.setattr("diversity.typings.encoders.twin_pattern", lambda spec: r"\s|\S+")
    assert isinstance(load_encoder("", tokenizer_folder, check_on=["one two 34"]), HuggingFaceEncoder)
    assert "differs" in caplog.text


def test_missing_tokenizers_and_units(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="tokenizer.json"):
        load_encoder("", tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'o200k_base'"):
        load_encoder("o200k_bas", None)

    def offline(name):
        raise OSError("no network")

    monkeypatch.setattr("tiktoken.get_encoding", offline)
    with pytest.raises(ConfigError, match="TIKTOKEN_CACHE_DIR"):
        load_encoder("o200k_base", None)


def test_tiktoken_unit_reads_special_tokens_as_text(monkeypatch):
    import tiktoken

    ranks = {bytes([i]): i for i in range(256)}
    made = tiktoken.Encoding("cl100k_base", pat_str=r"\s+(?!\S)|\s+|\S+", mergeable_ranks=ranks, special_tokens={"<|end|>": 256})
    monkeypatch.setattr("tiktoken.get_encoding", lambda name: made)
    encoder = TiktokenEncoder("cl100k_base")
    assert rows(encoder, ["a<|end|>", " " * 300_000 + "b"]) == [list(b"a<|end|>"), list(b" " * 300_000 + b"b")]
    assert encoder.contents()[65] == b"A" and encoder.contents()[256] == b""


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), max_size=12), max_size=8))
def test_distinct_rows_equals_counter(lists):
    flat = np.array([x for row in lists for x in row], np.int32)
    offsets = np.cumsum([0, *map(len, lists)]).astype(np.int64)
    bounds, distinct, counts = distinct_rows(flat, offsets, 10)
    for i, row in enumerate(lists):
        expected = sorted(Counter(row).items())
        assert list(zip(distinct[bounds[i] : bounds[i + 1]], counts[bounds[i] : bounds[i + 1]])) == expected


def samples(texts):
    ids = [f"{i:032x}" for i in range(len(texts))]
    return pa.table({"sample_id": ids, "instruction": texts, "response": [text[::-1] for text in texts]})


def naive(rows, low, high, order):
    """Return (types of each row, contents in order) by dictionaries."""
    df = Counter(token for row in rows for token in set(row))
    kept = sorted((token for token in df if low <= df[token] <= high), key=order)
    number = {token: i for i, token in enumerate(kept)}
    return [sorted(number[t] for t in set(row) if t in number) for row in rows], kept, df


words = st.lists(st.sampled_from(["a", "A", "b", "ß", "İ", "ΑΣ", "x1", ",", "\n\t"]), max_size=8).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(words, min_size=1, max_size=20), st.integers(1, 4), st.integers(0, 4), st.integers(1, 7), st.sampled_from([0, 5, 1 << 20]))
def test_words_equal_the_naive_typing_in_any_blocks(texts, low, span, rows_a_block, at_once):
    table, high = samples(texts), low + span
    expected, kept, df = naive([text.lower().split() for text in texts], low, high, str.encode)
    blocks = [WordCounter("instruction")(table.slice(i, rows_a_block)) for i in range(0, len(texts), rows_a_block)]
    with mock.patch.object(tokens, "MERGED_AT_ONCE", at_once):
        vocabulary = merge_vocabularies(iter(blocks), len(texts))
    assert vocabulary.table["label"].to_pylist() == sorted(df, key=str.encode)
    if not kept:
        with pytest.raises(NoTypesError, match=f"from {low} to {high}"):
            band_types("instruction-micro@word", vocabulary, BandConfig(low=low, high=high))
        return
    types, _ = band_types("instruction-micro@word", vocabulary, BandConfig(low=low, high=high))
    assert types["label"].to_pylist() == kept and types["df"].to_pylist() == [df[word] for word in kept]
    typed = WordTyper("instruction", kept)(table)
    assert typed["types"].to_pylist() == expected
    assert typed["tokens"].to_pylist() == [len(text.split()) for text in texts]


@settings(max_examples=40, deadline=None)
@given(st.lists(hostile_text, min_size=1, max_size=12), st.integers(1, 3), st.integers(0, 5))
def test_tokens_equal_the_naive_typing(exact, slow, texts, low, span):
    table, band = samples(texts), BandConfig(low=low, high=low + span)
    encoded = rows(slow, texts)
    expected, kept, df = naive(encoded, low, low + span, int)
    if not kept:
        with pytest.raises(NoTypesError):
            micro(table, "instruction-micro", encoder=exact, band=band)
        return
    typed = micro(table, "instruction-micro", encoder=exact, band=band)
    assert typed.data["types"].to_pylist() == expected
    assert typed.data["tokens"].to_pylist() == list(map(len, encoded))
    assert typed.types["token_id"].to_pylist() == kept
    tf = Counter(token for row in encoded for token in row)
    assert typed.types["tf"].to_pylist() == [tf[token] for token in kept]
    assert typed.extra["vocabulary"]["df"].to_pylist() == [df[token] for token in sorted(df)]
    summary = typed.summary()
    assert summary["nnz"] == sum(map(len, expected)) and summary["empty"] == sum(not row for row in expected)


def test_counts_add_up_over_blocks(exact):
    table = samples(HOSTILE * 3)
    counter = tokens.TokenCounter("instruction", exact)
    whole = frequencies(counter(table), exact.size)
    parts = [frequencies(counter(table.slice(i, 7)), exact.size) for i in range(0, len(table), 7)]
    added = sum(parts[1:], parts[0])
    assert added.n == whole.n and (added.df == whole.df).all() and (added.tf == whole.tf).all()


def test_band_is_inclusive_and_scales():
    band = BandConfig()
    assert band.limits(5) == (10, 500)
    assert BandConfig(scaled=True).limits(117_000) == (10, 500)
    assert BandConfig(scaled=True).limits(12_000) == (3, 51)
    assert BandConfig(scaled=True).limits(50) == (3, 50), "a floor, else it is empty below some 700 samples"
    assert BandConfig(low=5, high=20, scaled=True).limits(50) == (3, 20)
    assert BandConfig(scaled=True).limits(1_170_000) == (100, 5000)
    with pytest.raises(ValueError, match="low 9 is above high 3"):
        BandConfig(low=9, high=3)


def test_an_empty_band_names_its_counts(tokenizer_folder):
    table = samples(["one two", "one three"])
    with pytest.raises(NoTypesError, match=r"from 10 to 500 in 2 samples \(3 lie below, 0 above\).*scaled"):
        micro(table, "instruction-micro", folder=tokenizer_folder)


def test_flat_lists_reads_chunks_and_slices():
    column = pa.chunked_array([pa.array([[1], [2, 3]], pa.list_(pa.int32())), pa.array([[], [4]], pa.list_(pa.int32()))])
    values, bounds = flat_lists(column.slice(1, 3))
    assert values.tolist() == [2, 3, 4] and bounds.tolist() == [0, 2, 2, 3]


def test_real_corpus_gives_the_documented_figures(real_data, tokenizer_folder):
    import pyarrow.parquet as pq

    table = pq.read_table(Path(real_data) / "corpus.parquet", columns=["id", "response"]).rename_columns(["sample_id", "response"])
    typed = micro(table, "response-micro", folder=tokenizer_folder)
    assert typed.types.num_rows == 26_594  # METHOD 4.3
