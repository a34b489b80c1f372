"""Files become a corpus, in parallel: `python -m ray_jobs.ingest CONFIG.yaml [key=value …] [--dry-run]`.

Ray Data reads the inputs; every unit stages its samples by bucket (the first bits of their ids), under names that a second attempt writes
again. Then one task for each run of buckets sorts it, keeps one of each sample and writes a part of the corpus. What the parts hold
depends on the input's content alone, not on workers, blocks or the order of rows.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from diversity.artifact import Artifact, fingerprint, package_versions
from diversity.corpus.config import CorpusConfig
from diversity.corpus.contamination import Prompts, screen, tally
from diversity.corpus.files import ReadError
from diversity.corpus.ingestion import (
    REJECTED_SCHEMA,
    STAGED_SCHEMA,
    ContentHash,
    Counts,
    above_score,
    counted,
    limit_order,
    limit_threshold,
    merge,
    part_ranges,
    split_by_bucket,
    within_limit,
)
from diversity.corpus.inputs import Inputs, Unit
from diversity.corpus.seen import Seen, told_unused
from ray_jobs.job import telemetry
from ray_jobs.job.process import cache_folder
from ray_jobs.job.runtime import Context, main, once
from ray_jobs.job.waiting import finished
from ray_jobs.tasks.corpus_rows import read_part

logger = logging.getLogger(__name__)

VERSION = 3
STAGING = "staging"
CONTAMINATED = "contaminated"
REPORT_SCHEMA = pa.schema([("unit", pa.int64()), ("report", pa.large_string())])


@dataclass
class Ingest:
    """The inputs of an experiment and the artifact that they make."""

    context: Context

    @cached_property
    def inputs(self) -> Inputs:
        """Return what `corpus.paths` names."""
        return Inputs(self.context.experiment.corpus.paths, cache_folder() / "digests.json")

    @cached_property
    def artifact(self) -> Artifact:
        """Return the corpus with everything in it."""
        name = fingerprint(stage="ingest", version=VERSION, config=self.settings, parents=self.inputs.roots)
        return self.context.storage.artifact("corpus", name)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Return what of the configuration changes what is sealed; evaluation prompts by their content."""
        corpus = self.context.experiment.corpus
        settings: dict[str, Any] = {"columns": corpus.columns, "limit": corpus.limit}
        if corpus.min_score is not None:
            settings["min_score"] = corpus.min_score
        if corpus.contamination is not None:
            prompts = Inputs(corpus.contamination.paths, cache_folder() / "digests.json").roots
            settings["contamination"] = {**corpus.contamination.model_dump(exclude={"paths"}), "prompts": prompts}
        return settings


@once
def ingested_artifact(context: Context) -> Artifact:
    """Return the corpus with everything in it."""
    return Ingest(context).artifact


def plan(context: Context) -> list[str]:
    """Return what would be read, and whether it has been."""
    stage = Ingest(context)
    megabytes = sum(file.size for file in stage.inputs.files) / 1e6
    what = ", ".join([*stage.inputs.builtin, f"{len(stage.inputs.files)} files ({megabytes:.1f} MB)" if stage.inputs.files else ""])
    return [f"reads {what.strip(', ')}", f"{stage.artifact.path}: {'sealed already' if stage.artifact.sealed else 'to be made'}"]


def run(context: Context) -> None:
    """Seal the corpus of `corpus.paths` and enter it into the index."""
    stage = Ingest(context)
    if stage.artifact.sealed:
        logger.info("ingest: %s is sealed already", stage.artifact.path)
        telemetry.add("seals_reused", 1, stage="ingest")
    else:
        corpus = context.experiment.corpus
        if corpus.max_rejected < 1:
            stage.inputs.check_heads(corpus.columns)
        context.connect()
        _build(context, stage)
        telemetry.add("samples", stage.artifact.manifest["samples"], stage="ingest")
    _check_again(stage.artifact.manifest, context.experiment.corpus)
    context.index.add("ingested", None, stage.artifact)
    heldout = context.experiment.evaluation.heldout
    if heldout is None or heldout.in_ is None:
        context.index.add("corpus", None, stage.artifact)


def _build(context: Context, stage: Ingest) -> None:
    """Read, sort and write everything, and seal it."""
    corpus, artifact = context.experiment.corpus, stage.artifact.begin()
    units, n_buckets = stage.inputs.units(), stage.inputs.n_buckets
    logger.info("ingest: %d inputs in %d parts, %d buckets", len(stage.inputs.digests), len(units), n_buckets)
    counts, staged = _stage(artifact, units, corpus, n_buckets, context.workers)
    for file, formats in counts.formats.items():
        logger.info("ingest: %s: %s", file, ", ".join(f"{count} {name}" for name, count in sorted(formats.items())) or "no usable row")
    if counts.seen.unused:
        logger.warning("ingest: not carried: %s; corpus.columns maps what should be", told_unused(counts.seen.unused))
    counts.check(corpus.max_rejected)
    parts = [[place for bucket in run for place in staged.places[bucket]] for run in part_ranges(staged.sizes)]
    prompts = Prompts.read(corpus.contamination) if corpus.contamination else None
    held = ray.put(prompts)
    merge_part, lowest_places = ray.remote(_merge_part), ray.remote(_lowest)
    threshold = None
    if corpus.limit is not None:
        sought = (lowest_places.remote(artifact, places, corpus.limit, held, corpus.min_score) for places in parts)
        lowest = finished("parts looked through", sought, len(parts), at_once=context.workers)
        threshold = limit_threshold(lowest, corpus.limit)
    merged = (merge_part.remote(artifact, number, places, threshold, held, corpus.min_score) for number, places in enumerate(parts))
    results = finished("parts merged", merged, len(parts), at_once=context.workers)
    for result in results:
        counts.samples += result["samples"]
        counts.beyond_limit += result["beyond_limit"]
        counts.removed += result["removed"]
        counts.below_score += result["below_score"]
        counts.duplicates.update(result["duplicates"])
        counts.sources.update(result["sources"])
    counts.check_scores(corpus.min_score)
    if prompts is not None:
        counts.contamination = tally(artifact.read(CONTAMINATED), prompts)
        logger.info("ingest: contamination: %s", _told(counts.contamination))
    content = ContentHash()
    for part in artifact.parts():
        content.update(read_part(artifact, part, ["sample_id", "source"]))
    artifact.remove(STAGING)
    figures = counts.manifest()
    artifact.seal(
        {
            "stage": "ingest",
            "version": VERSION,
            "config": stage.settings,
            "content_hash": content.hexdigest(),
            "group_by": stage.inputs.group_by,
            "inputs": [{"input": shown, "digest": digest} for shown, digest in stage.inputs.digests.items()],
            "packages": package_versions("pyarrow"),
            **figures,
        }
    )
    told = ("rows_read", "samples", "duplicates", "rejected", "removed", "below_score", "beyond_limit")
    logger.info("ingest: %s", _told({name: figures[name] for name in told}))


def _told(figures: Mapping[str, Any]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in figures.items() if type(count) is int)


@dataclass
class Staged:
    """Where the samples of every bucket are staged: `places` are (file, record batch in it), `sizes` bytes."""

    places: list[list[tuple[str, int]]]
    sizes: list[int]


def _stage(artifact: Artifact, units: list[Unit], corpus: CorpusConfig, n_buckets: int, workers: int) -> tuple[Counts, Staged]:
    """Read all units and stage their samples by bucket."""
    artifact.write(REJECTED_SCHEMA.empty_table(), "rejected/part-00000.parquet")

    def read(batch: pa.Table) -> Iterator[pa.Table]:
        for number in batch["unit"].to_pylist():
            report = json.dumps(_stage_unit(artifact, units[number], corpus.columns, n_buckets))
            yield pa.Table.from_arrays([pa.array([number], pa.int64()), pa.array([report], pa.large_string())], schema=REPORT_SCHEMA)

    numbers = ray.data.from_items([{"unit": unit.number} for unit in units], override_num_blocks=len(units))
    compute = ray.data.TaskPoolStrategy(size=workers)
    reports = numbers.map_batches(read, batch_size=1, batch_format="pyarrow", compute=compute, zero_copy_batch=True)
    counts, staged = Counts(), Staged([[] for _ in range(n_buckets)], [0] * n_buckets)
    for row in reports.iter_rows():
        report = json.loads(row["report"])
        if "error" in report:
            raise ReadError(report["error"])
        counts.add_batch(units[row["unit"]].shown, report["rows"], report["reasons"], report["formats"], Seen.of(report["seen"]))
        for name, buckets in report["files"].items():
            for index, (bucket, size) in enumerate(buckets):
                staged.places[bucket].append((name, index))
                staged.sizes[bucket] += size
    return counts, staged


def _stage_unit(artifact: Artifact, unit: Unit, columns: dict[str, str] | None, n_buckets: int) -> dict[str, Any]:
    """Write one unit's samples, a record batch for each bucket, and its rejected rows; return what was counted.

    A file that can't be read to its end is told as `error`: raised here, Ray Data would print it with pages of its own.
    """
    try:
        return _staged_unit(artifact, unit, columns, n_buckets)
    except ReadError as error:
        return {"error": str(error)}


def _staged_unit(artifact: Artifact, unit: Unit, columns: dict[str, str] | None, n_buckets: int) -> dict[str, Any]:
    rows, reasons, formats, files, seen = 0, Counter[str](), Counter[str](), {}, Seen()
    for number, batch in enumerate(unit.batches(columns)):
        seen.add(batch.seen)
        rows += len(batch.samples) + len(batch.rejected)
        reasons.update(counted(batch.rejected["reason"]))
        formats.update(batch.formats)
        stem = f"{unit.number:06d}-{number:06d}"
        if len(batch.rejected):
            artifact.write(batch.rejected, f"rejected/part-{stem}.parquet")
        buckets = split_by_bucket(batch.samples, n_buckets)
        files[f"{STAGING}/{stem}.arrow"] = [(bucket, samples.nbytes) for bucket, samples in buckets.items()]
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with artifact.open_output(f"{STAGING}/{stem}.arrow") as stream, pa.ipc.new_file(stream, STAGED_SCHEMA, options=options) as writer:
            for samples in buckets.values():
                writer.write_batch(samples.combine_chunks().to_batches()[0])
    return {"rows": rows, "reasons": reasons, "formats": formats, "files": files, "seen": seen.plain()}


def _merged(artifact: Artifact, places: list[tuple[str, int]]) -> tuple[pa.Table, Counter[str]]:
    """Return the samples at these places in order and each once, and the duplicates of every source."""
    filesystem, _ = artifact.storage.filesystem()
    by_file: dict[str, list[int]] = {}
    for name, index in places:
        by_file.setdefault(name, []).append(index)
    tables = []
    for name, indices in by_file.items():
        with filesystem.open_input_file(artifact.folder(name)) as stream:
            reader = pa.ipc.open_file(stream)
            tables.append(pa.Table.from_batches([reader.get_batch(index) for index in indices]))
    return merge(tables)


def _lowest(artifact: Artifact, places: list[tuple[str, int]], limit: int, prompts: Prompts | None, least: float | None) -> np.ndarray:
    """Return the lowest numbers in `limit_order` of a run of buckets, as many as could be taken."""
    merged, _ = _merged(artifact, places)
    samples = above_score(screen(merged, prompts)[0] if prompts is not None and prompts.remove else merged, least)
    order = limit_order(samples["sample_id"])
    return order if len(order) <= limit else np.partition(order, limit - 1)[:limit]


def _merge_part(
    artifact: Artifact,
    number: int,
    places: list[tuple[str, int]],
    threshold: int | None,
    prompts: Prompts | None,
    least: float | None,
) -> dict[str, Any]:
    """Write one part of the corpus, and of the report on contamination if there are prompts, and return its counts."""
    merged, duplicates = _merged(artifact, places)
    clean = merged
    if prompts is not None:
        clean, report = screen(merged, prompts)
        artifact.write(report, f"{CONTAMINATED}/part-{number:05d}.parquet")
    good = above_score(clean, least)
    samples = within_limit(good, threshold)
    artifact.write(samples, f"data/part-{number:05d}.parquet")
    return {
        "samples": len(samples),
        "removed": len(merged) - len(clean),
        "below_score": len(clean) - len(good),
        "beyond_limit": len(good) - len(samples),
        "duplicates": duplicates,
        "sources": counted(samples["source"]),
    }


def _check_again(manifest: dict[str, Any], corpus: CorpusConfig) -> None:
    """Apply `max_rejected`, which is no part of the fingerprint, to a corpus that was sealed under another one."""
    Counts(rows_read=manifest["rows_read"], rejected=Counter(manifest["reasons"])).check(corpus.max_rejected)


if __name__ == "__main__":
    raise SystemExit(main("ingest"))
