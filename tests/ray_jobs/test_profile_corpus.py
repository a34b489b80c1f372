"""The profile stage on a real Ray: what the library makes in one process, for any parts, spans and workers, and sealed piece by piece."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from diversity.artifact import Artifact, ArtifactError
from diversity.corpus.samples import SAMPLE_SCHEMA, sample_id
from diversity.typings.embedders import embed
from diversity.typings.tags import tags
from diversity.typings.tokens import micro
from diversity.typings.topics import topics
from diversity.typings.typed import NoTypesError
from ray_jobs import profile_corpus
from ray_jobs.job.experiment import load_experiment
from ray_jobs.job.process import cache_folder
from ray_jobs.job.runtime import Context
from ray_jobs.tasks.corpus_rows import CorpusRows
from training.model_source import resolve_model

THEMES = ["apple banana cherry orange", "python function class method", "planet galaxy comet orbit", "goal referee striker keeper"]
TYPINGS = ["instruction-macro", "instruction-meso", "instruction-micro", "response-macro", "response-micro", "response-micro@word"]
N = 400


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """Return samples of four themes, sorted by sample_id."""
    rng = random.Random(0)
    made = {}
    for i in range(N):
        words = THEMES[i % 4].split()
        asked = f"Write about {' and '.join(rng.sample(words, 3))}, number {rng.randrange(40)}"
        answered = f"{' '.join(rng.choices(words, k=8))} ünï {i % 50} <|im_end|>"
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        row = {"source": f"s{i % 4}", "instruction": asked, "response": answered, "messages": messages}
        made[sample_id(messages)] = {"sample_id": sample_id(messages), **row}
    return pa.Table.from_pylist([made[key] for key in sorted(made)], schema=SAMPLE_SCHEMA)


def context(folder: Path, table: pa.Table, parts: int, *overrides: str) -> Context:
    """Return the context of an experiment whose corpus is sealed in so many parts."""
    config = folder / "experiment.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "experiment": "e",
        "storage": str(folder / "runs"),
        "corpus": {"paths": [str(folder / "nothing.jsonl")]},
        "stages": ["ingest", "profile_corpus"],
        "evaluation": {"heldout": None},
        "grid": {"strategies": ["response-micro", "random"], "sizes": [50]},
        "profile": {
            "typings": TYPINGS,
            "band": {"low": 4, "high": 150},
            "embedder": {"group": 32},
            "topics": {"min_cluster_size": 20, "max_share": 1, "min_topics": 2, "epochs": 50},
            "tagger": {"max_share": 0.5},
        },
    }
    config.write_text(yaml.safe_dump(settings))
    given = Context(load_experiment(config, list(overrides), inside_job=False), config)
    corpus = given.storage.artifact("corpus", "made-by-hand")
    if not corpus.sealed:
        target = corpus.begin()
        cuts = np.linspace(0, len(table), parts + 1).astype(int)
        for number, (start, stop) in enumerate(zip(cuts[:-1], cuts[1:], strict=True)):
            with target.open_output(f"data/part-{number:05d}.parquet") as stream:
                pq.write_table(table.slice(start, stop - start), stream, row_group_size=17 if parts > 1 else 10_000)
        target.seal({})
    return given


@pytest.fixture(autouse=True)
def corpus_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for ingest: the corpus is the one that `context` sealed."""
    monkeypatch.setattr("ray_jobs.heldout.corpus_artifact", lambda given: given.storage.artifact("corpus", "made-by-hand"))


def content(artifact: Artifact) -> dict[str, pa.Table]:
    folders = sorted(path.name for path in Path(artifact.uri).iterdir() if path.is_dir() and path.name[0] != ".")
    return {folder: artifact.read(folder).combine_chunks() for folder in folders}


@pytest.fixture(scope="module")
def made(table: pa.Table, tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> Context:
    """Return an experiment whose profile is sealed by one worker in one span."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray_jobs.heldout.corpus_artifact", lambda given: given.storage.artifact("corpus", "made-by-hand"))
        given = context(tmp_path_factory.mktemp("one"), table, 1, "resources.data_workers=1")
        profile_corpus.run(given)
    return given


def test_stage_equals_the_library(made: Context, table: pa.Table) -> None:
    profile = made.experiment.profile
    folder = resolve_model(made.experiment.model, cache_folder(), tokenizer_only=True)
    vectors = {side: embed(table[side].to_pylist(), profile.embedder) for side in ("instruction", "response")}
    for typing in TYPINGS:
        side, granularity = typing.partition("@")[0].split("-")
        if granularity == "micro":
            expected = micro(table, typing, folder=folder, band=profile.band)
        elif granularity == "macro":
            expected = topics(table, vectors[side], typing, profile.topics)
        else:
            expected = tags(table, typing, profile.tagger, profile.embedder)
        artifact = profile_corpus.profile_artifact(made, typing)
        found = content(artifact)
        assert sorted(found) == sorted(expected.tables), typing
        for name, rows in expected.tables.items():
            assert found[name].equals(rows.combine_chunks()), (typing, name)
        summary = expected.summary()
        assert {key: artifact.manifest[key] for key in summary} == summary
    for side, expected in vectors.items():
        stored = profile_corpus.embedding_artifact(made, side).read()
        assert stored["sample_id"].equals(table["sample_id"])
        column = stored["embedding"].combine_chunks()
        assert column.type == pa.list_(pa.float32(), 256)
        assert (column.flatten().to_numpy().reshape(len(table), -1) == expected).all()


def test_other_parts_spans_and_workers_give_the_same_content(
    made: Context, table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile_corpus, "SPAN_ROWS", 32)
    monkeypatch.setattr(profile_corpus, "SPANS_A_TASK", 3)
    other = context(tmp_path, table, 5, "resources.data_workers=2")
    killed = profile_corpus.profile_artifact(other, "response-micro").begin()
    killed.write(pa.table({"sample_id": ["left behind"]}), "data/part-99999.parquet")
    killed.write(pa.table({"token_id": pa.array([3], pa.int32()), "df": [9], "tf": [9]}), ".staging/frequencies/part-99999.parquet")
    profile_corpus.run(other)
    for typing in TYPINGS:
        first, second = (profile_corpus.profile_artifact(given, typing) for given in (made, other))
        assert first.fingerprint == second.fingerprint
        assert len(second.parts()) == (1 if "micro" not in typing else 13), typing
        for name, rows in content(first).items():
            assert content(second)[name].equals(rows), (typing, name)
        assert first.manifest == second.manifest
    for side in ("instruction", "response"):
        assert content(profile_corpus.embedding_artifact(made, side)) == content(profile_corpus.embedding_artifact(other, side))


def test_what_is_sealed_is_skipped_and_indexed(made: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_corpus, "_make", lambda *arguments: pytest.fail("everything is sealed"))
    profile_corpus.run(made)
    assert set(made.index.read()["profile"]) == set(made.experiment.typings)
    assert made.index.get("profile", "response-micro").sealed and made.index.get("embeddings", "response").sealed
    lines = list(profile_corpus.plan(made))
    assert lines[0].startswith("types 4") and sum("sealed already" in line for line in lines) == len(lines) - 1


def test_a_further_typing_costs_only_itself(made: Context, table: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(made.storage.uri).parent
    more = context(folder, table, 1, "profile.typings=[instruction-micro@word, response-micro]", "resources.data_workers=1")
    started: list[str] = []
    real = profile_corpus._make
    monkeypatch.setattr(profile_corpus, "_make", lambda given, rows, missing: (started.extend(missing), real(given, rows, missing)))
    profile_corpus.run(more)
    assert started == ["instruction-micro@word"]


def test_k_means_is_trained_once_and_assigned_in_parallel(made: Context, table: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(made.storage.uri).parent
    monkeypatch.setattr(profile_corpus, "assignment_blocks", lambda n: [(start, min(start + 64, n)) for start in range(0, n, 64)])
    chosen = ["profile.topics.method=k-means", "profile.topics.clusters=6", "profile.typings=[response-macro]", "resources.data_workers=2"]
    more = context(folder, table, 1, *chosen)
    profile_corpus.run(more)
    sealed = profile_corpus.profile_artifact(more, "response-macro")
    vectors = embed(table["response"].to_pylist(), more.experiment.profile.embedder)
    expected = topics(table, vectors, "response-macro", more.experiment.profile.topics)
    for name, rows in expected.tables.items():
        assert content(sealed)[name].equals(rows.combine_chunks()), name
    assert sealed.manifest["method"] == "k-means" and sealed.manifest["empty"] == 0


def test_topics_are_as_many_as_the_levels_at_least(made: Context, table: pa.Table) -> None:
    folder = Path(made.storage.uri).parent
    found = profile_corpus.profile_artifact(made, "response-macro").manifest["M"]
    dialled = context(folder, table, 1, "grid.strategies=[response-macro]", f"grid.levels={found + 1}")
    with pytest.raises(NoTypesError, match=f"{found} topics in .* and the number of levels asked for is {found + 1}"):
        profile_corpus.run(dialled)


def test_errors_are_told_before_and_after(made: Context, table: pa.Table, tmp_path: Path) -> None:
    folder = Path(made.storage.uri).parent
    with pytest.raises(NoTypesError, match=r"min_topics is 300"):
        profile_corpus.run(context(folder, table, 1, "profile.topics.min_topics=300"))
    unsealed = context(tmp_path, table, 1)
    (tmp_path / "runs/corpus/made-by-hand/manifest.json").unlink()
    with pytest.raises(ArtifactError, match="make it with: python -m ray_jobs.ingest"):
        profile_corpus.run(unsealed)
    assert "not sealed yet: python -m ray_jobs.ingest " in next(iter(profile_corpus.plan(unsealed)))


def test_the_plan_names_what_run_asks_for_and_all_that_it_makes(table: pa.Table, tmp_path: Path) -> None:
    given = context(tmp_path, table, 1, "grid.controls=[none, length-window]", "evaluation.heldout={in: {seed: 1}}")
    head, *lines = profile_corpus.plan(given)
    assert head == "types 400 samples"
    made = {line.partition(":")[0] for line in lines}
    plain = {*given.experiment.typings, "instruction embeddings", "response embeddings"}
    assert made == {*plain, "length-window", *(f"{name}~length-window" for name in plain)} and len(lines) == len(made)
    assert all(line.partition(", ")[2].startswith("to be made") for line in lines)
    (tmp_path / "runs/corpus/made-by-hand/manifest.json").unlink()
    with pytest.raises(ArtifactError, match="make it with: python -m ray_jobs.heldout"):
        profile_corpus.run(given)
    assert "not sealed yet: python -m ray_jobs.heldout " in next(iter(profile_corpus.plan(given)))


def test_fingerprints_follow_what_changes_bytes(made: Context, table: pa.Table) -> None:
    folder = Path(made.storage.uri).parent
    name = {typing: profile_corpus.profile_artifact(made, typing).fingerprint for typing in TYPINGS}

    def changed(*overrides: str) -> set[str]:
        given = context(folder, table, 1, *overrides)
        return {typing for typing in TYPINGS if profile_corpus.profile_artifact(given, typing).fingerprint != name[typing]}

    assert changed("resources.data_workers=7", "profile.topics.min_topics=1") == set()
    assert changed("profile.band.low=5") == {typing for typing in TYPINGS if "micro" in typing}
    assert changed("profile.topics.seed=1") == {"instruction-macro", "response-macro"}
    assert changed("profile.tagger.alpha=9") == {"instruction-meso"}
    assert changed("profile.embedder.group=64") == {"instruction-macro", "response-macro"}


def test_rows_by_number(table: pa.Table, tmp_path: Path) -> None:
    corpus = context(tmp_path, table, 5).storage.artifact("corpus", "made-by-hand")
    rows = CorpusRows.of(corpus)
    assert len(rows) == len(table)
    assert rows.spans(150) == [(start, min(start + 150, len(table))) for start in range(0, len(table), 150)]
    for start, stop in [(0, 1), (0, len(table)), (79, 81), (16, 18), (3, 3 + 17), (len(table) - 1, len(table))]:
        assert rows.read(start, stop, ["sample_id", "response"]).equals(table.slice(start, stop - start).select(["sample_id", "response"]))
