"""What may be spent on a model, in requests and tokens: reserved on disk before a request is sent, settled by the usage that comes back.

A request that got no answer may have been charged all the same, so its reservation stands: the most it can have cost. What was spent is
never more than what is booked here, and what is booked is never more than the budget, whatever fails and whenever the process dies.

`cache/budgets/<name>/` holds one journal for each process that ever spent; the newest takes over what the others booked. A process that
finds another one in its place stops before it sends anything more, so that two of them never spend one budget twice.
"""

from __future__ import annotations

import asyncio
import json
import os
import posixpath
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
from pydantic import Field

from diversity.artifact import Storage
from diversity.config import Config, UserError

_POLL_S = 0.01


class Price(Config):
    """What a million tokens cost, in any currency.

    Attributes:
        prompt: read.
        completion: written.
    """

    prompt: float = Field(ge=0)
    completion: float = Field(ge=0)

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return the price of so many tokens."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / 1e6


class BudgetConfig(Config):
    """The most that may be spent, over all runs of a command. It can be raised: the next run goes on.

    Attributes:
        requests: that are sent, tries that failed included; null sets no limit.
        tokens: prompts and answers; null sets no limit.
        price: of tokens, for plans and progress only.
    """

    requests: int | None = Field(default=None, ge=0)
    tokens: int | None = Field(default=None, ge=0)
    price: Price | None = None


class BudgetSpent(UserError):
    """The next request may cost more than what is left. What was answered is kept."""

    exit_code = 3


class Budget:
    """A budget and what is booked against it."""

    def __init__(
        self,
        config: BudgetConfig,
        storage: Storage | None = None,
        name: str = "budget",
        usage: Callable[[set[str]], Mapping[str, int]] | None = None,
    ) -> None:
        """Take over what earlier processes booked.

        Args:
            config: the limits.
            storage: where it is booked; None books in memory alone.
            name: of the budget in the storage.
            usage: of keys, those whose answer is kept, with its tokens: a process that died between an answer and its settlement left a
                reservation that this settles.
        """
        self.config = config
        self.requests = self.tokens = 0
        self._open: dict[int, tuple[int, int]] = {}  # what is reserved, and the estimate in it
        self._waiting: list[str] = []
        self._numbers = 0
        self._slack = 0
        self._lock: asyncio.Lock | None = None
        self._journal = _journal(storage, f"cache/budgets/{name}") if storage is not None else None
        if self._journal is not None:
            replaced, booked = _read(self._journal.files(), usage or (lambda keys: {}))
            self.requests, self.tokens = booked
            self._journal.write(json.dumps({"requests": booked[0], "tokens": booked[1], "replaces": replaced}) + "\n")
            self._journal.remove(replaced)

    def left(self) -> tuple[float, float]:
        """Return requests and tokens that may still be booked; infinity where there is no limit."""
        most = (self.config.requests, self.config.tokens)
        booked = (self.requests, self.tokens)
        return tuple(float("inf") if limit is None else limit - used for limit, used in zip(most, booked, strict=True))  # type: ignore[return-value]

    async def reserve(self, key: str, tokens: int) -> int:
        """Book one request of at most so many tokens, on disk when this returns, and return the reservation's number.

        Where it doesn't fit, it waits for requests under way to be settled.

        Raises:
            BudgetSpent: it doesn't fit and nothing is under way that could make room.
            UserError: another process spends this budget now.
        """
        wanted = tokens + self._slack
        while not (self.left()[0] >= 1 and self.left()[1] >= wanted):
            if not self._open:
                raise BudgetSpent(self._told(wanted))
            await asyncio.sleep(_POLL_S)
        self._numbers += 1
        number = self._numbers
        self.requests += 1
        self.tokens += wanted
        self._open[number] = (wanted, tokens)
        self._waiting.append(f'{{"n": {number}, "key": "{key}", "reserve": {wanted}}}')
        await self._flushed(number)
        return number

    def settle(self, number: int, tokens: int | None, *, sent: bool = True) -> None:
        """Book what a request cost instead of what was reserved.

        Args:
            number: of the reservation.
            tokens: by the endpoint's own count; None where it gave none, and the reservation stands.
            sent: whether the request left this machine; one that didn't costs no request either.
        """
        reserved, estimate = self._open.pop(number)
        if tokens is None:
            tokens = reserved  # for good: an answer to another try says nothing of this one
        else:
            self._slack = max(self._slack, tokens - estimate)  # a server that adds to prompts is booked for it from then on
        self.tokens += tokens - reserved
        self.requests -= not sent
        self._waiting.append(f'{{"n": {number}, "tokens": {tokens}, "sent": {"true" if sent else "false"}}}')

    def close(self) -> None:
        """Write what is settled. Without it, reservations stand until answers that are kept settle them."""
        for number in list(self._open):  # whoever was cancelled may have been charged
            self.settle(number, None)
        self._lock = None
        self._write()

    async def _flushed(self, number: int) -> None:
        """Return when the reservation is on disk. Whoever comes first writes for all that wait."""
        if self._journal is None:
            self._waiting.clear()
        elif self._journal.quick:
            self._write()
        else:
            self._lock = self._lock or asyncio.Lock()
            async with self._lock:
                if any(f'"n": {number},' in line for line in self._waiting):
                    lines, self._waiting = self._waiting, []
                    await asyncio.to_thread(self._journal.write, "\n".join(lines) + "\n")

    def _write(self) -> None:
        if self._journal is not None and self._waiting:
            lines, self._waiting = self._waiting, []
            self._journal.write("\n".join(lines) + "\n")

    def _told(self, wanted: int) -> str:
        requests, tokens = self.left()
        name, left = ("requests", requests) if requests < 1 else ("tokens", tokens)
        most = getattr(self.config, name)
        takes = 1 if name == "requests" else wanted
        return f"the budget of {most:,} {name} is spent: {left:,.0f} are left, and the next request takes up to {takes:,}"


def _read(files: Mapping[str, str], usage: Callable[[set[str]], Mapping[str, int]]) -> tuple[list[str], tuple[int, int]]:
    """Return (names of all journals, (requests, tokens) booked in them)."""
    requests = tokens = 0
    unsettled: dict[str, list[int]] = {}
    parsed = {name: [found for line in text.splitlines() if (found := _line(line)) is not None] for name, text in files.items()}
    replaced = {name for lines in parsed.values() for line in lines for name in line.get("replaces", ())}
    reserved: dict[tuple[str, int], tuple[str, int]] = {}
    for name, lines in parsed.items():
        writer = name.partition("-")[0].removesuffix(".jsonl")
        for line in [] if name in replaced else lines:
            if "replaces" in line:
                requests, tokens = requests + line["requests"], tokens + line["tokens"]
            elif "reserve" in line:
                reserved[writer, line["n"]] = (line["key"], line["reserve"])
                requests += 1
            else:
                reserved.pop((writer, line["n"]), None)
                tokens += line["tokens"]
                requests -= not line["sent"]
    for key, booked in reserved.values():
        unsettled.setdefault(key, []).append(booked)
    known = usage(set(unsettled)) if unsettled else {}
    for key, bookings in unsettled.items():  # of several tries, one gave the answer
        tokens += sum(bookings) - (bookings[-1] - known[key] if known.get(key) else 0)
    return sorted(files), (requests, tokens)


def _line(text: str) -> dict[str, Any] | None:
    """Return a journal's line; one that was cut off while it was written is None, and its request was not sent."""
    try:
        return json.loads(text)
    except ValueError:
        return None


class _LocalJournal:
    """A file that is appended to: a write is there when the process dies after it."""

    quick = True

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._writer = folder, uuid.uuid4().hex
        temporary = folder / f"{self._writer}.owner"
        temporary.write_text(self._writer)
        self._owner = str(folder / "owner")
        temporary.replace(self._owner)
        self._file = os.open(folder / f"{self._writer}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def files(self) -> dict[str, str]:
        """Return the others' journals by name."""
        return {path.name: path.read_text() for path in sorted(self._folder.glob("*.jsonl")) if path.stem != self._writer}

    def write(self, text: str) -> None:
        """Append, then look whether this process is still the one that spends."""
        os.write(self._file, text.encode())
        owner = os.open(self._owner, os.O_RDONLY)
        try:
            found = os.read(owner, 64).decode()
        finally:
            os.close(owner)
        _check_owner(found, self._writer, str(self._folder))

    def remove(self, names: list[str]) -> None:
        """Remove journals that another one replaces."""
        for name in names:
            (self._folder / name).unlink(missing_ok=True)

    def __del__(self) -> None:
        os.close(self._file)


class _RemoteJournal:
    """An object for each write: object stores can't append."""

    quick = False

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage, self._folder, self._writer, self._number = storage, folder, uuid.uuid4().hex, 0
        storage.write_bytes(f"{folder}/owner", self._writer.encode())

    def files(self) -> dict[str, str]:
        """Return the others' journals by name."""
        filesystem, root = self._storage.filesystem()
        found = filesystem.get_file_info(pafs.FileSelector(f"{root}/{self._folder}", allow_not_found=True))
        names = sorted(posixpath.basename(info.path) for info in found if info.path.endswith(".jsonl"))
        return {name: self._storage.read_bytes(f"{self._folder}/{name}").decode() for name in names if not name.startswith(self._writer)}

    def write(self, text: str) -> None:
        """Put an object, then look whether this process is still the one that spends."""
        self._number += 1
        self._storage.write_bytes(f"{self._folder}/{self._writer}-{self._number:09d}.jsonl", text.encode())
        _check_owner(self._storage.read_bytes(f"{self._folder}/owner").decode(), self._writer, f"{self._storage.uri}/{self._folder}")

    def remove(self, names: list[str]) -> None:
        """Remove journals that another one replaces."""
        filesystem, root = self._storage.filesystem()
        for name in names:
            filesystem.delete_file(f"{root}/{self._folder}/{name}")


def _journal(storage: Storage, folder: str) -> _LocalJournal | _RemoteJournal:
    filesystem, root = storage.filesystem()
    if isinstance(filesystem, pafs.LocalFileSystem):
        return _LocalJournal(Path(root) / folder)
    return _RemoteJournal(storage, folder)


def _check_owner(found: str, writer: str, where: str) -> None:
    """Refuse to go on where another process took the budget over after this one did.

    It writes its name before it reads what is booked, and this one books before it reads the name: one of the two always sees the other.
    """
    if found != writer:
        raise UserError(f"another process spends this budget now ({where}): this one stops, and sends nothing more")
