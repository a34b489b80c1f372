"""The files of a run on any storage: weights that come and go, folders that are local for a while, answers kept aside. Imports no Ray."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from diversity.artifact import Artifact, Storage

WEIGHTS = "hf"  # the folder of a model's artifact


def cache_folder() -> Path:
    """Return the node-local cache: `SFT_DIVERSITY_CACHE`, else `~/.cache/sft-diversity`."""
    return Path(os.environ.get("SFT_DIVERSITY_CACHE") or Path.home() / ".cache" / "sft-diversity")


def has_weights(model: Artifact) -> bool:
    """Return whether a model's weights are still there; a config is removed first, so that half of them never count."""
    return model.storage.exists(model.locate(f"{WEIGHTS}/config.json"))


def remove_weights(model: Artifact) -> None:
    """Remove a model's weights; what says how it was trained stays."""
    if has_weights(model):
        filesystem, _ = model.storage.filesystem()
        filesystem.delete_file(model.place(f"{WEIGHTS}/config.json"))
    model.storage.remove_folder(model.locate(WEIGHTS))


@dataclass(frozen=True)
class Kept:
    """Tables in a folder of the storage that goes when the run is done: beside Ray Train's checkpoints."""

    storage: Storage
    folder: str

    def read(self, name: str) -> pa.Table | None:
        """Return the table of that name, if it is there."""
        path = f"{self.folder}/{name}.parquet"
        return pq.read_table(pa.BufferReader(self.storage.read_bytes(path))) if self.storage.exists(path) else None

    def write(self, name: str, table: pa.Table) -> None:
        """Write it, whole or not at all."""
        stream = io.BytesIO()
        pq.write_table(table, stream)
        self.storage.write_bytes(f"{self.folder}/{name}.parquet", stream.getvalue())


@contextmanager
def local_copy(artifact: Artifact, name: str, *, read: bool) -> Iterator[Path]:
    """Have a folder of a sealed artifact as a local one: itself on a local storage, else a copy; empty where nothing is to be read."""
    filesystem, _ = artifact.storage.filesystem()
    if read and isinstance(filesystem, pafs.LocalFileSystem):
        yield Path(artifact.place(name))
        return
    with tempfile.TemporaryDirectory(prefix="sft-diversity-") as folder:
        if read:
            pafs.copy_files(artifact.place(name), folder, source_filesystem=filesystem)
        yield Path(folder)


@contextmanager
def folder_to_fill(target: Artifact | None, name: str) -> Iterator[Path]:
    """Have a local folder whose files become a folder of the artifact that a writer makes: itself on a local storage, else copied after."""
    filesystem = target.storage.filesystem()[0] if target is not None else None
    if target is not None and isinstance(filesystem, pafs.LocalFileSystem):
        yield Path(target.folder(name))
        return
    with tempfile.TemporaryDirectory(prefix="sft-diversity-") as folder:
        yield Path(folder)
        if target is not None:
            pafs.copy_files(folder, target.folder(name), destination_filesystem=filesystem)
