"""A folder without a manifest does not exist, a sealed one never changes, and a fingerprint covers what changes bytes."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pyarrow as pa
import pytest

from diversity.artifact import ArtifactError, Storage, StorageError, digest, file_digest, fingerprint


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def test_an_unsealed_folder_does_not_exist_and_is_emptied_by_the_next_writer(storage: Storage) -> None:
    artifact = storage.artifact("corpus", "f0").begin()
    artifact.write(pa.table({"a": [1]}), "data/part-00007.parquet")
    assert not artifact.sealed
    with pytest.raises(ArtifactError, match="corpus/f0"):
        _ = artifact.manifest
    artifact.begin().write(pa.table({"a": [2]}))
    artifact.seal({"rows": 1})
    assert artifact.sealed and artifact.manifest["rows"] == 1
    assert artifact.read().column("a").to_pylist() == [2]


def test_a_sealed_artifact_is_never_written_again(storage: Storage) -> None:
    artifact = storage.artifact("corpus", "f0").begin().seal({})
    with pytest.raises(ArtifactError, match="never written again"):
        artifact.begin()


def test_parts_are_read_in_name_order(storage: Storage) -> None:
    artifact = storage.artifact("profile", "f0").begin()
    for part in (2, 0, 1):
        artifact.write(pa.table({"a": [part]}), f"data/part-{part:05d}.parquet")
    assert artifact.read().column("a").to_pylist() == [0, 1, 2]
    assert artifact.read(columns=["a"]).num_columns == 1
    with pytest.raises(ArtifactError, match="types"):
        artifact.read("types")


def test_storage_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"give it as {os.getcwd()}"):
        Storage("runs").filesystem()
    with pytest.raises(StorageError, match="nosuch"):
        Storage("nosuch://x").filesystem()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="can't be written"):
        Storage(str(tmp_path / "file")).check_writable()
    with pytest.raises(ValueError, match="one of corpus"):
        Storage(str(tmp_path)).artifact("corpora", "x")


def test_a_uri_opens_the_same_place_as_a_path(tmp_path: Path) -> None:
    Storage(f"file://{tmp_path}").artifact("corpus", "f0").begin().seal({"n": 1})
    assert Storage(str(tmp_path)).at("corpus/f0").manifest["n"] == 1


def test_handles_pickle(storage: Storage) -> None:
    artifact = storage.artifact("corpus", "f0")
    assert pickle.loads(pickle.dumps(artifact)) == artifact


def test_every_input_of_a_fingerprint_counts_and_key_order_does_not() -> None:
    base = {"stage": "s", "version": 1, "config": {"a": 1, "b": 2}, "packages": {"p": "1"}, "parents": ["x", "y"]}
    changed = [
        {**base, "stage": "t"},
        {**base, "version": 2},
        {**base, "config": {"a": 1, "b": 3}},
        {**base, "packages": {"p": "2"}},
        {**base, "parents": ["y", "x"]},
    ]
    assert len({fingerprint(**values) for values in [base, *changed]}) == 6
    assert fingerprint(**{**base, "config": {"b": 2, "a": 1}}) == fingerprint(**base)
    assert len(digest("x")) == 32


def test_file_digests_follow_the_bytes_and_are_remembered_by_mtime(tmp_path: Path) -> None:
    path, cache = tmp_path / "data", tmp_path / "cache.json"
    path.write_bytes(b"one")
    first = file_digest(path, cache)
    assert first == file_digest(path) == file_digest(path, cache)
    stat = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file_digest(path, cache) == first, "same size and mtime: the cache answers"
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert file_digest(path, cache) == file_digest(path) != first
