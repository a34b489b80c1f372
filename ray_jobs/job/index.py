"""`<storage>/experiments/<name>/index.json`: where an experiment's artifacts lie."""

from __future__ import annotations

import json
from typing import Any

from diversity.artifact import Artifact, ArtifactError, Storage


class Index:
    """`<storage>/experiments/<name>/index.json`: where an experiment's artifacts lie. Every stage adds its keys when it seals."""

    def __init__(self, storage: Storage, experiment: str) -> None:
        self.storage = storage
        self.experiment = experiment
        self.path = f"experiments/{experiment}/index.json"

    def read(self) -> dict[str, Any]:
        """Return `{kind: path}` and `{kind: {key: path}}`, paths relative to the storage; empty before the first seal."""
        if not self.storage.exists(self.path):
            return {}
        return json.loads(self.storage.read_bytes(self.path))["artifacts"]

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

    def add_many(self, kind: str, artifacts: dict[Any, Artifact]) -> None:
        """Enter sealed artifacts of one kind, in one write; the key None enters the path itself."""
        entries = self.read()
        for key, artifact in artifacts.items():
            if key is None:
                entries[kind] = artifact.path
            else:
                entries.setdefault(kind, {})[key] = artifact.path
        content = {"experiment": self.experiment, "artifacts": entries}
        self.storage.write_bytes(self.path, json.dumps(content, indent=1, sort_keys=True).encode())
