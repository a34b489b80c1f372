"""Every sample's score by a local model, sealed beside the typings: what the tasks write is what the function gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from diversity.config import ConfigError, parse
from diversity.corpus.samples import SAMPLE_SCHEMA, Sample, samples_table, to_sample
from ray_jobs.job.experiment import Experiment
from ray_jobs.job.process import cache_folder
from ray_jobs.job.runtime import Context
from ray_jobs.tasks import building, scoring
from training.ifd import difficulties
from training.model_source import resolve_model


@pytest.mark.usefixtures("ray_local")
def test_scores_are_ifd_below_one_in_corpus_order_whatever_the_spans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"instruction": f"What is {i} plus {i}?", "output": f"It is {2 * i}."} for i in range(6)]
    rows.append({"instruction": "Repeat " + "a b c " * 60, "output": "a b c"})
    found = [to_sample(row, default_source="s") for row in rows]
    samples = sorted((one for one in found if isinstance(one, Sample)), key=lambda one: one.sample_id)
    values = {"experiment": "e", "storage": str(tmp_path), "corpus": {"paths": ["x.jsonl"]}, "profile": {"scorer": {"max_tokens": 64}}}
    context = Context(parse(Experiment, values), Path("e.yaml"))
    corpus = context.storage.artifact("corpus", "c").begin()
    corpus.write(samples_table(samples))
    corpus = corpus.seal({"group_by": "prompt"})
    monkeypatch.setattr(scoring, "SPAN_ROWS", 4)
    target = scoring.score_artifact(context, corpus)
    assert target is not None
    scoring.make_scores(context, corpus, target, 0)
    table = target.read()
    assert table["sample_id"].to_pylist() == [one.sample_id for one in samples] and table.schema == scoring.SCORES_SCHEMA
    expected = difficulties(resolve_model(context.experiment.model, cache_folder()), [one.messages for one in samples], most=64)
    expected = np.where(expected < 1, expected, np.nan)
    assert np.isnan(expected).sum() >= 1, "one is too long"
    np.testing.assert_allclose(table["score"].to_numpy(zero_copy_only=False).astype(float), expected, rtol=1e-3)
    assert target.manifest["scored"] + target.manifest["not_scored"] == 7
    sources = building.Sources(corpus, {}, {}, "m", context.experiment.selection, context.experiment.grid, scores=target)
    np.testing.assert_array_equal(building.load_scores(sources), table["score"].to_numpy(zero_copy_only=False).astype(float))
    assert building.load_scores(building.Sources(corpus, {}, {}, "m", context.experiment.selection, context.experiment.grid)) is None
    assert pa.schema(SAMPLE_SCHEMA).equals(corpus.read().schema)

    least = float(np.sort(expected[~np.isnan(expected)])[2])
    cut = over_least(context, least)
    good = scoring.derive_good(cut, corpus)
    assert scoring.derive_good(cut, corpus) == good != corpus == scoring.derive_good(context, corpus), (
        "nothing is cut where nothing is asked"
    )
    kept, scores = good.read(), table["score"].to_pylist()
    assert kept["score"].to_pylist() == [score for score in scores if score is not None and score >= least]
    assert kept["sample_id"].to_pylist() == [one.sample_id for one, score in zip(samples, scores, strict=True) if score and score >= least]
    assert good.manifest["below_score"] == 7 - len(kept) and good.manifest["samples"] == len(kept) == sum(good.manifest["sources"].values())
    assert scoring.score_artifact(cut, good) is None, "the scores are the derived corpus's own column"
    with pytest.raises(ConfigError, match=r"min_score=9: the highest score is 0\.\d"):
        scoring.derive_good(over_least(context, 9), corpus)


def over_least(context: Context, least: float) -> Context:
    """Return a context whose scorer leaves out what scores lower."""
    values = context.experiment.model_dump(exclude_unset=True)
    return Context(parse(Experiment, {**values, "profile": {"scorer": {"max_tokens": 64, "min_score": least}}}), Path("e.yaml"))
