"""An object store as the storage: away for 20 s while files are written, killed within seals, and under a sweep that is killed."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from diversity.artifact import Storage
from tests.cluster import tiny
from tests.object_stores import LASTING, SECRET, SERVERS, Server, through_an_outage, uri
from tests.ray_jobs.heads import ROOT


@pytest.mark.parametrize("name", LASTING)
def test_twenty_seconds_without_the_store_are_ridden_out(name: str, tmp_path: Path, table: Callable[..., None]) -> None:
    with Server(name, tmp_path) as server:
        outcomes = through_an_outage(server, seconds=20)
    table(f"{name} is away for 20 s", [{"filesystem": own, "outcome": outcome} for own, outcome in outcomes.items()])
    assert outcomes["ours"] == "went on"


@pytest.mark.parametrize("name", LASTING)
def test_a_store_that_is_killed_in_the_middle_of_seals_holds_whole_artifacts(name: str, tmp_path: Path, table: Callable[..., None]) -> None:
    draw, rows = random.Random(7), []
    with Server(name, tmp_path) as server:
        storage = Storage(uri(server.address, "runs"))
        for number in range(8):
            artifact = storage.artifact("corpus", f"f{number}")
            target = artifact.begin()
            moment = draw.uniform(0, 0.4)
            killer = threading.Timer(moment, lambda: server.away(1.0).join())
            killer.start()
            started = time.monotonic()
            for part in range(4):
                target.write(pa.table({"a": [part] * 1000}), f"data/part-{part:05d}.parquet")
            target.seal({"rows": 4000})
            killer.join()
            rows.append({"killed after s": moment, "sealed after s": time.monotonic() - started, "rows": len(artifact.read())})
            assert rows[-1]["rows"] == 4000 and artifact.manifest["rows"] == 4000
    table(f"{name} is killed, and back after 1 s", rows)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    return tiny.make_corpus(folder / "corpus"), tiny.make_model(folder / "model")


@pytest.fixture(scope="module")
def in_a_folder(inputs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("folder") / "runs"
    code, said, _ = pipeline(storage, inputs, storage.parent / "log")
    assert code == 0, said[-3000:]
    return storage


def pipeline(storage: Path | str, inputs: tuple[Path, Path], log: Path, kill: bool = False) -> tuple[int, str, float]:
    """Run the pipeline on a Ray of its own; killed at the second checkpoint, if so. Return exit code, what it said, and the seconds."""
    more = ["grid.train=[response-micro_n24_l000_s0]", "sft.checkpoint_every=4", "resources={num_cpus: 4}", "evaluation.heldout.out=null"]
    command = [sys.executable, "-m", "ray_jobs.pipeline", tiny.CONFIG, *tiny.experiment(storage, *inputs, steps=32), tiny.ALL_STAGES, *more]
    # Keys in the environment, where they belong; Ray's own writers and the ranks find them there too.
    keys = {"AWS_ACCESS_KEY_ID": SECRET, "AWS_SECRET_ACCESS_KEY": SECRET, "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    with log.open("ab") as stream:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **keys}, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL)
        try:
            while kill and process.poll() is None:
                if len(tiny.checkpoints(storage)) > 1:  # so that Ray Train has taken note of one
                    process.kill()
                time.sleep(0.5)
            code = process.wait(900)
        finally:
            process.kill()
    return code, log.read_text(), time.monotonic() - began


@pytest.mark.parametrize("name", SERVERS)
def test_a_killed_sweep_goes_on_from_its_checkpoints_in_the_store(
    name: str, inputs: tuple[Path, Path], in_a_folder: Path, tmp_path: Path, table: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Train and Tune write there through our filesystem, and read again what a driver that was killed has left."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", SECRET)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with Server(name, tmp_path) as server:
        storage = re.sub("//.*@", "//", uri(server.address, "runs"))
        first, said, seconds = pipeline(storage, inputs, tmp_path / "log", kill=True)
        assert first == -9, said[-3000:]
        found = tiny.checkpoints(storage)
        code, said, more = pipeline(storage, inputs, tmp_path / "log")
        assert code == 0, said[-3000:]
        data, losses = tiny.data_hash(storage), tiny.losses(storage)
        left = tiny.checkpoints(storage)
    row = {"store": name, "killed after, s": seconds, "checkpoints then": len(found), "again, s": more}
    equal = {True: "equal", False: "DIFFERENT"}
    same = {"data": equal[data == tiny.data_hash(in_a_folder)], "losses": equal[losses == tiny.losses(in_a_folder)]}
    table("a sweep in an object store, its driver killed at the second checkpoint; compared with one in a folder", [row | same])
    assert found and not left and set(same.values()) == {"equal"}
    assert "going on in" in said and re.search(r"going on from its checkpoint, after \d+ steps", said), "Tune and Train found their own"
