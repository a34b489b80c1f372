"""What no experiment names can go; what one names, directly or through a manifest, and what is young, stays."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from diversity.artifact import Artifact, Storage
from ray_jobs.job.index import Index
from ray_jobs.tools.clean import _named, abandoned, main, unnamed
from ray_jobs.tools.status import main as status
from tests.storages import Objects, WatchedStorage


def seal(storage: Storage, kind: str, name: str, days: float, **manifest: object) -> Artifact:
    target = storage.artifact(kind, name * 32).begin()
    target.write(pa.table({"x": [1, 2, 3]}))
    artifact = target.seal(manifest)
    for path in Path(artifact.uri).rglob("*"):
        os.utime(path, (time.time() - days * 86400,) * 2)
    return artifact


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    storage = Storage(str(tmp_path))
    seal(storage, "corpus", "a", 9)
    derived = seal(storage, "corpus", "b", 9)
    named = seal(storage, "datasets", "c", 9, made_from={"corpus": derived.path})
    seal(storage, "datasets", "d", 9)
    seal(storage, "datasets", "e", 0.5)
    Index(storage, "mine").add("datasets", "random_n3_s0", named)
    (tmp_path / "datasets" / "notes").mkdir()
    (tmp_path / "tune").mkdir()
    return storage


def test_only_old_artifacts_that_nobody_names_go(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(Path(storage.uri).rglob("*"))
    assert main([storage.uri]) == 0
    assert set(Path(storage.uri).rglob("*")) == before, "nothing goes without --yes"
    assert [folder.path.split("/")[1][0] for folder in unnamed(storage, _named(storage))] == ["a", "d", "e"]
    assert main([storage.uri, "--yes"]) == 0
    assert "younger than a day" in capsys.readouterr().out
    left = {folder.relative_to(storage.uri).as_posix() for kind in ("corpus", "datasets") for folder in Path(storage.uri, kind).iterdir()}
    assert left == {"corpus/" + "b" * 32, "datasets/" + "c" * 32, "datasets/" + "e" * 32, "datasets/notes"}
    assert Path(storage.uri, "tune").is_dir() and Path(storage.uri, "experiments/mine/index.json").is_file()


def test_what_killed_writers_left_in_a_named_artifact_goes_when_it_is_a_day_old(storage: Storage) -> None:
    named = storage.artifact("datasets", "c" * 32)
    old, young = named.begin(), named.begin()
    for target in (old, young):
        target.write(pa.table({"x": [1]}))
    storage.write_bytes("experiments/mine/.index.json.0123.part", b"half")
    storage.write_bytes("experiments/mine/.index.json.4567.part", b"half")
    for path in (f"{named.uri}/.{old.writer}", f"{storage.uri}/experiments/mine/.index.json.0123.part"):
        for each in (Path(path), *Path(path).rglob("*")):
            os.utime(each, (time.time() - 2 * 86400,) * 2)
    assert main([storage.uri, "--yes"]) == 0
    assert not storage.list(f"{named.path}/.{old.writer}") and storage.list(f"{named.path}/.{young.writer}")
    left = {info.base_name for info in storage.list("experiments/mine") if info.base_name.endswith(".part")}
    assert left == {".index.json.4567.part"}
    assert named.sealed and len(named.read()) == 3
    assert old.seal({"late": True}) == named and "late" not in named.manifest


def beat(storage: Storage, seconds_ago: float, holds: str) -> None:
    told = (datetime.now(UTC) - timedelta(seconds=seconds_ago)).isoformat()
    facts = {"job": "j", "host": "elsewhere", "pid": 1, "started": told, "beat": told, "stage": "sweep", "command": "c", "holds": [holds]}
    storage.write_bytes("experiments/other/jobs/j/heartbeat.json", json.dumps(facts).encode())


def test_nothing_goes_while_a_job_runs_and_what_a_killed_one_trained_stays(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    model, other = (seal(storage, "models", name, 9, dataset=f"datasets/{'d' * 32}") for name in "89")
    beat(storage, 0, model.fingerprint)
    assert main([storage.uri, "--yes"]) == 0
    assert "stays while j runs" in capsys.readouterr().out and other.sealed and storage.artifact("corpus", "a" * 32).sealed
    beat(storage, 3600, model.fingerprint)
    assert main([storage.uri, "--yes"]) == 0
    assert model.sealed and storage.artifact("datasets", "d" * 32).sealed and not other.sealed


def test_an_entry_counts_before_the_view_is_made(storage: Storage) -> None:
    corpus = storage.artifact("corpus", "a" * 32)
    Index(storage, "killed").add("corpus", None, corpus)
    Path(storage.uri, "experiments/killed/index.json").unlink()
    assert main([storage.uri, "--yes"]) == 0 and corpus.sealed


def test_clean_on_an_object_store_keeps_the_folder_that_the_manifest_names(storage: Storage) -> None:
    """An object store in memory, whose objects have no times: all are young, and only what would go is asked."""
    objects = WatchedStorage("bucket/runs", lambda operation, path: None, Objects())
    targets = [objects.artifact("corpus", "a" * 32).begin() for _ in range(3)]
    for target in targets:
        target.write(pa.table({"x": [1]}))
    targets[1].seal({})
    Index(objects, "e").add("corpus", None, objects.artifact("corpus", "a" * 32))
    assert {folder.path.rpartition(".")[2] for folder in abandoned(objects, _named(objects))} == {targets[0].writer, targets[2].writer}


def test_a_folder_that_is_no_storage_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "datasets" / ("f" * 32)).mkdir(parents=True)
    assert main([str(tmp_path), "--yes"]) == 1
    assert "no storage" in capsys.readouterr().err and (tmp_path / "datasets" / ("f" * 32)).is_dir()


def test_status_refuses_what_it_would_drop(storage: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status([str(tmp_path / "nothing")]) == 1
    told = capsys.readouterr()
    assert not told.out and f"status: {tmp_path}/nothing holds no experiments" in told.err
    for more in ("grid.sizes=[1]", "--json"):
        with pytest.raises(SystemExit):
            status([storage.uri, more])
        assert "a storage takes neither" in capsys.readouterr().err


def test_status_tells_what_is_sealed_and_what_goes_on(storage: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status([storage.uri]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert dict(zip(header.split(), line.split(), strict=True))["datasets"] == "1"
    (tmp_path / "rows.jsonl").write_text(json.dumps({"instruction": "a", "response": "b"}) + "\n")
    config = tmp_path / "small.yaml"
    config.write_text(f"experiment: small\nstorage: {tmp_path}/runs\ncorpus: {{paths: ['{tmp_path}/rows.jsonl']}}\n")
    assert status([str(config), "grid.sizes=[1]", "--json"]) == 0
    found = {(stage, what): (sealed, total) for stage, sealed, total, what in json.loads(capsys.readouterr().out)}
    assert found["ingest", "samples"] == (0, 1) and found["profile_corpus", "typings"] == (0, 6)
    assert found["build_datasets", "datasets"] == (0, 6 * 7 + 1)
    assert status([str(config), "grid.sizes=[1]"]) == 0
    assert f"python -m ray_jobs.pipeline {config} 'grid.sizes=[1]'" in capsys.readouterr().out
