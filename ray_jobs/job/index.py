"""Where an experiment's artifacts lie: a small file for each, and `<storage>/experiments/<name>/index.json`, a view made from them.

Several jobs may enter artifacts at the same time. An entry is a file of its own, so that none is lost; whoever enters some makes the view
again until it says what the entries say, so that it is whole once the last one is done.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import pyarrow.fs as pafs

from diversity.artifact import Artifact, ArtifactError, Storage
from diversity.filesystems import each


class Index:
    """The artifacts of an experiment, each by its kind and, of most kinds, a key. Every stage adds its own when it seals."""

    def __init__(self, storage: Storage, experiment: str) -> None:
        self.storage = storage
        self.experiment = experiment
        self.path = f"experiments/{experiment}/index.json"
        self.entries = f"experiments/{experiment}/entries"

    def read(self) -> dict[str, Any]:
        """Return `{kind: path}` and `{kind: {key: path}}`, paths relative to the storage; empty before the first seal."""
        entries = self._view()
        for kind, key, path in self._read_entries():
            if key is None:
                entries[kind] = path
            else:
                entries.setdefault(kind, {})[key] = path
        return entries

    def get(self, kind: str, key: str | None = None) -> Artifact:
        """Return an artifact by its entry.

        Raises:
            ArtifactError: there is no such entry.
        """
        entry: Any = self.read().get(kind)
        if key is not None and isinstance(entry, dict):
            entry = entry.get(key)
        if not isinstance(entry, str):
            raise ArtifactError(f"{self.storage.uri}/{self.path} has no {kind}{f' of {key}' if key else ''}")
        return self.storage.at(entry)

    def add(self, kind: str, key: str | None, artifact: Artifact) -> None:
        """Enter a sealed artifact."""
        self.add_many(kind, {key: artifact})

    def add_many(self, kind: str, artifacts: Mapping[Any, Artifact]) -> None:
        """Enter sealed artifacts of one kind; the key None enters the path itself."""
        known = {(kind, key): path for kind, key, path in self._read_entries()}
        self.note(kind, {key: artifact for key, artifact in artifacts.items() if known.get((kind, key)) != artifact.path})
        self._make_view()

    def note(self, kind: str, artifacts: Mapping[Any, Artifact]) -> None:
        """Enter sealed artifacts without making the view: the next to add some does. What is read is the same."""
        each(lambda entry: self._enter(kind, entry[0], entry[1].path), artifacts.items())

    def _enter(self, kind: str, key: str | None, path: str) -> None:
        name = kind if key is None else f"{kind}/{quote(key, safe='@~')}"
        self.storage.write_bytes(f"{self.entries}/{name}.json", json.dumps({"kind": kind, "key": key, "path": path}).encode())

    def _make_view(self) -> None:
        """Write index.json until it says what the entries say: what another job enters meanwhile, one of the two sees."""
        while (entries := self.read()) != self._view() or not self.storage.exists(self.path):
            content = {"experiment": self.experiment, "artifacts": entries}
            self.storage.write_bytes(self.path, json.dumps(content, indent=1, sort_keys=True).encode())

    def _view(self) -> dict[str, Any]:
        try:
            return json.loads(self.storage.read_bytes(self.path))["artifacts"]
        except FileNotFoundError:
            return {}

    def _read_entries(self) -> list[tuple[str, str | None, str]]:
        """Return (kind, key, path) of every entry."""
        filesystem, root = self.storage.filesystem()
        selector = pafs.FileSelector(f"{root}/{self.entries}", recursive=True, allow_not_found=True)
        files = [info.path for info in filesystem.get_file_info(selector) if info.path.endswith(".json")]
        found = each(lambda path: json.loads(self.storage.read_bytes(path.removeprefix(f"{root}/"))), files)
        return [(entry["kind"], entry["key"], entry["path"]) for entry in found]
