"""Artifacts that no experiment names any more, and what killed jobs left: `sft-diversity clean STORAGE [--yes]`.

It lists folders `<storage>/<kind>/<fingerprint>` that no index.json of the storage names, directly or through the manifest of an artifact
that is named, and that no job which was killed or failed was training; in those that are named, the folders of writers that never sealed,
or that sealed second; and files that were never whole. With `--yes` it removes them: never what was written to within the last day, nothing
anywhere else, and nothing at all while a job of the storage runs, which may be about to name it.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs

from diversity.artifact import KINDS, Artifact, Storage
from diversity.config import ConfigError
from diversity.publishing import discard
from ray_jobs.job.index import Index
from ray_jobs.job.journal import Told, jobs
from ray_jobs.job.runtime import absolute, tool
from ray_jobs.tools.status import experiments

PATH = re.compile(rf"({'|'.join(KINDS)})/[0-9a-f]{{32}}")
DAY_S = 24 * 3600


@dataclass(frozen=True)
class Folder:
    """What lies under a path of a storage: its files, their bytes in all, and when the last one was written, in seconds."""

    storage: Storage
    path: str
    files: int
    size: int
    written: float


def unnamed(storage: Storage, named: Collection[str]) -> list[Folder]:
    """Return the artifacts that are not `named`, in order of path; those that were never sealed among them."""
    return [_folder(storage, artifact.path) for artifact in _all(storage) if artifact.path not in named]


def abandoned(storage: Storage, named: Collection[str]) -> list[Folder]:
    """Return what writers left in artifacts that are `named`, and the files that were never whole, in order of path."""
    left = [path for artifact in named for path in _hidden(storage, artifact)]
    left += [path for place in ("experiments", "cache") for path in _halves(storage, place)]
    left += [info.base_name for info in storage.list("") if info.base_name.startswith(".probe-")]
    return [_folder(storage, path) for path in sorted(left)]


def _hidden(storage: Storage, path: str) -> Iterator[str]:
    """Yield what an artifact's folder holds beside the artifact."""
    artifact = storage.at(path)
    own = artifact.locate() if artifact.sealed else None  # what a killed writer was about to publish is published first
    for info in storage.list(path):
        if info.base_name.startswith(".") and f"{path}/{info.base_name}" != own:
            yield f"{path}/{info.base_name}"


def _halves(storage: Storage, place: str) -> Iterator[str]:
    """Yield the files below a folder that were not whole when their process was killed."""
    filesystem, root = storage.filesystem()
    for info in filesystem.get_file_info(pafs.FileSelector(f"{root}/{place}", recursive=True, allow_not_found=True)):
        if info.base_name.startswith(".") and info.base_name.endswith(".part"):
            yield info.path.removeprefix(f"{root}/")


def remove(folder: Folder) -> None:
    """Remove an artifact, its manifest first, so that one half removed does not exist for readers; or what a writer left."""
    if PATH.fullmatch(folder.path):
        artifact = folder.storage.at(folder.path)
        if artifact.sealed:
            artifact.unseal()
        folder.storage.remove_folder(folder.path)
    elif folder.storage.exists(folder.path):
        filesystem, root = folder.storage.filesystem()
        filesystem.delete_file(f"{root}/{folder.path}")
    else:
        discard(folder.storage, folder.path)


def _named(storage: Storage) -> set[str]:
    """Return every artifact path in an index, the models that jobs say they work on, and what the manifests of those name, and so on."""
    waiting = [path for name in experiments(storage) for path in _paths(Index(storage, name).read())]
    waiting += [f"models/{held}" for told in _told(storage) for held in told.facts.get("holds", ())]
    named: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path not in named:
            named.add(path)
            artifact = storage.at(path)
            waiting += _paths(artifact.manifest) if artifact.sealed else []
    return named


def _told(storage: Storage) -> list[Told]:
    return [told for name in experiments(storage) for told in jobs(storage, name)]


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


def _folder(storage: Storage, path: str) -> Folder:
    filesystem, root = storage.filesystem()
    found = [itself := filesystem.get_file_info(f"{root}/{path}")]
    if itself.type == pafs.FileType.Directory:
        found = filesystem.get_file_info(pafs.FileSelector(f"{root}/{path}", recursive=True))
    files = [info for info in found if info.type == pafs.FileType.File]
    # A folder without files has just been begun, or has been there for ever: its own time tells.
    times = [info.mtime.timestamp() for info in files or [itself] if info.mtime]
    return Folder(storage, path, len(files), sum(info.size for info in files), max(times, default=time.time()))


@tool("clean")
def main(argv: Sequence[str] | None = None) -> int:
    """List, and with `--yes` remove, what no experiment names."""
    parser = argparse.ArgumentParser(prog="sft-diversity clean", description="List artifacts that no experiment of a storage names.")
    parser.add_argument("storage", help="a storage's folder or URI")
    parser.add_argument("--yes", action="store_true", help="remove them")
    given = parser.parse_args(argv)
    storage = Storage(absolute(given.storage))
    named = _named(storage)
    if not named and not any(storage.exists(Index(storage, name).path) for name in experiments(storage)):
        raise ConfigError(f"{storage.uri} has no index in experiments/<name>: it is no storage, or nothing in it could be told apart")
    running = [told.facts["job"] for told in _told(storage) if told.state == "running"]
    freed = 0
    for folder in [*unnamed(storage, named), *abandoned(storage, named)]:
        age = time.time() - folder.written
        stays = f"stays while {running[0]} runs" if running else "younger than a day, stays" if age < DAY_S else ""
        verdict = stays or ("removed" if given.yes else "would be removed")
        print(f"{folder.path}  {folder.size / 1e6:,.1f} MB in {folder.files} files, {age / DAY_S:.1f} days old: {verdict}")
        if not stays:
            freed += folder.size
            if given.yes:
                remove(folder)
    print(f"{freed / 1e6:,.1f} MB {'freed' if given.yes else 'could be freed with --yes'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
