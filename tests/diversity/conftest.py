"""What the tests of the library share: the folder of the real tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tokenizer_folder() -> Path:
    """Return the folder with the tokenizer of SmolLM2, made out of the installed package once."""
    from ray_jobs.runtime import cache_folder
    from training.model_source import resolve_model

    return resolve_model("builtin:smollm2-135m", cache_folder(), tokenizer_only=True)
