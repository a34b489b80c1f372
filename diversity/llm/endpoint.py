"""Asks an OpenAI-compatible endpoint: bounded concurrency, one rate limit, retries with backoff, within a budget.

What the transport gets wrong (a lost connection, a time-out, HTTP 429 and 5xx, a body that is no chat completion) is tried again;
what the endpoint won't do for one prompt (HTTP 400, 413, 422) is an answer, a refusal; anything else ends the run.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from pydantic import Field

from diversity.artifact import digest
from diversity.config import Config
from diversity.llm.budget import Budget, BudgetConfig
from diversity.llm.reading import Answer, EndpointError, TryAgain, follows_schema, read_response

log = logging.getLogger(__name__)

_LONGEST_WAIT = 60.0
_EARLY_REFUSALS = 20
_EARLY_FORMS = 8
_TOKENS_A_MESSAGE = 32  # of a chat template, at most
Post = Callable[[bytes], Awaitable[tuple[int, str | None, bytes]]]
Keep = Callable[[int, Answer], None]


class EndpointConfig(Config):
    """How an endpoint is asked. None of it changes an answer. Its key comes from the environment and nowhere else.

    Attributes:
        concurrency: requests under way at once.
        requests_per_minute: at most; null sets no limit.
        timeout_s: seconds until a request counts as lost.
        tries: of a request, the first one included.
        backoff_s: the wait before the second try; it doubles with each, up to a minute, unless the endpoint says how long to wait.
        api_key_env: the environment variable that holds the key; unset, no key is sent.
        max_refused: share of requests that the endpoint refuses above which the run ends, once 20 are refused.
        ask_again: kinds of kept answers that are asked, and paid, once more: `refused`, `cut`, `empty`.
    """

    concurrency: int = Field(default=32, ge=1)
    requests_per_minute: float | None = Field(default=None, gt=0)
    timeout_s: float = Field(default=120, gt=0)
    tries: int = Field(default=6, ge=1)
    backoff_s: float = Field(default=1, ge=0)
    api_key_env: str = "OPENAI_API_KEY"
    max_refused: float = Field(default=0.5, ge=0, le=1)
    ask_again: list[Literal["refused", "cut", "empty"]] = []


class Endpoint:
    """A client of `<base_url>/chat/completions` for many requests.

    Attributes:
        retries: tries beyond the first ones.
        answered: requests that got an answer. Set it to the answers that are known already, and the share of refusals is that of all.
        refused: requests that the endpoint refused.
    """

    def __init__(self, base_url: str, config: EndpointConfig, budget: Budget | None = None) -> None:
        """Remember the address; the key is read from the environment here."""
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._config = config
        self._budget = budget or Budget(BudgetConfig())
        self._secret = os.environ.get(config.api_key_env) or ""
        self._headers = {"Authorization": f"Bearer {self._secret}"} if self._secret else {}
        self._random = random.Random(0)  # of the jitter alone
        self._next_start = 0.0
        self._held: list[tuple[int, Answer]] = []
        self._forms = [0, 0]  # answers that have the form that was asked for, and those that don't
        self.refused = self.answered = self.retries = 0

    def ask(self, bodies: Sequence[dict[str, Any]], keep: Keep, keys: Sequence[str] | None = None, *, threads: bool = True) -> None:
        """Ask every body and hand each answer over with its number as soon as it is there.

        Refusals are handed over when it is clear that they are the prompts' and not all that the endpoint has to say.

        Args:
            bodies: requests in the form of the chat completions API.
            keep: called with each answer.
            keys: of the bodies, for the budget's journal; else their digests.
            threads: whether `keep` is called in threads, for several answers at once, because it takes long.

        Raises:
            EndpointError: a request failed at every try, or the endpoint can't be used at all. What was handed over stays so.
            BudgetSpent: the rest would cost more than is left.
        """
        if bodies:
            named = keys if keys is not None else [digest(body) for body in bodies]
            with ThreadPoolExecutor(1) as thread:  # a loop of our own: a notebook's or an actor's may run in this thread
                thread.submit(asyncio.run, self._ask(bodies, keep, named, threads)).result()

    async def _ask(self, bodies: Sequence[dict[str, Any]], keep: Keep, keys: Sequence[str], threads: bool) -> None:
        import aiohttp

        waiting, progress = iter(enumerate(bodies)), Progress(len(bodies))

        async def kept(number: int, answer: Answer) -> None:
            if threads:
                await asyncio.to_thread(keep, number, answer)
            else:
                keep(number, answer)

        async def work() -> None:
            for number, body in waiting:
                answer = await self._answer(_poster(session, self._url), body, keys[number])
                progress.add(answer)
                if answer.kind == "refused" and not self._plausible():
                    self._held.append((number, answer))
                    continue
                await kept(number, answer)
                progress.tell(self.retries, self._budget)

        limit = min(self._config.concurrency, len(bodies))
        timeout = aiohttp.ClientTimeout(total=self._config.timeout_s)
        connector = aiohttp.TCPConnector(limit=limit)
        self._held = []
        async with aiohttp.ClientSession(timeout=timeout, connector=connector, headers=self._headers) as session:
            tasks = [asyncio.ensure_future(work()) for _ in range(limit)]
            try:
                await asyncio.gather(*tasks)
                for number, answer in self._held:
                    await kept(number, answer)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                self._budget.close()

    async def _answer(self, post: Post, body: dict[str, Any], key: str) -> Answer:
        """Return the answer to one body, after as many tries as it takes."""
        content = json.dumps(body, ensure_ascii=False).encode(errors="surrogatepass")
        most, failure = most_tokens(body, len(content)), None
        for wait in self._waits():
            if failure is not None:
                self.retries += 1
                if failure.wait is not None:  # the endpoint speaks for all requests
                    if failure.wait > 5:
                        log.info("%s asks to wait %.0f s (%s)", self._url, failure.wait, failure)
                    self._next_start = max(self._next_start, time.monotonic() + failure.wait)
                else:
                    await asyncio.sleep(wait)
            await self._turn()
            booked = await self._budget.reserve(key, most)
            try:
                answer = read_response(self._url, body, *await _posted(post, content), secret=self._secret)
            except TryAgain as reason:
                failure = reason
                self._budget.settle(booked, None if reason.billed else 0, sent=reason.sent)
            else:
                told = answer.prompt_tokens + answer.completion_tokens
                self._budget.settle(booked, 0 if answer.kind == "refused" else told or None)
                self._judge(body, answer)
                return answer
        raise EndpointError(
            f"{self._url} failed {self._config.tries} times in a row, last with: {failure}. Every answer so far is kept: "
            "run the same command again to go on"
        )

    def _judge(self, body: dict[str, Any], answer: Answer) -> None:
        """Count an answer.

        Raises:
            EndpointError: too many are refused, or none has the form that is asked for.
        """
        if answer.kind != "refused":
            self.answered += 1
            follows = follows_schema(body, answer)
            if follows is not None:
                self._forms[not follows] += 1
                if not self._forms[0] and self._forms[1] >= _EARLY_FORMS:
                    raise EndpointError(
                        f"{self._url} ignores response_format: none of the first {self._forms[1]} answers of {body.get('model')!r} is JSON "
                        f"as asked, the last: {answer.text[:200]!r}. Take a server that enforces it, or ask for no form (structured: none)"
                    )
            return
        self.refused += 1
        if self.refused >= _EARLY_REFUSALS and not self._plausible():
            raise EndpointError(
                f"{self._url} refused {self.refused} of {self.refused + self.answered} prompts, the last with {answer.text}. "
                f"At most a share of {self._config.max_refused} may be refused (max_refused)"
            )

    def _plausible(self) -> bool:
        """Return whether the share of refusals is one that prompts can have."""
        return self.refused <= self._config.max_refused * (self.refused + self.answered)

    def _waits(self) -> Iterator[float]:
        """Yield the wait before each try: 0, then doubling, each shortened at random by up to a half."""
        yield 0.0
        for number in range(self._config.tries - 1):
            yield min(_LONGEST_WAIT, self._config.backoff_s * 2**number) * (1 - 0.5 * self._random.random())

    async def _turn(self) -> None:
        """Wait until the rate limit, and whatever the endpoint asked for, lets a request start."""
        rate = self._config.requests_per_minute
        while (start := self._next_start) > time.monotonic():
            if rate:
                self._next_start = start + 60 / rate
                await asyncio.sleep(start - time.monotonic())
                return
            await asyncio.sleep(start - time.monotonic())
        if rate:
            self._next_start = time.monotonic() + 60 / rate


class Progress:
    """What is said of a long run: how much is answered, at what pace, how long the rest takes, what it has cost."""

    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._started = self._said = time.monotonic()
        self._tokens = [0, 0]

    def add(self, answer: Answer) -> None:
        """Count an answer."""
        self._done += 1
        self._tokens[0] += answer.prompt_tokens
        self._tokens[1] += answer.completion_tokens

    def tell(self, retries: int, budget: Budget) -> None:
        """Say it, every ten seconds."""
        now = time.monotonic()
        if now - self._said > 10:
            self._said = now
            left = (now - self._started) / self._done * (self._total - self._done)
            log.info("answers: %d of %d (%d retries), about %s left%s", self._done, self._total, retries, duration(left), self.cost(budget))

    def cost(self, budget: Budget) -> str:
        """Return the tokens so far, their price if there is one, and what is left of the budget, in a few words."""
        price = budget.config.price
        told = f", {sum(self._tokens):,} tokens" + (f" = {price.of(*self._tokens):,.2f}" if price else "")
        requests, tokens = budget.left()
        limits = [f"{left:,.0f} {name}" for left, name in ((requests, "requests"), (tokens, "tokens")) if left != float("inf")]
        return told + (f"; left of the budget: {', '.join(limits)}" if limits else "")


def duration(seconds: float) -> str:
    """Return so many seconds in a few words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def most_tokens(body: dict[str, Any], size: int) -> int:
    """Return the most tokens that a request can cost: no token is shorter than a byte, and a chat template adds a few to each message.

    Args:
        body: the request.
        size: its bytes as JSON.
    """
    answer = body.get("max_completion_tokens") or body.get("max_tokens") or 0
    return size + _TOKENS_A_MESSAGE * (len(body.get("messages", ())) + 1) + int(answer) * int(body.get("n") or 1)


def _poster(session: Any, url: str) -> Post:
    """Return the function that posts a body and returns (status, Retry-After, content)."""

    async def post(content: bytes) -> tuple[int, str | None, bytes]:
        async with session.post(url, data=content, headers={"Content-Type": "application/json"}) as response:
            return response.status, response.headers.get("Retry-After"), await response.read()

    return post


async def _posted(post: Post, content: bytes) -> tuple[int, str | None, bytes]:
    """Return what a post returns; a lost connection or a time-out is a reason to try again."""
    import aiohttp

    try:
        return await post(content)
    except aiohttp.ClientConnectorError as error:
        raise TryAgain(f"{type(error).__name__}: {error}", billed=False, sent=False) from None
    except TimeoutError:
        raise TryAgain("no answer in time") from None
    except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError) as error:
        raise TryAgain(f"{type(error).__name__}: {error}") from None
    except aiohttp.ClientError as error:
        raise EndpointError(f"{type(error).__name__}: {error}") from None
