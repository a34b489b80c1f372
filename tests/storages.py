"""Storages under a test's hand: each operation is watched, the process can die at any of them, and two jobs take turns as a plan says.

`WatchedStorage` is a real folder, or an object store as its rules say it is: an object is there once it is put whole, puts and deletes are
atomic one by one, and there are no renames. What happens ahead of every operation is a function's to say: count it, kill the process, or
wait for a turn.
"""

from __future__ import annotations

import posixpath
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from diversity.artifact import Storage

Before = Callable[[str, str], None]


class Watched(pafs.FileSystemHandler):
    """A filesystem that calls a function with (operation, path) ahead of each operation, the closing of a written file among them."""

    def __init__(self, inner: pafs.FileSystem, before: Before) -> None:
        self.inner, self.before = inner, before

    def get_type_name(self) -> str:
        return "watched"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: Sequence[str]) -> list[pafs.FileInfo]:
        self.before("look", paths[0])
        return self.inner.get_file_info(list(paths))

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        self.before("list", selector.base_dir)
        return self.inner.get_file_info(selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        self.before("mkdir", path)
        self.inner.create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        self.before("rmdir", path)
        self.inner.delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        raise NotImplementedError  # nobody empties folders

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError

    def delete_file(self, path: str) -> None:
        self.before("delete", path)
        self.inner.delete_file(path)

    def move(self, source: str, target: str) -> None:
        self.before("move", f"{source} {target}")
        self.inner.move(source, target)

    def copy_file(self, source: str, target: str) -> None:
        self.before("copy", f"{source} {target}")
        self.inner.copy_file(source, target)

    def open_input_stream(self, path: str) -> pa.NativeFile:
        self.before("read", path)
        return self.inner.open_input_stream(path, compression=None)

    def open_input_file(self, path: str) -> pa.NativeFile:
        self.before("read", path)
        return self.inner.open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> pa.PythonFile:
        self.before("write", path)
        return pa.PythonFile(_Written(self.inner.open_output_stream(path, compression=None), lambda: self.before("close", path)), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> pa.PythonFile:
        raise NotImplementedError  # object stores can't

    def __eq__(self, other: object) -> bool:
        return other is self

    def __ne__(self, other: object) -> bool:
        return other is not self


class _Written:
    """A file that is being written: its closing is an operation of its own, since until then it is not whole."""

    def __init__(self, stream: Any, closing: Callable[[], None]) -> None:
        self.stream, self.closing, self.closed = stream, closing, False

    def write(self, content: bytes) -> int:
        self.stream.write(content)
        return len(content)

    def tell(self) -> int:
        return self.stream.tell()

    def flush(self) -> None:
        self.stream.flush()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.closing()
            self.stream.close()


class Objects(pafs.FileSystemHandler):
    """An object store in memory: flat names, whole objects, no renames; a folder is there while a name begins with it.

    Args:
        between: called with the path of an object whose size has been told, ahead of each request for its bytes.
    """

    def __init__(self, between: Callable[[str], None] = lambda path: None) -> None:
        self.objects: dict[str, bytes] = {}
        self.between = between

    def get_type_name(self) -> str:
        return "objects"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: Sequence[str]) -> list[pafs.FileInfo]:
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> pafs.FileInfo:
        if path in self.objects:
            return pafs.FileInfo(path, type=pafs.FileType.File, size=len(self.objects[path]))
        there = any(name.startswith(f"{path}/") for name in list(self.objects))
        return pafs.FileInfo(path, type=pafs.FileType.Directory if there else pafs.FileType.NotFound)

    def get_file_info_selector(self, selector: pafs.FileSelector) -> list[pafs.FileInfo]:
        base = selector.base_dir.rstrip("/")
        below = [name.removeprefix(f"{base}/") for name in list(self.objects) if name.startswith(f"{base}/")]
        if not below and not selector.allow_not_found:
            raise FileNotFoundError(base)
        names = {"/".join(name.split("/")[:depth]) for name in below for depth in range(1, name.count("/") + 2)}
        return [self._info(f"{base}/{name}") for name in sorted(names) if selector.recursive or "/" not in name]

    def create_dir(self, path: str, recursive: bool) -> None:
        pass

    def delete_dir(self, path: str) -> None:
        for name in [name for name in list(self.objects) if name.startswith(f"{path}/")]:
            self.objects.pop(name, None)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        raise NotImplementedError

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError

    def delete_file(self, path: str) -> None:
        if self.objects.pop(path, None) is None:
            raise FileNotFoundError(path)

    def move(self, source: str, target: str) -> None:
        raise OSError("an object store has no renames")

    def copy_file(self, source: str, target: str) -> None:
        self.objects[target] = self.objects[source]

    def open_input_stream(self, path: str) -> pa.NativeFile:
        if path not in self.objects:
            raise FileNotFoundError(path)
        return pa.PythonFile(_Got(self, path), mode="r")

    open_input_file = open_input_stream

    def open_output_stream(self, path: str, metadata: Any) -> pa.PythonFile:
        return pa.PythonFile(_Put(self.objects, path), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> pa.PythonFile:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return other is self

    def __ne__(self, other: object) -> bool:
        return other is not self


class _Got:
    """An object that is being read, as pyarrow reads S3: its size is asked for first, then ranges of what is there by then."""

    def __init__(self, store: Objects, path: str) -> None:
        self.store, self.path, self.size, self.place, self.closed = store, path, len(store.objects[path]), 0, False

    def read(self, count: int = -1) -> bytes:
        self.store.between(self.path)
        end = self.size if count < 0 else min(self.place + count, self.size)
        found = self.store.objects[self.path][self.place : end]
        self.place += len(found)
        return found

    def seek(self, offset: int, whence: int = 0) -> None:
        self.place = offset + (0, self.place, self.size)[whence]

    def tell(self) -> int:
        return self.place

    def close(self) -> None:
        self.closed = True


class _Put:
    """An object on its way: it is there once this is closed."""

    def __init__(self, objects: dict[str, bytes], path: str) -> None:
        self.objects, self.path, self.content, self.closed = objects, path, bytearray(), False

    def write(self, content: bytes) -> int:
        self.content += content
        return len(content)

    def tell(self) -> int:
        return len(self.content)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.objects[self.path] = bytes(self.content)


class WatchedStorage(Storage):
    """A storage whose every operation is watched: a local folder, or an object store in memory."""

    def __init__(self, uri: str, before: Before, objects: Objects | None = None) -> None:
        super().__init__(uri)
        inner = pafs.PyFileSystem(objects) if objects is not None else pafs.LocalFileSystem()
        object.__setattr__(self, "opened", (pafs.PyFileSystem(Watched(inner, before)), uri))
        object.__setattr__(self, "local", objects is None)

    def filesystem(self) -> tuple[pafs.FileSystem, str]:
        return self.opened  # type: ignore[attr-defined,no-any-return]

    @property
    def renames(self) -> bool:
        return self.local  # type: ignore[attr-defined,no-any-return]


def content(storage: Storage, under: str = "") -> dict[str, bytes]:
    """Return every file of a storage, or of a folder in it, by its path."""
    filesystem, root = storage.filesystem()
    base = posixpath.join(root, under).rstrip("/")
    found = filesystem.get_file_info(pafs.FileSelector(base, recursive=True, allow_not_found=True))
    files = sorted(info.path for info in found if info.type == pafs.FileType.File)
    return {path.removeprefix(f"{root}/"): storage.read_bytes(path.removeprefix(f"{root}/")) for path in files}


class Killed(BaseException):
    """What a job of a schedule meets at the operation at which it is killed, and at each one after that."""


@dataclass
class Step:
    """One operation of a schedule: whose turn it was, and whose it could have been."""

    actor: int
    ready: tuple[int, ...]


@dataclass
class Turns:
    """Jobs as threads that take turns, one storage operation each, in an order that is given; after that each runs on while it can.

    Attributes:
        order: whose turn it is, step by step; one that can't go on is passed over.
        deaths: at which of its operations a job is killed, counted from 0.
    """

    order: Sequence[int]
    deaths: dict[int, int] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    errors: dict[int, BaseException] = field(default_factory=dict)
    _turn: dict[int, threading.Semaphore] = field(default_factory=dict)
    _back: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _done: dict[int, int] = field(default_factory=dict)
    _actor: threading.local = field(default_factory=threading.local)

    def before(self, operation: str, path: str) -> None:
        """Wait for a turn; threads that are no jobs of this schedule go on at once."""
        actor = getattr(self._actor, "number", None)
        if actor is None:
            return
        if self._done[actor] == self.deaths.get(actor, -1):
            raise Killed
        self._back.release()
        self._turn[actor].acquire()
        self._done[actor] += 1

    def run(self, jobs: Sequence[Callable[[], None]]) -> Turns:
        """Run the jobs to their ends, and return this with the steps taken."""
        threads = {number: threading.Thread(target=self._run, args=(number, job), daemon=True) for number, job in enumerate(jobs)}
        self._turn = {number: threading.Semaphore(0) for number in threads}
        self._done = dict.fromkeys(threads, 0)
        waiting: list[int] = []
        for number, thread in threads.items():
            thread.start()
            self._back.acquire()
            if number not in self._ended:
                waiting.append(number)
        last = None
        while waiting:
            planned = self.order[len(self.steps)] if len(self.steps) < len(self.order) else last
            actor = planned if planned in waiting else waiting[0]
            self.steps.append(Step(actor, tuple(waiting)))
            self._turn[actor].release()
            self._back.acquire()
            if actor in self._ended:
                waiting.remove(actor)
            last = actor
        for thread in threads.values():
            thread.join()
        return self

    @property
    def _ended(self) -> set[int]:
        return self.__dict__.setdefault("_over", set())

    def _run(self, number: int, job: Callable[[], None]) -> None:
        self._actor.number = number
        try:
            job()
        except BaseException as error:
            self.errors[number] = error
        self._ended.add(number)
        self._back.release()


def schedules(run: Callable[[Sequence[int]], Turns], preemptions: int) -> Iterator[Turns]:
    """Run jobs in every order in which a job is interrupted at most so many times while it could go on; yield each run once.

    Args:
        run: starts afresh, runs the jobs in an order of turns, and returns the run.
        preemptions: the bound.
    """
    waiting: list[list[int]] = [[]]
    while waiting:
        prefix = waiting.pop()
        turns = run(prefix)
        taken = [step.actor for step in turns.steps]
        spent = 0
        for place, step in enumerate(turns.steps):
            last = taken[place - 1] if place else None
            for other in step.ready:
                cost = spent + (last is not None and last in step.ready and other != last)
                if place >= len(prefix) and other != step.actor and cost <= preemptions:
                    waiting.append([*taken[:place], other])
            spent += last is not None and last in step.ready and step.actor != last
        yield turns
