"""What verdicts come to: the scores of everyone, what every judge is worth, and the page that shows both; each sealed."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from diversity.artifact import Artifact, ArtifactError, digest, fingerprint
from diversity.judging import agreement
from diversity.judging.config import JudgeConfig
from diversity.judging.rubrics import Rubric, load_rubric
from diversity.judging.summary import JURY, JudgeReport, estimates, judge_report, scores
from ray_jobs.job.runtime import Context
from ray_jobs.report import judging as page
from ray_jobs.tasks import judged
from ray_jobs.tasks.contest import VERSION, Answerer, Contest


def seal_scores(context: Context, contest: Contest) -> None:
    """Seal the scores of everyone, the report on judges and the page."""
    judges = [(judge, load_rubric(judge.rubric)) for judge in contest.config.judges]
    by_judge = {judge.name: _labelled(contest, judge, rubric) for judge, rubric in judges}
    reports = [_report(contest, judge, rubric, by_judge[judge.name]) for judge, rubric in judges]
    primary = contest.config.primary
    passed = primary is not None and next(one for one in reports if one.judge == primary).passed
    rows, judged_runs = [], dict[str, Artifact]()
    for one in contest.answerers:
        mine = {name: table.filter(pc.equal(table["answerer"], one.name)) for name, table in by_judge.items()}
        if any(not len(table) for table in mine.values()):
            continue
        artifact = _scores_of(context, one, mine)
        judged_runs |= {key: artifact for run in contest.runs for key in run.keys if key in one.keys}
        rows += [page.Row(one.name, one.again, name, estimates(tables)) for name, tables in _and_jury(mine)]
    between = [(a, b, agreement.between(by_judge[a], by_judge[b])) for i, a in enumerate(by_judge) for b in list(by_judge)[i + 1 :]]
    data = page.JudgingData(
        experiment=context.experiment.experiment,
        baselines=[one.name for one in contest.baselines],
        prompts={name: count["prompts"] for name, count in judged.prompts_artifact(context).manifest["sets"].items()},
        reports=reports,
        rows=rows,
        between=between,
        primary=primary,
        primary_passed=passed,
    )
    context.index.add_many("judged", judged_runs)
    _seal_page(context, data, {key: artifact.path for key, artifact in judged_runs.items()})


def _labelled(contest: Contest, judge: JudgeConfig, rubric: Rubric) -> pa.Table:
    """Return a judge's verdicts on real answers, with `answerer` and `baseline`."""
    tables = []
    for one, other in contest.matches:
        table = contest.verdicts(judge, rubric, one.answers.fingerprint, other.answers.fingerprint).read()
        for column, name in (("answerer", one.name), ("baseline", other.name)):
            table = table.append_column(column, pa.array([name] * len(table), pa.string()))
        tables.append(table)
    if not tables:
        raise ArtifactError("nobody but the baseline has answered: there is nothing to judge")
    return pa.concat_tables(tables)


def _and_jury(verdicts: dict[str, pa.Table]) -> list[tuple[str, list[pa.Table]]]:
    """Return every judge's verdicts by its name, and where there are several judges, all of theirs as the jury's."""
    jury = [(JURY, list(verdicts.values()))] if len(verdicts) > 1 else []
    return [(judge, [table]) for judge, table in verdicts.items()] + jury


def _report(contest: Contest, judge: JudgeConfig, rubric: Rubric, verdicts: pa.Table) -> JudgeReport:
    """Return what a judge is worth."""
    calibration = {work.answerer: work.verdicts.read() for work in contest.work(judge, rubric) if work.answerer in contest.spoilt}
    return judge_report(judge.name, verdicts, calibration, contest.config.calibration.least)


def _scores_of(context: Context, one: Answerer, verdicts: dict[str, pa.Table]) -> Artifact:
    """Return the sealed scores of an answerer, by every judge and by their mean."""
    parents = [one.answers.fingerprint, *(digest(table.drop_columns(["raw"]).to_pylist()) for table in verdicts.values())]
    name = fingerprint(stage="judge/scores", version=VERSION, config=list(verdicts), parents=parents)
    artifact = context.storage.artifact("judged", name)
    if artifact.sealed:
        return artifact
    counted = one.table().select(["prompt_id", "tokens"]).to_pylist()
    tokens = {row["prompt_id"]: row["tokens"] or 0 for row in counted}
    parts = [scores(tables, run=one.name, judge=judge, tokens=tokens) for judge, tables in _and_jury(verdicts)]
    target = artifact.begin()
    target.write(pa.concat_tables([rows for rows, _ in parts]))
    target.write(pa.concat_tables([singles for _, singles in parts]), "samples/part-00000.parquet")
    return target.seal({"stage": "judge/scores", "version": VERSION, "answerer": one.name, "answers": one.answers.path})


def _seal_page(context: Context, data: page.JudgingData, judged_runs: dict[str, str]) -> None:
    """Seal the report on judges with its page, and put a copy beside the index.

    Args:
        context: of the experiment.
        data: what the page shows.
        judged_runs: paths of the runs' scores by their keys: those of this judging, where the index may hold an earlier one's too.
    """
    record, html = data.record() | {"judged": judged_runs}, page.render(data)
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
