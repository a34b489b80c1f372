"""Labels are exactly the answers; no text can forge a special token; the ids are those of the models' own templates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.config import ConfigError, UserError
from training.chat import NO_LABEL, ChatEncoder, Encoded, cut_response, detect_template, fit
from training.templates import JINJA, TEMPLATES

HOSTILE = ["<|im_end|>", "<|im_start|>assistant\n", "<|eot_id|>", "</s>", "[/INST]", "<|endoftext|>", "### Response:\n", "<s>"]
LLAMA_3_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIALS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<s>", "</s>"]

texts = st.lists(
    st.one_of(st.sampled_from([*HOSTILE, " ", "\n\n", "7 81", "def f(x):\n    return x"]), st.text("abc é日\t.,", max_size=8)), max_size=5
).map("".join)
answers = texts.filter(lambda text: bool(text.strip()))
conversations = st.lists(st.tuples(texts, answers), min_size=1, max_size=3).map(
    lambda turns: [m for user, answer in turns for m in ({"role": "user", "content": user}, {"role": "assistant", "content": answer})]
)


def split_as_llama_3(tokenizer: Any) -> Any:
    """Return the real tokenizer's backend with Llama-3's way of splitting words."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    made = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    made.pre_tokenizer = Sequence([Split(Regex(LLAMA_3_WORDS), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])
    return made


@pytest.fixture(scope="module")
def with_all_specials(tokenizer: Any) -> Any:
    """Return the real tokenizer with the special tokens of the Llama templates added, and Llama-3's way of splitting words."""
    from transformers import PreTrainedTokenizerFast

    changed = PreTrainedTokenizerFast(tokenizer_object=split_as_llama_3(tokenizer))
    changed.add_special_tokens({"additional_special_tokens": SPECIALS})
    changed.eos_token = "<|im_end|>"
    return changed


@pytest.fixture(scope="module")
def encoders(with_all_specials: Any) -> dict[str, ChatEncoder]:
    return {name: ChatEncoder(with_all_specials, name) for name in TEMPLATES}


@pytest.fixture(scope="module")
def sentencepiece() -> Any:
    return spaced_tokenizer()


def spaced_tokenizer() -> Any:
    """Return a small tokenizer of Llama-2's kind: a space before every text, spaces spelt ▁, bytes for what it does not know."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"abcdefghijklmnopqrstuvwxyz[]/IST<>",
        "▁a",
        "▁b",
        "▁[",
        "ST",
    ]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [("▁", "a"), ("▁", "b"), ("▁", "["), ("S", "T")]
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<s>", "</s>")])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def learnt_runs(encoded: Encoded) -> list[list[int]]:
    """Return the stretches of labels, split at the first unlearnt token after each."""
    runs: list[list[int]] = []
    inside = False
    for label in encoded.labels.tolist():
        if label != NO_LABEL:
            if not inside:
                runs.append([])
            runs[-1].append(label)
        inside = label != NO_LABEL
    return runs


@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=60, deadline=None)
@given(conversation=conversations, system=st.one_of(st.none(), texts))
def test_the_labels_are_exactly_the_answers_and_their_ends(
    template: str, conversation: list[dict[str, str]], system: str | None, encoders: dict[str, ChatEncoder], with_all_specials: Any
) -> None:
    messages = ([{"role": "system", "content": system}] if system is not None else []) + conversation
    encoded = encoders[template].encode(messages)
    end = {"chatml": "<|im_end|>", "plain": "<|im_end|>", "llama-3": "<|eot_id|>", "llama-2": "</s>"}[template]
    spaces = " " if template == "llama-2" else ""
    expected = [spaces + m["content"] + spaces for m in conversation if m["role"] == "assistant"]
    runs = learnt_runs(encoded)
    assert [run[-1] for run in runs] == [with_all_specials.convert_tokens_to_ids(end)] * len(expected)
    assert [with_all_specials.decode(run[:-1]) for run in runs] == expected
    assert encoded.response_tokens == sum(map(len, runs)) and encoded.labels[0] == NO_LABEL and encoded.labels[-1] != NO_LABEL
    known = encoded.labels != NO_LABEL
    assert (encoded.labels[known] == encoded.input_ids[known]).all() and encoded.input_ids.dtype == encoded.labels.dtype == np.int32


@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=40, deadline=None)
@given(conversation=conversations)
def test_no_content_makes_a_special_token(
    template: str, conversation: list[dict[str, str]], encoders: dict[str, ChatEncoder], with_all_specials: Any
) -> None:
    innocent = [{**m, "content": "x"} for m in conversation]
    special = np.asarray(with_all_specials.all_special_ids)

    def specials(messages: list[dict[str, str]]) -> list[int]:
        ids = encoders[template].encode(messages).input_ids
        return ids[np.isin(ids, special)].tolist()

    assert specials(conversation) == specials(innocent)


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_ids_are_those_of_the_jinja_template_that_is_exported(
    template: str, encoders: dict[str, ChatEncoder], with_all_specials: Any
) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 2 + 2?\nSay it."},
        {"role": "assistant", "content": "It is 4.\n\n    indented"},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes."},
    ]
    encoder = encoders[template]
    with_all_specials.chat_template = encoder.chat_template
    theirs = with_all_specials.apply_chat_template(messages, return_dict=False)
    ours = encoder.encode(messages).input_ids.tolist()
    text = with_all_specials.apply_chat_template(messages, tokenize=False)
    assert text.startswith(with_all_specials.decode(ours)) and len(theirs) - len(ours) <= 1
    if template == "llama-2":  # there the space before an answer belongs to the answer
        return
    assert theirs[: len(ours)] == ours
    prompt = encoder.prompt(messages[:4])
    assert prompt.tolist() == with_all_specials.apply_chat_template(messages[:4], add_generation_prompt=True, return_dict=False)


@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=20, deadline=None)
@given(conversation=conversations)
def test_the_prompt_of_an_answer_is_what_training_saw_before_it(
    template: str, conversation: list[dict[str, str]], encoders: dict[str, ChatEncoder]
) -> None:
    encoded = encoders[template].encode(conversation)
    prompt = encoders[template].prompt(conversation[:-1])
    last_run = len(encoded) - len(learnt_runs(encoded)[-1])
    assert encoded.input_ids[:last_run].tolist() == prompt.tolist()


def test_smollm2_gets_no_system_message_that_the_data_does_not_have(tokenizer: Any) -> None:
    encoded = ChatEncoder(tokenizer).encode([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello 42"}])
    assert tokenizer.decode(encoded.input_ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello 42<|im_end|>"


def test_llama_2_on_a_tokenizer_with_a_space_before_every_text(sentencepiece: Any) -> None:
    """The official format is BOS, `[INST] … [/INST] answer `, EOS: one ▁ before the answer, not two."""
    encoder = ChatEncoder(sentencepiece, "llama-2")
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "bc"}] * 2
    encoded = encoder.encode(messages)
    tokens = sentencepiece.convert_ids_to_tokens(encoded.input_ids.tolist())
    turn = ["<s>", "▁[", "I", "N", "ST", "]", "▁a", "▁[", "/", "I", "N", "ST", "]", "▁b", "c", "▁", "</s>"]
    turn = [token if token != "N" else "<0x4E>" for token in turn]
    assert tokens == turn * 2
    assert [sentencepiece.decode(run[:-1]) for run in learnt_runs(encoded)] == ["bc "] * 2
    assert ChatEncoder(sentencepiece).template == "plain" and ChatEncoder(sentencepiece).encode(messages).response_tokens == 2 * len("bc ")


@pytest.mark.parametrize("fast", [None, False])
def test_added_tokens_that_are_no_special_ones_keep_their_ids(fast: bool | None, tokenizer: Any) -> None:
    """As in Qwen's tokenizer.json: `<think>` and `<tool_call>` stand behind special tokens that lie outside of the vocabulary."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    changed = PreTrainedTokenizerFast(tokenizer_object=split_as_llama_3(tokenizer), eos_token="<|im_end|>")
    changed.add_special_tokens({"additional_special_tokens": SPECIALS})
    ordinary = ["<think>", "</think>", "<tool_call>"]
    changed.add_tokens([AddedToken(name, normalized=False, special=False) for name in ordinary])
    changed.chat_template = tokenizer.chat_template
    answer = "<think>\nx\n</think>\n\nyes <tool_call>"
    messages = [{"role": "user", "content": "What is <think>?"}, {"role": "assistant", "content": answer}]
    encoder = ChatEncoder(changed, fast=fast)
    ids = encoder.encode(messages).input_ids.tolist()
    theirs = changed.apply_chat_template(messages, return_dict=False)
    assert theirs[: len(ids)] == ids and set(changed.convert_tokens_to_ids(ordinary)) <= set(ids)
    hostile = [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": f"<|eot_id|>{answer}"}]
    assert changed.decode(encoder.encode(hostile).input_ids).endswith(f"<|eot_id|>{answer}<|im_end|>")
    assert all(encoder.contents()[changed.convert_tokens_to_ids(name)] == name.encode() for name in ordinary)


def test_many_at_once_are_the_same_as_one_by_one(encoders: dict[str, ChatEncoder]) -> None:
    conversations = [[{"role": "user", "content": "é" * n}, {"role": "assistant", "content": "ab " * (n + 1)}] for n in range(20)]
    for encoder in encoders.values():
        together = encoder.encode_all(conversations)
        for messages, encoded in zip(conversations, together, strict=True):
            alone = encoder.encode(messages)
            assert (alone.input_ids == encoded.input_ids).all() and (alone.labels == encoded.labels).all()


def test_the_template_is_told_from_the_tokenizer(tokenizer: Any, with_all_specials: Any, sentencepiece: Any) -> None:
    assert detect_template(tokenizer) == "own" and ChatEncoder(tokenizer).template == "chatml"
    for name, jinja in JINJA.items():
        with_all_specials.chat_template = jinja.replace("{{ bos }}", "")
        assert ChatEncoder(with_all_specials).template == name
    with_all_specials.chat_template = None
    assert ChatEncoder(with_all_specials).template == "chatml"
    assert detect_template(sentencepiece) == "plain"
    with pytest.raises(ConfigError, match="did you mean 'llama-2'"):
        ChatEncoder(tokenizer, "lama-2")
    with pytest.raises(ConfigError, match="needs </s>, <s>"):
        ChatEncoder(tokenizer, "llama-2")


def test_a_conversation_without_an_answer_is_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="nothing to learn"):
        ChatEncoder(tokenizer).encode([{"role": "user", "content": "Hi"}])


def test_too_long_samples_are_cut_at_their_responses_end_or_dropped(tokenizer: Any) -> None:
    encoded = ChatEncoder(tokenizer).encode([{"role": "user", "content": "one two"}, {"role": "assistant", "content": "a b c d e f g h"}])
    prompt = len(encoded) - encoded.response_tokens
    assert fit(encoded, len(encoded)) is encoded
    cut = fit(encoded, len(encoded) - 3)
    assert cut is not None and cut.response_tokens == encoded.response_tokens - 3
    assert (cut.input_ids == encoded.input_ids[:-3]).all() and (cut.labels == encoded.labels[:-3]).all()
    assert fit(encoded, len(encoded) - 1, "drop") is None and fit(encoded, prompt) is None
    assert fit(encoded, prompt + 1) is not None


def test_a_cut_inside_a_later_prompt_ends_with_the_last_answer_before_it(tokenizer: Any) -> None:
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "a b"},
        {"role": "user", "content": "x " * 50},
        {"role": "assistant", "content": "c"},
    ]
    encoder = ChatEncoder(tokenizer)
    encoded, first = encoder.encode(messages), encoder.encode(messages[:2])
    cut = fit(encoded, 30)
    assert cut is not None and cut.input_ids.tolist() == first.input_ids.tolist()
    assert cut_response(encoded, first.response_tokens).input_ids.tolist() == first.input_ids.tolist()
    assert cut_response(encoded, 1).response_tokens == 1 and cut_response(encoded, 999) is encoded
