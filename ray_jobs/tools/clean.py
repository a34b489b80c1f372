"""Artifacts that no experiment names any more: `sft-diversity clean STORAGE [--yes]`.

It lists folders `<storage>/<kind>/<fingerprint>` that no index.json of the storage names, directly or through the manifest of an artifact
that is named. With `--yes` it removes them: never one that was written to within the last day, and nothing anywhere else.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs

from diversity.artifact import KINDS, MANIFEST, Artifact, Storage
from diversity.config import ConfigError
from ray_jobs.job.index import Index
from ray_jobs.job.runtime import absolute, tool
from ray_jobs.tools.status import experiments

PATH = re.compile(rf"({'|'.join(KINDS)})/[0-9a-f]{{32}}")
DAY_S = 24 * 3600


@dataclass(frozen=True)
class Folder:
    """What lies under one artifact's path: its files, their bytes in all, and when the last of them was written, in seconds."""

    artifact: Artifact
    files: int
    size: int
    written: float


def unnamed(storage: Storage) -> list[Folder]:
    """Return the artifacts that no index names, in order of path; those that were never sealed among them."""
    named = _named(storage)
    return [_folder(artifact) for artifact in _all(storage) if artifact.path not in named]


def remove(folder: Folder) -> None:
    """Remove an artifact: its manifest first, so that one half removed does not exist for readers."""
    filesystem, root = folder.artifact.storage.filesystem()
    path = f"{root}/{folder.artifact.path}"
    if folder.artifact.sealed:
        filesystem.delete_file(f"{path}/{MANIFEST}")
    filesystem.delete_dir(path)


def _named(storage: Storage) -> set[str]:
    """Return every artifact path in an index, and in the manifests of those, and so on."""
    waiting = [path for name in experiments(storage) for path in _paths(Index(storage, name).read())]
    named: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path not in named:
            named.add(path)
            artifact = storage.at(path)
            waiting += _paths(artifact.manifest) if artifact.sealed else []
    return named


def _paths(value: Any) -> Iterator[str]:
    """Yield every string in a JSON value that is an artifact's path."""
    if isinstance(value, str):
        if PATH.fullmatch(value):
            yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _paths(one)
    elif isinstance(value, list):
        for one in value:
            yield from _paths(one)


def _all(storage: Storage) -> Iterator[Artifact]:
    filesystem, root = storage.filesystem()
    for kind in KINDS:
        for info in sorted(filesystem.get_file_info(pafs.FileSelector(f"{root}/{kind}", allow_not_found=True)), key=lambda info: info.path):
            if info.type == pafs.FileType.Directory and PATH.fullmatch(f"{kind}/{info.base_name}"):
                yield storage.artifact(kind, info.base_name)


def _folder(artifact: Artifact) -> Folder:
    filesystem, root = artifact.storage.filesystem()
    found = filesystem.get_file_info(pafs.FileSelector(f"{root}/{artifact.path}", recursive=True))
    files = [info for info in found if info.type == pafs.FileType.File]
    # A folder without files has just been begun, or has been there for ever: its own time tells.
    times = [info.mtime.timestamp() for info in files or [filesystem.get_file_info(f"{root}/{artifact.path}")] if info.mtime]
    return Folder(artifact, len(files), sum(info.size for info in files), max(times, default=time.time()))


@tool("clean")
def main(argv: Sequence[str] | None = None) -> int:
    """List, and with `--yes` remove, what no experiment names."""
    parser = argparse.ArgumentParser(prog="sft-diversity clean", description="List artifacts that no experiment of a storage names.")
    parser.add_argument("storage", help="a storage's folder or URI")
    parser.add_argument("--yes", action="store_true", help="remove them")
    given = parser.parse_args(argv)
    storage = Storage(absolute(given.storage))
    if not experiments(storage):
        raise ConfigError(f"{storage.uri} has no experiments/<name>/index.json: it is no storage, or nothing in it could be told apart")
    freed = 0
    for folder in unnamed(storage):
        age = time.time() - folder.written
        verdict = "younger than a day, stays" if age < DAY_S else "removed" if given.yes else "would be removed"
        print(f"{folder.artifact.path}  {folder.size / 1e6:,.1f} MB in {folder.files} files, {age / DAY_S:.1f} days old: {verdict}")
        if age >= DAY_S:
            freed += folder.size
            if given.yes:
                remove(folder)
    print(f"{freed / 1e6:,.1f} MB {'freed' if given.yes else 'could be freed with --yes'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
