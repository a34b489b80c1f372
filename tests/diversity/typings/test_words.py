"""Words where there are spaces, and where there are none."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diversity.audit.recount import plain_tokeniser
from diversity.config import ConfigError
from diversity.typings.encoders import HuggingFaceEncoder, WordEncoder
from diversity.typings.words import other_scripts, words_of

TEXT = st.text(st.sampled_from("aB'é,. \t天地，。カナひらไทยかAß1²한국я"), max_size=20) | st.text(max_size=20)


@given(TEXT)
def test_words_are_runs_unless_a_script_has_no_spaces_and_an_auditor_cuts_alike(text):
    found = words_of(text)
    assert [word.encode() for word in found] == plain_tokeniser("word", None)([text])[0]
    if not any(ord(character) > 0xDFF for character in text):
        assert found == text.lower().split()
    assert "".join(found) == "".join(found).lower() and not any(word.isspace() or not word for word in found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Well, it's 3.5 €!", ["well,", "it's", "3.5", "€!"]),
        ("春天的诗，hello世界 123", ["春", "天", "的", "诗", "hello", "世", "界", "123"]),
        ("カタカナ です。", ["カタカナ", "で", "す"]),
        ("한국어 문장", ["한국어", "문장"]),
    ],
)
def test_words_of(text, words):
    assert words_of(text) == words


def test_random_chinese_is_not_as_diverse_as_can_be():
    generator = random.Random(0)
    texts = ["".join(generator.choices("了后的程热都你年子歌天西习编世打水", k=40)) for _ in range(50)]
    encoder = WordEncoder()
    ids, offsets = encoder.encode(texts)
    assert encoder.size == 17 and len(ids) == 2000 == offsets[-1]
    assert other_scripts([*texts, *["plain English"] * 50, "123"]) == 0.5


def test_a_tokenizer_without_a_token_for_unknown_words_is_refused_in_a_line():
    spec = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"},
    }
    with pytest.raises(ConfigError, match=r"^the tokenizer can't encode the texts: .*\[UNK\].*$"):
        HuggingFaceEncoder(spec).encode(["a b"])
