"""The command line on two ranks. A rank is killed, then everything is: the run goes on, with the curve of a run that nobody touched."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from tests.training.ranks import LONG, LONG_STEPS, ROOT, TwoRanks, samples

DEADLINE_S = 240.0


def wait_for_step(folder: Path, step: int, torchrun: subprocess.Popen[bytes]) -> int:
    """Wait until a checkpoint of this step or a later one is there, and return its step."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        done = [int(path.name.removeprefix("step-")) for path in folder.glob("step-*")]
        if done and max(done) >= step:
            return max(done)
        assert torchrun.poll() is None, "the run ended before it was killed"
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint of step {step} in {DEADLINE_S:.0f} s")


def ranks_of(torchrun: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [child for child in psutil.Process(torchrun.pid).children() if "training.sft" in child.cmdline()]


def test_a_killed_rank_and_a_killed_driver_change_nothing(tiny_folder: Path, two_ranks: TwoRanks, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from tests.training.test_trackers import board

    pq.write_table(samples(24), tmp_path / "data.parquet")
    settings = [f"{key}={json.dumps(value)}" for key, value in LONG.items() if key != "world_size"]
    out = tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "training.sft"]
    command += [str(tmp_path / "data.parquet"), "--out", str(out), "--model", str(tiny_folder), "--threads", "1", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    with open(tmp_path / "log", "wb") as log:

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)

        first = start()
        wait_for_step(out / "checkpoints", 4, first)
        ranks_of(first)[1].kill()
        assert first.wait(DEADLINE_S) != 0, "torchrun ends the others"
        second = start()
        reached = wait_for_step(out / "checkpoints", 12, second)
        everything = [psutil.Process(second.pid), *psutil.Process(second.pid).children(recursive=True)]
        for process in everything:  # torchrun first, so that it does nothing about the others
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        second.wait()
        psutil.wait_procs(everything, timeout=10)
        assert 12 <= reached < LONG_STEPS and not (out / "train.parquet").exists()
        (out / "checkpoints" / ".part-00000099").mkdir(exist_ok=True)  # as a rank leaves it that dies while it writes
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    whole = two_ranks.long
    rows = pq.read_table(out / "train.parquet").to_pylist()
    assert [row["step"] for row in rows] == list(range(len(whole["rows"]))) and len(rows) > 25
    assert [row["loss"] for row in rows] == pytest.approx(whole["losses"], rel=1e-6), "equal to what fp32 resolves"
    assert rows[0]["loss"] > rows[-1]["loss"] + 0.1, "the curve must show something"
    assert not (out / "checkpoints").exists(), "they go once the model is there"
    assert json.loads(done.stdout)["steps"] == len(rows)
    assert "loss" in done.stderr and "tokens/s, MFU" in done.stderr and " s left" in done.stderr
    assert "parameters, 1.6M learn, on 2 ranks: parameters" in done.stderr and "response tokens in" in done.stderr
    assert AutoModelForCausalLM.from_pretrained(out / "hf").num_parameters() > 0
    curve = [(step, value) for step, name, value in board(out / "tensorboard") if name == "train/loss"]
    assert [step for step, _ in curve] == list(range(len(rows)))
