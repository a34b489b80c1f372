"""Inputs and storage in an object store: pyarrow's own S3 client against S3 servers, which are outside programs.

`make cluster-tools` installs both: s3rver (npm), which keeps its objects in a folder and so outlives its own end, and moto, which can't be
installed beside this project, since it wants an older python-dateutil. SFT_DIVERSITY_S3RVER and SFT_DIVERSITY_MOTO_SERVER name others.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import yaml

from diversity import publishing
from diversity.artifact import ArtifactError, Storage
from diversity.corpus.config import CorpusConfig
from diversity.corpus.files import ReadError, content_digest, find_files
from diversity.corpus.inputs import read_corpus
from diversity.corpus.readers import read_rows
from ray_jobs import ingest
from ray_jobs.job.experiment import load_experiment
from ray_jobs.job.index import Index
from ray_jobs.job.runtime import Context
from tests.object_stores import SECRET, SERVERS, Server, through_an_outage, uri

ROWS = [{"instruction": f"ask {i}", "output": f"answer {i % 7} \u2028 ünï"} for i in range(40)]


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return host:port of an S3 server with an empty bucket `data`."""
    with Server(request.param, tmp_path_factory.mktemp("objects")) as running:
        yield running.address


def put(server: str, path: str, content: bytes) -> None:
    filesystem, inside = pafs.FileSystem.from_uri(uri(server, path))
    with filesystem.open_output_stream(inside, compression=None) as stream:
        stream.write(content)


def lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def test_files_are_found_read_and_named_by_their_etag(server: str, tmp_path: Path) -> None:
    put(server, "in/a.jsonl", lines(ROWS))
    put(server, "in/deep/b.jsonl.gz", gzip.compress(lines(ROWS)))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "c.parquet")
    put(server, "in/c.parquet", (tmp_path / "c.parquet").read_bytes())
    put(server, "in/notes.txt", b"no data")
    files = find_files([uri(server, "in")])
    assert [file.shown for file in files] == ["s3://data/in/a.jsonl", "s3://data/in/c.parquet", "s3://data/in/deep/b.jsonl.gz"]
    assert all(SECRET not in file.shown for file in files)
    assert all([row for _, row in read_rows(file)] == ROWS for file in files)
    assert [file.shown for file in find_files([uri(server, "in/*.jsonl")])] == ["s3://data/in/a.jsonl"]
    before = content_digest(files[0])
    put(server, "in/a.jsonl", lines(ROWS[::-1]))
    assert content_digest(files[0]) != before
    put(server, "in/a.jsonl", lines(ROWS))
    assert content_digest(files[0]) == before
    with pytest.raises(ReadError, match="no such file or folder"):
        find_files([uri(server, "in/none.jsonl")])
    filesystem, inside = pafs.FileSystem.from_uri(uri(server, "in/a.jsonl"))
    filesystem.delete_file(inside)
    with pytest.raises(ReadError, match=r"s3://data/in/a\.jsonl"):
        list(read_rows(files[0]))


def test_artifacts_exist_once_they_are_sealed(server: str) -> None:
    storage = Storage(uri(server, "store"))
    storage.check_writable()
    artifact = storage.artifact("corpus", "f00d")
    killed = artifact.begin()
    killed.write(pa.table({"a": [1, 2]}))
    killed.write(pa.table({"a": [9]}), "data/part-00001.parquet")
    assert not artifact.sealed
    with pytest.raises(ArtifactError, match="not sealed"):
        _ = artifact.manifest
    target = artifact.begin()
    target.write(pa.table({"a": [3]}))
    target.write(pa.table({"b": [3]}), "rejected/part-00000.parquet")
    target.seal({"samples": 1})
    assert artifact.sealed and artifact.manifest["samples"] == 1 and artifact.manifest["data"] == f".{target.writer}/data"
    assert artifact.read()["a"].to_pylist() == [3] and len(artifact.parts()) == 1 and artifact.read("rejected")["b"].to_pylist() == [3]
    killed.seal({"samples": 3})  # it was only slow: it finds the artifact sealed, and throws its own away
    assert artifact.manifest["samples"] == 1 and artifact.read()["a"].to_pylist() == [3]
    assert not storage.list(f"corpus/f00d/.{killed.writer}")


def test_two_that_seal_at_the_same_time_end_with_one_whole_artifact(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = Storage(uri(server, "store")).artifact("corpus", "f00e")
    targets = [artifact.begin(), artifact.begin()]
    for number, target in enumerate(targets):
        target.write(pa.table({"a": [number] * 3}))
    there = publishing.Files.exists
    monkeypatch.setattr(publishing.Files, "exists", lambda files, path: there(files, path) and not path.endswith("manifest.json"))
    for number, target in enumerate(targets):
        target.seal({"by": number})
    monkeypatch.undo()
    assert artifact.read()["a"].to_pylist() == [artifact.manifest["by"]] * 3
    assert targets[0].storage.list(f"corpus/f00e/.{targets[0].writer}/data"), "somebody may be reading it"


def test_an_index_in_the_store_has_every_entry(server: str) -> None:
    storage = Storage(uri(server, "store"))
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: Index(storage, "e").add("datasets", f"cell@{n}", storage.artifact("datasets", f"d{n}")), range(6)))
    expected = {"datasets": {f"cell@{n}": f"datasets/d{n}" for n in range(6)}}
    assert Index(storage, "e").read() == json.loads(storage.read_bytes("experiments/e/index.json"))["artifacts"] == expected


def test_a_store_that_is_away_for_a_while_is_waited_for(tmp_path: Path) -> None:
    """Six seconds here, after which pyarrow's own retries have given up; `make cluster-test` has twenty."""
    with Server("s3rver", tmp_path) as server:
        waited = through_an_outage(server, seconds=6)
    assert waited["ours"] == "went on" and waited["pyarrow's own"].startswith("gave up")


@pytest.mark.usefixtures("ray_local")
def test_ingest_from_the_store_into_the_store(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFT_DIVERSITY_CACHE", str(tmp_path / "cache"))
    put(server, "rows/a.jsonl", lines([*ROWS, *ROWS[:5], {"instruction": "no answer"}]))
    config = tmp_path / "e.yaml"
    settings = {"experiment": "e", "storage": uri(server, "runs"), "corpus": {"paths": [uri(server, "rows/a.jsonl")], "max_rejected": 0.1}}
    config.write_text(yaml.safe_dump({**settings, "evaluation": {"heldout": None}, "stages": ["ingest"]}))
    context = Context(load_experiment(config, [], inside_job=False), config)
    ingest.run(context)
    (tmp_path / "a.jsonl").write_bytes(lines(ROWS))
    expected = read_corpus(CorpusConfig(paths=[str(tmp_path / "a.jsonl")]))[0]
    artifact = Context(load_experiment(config, [], inside_job=False), config).index.get("corpus")
    assert artifact.read().equals(expected)
    figures = artifact.manifest
    assert (figures["rows_read"], figures["samples"], figures["duplicates"], figures["rejected"]) == (46, 40, 5, 1)
    assert figures["inputs"][0]["input"] == "s3://data/rows/a.jsonl" and SECRET not in json.dumps(figures)
    monkeypatch.setattr(ingest, "_build", None)  # would fail if it were called
    ingest.run(context)
