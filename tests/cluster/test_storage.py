"""An object store that is away: for 20 s while files are written, and killed in the middle of seals."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from diversity.artifact import Storage
from tests.object_stores import Server, through_an_outage, uri


def test_twenty_seconds_without_the_store_are_ridden_out(tmp_path: Path, table: Callable[..., None]) -> None:
    with Server("s3rver", tmp_path) as server:
        outcomes = through_an_outage(server, seconds=20)
    table("the store is away for 20 s", [{"filesystem": name, "outcome": outcome} for name, outcome in outcomes.items()])
    assert outcomes["ours"] == "went on"


def test_a_store_that_is_killed_in_the_middle_of_seals_holds_whole_artifacts(tmp_path: Path, table: Callable[..., None]) -> None:
    draw, rows = random.Random(7), []
    with Server("s3rver", tmp_path) as server:
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
    table("the store is killed, and back after 1 s", rows)
