"""Asks an OpenAI-compatible endpoint: bounded concurrency, one rate limit, retries with backoff.

What the transport gets wrong (a lost connection, a time-out, HTTP 429 and 5xx, a body that is no chat completion) is tried again;
what the endpoint won't do for one prompt (HTTP 400, 413, 422) is an answer, a refusal; anything else ends the run.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import Field

from diversity.config import Config, UserError

log = logging.getLogger(__name__)

_REFUSED = (400, 413, 422)
_AGAIN = (408, 409, 425, 429)
_LONGEST_WAIT = 60.0
_REFUSALS_THAT_END = 8


class EndpointConfig(Config):
    """How an endpoint is asked. None of it changes an answer.

    Attributes:
        concurrency: requests under way at once.
        requests_per_minute: at most; null sets no limit.
        timeout_s: seconds until a request counts as lost.
        tries: of a request, the first one included.
        backoff_s: the wait before the second try; it doubles with each, up to a minute, unless the endpoint says how long to wait.
        api_key_env: the environment variable that holds the key; unset, no key is sent.
    """

    concurrency: int = Field(default=32, ge=1)
    requests_per_minute: float | None = Field(default=None, gt=0)
    timeout_s: float = Field(default=120, gt=0)
    tries: int = Field(default=6, ge=1)
    backoff_s: float = Field(default=1, ge=0)
    api_key_env: str = "OPENAI_API_KEY"


class EndpointError(UserError):
    """An endpoint that can't be used; the message says what it answered."""


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    Attributes:
        text: the message's content; of a refusal, the reason.
        finish: `stop`, `length`, … as the endpoint says, or `refused`.
        prompt_tokens: as the endpoint counts them; 0 where it doesn't.
        completion_tokens: likewise.
    """

    text: str
    finish: str
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def record(self) -> dict[str, Any]:
        """Return the answer as JSON holds it."""
        return asdict(self)


class _Retry(Exception):
    """A try that failed; `wait` is what the endpoint asks for, in seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class Endpoint:
    """A client of `<base_url>/chat/completions` for many requests."""

    def __init__(self, base_url: str, config: EndpointConfig) -> None:
        """Remember the address; the key is read from the environment here."""
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._config = config
        key = os.environ.get(config.api_key_env)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._random = random.Random(0)  # of the jitter alone
        self._next_start = 0.0
        self._refused = self._answered = self.retries = 0

    def ask(self, bodies: Sequence[dict[str, Any]], keep: Callable[[int, Answer], None]) -> None:
        """Ask every body and hand each answer over with its number as soon as it is there.

        Args:
            bodies: requests in the form of the chat completions API.
            keep: called in threads, for several answers at once.

        Raises:
            EndpointError: a request failed at every try, or the endpoint can't be used at all. What was handed over stays so.
        """
        if bodies:
            with ThreadPoolExecutor(1) as thread:  # a loop of our own: a notebook's or an actor's may run in this thread
                thread.submit(asyncio.run, self._ask(bodies, keep)).result()

    async def _ask(self, bodies: Sequence[dict[str, Any]], keep: Callable[[int, Answer], None]) -> None:
        import aiohttp

        waiting = iter(enumerate(bodies))
        said, done = time.monotonic(), 0

        async def work() -> None:
            nonlocal said, done
            for number, body in waiting:
                answer = await self._answer(_poster(session, self._url), body)
                await asyncio.to_thread(keep, number, answer)
                done += 1
                if time.monotonic() - said > 10:
                    said = time.monotonic()
                    log.info("answers: %d of %d (%d retries)", done, len(bodies), self.retries)

        limit = min(self._config.concurrency, len(bodies))
        timeout = aiohttp.ClientTimeout(total=self._config.timeout_s)
        connector = aiohttp.TCPConnector(limit=limit)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector, headers=self._headers) as session:
            tasks = [asyncio.ensure_future(work()) for _ in range(limit)]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, post: Callable[[bytes], Awaitable[tuple[int, str | None, bytes]]], body: dict[str, Any]) -> Answer:
        """Return the answer to one body, after as many tries as it takes."""
        content = json.dumps(body, ensure_ascii=False).encode()
        failure: _Retry | None = None
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
            try:
                return self._read(*await _posted(post, content))
            except _Retry as reason:
                failure = reason
        raise EndpointError(
            f"{self._url} failed {self._config.tries} times in a row, last with: {failure}. Every answer so far is kept: "
            "run the same command again to go on"
        )

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

    def _read(self, status: int, retry_after: str | None, content: bytes) -> Answer:
        """Return the answer that a response holds.

        Raises:
            _Retry: another try may help.
            EndpointError: none will.
        """
        excerpt = f"HTTP {status}: {' '.join(content[:300].decode(errors='replace').split())}"
        if status in _AGAIN or status >= 500:
            raise _Retry(excerpt, seconds(retry_after))
        if status in _REFUSED:
            self._refused += 1
            if self._refused >= _REFUSALS_THAT_END and not self._answered:
                raise EndpointError(f"{self._url} refused the first {self._refused} prompts, the last with {excerpt}")
            return Answer(excerpt, "refused")
        if status != 200:
            raise EndpointError(f"{self._url} answered {excerpt}")
        try:
            whole = json.loads(content)
            choice, usage = whole["choices"][0], whole.get("usage") or {}
            text, finish = choice["message"].get("content") or "", choice.get("finish_reason") or "stop"
            tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            raise _Retry(f"a body that is no chat completion: {excerpt}") from None
        self._answered += 1
        return Answer(str(text), str(finish), *tokens)


def _poster(session: Any, url: str) -> Callable[[bytes], Awaitable[tuple[int, str | None, bytes]]]:
    """Return the function that posts a body and returns (status, Retry-After, content)."""

    async def post(content: bytes) -> tuple[int, str | None, bytes]:
        async with session.post(url, data=content, headers={"Content-Type": "application/json"}) as response:
            return response.status, response.headers.get("Retry-After"), await response.read()

    return post


async def _posted(post: Callable[[bytes], Awaitable[tuple[int, str | None, bytes]]], content: bytes) -> tuple[int, str | None, bytes]:
    """Return what a post returns; a lost connection or a time-out is a reason to try again."""
    import aiohttp

    try:
        return await post(content)
    except TimeoutError:
        raise _Retry("no answer in time") from None
    except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError) as error:
        raise _Retry(f"{type(error).__name__}: {error}") from None
    except aiohttp.ClientError as error:
        raise EndpointError(f"{type(error).__name__}: {error}") from None


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
