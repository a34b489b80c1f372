"""A quality score for every sample by a local model, sealed beside the typings: `profile.scorer: {name: ifd}`.

The score is 1 where the instruction tells the model nothing about the response, and small where it tells nearly all (IFD, see
`training.ifd`). From 1 on instruction and response do not belong together: such a sample gets no score, and neither does one that is
too long. Spans are fixed, so that batches never depend on workers.
"""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa
import ray

from diversity.artifact import Artifact, fingerprint, package_versions
from ray_jobs.job.process import cache_folder
from ray_jobs.job.runtime import Context
from ray_jobs.tasks.corpus_rows import CorpusRows
from training.chat import conversations
from training.ifd import ScorerConfig, difficulties
from training.model_source import model_digest, resolve_model

logger = logging.getLogger(__name__)

VERSION = 1
SPAN_ROWS = 512
SCORES_SCHEMA = pa.schema([("sample_id", pa.string()), ("score", pa.float64())])


def score_artifact(context: Context, corpus: Artifact) -> Artifact | None:
    """Return the artifact of a corpus's scores, a row for each sample in corpus order, or None where nothing scores them."""
    config = context.experiment.profile.scorer
    if config is None:
        return None
    folder = resolve_model(context.experiment.model, cache_folder())
    name = fingerprint(
        stage="sample-scores",
        version=VERSION,
        config=config.model_dump(mode="json"),
        packages=package_versions("torch", "transformers"),
        parents=[corpus.fingerprint, model_digest(folder)],
    )
    return context.storage.artifact("profile", name)


def make_scores(context: Context, corpus: Artifact, target: Artifact, gpus: int) -> None:
    """Score every sample in Ray tasks of fixed spans, and seal.

    Args:
        context: of an experiment with `profile.scorer`.
        corpus: sealed.
        target: of `score_artifact`, not sealed.
        gpus: 1 where a task may have one, else 0.
    """
    config, model = context.experiment.profile.scorer, context.experiment.model
    assert config is not None
    rows = CorpusRows.of(corpus)
    spans = rows.spans(SPAN_ROWS)
    task = ray.remote(_score_span).options(name="scores", num_gpus=gpus)
    waiting = [task.remote(rows, span, config, model, "cuda" if gpus else "cpu") for span in spans]
    tables = []
    for number, one in enumerate(waiting, start=1):
        tables.append(ray.get(one))
        logger.info("scores: %d of %d spans", number, len(spans))
    table = pa.concat_tables(tables)
    begun = target.begin()
    begun.write(table)
    scored = table["score"].drop_null()
    figures = {"scored": len(scored), "not_scored": table["score"].null_count}
    mean = float(np.mean(scored.to_numpy())) if len(scored) else None
    begun.seal({"stage": "sample-scores", "scorer": config.model_dump(mode="json"), **figures, "mean": mean})
    logger.info("scores: %d samples, %d without one, mean %s", len(table), figures["not_scored"], mean)


def _score_span(rows: CorpusRows, span: tuple[int, int], config: ScorerConfig, model: str, device: str) -> pa.Table:
    """Return SCORES_SCHEMA of one span."""
    samples = rows.read(*span, ["sample_id", "messages", "tools"])
    said, tools = conversations(samples)
    found = difficulties(resolve_model(model, cache_folder()), said, tools, device=device, most=config.max_tokens)
    scores = pa.array(found, pa.float64(), mask=~(found < 1))
    return pa.Table.from_arrays([samples["sample_id"].cast(pa.string()), scores], schema=SCORES_SCHEMA)
