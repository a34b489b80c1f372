"""A quality score for every sample by a local model, sealed beside the typings: `profile.scorer: {name: ifd}`.

The score is 1 where the instruction tells the model nothing about the response, and small where it tells nearly all (IFD, see
`training.ifd`). From 1 on instruction and response do not belong together: such a sample gets no score, and neither does one that is
too long. Spans are fixed, so that batches never depend on workers.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from diversity.artifact import Artifact, fingerprint, package_versions
from diversity.config import ConfigError
from diversity.typings import encoders
from ray_jobs.job.device import gpus
from ray_jobs.job.process import cache_folder
from ray_jobs.job.runtime import Context, once
from ray_jobs.job.waiting import finished
from ray_jobs.tasks.corpus_rows import CorpusRows, derive_corpus
from training.chat import conversations
from training.ifd import ScorerConfig, difficulties
from training.model_source import model_digest, resolve_model

logger = logging.getLogger(__name__)

VERSION = 2
SPAN_ROWS = 512
SCORES_SCHEMA = pa.schema([("sample_id", pa.string()), ("score", pa.float64())])


def score_artifact(context: Context, corpus: Artifact) -> Artifact | None:
    """Return the artifact of the scores that stand beside a corpus, a row for each sample in corpus order.

    None where nothing scores them, or where `profile.scorer.min_score` made a corpus that has them in its own column.
    """
    config = context.experiment.profile.scorer
    return None if config is None or config.min_score is not None else _scores_of(context, corpus)


def good_corpus(context: Context, corpus: Artifact) -> Artifact:
    """Return the corpus less what `profile.scorer.min_score` leaves out, with every sample's score; the corpus itself where it is null."""
    config = context.experiment.profile.scorer
    if config is None or config.min_score is None:
        return corpus
    parents = [corpus.fingerprint, _scores_of(context, corpus).fingerprint]
    name = fingerprint(stage="min-score", version=VERSION, config={"min_score": config.min_score}, parents=parents)
    return context.storage.artifact("corpus", name)


def derive_good(context: Context, corpus: Artifact) -> Artifact:
    """Score a corpus and seal `good_corpus` of it, where that isn't done, and return it.

    Raises:
        ConfigError: no sample has such a score.
    """
    config, target = context.experiment.profile.scorer, good_corpus(context, corpus)
    if config is None or config.min_score is None or target.sealed:
        return target
    context.connect()
    scores = _scores_of(context, corpus)
    if not scores.sealed:
        make_scores(context, corpus, scores, min(1, gpus(context)))
    values = scores.read(columns=["score"])["score"].to_numpy().astype(np.float64)
    rows = np.flatnonzero(values >= config.min_score)
    if not len(rows):
        best = f"the highest score is {np.nanmax(values):.3f}" if np.isfinite(values).any() else "no sample has a score"
        raise ConfigError(f"profile.scorer.min_score={config.min_score:g}: {best}")
    left_out = len(values) - len(rows)
    facts = {"stage": "min-score", "version": VERSION, "min_score": config.min_score, "below_score": left_out, "scores": scores.path}
    derive_corpus(corpus, rows, target, facts, context.workers, values[rows])
    logger.info("scores: %d samples have %g or more, %d have less or none and are left out", len(rows), config.min_score, left_out)
    return target


@once
def _scores_of(context: Context, corpus: Artifact) -> Artifact:
    """Return the artifact of a corpus's scores, of an experiment with `profile.scorer`."""
    config = context.experiment.profile.scorer
    assert config is not None
    folder = resolve_model(context.experiment.model, cache_folder())
    name = fingerprint(
        stage="sample-scores",
        version=VERSION,
        config={**_settings(config), "encoder": encoders.VERSION},
        packages=package_versions("torch", "transformers"),
        parents=[corpus.fingerprint, model_digest(folder, cache_folder())],
    )
    return context.storage.artifact("profile", name)


def _settings(config: ScorerConfig) -> dict[str, Any]:
    """Return what changes scores."""
    return config.model_dump(mode="json", exclude={"min_score"})


def make_scores(context: Context, corpus: Artifact, target: Artifact, gpu: int) -> None:
    """Score every sample in Ray tasks of fixed spans, and seal.

    Args:
        context: of an experiment with `profile.scorer`.
        corpus: sealed.
        target: of its scores, not sealed.
        gpu: 1 where a task may have one, else 0.
    """
    config, model = context.experiment.profile.scorer, context.experiment.model
    assert config is not None
    rows = CorpusRows.of(corpus)
    spans = rows.spans(SPAN_ROWS)
    task = ray.remote(_score_span).options(name="scores", num_gpus=gpu)
    spanned = (task.remote(rows, span, config, model, "cuda" if gpu else "cpu") for span in spans)
    table = pa.concat_tables(finished("spans scored", spanned, len(spans), at_once=context.workers))
    begun = target.begin()
    begun.write(table)
    scored = table["score"].drop_null()
    figures = {"scored": len(scored), "not_scored": table["score"].null_count}
    mean = float(np.mean(scored.to_numpy())) if len(scored) else None
    begun.seal({"stage": "sample-scores", "scorer": _settings(config), **figures, "mean": mean})
    logger.info("scores: %d samples, %d without one, mean %s", len(table), figures["not_scored"], mean)


def _score_span(rows: CorpusRows, span: tuple[int, int], config: ScorerConfig, model: str, device: str) -> pa.Table:
    """Return SCORES_SCHEMA of one span."""
    samples = rows.read(*span, ["sample_id", "messages", "tools"])
    said, tools = conversations(samples)
    found = difficulties(resolve_model(model, cache_folder()), said, tools, device=device, most=config.max_tokens)
    scores = pa.array(found, pa.float64(), mask=~(found < 1))
    return pa.Table.from_arrays([samples["sample_id"].cast(pa.string()), scores], schema=SCORES_SCHEMA)
