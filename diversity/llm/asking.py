"""Many requests to one model, each answered once: what is kept is not asked again, what arrives is kept at once, all within a budget."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from diversity.artifact import Storage, digest
from diversity.config import ConfigError
from diversity.llm.answers import Answers
from diversity.llm.budget import Budget, BudgetConfig, BudgetSpent
from diversity.llm.endpoint import Endpoint, EndpointConfig
from diversity.llm.reading import Answer, EndpointError

log = logging.getLogger(__name__)

PACK_EVERY = 4096
_AGAIN = "again"  # in a kept record: how often the same was answered before
_AGAIN_MARK = "+"
_KEY_NAME = re.compile(
    r"(^|_)(key|(api|access)key|token|accesstoken|secret|password|passwd|authorization|bearer|credentials?)(_value)?$|^auth$"
)
_NO_KEY = re.compile(r"^prompt_cache_key$|(^|_)(bos|eos|pad|unk|stop|max|min|mask)_token$")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


class Asker:
    """Asks one model through an endpoint and keeps every answer under the key of its request.

    Attributes:
        budget: what may be spent, and what is.
    """

    def __init__(
        self,
        base_url: str | None,
        config: EndpointConfig,
        answers: Answers,
        budget: BudgetConfig | None = None,
        *,
        storage: Storage | None = None,
        ledger: str = "budget",
    ) -> None:
        """Open the budget's journal.

        Args:
            base_url: of the endpoint; None answers from what is kept alone.
            config: how it is asked.
            answers: those that are kept.
            budget: limits; None sets none.
            storage: where the budget is booked.
            ledger: the budget's name there.
        """
        self._answers, self._config = answers, config
        self.budget = Budget(budget or BudgetConfig(), storage, ledger, self._usage)
        self._endpoint = Endpoint(base_url, config, self.budget) if base_url else None

    def known(self, keys: Iterable[str]) -> dict[str, Answer]:
        """Return the answers that are kept, less those that are to be asked again."""
        return known_answers(self._answers, self._config, keys)

    def ask(self, requests: Mapping[str, dict[str, Any]], each: Callable[[str, Answer], None] | None = None) -> dict[str, Answer]:
        """Return the answer to every request, asking those that aren't kept, and once more those that `ask_again` names.

        Args:
            requests: bodies by their keys, as `request_key` gives them.
            each: called with every answer that is new, after it is kept; what it raises ends the run.

        Raises:
            EndpointError: the endpoint can't be used, or an answer is missing and there is none.
            BudgetSpent: the rest would cost more than is left.
        """
        found = self.known(requests)
        while missing := [key for key in requests if key not in found]:
            if self._endpoint is None:
                raise EndpointError(f"{len(missing)} answers are missing and there is no base_url to ask")
            self._endpoint.answered = max(self._endpoint.answered, sum(answer.kind != "refused" for answer in found.values()))
            try:
                self._ask(self._endpoint, missing, requests, each)
            except BudgetSpent as error:
                done = len(self.known(requests))
                raise BudgetSpent(f"{done:,} of {len(requests):,} requests are answered, then {error}. Raise it to go on") from None
            found |= self.known(missing)
        return found

    def _ask(
        self,
        endpoint: Endpoint,
        keys: Sequence[str],
        requests: Mapping[str, dict[str, Any]],
        each: Callable[[str, Answer], None] | None,
    ) -> None:
        """Ask requests once each, and keep every answer with how often the same was asked before."""
        before = {key: record.get(_AGAIN, 0) + 1 for key, record in self._answers.find(keys).items()}
        booked = [_booking(key, before.get(key, 0)) for key in keys]

        def keep(number: int, answer: Answer) -> None:
            key = keys[number]
            self._answers.keep(key, answer.record() | ({_AGAIN: before[key]} if key in before else {}))
            if each is not None:
                each(key, answer)

        bodies, slow, pack = [requests[key] for key in keys], not self._answers.quick, self._answers.pack
        try:
            endpoint.ask(bodies, keep, booked, threads=slow, rest=pack, rest_every=PACK_EVERY)
        finally:
            pack()

    def _usage(self, bookings: set[str]) -> dict[str, int]:
        """Return the tokens of those answers that are kept, and say them, by their bookings: an earlier answer settles no later request."""
        found = {}
        for key, record in self._answers.find({booking.partition(_AGAIN_MARK)[0] for booking in bookings}).items():
            found[_booking(key, record.get(_AGAIN, 0))] = record.get("prompt_tokens", 0) + record.get("completion_tokens", 0)
        return found


def known_answers(answers: Answers, config: EndpointConfig, keys: Iterable[str]) -> dict[str, Answer]:
    """Return the answers that are kept, less those that are to be asked again: those that will not be paid.

    Args:
        answers: that are kept.
        config: which are asked again, and how often.
        keys: of requests.
    """
    found = {}
    for key, record in answers.find(keys).items():
        answer = Answer(**{name: value for name, value in record.items() if name != _AGAIN})
        if record.get(_AGAIN, 0) >= sum(kind == answer.kind for kind in config.ask_again):
            found[key] = answer
    return found


def _booking(key: str, again: int) -> str:
    """Return the name under which the budget books a request that was answered so often before."""
    return f"{key}{_AGAIN_MARK}{again}" if again else key


def request_key(body: dict[str, Any], repeat: int = 0) -> str:
    """Return the blake2b-128 of a request, in hex; a repeat of it, asked for its own sake, has another one."""
    return digest(body) if not repeat else digest([body, repeat])


def kinds(answers: Mapping[str, Answer]) -> Counter[str]:
    """Return how many answers are ok, cut, empty or refused."""
    return Counter(answer.kind for answer in answers.values())


def served_models(answers: Mapping[str, Answer]) -> dict[str, int]:
    """Return how many answers each model gave, by the names that the endpoint told: a moving alias shows here."""
    return dict(Counter(answer.model or "not told" for answer in answers.values() if answer.kind != "refused"))


def check_transport(field: str, base_url: str | None, **parts: Mapping[str, Any]) -> None:
    """Refuse what would put a key into a configuration, which is logged and sealed.

    Args:
        field: of the configuration, for messages.
        base_url: of the endpoint.
        parts: what is passed on as it is, to an endpoint or a server, by the names of their fields.

    Raises:
        ConfigError: an address that is none, or one with a password in it; a name that looks like that of a key.
    """
    if base_url is not None and not base_url.startswith(("http://", "https://")):
        raise ConfigError(f"{field}: base_url starts with http:// or https://, not {base_url!r}")
    if base_url is not None and ("@" in base_url or "?" in base_url):
        raise ConfigError(f"{field}: base_url is an address alone; keys come from the environment (endpoint.api_key_env)")
    for part, values in parts.items():
        if (name := _key_in(values)) is not None:
            raise ConfigError(f"{field}: {part}.{name} looks like a key; keys come from the environment alone (endpoint.api_key_env)")


def _key_in(values: Mapping[str, Any], inner: bool = False) -> str | None:
    """Return the dotted name of what looks like a key; further in, where a schema may name a property so, only of a text."""
    for name, value in values.items():
        spelled = _HUMP.sub("_", str(name)).lower().replace("-", "_")
        if _KEY_NAME.search(spelled) and not _NO_KEY.search(spelled) and (isinstance(value, str) or not inner):
            return str(name)
        if isinstance(value, Mapping) and (found := _key_in(value, inner=True)) is not None:
            return f"{name}.{found}"
    return None
