"""Verdicts on answers against a baseline's, and what they come to: `python -m ray_jobs.judge CONFIG.yaml [key=value …] [--dry-run]`.

`--dry-run` says what would be paid. Verdicts of one answerer, one baseline and one judge are one artifact, so that a job which is killed,
or whose budget ends (exit code 3), goes on with the next; inside one, every answer of the judge is kept the moment it is there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from diversity.artifact import ArtifactError, digest
from diversity.judging.config import JudgeConfig
from diversity.judging.pairs import Slot, judge_identity, verdict_table
from diversity.judging.planning import Cost
from diversity.judging.rubrics import load_rubric
from diversity.judging.verdicts import outcomes
from diversity.llm.answers import Answers
from diversity.llm.asking import Asker, known_answers
from ray_jobs import answer, sweep
from ray_jobs.job.runtime import Context, main
from ray_jobs.tasks import judged
from ray_jobs.tasks.contest import VERSION, Contest, Run
from ray_jobs.tasks.judged_scores import seal_scores
from ray_jobs.tasks.serving import reached

logger = logging.getLogger(__name__)


def contest_of(context: Context) -> Contest:
    """Return who is judged, against whom and by whom."""
    answers = answer.run_answers(context)
    runs = sweep.runs(context) if answers else []
    return Contest(context, [Run(tuple(one.keys), one.cells, answers[one.task.run][1]) for one in runs if one.task.run in answers])


def kept_answers(context: Context, judge: JudgeConfig) -> Answers:
    """Return what a judge has answered so far."""
    return Answers(context.storage, digest(["judge", judge.parameters()]))


def plan(context: Context) -> Iterator[str]:
    """Yield what would be paid, judge by judge, and what difference that can show."""
    if not judged.prompts_artifact(context).sealed:
        yield f"the prompts are not sealed yet: {context.command('answer')}"
        return
    try:
        contest = contest_of(context)
    except ArtifactError as missing:
        yield f"who answered can't be told yet: {missing}"
        return
    yield f"{len(contest.answerers)} answerers, against {', '.join(one.name for one in contest.baselines)}"
    if "sweep" in context.experiment.stages and context.experiment.corpus.contamination is None:
        yield "nobody has looked whether the corpus holds these prompts: corpus.contamination does"
    for judge in contest.config.judges:
        rubric, cost, kept = load_rubric(judge.rubric), Cost(prompts=len(contest.prompts)), kept_answers(context, judge)
        for work in contest.work(judge, rubric):
            if not work.verdicts.sealed:
                wanted = work.slots(rubric, contest.design)
                cost.add(wanted, known_answers(kept, judge.endpoint, [slot.key for slot in wanted if slot.key is not None]))
        yield from cost.lines(judge.name, contest.config.budget)


def run(context: Context) -> None:
    """Ask every judge, seal verdicts, scores and the page, and enter them into the index.

    Raises:
        BudgetSpent: `judging.budget` is spent; what is sealed and kept stays.
    """
    contest = contest_of(context)
    if not contest.config.judges:
        raise ArtifactError("judging.judges is empty: name who judges")
    for line in plan(context):
        logger.info("judge: %s", line)
    for judge in contest.config.judges:
        _ask(context, contest, judge)
    seal_scores(context, contest)


def _ask(context: Context, contest: Contest, judge: JudgeConfig) -> None:
    """Seal all verdicts of one judge."""
    rubric = load_rubric(judge.rubric)
    every = list(contest.work(judge, rubric))
    for_index = {f"{judge.name}/{work.answerer}/{work.baseline}": work.verdicts for work in every}
    left = [work for work in every if not work.verdicts.sealed]
    if not left:
        logger.info("judge: %s has given all its verdicts already", judge.name)
        context.index.add_many("verdicts", for_index)
        return
    name = judged.ledger(context, "judge")
    with reached(context, judge) as base_url:
        kept = kept_answers(context, judge)
        asker = Asker(base_url, judge.endpoint, kept, contest.config.budget, storage=context.storage, ledger=name)
        for number, work in enumerate(left, start=1):
            wanted = work.slots(rubric, contest.design)
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


if __name__ == "__main__":
    raise SystemExit(main("judge"))
