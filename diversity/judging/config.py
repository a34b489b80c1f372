"""What `judging` in an experiment's configuration says: prompts, who answers them, whom answers are compared with, and who judges."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from diversity.config import Config, Seed
from diversity.judging.controls import CONTROLS
from diversity.judging.prompt_sets import PromptSetConfig
from diversity.judging.rubrics import load_rubric
from diversity.llm.budget import BudgetConfig
from diversity.llm.model import ModelConfig

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class AnswererConfig(Config):
    """Who answers beside the runs of the grid. One of `endpoint`, `local` and `files`.

    Attributes:
        name: in tables.
        endpoint: a model behind an endpoint, or one that the job serves.
        local: a folder, hub id or built-in model, answered with as runs are, by the evaluator `generate` and its options.
        files: answers that exist: AlpacaEval's `model_outputs`, Arena-Hard's `model_answer`, or rows with prompt and response.
        generator: of the files, only this generator's rows.
    """

    name: str = Field(pattern=NAME)
    endpoint: ModelConfig | None = None
    local: str | None = None
    files: list[str] | None = None
    generator: str | None = None

    @model_validator(mode="after")
    def _one(self) -> AnswererConfig:
        given = [name for name in ("endpoint", "local", "files") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"answerer {self.name}: give one of endpoint, local and files, not {' and '.join(given) or 'none'}")
        return self


class BaselineConfig(Config):
    """Whose answers every other's are compared with. One of `strategy`, `answerer` and `reference`.

    Attributes:
        strategy: runs of this strategy, e.g. `random`; a verdict is asked against each of them, and their mean counts.
        size: of their datasets; null takes the smallest of the grid.
        seeds: subset seeds of those runs. Others of the same strategy and size are the A/A rows.
        answerer: the name of an answerer.
        reference: the answers that the prompt sets' own files give.
    """

    strategy: str | None = None
    size: int | None = Field(default=None, ge=1)
    seeds: list[Seed] = Field(default=[0], min_length=1)
    answerer: str | None = None
    reference: bool = False

    @model_validator(mode="after")
    def _one(self) -> BaselineConfig:
        if sum([self.strategy is not None, self.answerer is not None, self.reference]) != 1:
            raise ValueError("baseline: give one of strategy, answerer and reference")
        return self


class JudgeConfig(ModelConfig):
    """A judge: a model, what it is told, and which verdicts are asked of it.

    Attributes:
        name: in tables; an evaluator of the results.
        rubric: one of ours, or the path of a file.
        orders: `balanced` asks each pair once, half of the prompts with the baseline first; `both` asks every pair twice.
        both_on: with `balanced`, prompts whose pairs are asked in both orders, for the position report.
        repeats: verdicts of one judge on one pair; above 1, for `repeated_on` prompts.
        repeated_on: prompts.
        max_input_chars: longer requests are not sent and counted as `too_long`; null sends all, and the endpoint may refuse.
        top_logprobs: tokens whose log-probabilities are asked for, with a rubric that reads them.
    """

    name: str = Field(pattern=NAME)
    rubric: str = "pairwise-five"
    orders: Literal["balanced", "both"] = "balanced"
    both_on: int = Field(default=200, ge=0)
    repeats: int = Field(default=1, ge=1)
    repeated_on: int = Field(default=50, ge=0)
    max_input_chars: int | None = Field(default=None, ge=1)
    top_logprobs: int = Field(default=5, ge=2, le=20)

    @model_validator(mode="after")
    def _rubric(self) -> JudgeConfig:
        load_rubric(self.rubric)
        return self


class CalibrationConfig(Config):
    """What a judge must know, on the baseline's own answers: clean ones against spoilt ones.

    Attributes:
        pairs: prompts of each kind; 0 leaves calibration out.
        least: share of clean answers, over all kinds, that must win.
    """

    pairs: int = Field(default=200, ge=0)
    least: float = Field(default=0.75, ge=0.5, le=1)


class JudgingConfig(Config):
    """Answers to prompt sets, and verdicts on them.

    Attributes:
        prompts: sets by their names. Every run of the grid answers them in `sweep`, by the evaluator `generate`.
        answerers: who answers beside the runs.
        baseline: whom all are compared with.
        judges: who compares. Several are also averaged.
        budget: of all requests of `judge`, and apart from it of all of `answer`.
        calibration: of every judge.
        primary: the judge whose win rate the verdict of the report rests on, if it passes calibration; null leaves that to NLL.
    """

    prompts: dict[str, PromptSetConfig] = Field(min_length=1)
    answerers: list[AnswererConfig] = []
    baseline: BaselineConfig = BaselineConfig(strategy="random")
    judges: list[JudgeConfig] = []
    budget: BudgetConfig = BudgetConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    primary: str | None = None

    @field_validator("prompts")
    @classmethod
    def _names(cls, prompts: dict[str, PromptSetConfig]) -> dict[str, PromptSetConfig]:
        taken = {"in", "out", "prompts", "all"}
        if wrong := sorted(taken & prompts.keys()):
            raise ValueError(f"a prompt set can't be called {wrong[0]!r}: that is a split of its own")
        return prompts

    @model_validator(mode="after")
    def _consistent(self) -> JudgingConfig:
        for what, names in (("answerer", [one.name for one in self.answerers]), ("judge", [one.name for one in self.judges])):
            if len(set(names)) < len(names):
                raise ValueError(f"each {what} has a name of its own, not {', '.join(names)}")
        if taken := [one.name for one in self.answerers if one.name in CONTROLS]:
            raise ValueError(f"an answerer can't be called {taken[0]!r}: that is a control of judges")
        named = self.baseline.answerer
        if named is not None and named not in [one.name for one in self.answerers]:
            raise ValueError(f"baseline.answerer: there is no answerer {named!r}")
        if self.primary is not None and self.primary not in [one.name for one in self.judges]:
            raise ValueError(f"primary: there is no judge {self.primary!r}")
        return self

    def prompts_identity(self) -> dict[str, Any]:
        """Return what decides the prompts beside the content of their files."""
        return {name: one.model_dump(mode="json", exclude={"paths"}) for name, one in self.prompts.items()}
