"""Sealed folders: a fingerprint names the content, and the manifest, written last, says that it is whole.

`<storage>/<kind>/<fingerprint>/` holds parquet and `manifest.json`. A folder without a manifest does not exist for readers and is
emptied by the next writer, so a crash at any point costs the work since the last seal and can't leave half a result behind. Storage
is any URI that pyarrow's filesystems open.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from diversity.config import UserError

MANIFEST = "manifest.json"
ROW_GROUP = 8192  # rows: a reader of some of a part's rows reads little more than those
KINDS = (
    *("corpus", "heldout", "profile", "peel", "datasets", "metrics", "models", "scores"),
    *("prompts", "answers", "verdicts", "judged", "results", "report"),
)


class ArtifactError(UserError):
    """A missing, unsealed or broken artifact; the message names the path and the command that makes it."""


class StorageError(UserError):
    """A storage that can't be opened or written."""


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
        cache: a JSON file that remembers digests by path, size and mtime; None reads the file every time.
    """
    stat = path.stat()
    key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    known: dict[str, str] = {}
    if cache is not None and cache.exists():
        known = json.loads(cache.read_text("utf-8"))
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


@dataclass(frozen=True)
class Storage:
    """A place for artifacts: an absolute local path or any URI that pyarrow's filesystems open. It pickles as its URI."""

    uri: str

    def filesystem(self) -> tuple[pafs.FileSystem, str]:
        """Return the filesystem and the root path inside it.

        Raises:
            StorageError: the URI can't be opened, or is a relative path.
        """
        if "://" not in self.uri:
            if not self.uri.startswith("/"):
                raise StorageError(f"storage {self.uri!r} is relative; give it as {Path(self.uri).resolve()}")
            return pafs.LocalFileSystem(), posixpath.normpath(self.uri)
        try:
            return pafs.FileSystem.from_uri(self.uri)
        except (pa.ArrowInvalid, OSError) as error:
            raise StorageError(f"storage {self.uri!r} can't be opened: {error}") from None

    def check_writable(self) -> None:
        """Write and remove a small file.

        Raises:
            StorageError: nothing can be written there.
        """
        try:
            self.write_bytes(".probe", b"")
            filesystem, root = self.filesystem()
            filesystem.delete_file(f"{root}/.probe")
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"storage {self.uri!r} can't be written: {error}") from None

    def artifact(self, kind: str, fingerprint: str) -> Artifact:
        """Return the handle of an artifact, whether it exists or not."""
        if kind not in KINDS:
            raise ValueError(f"unknown kind of artifact {kind!r}: one of {', '.join(KINDS)}")
        return Artifact(self, kind, fingerprint)

    def at(self, path: str) -> Artifact:
        """Return the handle of the artifact at a path relative to the storage, as index.json holds it."""
        kind, _, name = path.partition("/")
        return self.artifact(kind, name)

    def exists(self, path: str) -> bool:
        """Return whether there is a file at the path relative to the storage."""
        filesystem, root = self.filesystem()
        return filesystem.get_file_info(f"{root}/{path}").type == pafs.FileType.File

    def read_bytes(self, path: str) -> bytes:
        """Return the content of the file at the path relative to the storage."""
        filesystem, root = self.filesystem()
        with filesystem.open_input_stream(f"{root}/{path}", compression=None) as stream:
            return stream.read()

    def write_bytes(self, path: str, content: bytes) -> None:
        """Write a file whole or not at all: locally by a rename, on object stores because a put is atomic there."""
        filesystem, root = self.filesystem()
        target = f"{root}/{path}"
        filesystem.create_dir(posixpath.dirname(target), recursive=True)
        local = isinstance(filesystem, pafs.LocalFileSystem)
        written = f"{target}.part" if local else target
        with filesystem.open_output_stream(written, compression=None) as stream:
            stream.write(content)
        if local:
            filesystem.move(written, target)


@dataclass(frozen=True)
class Artifact:
    """A folder of a storage that exists for readers once it is sealed."""

    storage: Storage
    kind: str
    fingerprint: str

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
        """Return whether the manifest is there."""
        return self.storage.exists(f"{self.path}/{MANIFEST}")

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
        """Empty the folder, so that what a killed writer left can't mix with what comes now.

        Raises:
            ArtifactError: it is sealed, and a sealed artifact never changes.
        """
        if self.sealed:
            raise ArtifactError(f"{self.uri} is sealed and never written again")
        filesystem, root = self.storage.filesystem()
        folder = f"{root}/{self.path}"
        try:
            filesystem.create_dir(folder, recursive=True)
            filesystem.delete_dir_contents(folder, missing_dir_ok=True)
        except OSError as error:
            raise StorageError(f"{self.uri} can't be written: {error}") from None
        return self

    def write(self, table: pa.Table, name: str = "data/part-00000.parquet") -> None:
        """Write a table as one parquet file of the artifact."""
        filesystem, root = self.storage.filesystem()
        target = f"{root}/{self.path}/{name}"
        filesystem.create_dir(posixpath.dirname(target), recursive=True)
        pq.write_table(table, target, filesystem=filesystem, compression="zstd", row_group_size=ROW_GROUP)

    def open_output(self, name: str) -> BinaryIO:
        """Return a stream into a new file of the artifact, for what is not one table."""
        filesystem, root = self.storage.filesystem()
        target = f"{root}/{self.path}/{name}"
        filesystem.create_dir(posixpath.dirname(target), recursive=True)
        return filesystem.open_output_stream(target, compression=None)

    def parts(self, folder: str = "data") -> list[str]:
        """Return the parquet files of a folder in name order, as paths inside the storage's filesystem."""
        filesystem, root = self.storage.filesystem()
        selector = pafs.FileSelector(f"{root}/{self.path}/{folder}", allow_not_found=True)
        return sorted(info.path for info in filesystem.get_file_info(selector) if info.path.endswith(".parquet"))

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
        """Write the manifest, and with it the artifact into existence."""
        content = {**manifest, "kind": self.kind, "fingerprint": self.fingerprint}
        self.storage.write_bytes(f"{self.path}/{MANIFEST}", json.dumps(content, ensure_ascii=False, indent=1).encode())
        return self
