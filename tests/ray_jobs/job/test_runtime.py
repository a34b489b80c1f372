"""The probe of a shared storage, on nodes that are there and on one that went meanwhile; and a Ray that does not come."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import ray
from ray._private import node

from diversity.artifact import Storage
from ray_jobs.job.experiment import Experiment
from ray_jobs.job.runtime import Context, ResourcesNotAvailable, _node_sees


def test_a_node_that_went_during_the_probe_ends_nothing(ray_local: None, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("probe", b"")
    here = ray.get_runtime_context().get_node_id()
    assert _node_sees(here, storage, "probe") and not _node_sees(here, storage, "nothing")
    assert _node_sees("ab" * (len(here) // 2), storage, "nothing")


def test_a_ray_that_does_not_start_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that is busy. The words are those that Ray itself raises, in a class that says nothing."""
    words = "The current node timed out during startup."
    assert words in re.sub(r'"\s+"', "", inspect.getsource(node))

    def late(**options: object) -> None:
        raise Exception(words)

    monkeypatch.setattr(ray, "init", late)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    experiment = Experiment.model_validate({"experiment": "e", "storage": str(tmp_path), "corpus": {"paths": ["builtin:python-docs"]}})
    with pytest.raises(ResourcesNotAvailable, match="Ray did not start within 30 s") as told:
        Context(experiment, tmp_path / "e.yaml").connect()
    assert told.value.exit_code == 3
