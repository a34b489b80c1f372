"""The probe of a shared storage, on nodes that are there and on one that went meanwhile."""

from __future__ import annotations

from pathlib import Path

import ray

from diversity.artifact import Storage
from ray_jobs.job.runtime import _node_sees


def test_a_node_that_went_during_the_probe_ends_nothing(ray_local: None, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("probe", b"")
    here = ray.get_runtime_context().get_node_id()
    assert _node_sees(here, storage, "probe") and not _node_sees(here, storage, "nothing")
    assert _node_sees("ab" * (len(here) // 2), storage, "nothing")
