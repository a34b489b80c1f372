"""Everyone's answers to the prompt sets, sealed in one schema: `python -m ray_jobs.answer CONFIG.yaml [key=value …] [--dry-run]`.

Runs of the grid answer in `sweep`, while it holds their weights; here their answers are taken out of their scores. Then come those that are
no runs: models behind endpoints, local and hub models, and files.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from diversity.artifact import Artifact, digest
from diversity.corpus.samples import messages_of
from diversity.judging import answer_sets
from diversity.judging.config import AnswererConfig
from diversity.judging.prompt_sets import asked_once
from diversity.llm.answers import Answers
from diversity.llm.asking import Asker, request_key, served_models
from diversity.llm.model import ModelConfig
from ray_jobs import sweep
from ray_jobs.job.device import device_kind
from ray_jobs.job.process import cache_folder
from ray_jobs.job.runtime import Context, main
from ray_jobs.tasks import judged
from ray_jobs.tasks.serving import reached
from training.answering import answer_prompts
from training.evaluators.generate import JUDGING
from training.model_source import resolve_model
from training.run_files import Kept

logger = logging.getLogger(__name__)


def plan(context: Context) -> Iterator[str]:
    """Yield who answers, and whose answers are sealed."""
    config = judged.judging(context)
    prompts = judged.prompts_artifact(context)
    yield f"prompts: {prompts.path}, {'sealed already' if prompts.sealed else 'to be read'}"
    if "sweep" in context.experiment.stages:
        yield "runs of the grid answer in sweep, by the evaluator generate"
    for one in config.answerers:
        artifact = judged.answerer_answers(context, one)
        yield f"{one.name}: {artifact.path}, {'sealed already' if artifact.sealed else 'to be answered'}"


def run(context: Context) -> None:
    """Seal the answers of every run that has scores, and of every answerer, and enter them into the index."""
    prompts = judged.seal_prompts(context)
    found = run_answers(context)
    names = {one.task.run: one.keys[0] for one in sweep.runs(context)} if found else {}
    for run, (scores, answers) in found.items():
        if not answers.sealed:
            _seal_run(names[run], run, scores, answers, prompts)
    context.index.add_many("answers", {key: answers for key, (_, answers) in _by_cell(context, found).items()})
    for one in judged.judging(context).answerers:
        answers = judged.answerer_answers(context, one)
        if answers.sealed:
            logger.info("answer: %s has answered already", one.name)
        else:
            _seal_answerer(context, one, answers, prompts)
        context.index.add("answers", one.name, answers)


def run_answers(context: Context) -> dict[str, tuple[Artifact, Artifact]]:
    """Return (scores, answers) of every run whose scores are sealed, by the run's fingerprint."""
    if "sweep" not in context.experiment.stages:
        return {}
    scored = [(one.task.run, one.task.scores) for one in sweep.runs(context) if one.task.scores is not None and one.task.scores.sealed]
    return {run: (scores, judged.run_answers(context, scores)) for run, scores in scored}


def _by_cell(context: Context, found: dict[str, tuple[Artifact, Artifact]]) -> dict[str, tuple[Artifact, Artifact]]:
    """Return the same by the keys of the index, `<cell>_t<seed>`."""
    if not found:
        return {}
    return {key: found[one.task.run] for one in sweep.runs(context) if one.task.run in found for key in one.keys}


def _seal_run(name: str, run: str, scores: Artifact, answers: Artifact, prompts: Artifact) -> None:
    """Seal a run's answers out of its scores."""
    responses = scores.read("responses")
    rows = responses.filter(pc.equal(responses["split"], JUDGING)).to_pylist()
    table = answer_sets.answers_table([_generated(row) for row in rows])
    _seal(answers, table, prompts, {"answerer": name, "run": run, "scores": scores.path, "evaluators": scores.manifest["evaluators"]})


def _generated(row: dict[str, Any]) -> dict[str, Any]:
    return answer_sets.answer_row(row["sample_id"], row["response"], tokens=row["tokens"], finished=row["finished"])


def _seal_answerer(context: Context, one: AnswererConfig, answers: Artifact, prompts: Artifact) -> None:
    """Have an answerer answer every prompt, and seal that."""
    facts: dict[str, Any] = {"answerer": one.name}
    if one.files is not None:
        table, counts = answer_sets.import_answers(one.files, prompts.read(), one.generator)
        facts |= {"files": one.files, "rows_left_out": counts}
    elif one.endpoint is not None:
        table, served = _ask(context, one.endpoint, prompts)
        facts |= {"endpoint": one.endpoint.parameters(), "served": served}
    else:
        table = _local(context, one, answers, prompts)
        facts |= {"local": one.local, "generate": judged.generate_options(context).identity}
    _seal(answers, table, prompts, facts)


def _seal(answers: Artifact, table: pa.Table, prompts: Artifact, facts: dict[str, Any]) -> None:
    counts = answer_sets.counts(table, len(asked_once(prompts.read())))
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    logger.info("answer: %s: %s", facts["answerer"], told)
    target = answers.begin()
    target.write(table)
    target.seal({"stage": "answer", "version": judged.VERSION, "prompts": prompts.path, "counts": counts, **facts})


def _ask(context: Context, model: ModelConfig, prompts: Artifact) -> tuple[pa.Table, dict[str, int]]:
    """Return (a model's answers to every prompt, how many each served model gave)."""
    rows = asked_once(prompts.read()).to_pylist()
    bodies = {row["sample_id"]: {**model.parameters(), "messages": messages_of(row["messages"])} for row in rows}
    kept = Answers(context.storage, digest(["answer", model.parameters()]))
    with reached(context, model) as base_url:
        budget = judged.judging(context).budget
        asker = Asker(base_url, model.endpoint, kept, budget, storage=context.storage, ledger=judged.ledger(context, "answer"))
        found = asker.ask({request_key(body): body for body in bodies.values()})
    table = answer_sets.answers_table([answer_sets.from_model(name, found[request_key(body)]) for name, body in bodies.items()])
    return table, served_models(found)


def _local(context: Context, one: AnswererConfig, answers: Artifact, prompts: Artifact) -> pa.Table:
    """Return a local model's answers, given by a task that has a GPU where there is one."""
    context.connect()
    device = device_kind(context)
    kept = Kept(context.storage, f"cache/kept/{answers.fingerprint}")
    task = ray.remote(num_cpus=context.experiment.resources.cpus_per_rank, num_gpus=int(device == "cuda"))(_answer_locally)
    table = ray.get(task.remote(str(one.local), prompts, judged.generate_options(context).options, device, kept))
    return answer_sets.answers_table([_generated(row) for row in table.to_pylist()])


def _answer_locally(model: str, prompts: Artifact, options: Any, device: str, kept: Kept) -> pa.Table:
    folder = resolve_model(model, cache_folder())
    return answer_prompts(folder, asked_once(prompts.read()), options, device=device, kept=kept)


if __name__ == "__main__":
    raise SystemExit(main("answer"))
