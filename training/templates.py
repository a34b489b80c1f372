"""What a conversation looks like to a model: parts of text and special tokens, in our own four formats.

`training.rendering` makes parts out of any other template. A format here has no default system message and strips no white space; it says
roles and contents, and nothing else: tools, tool calls and reasoning need a model whose own template knows them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diversity.config import UserError

EOS = "<eos>"  # stands for whatever the tokenizer calls its end-of-text token
Message = Mapping[str, Any]


class Unrenderable(UserError):
    """A conversation that a template can't say; the message says why."""


@dataclass(frozen=True)
class Part:
    """A stretch of a conversation: a text that is encoded by itself, or one special token."""

    text: str
    special: bool = False
    learnt: bool = False


def learns(message: Message) -> bool:
    """Return whether a turn is learnt: the assistant's, unless its weight is 0.

    Raises:
        Unrenderable: a weight that is neither 0 nor 1.
    """
    weight = message.get("weight")
    if weight not in (None, 0, 1):
        raise Unrenderable(f"the weight of a turn is 0 (not learnt) or 1, not {weight}")
    return bool(message.get("role") == "assistant" and weight != 0)


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
    learnt = learns(message)
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
            yield Part(f" {message['content']} ", learnt=learns(message))
            yield Part("</s>", special=True, learnt=learns(message))
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
            yield Part(message["content"], learnt=learns(message))
            yield Part(EOS, special=True, learnt=learns(message))
            before = ""
        else:
            before += f"### Instruction:\n{message['content']}\n\n"


TEMPLATES: dict[str, Callable[[Sequence[Message], str | None], Iterator[Part]]] = {
    "chatml": _chatml,
    "llama-2": _llama2,
    "llama-3": _llama3,
    "plain": _plain,
}
# What a vocabulary holds if a model without a template is to be trained with one of ours; the first that fits counts.
MARKS = {"chatml": ("<|im_start|>", "<|im_end|>"), "llama-3": ("<|start_header_id|>", "<|eot_id|>")}
# What messages may hold that our formats do not say.
UNSAID = ("tool_calls", "reasoning_content")
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


def named_parts(name: str, messages: Sequence[Message], tools: Sequence[Any] | None, bos: str | None) -> list[Part]:
    """Return a conversation in one of our formats.

    Raises:
        Unrenderable: it holds something that the format does not say.
    """
    held = [key for key in UNSAID if any(message.get(key) for message in messages)] + (["tools"] if tools else [])
    if held:
        raise Unrenderable(f"template {name} does not say {' or '.join(held)}: use a model whose own chat template does")
    return list(TEMPLATES[name]([{**message, "content": message.get("content") or ""} for message in messages], bos))
