"""A job on a cluster whose nodes hold keys: neither these nor the token come to be anywhere else, and both doors ask for the token."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster import tiny
from tests.cluster.machine import Machine, processes
from tests.ray_jobs.heads import ROOT

KEYS = {
    "AWS_SECRET_ACCESS_KEY": "planted-secret-012345",
    "HF_TOKEN": "hf_planted012345",
    "OPENAI_API_KEY": "sk-planted012345",
}
LARGEST_MB = 4  # of a file that is looked into; no log and nothing of this storage is larger


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    started = Machine.start(variables=KEYS)
    try:
        yield started
    finally:
        started.stack.close()


TOLD = """
import ray, urllib.request
from ray._private.worker import global_worker
from ray.job_submission import JobSubmissionClient
from ray.util.state import list_actors, list_tasks, list_workers
ray.init(logging_level="ERROR", log_to_driver=False)
for node in ray.nodes():
    if node["Alive"]:
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        print(urllib.request.urlopen(address, timeout=20).read().decode())
print("=== tables")
print(JobSubmissionClient().list_jobs(), global_worker.gcs_client.get_all_job_info())
print(list_actors(detail=True, limit=1000), list_tasks(detail=True, limit=1000), list_workers(detail=True, limit=1000))
"""


def files_below(folder: Path) -> dict[str, str]:
    """Return the content of every file, by its path."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size < LARGEST_MB * 2**20]
    return {str(path): path.read_bytes().decode("utf-8", "replace") for path in files}


def test_no_secret_is_anywhere(machine: Machine, table: Callable[..., None], tmp_path: Path) -> None:
    token = (machine.head.folder / "token").read_text()
    storage, model = tmp_path / "runs", tiny.make_model(tmp_path / "model")
    experiment = tiny.experiment(storage, tiny.make_corpus(tmp_path / "corpus"), model, steps=60)
    more = [
        "resources={data_workers: 4, max_cpus: 5, driver_resource: true, shared_storage: true, wait_s: 300}",
        tiny.ALL_STAGES,
        "grid.train=[response-micro_n24_l000_s0]",
    ]
    command = [sys.executable, "-m", "ray_jobs", "submit", tiny.CONFIG, *experiment, *more]
    log = tmp_path / "log"
    with log.open("wb") as stream:
        submitter = subprocess.Popen(
            command, cwd=ROOT, env=machine.head.environment, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL
        )
    arguments = set[str]()
    try:
        while submitter.poll() is None and not tiny.checkpoints(storage):
            for session in (machine.head.session, *machine.nodes):
                arguments |= {" ".join(one.cmdline()) for one in processes(session)}
            time.sleep(0.5)
        told = machine.head.run(sys.executable, "-c", TOLD, timeout=120, RAY_ADDRESS=machine.head.address)
        assert submitter.wait(900) == 0, log.read_text()[-3000:]
    finally:
        submitter.kill()
    assert told.returncode == 0, told.stderr
    metrics, _, tables = told.stdout.partition("=== tables")
    assert "ray_sft_diversity_" in metrics and "ray_jobs.pipeline" in tables and any("TrainWorker" in line for line in arguments)
    places = {
        "arguments of processes": dict(enumerate(arguments)),
        "tables of jobs (with their runtime environments), actors, tasks and workers": {"": tables},
        "metrics of all nodes": {"": metrics},
        "what submit printed": {"": log.read_text()},
        "Ray's logs and sessions, of all nodes": {
            path: text for path, text in files_below(machine.head.folder).items() if path != str(machine.head.folder / "token")
        },
        "the storage": files_below(storage),
    }
    secrets = {"token": token, **KEYS}
    rows = [
        {
            "place": place,
            "looked into": f"{len(texts)} of {sum(map(len, texts.values())) / 1e6:.1f} MB",
            **{name: ", ".join(str(where) for where, text in texts.items() if secret in text) or "no" for name, secret in secrets.items()},
        }
        for place, texts in places.items()
    ]
    table("secrets", rows)
    assert all(row[name] == "no" for row in rows for name in secrets)


def asked(machine: Machine, path: str, token: str | None) -> int:
    """Return the status with which the dashboard answers."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(machine.head.dashboard + path, headers=headers), timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def joined(machine: Machine, mode: str, token: Path | None) -> str:
    """Return what becomes of a driver that comes with a token file, or without any."""
    program = "import ray; ray.init(logging_level='ERROR', log_to_driver=False); print(len(ray.nodes()))"
    changes = {"RAY_ADDRESS": machine.head.address, "RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN_PATH": str(token) if token else None}
    done = machine.head.run(sys.executable, "-c", program, timeout=180, HOME="/nonexistent", **changes)
    return "let in" if done.returncode == 0 else "refused" if "uthenticat" in done.stderr or "oken" in done.stderr else done.stderr[-300:]


def test_jobs_api_and_control_store_refuse_without_the_token(machine: Machine, table: Callable[..., None], tmp_path: Path) -> None:
    right, wrong = machine.head.folder / "token", tmp_path / "wrong"
    wrong.write_text("0" * 32)
    rows = [
        {
            "door": f"dashboard, {path}",
            "without a token": asked(machine, path, None),
            "a wrong one": asked(machine, path, "0" * 32),
            "the right one": asked(machine, path, right.read_text()),
        }
        for path in ("/api/jobs/", "/nodes?view=summary", "/api/v0/actors")
    ]
    drivers = {"without a token": ("disabled", None), "a wrong one": ("token", wrong), "the right one": ("token", right)}
    rows.append({"door": "control store, a driver"} | {name: joined(machine, *given) for name, given in drivers.items()})
    table("doors", rows)
    assert [row["the right one"] for row in rows] == [200, 200, 200, "let in"]
    refused = {401, 403, "refused"}
    assert all({row["without a token"], row["a wrong one"]} <= refused for row in rows), rows
