"""Evaluators: functions that score a model on held-out samples, one file each, named in one dict. Importable without torch.

To add one: a file with a function `(Subject, options) -> Iterable[Score]` and a `Config` of its options, and a line in each of
`EVALUATORS` and `OPTIONS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator, model_validator

from diversity.config import Config, UserError, lookup, parse
from diversity.heldout import HeldoutConfig

if TYPE_CHECKING:
    from training.chat import ChatEncoder

EVALUATORS = {"nll": "training.evaluators.nll:evaluate"}
OPTIONS = {"nll": "training.evaluators.nll:NllConfig"}

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
    """One evaluator, in YAML its name or `{name, and its options}`.

    Attributes:
        name: one of `EVALUATORS`.
        options: what its own options class takes; checked when the configuration is read.
    """

    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _name_or_flat(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, Mapping) and "options" not in value:
            return {"options": {key: option for key, option in value.items() if key != "name"}} | {
                k: value[k] for k in ("name",) if k in value
            }
        return value

    @model_validator(mode="after")
    def _known(self) -> EvaluatorConfig:
        self.parsed()
        return self

    def parsed(self) -> Any:
        """Return the evaluator's options as its own class has them.

        Raises:
            ConfigError: no such evaluator, or an option that it does not have.
        """
        return parse(lookup(OPTIONS, self.name, "evaluator"), self.options)


class EvaluationConfig(Config):
    """What runs are scored on, and by which evaluators.

    Attributes:
        heldout: the samples to score on; null takes nothing out of the corpus.
        evaluators: names, or names with options. Only the first one's scores can be primary, so that the verdict has one basis.
    """

    heldout: HeldoutConfig | None = HeldoutConfig()
    evaluators: list[EvaluatorConfig] = Field(default_factory=lambda: [EvaluatorConfig(name="nll")], min_length=1)

    @field_validator("evaluators")
    @classmethod
    def _each_once(cls, evaluators: list[EvaluatorConfig]) -> list[EvaluatorConfig]:
        names = [evaluator.name for evaluator in evaluators]
        if len(set(names)) < len(names):
            raise ValueError(f"each evaluator once, not {', '.join(names)}")
        return evaluators

    def identity(self) -> list[dict[str, Any]]:
        """Return what decides the scores, for their fingerprint; the held-out samples are its parent."""
        return [{"name": evaluator.name, "options": evaluator.parsed().model_dump(mode="json")} for evaluator in self.evaluators]


@dataclass(frozen=True)
class Subject:
    """What is scored, and on what. With several ranks, every rank calls the evaluator, and all get the same scores.

    Attributes:
        model: a causal language model of transformers, on its device, in evaluation mode.
        encoder: its tokenizer and template.
        splits: held-out samples (`sample_id`, `messages`) by split, `in` or `out`.
        device: where the model is.
        rank: this process's rank.
        world_size: processes that share the work.
    """

    model: Any
    encoder: ChatEncoder
    splits: Mapping[str, pa.Table]
    device: Any
    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True)
class Score:
    """One figure for one model on one split.

    Attributes:
        split: `in` or `out`.
        metric: what it measures.
        value: the figure.
        se: its standard error over samples; NaN where there is one sample.
        n: samples.
        higher_is_better: which way is better.
        primary: whether the verdict may rest on it.
        samples: each sample's figure by its id: what paired comparisons of runs need.
    """

    split: str
    metric: str
    value: float
    se: float
    n: int
    higher_is_better: bool
    primary: bool = False
    samples: Mapping[str, float] = field(default_factory=dict, repr=False)


def evaluate(
    model: Any,
    tokenizer_folder: Path,
    heldout: pa.Table,
    config: EvaluationConfig,
    device: Any,
    *,
    run: str,
    template: str = "auto",
    rank: int = 0,
    world_size: int = 1,
) -> pa.Table:
    """Return a model's scores as a table of `SCORES_SCHEMA`; `evaluate_samples` gives every sample's figure too."""
    return evaluate_samples(model, tokenizer_folder, heldout, config, device, run=run, template=template, rank=rank, world_size=world_size)[
        0
    ]


def evaluate_samples(
    model: Any,
    tokenizer_folder: Path,
    heldout: pa.Table,
    config: EvaluationConfig,
    device: Any,
    *,
    run: str,
    template: str = "auto",
    rank: int = 0,
    world_size: int = 1,
) -> tuple[pa.Table, pa.Table]:
    """Return a model's scores (`SCORES_SCHEMA`) and the figures of single samples (`SAMPLE_SCORES_SCHEMA`).

    Args:
        model: a causal language model of transformers, on the device. With ZeRO stage 3, give all ranks.
        tokenizer_folder: the Hugging Face folder that its tokenizer comes from.
        heldout: held-out samples with the columns `sample_id`, `messages` and `split`.
        config: the evaluators.
        device: where the model is.
        run: the name that the rows get.
        template: the chat template of training.
        rank: this process's rank, where several share the work. Then every rank must call this, torch.distributed must run, and all
            ranks get the same scores.
        world_size: processes that share the work.

    Raises:
        UserError: there is no held-out sample to score.
    """
    from training.chat import ChatEncoder, load_tokenizer

    splits = {name: heldout.filter(pc.equal(heldout["split"], name)) for name in sorted(heldout["split"].unique().to_pylist())}
    if not splits:
        raise UserError("there is no held-out sample to score: raise evaluation.heldout.in.fraction, or look at its rejected rows")
    encoder = ChatEncoder(load_tokenizer(tokenizer_folder), template)
    subject = Subject(model, encoder, splits, device, rank, world_size)
    was_training = model.training
    model.eval()
    rows: list[dict[str, Any]] = []
    singles: list[dict[str, Any]] = []
    for number, evaluator in enumerate(config.evaluators):
        for score in lookup(EVALUATORS, evaluator.name, "evaluator")(subject, evaluator.parsed()):
            name = {"run": run, "evaluator": evaluator.name, "split": score.split, "metric": score.metric}
            figures = {"value": score.value, "se": score.se, "n": score.n, "higher_is_better": score.higher_is_better}
            rows.append({**name, **figures, "primary": score.primary and number == 0})
            singles += [{**name, "sample_id": sample, "value": value} for sample, value in score.samples.items()]
    model.train(was_training)
    return pa.Table.from_pylist(rows, schema=SCORES_SCHEMA), pa.Table.from_pylist(singles, schema=SAMPLE_SCORES_SCHEMA)
