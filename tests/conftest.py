"""What the tests share: one local Ray for a session, the real tokenizer, and the real data where it is present."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # as `Context.connect` does for a Ray of its own
os.environ.setdefault("RAY_worker_niceness", "0")  # by default 15: a worker would wait until other tests leave it a core

ROOT = Path(__file__).resolve().parent.parent
REAL_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real samples that stands beside a developer's checkout; it is no part of the project."""
    if not (REAL_DATA / "corpus.parquet").exists():
        pytest.skip("needs ../shared/data/corpus.parquet, which is not part of the project")
    return REAL_DATA


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """Start one Ray of two cores for the whole session, or join that of TEST_RAY_ADDRESS, as `Context.connect` would for a stage."""
    import ray

    from ray_jobs.job.process import configure_process
    from ray_jobs.job.runtime import configure_ray_data

    configure_process()
    address = os.environ.get("TEST_RAY_ADDRESS")
    own: dict[str, Any] = {} if address else {"num_cpus": 2, "include_dashboard": False}
    ray.init(
        address=address or "local",
        **own,
        logging_level="WARNING",
        runtime_env={"worker_process_setup_hook": "ray_jobs.job.process.configure_worker"},
    )
    configure_ray_data()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tokenizer_folder() -> Path:
    """Return the folder with the tokenizer of SmolLM2, made out of the installed package once for a machine."""
    from ray_jobs.job.process import cache_folder
    from training.model_source import resolve_model

    return resolve_model("builtin:smollm2-135m", cache_folder(), tokenizer_only=True)
