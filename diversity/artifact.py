"""Sealed folders: a fingerprint names the content, and the manifest, written last, says that it is whole.

`<storage>/<kind>/<fingerprint>/` holds parquet and `manifest.json`, and without a manifest it does not exist for readers. Every writer
writes into a folder of its own, `<fingerprint>/.<writer>/`, and sealing publishes that folder at one stroke; who finds the artifact
sealed throws its own away. So a crash at any point costs the work since the last seal and can't leave half a result behind, and two jobs
that make the same artifact never mix. Storage is any URI that pyarrow's filesystems open. docs/storage.md has what is promised, and how
it is shown.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import posixpath
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from diversity import publishing
from diversity.config import UserError
from diversity.filesystems import Files, StorageError
from diversity.publishing import BEGUN, DATA, MANIFEST

ROW_GROUP = 8192  # rows: a reader of some of a part's rows reads little more than those
KINDS = (
    *("corpus", "heldout", "profile", "peel", "datasets", "metrics", "plan", "models", "scores"),
    *("prompts", "answers", "verdicts", "judged", "results", "report"),
)


class ArtifactError(UserError):
    """A missing, unsealed or broken artifact; the message names the path and the command that makes it."""


def canonical_json(value: Any) -> bytes:
    """Return the one JSON spelling of a value that everything here hashes: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def digest(value: Any) -> str:
    """Return the blake2b-128 of a value's canonical JSON, in hex."""
    return hashlib.blake2b(canonical_json(value), digest_size=16).hexdigest()


def fingerprint(
    *, stage: str, version: int, config: Any = None, packages: Mapping[str, str] | None = None, parents: Iterable[str] = ()
) -> str:
    """Return the name of what a stage makes out of these inputs: everything that changes bytes, and nothing else.

    Args:
        stage: which code makes it.
        version: raised whenever that code changes what it writes.
        config: the part of the configuration that changes bytes; any JSON value.
        packages: `package_versions(...)` of the packages that change bytes.
        parents: fingerprints of the artifacts, or digests of the files, that are read. Their order counts.
    """
    return digest({"stage": stage, "version": version, "config": config, "packages": dict(packages or {}), "parents": list(parents)})


def package_versions(*names: str) -> dict[str, str]:
    """Return the installed version of each package; one that is missing is an error of importlib.metadata."""
    return {name: importlib.metadata.version(name) for name in names}


def file_digest(path: Path, cache: Path | None = None) -> str:
    """Return the blake2b-128 of a local file's bytes, in hex.

    Args:
        path: the file.
        cache: a JSON file that remembers digests by path, size and mtime, empty where it can't be read; None reads the file every time.
    """
    stat = path.stat()
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    known = {} if cache is None else _remembered(cache)
    if key in known:
        return known[key]
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = cache.with_name(f"{cache.name}.{os.getpid()}.part")
        temporary.write_text(json.dumps({**known, key: found}), "utf-8")
        temporary.replace(cache)
    return found


def _remembered(cache: Path) -> dict[str, str]:
    """Return the digests in a cache; none where it is missing or damaged."""
    try:
        found = json.loads(cache.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class Storage(Files):
    """A place for artifacts: an absolute local path or any URI that pyarrow's filesystems open. It pickles as its URI."""

    def artifact(self, kind: str, fingerprint: str) -> Artifact:
        """Return the handle of an artifact, whether it exists or not."""
        if kind not in KINDS:
            raise ValueError(f"unknown kind of artifact {kind!r}: one of {', '.join(KINDS)}")
        return Artifact(self, kind, fingerprint)

    def at(self, path: str) -> Artifact:
        """Return the handle of the artifact at a path relative to the storage, as index.json holds it."""
        kind, _, name = path.partition("/")
        return self.artifact(kind, name)


@dataclass(frozen=True)
class Artifact:
    """A folder of a storage that exists for readers once it is sealed.

    A handle from `begin` is a writer's: what it writes, and what it reads until it seals, lies in a folder of its own. It pickles, so that
    the tasks of a job write together.
    """

    storage: Storage
    kind: str
    fingerprint: str
    writer: str | None = None

    @property
    def path(self) -> str:
        """Return `<kind>/<fingerprint>`, relative to the storage."""
        return f"{self.kind}/{self.fingerprint}"

    @property
    def uri(self) -> str:
        """Return the folder's full path or URI."""
        return f"{self.storage.uri.rstrip('/')}/{self.path}"

    @property
    def sealed(self) -> bool:
        """Return whether the manifest is there; what a killed writer was about to publish is published first."""
        manifest = f"{self.path}/{MANIFEST}"
        return self.storage.exists(manifest) or (publishing.finish(self.storage, self.path) and self.storage.exists(manifest))

    @property
    def manifest(self) -> dict[str, Any]:
        """Return what was sealed.

        Raises:
            ArtifactError: there is no manifest.
        """
        if not self.sealed:
            raise ArtifactError(f"{self.uri} is not sealed: run the stage that makes it (see `--dry-run`)")
        return json.loads(self.storage.read_bytes(f"{self.path}/{MANIFEST}"))

    def begin(self) -> Artifact:
        """Return a writer's handle, with a folder of its own, so that what others write or have left can't mix with what comes now."""
        target = replace(self, writer=secrets.token_hex(8))
        try:
            self.storage.write_bytes(f"{target._own}/{BEGUN}", b"")
        except OSError as error:
            raise StorageError(f"{self.uri} can't be written: {error}") from None
        return target

    def locate(self, name: str = "") -> str:
        """Return where a file or folder of the artifact lies, relative to the storage: as the manifest says, or with this writer.

        Raises:
            ArtifactError: it isn't sealed, and this is no writer's handle.
        """
        if self.writer is not None and self.storage.exists(f"{self._own}/{BEGUN}"):
            return f"{self._own}/{name}".rstrip("/")
        folder = posixpath.dirname(self.manifest.get(DATA, DATA))
        return "/".join(filter(None, (self.path, folder, name)))

    def place(self, name: str = "") -> str:
        """Return where a file or folder of the artifact lies, as a path inside the storage's filesystem."""
        return f"{self.storage.filesystem()[1]}/{self.locate(name)}"

    def write(self, table: pa.Table, name: str = "data/part-00000.parquet") -> None:
        """Write a table as one parquet file of the artifact."""
        with self._writing(name) as (filesystem, target):
            pq.write_table(table, target, filesystem=filesystem, compression="zstd", row_group_size=ROW_GROUP)

    @contextmanager
    def open_output(self, name: str) -> Iterator[BinaryIO]:
        """Have a stream into a new file of the artifact, for what is not one table."""
        with self._writing(name) as (filesystem, target), filesystem.open_output_stream(target, compression=None) as stream:
            yield stream

    def folder(self, name: str) -> str:
        """Return a writer's folder for files that others write, as a path inside the storage's filesystem."""
        return f"{self.storage.filesystem()[1]}/{self._own}/{name}"

    def remove(self, name: str) -> None:
        """Remove a folder that the writer doesn't want to seal, if it is there."""
        self.storage.remove_folder(f"{self._own}/{name}")

    def parts(self, folder: str = "data") -> list[str]:
        """Return the parquet files of a folder in name order, as paths inside the storage's filesystem."""
        return [info.path for info in self.storage.list(self.locate(folder)) if info.path.endswith(".parquet")]

    def read(self, folder: str = "data", columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of a folder's parquet files, in name order.

        Raises:
            ArtifactError: the folder holds no parquet file.
        """
        filesystem, _ = self.storage.filesystem()
        parts = self.parts(folder)
        if not parts:
            raise ArtifactError(f"{self.uri}/{folder} holds no parquet file")
        chosen = list(columns) if columns is not None else None
        return pa.concat_tables([pq.read_table(part, columns=chosen, filesystem=filesystem) for part in parts])

    def seal(self, manifest: Mapping[str, Any]) -> Artifact:
        """Publish the writer's folder with this manifest, and return the artifact; if another sealed it, throw the folder away.

        Raises:
            ArtifactError: the writer's folder is gone.
        """
        content = {**manifest, "kind": self.kind, "fingerprint": self.fingerprint}
        publish = publishing.by_renames if self.storage.renames else publishing.by_name
        if not publish(self.storage, self.path, posixpath.basename(self._own), content):
            raise ArtifactError(f"{self.uri}: the folder .{self.writer} is gone, removed while it was written; run the same command again")
        return replace(self, writer=None)

    def discard(self) -> None:
        """Throw the writer's folder away, unless it is what was sealed."""
        publishing.discard(self.storage, self._own)

    def unseal(self) -> None:
        """Remove the manifest, so that the artifact is made again."""
        filesystem, root = self.storage.filesystem()
        filesystem.delete_file(f"{root}/{self.path}/{MANIFEST}")

    @property
    def _own(self) -> str:
        """Return the writer's folder, relative to the storage."""
        if self.writer is None:
            raise ArtifactError(f"{self.uri}: only the handle that begin() returns can write")
        return f"{self.path}/.{self.writer}"

    def _writing(self, name: str) -> AbstractContextManager[tuple[pafs.FileSystem, str]]:
        # Aside, since a task whose node was given up may still be writing the same file when another one has sealed.
        return self.storage.writing(f"{self._own}/{name}", f"{self._own}/.parts/{secrets.token_hex(6)}")
