"""Messages become input ids and labels: the only place that knows chat templates.

What is learnt is the assistant's content and the token that ends its turn, in every turn, and nothing else. Nothing is added that the
data does not have: no default system message, and no stripping of white space, where some models' own templates do both. Content that
spells a special token is ordinary text: special tokens come from here by their id, never out of a text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diversity.config import ConfigError, UserError, near_matches
from diversity.typings.encoders import Encoder, ExactEncoder, HuggingFaceEncoder
from diversity.typings.twin import Inexact

NO_LABEL = -100
EOS = "<eos>"  # stands for whatever the tokenizer calls its end-of-text token
Message = Mapping[str, str]


@dataclass(frozen=True)
class Encoded:
    """One sample as training sees it.

    Attributes:
        input_ids: `(L,) int32`; it ends with the last learnt token, because nothing after it could matter.
        labels: `(L,) int32`, aligned with `input_ids`: the token itself where it is learnt, -100 elsewhere. The loss does the shifting.
        response_tokens: how many labels are not -100.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    response_tokens: int

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class Part:
    """A stretch of a conversation: a text that is encoded by itself, or one special token."""

    text: str
    special: bool = False
    learnt: bool = False


def _chatml(messages: Sequence[Message], bos: str | None) -> Iterator[Part]:
    for message in messages:
        yield Part("<|im_start|>", special=True)
        yield from _turn(message, f"{message['role']}\n", "<|im_end|>")
        yield Part("\n")


def _llama3(messages: Sequence[Message], bos: str | None) -> Iterator[Part]:
    yield Part("<|begin_of_text|>", special=True)
    for message in messages:
        yield Part("<|start_header_id|>", special=True)
        yield Part(message["role"])
        yield Part("<|end_header_id|>", special=True)
        yield from _turn(message, "\n\n", "<|eot_id|>")


def _turn(message: Message, header: str, end: str) -> Iterator[Part]:
    """Yield header and content, apart where the content is learnt: a model that answers begins at that boundary too."""
    learnt = message["role"] == "assistant"
    if learnt:
        yield Part(header)
        yield Part(message["content"], learnt=True)
    else:
        yield Part(header + message["content"])
    yield Part(end, special=True, learnt=learnt)


def _llama2(messages: Sequence[Message], bos: str | None) -> Iterator[Part]:
    """Yield Llama-2's turns; a system message opens the next user's turn, and roles it does not know count as the user's."""
    system = ""
    for message in messages:
        if message["role"] == "system":
            system += f"<<SYS>>\n{message['content']}\n<</SYS>>\n\n"
        elif message["role"] == "assistant":
            yield Part(f" {message['content']} ", learnt=True)
            yield Part("</s>", special=True, learnt=True)
        else:
            yield Part("<s>", special=True)
            yield Part(f"[INST] {system}{message['content']} [/INST]")
            system = ""


def _plain(messages: Sequence[Message], bos: str | None) -> Iterator[Part]:
    """Yield headed paragraphs, for base models without a template; every answer ends with the tokenizer's end-of-text token."""
    if bos:
        yield Part(bos, special=True)
    before = ""
    for message in messages:
        if message["role"] == "system":
            before += f"{message['content']}\n\n"
        elif message["role"] == "assistant":
            yield Part(f"{before}### Response:\n")
            yield Part(message["content"], learnt=True)
            yield Part(EOS, special=True, learnt=True)
            before = ""
        else:
            before += f"### Instruction:\n{message['content']}\n\n"


TEMPLATES: dict[str, Callable[[Sequence[Message], str | None], Iterator[Part]]] = {
    "chatml": _chatml,
    "llama-2": _llama2,
    "llama-3": _llama3,
    "plain": _plain,
}
# What a model's own template, or else its vocabulary, holds if it is one of ours; the first that fits counts.
MARKS = {"chatml": ("<|im_start|>", "<|im_end|>"), "llama-3": ("<|start_header_id|>", "<|eot_id|>"), "llama-2": ("<<SYS>>",)}
# The same templates in Jinja, for the exported folder, so that inference builds the prompts that training saw.
JINJA = {
    "chatml": "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama-3": "{{ '<|begin_of_text|>' }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "llama-2": "{% set ns = namespace(system='') %}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{% set ns.system = ns.system + '<<SYS>>\n' + message['content'] + '\n<</SYS>>\n\n' %}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + ' </s>' }}"
    "{% else %}{{ '<s>[INST] ' + ns.system + message['content'] + ' [/INST]' }}{% set ns.system = '' %}{% endif %}{% endfor %}",
    "plain": "{{ bos }}{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '### Response:\n' + message['content'] + eos_token }}"
    "{% else %}{{ '### Instruction:\n' + message['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}",
}


def load_tokenizer(folder: Path) -> Any:
    """Return the folder's fast tokenizer, exactly as its tokenizer.json says.

    The generic class is asked for by name: model-specific ones put parts of the file together anew, and may lose some.

    Raises:
        UserError: the folder has no tokenizer.json.
    """
    from transformers import PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").exists():
        raise UserError(f"{folder} has no tokenizer.json: give a Hugging Face folder with a fast tokenizer")
    return PreTrainedTokenizerFast.from_pretrained(folder)


class ChatEncoder:
    """Encodes conversations with one model's tokenizer and template."""

    def __init__(self, tokenizer: Any, template: str = "auto") -> None:
        """Prepare an encoder.

        Args:
            tokenizer: a fast tokenizer of transformers.
            template: one of `TEMPLATES`, or `auto`, which takes what the tokenizer's own template or tokens say.

        Raises:
            ConfigError: no such template, or the tokenizer lacks a token that it needs.
        """
        self.template = detect_template(tokenizer) if template == "auto" else template
        if self.template not in TEMPLATES:
            raise ConfigError(f"unknown chat template {template!r}{near_matches(template, TEMPLATES)}")
        self._parts = TEMPLATES[self.template]
        self._texts = _text_encoder(tokenizer.backend_tokenizer.to_str())
        self._bos = _leading_token(tokenizer)
        self._special = self._special_ids(tokenizer)
        # SentencePiece tokenizers put a space before every text: Llama-2's space before an answer is then there already.
        first = int(self._texts.encode(["a"])[0][0])
        self._spaced = self.template == "llama-2" and tokenizer.convert_ids_to_tokens(first).startswith("▁")

    @property
    def chat_template(self) -> str:
        """Return the Jinja template that builds the same prompts, for the exported tokenizer."""
        return JINJA[self.template].replace("{{ bos }}", self._bos or "")

    def encode(self, messages: Sequence[Message]) -> Encoded:
        """Return one conversation's ids and labels.

        Raises:
            ValueError: it has no assistant's turn.
        """
        return self.encode_all([messages])[0]

    def encode_all(self, conversations: Iterable[Sequence[Message]]) -> list[Encoded]:
        """Return many conversations' ids and labels; every text that comes again and again (a role, a header) is encoded once."""
        split = [self._split(messages) for messages in conversations]
        ids = self._ids([part for parts in split for part in parts])
        bounds = np.cumsum([0, *(len(parts) for parts in split)]).tolist()
        return [_join(parts, ids[start:stop]) for parts, (start, stop) in zip(split, pairwise(bounds), strict=True)]

    @property
    def end(self) -> int:
        """Return the id of the token that ends an answer."""
        return int(self.encode([{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]).input_ids[-1])

    def contents(self) -> list[bytes]:
        """Return the content of each id that a text can have, as typing knows it."""
        return self._texts.contents()

    def prompt(self, messages: Sequence[Message]) -> np.ndarray:
        """Return `(L,) int32`: the conversation up to where the assistant's next answer begins."""
        parts = self._split([*messages, {"role": "assistant", "content": ""}])
        answer = max(i for i, part in enumerate(parts) if part.learnt and not part.special)
        return np.concatenate(self._ids(parts[:answer]))

    def _split(self, messages: Sequence[Message]) -> list[Part]:
        parts = list(self._parts(messages, self._bos))
        if self._spaced:
            parts = [Part(part.text[1:], learnt=True) if part.learnt and not part.special else part for part in parts]
        return parts

    def _ids(self, parts: Sequence[Part]) -> list[np.ndarray]:
        """Return each part's ids, `(l,) int32`."""
        texts = list(dict.fromkeys(part.text for part in parts if not part.special))
        ids, bounds = self._texts.encode(texts)
        found = {text: ids[start:stop] for text, (start, stop) in zip(texts, pairwise(bounds.tolist()), strict=True)}
        return [self._special[part.text] if part.special else found[part.text] for part in parts]

    def _special_ids(self, tokenizer: Any) -> dict[str, np.ndarray]:
        """Return the ids of the template's special tokens by the names that its parts use."""
        probe = [{"role": role, "content": ""} for role in ("system", "user", "assistant")]
        names = {part.text for part in self._parts(probe, self._bos) if part.special}
        vocabulary = tokenizer.get_vocab()
        ids = {name: tokenizer.eos_token_id if name == EOS else vocabulary.get(name) for name in sorted(names)}
        missing = [name for name, number in ids.items() if number is None]
        if missing:
            raise ConfigError(f"chat template {self.template} needs {', '.join(missing)}, which the tokenizer does not have")
        return {name: np.array([number], np.int32) for name, number in ids.items()}


def detect_template(tokenizer: Any) -> str:
    """Return the template that a tokenizer's own chat template, or else its special tokens, stand for.

    Raises:
        ConfigError: it has a chat template that is none of ours.
    """
    own = tokenizer.chat_template
    own = own.get("default") if isinstance(own, dict) else own
    known = own or tokenizer.get_vocab()
    for name, marks in MARKS.items():
        if all(mark in known for mark in marks):
            return name
    if own and "### Instruction:" not in own:
        raise ConfigError(f"the model's chat template is none of {', '.join(TEMPLATES)}: set sft.template to the one to train with")
    return "plain"


def fit(encoded: Encoded, max_length: int, overlong: Literal["truncate", "drop"] = "truncate") -> Encoded | None:
    """Return the sample within `max_length` tokens, cut at its response's end, or None.

    None is a sample that is dropped: because of `overlong`, or because its prompt alone fills `max_length`. The caller counts them.
    """
    if len(encoded) <= max_length:
        return encoded
    left = int(np.count_nonzero(encoded.labels[:max_length] != NO_LABEL))
    return None if overlong == "drop" or left == 0 else cut_response(encoded, left)


def cut_response(encoded: Encoded, tokens: int) -> Encoded:
    """Return the sample with its first `tokens` response tokens only; what follows them is cut away."""
    if encoded.response_tokens <= tokens:
        return encoded
    end = int(np.flatnonzero(encoded.labels != NO_LABEL)[tokens - 1]) + 1
    return Encoded(encoded.input_ids[:end], encoded.labels[:end], tokens)


def _join(parts: Sequence[Part], ids: Sequence[np.ndarray]) -> Encoded:
    """Return the parts as one sample that ends with its last learnt token. The first token has no label: nothing predicts it."""
    learnt = np.repeat([part.learnt for part in parts], [len(part) for part in ids])
    learnt[:1] = False
    if not learnt.any():
        raise ValueError("a conversation without an assistant's turn has nothing to learn")
    end = int(np.flatnonzero(learnt)[-1]) + 1
    input_ids = np.concatenate(ids)[:end].astype(np.int32, copy=False)
    return Encoded(input_ids, np.where(learnt[:end], input_ids, np.int32(NO_LABEL)), int(learnt.sum()))


@lru_cache(maxsize=2)
def _text_encoder(tokenizer_json: str) -> Encoder:
    """Return what typing counts tokens with, too: the exact fast twin of the tokenizer where there is one."""
    spec = json.loads(tokenizer_json)
    try:
        return ExactEncoder(spec)
    except Inexact:
        return HuggingFaceEncoder(spec)


def _leading_token(tokenizer: Any) -> str | None:
    """Return the special token that the tokenizer puts before a text, if it does."""
    ids = tokenizer("a").input_ids
    return tokenizer.bos_token if tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id] else None
