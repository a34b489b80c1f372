"""A folder without a manifest does not exist, a sealed one never changes, and a fingerprint covers what changes bytes."""

from __future__ import annotations

import itertools
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from diversity.artifact import ArtifactError, Storage, StorageError, digest, file_digest, fingerprint
from tests.storages import Objects, WatchedStorage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


def names(storage: Storage) -> set[str]:
    """Return every file of a storage, relative to it."""
    return {path.relative_to(storage.uri).as_posix() for path in Path(storage.uri).rglob("*") if path.is_file()}


def test_an_unsealed_folder_does_not_exist_and_what_it_holds_mixes_with_nothing(storage: Storage) -> None:
    artifact = storage.artifact("corpus", "f0")
    left = artifact.begin()
    left.write(pa.table({"a": [1]}), "data/part-00007.parquet")
    assert not artifact.sealed
    for reads in (lambda: artifact.manifest, artifact.read, artifact.parts):
        with pytest.raises(ArtifactError, match="corpus/f0 is not sealed"):
            reads()
    target = artifact.begin()
    target.write(pa.table({"a": [2]}))
    assert left.read().column("a").to_pylist() == [1] and target.read().column("a").to_pylist() == [2], "each reads its own"
    assert target.seal({"rows": 1}) == artifact
    assert artifact.sealed and artifact.manifest["rows"] == 1
    assert artifact.read().column("a").to_pylist() == target.read().column("a").to_pylist() == [2]
    assert {name for name in names(storage) if "/." not in name} == {"corpus/f0/data/part-00000.parquet", "corpus/f0/manifest.json"}


def test_who_finds_it_sealed_throws_its_own_away(storage: Storage) -> None:
    artifact = storage.artifact("corpus", "f0")
    first, second = artifact.begin(), artifact.begin()
    for number, target in enumerate((first, second)):
        target.write(pa.table({"a": [number]}))
        target.write(pa.table({"b": [number]}), "rejected/part-00000.parquet")
    first.seal({"by": 0})
    before = names(storage)
    second.seal({"by": 1})
    assert artifact.manifest["by"] == 0 and artifact.read("rejected")["b"].to_pylist() == [0]
    assert names(storage) == {name for name in before if f".{second.writer}" not in name}


def test_only_a_writer_writes_and_only_once(storage: Storage) -> None:
    artifact = storage.artifact("corpus", "f0")
    for writes in (lambda: artifact.write(pa.table({"a": [1]})), lambda: artifact.seal({}), lambda: artifact.remove("staging")):
        with pytest.raises(ArtifactError, match="only the handle that begin"):
            writes()
    target = artifact.begin()
    target.discard()
    with pytest.raises(ArtifactError, match="is gone, removed while it was written"):
        target.seal({})
    assert not artifact.sealed


def test_an_unsealed_artifact_is_made_again_and_nothing_of_the_old_one_stays(storage: Storage) -> None:
    artifact = storage.artifact("models", "f0")
    for version, files in enumerate((("hf/a", "hf/b", "log"), ("hf/a", "log"))):
        target = artifact.begin()
        for name in files:
            with target.open_output(name) as stream:
                stream.write(str(version).encode())
        target.seal({})
        if version == 0:
            artifact.unseal()
            assert not artifact.sealed
    assert names(storage) == {f"models/f0/{name}" for name in ("hf/a", "log", "manifest.json")}
    assert storage.read_bytes("models/f0/hf/a") == storage.read_bytes("models/f0/log") == b"1"


def test_a_file_that_is_not_whole_is_never_there(storage: Storage) -> None:
    target = storage.artifact("corpus", "f0").begin()
    with pytest.raises(RuntimeError), target.open_output("data/part-00000.parquet") as stream:
        stream.write(b"half")
        raise RuntimeError
    assert not target.parts()
    target.seal({})
    assert names(storage) == {"corpus/f0/manifest.json"}


def test_an_earlier_version_s_artifact_is_read(storage: Storage) -> None:
    storage.artifact("corpus", "f0").begin().seal({})
    storage.write_bytes("corpus/f0/manifest.json", b'{"kind": "corpus"}')  # without the key `data`
    filesystem, root = storage.filesystem()
    filesystem.create_dir(f"{root}/corpus/f0/data")
    assert storage.artifact("corpus", "f0").parts() == []
    assert isinstance(filesystem, pafs.LocalFileSystem)


@pytest.mark.parametrize(("before", "after"), [(b"a" * 90, b"b" * 40), (b"a" * 40, b"b" * 90), (b"a" * 90_000, b"b" * 40_000)])
def test_an_object_written_anew_while_it_is_read_is_one_of_both(before: bytes, after: bytes) -> None:
    """Whichever of the requests the new object comes ahead of; a shorter and a longer one."""
    for turn in range(4):
        requests = itertools.count()

        def between(path: str, turn: int = turn, requests: Iterator[int] = requests) -> None:
            if next(requests) == turn:
                objects.objects[path] = after

        objects = Objects(between)
        objects.objects["store/view"] = before
        assert WatchedStorage("store", lambda *_: None, objects).read_bytes("view") in (before, after)


def test_an_object_that_never_rests_is_an_error() -> None:
    objects = Objects(lambda path: objects.objects.update({path: objects.objects[path] + b"a"}))
    objects.objects["store/view"] = b""
    with pytest.raises(StorageError, match="changed at each"):
        WatchedStorage("store", lambda *_: None, objects).read_bytes("view")


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
    for damaged in (b"", b'{"half', b"\xff", b"[]"):
        cache.write_bytes(damaged)
        assert file_digest(path, cache) == file_digest(path)
        assert list(json.loads(cache.read_text()).values()) == [file_digest(path)]


@pytest.mark.parametrize("objects", [False, True])
def test_a_writer_that_seals_again_keeps_what_it_sealed(tmp_path: Path, objects: bool) -> None:
    """A task that Ray runs again may have sealed before its worker died."""
    target = WatchedStorage(str(tmp_path), lambda *_: None, Objects() if objects else None).artifact("profile", "f0").begin()
    for _ in range(2):
        target.write(pa.table({"a": [1]}))
        sealed = target.seal({"rows": 1})
        target.discard()
        assert sealed.sealed and sealed.read()["a"].to_pylist() == [1]
