"""What no experiment names can go; what one names, directly or through a manifest, and what is young, stays."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pyarrow as pa
import pytest

from diversity.artifact import Artifact, Storage
from ray_jobs.job.index import Index
from ray_jobs.tools.clean import main, unnamed
from ray_jobs.tools.status import main as status


def seal(storage: Storage, kind: str, name: str, days: float, **manifest: object) -> Artifact:
    artifact = storage.artifact(kind, name * 32).begin()
    artifact.write(pa.table({"x": [1, 2, 3]}))
    artifact.seal(manifest)
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
    assert [folder.artifact.fingerprint[0] for folder in unnamed(storage)] == ["a", "d", "e"]
    assert main([storage.uri, "--yes"]) == 0
    assert "younger than a day" in capsys.readouterr().out
    left = {folder.relative_to(storage.uri).as_posix() for kind in ("corpus", "datasets") for folder in Path(storage.uri, kind).iterdir()}
    assert left == {"corpus/" + "b" * 32, "datasets/" + "c" * 32, "datasets/" + "e" * 32, "datasets/notes"}
    assert Path(storage.uri, "tune").is_dir() and Path(storage.uri, "experiments/mine/index.json").is_file()


def test_a_folder_that_is_no_storage_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "datasets" / ("f" * 32)).mkdir(parents=True)
    assert main([str(tmp_path), "--yes"]) == 1
    assert "no storage" in capsys.readouterr().err and (tmp_path / "datasets" / ("f" * 32)).is_dir()


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
