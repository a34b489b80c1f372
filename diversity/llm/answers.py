"""Answers of a language model in a storage, by the hash of what was asked: a crash or a second run pays nothing twice.

An answer is on disk the moment it arrives: as a line of this process's own file on a local storage, as a small object elsewhere. When a
batch is done, all of that becomes one parquet file: `cache/answers/<name>/{loose/…, packed/n<number>-<digest>.parquet}`. What was asked for
again takes the place of the first answer.
"""

from __future__ import annotations

import fcntl
import json
import os
import posixpath
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from diversity.artifact import Storage, digest

_SCHEMA = pa.schema([("key", pa.string()), ("answer", pa.string())])
Record = dict[str, Any]


class Answers:
    """A mapping from keys (hex) to answers (JSON objects) that survives the process; without a storage it doesn't.

    Attributes:
        quick: whether keeping an answer takes microseconds, so that it needs no thread of its own.
    """

    def __init__(self, storage: Storage | None, name: str) -> None:
        """Read which keys there are, and the answers that a killed process left loose."""
        self._storage, self._folder = storage, f"cache/answers/{name}"
        self._new: dict[str, Record] = {}
        self._packed: dict[str, str] = {}
        self._next = 0
        self._loose: _LooseLines | _LooseObjects | None = None
        self.quick = True
        if storage is None:
            return
        filesystem, root = storage.filesystem()
        self.quick = isinstance(filesystem, pafs.LocalFileSystem)
        folder = f"{self._folder}/loose"
        self._loose = _LooseLines(Path(root) / folder) if self.quick else _LooseObjects(storage, folder)
        for path in _files(storage, f"{self._folder}/packed"):
            if path.endswith(".parquet"):
                self._packed.update(dict.fromkeys(pq.read_table(path, columns=["key"], filesystem=filesystem)["key"].to_pylist(), path))
                self._next = max(self._next, _number(path) + 1)
        for number, key, answer in self._loose.read():
            if key not in self._packed or _number(self._packed[key]) < number:  # else it was packed, or asked for again, since
                self._new[key] = answer

    def __len__(self) -> int:
        """Return the number of answers."""
        return len(self._new.keys() | self._packed.keys())

    def find(self, keys: Iterable[str]) -> dict[str, Record]:
        """Return those of the answers that are there."""
        found: dict[str, Record] = {}
        by_file: dict[str, set[str]] = {}
        for key in keys:
            if key in self._new:
                found[key] = self._new[key]
            elif key in self._packed:
                by_file.setdefault(self._packed[key], set()).add(key)
        for path, wanted in by_file.items():
            assert self._storage is not None
            table = pq.read_table(path, filesystem=self._storage.filesystem()[0])
            pairs = zip(table["key"].to_pylist(), table["answer"].to_pylist(), strict=True)
            found.update({key: json.loads(answer) for key, answer in pairs if key in wanted})
        return found

    def keep(self, key: str, answer: Mapping[str, Any]) -> None:
        """Keep an answer, on disk before this returns."""
        if self._loose is not None:
            self._loose.keep(key, answer, self._next)
        self._new[key] = dict(answer)

    def add(self, answers: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep many answers at once, in one file; those that are there already stay as they are."""
        rows = {key: dict(answers[key]) for key in answers if key not in self._packed and key not in self._new}
        if self._storage is None:
            self._new.update(rows)
        else:
            self._pack(rows)

    def pack(self) -> None:
        """Put all loose answers, those of a run that was killed included, into one file."""
        if self._loose is None:
            return
        self._pack(self._new)
        self._loose.remove(set(self._new))
        self._new = {}

    def _pack(self, answers: Mapping[str, Record]) -> None:
        """Put answers into one file, whose number says that it is newer than the others."""
        if not answers:
            return
        assert self._storage is not None
        rows = {key: json.dumps(answers[key]) for key in sorted(answers)}
        path = f"{self._folder}/packed/n{self._next:06d}-{digest(rows)}.parquet"
        self._next += 1
        columns = [pa.array(list(rows), pa.string()), pa.array(list(rows.values()), pa.string())]
        packed = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_arrays(columns, schema=_SCHEMA), packed, compression="zstd")
        self._storage.write_bytes(path, packed.getvalue().to_pybytes())
        self._packed.update(dict.fromkeys(rows, f"{self._storage.filesystem()[1]}/{path}"))


class _LooseLines:
    """Answers as lines of files, of which a process that keeps some has its own; their locks say whether the process lives.

    A file's name says which packed file was the next one, and how many loose ones came before it: in that order they are read. So when
    something is packed, a new one is begun.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own: dict[int, int] = {}  # open files by the packed file that was the next one
        self._left: list[Path] = []  # of processes that are gone, and this one's

    def read(self) -> Iterator[tuple[int, str, Record]]:
        """Yield (number of the packed file that was the next one, key, answer) of all files."""
        for path in sorted(self._folder.glob("*.jsonl")) if self._folder.exists() else ():
            with path.open("rb") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._left.append(path)
                except OSError:
                    pass  # its process lives, and removes it by itself
                for line in stream:
                    if line.endswith(b"\n"):  # else the process died while it wrote it
                        yield from ((int(path.name[:6]), key, answer) for key, answer in json.loads(line).items())

    def keep(self, key: str, answer: Mapping[str, Any], number: int) -> None:
        """Append an answer."""
        if number not in self._own:
            self._folder.mkdir(parents=True, exist_ok=True)
            before = [path.name.split("-")[1] for path in self._folder.glob("*-*-*.jsonl")]
            after = max(map(int, before), default=-1) + 1
            path = self._folder / f"{number:06d}-{after:06d}-{uuid.uuid4().hex}.jsonl"
            self._own[number] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            fcntl.flock(self._own[number], fcntl.LOCK_EX)
            self._left.append(path)
        os.write(self._own[number], (json.dumps({key: answer}) + "\n").encode())

    def remove(self, keys: set[str]) -> None:
        """Remove what is packed."""
        del keys
        for path in self._left:
            path.unlink(missing_ok=True)
        self._left = []
        self.__del__()

    def __del__(self) -> None:
        while self._own:
            os.close(self._own.popitem()[1])


class _LooseObjects:
    """Answers as an object each: object stores can't append."""

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage, self._folder = storage, folder

    def read(self) -> Iterator[tuple[int, str, Record]]:
        """Yield (a number above all, key, answer) of all objects."""
        for path in _files(self._storage, self._folder):
            if path.endswith(".json"):
                name = posixpath.basename(path)
                with suppress(FileNotFoundError):  # another job has just packed it
                    yield sys.maxsize, name.removesuffix(".json"), json.loads(self._storage.read_bytes(f"{self._folder}/{name}"))

    def keep(self, key: str, answer: Mapping[str, Any], number: int) -> None:
        """Put an answer."""
        del number
        self._storage.write_bytes(f"{self._folder}/{key}.json", json.dumps(answer).encode())

    def remove(self, keys: set[str]) -> None:
        """Remove what is packed."""
        filesystem, root = self._storage.filesystem()
        for key in keys:
            with suppress(FileNotFoundError):  # another job has packed it too
                filesystem.delete_file(f"{root}/{self._folder}/{key}.json")


def _number(path: str) -> int:
    """Return the number in a packed file's name; the first ones had none."""
    digits = posixpath.basename(path)[1:7]
    return int(digits) if posixpath.basename(path).startswith("n") and digits.isdigit() else -1


def _files(storage: Storage, folder: str) -> list[str]:
    """Return the paths, inside the storage's filesystem, of the files in a folder."""
    filesystem, root = storage.filesystem()
    found = filesystem.get_file_info(pafs.FileSelector(f"{root}/{folder}", allow_not_found=True))
    return sorted(info.path for info in found if info.type == pafs.FileType.File)
