"""Who is judged, against whom and by whom: answerers, baselines and controls, and the verdicts that are wanted of every judge."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from diversity.artifact import Artifact, ArtifactError, digest, fingerprint
from diversity.cell import Cell
from diversity.judging import controls
from diversity.judging.answer_sets import references
from diversity.judging.config import JudgeConfig, JudgingConfig
from diversity.judging.pairs import Design, Slot, judge_identity, slots
from diversity.judging.rubrics import Rubric
from ray_jobs.job.runtime import Context
from ray_jobs.tasks import judged

logger = logging.getLogger(__name__)

VERSION = 3


@dataclass(frozen=True)
class Answerer:
    """Someone whose answers are judged, or judged against.

    Attributes:
        name: in tables.
        answers: sealed.
        keys: of the index; several cells may share a run, and several answerers one set of answers.
        again: whether it is another seed of the baseline's runs: the A/A row.
    """

    name: str
    answers: Artifact
    keys: tuple[str, ...]
    again: bool = False

    def table(self) -> pa.Table:
        """Return the answers."""
        return self.answers.read()


@dataclass(frozen=True)
class Reference:
    """The answers that the prompt sets' own files give."""

    prompts: Artifact
    name: str = "reference"
    again: bool = False

    @property
    def answers(self) -> Artifact:
        """Return the artifact that they lie in."""
        return self.prompts

    def table(self) -> pa.Table:
        """Return the answers."""
        return references(self.prompts.read())


@dataclass(frozen=True)
class Work:
    """Verdicts of one judge on one answerer's answers, or a control's, against a baseline's.

    Attributes:
        answerer: its name.
        baseline: its name.
        verdicts: the artifact that they make.
        judge: orders and repeats.
        prompts: that count.
        answers: ANSWERS_SCHEMA.
        others: the baseline's.
    """

    answerer: str
    baseline: str
    verdicts: Artifact
    judge: JudgeConfig
    prompts: pa.Table
    answers: pa.Table
    others: pa.Table

    def slots(self, rubric: Rubric, design: Design) -> list[Slot]:
        """Return every verdict that is wanted."""
        return list(slots(self.prompts, self.answers, self.others, self.judge, rubric, design))


@dataclass(frozen=True)
class Run:
    """A run of the grid that has answered.

    Attributes:
        keys: of the index.
        cells: that share it.
        answers: its artifact.
    """

    keys: tuple[str, ...]
    cells: tuple[Cell, ...]
    answers: Artifact


@dataclass
class Contest:
    """Everyone who is judged, whom against, and by whom, with the names of what that makes.

    Attributes:
        context: of an experiment with `judging`.
        runs: of the grid, those that have answered.
    """

    context: Context
    runs: Sequence[Run]

    @cached_property
    def config(self) -> JudgingConfig:
        """Return `judging`."""
        return judged.judging(self.context)

    @cached_property
    def prompts(self) -> pa.Table:
        """Return the prompt sets."""
        return self.context.require(judged.prompts_artifact(self.context), "answer").read()

    @cached_property
    def design(self) -> Design:
        """Return orders and repeats by prompt."""
        return Design.of(self.prompts)

    @cached_property
    def answerers(self) -> list[Answerer]:
        """Return everyone with sealed answers, runs first, each once.

        Raises:
            ArtifactError: an answerer's answers aren't sealed, or there are none.
        """
        found: dict[str, Answerer] = {}
        for one in self.runs:
            artifact = self.context.require(one.answers, "answer")
            again = any(self._is_baseline_arm(cell) for cell in one.cells) and self._baseline_cells.isdisjoint(one.keys)
            found.setdefault(artifact.fingerprint, Answerer(one.keys[0], artifact, one.keys, again))
        for given in self.config.answerers:
            artifact = self.context.require(judged.answerer_answers(self.context, given), "answer")
            if (same := found.get(artifact.fingerprint)) is None:
                found[artifact.fingerprint] = Answerer(given.name, artifact, (given.name,))
            else:
                logger.info("judge: %s has the very answers of %s, under whose name they are judged", given.name, same.name)
                found[artifact.fingerprint] = replace(same, keys=(*same.keys, given.name))
        if not found:
            raise ArtifactError(f"nobody has answered yet; make answers with: {self.context.command('answer')}")
        return list(found.values())

    @cached_property
    def baselines(self) -> list[Answerer | Reference]:
        """Return whom all are compared with.

        Raises:
            ArtifactError: there is no such run with answers.
        """
        given = self.config.baseline
        if given.reference:
            return [Reference(judged.prompts_artifact(self.context))]
        if given.answerer is not None:
            return [one for one in self.answerers if given.answerer in one.keys]
        found = [one for one in self.answerers if any(key in self._baseline_cells for key in one.keys)]
        if not found:
            raise ArtifactError(
                f"no run of {given.strategy} at size {self._baseline_size} with subset seeds {given.seeds} has answered: "
                f"train it ({self.context.command('sweep')}), then {self.context.command('answer')}, or name another judging.baseline"
            )
        return list(found)

    @cached_property
    def _baseline_size(self) -> int | None:
        return self.config.baseline.size or min((cell.size for cell in self.context.experiment.cells if cell.size), default=None)

    def _is_baseline_arm(self, cell: Cell) -> bool:
        """Return whether a cell is of the strategy and size that are compared with."""
        return cell.strategy == self.config.baseline.strategy and cell.size == self._baseline_size and cell.control == "none"

    @cached_property
    def _baseline_cells(self) -> set[str]:
        """Return the index's keys of the runs that are compared with."""
        seeds = self.config.baseline.seeds
        cells = [cell for cell in self.context.experiment.trained_cells if self._is_baseline_arm(cell) and cell.subset_seed in seeds]
        return {f"{cell.name}_t{seed}" for cell in cells for seed in self.context.experiment.sft.training_seeds}

    @cached_property
    def matches(self) -> list[tuple[Answerer, Answerer | Reference]]:
        """Return (answerer, baseline) of everyone against every baseline that isn't itself."""
        own = {one.answers.fingerprint for one in self.baselines}
        found = [(one, other) for one in self.answerers for other in self.baselines if one.answers != other.answers]
        return found if len(own) > 1 else [(one, other) for one, other in found if one.answers.fingerprint not in own]

    @cached_property
    def spoilt(self) -> dict[str, pa.Table]:
        """Return the controls' answers, made from those of the first baseline."""
        pairs = self.config.calibration.pairs
        return controls.controls(self.baselines[0].table(), pairs) if pairs else {}

    def verdicts(self, judge: JudgeConfig, rubric: Rubric, answers: str, baseline: str) -> Artifact:
        """Return the artifact of a judge's verdicts on answers against a baseline's; a control is named by its name."""
        parents = [answers, baseline, judged.prompts_artifact(self.context).fingerprint]
        identity = judge_identity(judge, rubric)
        return self.context.storage.artifact("verdicts", fingerprint(stage="judge", version=VERSION, config=identity, parents=parents))

    def work(self, judge: JudgeConfig, rubric: Rubric) -> Iterator[Work]:
        """Yield all that a judge is asked for, controls first: those in both orders, so that liking a place is no merit there."""
        both = judge.model_copy(update={"orders": "both", "repeats": 1})
        for name, table in self.spoilt.items():
            one = self.baselines[0]
            kind = f"control {name}, {self.config.calibration.pairs} pairs, version {VERSION}"
            artifact = self.verdicts(both, rubric, digest([kind, one.answers.fingerprint]), one.answers.fingerprint)
            wanted = pc.is_in(self.prompts["prompt_id"], value_set=table["prompt_id"].combine_chunks())
            yield Work(name, one.name, artifact, both, self.prompts.filter(wanted), table, one.table())
        for match, other in self.matches:
            artifact = self.verdicts(judge, rubric, match.answers.fingerprint, other.answers.fingerprint)
            yield Work(match.name, other.name, artifact, judge, self.prompts, match.table(), other.table())
