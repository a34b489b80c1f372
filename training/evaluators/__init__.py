"""Evaluators: functions that score a trained model on held-out samples, in a registry by name. Importable without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from diversity.config import Config, lookup, parse
from diversity.heldout import HeldoutConfig

if TYPE_CHECKING:
    from training.chat import Chat
    from training.sft import World

# name -> (function(Subject, options) -> list[Score], its options' class)
EVALUATORS = {"nll": "training.evaluators.nll:evaluate"}
OPTIONS = {"nll": "training.evaluators.nll:NllOptions"}

SCORES_SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("evaluator", pa.string()),
        ("split", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("se", pa.float64()),
        ("n", pa.int64()),
        ("higher_is_better", pa.bool_()),
        ("primary", pa.bool_()),
    ]
)
SAMPLE_SCORES_SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("evaluator", pa.string()),
        ("split", pa.string()),
        ("metric", pa.string()),
        ("sample_id", pa.string()),
        ("value", pa.float64()),
    ]
)


class EvaluatorConfig(Config):
    """One evaluator: a name, or {name, and its options}."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_name_or_flat(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, Mapping) and "name" in value and "options" not in value:
            return {"name": value["name"], "options": {key: option for key, option in value.items() if key != "name"}}
        return value

    @model_validator(mode="after")
    def _known(self) -> EvaluatorConfig:
        self.parsed_options()
        return self

    def parsed_options(self) -> Any:
        """Return the evaluator's own options, validated.

        Raises:
            ConfigError: no such evaluator, or no such option.
        """
        return parse(lookup(OPTIONS, self.name, "evaluator"), self.options)


class EvaluationConfig(Config):
    """What a run's model is scored on, and how. The first evaluator's score on `out` is the primary one."""

    heldout: HeldoutConfig | None = HeldoutConfig()
    evaluators: list[EvaluatorConfig] = [EvaluatorConfig(name="nll")]

    @field_validator("evaluators")
    @classmethod
    def _distinct(cls, evaluators: list[EvaluatorConfig]) -> list[EvaluatorConfig]:
        names = [evaluator.name for evaluator in evaluators]
        if len(set(names)) != len(names):
            raise ValueError(f"an evaluator is named twice: {', '.join(names)}")
        return evaluators

    def identity(self) -> list[dict[str, Any]]:
        """Return what a scores fingerprint holds of this; the held-out samples are its parent."""
        return [{"name": one.name, "options": one.parsed_options().model_dump(mode="json")} for one in self.evaluators]


@dataclass(frozen=True)
class Subject:
    """What is evaluated, and on what.

    Attributes:
        model: called as a transformers causal model; every rank calls it equally often.
        chat: its tokenizer and template.
        world: this process's place.
        splits: held-out samples (sample_id, messages) by split, `in` or `out`.
        max_length: tokens of a sample at most.
        capacity: tokens of a row at most.
    """

    model: Any
    chat: Chat
    world: World
    splits: Mapping[str, pa.Table]
    max_length: int
    capacity: int


@dataclass(frozen=True)
class Score:
    """One figure for one model on one split.

    Attributes:
        split: `in` or `out`.
        metric: what it measures.
        value: the figure.
        se: its standard error over samples; not a number where there is one sample.
        n: samples.
        higher_is_better: which way is better.
        primary: whether the verdict rests on it.
        samples: the figure of each sample, by id: what paired comparisons of runs need.
    """

    split: str
    metric: str
    value: float
    se: float
    n: int
    higher_is_better: bool
    primary: bool = False
    samples: Mapping[str, float] = field(default_factory=dict, repr=False)


def evaluate(subject: Subject, config: EvaluationConfig, run: str) -> tuple[pa.Table, pa.Table]:
    """Return a model's scores (`SCORES_SCHEMA`) and the figures of single samples (`SAMPLE_SCORES_SCHEMA`), equal on all ranks.

    Only the first evaluator's scores can be primary, so that the verdict has one basis.
    """
    rows: list[dict[str, Any]] = []
    singles: list[dict[str, Any]] = []
    for number, evaluator in enumerate(config.evaluators):
        for score in lookup(EVALUATORS, evaluator.name, "evaluator")(subject, evaluator.parsed_options()):
            names = {"run": run, "evaluator": evaluator.name, "split": score.split, "metric": score.metric}
            figures = {"value": score.value, "se": score.se, "n": score.n, "higher_is_better": score.higher_is_better}
            rows.append({**names, **figures, "primary": score.primary and number == 0})
            singles += [{**names, "sample_id": sample_id, "value": value} for sample_id, value in score.samples.items()]
    return pa.Table.from_pylist(rows, schema=SCORES_SCHEMA), pa.Table.from_pylist(singles, schema=SAMPLE_SCORES_SCHEMA)
