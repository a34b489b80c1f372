"""Gather what an experiment has into results, effects and the report: `python -m ray_jobs.analyze CONFIG.yaml [key=value …]`.

It needs no cluster and works at any stage of an experiment: with datasets alone, with some of the scores, with all of them. Without
a configuration, `sft-diversity analyze FOLDER [--html FILE]` computes effects and page again from the tables that it sealed.
"""

from __future__ import annotations

import csv
import io
import logging
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diversity.artifact import Artifact, ArtifactError, fingerprint, package_versions
from diversity.cell import typing_parts
from diversity.effects import Plan, verdict
from diversity.effects.verdict import verdict_lines
from ray_jobs.job.runtime import Context, main
from ray_jobs.report.comparisons import with_comparisons
from ray_jobs.report.data import Curve, ReportData
from ray_jobs.report.folder import ABOUT, TABLES, Analysis, curves_table
from ray_jobs.report.gather import Gathered, gather, sample_pairs, type_lists
from ray_jobs.report.judged import with_judgments
from ray_jobs.report.page import linked, render
from ray_jobs.report.prompts import prompts_table
from ray_jobs.report.text import told
from ray_jobs.tasks import redraw
from ray_jobs.tasks.planned import plan_of
from ray_jobs.tasks.sealed_runs import other_settings

logger = logging.getLogger(__name__)

VERSION = 6


def plan(context: Context) -> Iterator[str]:
    """Yield what there is to analyse."""
    gathered = _gather(context)
    runs = {run for run in gathered.results["run"].to_pylist() if run is not None}
    yield f"{gathered.cells.num_rows} of {len(context.experiment.cells)} datasets and {len(runs)} scored runs are sealed"


def run(context: Context) -> None:
    """Seal results, effects and report, put copies beside the index, and print the table of cells.

    Raises:
        ArtifactError: no dataset of the grid is sealed.
    """
    gathered = _gather(context)
    if not gathered.cells.num_rows:
        raise ArtifactError(f"no dataset of {context.experiment.experiment} is sealed; make them with: {context.command('build_datasets')}")
    analysis = analysis_of(context, gathered)
    results, effects = _seal_results(context, gathered, analysis)
    data = analysis.report(effects, **_samples(context, gathered))
    report, page = _seal_report(context, results, data)
    context.index.add("results", None, results)
    context.index.add("report", None, report)
    folder = f"experiments/{context.experiment.experiment}"
    context.storage.write_bytes(f"{folder}/report/index.html", linked(page, "../../../").encode())
    context.storage.write_bytes(f"{folder}/cells.csv", _csv(_paths(context, gathered)))
    print(told(data))
    print(f"\nreport: {context.storage.uri}/{folder}/report/index.html")


def analysis_of(context: Context, gathered: Gathered) -> Analysis:
    """Return everything that effects and figures come from."""
    experiment, entries = context.experiment, context.index.read()
    profiles = {typing: context.storage.at(path) for typing, path in entries.get("profile", {}).items() if typing in experiment.typings}
    manifests = {typing: artifact.manifest for typing, artifact in profiles.items() if artifact.sealed}
    micro = [typing for typing in manifests if typing_parts(typing)[1] == "micro"]
    vocabularies = {typing: profiles[typing].read("vocabulary", columns=["df"])["df"].to_numpy() for typing in micro}
    curves = [Curve(typing, df, manifests[typing]["band"]) for typing, df in vocabularies.items()]
    scored = len({run for run in gathered.results["run"].to_pylist() if run is not None})
    return Analysis(
        results=gathered.results,
        cells=gathered.cells,
        coverage=gathered.coverage,
        sources=gathered.sources,
        metrics=gathered.metrics,
        distinct=gathered.distinct,
        prompts=prompts_table(context.storage, entries, gathered.results),
        curves=curves_table(curves),
        about={
            "experiment": experiment.experiment,
            "note": experiment.report.note,
            "facts": [list(fact) for fact in _facts(context, entries)],
            "typings": [_typing_row(typing, manifest) for typing, manifest in manifests.items()],
            "bands": {curve.typing: curve.band for curve in curves},
            "planned": len(experiment.cells),
            "regenerated": _regenerated(context, entries),
            "plan": plan_of(context, scored).manifest(),
        },
    )


def _samples(context: Context, gathered: Gathered) -> dict[str, Any]:
    """Return what of the report holds texts; nothing where none may be shown."""
    if not context.experiment.report.samples:
        return {}
    entries, typings = context.index.read(), context.experiment.typings
    return {"pairs": sample_pairs(context.storage, gathered.cells), "types": type_lists(context.storage, entries, typings)}


def _gather(context: Context) -> Gathered:
    experiment = context.experiment
    entries = context.index.read()
    differs = partial(other_settings, context.storage, experiment)
    gathered = gather(context.storage, entries, experiment.cells, experiment.sft.training_seeds, differs)
    compared = with_comparisons(context.storage, entries, gathered.results, experiment.evaluation.comparisons)
    results, judged = with_judgments(context.storage, entries, compared)
    return replace(gathered, results=results, parents=[*gathered.parents, *judged])


def _seal_results(context: Context, gathered: Gathered, analysis: Analysis) -> tuple[Artifact, pa.Table]:
    """Return the artifact of results and effects, made now or sealed before, and the effects."""
    name = fingerprint(
        stage="results",
        version=VERSION,
        config={
            "cells": gathered.cells["cell"].to_pylist(),
            "comparisons": [one.model_dump(mode="json") for one in context.experiment.evaluation.comparisons],
            "about": analysis.about,
        },
        packages=package_versions("numpy", "scipy"),
        parents=gathered.parents,
    )
    artifact = context.storage.artifact("results", name)
    if artifact.sealed:
        logger.info("results are sealed already: %s", artifact.uri)
        return artifact, _read(artifact, "effects.parquet")
    effects = analysis.effects()
    target = artifact.begin()
    for table in TABLES:
        target.write(getattr(analysis, table), f"{table}.parquet")
    target.write(effects, "effects.parquet")
    with target.open_output(ABOUT) as stream:
        stream.write(analysis.spelled())
    counts = {"cells": gathered.cells.num_rows, "rows": gathered.results.num_rows}
    target.seal({"experiment": context.experiment.experiment, **counts, "verdict": verdict_lines(verdict(effects))})
    return artifact, effects


def _seal_report(context: Context, results: Artifact, data: ReportData) -> tuple[Artifact, str]:
    """Return the sealed report and its page."""
    entries, typings = context.index.read(), context.experiment.typings
    types = [path for kind in ("profile", "peel") for typing, path in sorted(entries.get(kind, {}).items()) if typing in typings]
    name = fingerprint(
        stage="report",
        version=VERSION,
        config={"experiment": data.experiment, "facts": data.facts, "report": context.experiment.report.model_dump(mode="json")},
        packages=package_versions("matplotlib", "jinja2"),
        parents=[results.fingerprint, *types],
    )
    artifact = context.storage.artifact("report", name)
    if artifact.sealed:
        return artifact, context.storage.read_bytes(artifact.locate("index.html")).decode()
    page = render(data)
    target = artifact.begin()
    with target.open_output("index.html") as stream:
        stream.write(page.encode())
    target.seal({"experiment": data.experiment, "results": results.path})
    return artifact, page


def _facts(context: Context, entries: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the head of the report says about corpus, model and method."""
    experiment = context.experiment
    facts = []
    for key, name in (("ingested", "ingested"), ("corpus", "corpus"), ("heldout", "held out")):
        if key in entries and (artifact := context.storage.at(entries[key])).sealed and (key != "ingested" or "heldout" in entries):
            facts.append((name, f"{artifact.manifest['samples']:,} samples"))
    band = experiment.profile.band
    return [
        *facts,
        ("model", experiment.model),
        ("embedder", experiment.profile.embedder.name),
        ("tagger", experiment.profile.tagger.name),
        ("band", f"{band.low} to {band.high}{' of 117,000, scaled' if band.scaled else ''}"),
        ("pruning", f"{experiment.selection.algorithm}, ρ {experiment.selection.rho:g}"),
        ("plan", _plan_text(plan_of(context, 0))),
    ]


def _plan_text(plan: Plan) -> str:
    """Return what the head of the report says of the plan."""
    named = f"{len(plan.config.primary)} primary effects" if plan.config.primary else "no primary effect"
    margin = f", {plan.config.margin:g} matters" if plan.config.margin is not None else ""
    return f"{named}{margin}, {'not sealed' if plan.scored_before else 'sealed'} before the first run was scored"


def _regenerated(context: Context, entries: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return how responses compare with what they were, where one model answered every instruction anew."""
    if context.experiment.regenerate is None or "regenerated" not in entries:
        return []
    artifact = context.storage.at(entries["regenerated"])
    return artifact.manifest["before_and_after"] if artifact.sealed else []


def _typing_row(typing: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    used = manifest["n"] - manifest["empty"]
    return {
        "typing": typing,
        "types": manifest["M"],
        "mean": manifest["nnz"] / used if used else 0.0,
        "empty": manifest["empty"] / manifest["n"],
    }


def _paths(context: Context, gathered: Gathered) -> list[dict[str, Any]]:
    """Return one row for each cell and training seed: the cell, and fingerprint and path of all that belongs to it."""
    entries = context.index.read()
    heads = ("cell", "strategy", "size", "level", "subset_seed", "control")
    rows: list[dict[str, Any]] = []
    for cell in gathered.cells.to_pylist():
        name = cell["cell"]
        seeds: list[int | None] = [seed for seed in context.experiment.sft.training_seeds if f"{name}_t{seed}" in entries.get("scores", {})]
        for seed in seeds or [None]:
            paths = {kind: entries.get(kind, {}).get(name, "") for kind in ("datasets", "metrics")}
            paths |= {kind: entries.get(kind, {}).get(f"{name}_t{seed}", "") for kind in ("runs", "scores")}
            prints = {f"{kind}_fingerprint": path.rpartition("/")[2] for kind, path in paths.items()}
            head = {key: "" if cell[key] is None else cell[key] for key in heads}
            rows.append(
                {**head, "training_seed": "" if seed is None else seed, **prints, **{f"{kind}_path": path for kind, path in paths.items()}}
            )
    return rows


def _csv(rows: list[dict[str, Any]]) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def _read(artifact: Artifact, name: str) -> pa.Table:
    return pq.read_table(artifact.place(name), filesystem=artifact.storage.filesystem()[0])


if __name__ == "__main__":
    raise SystemExit(redraw.main() if redraw.asked(sys.argv[1:]) else main("analyze", more=redraw.USAGE))
