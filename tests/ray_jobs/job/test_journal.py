"""A job's heartbeat, log and failure lie in the storage, and `status` tells them on any machine."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from diversity.artifact import Storage
from diversity.config import UserError
from ray_jobs import ingest
from ray_jobs.job import journal
from ray_jobs.job.runtime import Context, main
from ray_jobs.tools.status import main as status

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Return the configuration of an experiment `e`, whose stage the tests replace."""
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "response": "b"}\n')
    path = tmp_path / "e.yaml"
    path.write_text(f"experiment: e\nstorage: {tmp_path}/runs\nstages: [ingest]\ncorpus: {{paths: ['{tmp_path}/rows.jsonl']}}\n")
    return path


def run(config: Path, monkeypatch: pytest.MonkeyPatch, stage: Callable[[Context], None]) -> int:
    monkeypatch.setattr(ingest, "run", stage)
    return main("ingest", [str(config)])


def logs(config: Path) -> str:
    return "".join(path.read_text() for path in sorted((config.parent / "runs/experiments/e/logs").glob("*.log")))


def test_a_running_job_beats_and_its_log_grows_in_the_storage(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "BEAT_S", 0.02)
    beats = []

    def stage(context: Context) -> None:
        logging.getLogger("ray_jobs.here").info("reading s3://KEY:hidden@bucket/rows")
        print("printed")
        stop = time.monotonic() + 20
        while not ("printed" in logs(config) and "bucket/rows" in logs(config)) and time.monotonic() < stop:
            time.sleep(0.02)
        (told,) = journal.jobs(context.storage, "e")
        beats.append(told)

    assert run(config, monkeypatch, stage) == 0
    (told,) = beats
    assert told.state == "running" and told.facts["stage"] == "ingest" and told.facts["pid"] == os.getpid()
    assert "printed" in logs(config) and "s3://***@bucket/rows" in logs(config) and "hidden" not in logs(config)
    assert "ingest: done in" in logs(config)
    assert journal.jobs(Storage(str(config.parent / "runs")), "e") == []


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (UserError("no such column"), 1, "no such column"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (SystemExit(1), 143, "ended from outside"),  # as SIGTERM's comes out of Ray's core
    ],
)
def test_a_failure_is_told_until_the_stage_ends_well(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, told: str
) -> None:
    def stage(context: Context) -> None:
        if isinstance(error, SystemExit):
            with suppress(SystemExit):
                signal.raise_signal(signal.SIGTERM)
        raise error

    assert run(config, monkeypatch, stage) == code
    capsys.readouterr()
    assert status([str(config)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "failed:" in line]
    assert "ingest on" in line and told in line
    assert status([str(config.parent / "runs")]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert dict(zip(header.split(), row.split(), strict=True))["failed"] == "1"
    assert told in logs(config) or "SystemExit" in logs(config) or "KeyboardInterrupt" in logs(config)
    assert run(config, monkeypatch, lambda context: None) == 0
    capsys.readouterr()
    status([str(config)])
    assert "failed:" not in capsys.readouterr().out


def test_a_fault_of_ours_keeps_its_traceback_in_the_log(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stage(context: Context) -> None:
        raise ZeroDivisionError("by zero")

    with pytest.raises(ZeroDivisionError):
        run(config, monkeypatch, stage)
    assert "Traceback" in logs(config) and "test_journal.py" in logs(config)


def test_a_job_without_a_sign_of_life_is_silent(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = Storage(str(config.parent / "runs"))
    facts = {"job": "j", "stage": "sweep", "host": "another-machine", "pid": 1, "started": "2026-01-01T00:00:00+00:00", "command": "c"}
    for job, age in (("j", 5.0), ("k", 3600.0)):
        beat = (datetime.now(UTC) - timedelta(seconds=age)).isoformat()
        told = json.dumps({**facts, "job": job, "beat": beat}).encode()
        storage.write_bytes(f"experiments/e/jobs/{job}/heartbeat.json", told)
    assert [told.state for told in journal.jobs(storage, "e")] == ["running", "silent"]
    status([str(config)])
    out = capsys.readouterr().out
    assert "running: sweep on another-machine" in out and "last sign of life 60 min ago: it was killed, or its machine is gone" in out


def test_only_a_process_that_would_be_seen_is_missed(config: Path) -> None:
    """Containers of one machine may share its name, and see none of each other's processes."""
    storage = Storage(str(config.parent / "runs"))
    ended = subprocess.Popen(["true"])
    ended.wait()
    with journal.Journal(storage, "e", "sweep", "command", lambda error: None) as job:
        place = f"experiments/e/jobs/{job.job}/heartbeat.json"
        facts = json.loads(storage.read_bytes(place))
        states = []
        for changes in ({}, {"pid": ended.pid}, *({"pid": ended.pid, name: "another"} for name in ("boot", "processes"))):
            storage.write_bytes(place, json.dumps({**facts, **changes}).encode())
            states += [told.state for told in journal.jobs(storage, "e")]
    assert states == ["running", "silent", "running", "running"]


def test_two_jobs_at_the_same_runs_keep_their_folders_apart(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "BEAT_S", 0.05)
    monkeypatch.setattr(journal, "SILENT_S", 1.0)
    storage = Storage(str(config.parent / "runs"))

    def new(experiment: str) -> journal.Journal:
        return journal.Journal(storage, experiment, "sweep", "command", lambda error: None)

    with new("e") as first:
        assert first.hold(["a", "b"]) == ""
        with new("another") as second, new("e") as third:
            apart = second.hold(["b", "c"])
            assert apart and apart == second.job.rpartition("-")[2]
            assert third.hold(["d"]) == "", "it shares nothing with the others"
    facts = {"job": "killed", "stage": "sweep", "host": "another-machine", "pid": 1, "started": "x", "command": "c", "holds": ["a"]}
    beat = datetime.now(UTC).isoformat()
    storage.write_bytes("experiments/e/jobs/killed/heartbeat.json", json.dumps({**facts, "beat": beat}).encode())
    with new("e") as fourth:
        assert fourth.hold(["a"]) == "", "no beat came: what the killed one began goes on under its name"


def test_runs_that_failed_are_named(config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from ray_jobs.tasks.trials import SweepError

    def stage(context: Context) -> None:
        error = SweepError("7 of 9 runs failed; the first: the loss is no number")
        error.runs = {f"random_n{n}_s0_t0": "the loss is no number" for n in range(7)}
        raise error

    assert run(config, monkeypatch, stage) == 1
    capsys.readouterr()
    status([str(config)])
    out = capsys.readouterr().out
    assert "random_n0_s0_t0: the loss is no number" in out and "and 2 more" in out


def test_a_storage_that_is_away_costs_lines_and_not_the_job(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "BEAT_S", 0.01)
    whole = Storage.write_bytes

    def away(files: Storage, path: str, content: bytes) -> None:
        raise OSError("away")

    def stage(context: Context) -> None:
        monkeypatch.setattr(Storage, "write_bytes", away)
        print("while it is away")
        time.sleep(0.1)
        monkeypatch.setattr(Storage, "write_bytes", whole)

    assert run(config, monkeypatch, stage) == 0
    assert "while it is away" in logs(config)


def test_a_long_log_goes_on_in_further_files(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "SEGMENT", 1000)

    def stage(context: Context) -> None:
        for number in range(100):
            print(f"line {number:03d} " + "x" * 50)

    assert run(config, monkeypatch, stage) == 0
    files = sorted((config.parent / "runs/experiments/e/logs").glob("*.log"))
    assert len(files) > 5 and all(path.stat().st_size < 2000 for path in files)
    assert all(f"line {number:03d}" in logs(config) for number in range(100))


def test_sigterm_is_told_and_a_kill_is_seen(config: Path) -> None:
    program = "import sys, time; from ray_jobs import ingest; from ray_jobs.job.runtime import main\n"
    program += "def run(context): print('runs', flush=True); time.sleep(60)\n"
    program += f"ingest.run = run\nsys.exit(main('ingest', [{str(config)!r}]))"
    storage = Storage(str(config.parent / "runs"))
    states = []
    for sent, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)):
        job = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert job.stdout is not None and job.stdout.readline() == "runs\n"
        job.send_signal(sent)
        _, errors = job.communicate(timeout=60)
        assert job.returncode == code
        states.append([told.state for told in journal.jobs(storage, "e")])
        if sent == signal.SIGTERM:
            assert "ingest: ended by SIGTERM; nothing is sealed yet, and the same command goes on" in errors
    assert states == [["failed"], ["failed", "silent"]]
