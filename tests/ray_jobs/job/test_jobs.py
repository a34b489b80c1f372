"""Stages as Ray jobs, as docs/cluster.md says: submitted to a head on loopback that asks for a token."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from diversity.artifact import Storage
from ray_jobs.job.index import Index
from tests.cluster.scaling import LISTS, MORE_LISTS
from tests.ray_jobs.heads import RAY, ROOT, Head, running_head

CONFIG = "ray_jobs/configs/demo.yaml"  # relative: it travels with the working folder
SMALL = [
    "experiment=small",
    "profile.typings=[response-micro@word]",  # words need no tokenizer, and one typing is enough for the path
    "profile.band={low: 2, high: 200, scaled: false}",
    "grid={strategies: [response-micro@word], sizes: [20], levels: 2}",
    "stages=[ingest, heldout, profile_corpus]",
]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with running_head(["--num-cpus", "2"]) as started:
        yield started


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of 200 samples whose words differ in how many samples have them."""
    path = tmp_path_factory.mktemp("corpus") / "data.jsonl"
    rows = [
        {"instruction": f"Which numbers divide {i}?", "response": " ".join(f"w{d}" for d in range(1, i + 1) if i % d == 0)}
        for i in range(1, 201)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def submit(head: Head, *arguments: object, **changes: str | None) -> CompletedProcess[str]:
    """Submit the pipeline and wait for its end. Until the head's agent is there, a submit is refused: then once more."""
    entrypoint = ["python", "-m", "ray_jobs.pipeline", CONFIG, *SMALL, *map(str, arguments)]
    options = ["--working-dir", ".", "--runtime-env", "ray_jobs/configs/runtime_env.yaml", "--log-color", "false"]
    deadline = time.monotonic() + 60
    while True:
        done = head.run(RAY, "job", "submit", *options, "--", *entrypoint, timeout=300, **changes)
        if "No available agent" not in done.stdout + done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(1)


def log(done: CompletedProcess[str]) -> str:
    return f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"


def contents(folder: Path) -> dict[str, int]:
    """Return every file with the time of its last change."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_job_seals_its_stages_and_the_same_job_again_changes_nothing(head: Head, corpus: Path, tmp_path: Path) -> None:
    arguments = [f"corpus.paths=[{corpus}]", f"storage={tmp_path}/runs"]
    done = submit(head, *arguments)
    assert done.returncode == 0, log(done)
    storage = Storage(f"{tmp_path}/runs")
    entries = Index(storage, "small").read()
    assert {"corpus", "heldout", "profile"} <= set(entries)
    paths = [path for entry in entries.values() for path in (entry.values() if isinstance(entry, dict) else [entry])]
    assert all(storage.at(path).sealed for path in paths)
    profiled = storage.at(entries["profile"]["response-micro@word"]).read(columns=["sample_id"]).num_rows
    assert profiled == storage.at(entries["corpus"]).read(columns=["sample_id"]).num_rows
    assert profiled + storage.at(entries["heldout"]).read(columns=["sample_id"]).num_rows == 200

    before = contents(tmp_path / "runs")
    again = submit(head, *arguments)
    assert again.returncode == 0, log(again)
    after = contents(tmp_path / "runs")
    artifacts = {name for name in before if not name.startswith("experiments/")}
    assert {name for name in after if not name.startswith("experiments/")} == artifacts
    assert all(after[name] == before[name] for name in artifacts)


def test_a_job_whose_work_fails_fails(head: Head, tmp_path: Path) -> None:
    done = submit(head, f"corpus.paths=[{tmp_path}/nothing.jsonl]", f"storage={tmp_path}/runs")
    assert done.returncode != 0, log(done)
    assert f"{tmp_path}/nothing.jsonl" in done.stdout
    assert "pipeline: " in done.stdout and "Traceback" not in done.stdout, log(done)


def test_a_relative_storage_is_refused_with_its_absolute_form(head: Head, corpus: Path) -> None:
    done = submit(head, f"corpus.paths=[{corpus}]", "storage=runs")
    assert done.returncode != 0, log(done)
    assert "storage=$PWD/runs" in done.stdout and "Traceback" not in done.stdout, log(done)


def submit_tool(head: Head, *arguments: object, **changes: str | None) -> CompletedProcess[str]:
    return head.run(sys.executable, "-m", "ray_jobs", "submit", *map(str, arguments), timeout=300, **changes)


RECORDER = """
import json, pathlib
from ray.autoscaler.node_provider import NodeProvider
NOTE = pathlib.Path(__file__).with_name("ended.json")
TAGS = {"ray-node-type": "head", "ray-user-node-type": "head", "ray-node-name": "h", "ray-node-status": "up-to-date"}

class Recorder(NodeProvider):
    def non_terminated_nodes(self, tag_filters):
        wanted = all(TAGS.get(key) == value for key, value in tag_filters.items())
        return [] if NOTE.exists() or not wanted else ["head-1"]
    def is_running(self, node_id): return not NOTE.exists()
    def is_terminated(self, node_id): return NOTE.exists()
    def node_tags(self, node_id): return TAGS
    def external_ip(self, node_id): return "127.0.0.1"
    internal_ip = external_ip
    def terminate_node(self, node_id): NOTE.write_text(json.dumps(node_id))
"""


@pytest.fixture
def cluster_file(tmp_path: Path) -> Path:
    """Return a cluster file whose provider, found beside it, writes down that its head was ended; ssh is a stand-in."""
    written = {
        **{name: [] for name in (*LISTS, *MORE_LISTS)},
        "cluster_name": "recorded",
        "max_workers": 0,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 1,
        "provider": {"type": "external", "module": "recorder.Recorder"},
        "available_node_types": {"head": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0}},
        "head_node_type": "head",
        "docker": {},
        "auth": {"ssh_user": "nobody"},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
    }
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "recorder.py").write_text(RECORDER)
    (tmp_path / "cluster.yaml").write_text(json.dumps(written))
    return tmp_path / "cluster.yaml"


def test_submit_takes_code_and_resolved_configuration_along_follows_and_ends_the_cluster(
    head: Head, corpus: Path, tmp_path: Path, cluster_file: Path
) -> None:
    """The config lies outside the repository, its paths are relative to where the person stands, and the cluster goes in the end."""
    relative = os.path.relpath(corpus, ROOT)
    (tmp_path / "mine.yaml").write_text((ROOT / CONFIG).read_text("utf-8"))
    done = submit_tool(
        head,
        tmp_path / "mine.yaml",
        *SMALL,
        *(f"corpus.paths=[{relative}]", f"storage={tmp_path}/runs"),
        *("--name", "taken-along", "--cluster", cluster_file, "--down", "--address", head.dashboard),
        PATH=f"{ROOT}/tests/cluster/standins:{head.environment['PATH']}",
        STANDIN_LOG=str(tmp_path / "ssh.log"),
        RAY_API_SERVER_ADDRESS=None,
    )
    assert done.returncode == 0, log(done)
    assert "profile_corpus: done in" in done.stdout, "the job's log is followed"
    entries = Index(Storage(f"{tmp_path}/runs"), "small").read()
    assert {"corpus", "heldout", "profile"} <= set(entries)
    assert json.loads((tmp_path / "cluster" / "ended.json").read_text()) == "head-1"


FOLLOW = """
import sys
from ray_jobs.tools.submit import connect, follow
client = connect(sys.argv[1], 60)
for entrypoint in sys.argv[2:]:
    told = []
    print(follow(client, client.submit_job(entrypoint=entrypoint), told.append), "told" in "".join(told))
"""


def test_submits_exit_code_is_that_of_the_work(head: Head) -> None:
    done = head.run(sys.executable, "-c", FOLLOW, head.dashboard, "exit 3", "kill -9 $$", "echo told; exit 0", timeout=200)
    assert done.stdout.split("\n")[:3] == ["3 False", "137 False", "0 True"], log(done)


def test_without_the_token_nothing_is_submitted(head: Head, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("0" * 32)
    for changes, says in (
        ({"RAY_AUTH_TOKEN_PATH": str(wrong)}, "Invalid authentication token"),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN_PATH": None}, "Missing authentication token"),
        ({"RAY_AUTH_TOKEN_PATH": None, "HOME": str(tmp_path)}, "couldn't find an authentication token"),
    ):
        done = submit(head, f"storage={tmp_path}/runs", **changes)
        assert done.returncode != 0 and says in done.stderr, log(done)
        assert "submitted successfully" not in done.stdout
    assert not (tmp_path / "runs").exists()
