"""Held-out samples are sealed before anything is profiled: `python -m ray_jobs.heldout CONFIG.yaml [key=value …] [--dry-run]`.

Two artifacts: the corpus without the samples of `in` (from here on it is the corpus of the experiment), and the held-out samples of `in`
and `out`, less those that leak, with the prompts that have no reference. The first depends on `in` alone, so that other evaluation samples
never mean another profile.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from diversity.artifact import Artifact, fingerprint, package_versions
from diversity.corpus.heldout import (
    HELDOUT_SCHEMA,
    PROMPTS,
    Found,
    HeldoutConfig,
    InConfig,
    NothingToHoldOut,
    Sought,
    candidate_groups,
    choose_groups,
    early_share,
    find,
    held_out,
    prompt_table,
    without_leaks,
)
from diversity.corpus.ingestion import ContentHash, counted
from diversity.corpus.inputs import Inputs, read_corpus
from diversity.corpus.samples import SAMPLE_SCHEMA
from ray_jobs.job.process import cache_folder
from ray_jobs.job.runtime import Context, main, needed, once
from ray_jobs.job.waiting import finished
from ray_jobs.regenerate import maker, source_corpus
from ray_jobs.tasks.corpus_rows import read_part, seal_corpus

logger = logging.getLogger(__name__)

VERSION = 3


@dataclass
class Heldout:
    """The artifacts of this stage, named before they are made."""

    context: Context

    @cached_property
    def config(self) -> HeldoutConfig:
        """Return `evaluation.heldout`.

        Raises:
            ConfigError: it is null.
        """
        return needed(self.context.experiment.evaluation.heldout, "evaluation.heldout", "say what is held out")

    @cached_property
    def ingested(self) -> Artifact:
        """Return the corpus with everything in it.

        Raises:
            ArtifactError: it isn't sealed.
        """
        return self.context.require(source_corpus(self.context), maker(self.context))

    @cached_property
    def by(self) -> str:
        """Return what is kept together: `prompt` or `source`."""
        chosen = self.config.in_.by if self.config.in_ else "auto"
        return self.ingested.manifest["group_by"] if chosen == "auto" else chosen

    @cached_property
    def corpus(self) -> Artifact:
        """Return the corpus without the samples of `in`."""
        ingested = source_corpus(self.context)
        if self.config.in_ is None:
            return ingested
        name = fingerprint(
            stage="heldout/corpus",
            version=VERSION,
            config=self.config.in_.model_dump(),
            packages=package_versions("pyarrow"),
            parents=[ingested.fingerprint],
        )
        return self.context.storage.artifact("corpus", name)

    @cached_property
    def artifact(self) -> Artifact:
        """Return the held-out samples."""
        out, prompts = self.config.out, self.config.prompts
        kept = ("columns", "limit", "min_score")
        config: dict[str, Any] = {"out": {name: getattr(out, name) for name in kept} if out else None, "in": self.config.in_ is not None}
        parents = [self.corpus.fingerprint, *(_roots(out.paths) if out else [])]
        if prompts is not None:
            config["prompts"] = {"column": prompts.column, "files": _roots(prompts.paths)}
        name = fingerprint(stage="heldout", version=VERSION, config=config, packages=package_versions("pyarrow"), parents=parents)
        return self.context.storage.artifact("heldout", name)


def _roots(paths: Sequence[str]) -> list[str]:
    return Inputs(paths, cache_folder() / "digests.json").roots


@once
def corpus_artifact(context: Context) -> Artifact:
    """Return the corpus of the index: without what is held out, or all of it where nothing is."""
    return Heldout(context).corpus if context.experiment.evaluation.heldout else source_corpus(context)


@once
def heldout_artifact(context: Context) -> Artifact:
    """Return the artifact of the held-out samples."""
    return Heldout(context).artifact


def plan(context: Context) -> list[str]:
    """Return what would be held out, and whether it has been."""
    stage = Heldout(context)
    if not source_corpus(context).sealed:
        return [f"takes samples out of the corpus, which is not sealed yet: {context.command(maker(context))}"]
    artifacts = {"corpus without them": stage.corpus, "held-out samples": stage.artifact}
    return [f"{name}: {artifact.path}, {'sealed already' if artifact.sealed else 'to be made'}" for name, artifact in artifacts.items()]


def run(context: Context) -> None:
    """Seal the corpus without the held-out samples, and those samples, and enter both into the index."""
    stage = Heldout(context)
    if stage.corpus.sealed and stage.artifact.sealed:
        logger.info("heldout: %s is sealed already", stage.artifact.path)
    else:
        context.require(source_corpus(context), maker(context))
        context.connect()
        taken = _take_out(context, stage) if stage.config.in_ else SAMPLE_SCHEMA.empty_table()
        if not stage.artifact.sealed:
            _seal_heldout(context, stage, taken)
    context.index.add("heldout", None, stage.artifact)
    context.index.add("corpus", None, stage.corpus)


def _take_out(context: Context, stage: Heldout) -> pa.Table:
    """Return the samples of `in`, and seal the corpus without them if it isn't yet."""
    config = stage.config.in_
    assert config is not None
    parts = stage.ingested.parts()
    chosen = ray.put(_chosen(context, stage, config, parts))
    target = None if stage.corpus.sealed else stage.corpus.begin()
    split = ray.remote(_split_part)
    divided = (split.remote(stage.ingested, part, chosen, stage.by, target, number) for number, part in enumerate(parts))
    results = finished("parts divided", divided, len(parts), at_once=context.workers)
    taken = pa.concat_tables([result[0] for result in results])
    if target is not None:
        facts = {"stage": "heldout", "version": VERSION, "ingested": stage.ingested.path, "group_by": stage.by, "held_out": len(taken)}
        seal_corpus(target, [result[1] for result in results], facts)
    return taken


def _chosen(context: Context, stage: Heldout, config: InConfig, parts: Sequence[str]) -> np.ndarray:
    """Return the groups that are held out: of the early ones if those are enough, else of all."""
    size, candidates = stage.ingested.manifest["samples"], ray.remote(_candidates)
    for share in (early_share(config, stage.by, size), 1.0):
        asked = (candidates.remote(stage.ingested, part, config, stage.by, share) for part in parts)
        found = finished("parts asked for candidates", asked, len(parts), at_once=context.workers)
        chosen, left = choose_groups(found, config, size, share)
        if not left or share == 1:
            break
    return chosen


def _candidates(corpus: Artifact, part: str, config: InConfig, by: str, share: float) -> tuple[np.ndarray, np.ndarray]:
    return candidate_groups(read_part(corpus, part, ["source", "instruction"]), config, by, share)


def _split_part(
    corpus: Artifact, part: str, chosen: np.ndarray, by: str, target: Artifact | None, number: int
) -> tuple[pa.Table, dict[str, int]]:
    """Return (the samples that are held out, the sources of the others), and write the others if there is a target."""
    samples = read_part(corpus, part)
    mask = held_out(samples, chosen, by)
    rest = samples.filter(pa.array(~mask))
    if target is not None:
        target.write(rest, f"data/part-{number:05d}.parquet")
    return samples.filter(pa.array(mask)), dict(counted(rest["source"]))


def _seal_heldout(context: Context, stage: Heldout, taken: pa.Table) -> None:
    """Check both splits against the corpus, and seal what doesn't leak and the prompts without a reference."""
    splits = {"in": taken} if stage.config.in_ else {}
    manifest: dict[str, Any] = {"stage": "heldout", "version": VERSION, "corpus": stage.corpus.path, "group_by": stage.by}
    if stage.config.out is not None:
        splits["out"], _, counts = read_corpus(stage.config.out)
        manifest["out_read"] = counts.manifest()
    kept = [HELDOUT_SCHEMA.empty_table()]
    for split, samples in splits.items():
        sought = Sought.of(samples)
        found = _find_everywhere(context, stage.corpus, sought)
        by = stage.by if split == "in" else "prompt"
        table, manifest[split] = without_leaks(samples, split, by, sought, found)
        if not len(table):
            raise NothingToHoldOut(f"evaluation.heldout.{split}: all {len(samples)} samples leak: their responses are in the corpus")
        kept.append(table)
        _tell(split, manifest[split])
    if stage.config.prompts is not None:
        table, manifest[PROMPTS] = prompt_table(stage.config.prompts, pa.concat_tables(kept))
        kept.append(table)
        _tell(PROMPTS, manifest[PROMPTS])
    artifact = stage.artifact.begin()
    samples = pa.concat_tables(kept).sort_by([("split", "ascending"), ("sample_id", "ascending")])
    artifact.write(samples)
    content = ContentHash()
    content.update(samples)
    artifact.seal({**manifest, "samples": len(samples), "content_hash": content.hexdigest()})


def _tell(split: str, counts: Mapping[str, Any]) -> None:
    logger.info("heldout: %s: %s", split, ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items()))


def _find_everywhere(context: Context, corpus: Artifact, sought: Sought) -> Found:
    """Return what of the sought occurs in any part of the corpus."""
    held, search = ray.put(sought), ray.remote(_find_in_part)
    nowhere, parts = np.zeros(0, dtype=np.int64), corpus.parts()
    found = Found(nowhere, nowhere, nowhere)
    searched = (search.remote(corpus, part, held) for part in parts)
    for part in finished("parts searched for leaks", searched, len(parts), at_once=context.workers):
        found = found.union(part)
    return found


def _find_in_part(corpus: Artifact, part: str, sought: Sought) -> Found:
    return find(read_part(corpus, part, ["instruction", "response"]), sought)


if __name__ == "__main__":
    raise SystemExit(main("heldout"))
