"""Messages become input ids and labels.

What is learnt is what the assistant says and the token that ends its turn, in every turn whose weight is not 0, and nothing else. How it
looks is for the model's own chat template to say (`training.rendering`); a model without one gets a format of ours (`training.templates`).
Content that spells a special token is ordinary text: special tokens come from the template, never out of a text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from diversity.config import ConfigError, UserError, near_matches
from diversity.corpus.samples import messages_of
from training.part_ids import PartEncoder, special_tokens
from training.rendering import PROBE_TOOL, Rendering, Template, probe_call
from training.templates import JINJA, MARKS, TEMPLATES, Message, Part, Unrenderable, named_parts

NO_LABEL = -100
OWN = "own"  # the model's own template


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
class ChatFormat:
    """What inference must know of how a model was trained.

    Attributes:
        template: Jinja that builds the prompts of training; several by name where the model has several.
        ends: ids of the tokens that end a learnt turn, at which generation stops.
    """

    template: Template
    ends: tuple[int, ...]


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

    def __init__(self, tokenizer: Any, template: str = "auto", *, fast: bool | None = None) -> None:
        """Prepare an encoder.

        Args:
            tokenizer: a fast tokenizer of transformers.
            template: one of `TEMPLATES`, or `auto`: the tokenizer's own, or else the one that its vocabulary has the special tokens of.
            fast: False renders and encodes the general way where there is a faster one with the same result.

        Raises:
            ConfigError: no such template, or the tokenizer lacks a token that it needs.
        """
        self._bos = _leading_token(tokenizer)
        self.template = detect_template(tokenizer) if template == "auto" else template
        own = tokenizer.chat_template
        if template == "auto" and own and fast is not False:  # our own format by another way is the same, and faster
            self.template = next((name for name in TEMPLATES if own == _jinja(name, self._bos)), self.template)
        if self.template not in TEMPLATES and self.template != OWN:
            raise ConfigError(f"unknown chat template {template!r}{near_matches(template, TEMPLATES)}")
        names = set() if self.template == OWN else _special_names(self.template, self._bos)
        self._ids = PartEncoder(tokenizer, names, fast=fast)
        self._rendering = None
        if self.template == OWN:
            self._rendering = Rendering(own, tokenizer.special_tokens_map, list(special_tokens(tokenizer)))
        elif missing := self._ids.missing(sorted(names)):
            raise ConfigError(f"chat template {self.template} needs {', '.join(missing)}, which the tokenizer does not have")

    @property
    def chat_template(self) -> Template:
        """Return the Jinja template that builds the same prompts, for the exported tokenizer; several by name where it has several."""
        return self._rendering.template if self._rendering else _jinja(self.template, self._bos)

    def encode(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> Encoded:
        """Return one conversation's ids and labels.

        Raises:
            Unrenderable: it has no assistant's turn, or the template can't say it.
        """
        return self.encode_all([messages], [tools])[0]

    def encode_all(self, conversations: Iterable[Sequence[Message]], tools: Iterable[Any] | None = None) -> list[Encoded]:
        """Return many conversations' ids and labels, of each the sequence that ends with its last turn.

        Raises:
            Unrenderable: the template can't say one of them; the message says which, counted from 0.
        """
        found = self.sequences(conversations, tools)
        for number, one in enumerate(found):
            if isinstance(one, Unrenderable):
                raise Unrenderable(f"conversation {number}: {one}")
        return [one[-1] for one in found if not isinstance(one, Unrenderable)]

    def sequences(
        self, conversations: Iterable[Sequence[Message]], tools: Iterable[Any] | None = None
    ) -> list[list[Encoded] | Unrenderable]:
        """Return for each conversation what is learnt of it, or why nothing can be.

        That is one sequence, but for templates that show a turn in another way once the conversation has gone on: there each such turn
        comes first, as a sequence of its own.
        """
        listed = list(conversations)
        given = [None] * len(listed) if tools is None else list(tools)
        split = [self._split(messages, some) for messages, some in zip(listed, given, strict=True)]
        parts = [one for each in split if not isinstance(each, Unrenderable) for one in each]
        joined = iter([_join(some, ids) for some, ids in zip(parts, self._ids.encode(parts), strict=True)])
        return [each if isinstance(each, Unrenderable) else [next(joined) for _ in each] for each in split]

    @property
    def end(self) -> int:
        """Return the id of the token that ends an answer in words."""
        return self.ends[0]

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Return the ids of the tokens that end a turn: an answer in words first, then what else ends an earlier one, or a tool call."""
        asked, said = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
        called: list[Message] = [asked, {"role": "assistant", "content": "", "tool_calls": [probe_call()]}]
        found = self.sequences([[asked, said, asked, said], called, called], [None, None, [PROBE_TOOL]])
        more = learnt_ends(self, (one for sequences in found if not isinstance(sequences, Unrenderable) for one in sequences))
        return tuple(dict.fromkeys([int(self.encode([asked, said]).input_ids[-1]), *more]))

    @property
    def special_ids(self) -> set[int]:
        """Return the ids that no text can have."""
        return set(self._ids.specials.values())

    def contents(self) -> list[bytes]:
        """Return the content of each id that a text can have, as typing knows it."""
        return self._ids.texts.contents()

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> np.ndarray:
        """Return `(L,) int32`: the conversation up to where the assistant's next answer begins."""
        if self._rendering:
            parts = self._rendering.prompt(messages, tools)
        else:
            parts = named_parts(self.template, [*messages, {"role": "assistant", "content": ""}], tools, self._bos)
            parts = parts[: max(i for i, part in enumerate(parts) if part.learnt and not part.special)]
        return np.concatenate(self._ids.encode([parts])[0])

    def _split(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> list[list[Part]] | Unrenderable:
        try:
            _refuse_empty(messages)
            if self._rendering:
                return self._rendering.sequences(messages, tools)
            parts = named_parts(self.template, messages, tools, self._bos)
        except Unrenderable as error:
            return error
        if not any(part.learnt for part in parts):
            return Unrenderable("a conversation without an assistant's turn has nothing to learn")
        return [parts]


def detect_template(tokenizer: Any) -> str:
    """Return what `auto` is: the tokenizer's own chat template, or else the format that its vocabulary has the special tokens of."""
    if tokenizer.chat_template:
        return OWN
    known = tokenizer.get_vocab()
    return next((name for name, marks in MARKS.items() if all(mark in known for mark in marks)), "plain")


def learnt_ends(encoder: ChatEncoder, encoded: Iterable[Encoded]) -> tuple[int, ...]:
    """Return the special tokens that end a learnt stretch of any of the samples, ascending."""
    found: set[int] = set()
    for one in encoded:
        known = one.labels != NO_LABEL
        found.update(one.labels[known & ~np.append(known[1:], False)].tolist())
    return tuple(sorted(found & encoder.special_ids))


def conversations(samples: pa.Table) -> tuple[list[list[dict[str, Any]]], list[Any]]:
    """Return the messages of a table's rows, and the tools of each, None where there are none."""
    tools = samples["tools"].to_pylist() if "tools" in samples.column_names else [None] * len(samples)
    return [messages_of(messages) for messages in samples["messages"].to_pylist()], [tools_of(one) for one in tools]


def _refuse_empty(messages: Sequence[Message]) -> None:
    for number, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise Unrenderable(f"turn {number} has no role")
        if message.get("content") is None and not message.get("tool_calls"):
            raise Unrenderable(f"turn {number} ({message['role']}) has neither content nor a tool call")


def tools_of(stored: str | None) -> Any:
    """Return a sample's tools, which tables hold as JSON text; None where there are none.

    Raises:
        UserError: the text is no JSON.
    """
    if stored is None:
        return None
    try:
        return json.loads(stored)
    except ValueError:
        raise UserError(f"the tools of a sample are no JSON text: {stored[:80]!r}") from None


def _jinja(name: str, bos: str | None) -> str:
    return JINJA[name].replace("{{ bos }}", bos or "")


def _special_names(name: str, bos: str | None) -> set[str]:
    """Return the special tokens of one of our formats."""
    probe = [{"role": role, "content": ""} for role in ("system", "user", "assistant")]
    return {part.text for part in named_parts(name, probe, None, bos) if part.special}


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
    end = int(np.flatnonzero(learnt)[-1]) + 1
    input_ids = np.concatenate(ids)[:end].astype(np.int32, copy=False)
    return Encoded(input_ids, np.where(learnt[:end], input_ids, np.int32(NO_LABEL)), int(learnt.sum()))


def _leading_token(tokenizer: Any) -> str | None:
    """Return the special token that the tokenizer puts before a text, if it does."""
    ids = tokenizer("a").input_ids
    return tokenizer.bos_token if tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id] else None
