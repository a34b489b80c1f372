"""Evaluators: functions that score a model on held-out samples, one file each, named in one dict. Importable without torch.

To add one: a file with a function `(Subject, options) -> Iterable[Score | SampleTable]` and a `Config` of its options, and an entry in
`EVALUATORS`. A comparison looks at several runs' sealed scores instead of at a model, after all are there: a file with
`(split, SampleFigures, list[SampleFigures]) -> Iterable[Score]`, and an entry that says whose scores it `reads`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator, model_validator

from diversity.config import Config, ConfigError, UserError, load, near_matches, parse
from diversity.corpus.heldout import PROMPTS, HeldoutConfig
from diversity.effects.clustered import mean_and_error as mean_and_error
from diversity.effects.scores import SAMPLE_SCORES_SCHEMA, SCORES_SCHEMA

if TYPE_CHECKING:
    from training.chat import ChatEncoder
    from training.evaluators.strata import TrainedOn


@dataclass(frozen=True)
class Evaluator:
    """All there is to say of an evaluator.

    Attributes:
        function: `module:name` of (Subject, options) -> Iterable[Score | SampleTable], or of a comparison.
        options: `module:name` of the `Config` of its options.
        reads: for a comparison: the evaluator whose scores of single samples it reads, and their metric.
    """

    function: str
    options: str
    reads: str | None = None


_HERE = "training.evaluators"
EVALUATORS = {
    "nll": Evaluator(f"{_HERE}.nll:evaluate", f"{_HERE}.nll:NllConfig"),
    "generate": Evaluator(f"{_HERE}.generate:evaluate", f"{_HERE}.generate:GenerateConfig"),
    "likelihood_win_rate": Evaluator(
        f"{_HERE}.likelihood_win_rate:compare", f"{_HERE}.likelihood_win_rate:LikelihoodWinRateConfig", reads="nll"
    ),
}


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
        if self.name not in EVALUATORS:
            raise ConfigError(f"unknown evaluator {self.name!r}{near_matches(self.name, EVALUATORS)}")
        return parse(load(EVALUATORS[self.name].options), self.options)

    @property
    def reads(self) -> str | None:
        """Return the evaluator whose scores this one compares; None where it scores a model itself."""
        return EVALUATORS[self.name].reads


class EvaluationConfig(Config):
    """What runs are scored on, and by which evaluators.

    Attributes:
        heldout: the samples to score on; null takes nothing out of the corpus.
        evaluators: names, or names with options. Only the first one's scores can be primary, so that the verdict has one basis.
    """

    heldout: HeldoutConfig | None = HeldoutConfig()
    evaluators: list[EvaluatorConfig] = Field(
        default_factory=lambda: [EvaluatorConfig(name="nll"), EvaluatorConfig(name="likelihood_win_rate")], min_length=1
    )

    @field_validator("evaluators")
    @classmethod
    def _each_once(cls, evaluators: list[EvaluatorConfig]) -> list[EvaluatorConfig]:
        names = [evaluator.name for evaluator in evaluators]
        if len(set(names)) < len(names):
            raise ValueError(f"each evaluator once, not {', '.join(names)}")
        if evaluators[0].reads:
            raise ValueError(f"{names[0]} compares the scores of others: name it after {evaluators[0].reads}")
        for evaluator in evaluators:
            if evaluator.reads and evaluator.reads not in names:
                raise ValueError(f"{evaluator.name} needs the evaluator {evaluator.reads}, too")
        return evaluators

    @property
    def scoring(self) -> list[EvaluatorConfig]:
        """Return the evaluators that score a model."""
        return [evaluator for evaluator in self.evaluators if not evaluator.reads]

    @property
    def comparisons(self) -> list[EvaluatorConfig]:
        """Return the evaluators that compare runs by their sealed scores."""
        return [evaluator for evaluator in self.evaluators if evaluator.reads]

    @property
    def by_kind_of_token(self) -> bool:
        """Return whether an evaluator looks at how often tokens occur in the corpus."""
        return any(getattr(evaluator.parsed(), "strata", False) for evaluator in self.scoring)

    @property
    def from_folder(self) -> bool:
        """Return whether an evaluator opens the saved model beside the one that is at hand."""
        return any(getattr(evaluator.parsed(), "from_folder", False) for evaluator in self.scoring)

    def identity(self) -> list[dict[str, Any]]:
        """Return what decides a run's scores, for their fingerprint; the held-out samples are its parent, and comparisons come later."""
        return [{"name": evaluator.name, "options": evaluator.parsed().model_dump(mode="json")} for evaluator in self.scoring]


@dataclass(frozen=True)
class Subject:
    """What is scored, and on what. With several ranks, every rank calls the evaluator, and all get the same scores.

    Attributes:
        model: a causal language model of transformers, on its device, in evaluation mode.
        encoder: its tokenizer and template.
        splits: held-out samples (`sample_id`, `messages`, and `group` where there are any) by split, e.g. `in` and `out`.
        prompts: prompts without a reference, with the same columns; None where there are none.
        judging: prompts whose answers are judged, with the same columns; every one of them is asked. None where there are none.
        device: where the model is.
        rank: this process's rank.
        world_size: processes that share the work.
        tokenizer: the tokenizer of transformers, for what reads texts out of tokens.
        trained_on: what the model was trained on and the corpus it comes from, for figures by kind of token; None leaves them out.
        kept: where an evaluator keeps what it has done so far, until the scores are sealed; None keeps nothing.
        folder: the model as it was saved, for engines that read it from there.
    """

    model: Any
    encoder: ChatEncoder
    splits: Mapping[str, pa.Table]
    device: Any
    rank: int = 0
    world_size: int = 1
    tokenizer: Any = None
    trained_on: TrainedOn | None = None
    kept: Kept | None = None
    prompts: pa.Table | None = None
    folder: Path | None = None
    judging: pa.Table | None = None

    @classmethod
    def of(cls, model: Any, tokenizer_folder: Path, heldout: pa.Table, device: Any, *, template: str = "auto", **more: Any) -> Subject:
        """Return the subject of a model and a table of held-out samples.

        Args:
            model: as above. With ZeRO stage 3, give all ranks.
            tokenizer_folder: the Hugging Face folder that its tokenizer comes from.
            heldout: held-out samples with the columns `sample_id`, `messages` and `split`.
            device: where the model is.
            template: the chat template of training.
            more: `rank`, `world_size`, `trained_on`, `kept`, `folder`, `judging`.

        Raises:
            UserError: there is no held-out sample to score.
        """
        from training.chat import ChatEncoder, load_tokenizer

        splits = {name: heldout.filter(pc.equal(heldout["split"], name)) for name in sorted(heldout["split"].unique().to_pylist())}
        prompts = splits.pop(PROMPTS, None)
        if not splits:
            raise UserError("there is no held-out sample to score: raise evaluation.heldout.in.fraction, or look at its rejected rows")
        tokenizer = load_tokenizer(tokenizer_folder)
        return cls(model, ChatEncoder(tokenizer, template), splits, device, tokenizer=tokenizer, prompts=prompts, **more)


class Kept(Protocol):
    """A place for tables by name, for a run that may be killed: a table is there whole or not at all."""

    def read(self, name: str) -> pa.Table | None:
        """Return the table of that name, if it is there."""

    def write(self, name: str, table: pa.Table) -> None:
        """Write it."""


@dataclass(frozen=True)
class SampleFigures:
    """Each sample's figure, `(n,)` each: what paired comparisons of runs need.

    Attributes:
        ids: of the samples.
        groups: int32; samples of one prompt group have one number.
        tokens: int32, response tokens that the figure is of.
        values: float64.
    """

    ids: Sequence[str]
    groups: np.ndarray
    tokens: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Score:
    """One figure for one model on one split.

    Attributes:
        split: e.g. `in` or `out`.
        metric: what it measures.
        value: the figure.
        se: its standard error over samples, by prompt group where groups have several; NaN where there is one group.
        n: samples.
        higher_is_better: which way is better; where neither is, which way is more.
        primary: whether the verdict may rest on it.
        samples: single figures, where they are kept.
    """

    split: str
    metric: str
    value: float
    se: float
    n: int
    higher_is_better: bool
    primary: bool = False
    samples: SampleFigures | None = field(default=None, repr=False)


@dataclass(frozen=True)
class SampleTable:
    """Rows by sample that an evaluator has beside its figures, sealed with the scores under a name; those of all splits are joined."""

    name: str
    table: pa.Table


@dataclass(frozen=True)
class Scores:
    """A model's scores.

    Attributes:
        table: `SCORES_SCHEMA`.
        samples: the figures of single samples, `SAMPLE_SCORES_SCHEMA`.
        tables: further rows by sample, by name.
    """

    table: pa.Table
    samples: pa.Table
    tables: Mapping[str, pa.Table] = field(default_factory=dict)


def evaluate(subject: Subject, config: EvaluationConfig, *, run: str) -> Scores:
    """Return a model's scores by every evaluator of the configuration.

    Args:
        subject: the model and the held-out samples. Where several ranks share the work, every rank must call this and
            torch.distributed must run.
        config: the evaluators.
        run: the name that the rows get.
    """
    was_training = subject.model.training
    subject.model.eval()
    rows: list[dict[str, Any]] = []
    singles = [SAMPLE_SCORES_SCHEMA.empty_table()]
    tables: dict[str, pa.Table] = {}
    for number, evaluator in enumerate(config.scoring):
        for score in load(EVALUATORS[evaluator.name].function)(subject, evaluator.parsed()):
            if isinstance(score, SampleTable):
                part = score.table.set_column(0, "run", pa.array([run] * len(score.table), pa.string()))
                tables[score.name] = pa.concat_tables([tables[score.name], part]) if score.name in tables else part
                continue
            name = {"run": run, "evaluator": evaluator.name, "split": score.split, "metric": score.metric}
            figures = {"value": score.value, "se": score.se, "n": score.n, "higher_is_better": score.higher_is_better}
            rows.append({**name, **figures, "primary": score.primary and number == 0})
            if score.samples is not None:
                singles.append(_sample_rows(name, score.samples))
    subject.model.train(was_training)
    return Scores(pa.Table.from_pylist(rows, schema=SCORES_SCHEMA), pa.concat_tables(singles), tables)


def group_numbers(samples: pa.Table) -> np.ndarray:
    """Return `(n,) int32`: one number for all samples of a prompt group; each sample its own where there is no column `group`."""
    column = samples["group" if "group" in samples.column_names else "sample_id"]
    return column.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int32)


def _sample_rows(name: Mapping[str, str], figures: SampleFigures) -> pa.Table:
    n = len(figures.ids)
    heads = [pa.array([value], pa.string()).take(pa.array(np.zeros(n, np.int32))) for value in name.values()]
    columns = [*heads, pa.array(figures.ids, pa.string()), *(pa.array(x) for x in (figures.groups, figures.tokens, figures.values))]
    return pa.Table.from_arrays(columns, names=SAMPLE_SCORES_SCHEMA.names).cast(SAMPLE_SCORES_SCHEMA)
