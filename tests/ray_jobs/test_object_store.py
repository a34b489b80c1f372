"""Inputs and storage in an object store: pyarrow's own S3 client against moto's server, an outside program.

moto can't be installed beside this project (it wants an older python-dateutil), so the variable SFT_DIVERSITY_MOTO_SERVER names it:
`python -m venv s3 && s3/bin/pip install moto flask flask-cors`, then `s3/bin/moto_server`. One that merely is on the PATH is not taken:
old versions can't finish pyarrow's uploads in parts.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import yaml

from diversity.artifact import ArtifactError, Storage
from diversity.corpus.config import CorpusConfig
from diversity.corpus.files import ReadError, content_digest, find_files
from diversity.corpus.inputs import read_corpus
from diversity.corpus.readers import read_rows
from ray_jobs import ingest
from ray_jobs.job.experiment import load_experiment
from ray_jobs.job.runtime import Context
from tests.ray_jobs.heads import free_ports, wait_for

ROWS = [{"instruction": f"ask {i}", "output": f"answer {i % 7} \u2028 ünï"} for i in range(40)]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Return host:port of an S3 server with an empty bucket `data`."""
    program = os.environ.get("SFT_DIVERSITY_MOTO_SERVER")
    if not program:
        pytest.skip("needs moto_server, named by SFT_DIVERSITY_MOTO_SERVER")
    address = f"127.0.0.1:{free_ports(1)[0]}"
    command = [program, "-H", "127.0.0.1", "-p", address.rpartition(":")[2]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: _answers(address), 30, "moto_server")
        urllib.request.urlopen(urllib.request.Request(f"http://{address}/data", method="PUT"))
        yield address
    finally:
        process.kill()
        process.wait(10)


def _answers(address: str) -> bool:
    with suppress(urllib.error.URLError, ConnectionError):
        return urllib.request.urlopen(f"http://{address}/moto-api/").status == 200
    return False


def uri(server: str, path: str) -> str:
    return f"s3://key:secret@data/{path}?scheme=http&region=us-east-1&endpoint_override={server}"


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
    assert all("secret" not in file.shown for file in files)
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
    artifact.begin().write(pa.table({"a": [1, 2]}))
    artifact.write(pa.table({"a": [9]}), "data/part-00001.parquet")
    assert not artifact.sealed
    with pytest.raises(ArtifactError, match="not sealed"):
        _ = artifact.manifest
    artifact.begin().write(pa.table({"a": [3]}))  # what a killed writer left is gone
    artifact.seal({"samples": 1})
    assert artifact.sealed and artifact.manifest["samples"] == 1
    assert artifact.read()["a"].to_pylist() == [3] and len(artifact.parts()) == 1
    with pytest.raises(ArtifactError, match="sealed and never written again"):
        artifact.begin()


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
    assert figures["inputs"][0]["input"] == "s3://data/rows/a.jsonl" and "secret" not in json.dumps(figures)
    monkeypatch.setattr(ingest, "_build", None)  # would fail if it were called
    ingest.run(context)
