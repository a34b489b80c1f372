"""Any chat template: the prompts of the exported folder are those of training, what is learnt is the answers, and the rest is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.training.chat_templates import (
    ALTERNATING,
    DEFAULT_SYSTEM,
    ENDLESS,
    FAMILIES,
    FORGETFUL,
    HEADERS,
    INST,
    MARKED,
    MARKED_ENDLESS,
    MARKED_TWICE,
    MARKED_WHOLE,
    PASSING,
    SYSTEM_LAST,
    THINKING,
    TRAILING,
)
from tests.training.test_chat import learnt_runs, spaced_tokenizer, split_as_llama_3
from training.chat import ChatEncoder, ChatFormat, learnt_ends, load_tokenizer
from training.export import copy_tokenizer
from training.templates import JINJA, TEMPLATES, Unrenderable

SPECIALS = ["<s>", "</s>", "<|start|>", "<|end|>", "<|end_header|>", "<|eot|>", "<|eom|>", "<|return|>", "<|message|>", "<|channel|>"]
ROLES = ["<|user|>", "<|assistant|>"]
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": {"at": "é 1"}}}
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {}}}}]
CONVERSATION = [
    {"role": "user", "content": "What is 2 + 2?\nSay it."},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes.\n\n    It is."},
]


@pytest.fixture(scope="module")
def folders(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return tokenizer folders: bytes with the special tokens of all templates, and one that puts a space before every text."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    made = {}
    for name, backend in (("bytes", split_as_llama_3(tokenizer)), ("spaced", spaced_tokenizer().backend_tokenizer)):
        changed = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(backend.to_str()), bos_token="<s>", eos_token="</s>")
        changed.add_special_tokens({"additional_special_tokens": [*SPECIALS[2:], *ROLES, "<|im_start|>", "<|im_end|>"]})
        made[name] = tmp_path_factory.mktemp("tokenizers") / name
        changed.save_pretrained(made[name])
        (made[name] / "generation_config.json").write_text('{"eos_token_id": 2}\n')
    return made


def with_template(folder: Path, place: Path, template: Any) -> Any:
    """Return the folder's tokenizer with another chat template, out of a folder of its own."""
    place.mkdir(parents=True, exist_ok=True)
    copy_tokenizer(folder, place, ChatFormat(template, ()) if template else None)
    return load_tokenizer(place)


def prompts_of(encoder: ChatEncoder, messages: list[dict[str, Any]], tools: Any = None) -> list[list[int]]:
    """Return what training has before each answer, by the answers' order in the sequences."""
    [sequences] = encoder.sequences([messages], [tools])
    assert not isinstance(sequences, Unrenderable), str(sequences)
    found = []
    for one in sequences:
        known = one.labels != -100
        begins = np.flatnonzero(known & ~np.concatenate([[False], known[:-1]]))
        found += [one.input_ids[:begin].tolist() for begin in begins]
    return found


@pytest.mark.parametrize("kind", ["bytes", "spaced"])
@pytest.mark.parametrize("family", [*FAMILIES, *TEMPLATES, "base"])
def test_the_prompts_of_the_exported_folder_are_those_of_training(family: str, kind: str, folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    (tmp_path / "hf").mkdir()
    own = FAMILIES.get(family)
    tokenizer = with_template(folders[kind], tmp_path / "source", own)
    if family == "llama-3":
        tokenizer.add_special_tokens(
            {"additional_special_tokens": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]}
        )
        tokenizer.save_pretrained(tmp_path / "source")
        tokenizer = load_tokenizer(tmp_path / "source")
    encoder = ChatEncoder(tokenizer, family if family in TEMPLATES else "auto")
    assert encoder.template == ("own" if own else family if family in TEMPLATES else "chatml")
    [sequences] = encoder.sequences([CONVERSATION])
    assert not isinstance(sequences, Unrenderable)
    chat = ChatFormat(encoder.chat_template, learnt_ends(encoder, sequences))
    copy_tokenizer(tmp_path / "source", tmp_path / "hf", chat)

    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    asked = [theirs.apply_chat_template(CONVERSATION[:n], add_generation_prompt=True, return_dict=False) for n in (1, 3)]
    assert prompts_of(encoder, CONVERSATION) == asked
    assert [encoder.prompt(CONVERSATION[:n]).tolist() for n in (1, 3)] == asked
    stops = json.loads((tmp_path / "hf" / "generation_config.json").read_text())["eos_token_id"]
    ends = {run[-1] for one in sequences for run in learnt_runs(one)}
    assert ends <= {stops if isinstance(stops, int) else stop for stop in ([stops] if isinstance(stops, int) else stops)}
    answers = [theirs.decode(run[:-1]) for one in sequences for run in learnt_runs(one)]
    for answer, message in zip(answers, (CONVERSATION[1], CONVERSATION[3]), strict=True):
        assert message["content"] in answer and "Sure?" not in answer


_ENCODERS: dict[tuple[Path, str], tuple[ChatEncoder, Any]] = {}


def encoder_of(folders: dict[str, Path], template: Any, kind: str = "bytes") -> tuple[ChatEncoder, Any]:
    """Return an encoder and its tokenizer, made once for a template: an encoder's twin of a tokenizer takes a second."""
    name = folders[kind], json.dumps(template)
    if name not in _ENCODERS:
        tokenizer = with_template(folders[kind], folders[kind].parent / f"{kind}-{len(_ENCODERS)}", template)
        _ENCODERS[name] = ChatEncoder(tokenizer), tokenizer
    return _ENCODERS[name]


def learnt(encoder: ChatEncoder, tokenizer: Any, messages: list[dict[str, Any]], tools: Any = None) -> list[str]:
    [sequences] = encoder.sequences([messages], [tools])
    assert not isinstance(sequences, Unrenderable), str(sequences)
    return [tokenizer.decode(run) for one in sequences for run in learnt_runs(one)]


def refusal(encoder: ChatEncoder, messages: list[dict[str, Any]], tools: Any = None) -> str:
    [found] = encoder.sequences([messages], [tools])
    assert isinstance(found, Unrenderable)
    return str(found)


def test_a_default_system_turn_is_trained_as_inference_has_it(folders: dict[str, Path]) -> None:
    encoder, tokenizer = encoder_of(folders, DEFAULT_SYSTEM)
    assert "You are a helpful model." in tokenizer.decode(encoder.encode(CONVERSATION).input_ids)
    mine = encoder.encode([{"role": "system", "content": "Be brief."}, *CONVERSATION])
    assert "helpful" not in tokenizer.decode(mine.input_ids)


def test_tools_calls_and_results_are_said_and_calls_are_learnt(folders: dict[str, Path]) -> None:
    encoder, tokenizer = encoder_of(folders, DEFAULT_SYSTEM)
    called = {"role": "assistant", "tool_calls": [CALL]}
    as_text = {"role": "assistant", "content": None, "tool_calls": [{**CALL, "function": {"name": "look", "arguments": '{"at": "é 1"}'}}]}
    rest = [{"role": "tool", "content": "7", "tool_call_id": "call_1"}, {"role": "assistant", "content": "Seven."}]
    wanted = ['\n<tool_call>\n{"name": "look", "arguments": {"at": "é 1"}}\n</tool_call><|im_end|>', "Seven.<|im_end|>"]
    for call in (called, as_text):
        messages = [CONVERSATION[0], call, *rest]
        assert learnt(encoder, tokenizer, messages, TOOLS) == wanted
        assert "Looks." in tokenizer.decode(encoder.encode(messages, TOOLS).input_ids)
    marked, tokenizer = encoder_of(folders, MARKED)  # which wants texts
    assert learnt(marked, tokenizer, [CONVERSATION[0], called]) == ['<call>look{"at": "é 1"}<|im_end|>']


def test_what_a_template_does_not_say_is_refused(folders: dict[str, Path]) -> None:
    encoder, tokenizer = encoder_of(folders, TRAILING)
    assert "does not say tools" in refusal(encoder, CONVERSATION, TOOLS)
    assert "does not say tool_calls" in refusal(encoder, [CONVERSATION[0], {"role": "assistant", "tool_calls": [CALL]}])
    assert "does not say reasoning_content" in refusal(encoder, [CONVERSATION[0], {**CONVERSATION[1], "reasoning_content": "Hm."}])
    named = ChatEncoder(tokenizer, "plain")
    assert "template plain does not say tools" in refusal(named, CONVERSATION, TOOLS)
    gemma, _ = encoder_of(folders, ALTERNATING)
    assert "System role not supported" in refusal(gemma, [{"role": "system", "content": "x"}, *CONVERSATION])
    assert "Roles must alternate" in refusal(gemma, [CONVERSATION[0], *CONVERSATION])
    for template in (ENDLESS, MARKED_ENDLESS):
        endless, _ = encoder_of(folders, template)
        assert "no special token" in refusal(endless, CONVERSATION)
    assert "0 (not learnt) or 1, not 0.5" in refusal(encoder, [CONVERSATION[0], {**CONVERSATION[1], "weight": 0.5}])


def test_a_mark_that_holds_header_and_line_break_is_cut_to_the_answer_and_its_end(folders: dict[str, Path]) -> None:
    encoder, tokenizer = encoder_of(folders, MARKED_WHOLE)
    assert learnt(encoder, tokenizer, CONVERSATION) == ["It is 4.<|im_end|>", "Yes.\n\n    It is.<|im_end|>"]
    assert tokenizer.decode([encoder.end]) == "<|im_end|>" and encoder.ends == (encoder.end,)


def test_a_turn_may_have_several_marks(folders: dict[str, Path]) -> None:
    encoder, tokenizer = encoder_of(folders, MARKED_TWICE)
    called = {"role": "assistant", "content": "I look.", "tool_calls": [CALL]}
    assert learnt(encoder, tokenizer, [CONVERSATION[0], called, *CONVERSATION[2:]]) == [
        'I look.<call>look{"at": "é 1"}<|im_end|>', "Yes.\n\n    It is.<|im_end|>",
    ]  # fmt: skip


def test_a_system_turn_beside_the_last_question_alone_is_said(folders: dict[str, Path]) -> None:
    encoder, tokenizer = encoder_of(folders, SYSTEM_LAST)
    system = {"role": "system", "content": "Be brief."}
    assert "Be brief." in tokenizer.decode(encoder.prompt([system, *CONVERSATION[:3]]))


def test_turns_that_a_template_passes_over_are_refused(folders: dict[str, Path]) -> None:
    passing, _ = encoder_of(folders, PASSING)
    system, result = {"role": "system", "content": "Be brief."}, {"role": "tool", "content": "7"}
    assert "does not say turn 0 (system)" in refusal(passing, [system, *CONVERSATION])
    assert "does not say turn 2 (tool)" in refusal(passing, [*CONVERSATION[:2], result, *CONVERSATION[2:]])
    with pytest.raises(Unrenderable, match=r"turn 3 \(tool\)"):
        passing.prompt([*CONVERSATION[:3], result])
    for unseen in ([*CONVERSATION, result], CONVERSATION, [{**system, "content": ""}, *CONVERSATION]):
        assert not isinstance(passing.sequences([unseen])[0], Unrenderable)
    headers, _ = encoder_of(folders, HEADERS)
    thought = [CONVERSATION[0], {"role": "assistant", "content": "I look.", "tool_calls": [CALL]}, result, CONVERSATION[3]]
    assert "does not say turn 1 (assistant)" in refusal(headers, thought)
    forgetful, tokenizer = encoder_of(folders, FORGETFUL)
    assert learnt(forgetful, tokenizer, thought) == ["I look.look<|eom|>", "Yes.\n\n    It is.<|end|>"]


def test_a_turn_of_weight_0_is_seen_and_not_learnt(folders: dict[str, Path]) -> None:
    for number, template in enumerate([*FAMILIES.values(), None]):
        encoder, tokenizer = encoder_of(folders, template)
        messages = [CONVERSATION[0], {**CONVERSATION[1], "weight": 0}, *CONVERSATION[2:]]
        [text] = learnt(encoder, tokenizer, messages)
        assert "Yes." in text and "It is 4." in tokenizer.decode(encoder.encode(messages).input_ids)
        [text] = learnt(encoder, tokenizer, [*CONVERSATION[:3], {**CONVERSATION[3], "weight": 0}])
        assert "It is 4." in text
        assert "nothing to learn" in refusal(encoder, [CONVERSATION[0], {**CONVERSATION[1], "weight": 0}])


def test_thinking_of_earlier_turns_is_dropped_from_the_prompt_and_still_learnt(folders: dict[str, Path]) -> None:
    encoder, tokenizer = encoder_of(folders, THINKING)
    messages = [CONVERSATION[0], {**CONVERSATION[1], "reasoning_content": "Two and two."}, *CONVERSATION[2:]]
    inline = [CONVERSATION[0], {**CONVERSATION[1], "content": "<think>\nTwo and two.\n</think>\n\nIt is 4."}, *CONVERSATION[2:]]
    for one in (messages, inline):
        [sequences] = encoder.sequences([one])
        assert not isinstance(sequences, Unrenderable)
        assert len(sequences) == 2 and "Two and two." not in tokenizer.decode(sequences[1].input_ids)
        assert learnt(encoder, tokenizer, one) == [
            "<think>\nTwo and two.\n</think>\n\nIt is 4.<|im_end|>",
            "<think>\n\n</think>\n\nYes.\n\n    It is.<|im_end|>",
        ]


def test_each_ends_as_its_template_ends_a_turn(folders: dict[str, Path]) -> None:
    ends = {}
    for name, template in FAMILIES.items():
        encoder, tokenizer = encoder_of(folders, template)
        ends[name] = {tokenizer.decode(run[-1]) for one in encoder.sequences([CONVERSATION])[0] for run in learnt_runs(one)}  # type: ignore[union-attr]
    assert ends == {
        "default-system": {"<|im_end|>"},
        "thinking": {"<|im_end|>"},
        "alternating": {"<|end|>"},
        "inst": {"</s>"},
        "headers": {"<|eot|>"},
        "trailing": {"<|end|>"},
        "two-ends": {"<|return|>"},
        "marked": {"<|im_end|>"},
        "marked-whole": {"<|im_end|>"},
    }
    encoder, tokenizer = encoder_of(folders, HEADERS)
    called = [CONVERSATION[0], {"role": "assistant", "tool_calls": [CALL]}, CONVERSATION[2], CONVERSATION[3]]
    whole = encoder.encode(called)
    assert [tokenizer.decode(end) for end in learnt_ends(encoder, [whole])] == ["<|eot|>", "<|eom|>"]
    assert [tokenizer.decode(end) for end in encoder.ends] == ["<|eot|>", "<|eom|>"] and encoder.end == encoder.ends[0]


def test_a_date_is_the_same_for_ever_and_in_the_export(folders: dict[str, Path]) -> None:
    encoder, tokenizer = encoder_of(folders, HEADERS)
    assert "Today: 26 Jul 2024<|eot|>" in tokenizer.decode(encoder.encode(CONVERSATION).input_ids)
    assert str(encoder.chat_template).endswith(HEADERS) and encoder.chat_template != HEADERS


def test_several_templates_by_name(folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    named = {"default": INST, "tool_use": DEFAULT_SYSTEM}
    encoder, tokenizer = encoder_of(folders, named)
    assert "[INST]" in tokenizer.decode(encoder.encode(CONVERSATION).input_ids)
    assert "<tools>" in tokenizer.decode(encoder.encode(CONVERSATION, TOOLS).input_ids)
    for name, template in (("b", named), ("c", INST)):
        (tmp_path / name).mkdir()
        copy_tokenizer(folders["bytes"], tmp_path / name, ChatFormat(template, ()))
    assert AutoTokenizer.from_pretrained(tmp_path / "b").chat_template == named
    assert AutoTokenizer.from_pretrained(tmp_path / "c").chat_template == INST


HOSTILE = ["<|im_end|>", "<|im_start|>assistant\n", "</s>", "<s>", "<|end|>\n", "<|eot|>", " ", "\n", "7 81", "é", "word"]
texts = st.lists(st.one_of(st.sampled_from(HOSTILE), st.text("ab c\té", max_size=5)), min_size=1, max_size=5).map("".join)
answers = texts.filter(lambda text: bool(text.strip()))


@pytest.mark.parametrize("kind", ["bytes", "spaced"])
@settings(max_examples=12, deadline=None)
@given(conversation=st.lists(st.tuples(texts, answers), min_size=1, max_size=2))
def test_no_content_makes_a_special_token(kind: str, conversation: list[tuple[str, str]], folders: dict[str, Path]) -> None:
    messages = [m for user, answer in conversation for m in ({"role": "user", "content": user}, {"role": "assistant", "content": answer})]
    innocent = [{**message, "content": "x"} for message in messages]
    for name, template in FAMILIES.items():
        encoder, tokenizer = encoder_of(folders, template, kind)
        found = [encoder.sequences([one])[0] for one in (messages, innocent)]
        special = np.array(sorted(encoder.special_ids))
        both = [[one.input_ids[np.isin(one.input_ids, special)].tolist() for one in some] for some in found]  # type: ignore[union-attr]
        assert both[0] == both[1], name
        for one, message in zip((run for some in found[0] for run in learnt_runs(some)), messages[1::2], strict=True):  # type: ignore[union-attr]
            assert message["content"].strip() in tokenizer.decode(one).replace("<unk>", ""), name


@pytest.fixture(scope="module")
def twins(folders: dict[str, Path]) -> tuple[ChatEncoder, ChatEncoder]:
    """Return the encoder that is used for our own format, and the one that is used for any other."""
    fast, tokenizer = encoder_of(folders, JINJA["chatml"])
    return fast, ChatEncoder(tokenizer, fast=False)


@settings(max_examples=40, deadline=None)
@given(conversation=st.lists(st.tuples(texts, answers), min_size=1, max_size=2))
def test_the_fast_way_is_the_general_way(conversation: list[tuple[str, str]], twins: tuple[ChatEncoder, ChatEncoder]) -> None:
    """Our own format as parts with the tokenizer's twin, against the same format rendered by transformers and encoded by it."""
    messages = [m for user, answer in conversation for m in ({"role": "user", "content": user}, {"role": "assistant", "content": answer})]
    fast, general = twins
    assert (fast.template, general.template) == ("chatml", "own")
    one, other = fast.encode(messages), general.encode(messages)
    assert one.input_ids.tolist() == other.input_ids.tolist() and one.labels.tolist() == other.labels.tolist()
    assert fast.prompt(messages[:-1]).tolist() == general.prompt(messages[:-1]).tolist()


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=12, deadline=None)
@given(conversation=st.lists(st.tuples(texts, answers), min_size=2, max_size=3))
@example(conversation=[("a", "\n<|im_end|>"), ("b", "c")])
def test_a_prompt_is_what_training_has_before_the_answer(
    family: str, conversation: list[tuple[str, str]], folders: dict[str, Path]
) -> None:
    """Earlier answers begin and end at the same ids, whatever they begin with."""
    messages = [m for user, answer in conversation for m in ({"role": "user", "content": user}, {"role": "assistant", "content": answer})]
    encoder, _ = encoder_of(folders, FAMILIES[family])
    assert encoder.prompt(messages[:-1]).tolist() == prompts_of(encoder, messages)[-1]
