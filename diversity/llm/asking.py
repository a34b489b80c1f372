"""Many requests to one model, each answered once: what is kept is not asked again, what arrives is kept at once, all within a budget."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from diversity.artifact import Storage, digest
from diversity.config import ConfigError
from diversity.llm.answers import Answers
from diversity.llm.budget import Budget, BudgetConfig, BudgetSpent
from diversity.llm.endpoint import Endpoint, EndpointConfig
from diversity.llm.reading import Answer, EndpointError

log = logging.getLogger(__name__)

PACK_EVERY = 4096
SECRETS = ("key", "apikey", "token", "secret", "password", "authorization")


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
        found = {key: Answer(**record) for key, record in self._answers.find(keys).items()}
        return {key: answer for key, answer in found.items() if answer.kind not in self._config.ask_again}

    def ask(self, requests: Mapping[str, dict[str, Any]], each: Callable[[str, Answer], None] | None = None) -> dict[str, Answer]:
        """Return the answer to every request, asking those that aren't kept.

        Args:
            requests: bodies by their keys, as `request_key` gives them.
            each: called with every answer that is new, after it is kept; what it raises ends the run.

        Raises:
            EndpointError: the endpoint can't be used, or an answer is missing and there is none.
            BudgetSpent: the rest would cost more than is left.
        """
        found = self.known(requests)
        missing = [key for key in requests if key not in found]
        if not missing:
            return found
        if self._endpoint is None:
            raise EndpointError(f"{len(missing)} answers are missing and there is no base_url to ask")
        self._endpoint.answered = max(self._endpoint.answered, sum(answer.kind != "refused" for answer in found.values()))

        def keep(key: str, answer: Answer) -> None:
            self._answers.keep(key, answer.record())
            found[key] = answer
            if each is not None:
                each(key, answer)

        try:
            for start in range(0, len(missing), PACK_EVERY):
                part = missing[start : start + PACK_EVERY]
                self._endpoint.ask([requests[key] for key in part], partial(_numbered, keep, part), part, threads=not self._answers.quick)
                self._answers.pack()
        except BudgetSpent as error:
            raise BudgetSpent(f"{len(found):,} of {len(requests):,} requests are answered, then {error}. Raise it to go on") from None
        finally:
            self._answers.pack()
        return found

    def _usage(self, keys: set[str]) -> dict[str, int]:
        """Return the tokens of those of the answers that are kept and say them."""
        records = self._answers.find(keys)
        return {key: record.get("prompt_tokens", 0) + record.get("completion_tokens", 0) for key, record in records.items()}


def _numbered(keep: Callable[[str, Answer], None], keys: Sequence[str], number: int, answer: Answer) -> None:
    keep(keys[number], answer)


def request_key(body: dict[str, Any], repeat: int = 0) -> str:
    """Return the blake2b-128 of a request, in hex; a repeat of it, asked for its own sake, has another one."""
    return digest(body) if not repeat else digest([body, repeat])


def kinds(answers: Mapping[str, Answer]) -> Counter[str]:
    """Return how many answers are ok, cut, empty or refused."""
    return Counter(answer.kind for answer in answers.values())


def served_models(answers: Mapping[str, Answer]) -> dict[str, int]:
    """Return how many answers each model gave, by the names that the endpoint told: a moving alias shows here."""
    return dict(Counter(answer.model or "not told" for answer in answers.values() if answer.kind != "refused"))


def check_transport(field: str, base_url: str | None, extra: Mapping[str, Any]) -> None:
    """Refuse what would put a key into a configuration, which is logged and sealed.

    Raises:
        ConfigError: an address that is none, or one with a password in it; a further field of requests that looks like a key.
    """
    if base_url is not None and not base_url.startswith(("http://", "https://")):
        raise ConfigError(f"{field}: base_url starts with http:// or https://, not {base_url!r}")
    if base_url is not None and ("@" in base_url or "?" in base_url):
        raise ConfigError(f"{field}: base_url is an address alone; keys come from the environment (endpoint.api_key_env)")
    for name in extra:
        if any(part in name.lower().split("_") for part in SECRETS):
            raise ConfigError(f"{field}: extra.{name} looks like a key; keys come from the environment alone (endpoint.api_key_env)")
