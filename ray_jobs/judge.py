"""Verdicts on answers against a baseline's, and what they come to: `python -m ray_jobs.judge CONFIG.yaml [key=value …] [--dry-run]`.

`--dry-run` says what would be paid. Verdicts of one answerer, one baseline and one judge are one artifact, so that a job which is killed,
or whose budget ends (exit code 3), goes on with the next; inside one, every answer of the judge is kept the moment it is there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from diversity.artifact import Artifact, ArtifactError, digest, fingerprint
from diversity.judging import agreement, controls
from diversity.judging.answer_sets import references
from diversity.judging.config import JudgeConfig, JudgingConfig
from diversity.judging.pairs import Design, Slot, judge_identity, slots, verdict_table
from diversity.judging.planning import Cost
from diversity.judging.rubrics import Rubric, load_rubric
from diversity.judging.summary import JURY, JudgeReport, estimates, judge_report, scores
from diversity.judging.verdicts import outcomes
from diversity.llm.answers import Answers
from diversity.llm.asking import Asker
from ray_jobs import answer, sweep
from ray_jobs.job.runtime import Context, main
from ray_jobs.report import judging as page
from ray_jobs.tasks import judged
from ray_jobs.tasks.serving import reached

logger = logging.getLogger(__name__)

VERSION = 1


@dataclass(frozen=True)
class Answerer:
    """Someone whose answers are judged, or judged against.

    Attributes:
        name: in tables.
        answers: sealed.
        keys: of the index; several cells may share a run.
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


@dataclass
class Judging:
    """Everyone who is judged, whom against, and by whom, with the names of what that makes."""

    context: Context

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
        baseline = self._baseline_cells
        if runs := answer.run_answers(self.context):
            for one in sweep.runs(self.context):
                if one.task.run in runs:
                    artifact = self.context.require(runs[one.task.run][1], "answer")
                    again = any(self._is_baseline_arm(cell) for cell in one.cells) and not any(key in baseline for key in one.keys)
                    found.setdefault(artifact.fingerprint, Answerer(one.keys[0], artifact, tuple(one.keys), again))
        for given in self.config.answerers:
            artifact = self.context.require(judged.answerer_answers(self.context, given), "answer")
            found.setdefault(artifact.fingerprint, Answerer(given.name, artifact, (given.name,)))
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

    def _is_baseline_arm(self, cell: Any) -> bool:
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


def kept_answers(context: Context, judge: JudgeConfig) -> Answers:
    """Return what a judge has answered so far."""
    return Answers(context.storage, digest(["judge", judge.parameters()]))


def plan(context: Context) -> Iterator[str]:
    """Yield what would be paid, judge by judge, and what difference that can show."""
    stage = Judging(context)
    if not judged.prompts_artifact(context).sealed:
        yield f"the prompts are not sealed yet: {context.command('answer')}"
        return
    yield f"{len(stage.answerers)} answerers, against {', '.join(one.name for one in stage.baselines)}"
    if "sweep" in context.experiment.stages and context.experiment.corpus.contamination is None:
        yield "nobody has looked whether the corpus holds these prompts: corpus.contamination does"
    for judge in stage.config.judges:
        rubric, cost, kept = load_rubric(judge.rubric), Cost(prompts=len(stage.prompts)), kept_answers(context, judge)
        for work in stage.work(judge, rubric):
            if not work.verdicts.sealed:
                wanted = work.slots(rubric, stage.design)
                cost.add(wanted, set(kept.find([slot.key for slot in wanted if slot.key is not None])))
        yield from cost.lines(judge.name, stage.config.budget)


def run(context: Context) -> None:
    """Ask every judge, seal verdicts, scores and the page, and enter them into the index.

    Raises:
        BudgetSpent: `judging.budget` is spent; what is sealed and kept stays.
    """
    stage = Judging(context)
    if not stage.config.judges:
        raise ArtifactError("judging.judges is empty: name who judges")
    for line in plan(context):
        logger.info("judge: %s", line)
    for judge in stage.config.judges:
        _ask(context, stage, judge)
    _seal(context, stage)


def _ask(context: Context, stage: Judging, judge: JudgeConfig) -> None:
    """Seal all verdicts of one judge."""
    rubric = load_rubric(judge.rubric)
    for_index = {f"{judge.name}/{work.answerer}/{work.baseline}": work.verdicts for work in stage.work(judge, rubric)}
    left = [work for work in stage.work(judge, rubric) if not work.verdicts.sealed]
    if not left:
        logger.info("judge: %s has given all its verdicts already", judge.name)
        context.index.add_many("verdicts", for_index)
        return
    name = judged.ledger(context, "judge")
    with reached(context, judge) as base_url:
        kept = kept_answers(context, judge)
        asker = Asker(base_url, judge.endpoint, kept, stage.config.budget, storage=context.storage, ledger=name)
        for number, work in enumerate(left, start=1):
            wanted = work.slots(rubric, stage.design)
            table = verdict_table(wanted, rubric, asker.ask(_requests(wanted)))
            target = work.verdicts.begin()
            target.write(table)
            counted = outcomes(table)
            target.seal(
                {
                    "stage": "judge",
                    "version": VERSION,
                    "answerer": work.answerer,
                    "baseline": work.baseline,
                    "judge": {"name": judge.name, **judge_identity(work.judge, rubric)},
                    "rubric": {"name": rubric.name, "version": rubric.version, "criteria": list(rubric.criteria)},
                    "outcomes": counted,
                    "tokens": {side: sum(table[f"{side}_tokens"].to_pylist()) for side in ("prompt", "completion")},
                }
            )
            told = ", ".join(f"{count} {outcome}" for outcome, count in counted.items() if count)
            logger.info("judge: %s: %s against %s (%d of %d): %s", judge.name, work.answerer, work.baseline, number, len(left), told)
    context.index.add_many("verdicts", for_index)


def _requests(wanted: Sequence[Slot]) -> dict[str, dict[str, Any]]:
    return {slot.key: slot.body for slot in wanted if slot.key is not None and slot.body is not None}


def _seal(context: Context, stage: Judging) -> None:
    """Seal the scores of everyone, the report on judges and the page."""
    judges = [(judge, load_rubric(judge.rubric)) for judge in stage.config.judges]
    by_judge = {judge.name: _labelled(stage, judge, rubric) for judge, rubric in judges}
    reports = [_report(stage, judge, rubric, by_judge[judge.name]) for judge, rubric in judges]
    primary = stage.config.primary
    passed = primary is not None and next(one for one in reports if one.judge == primary).passed
    rows = []
    for one in stage.answerers:
        mine = {name: table.filter(pc.equal(table["answerer"], one.name)) for name, table in by_judge.items()}
        if any(not len(table) for table in mine.values()):
            continue
        artifact = _seal_scores(context, one, mine)
        if one.keys[0] in {name for name, _ in _cells(context)}:
            context.index.add_many("judged", dict.fromkeys(one.keys, artifact))
        named = [(name, [table]) for name, table in mine.items()] + ([(JURY, list(mine.values()))] if len(mine) > 1 else [])
        rows += [page.Row(one.name, one.again, name, estimates(tables)) for name, tables in named]
    between = [(a, b, agreement.between(by_judge[a], by_judge[b])) for i, a in enumerate(by_judge) for b in list(by_judge)[i + 1 :]]
    data = page.JudgingData(
        experiment=context.experiment.experiment,
        baselines=[one.name for one in stage.baselines],
        prompts={name: count["prompts"] for name, count in judged.prompts_artifact(context).manifest["sets"].items()},
        reports=reports,
        rows=rows,
        between=between,
        primary=primary,
        primary_passed=passed,
    )
    _seal_page(context, data)


def _cells(context: Context) -> list[tuple[str, Any]]:
    seeds = context.experiment.sft.training_seeds
    return [(f"{cell.name}_t{seed}", cell) for cell in context.experiment.trained_cells for seed in seeds]


def _labelled(stage: Judging, judge: JudgeConfig, rubric: Rubric) -> pa.Table:
    """Return a judge's verdicts on real answers, with `answerer` and `baseline`."""
    tables = []
    for one, other in stage.matches:
        table = stage.verdicts(judge, rubric, one.answers.fingerprint, other.answers.fingerprint).read()
        named = {"answerer": one.name, "baseline": other.name}
        tables.append(table.append_column("answerer", pa.array([named["answerer"]] * len(table), pa.string())))
        tables[-1] = tables[-1].append_column("baseline", pa.array([named["baseline"]] * len(table), pa.string()))
    if not tables:
        raise ArtifactError("nobody but the baseline has answered: there is nothing to judge")
    return pa.concat_tables(tables)


def _report(stage: Judging, judge: JudgeConfig, rubric: Rubric, verdicts: pa.Table) -> JudgeReport:
    """Return what a judge is worth."""
    calibration = {work.answerer: work.verdicts.read() for work in stage.work(judge, rubric) if work.answerer in stage.spoilt}
    return judge_report(judge.name, verdicts, calibration, stage.config.calibration.least)


def _seal_scores(context: Context, one: Answerer, verdicts: dict[str, pa.Table]) -> Artifact:
    """Return the sealed scores of an answerer, by every judge and by their mean."""
    parents = [one.answers.fingerprint, *(digest(table.drop_columns(["raw"]).to_pylist()) for table in verdicts.values())]
    name = fingerprint(stage="judge/scores", version=VERSION, config=list(verdicts), parents=parents)
    artifact = context.storage.artifact("judged", name)
    if artifact.sealed:
        return artifact
    counted = one.table().select(["prompt_id", "tokens"]).to_pylist()
    tokens = {row["prompt_id"]: row["tokens"] or 0 for row in counted}
    named = [(judge, [table]) for judge, table in verdicts.items()] + ([(JURY, list(verdicts.values()))] if len(verdicts) > 1 else [])
    parts = [scores(tables, run=one.name, judge=judge, tokens=tokens) for judge, tables in named]
    target = artifact.begin()
    target.write(pa.concat_tables([rows for rows, _ in parts]))
    target.write(pa.concat_tables([singles for _, singles in parts]), "samples/part-00000.parquet")
    return target.seal({"stage": "judge/scores", "version": VERSION, "answerer": one.name, "answers": one.answers.path})


def _seal_page(context: Context, data: page.JudgingData) -> None:
    """Seal the report on judges with its page, and put a copy beside the index."""
    record, html = data.record(), page.render(data)
    artifact = context.storage.artifact("judged", fingerprint(stage="judge/page", version=VERSION, config=[record, digest(html)]))
    if not artifact.sealed:
        target = artifact.begin()
        with target.open_output("index.html") as stream:
            stream.write(html.encode())
        target.seal({"stage": "judge/page", "version": VERSION, **record})
    context.index.add("judging", None, artifact)
    place = f"experiments/{context.experiment.experiment}/report/judging.html"
    context.storage.write_bytes(place, html.encode())
    print("\n".join(page.lines(data)))
    print(f"\nreport: {context.storage.uri}/{place}")


if __name__ == "__main__":
    raise SystemExit(main("judge"))
