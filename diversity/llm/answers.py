"""Answers of a language model in a storage, by the hash of what was asked: a crash or a second run pays nothing twice.

An answer becomes a small file of its own the moment it arrives. When a batch is done, its files become one parquet file:
`cache/answers/<name>/{loose/<key>.json, packed/n<number>-<digest>.parquet}`. What was asked for again takes the place of the
first answer. One process writes, any number may read.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from diversity.artifact import Storage, digest

_SCHEMA = pa.schema([("key", pa.string()), ("answer", pa.string())])


class Answers:
    """A mapping from keys (hex) to answers (JSON objects) that survives the process; without a storage it doesn't."""

    def __init__(self, storage: Storage | None, name: str) -> None:
        """Read which keys there are, not their answers."""
        self._storage, self._folder = storage, f"cache/answers/{name}"
        self._new: dict[str, dict[str, Any]] = {}
        self._loose: set[str] = set()
        self._packed: dict[str, str] = {}
        self._next = 0
        if storage is None:
            return
        filesystem, _ = storage.filesystem()
        self._loose = {posixpath.basename(path).removesuffix(".json") for path in self._files("loose") if path.endswith(".json")}
        for path in self._files("packed"):
            if path.endswith(".parquet"):
                self._packed.update(dict.fromkeys(pq.read_table(path, columns=["key"], filesystem=filesystem)["key"].to_pylist(), path))
                number = posixpath.basename(path)[1:7]
                self._next = max(self._next, int(number) + 1 if number.isdigit() else 0)

    def __len__(self) -> int:
        """Return the number of answers."""
        return len(self._new.keys() | self._loose | self._packed.keys())

    def find(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return those of the answers that are there."""
        found: dict[str, dict[str, Any]] = {}
        by_file: dict[str, set[str]] = {}
        for key in keys:
            if key in self._new:
                found[key] = self._new[key]
            elif key in self._loose and self._storage is not None:
                found[key] = json.loads(self._storage.read_bytes(f"{self._folder}/loose/{key}.json"))
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
        if self._storage is not None:
            self._storage.write_bytes(f"{self._folder}/loose/{key}.json", json.dumps(answer).encode())
            self._loose.add(key)
        self._new[key] = dict(answer)

    def add(self, answers: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep many answers at once, in one file; those that are packed already stay as they are."""
        self._pack({key: answers[key] for key in answers if key not in self._packed})

    def _pack(self, answers: Mapping[str, Mapping[str, Any]]) -> None:
        """Put answers into one file, whose number says that it is newer than the others."""
        rows = {key: json.dumps(answers[key]) for key in sorted(answers)}
        if self._storage is None:
            self._new.update({key: dict(answers[key]) for key in rows})
        elif rows:
            filesystem, root = self._storage.filesystem()
            path = f"{root}/{self._folder}/packed/n{self._next:06d}-{digest(list(rows))}.parquet"
            self._next += 1
            filesystem.create_dir(posixpath.dirname(path), recursive=True)
            columns = [pa.array(list(rows), pa.string()), pa.array(list(rows.values()), pa.string())]
            pq.write_table(pa.Table.from_arrays(columns, schema=_SCHEMA), f"{path}.part", filesystem=filesystem, compression="zstd")
            filesystem.move(f"{path}.part", path)
            self._packed.update(dict.fromkeys(rows, path))

    def pack(self) -> None:
        """Put all loose answers, those of a run that was killed included, into one file."""
        if self._storage is None or not self._loose:
            return
        self._pack(self.find(self._loose))
        filesystem, root = self._storage.filesystem()
        for key in self._loose:
            filesystem.delete_file(f"{root}/{self._folder}/loose/{key}.json")
        self._loose, self._new = set(), {}

    def _files(self, folder: str) -> list[str]:
        """Return the paths, inside the storage's filesystem, of the files in a folder."""
        assert self._storage is not None
        filesystem, root = self._storage.filesystem()
        found = filesystem.get_file_info(pafs.FileSelector(f"{root}/{self._folder}/{folder}", allow_not_found=True))
        return sorted(info.path for info in found if info.type == pafs.FileType.File)
