"""Messages become token ids, and which of them are learnt: the only place that knows chat templates.

A template is a function from messages to pieces. The text of a message is encoded as ordinary text, so a response that spells
`<|im_end|>` stays text; the special tokens of the template are put in by name. Learnt are the assistant's tokens with the end of its
turn, and nothing else. Contents are never stripped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from diversity.config import UserError
from diversity.encodings import load_encoder, read_spec
from training.model_source import read_json

Message = Mapping[str, str]


class ChatError(UserError):
    """A template that is not known, or that asks for tokens that the tokenizer lacks."""


class Piece(NamedTuple):
    """A stretch of a conversation: ordinary text, or the name of one special token."""

    text: str
    special: bool = False
    learnt: bool = False


class Tokens(NamedTuple):
    """A conversation as the model sees it: ids `(l,) int32`, and the mask of the learnt ones `(l,) bool`."""

    ids: np.ndarray
    learnt: np.ndarray


@dataclass(frozen=True)
class Names:
    """What a template needs of a tokenizer: its beginning and end of text, and the model's own words before the first message."""

    bos: str | None
    eos: str | None
    preamble: str | None


def chatml(messages: Sequence[Message], names: Names) -> list[Piece]:
    """Return ChatML: `<|im_start|>role\\ncontent<|im_end|>\\n`, after the model's default system message where none is given."""
    start, end = Piece("<|im_start|>", special=True), Piece("<|im_end|>", special=True)
    pieces = []
    if names.preamble is not None and messages[0]["role"] != "system":
        pieces += [start, Piece(f"system\n{names.preamble}"), end, Piece("\n")]
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "assistant":
            pieces += [start, Piece("assistant\n"), Piece(content, learnt=True), end._replace(learnt=True), Piece("\n")]
        else:
            pieces += [start, Piece(f"{role}\n{content}"), end, Piece("\n")]
    return pieces


def llama_2(messages: Sequence[Message], names: Names) -> list[Piece]:
    """Return Llama-2's form: `<s>[INST] user [/INST] answer </s>`, a system message in <<SYS>> marks inside the first user turn."""
    pieces, system = [], ""
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "system":
            system += f"<<SYS>>\n{content}\n<</SYS>>\n\n"
        elif role == "assistant":
            pieces += [Piece(content, learnt=True), Piece(names.eos or "", special=True, learnt=True)]
        else:
            pieces += [Piece(names.bos or "", special=True), Piece(f"[INST] {system}{content} [/INST]")]
            system = ""
    return pieces


def llama_3(messages: Sequence[Message], names: Names) -> list[Piece]:
    """Return Llama-3's form: `<|start_header_id|>role<|end_header_id|>\\n\\ncontent<|eot_id|>`."""
    pieces = [Piece(names.bos or "", special=True)]
    for message in messages:
        role, content = message["role"], message["content"]
        learnt = role == "assistant"
        pieces += [Piece("<|start_header_id|>", special=True), Piece(role), Piece("<|end_header_id|>", special=True)]
        pieces += [Piece("\n\n"), Piece(content, learnt=True)] if learnt else [Piece(f"\n\n{content}")]
        pieces.append(Piece("<|eot_id|>", special=True, learnt=learnt))
    return pieces


def plain(messages: Sequence[Message], names: Names) -> list[Piece]:
    """Return headed paragraphs, for base models that have no template: `### Instruction:`, `### Response:`, end of text."""
    pieces = [] if names.bos is None else [Piece(names.bos, special=True)]
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "assistant":
            pieces += [Piece("### Response:\n"), Piece(content, learnt=True), Piece(names.eos or "", special=True, learnt=True), Piece("\n\n")]
        else:
            pieces.append(Piece(f"### {'System' if role == 'system' else 'Instruction'}:\n{content}\n\n"))
    return pieces


TEMPLATES: dict[str, Callable[[Sequence[Message], Names], list[Piece]]] = {
    "chatml": chatml,
    "llama-2": llama_2,
    "llama-3": llama_3,
    "plain": plain,
}
# What a model's own template (Jinja) holds if it is one of ours; the first that fits counts.
MARKS = {"chatml": "<|im_start|>", "llama-3": "<|start_header_id|>", "llama-2": "<<SYS>>"}
# Written into the export of a model that has no template of its own.
JINJA = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama-2": "{% set ns = namespace(system='') %}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{% set ns.system = ns.system + '<<SYS>>\n' + m['content'] + '\n<</SYS>>\n\n' %}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ bos_token + '[INST] ' + ns.system + m['content'] + ' [/INST]' }}{% set ns.system = '' %}{% endif %}{% endfor %}",
    "llama-3": "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] "
    "+ '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "plain": "{{ bos_token or '' }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '### Response:\n' + m['content'] + eos_token + '\n\n' }}"
    "{% else %}{{ '### ' + ('System' if m['role'] == 'system' else 'Instruction') + ':\n' + m['content'] + '\n\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}",
}


class Chat:
    """A model's tokenizer and chat template.

    Attributes:
        template: the name of the template in use.
        own: the model's own template (Jinja), None where it has none.
    """

    def __init__(self, folder: Path, template: str = "auto") -> None:
        """Read tokenizer and template of a model folder.

        Args:
            folder: with tokenizer.json, tokenizer_config.json, and perhaps chat_template.jinja.
            template: a name of TEMPLATES, or `auto`.

        Raises:
            ChatError: no such template, or special tokens that it needs are missing.
        """
        spec, config = read_spec(folder), read_json(folder / "tokenizer_config.json")
        self.own = _own_template(folder, config)
        self.template = _detect(self.own, folder) if template == "auto" else template
        self._ids: dict[str, int] = {**spec["model"].get("vocab", {}), **{t["content"]: t["id"] for t in spec.get("added_tokens", [])}}
        bos, eos = _token(config.get("bos_token")), _token(config.get("eos_token"))
        adds_bos = bool(bos) and (config.get("add_bos_token", False) or bos in json.dumps(spec.get("post_processor"), ensure_ascii=False))
        preamble = _preamble(self.own) if self.own and self.template == "chatml" else None
        self._names = Names(bos if adds_bos or self.template != "plain" else None, eos, preamble)
        self._encoder = load_encoder("", folder)
        self._check()

    @property
    def jinja(self) -> str:
        """Return the template that an exported model carries."""
        return self.own if self.own and _matches(self.own) == self.template else JINJA[self.template]

    def pieces(self, messages: Sequence[Message]) -> list[Piece]:
        """Return a conversation as pieces, empty ones left out."""
        return [piece for piece in TEMPLATES[self.template](messages, self._names) if piece.text]

    def encode(self, conversations: Sequence[Sequence[Message]]) -> list[Tokens]:
        """Return the tokens of each conversation."""
        laid_out = [self.pieces(messages) for messages in conversations]
        ids, offsets = self._encoder.encode([piece.text for pieces in laid_out for piece in pieces if not piece.special])
        bounds = iter(zip(offsets[:-1], offsets[1:], strict=True))
        return [self._join(pieces, ids, bounds) for pieces in laid_out]

    def _join(self, pieces: Sequence[Piece], ids: np.ndarray, bounds: Any) -> Tokens:
        parts = [np.array([self._ids[p.text]], np.int32) if p.special else ids[slice(*next(bounds))] for p in pieces]
        learnt = [np.full(len(part), piece.learnt) for piece, part in zip(pieces, parts, strict=True)]
        return Tokens(np.concatenate(parts).astype(np.int32), np.concatenate(learnt))

    def _check(self) -> None:
        """Ask for every special token of the template before any sample is encoded."""
        probe = [{"role": role, "content": "x"} for role in ("system", "user", "assistant")]
        pieces = TEMPLATES[self.template](probe, self._names)
        if missing := {piece.text or "end of text" for piece in pieces if piece.special and piece.text not in self._ids}:
            raise ChatError(f"template {self.template}: the tokenizer has no {', '.join(sorted(missing))}; set sft.template")


@dataclass(frozen=True)
class Tokenised:
    """Samples as the model sees them, in the order of their table.

    Attributes:
        sample_ids: ids of the samples that remain.
        tokens: their tokens; the first token of a sample is never learnt.
        counts: `samples`, `truncated`, `dropped_overlong` (by config), `dropped_prompt` (the prompt alone fills max_length).
    """

    sample_ids: list[str]
    tokens: list[Tokens]
    counts: dict[str, int]

    def response_tokens(self) -> np.ndarray:
        """Return the number of learnt tokens of each sample, `(n,) int64`."""
        return np.array([int(tokens.learnt.sum()) for tokens in self.tokens], np.int64)


def tokenise(samples: pa.Table, chat: Chat, *, max_length: int, overlong: str = "truncate") -> Tokenised:
    """Return the samples' tokens, none longer than max_length.

    Args:
        samples: with the columns sample_id and messages.
        chat: tokenizer and template.
        max_length: tokens of a sample at most.
        overlong: `truncate` cuts the end off the response, `drop` leaves the sample out.

    Raises:
        ChatError: no sample remains.
    """
    ids, encoded = samples["sample_id"].to_pylist(), chat.encode(samples["messages"].to_pylist())
    counts = {"samples": len(ids), "truncated": 0, "dropped_overlong": 0, "dropped_prompt": 0}
    kept: list[tuple[str, Tokens]] = []
    for sample_id, tokens in zip(ids, encoded, strict=True):
        if len(tokens.ids) > max_length and overlong == "drop":
            counts["dropped_overlong"] += 1
            continue
        cut = Tokens(tokens.ids[:max_length], tokens.learnt[:max_length])
        if not cut.learnt.any():
            counts["dropped_prompt"] += 1
            continue
        counts["truncated"] += int(tokens.learnt[max_length:].any())
        kept.append((sample_id, cut))
    if not kept:
        raise ChatError(f"none of {len(ids)} samples has a response token within sft.max_length={max_length}")
    return Tokenised([sample_id for sample_id, _ in kept], [tokens for _, tokens in kept], counts)


def _token(value: Any) -> str | None:
    return value.get("content") if isinstance(value, dict) else value


def _own_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text("utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):  # several, by name
        found = next((one["template"] for one in found if one.get("name") == "default"), None)
    return found


def _matches(jinja: str) -> str | None:
    return next((name for name, mark in MARKS.items() if mark in jinja), None)


def _detect(jinja: str | None, folder: Path) -> str:
    if not jinja:
        return "plain"
    if found := _matches(jinja):
        return found
    raise ChatError(f"the chat template of {folder} is none of {', '.join(TEMPLATES)}: choose the nearest with sft.template")


def _preamble(jinja: str) -> str | None:
    """Return the system message that a model's ChatML template puts before a conversation without one, found by rendering it."""
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    try:
        template = environment.from_string(jinja)
        text = template.render(messages=[{"role": "user", "content": "x"}], add_generation_prompt=False, bos_token="", eos_token="")
    except TemplateError as error:
        raise ChatError(f"the model's chat template can't be rendered: {error}") from None
    found = re.match(r"<\|im_start\|>system\n(.*?)<\|im_end\|>", text, flags=re.DOTALL)
    return found[1] if found else None
