"""What an OpenAI-compatible endpoint sent back becomes an answer, a reason to try again, or an error that names the endpoint."""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diversity.config import UserError

REFUSED = (400, 413, 422)
AGAIN = (408, 409, 425, 429)
REFUSAL = "refused"
MOST_TOKENS = 2**31 - 1  # that tables can hold
_LONE = re.compile("[\ud800-\udfff]")

Tokens = list[list[Any]]  # the likeliest tokens at one place: [[text, log-probability], …]


class EndpointError(UserError):
    """An endpoint that can't be used; the message says what it answered."""


class TryAgain(Exception):
    """A try that failed and may go better.

    Attributes:
        wait: what the endpoint asks for, in seconds.
        billed: whether the endpoint may have worked on the request, and may charge for it.
        sent: whether the request left this machine.
    """

    def __init__(self, reason: str, wait: float | None = None, *, billed: bool = True, sent: bool = True) -> None:
        super().__init__(reason)
        self.wait, self.billed, self.sent = wait, billed, sent


@dataclass(frozen=True)
class Answer:
    """What a model answered. Half of a surrogate pair, which JSON may spell and no table can hold, is U+FFFD in it.

    Attributes:
        text: the message's content; of a refusal, the reason.
        finish: `stop`, `length`, … as the endpoint says, or `refused`.
        prompt_tokens: as the endpoint counts them; 0 where it doesn't.
        completion_tokens: likewise.
        logprobs: for each token of the answer, the likeliest tokens there, where the request asked for them.
        model: the name of the model that answered, as the endpoint says.
    """

    text: str
    finish: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    logprobs: list[Tokens] | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        for name in ("text", "finish", "model"):
            if _LONE.search(getattr(self, name) or ""):
                object.__setattr__(self, name, _LONE.sub("\ufffd", getattr(self, name)))

    @property
    def kind(self) -> str:
        """Return `refused`, `cut` (it ended at its most tokens), `empty`, or `ok`."""
        if self.finish == REFUSAL:
            return "refused"
        if self.finish == "length":
            return "cut"
        return "ok" if self.text.strip() or self.logprobs else "empty"

    def record(self) -> dict[str, Any]:
        """Return the answer as JSON holds it."""
        return {name: value for name, value in vars(self).items() if value is not None}


def read_response(url: str, body: Mapping[str, Any], status: int, retry_after: str | None, content: bytes, secret: str = "") -> Answer:
    """Return the answer that a response holds; of one that the endpoint won't give, a refusal with its reason.

    Args:
        url: of the endpoint, for messages.
        body: the request.
        status: of HTTP.
        retry_after: the header of that name.
        content: the response's body.
        secret: a key that no message may repeat.

    Raises:
        TryAgain: another try may help.
        EndpointError: none will.
    """

    def excerpt() -> str:
        text = content.decode(errors="replace")
        return f"HTTP {status}: " + " ".join((text.replace(secret, "…") if secret else text).split())[:300]

    if status in AGAIN or status >= 500:
        raise TryAgain(excerpt(), seconds(retry_after), billed=status >= 500)
    if status in REFUSED:
        return Answer(excerpt(), REFUSAL)
    if status != 200:
        raise EndpointError(f"{url} answered {excerpt()}")
    try:
        whole = json.loads(content)
        choice = whole["choices"][0]
        text, finish = choice["message"].get("content") or "", choice.get("finish_reason") or "stop"
        tokens = _usage(whole)
        logprobs = _logprobs(choice)
        served = whole.get("model")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError):
        raise TryAgain(f"a body that is no chat completion: {excerpt()}") from None
    if body.get("logprobs") and not logprobs:
        raise EndpointError(
            f"{url} ignores logprobs: {body.get('model')!r} answered without them. Take one that gives them, "
            "as vLLM does, or ask for labels"
        )
    asked_for = logprobs if body.get("logprobs") else None
    return Answer(str(text), str(finish), tokens[0], tokens[1], asked_for, served if isinstance(served, str) else None)


def follows_schema(body: Mapping[str, Any], answer: Answer) -> bool | None:
    """Return whether an answer has the form that its request asks for; None where nothing was asked, or the answer is not whole.

    What is looked at is whether it is JSON and, for an object, its required keys: a server that enforces a schema never fails that.
    """
    form = body.get("response_format") or {}
    if form.get("type") not in ("json_schema", "json_object") or answer.kind in ("refused", "cut"):
        return None
    try:
        value = json.loads(answer.text)
    except (ValueError, RecursionError):
        return False
    schema = (form.get("json_schema") or {}).get("schema") or {"type": "object"}
    return schema.get("type") != "object" or (isinstance(value, dict) and value.keys() >= set(schema.get("required", ())))


def seconds(retry_after: str | None) -> float | None:
    """Return how long a Retry-After header asks to wait: it holds seconds, or a date."""
    if not retry_after:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return None


def _usage(whole: Mapping[str, Any]) -> tuple[int, int]:
    """Return the tokens of the prompt and of the answer; (0, 0), which is not known, where one of the two isn't told.

    Raises:
        ValueError: what is told is no number of tokens.
    """
    told = whole.get("usage") or {}
    if told.get("prompt_tokens") is None or told.get("completion_tokens") is None:
        return 0, 0
    prompt, completion = int(told["prompt_tokens"]), int(told["completion_tokens"])
    if not (0 <= prompt <= MOST_TOKENS and 0 <= completion <= MOST_TOKENS):
        raise ValueError(f"no numbers of tokens: {prompt}, {completion}")
    return prompt, completion


def _logprobs(choice: Mapping[str, Any]) -> list[Tokens] | None:
    """Return [text, log-probability] of the likeliest tokens at each place of an answer; the one that was drawn is among them."""
    content = (choice.get("logprobs") or {}).get("content")
    if not content:
        return None
    places = []
    for place in content:
        found = {str(token["token"]): min(float(token["logprob"]), 0.0) for token in [place, *(place.get("top_logprobs") or [])]}
        places.append([[token, value] for token, value in found.items()])
    return places
