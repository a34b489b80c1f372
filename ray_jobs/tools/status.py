"""How far an experiment is: `sft-diversity status CONFIG.yaml [key=value …]`, or a storage's folder for all of its experiments.

It reads seals and starts nothing: what is sealed, what is missing, and the command that makes the rest. Jobs tell of themselves in the
storage (`ray_jobs/job/journal.py`), so that any machine can say what runs, what fell silent, what failed, and since when.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow.fs as pafs

from diversity.artifact import Artifact, Storage
from diversity.config import ConfigError
from diversity.filesystems import each
from ray_jobs import build_datasets, heldout, profile_corpus
from ray_jobs.ingest import ingested_artifact
from ray_jobs.job.experiment import load_experiment
from ray_jobs.job.index import Index
from ray_jobs.job.journal import Told, jobs, without_credentials
from ray_jobs.job.runtime import Context, absolute, inside_job, tool
from ray_jobs.tasks.sealed_runs import other_settings

STATES = ("running", "silent", "failed")
SHOWN_RUNS = 5
COLUMNS = ("ingested", "corpus", "heldout", "profile", "datasets", "metrics", "scores", "report")


def stages(context: Context) -> Iterator[tuple[str, int, int, str]]:
    """Yield (stage, sealed, asked for, what) of an experiment, in the order in which stages run."""
    experiment = context.experiment
    ingested = ingested_artifact(context)
    facts = f"{ingested.manifest['samples']:,} samples" if ingested.sealed else "samples"
    yield "ingest", *_count([ingested]), facts
    if experiment.evaluation.heldout:
        held = heldout.heldout_artifact(context)
        yield "heldout", *_count([held]), f"{held.manifest['samples']:,} samples" if held.sealed else "samples"
    typings = [profile_corpus.profile_artifact(profile_corpus.chosen_from(context, control), typing)
               for control in _corpora(context) for typing in experiment.typings]  # fmt: skip
    yield "profile_corpus", *_count(typings), "typings"
    yield "build_datasets", *_count(build_datasets.dataset_artifact(context, cell) for cell in experiment.cells), "datasets"
    yield (
        "build_datasets",
        *_count(build_datasets.metrics_artifact(context, cell) for cell in experiment.cells),
        "posterior metrics",
    )
    if "sweep" in experiment.stages:
        keys = [f"{cell.name}_t{seed}" for cell in experiment.trained_cells for seed in experiment.sft.training_seeds]
        entered = context.index.read().get("scores", {})
        paths = list({entered[key] for key in keys if key in entered})
        own = dict(zip(paths, each(lambda path: _is_own(context, path), paths), strict=True))
        yield "sweep", sum(own.get(entered.get(key), False) for key in keys), len(keys), "scored runs"


def of_experiment(context: Context) -> Iterator[str]:
    """Yield the lines of one experiment: each stage, then the command that goes on."""
    yield f"{context.experiment.experiment} in {context.storage.uri}"
    unfinished = False
    for stage, sealed, total, what in stages(context):
        unfinished |= sealed < total
        yield f"  {stage:<15} {sealed:>6,} of {total:>6,}  {what}"
    report = f"experiments/{context.experiment.experiment}/report/index.html"
    yield f"  report          {context.storage.uri}/{report}" if context.storage.exists(report) else "  report          none yet"
    for told in jobs(context.storage, context.experiment.experiment):
        yield from (f"  {line}" for line in job_lines(context.storage, context.experiment.experiment, told))
    if unfinished:
        yield f"go on with: {context.command('pipeline')}"


def job_lines(storage: Storage, experiment: str, told: Told) -> Iterator[str]:
    """Yield what a job told of itself: one line, and of a failed one where its log is and which runs failed."""
    facts = told.facts
    where = f"{facts['stage']} on {facts['host']} (pid {facts['pid']}), begun {facts['started']}"
    ago = _duration(told.age_s)
    if told.state == "running":
        yield f"running: {where}, last sign of life {ago} ago"
    elif told.state == "silent":
        yield f"silent:  {where}, last sign of life {ago} ago: it was killed, or its machine is gone; the same command goes on"
    else:
        yield f"failed:  {where}, failed {facts['failed']}, {ago} ago: {facts['error']}"
        runs = facts.get("runs", {})
        yield from (f"         {cell}: {reason}" for cell, reason in list(runs.items())[:SHOWN_RUNS])
        if len(runs) > SHOWN_RUNS:
            yield f"         and {len(runs) - SHOWN_RUNS} more"
    yield f"         log: {without_credentials(storage.uri)}/experiments/{experiment}/logs/{facts['job']}.log"


def _duration(seconds: float) -> str:
    """Return a duration as people say it."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def of_storage(storage: Storage) -> Iterator[str]:
    """Yield a table: for each experiment of a storage, how many artifacts of each kind its index names, and how many are sealed."""
    yield f"{'experiment':<24}" + "".join(f"{column:>12}" for column in (*COLUMNS, *STATES))
    for name in experiments(storage):
        entries = Index(storage, name).read()
        cells = []
        for column in COLUMNS:
            entry = entries.get(column, {})
            paths = [entry] if isinstance(entry, str) else list(entry.values())
            sealed = sum(storage.at(path).sealed for path in paths)
            cells.append(f"{sealed:,}" if sealed == len(paths) else f"{sealed:,}/{len(paths):,}")
        told = [job.state for job in jobs(storage, name)]
        cells += [f"{told.count(state):,}" for state in STATES]
        yield f"{name:<24}" + "".join(f"{cell:>12}" for cell in cells)


def experiments(storage: Storage) -> list[str]:
    """Return the names of a storage's experiments; one whose first job runs or failed may have no index yet."""
    return [info.base_name for info in storage.list("experiments") if info.type == pafs.FileType.Directory]


@tool("status")
def main(argv: Sequence[str] | None = None) -> int:
    """Print how far an experiment, or every experiment of a storage, is."""
    parser = argparse.ArgumentParser(prog="sft-diversity status", description="How far an experiment is.")
    parser.add_argument("target", help="CONFIG.yaml, or a storage's folder or URI")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the CONFIG.yaml")
    parser.add_argument("--json", action="store_true", help="print [stage, sealed, asked for, what] of a CONFIG.yaml instead")
    given = parser.parse_intermixed_args(argv)
    if given.target.endswith((".yaml", ".yml")):
        experiment = load_experiment(Path(given.target), given.overrides, inside_job=inside_job())
        context = Context(experiment, Path(given.target), tuple(given.overrides))
        lines: Iterable[str] = [json.dumps(list(stages(context)))] if given.json else of_experiment(context)
    elif given.overrides or given.json:
        parser.error("key=value and --json are for a CONFIG.yaml; a storage takes neither")
    elif not experiments(storage := Storage(absolute(given.target))):
        raise ConfigError(f"{storage.uri} holds no experiments: give a CONFIG.yaml, or the folder or URI of a storage that has some")
    else:
        lines = of_storage(storage)
    for line in lines:
        print(line)
    return 0


def _corpora(context: Context) -> list[str]:
    """Return one control for each corpus that the cells are chosen from."""
    derived = {profile_corpus.chosen_from(context, control).suffix: control for control in ("none", *context.experiment.grid.controls)}
    return list(derived.values())


def _is_own(context: Context, path: str) -> bool:
    """Return whether there are scores, of a run of the configuration."""
    scores = context.storage.at(path)
    return scores.sealed and not other_settings(context.storage, context.experiment, scores.manifest)


def _count(artifacts: Iterable[Artifact | None]) -> tuple[int, int]:
    seals = [artifact is not None and artifact.sealed for artifact in artifacts]
    return sum(seals), len(seals)


if __name__ == "__main__":
    raise SystemExit(main())
