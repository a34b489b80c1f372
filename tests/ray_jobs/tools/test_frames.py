"""Where the table of record lies; tests/ray_jobs/test_sweep.py has the frames of a sweep."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from ray_jobs.job.experiment import Experiment
from ray_jobs.job.runtime import Context
from ray_jobs.tools.frames import record
from tests.storages import Objects, WatchedStorage


def test_the_table_of_record_is_where_an_object_store_has_it() -> None:
    """There a sealed folder keeps its writer's name."""
    context = Context(Experiment.model_validate({"experiment": "e", "corpus": {"paths": ["x"]}}), Path("e.yaml"))
    storage = WatchedStorage("bucket/runs?region=here", lambda operation, path: None, Objects())
    context.__dict__["storage"] = storage
    target = storage.artifact("results", "a" * 32).begin()
    target.write(pa.table({"value": [1.0]}), "results.parquet")
    context.index.add("results", None, target.seal({}))
    path, _, options = record(context).partition("?")
    assert options == "region=here" and storage.exists(path.removeprefix("bucket/runs/"))
