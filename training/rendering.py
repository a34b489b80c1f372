"""A model's own chat template, whatever it is: rendered by transformers, with what the assistant says found in the text and proved.

A turn is what the template makes of the conversation that ends with it, less the prompt that the template makes of what comes before; so
what is learnt is what a model at inference must say after that prompt. Where the whole conversation shows a turn in the same way, it is
learnt there. Where it does not (templates that drop the thinking of earlier turns), the conversation up to that turn is learnt as a
sequence of its own. A template that marks the assistant's text (`{% generation %}`) says which turns are learnt; where one begins and ends
is found as for others, since marks may hold the header or lack the end. What can't be proved is refused.

Special tokens come from the template alone: those that a content spells are marked before rendering and are ordinary text afterwards.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise, takewhile
from typing import Any

from training.part_ids import any_of
from training.templates import UNSAID, Message, Part, Unrenderable, learns

Span = tuple[int, int]
Template = str | Mapping[str, str]

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
SHIELDS = tuple(chr(code) for code in range(0xFFF00, 0xFFF40))  # of a private plane: one that the conversation does not hold
# Templates that ask for today's date get one day for ever, in training and in the export: else a run's data would change overnight.
TODAY = {"%d": "26", "%m": "07", "%Y": "2024", "%b": "Jul", "%B": "July", "%y": "24", "%A": "Friday", "%a": "Fri", "%H": "12", "%M": "00"}
PROBE = "zqprobe"
PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": PROBE,
        "description": "g",
        "parameters": {"type": "object", "properties": {"e": {"type": "string", "description": "f"}}, "required": ["e"]},
    },
}
ENDLESS = "its chat template ends an answer with no special token, so that nothing would tell a model to end"
Turn = tuple[str, bool, int, bool, bool]  # role, whether it has a content, its tool calls, whether it has a name and the id of a call


def pinned(template: Template) -> Template:
    """Return a chat template whose date never changes; most ask for none, and come back as they are."""
    if not isinstance(template, str):
        return {name: str(pinned(one)) for name, one in template.items()}
    if "strftime_now" not in template:
        return template
    filters = "".join(f' | replace("{code}", "{value}")' for code, value in TODAY.items())
    return "{%- macro strftime_now(format) %}{{ format" + filters + " }}{% endmacro %}" + template


class Rendering:
    """Conversations as parts, by one chat template."""

    def __init__(self, template: Template, special: Mapping[str, str], tokens: Sequence[str]) -> None:
        """Prepare it.

        Args:
            template: Jinja, or several by name, as a tokenizer has them; `tool_use` is for samples with tools.
            special: what templates know special tokens as: `bos_token`, `eos_token`, …
            tokens: all special tokens.
        """
        self.template = pinned(template)
        self._known = dict(special)
        self._special = any_of(tokens)
        self._says = cache(self._probe)
        self._after = cache(self._after_an_answer)
        self._unsaid_turn = cache(self._probe_turns)

    def sequences(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> list[list[Part]]:
        """Return what is learnt of a conversation: earlier turns that stand alone, and last the conversation up to its last learnt turn.

        Raises:
            Unrenderable: the template refuses it, does not say all that it holds, or where an answer is can't be proved.
        """
        answers = [number for number, message in enumerate(messages) if learns(message)]
        if not answers:
            raise Unrenderable("a conversation without an assistant's turn has nothing to learn")
        self._refuse_unsaid(messages, messages[: answers[-1] + 1], tools)
        (messages, tools), shield = self._shielded([messages[: answers[-1] + 1], tools])
        if self._marks(tools):
            text, spans = self._marked(messages, tools)
            return [self._parts(text, spans, shield)]
        full, spans, apart = self._render(messages, tools, prompt=False), [], []
        for said, span in self._answers(messages, tools, answers):
            if full[: span[1]] == said[: span[1]]:
                spans.append(span)
            else:
                apart.append(self._parts(said, [span], shield))
        return [*apart, self._parts(full, spans, shield)]

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> list[Part]:
        """Return the prompt of the next answer, with earlier answers cut off where training cuts them off."""
        self._refuse_unsaid(messages, messages, tools)
        (messages, tools), shield = self._shielded([messages, tools])
        text = self._render(messages, tools, prompt=True)
        try:
            earlier = self._earlier(messages, tools)
        except Unrenderable:  # such a conversation is never trained on, and can be answered all the same
            earlier = []
        spans = [(start, stop) for said, (start, stop) in earlier if text[:stop] == said[:stop]]
        return self._parts(text, spans, shield)

    def _earlier(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> list[tuple[str, Span]]:
        """Return the answers that a conversation holds, each as a text and where in it the answer is."""
        answers = [number for number, message in enumerate(messages) if learns(message)]
        if not answers or not self._marks(tools):
            return list(self._answers(messages, tools, answers))
        text, spans = self._marked(messages[: answers[-1] + 1], tools)
        return [(text, span) for span in spans]

    def _answers(self, messages: Sequence[Message], tools: Sequence[Any] | None, numbers: Sequence[int]) -> Iterator[tuple[str, Span]]:
        """Yield for each answer the conversation that ends with it, and where in that text the answer is."""
        for number in numbers:
            prompt, said = self._render(messages[:number], tools, prompt=True), self._render(messages[: number + 1], tools, prompt=False)
            if not said.startswith(prompt):
                raise Unrenderable("its chat template's prompt is no beginning of what it makes of the answered conversation")
            yield said, (len(prompt), self._end(said, len(prompt), tools))

    def _render(self, messages: Sequence[Message], tools: Sequence[Any] | None, *, prompt: bool) -> str:
        return self._rendered(messages, tools, add_generation_prompt=prompt)[0]

    def _rendered(self, messages: Sequence[Message], tools: Sequence[Any] | None, **options: Any) -> tuple[str, list[Span]]:
        """Return the text, and where the template says that the assistant speaks, if it is asked."""
        made = [self._spelled(message) for message in messages]
        try:
            return _transformers(made, {"tools": tools, "chat_template": self._chosen(tools), **self._known, **options})
        except Exception as error:  # a template is foreign code: whatever it raises is its refusal
            raise Unrenderable(f"its chat template refuses it: {' '.join(str(error).split())[:200]}") from None

    def _chosen(self, tools: Sequence[Any] | None) -> str:
        if isinstance(self.template, str):
            return self.template
        return self.template["tool_use"] if tools and "tool_use" in self.template else self.template["default"]

    def _spelled(self, message: Message) -> dict[str, Any]:
        """Return a message as templates want it: no nulls, a content always, and arguments of calls as objects where those are known."""
        made = {"content": "", **{key: value for key, value in message.items() if value is not None and key != "weight"}}
        if "tool_calls" in made:
            made["tool_calls"] = [_call(call, as_text=self._says("tool_calls") == "text") for call in made["tool_calls"]]
        return made

    def _refuse_unsaid(self, messages: Sequence[Message], seen: Sequence[Message], tools: Sequence[Any] | None) -> None:
        """Refuse a conversation with something that the template passes over, in any turn or in those that are seen."""
        held = [key for key in UNSAID if any(message.get(key) for message in messages)] + (["tools"] if tools else [])
        for key in held:
            if not self._says(key):
                raise Unrenderable(f"its chat template does not say {key}")
        unsaid = self._unsaid_turn(tuple(map(_turn, seen)), self._chosen(tools), bool(tools))
        if unsaid is not None:
            raise Unrenderable(f"its chat template does not say turn {unsaid} ({seen[unsaid]['role']})")

    def _probe_turns(self, turns: Sequence[Turn], template: str, with_tools: bool) -> int | None:
        """Return the first turn that the template passes over; None where it says all of them, or refuses the probe.

        A turn is looked for in the conversation up to the next answer, since later texts may drop what was said before a call, and in the
        whole, since some templates say a system turn beside the last question alone.
        """
        made = [self._spelled(_probing(number, turn)) for number, turn in enumerate(turns)]
        options: dict[str, Any] = {"chat_template": template, "tools": [PROBE_TOOL] if with_tools else None, **self._known}
        start, whole = 0, _rendered_or_nothing(made, {**options, "add_generation_prompt": turns[-1][0] != "assistant"})
        for stop in [number + 1 for number, turn in enumerate(turns) if turn[0] == "assistant" or number + 1 == len(turns)]:
            text = _rendered_or_nothing(made[:stop], {**options, "add_generation_prompt": turns[stop - 1][0] != "assistant"})
            unsaid = [number for number in range(start, stop) if made[number]["content"] not in text + whole]
            if text and unsaid:
                return unsaid[0]
            start = stop
        return None

    def _probe(self, key: str) -> str:
        """Return whether the template says a key's content: "" if not, and for tool calls whether arguments are objects or "text"."""
        asked = {"role": "user", "content": "a"}
        arguments: list[Any] = [{"b": "c"}, '{"b": "c"}'] if key == "tool_calls" else [None]
        for given in arguments:
            tools = None
            answer: dict[str, Any] = {"role": "assistant", "content": "d"}
            if key == "tools":
                tools = [PROBE_TOOL]
            elif key == "tool_calls":
                answer = {"role": "assistant", "content": "", "tool_calls": [probe_call(arguments=given)]}
            else:
                answer[key] = PROBE
            options = {"tools": tools, "chat_template": self._chosen(tools or ([1] if key == "tool_calls" else None)), **self._known}
            if PROBE in _rendered_or_nothing([asked, answer], options):
                return "text" if isinstance(given, str) else "yes"
        return ""

    def _marks(self, tools: Sequence[Any] | None) -> bool:
        return bool(GENERATION.search(self._chosen(tools)))

    def _marked(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> tuple[str, list[Span]]:
        """Return a text and its assistant's spans by the template's own marks, from behind each prompt to the token that ends it."""
        text, found = self._rendered(messages, tools, return_assistant_tokens_mask=True)
        begins = self._begins(text, messages, tools)
        marked = [(max([start, *(begin for begin in begins if start < begin < stop)]), stop) for start, stop in found if stop > start]
        spans = []
        for (start, stop), (following, _) in zip(marked, [*marked[1:], (len(text), 0)], strict=True):
            goes_on = bool(begins) and following < len(text) and not any(stop <= begin <= following for begin in begins)
            # A turn may have several marks; the last of them ends it.
            spans.append((start, stop if goes_on else self._marked_end(text, start, stop)))
        turns = [learns(message) for message in messages if message["role"] == "assistant"]
        if all(turns):
            return text, spans
        if len(turns) != len(spans):
            raise Unrenderable("a turn of weight 0 can't be told from others: the chat template's marks are not one a turn")
        return text, [span for span, learnt in zip(spans, turns, strict=True) if learnt]

    def _begins(self, text: str, messages: Sequence[Message], tools: Sequence[Any] | None) -> list[int]:
        """Return where in a text the assistant's turns begin: behind their prompts, as far as the text and the template show those."""
        found = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            with contextlib.suppress(Unrenderable):  # a template that has no prompt for this turn still marks it
                prompt = self._render(messages[:number], tools, prompt=True)
                found += [len(prompt)] if text.startswith(prompt) else []
        return found

    def _marked_end(self, text: str, start: int, stop: int) -> int:
        """Return where a marked answer ends: behind its last special token, or behind the one that follows its mark."""
        ends = [match.end() for match in self._special.finditer(text, start, stop)]
        if ends and not text[ends[-1] : stop].strip():
            return ends[-1]
        following = self._special.match(text, stop)
        if following is None:
            raise Unrenderable(ENDLESS)
        return following.end()

    def _end(self, said: str, start: int, tools: Sequence[Any] | None) -> int:
        """Return where the answer ends that a text holds from `start`: behind the special token that ends the turn."""
        after = self._after(self._chosen(tools))
        stop = len(said) - len(after) if said.endswith(after) else len(said)
        ends = [match.end() for match in self._special.finditer(said, start, stop)]
        if not ends or said[ends[-1] : stop].strip():
            raise Unrenderable(ENDLESS)
        return ends[-1]

    def _after_an_answer(self, template: str) -> str:
        """Return what the template puts after an answer's end where the conversation ends: what is not there when it goes on."""
        options = {"chat_template": template, **self._known}
        turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", PROBE), ("user", "b"))]
        ended, going_on = _rendered_or_nothing(turns[:2], options), _rendered_or_nothing(turns, options)
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ended, going_on, strict=False)))
        begins = ended.find(PROBE)
        stops = [match.end() for match in self._special.finditer(ended) if match.start() > begins >= 0 and match.end() <= common]
        return ended[stops[-1] :] if stops else ""

    def _shielded(self, held: list[Any]) -> tuple[list[Any], str]:
        """Return the conversation with every special token in its texts broken by a character, and that character ("" if none is)."""
        spelled = json.dumps(held, ensure_ascii=False)
        if not self._special.search(spelled):
            return held, ""
        shield = next((one for one in SHIELDS if one not in spelled), None)
        if shield is None:
            raise Unrenderable("it holds every character that could mark its special tokens as text")
        return _mapped(held, lambda text: self._special.sub(lambda found: found[0][0] + shield + found[0][1:], text)), shield

    def _parts(self, text: str, spans: Sequence[Span], shield: str) -> list[Part]:
        """Return a rendered text as parts: cut at special tokens and at the bounds of what is learnt."""
        specials = {match.start(): match.end() for match in self._special.finditer(text)}
        bounds = sorted({0, len(text), *specials, *specials.values(), *(bound for span in spans for bound in span)})
        parts, span, k = [], list(spans), 0
        for start, stop in pairwise(bounds):
            while k < len(span) and span[k][1] <= start:
                k += 1
            learnt = k < len(span) and span[k][0] <= start
            special = specials.get(start) == stop
            parts.append(Part(text[start:stop] if special or not shield else text[start:stop].replace(shield, ""), special, learnt))
        return parts


def _turn(message: Message) -> Turn:
    """Return what of a turn decides how a template says it."""
    calls = message.get("tool_calls")
    named = bool(message.get("name")), bool(message.get("tool_call_id"))
    return message["role"], bool(message.get("content")), len(calls) if isinstance(calls, (list, tuple)) else 0, *named


def _probing(number: int, turn: Turn) -> Message:
    """Return a turn of that kind whose content is found again in a text."""
    role, said, calls, named, answers_call = turn
    made: dict[str, Any] = {"role": role, "content": f"{PROBE}{number}z" if said else ""}
    if calls:
        made["tool_calls"] = [probe_call(call) for call in range(calls)]
    return made | ({"name": PROBE} if named else {}) | ({"tool_call_id": probe_call()["id"]} if answers_call else {})


def probe_call(number: int = 0, arguments: Any = None) -> dict[str, Any]:
    """Return a tool call; its id has the form that the strictest templates ask for."""
    given = {"b": "c"} if arguments is None else arguments
    return {"id": f"{number:09}", "type": "function", "function": {"name": PROBE, "arguments": given}}


def _call(call: Any, *, as_text: bool) -> Any:
    """Return a tool call with its arguments as an object, or as the JSON text that some templates want."""
    if not isinstance(call, Mapping) or not isinstance(call.get("function"), Mapping):
        return call
    arguments = call["function"].get("arguments")
    if as_text and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif not as_text and isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except ValueError:
            parsed = None
        arguments = parsed if isinstance(parsed, dict) else arguments
    return {**call, "function": {**call["function"], "arguments": arguments}}


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Return the same lists and objects with every text changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(one, change) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(one, change) for one in value]
    return value


def _rendered_or_nothing(messages: list[dict[str, Any]], options: Mapping[str, Any]) -> str:
    try:
        return _transformers(messages, options)[0]
    except Exception:  # a template that refuses a probe says nothing of it
        return ""


def _transformers(messages: list[dict[str, Any]], options: Mapping[str, Any]) -> tuple[str, list[Span]]:
    from transformers.utils.chat_template_utils import render_jinja_template

    render: Callable[..., Any] = render_jinja_template
    texts, spans = render([messages], **options)
    return texts[0], spans[0] if spans else []
