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
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
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
HandOver = Callable[[Sequence["Held"]], Awaitable[None]]


class EndpointConfig(Config):
    """How an endpoint is asked. Nothing but `ask_again` changes an answer. Its key comes from the environment and nowhere else.

    Attributes:
        concurrency: requests under way at once.
        requests_per_minute: at most; null sets no limit.
        timeout_s: seconds until a request counts as lost.
        tries: of a request, the first one included.
        backoff_s: the wait before the second try; it doubles with each, up to a minute, unless the endpoint says how long to wait.
        api_key_env: the environment variable that holds the key; unset, no key is sent.
        max_refused: share of requests that the endpoint refuses above which the run ends, once 20 are refused.
        ask_again: kinds of answers that are asked, and paid, once more: `refused`, `cut`, `empty`; one named twice, twice more. What is
            made of the answers has another name with it, so that what is sealed already is made anew.
    """

    concurrency: int = Field(default=32, ge=1)
    requests_per_minute: float | None = Field(default=None, gt=0)
    timeout_s: float = Field(default=120, gt=0)
    tries: int = Field(default=6, ge=1)
    backoff_s: float = Field(default=1, ge=0)
    api_key_env: str = "OPENAI_API_KEY"
    max_refused: float = Field(default=0.5, ge=0, le=1)
    ask_again: list[Literal["refused", "cut", "empty"]] = []

    def identity(self) -> dict[str, Any]:
        """Return what of it decides answers."""
        return {"ask_again": sorted(self.ask_again)} if self.ask_again else {}


@dataclass(frozen=True)
class Held:
    """An answer that is handed over once it is clear that the endpoint does what it is asked.

    Attributes:
        number: of its request.
        answer: a refusal, or one without the form that is asked for.
        came: when, on the monotonic clock.
    """

    number: int
    answer: Answer
    came: float


class Endpoint:
    """A client of `<base_url>/chat/completions` for many requests.

    Attributes:
        retries: tries beyond the first ones.
        answered: requests that got an answer. Set it to the answers that are known already, and the share of refusals is that of all.
        refused: requests that the endpoint refused.
    """

    def __init__(self, base_url: str, config: EndpointConfig, budget: Budget | None = None) -> None:
        """Remember the address; the key is read from the environment here.

        Raises:
            EndpointError: the key is none that a header may hold.
        """
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._config = config
        self._budget = budget or Budget(BudgetConfig())
        self._secret = (os.environ.get(config.api_key_env) or "").strip()
        if not (self._secret.isascii() and self._secret.isprintable()):
            raise EndpointError(f"the key in {config.api_key_env} has characters that no header may hold")
        self._headers = {"Authorization": f"Bearer {self._secret}"} if self._secret else {}
        self._random = random.Random(0)  # of the jitter alone
        self._next_start = 0.0
        self._held: list[Held] = []
        self._forms = [0, 0]  # answers that have the form that was asked for, and those that don't
        self.refused = self.answered = self.retries = 0

    def ask(
        self,
        bodies: Sequence[dict[str, Any]],
        keep: Keep,
        keys: Sequence[str] | None = None,
        *,
        threads: bool = True,
        rest: Callable[[], None] = lambda: None,
        rest_every: int = 4096,
    ) -> None:
        """Ask every body and hand each answer over with its number as soon as it is there.

        A refusal is handed over when an answer to a later request shows that it is the prompt's and not all that the endpoint has to say;
        an answer without the form that is asked for, when another one has it. What interrupts this cancels what is under way.

        Args:
            bodies: requests in the form of the chat completions API.
            keep: called with each answer.
            keys: of the bodies, for the budget's journal; else their digests.
            threads: whether `keep` is called in threads, for several answers at once, because it takes long.
            rest: called after every `rest_every` bodies, when nothing is under way.
            rest_every: bodies.

        Raises:
            EndpointError: a request failed at every try, or the endpoint can't be used at all. What was handed over stays so.
            BudgetSpent: the rest would cost more than is left.
        """
        if not bodies:
            return
        named = keys if keys is not None else [digest(body) for body in bodies]
        parts = [range(start, min(start + rest_every, len(bodies))) for start in range(0, len(bodies), rest_every)]

        def keep_all(held: Sequence[Held]) -> None:
            for one in held:
                keep(one.number, one.answer)

        keeping = set[asyncio.Task[None]]()

        async def hand_over(held: Sequence[Held]) -> None:
            if not (threads and held):
                keep_all(held)
                return
            task = asyncio.ensure_future(asyncio.to_thread(keep_all, held))
            keeping.add(task)
            task.add_done_callback(keeping.discard)
            await asyncio.shield(task)  # what is paid is kept, whatever is interrupted meanwhile

        async def every() -> None:
            progress, self._held = Progress(len(bodies)), []
            try:
                for part in parts:
                    await self._ask(part, bodies, named, hand_over, progress)
                    await asyncio.to_thread(rest)
            except BaseException:
                self._held = [one for one in self._held if one.answer.kind != "refused"]  # the others are paid
                raise
            finally:
                self._budget.close()
                await asyncio.gather(*keeping, return_exceptions=True)
                await hand_over(self._held)

        _run(every())

    async def _ask(
        self, part: range, bodies: Sequence[dict[str, Any]], keys: Sequence[str], hand_over: HandOver, progress: Progress
    ) -> None:
        """Ask some of the bodies, as many at once as may be."""
        import aiohttp

        waiting = iter(part)

        async def work() -> None:
            for number in waiting:
                began = time.monotonic()
                answer = await self._answer(_poster(session, self._url), bodies[number], keys[number])
                progress.add(answer)
                await hand_over(self._sifted(Held(number, answer, time.monotonic()), bodies[number], began))
                progress.tell(self.retries, self._budget)

        limit = min(self._config.concurrency, len(part))
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
                return answer
        raise EndpointError(
            f"{self._url} failed {self._config.tries} times in a row, last with: {failure}. Every answer so far is kept: "
            "run the same command again to go on"
        )

    def _sifted(self, one: Held, body: dict[str, Any], began: float) -> list[Held]:
        """Count an answer to a request that began then, and return what may be handed over: itself, and those held that it clears.

        Raises:
            EndpointError: too many are refused, or none has the form that is asked for; what is held is forgotten.
        """
        if one.answer.kind == "refused":
            self.refused += 1
            self._held.append(one)
            if self.refused >= _EARLY_REFUSALS and not self._plausible():
                self._held = []
                raise EndpointError(
                    f"{self._url} refused {self.refused} of {self.refused + self.answered} prompts, the last with {one.answer.text}. "
                    f"At most a share of {self._config.max_refused} may be refused (max_refused)"
                )
            return []
        self.answered += 1
        follows = follows_schema(body, one.answer)
        if follows is not None:
            self._forms[not follows] += 1
        if follows is False and not self._forms[0]:
            self._held.append(one)
            if self._forms[1] >= _EARLY_FORMS:
                self._held = []
                raise EndpointError(
                    f"{self._url} ignores response_format: none of the first {self._forms[1]} answers of {body.get('model')!r} is JSON "
                    f"as asked, the last: {one.answer.text[:200]!r}. Take a server that enforces it, or ask for no form (structured: none)"
                )
            return []
        cleared = [held for held in self._held if self._clears(held, began)]
        self._held = [held for held in self._held if held not in cleared]
        return [*cleared, one]

    def _clears(self, held: Held, began: float) -> bool:
        """Return whether an answer to a request that began then shows that one that is held is no fault of the endpoint."""
        return held.came < began and self._plausible() if held.answer.kind == "refused" else self._forms[0] > 0

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


def _run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in a loop and a thread of its own: a notebook's or an actor's loop may run in this one.

    What interrupts the wait (Ctrl-C, SIGTERM as an exception, a cancelled task) cancels the coroutine, and goes on when that has ended.
    """
    loop = asyncio.new_event_loop()
    begun: list[asyncio.Task[Any]] = []

    async def whole() -> None:
        begun.extend(filter(None, [asyncio.current_task()]))
        await main

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(whole())

    def cancel() -> None:
        for task in begun or asyncio.all_tasks(loop):
            task.cancel()

    with ThreadPoolExecutor(1) as thread:
        try:
            thread.submit(run).result()
        except BaseException:
            with suppress(RuntimeError):  # the loop is closed: the error is the coroutine's own
                loop.call_soon_threadsafe(cancel)
            raise


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
