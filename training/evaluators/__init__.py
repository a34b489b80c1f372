"""How a run is scored. An evaluator is a function that returns tidy score rows, in a file of its own, named in one dict."""

from __future__ import annotations

from typing import Any

from pydantic import field_validator

from diversity.config import Config
from diversity.heldout import HeldoutConfig

EVALUATORS = {"nll": "training.evaluators.nll:evaluate"}


class EvaluationConfig(Config):
    """What runs are scored on, and by which evaluators (a name, or a name with options).

    `heldout: null` takes nothing out of the corpus.
    """

    heldout: HeldoutConfig | None = HeldoutConfig()
    evaluators: list[dict[str, Any]] = [{"name": "nll"}]

    @field_validator("evaluators", mode="before")
    @classmethod
    def _named(cls, evaluators: Any) -> Any:
        return [{"name": one} if isinstance(one, str) else one for one in evaluators] if isinstance(evaluators, list) else evaluators
