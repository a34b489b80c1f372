"""Paths and URIs become pyarrow filesystems: one place opens them all, so that an object store that is away for a while is waited for.

pyarrow's own retries give up after about two seconds. Ours go on with doubling pauses, for about half a minute in all, which outlasts a
restarting server or a node's network coming back.
"""

from __future__ import annotations

import functools
import posixpath
import secrets
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from diversity.config import UserError

S3_ATTEMPTS = 10  # pauses of 0.1, 0.2, 0.4 … 25.6 s at most, each cut at random: an outage of 20 s is ridden out
READINGS = 20  # of a small object that others write at the same time
AT_ONCE = 16  # small requests
FEW = 4  # for which no thread is started
Item = TypeVar("Item")
Value = TypeVar("Value")


class StorageError(UserError):
    """A storage that can't be opened or written."""


class PatientS3(pafs.S3FileSystem):
    """An S3 filesystem that tries each request up to ten times, in other processes too: pyarrow's pickle forgets the retries."""

    def __init__(self, **options: Any) -> None:
        """Take the options of pyarrow's own, less the retries."""
        options.pop("retry_strategy", None)
        super().__init__(**options, retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS))

    @classmethod
    def _again(cls, options: dict[str, Any]) -> PatientS3:
        return cls(**options)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what makes it again elsewhere."""
        return PatientS3._again, (_options(self),)


@functools.lru_cache(maxsize=64)
def open_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the filesystem of an absolute path or a URI, and the path inside it.

    Raises:
        pyarrow.ArrowInvalid, OSError: the URI can't be opened.
    """
    if "://" not in uri:
        return pafs.LocalFileSystem(), posixpath.normpath(str(Path(uri).absolute()))
    filesystem, path = pafs.FileSystem.from_uri(uri)
    # What the URI says of S3 only pyarrow can read, and it takes no retries then: so its options are handed over.
    return (PatientS3(**_options(filesystem)) if isinstance(filesystem, pafs.S3FileSystem) else filesystem), path


def _options(filesystem: pafs.S3FileSystem) -> dict[str, Any]:
    """Return what an S3 filesystem was made with, as its pickle has it."""
    return dict(pafs.S3FileSystem.__reduce__(filesystem)[1][0])


@dataclass(frozen=True)
class Files:
    """Files under an absolute local path or a URI that pyarrow's filesystems open. It pickles as its URI."""

    uri: str

    def filesystem(self) -> tuple[pafs.FileSystem, str]:
        """Return the filesystem and the root path inside it.

        Raises:
            StorageError: the URI can't be opened, or is a relative path.
        """
        if "://" not in self.uri and not self.uri.startswith("/"):
            raise StorageError(f"storage {self.uri!r} is relative; give it as {Path(self.uri).resolve()}")
        try:
            return open_filesystem(self.uri)
        except (pa.ArrowInvalid, OSError) as error:
            raise StorageError(f"storage {self.uri!r} can't be opened: {error}") from None

    @property
    def renames(self) -> bool:
        """Return whether a rename is one stroke here, as on a local storage; an object store has no renames, but puts whole objects."""
        return isinstance(self.filesystem()[0], pafs.LocalFileSystem)

    def check_writable(self) -> None:
        """Write and remove a small file.

        Raises:
            StorageError: nothing can be written there.
        """
        probe = f".probe-{secrets.token_hex(6)}"
        try:
            self.write_bytes(probe, b"")
            filesystem, root = self.filesystem()
            filesystem.delete_file(f"{root}/{probe}")
        except (OSError, pa.ArrowException) as error:
            raise StorageError(f"storage {self.uri!r} can't be written: {error}") from None

    def exists(self, path: str) -> bool:
        """Return whether there is a file at the path relative to the storage."""
        filesystem, root = self.filesystem()
        return filesystem.get_file_info(f"{root}/{path}").type == pafs.FileType.File

    def read_bytes(self, path: str) -> bytes:
        """Return the content of the file at the path relative to the storage, whole, also while others write it anew.

        An object's size and its content are asked for one after the other, and content in several requests may be of several versions.
        So it is one request for all bytes, and another one if the size is not that of the bytes then.

        Raises:
            FileNotFoundError: there is no such file.
            StorageError: it changed at each of many readings.
        """
        filesystem, root = self.filesystem()
        for _ in range(READINGS):
            with filesystem.open_input_file(f"{root}/{path}") as file:
                content = file.read_at(file.size(), 0)
            if self.renames or filesystem.get_file_info(f"{root}/{path}").size == len(content):
                return content
        raise StorageError(f"{self.uri}/{path} changed at each of {READINGS} readings")

    def write_bytes(self, path: str, content: bytes) -> None:
        """Write a file whole or not at all; of several writers at once the last one's content stands, whole."""
        folder, name = posixpath.split(path)
        aside = f"{folder}/.{name}.{secrets.token_hex(6)}.part"
        with self.writing(path, aside) as (filesystem, target), filesystem.open_output_stream(target, compression=None) as stream:
            stream.write(content)

    @contextmanager
    def writing(self, path: str, aside: str) -> Iterator[tuple[pafs.FileSystem, str]]:
        """Have a file written whole or not at all: yields the filesystem, and the path in it that is to be written.

        Args:
            path: of the file, relative to the storage.
            aside: where it lies until it is whole, on a local storage; an object store shows no object before it is whole.
        """
        filesystem, root = self.filesystem()
        filesystem.create_dir(f"{root}/{posixpath.dirname(path)}", recursive=True)
        if not self.renames:
            yield filesystem, f"{root}/{path}"
            return
        if posixpath.dirname(aside) != posixpath.dirname(path):
            filesystem.create_dir(f"{root}/{posixpath.dirname(aside)}", recursive=True)
        yield filesystem, f"{root}/{aside}"
        filesystem.move(f"{root}/{aside}", f"{root}/{path}")

    def list(self, path: str) -> list[pafs.FileInfo]:
        """Return what lies right under a folder, in order of name; nothing if it isn't there."""
        filesystem, root = self.filesystem()
        found = filesystem.get_file_info(pafs.FileSelector(f"{root}/{path}", allow_not_found=True))
        return sorted(found, key=lambda info: info.path)

    def remove_folder(self, path: str) -> None:
        """Remove a folder with all that is in it, if it is there."""
        filesystem, root = self.filesystem()
        if filesystem.get_file_info(f"{root}/{path}").type == pafs.FileType.Directory:
            filesystem.delete_dir(f"{root}/{path}")


def each(function: Callable[[Item], Value], items: Iterable[Item]) -> list[Value]:
    """Return what a function returns for each item, in their order: small requests go at once, since the storage may be far away."""
    held = list(items)
    if len(held) <= FEW:
        return [function(item) for item in held]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(function, held))
