"""Tasks that seal a typing, killed at each of their storage operations and run again, as Ray does with one whose worker died."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from diversity.artifact import Artifact, Storage
from diversity.typings.embedders import EmbedderConfig
from diversity.typings.taggers import TaggerConfig
from diversity.typings.topics import TopicsConfig
from ray_jobs.tasks.corpus_rows import CorpusRows
from ray_jobs.tasks.profiling import STAGING, Tag, Tokenise, make_tags, seal_micro, seal_topics
from tests.storages import Killed, Objects, WatchedStorage

IDS = [f"{i:032x}" for i in range(12)]
TABLE = pa.table({"sample_id": IDS, "source": ["s"] * 12, "response": ["apple pie", "red planet", "a goal"] * 4})
Task = Callable[[Artifact], None]


def micro(artifact: Artifact) -> None:
    seal_micro(Tokenise(artifact, "response-micro"), {"stage": "x"}, {"n": 12, "nnz": 12, "empty": 0, "tokens": 12})


def meso(artifact: Artifact) -> None:
    make_tags(Tag(artifact, "response", TaggerConfig(max_share=1, merge=None)), "response-meso", EmbedderConfig(), {"stage": "x"})


def macro(artifact: Artifact) -> None:
    corpus = CorpusRows.of(artifact.storage.artifact("corpus", "c"))
    assigned = np.arange(12) % 3, np.linspace(0.1, 0.9, 12, dtype=np.float32)
    seal_topics(artifact, "response-macro", corpus, TopicsConfig(min_topics=1), {"stage": "x"}, assigned)


def spans_done(storage: Storage) -> Artifact:
    """Return the writer's handle of a typing as the spans leave it, beside a sealed corpus."""
    corpus = storage.artifact("corpus", "c").begin()
    corpus.write(TABLE)
    corpus.seal({})
    target = storage.artifact("profile", "f").begin()
    types = pa.array([[i % 3] for i in range(12)], pa.list_(pa.int32()))
    target.write(pa.table({"sample_id": IDS, "types": types}))
    target.write(pa.table({"type": pa.array([0, 1, 2], pa.int32())}), "types/part-00000.parquet")
    target.write(pa.table({"low": [1]}), f"{STAGING}/band/part-00000.parquet")
    tags = pa.array([["cat", "dog"] if i % 2 else ["fish"] for i in range(12)], pa.list_(pa.string()))
    target.write(pa.table({"sample_id": IDS, "tags": tags}), f"{STAGING}/tags/part-00000.parquet")
    return target


@pytest.mark.parametrize("objects", [False, True])
@pytest.mark.parametrize("task", [micro, meso, macro])
def test_a_task_killed_at_any_operation_seals_when_it_is_run_again(task: Task, objects: bool, tmp_path: Path) -> None:
    turns = dying_at = -1

    def before(operation: str, path: str) -> None:
        nonlocal turns
        turns += 1
        if turns == dying_at:
            raise Killed

    def begun(name: str) -> Artifact:
        return spans_done(WatchedStorage(str(tmp_path / name), before, Objects() if objects else None))

    def outcome(artifact: Artifact) -> tuple[dict[str, object], list[pa.Table], set[str]]:
        sealed = artifact.storage.artifact("profile", "f")
        names = {info.base_name for info in artifact.storage.list(sealed.locate())}
        left = {name for name in names if name == STAGING or not name.startswith(".")}
        return {**sealed.manifest, "data": None}, [sealed.read(folder) for folder in ("data", "types")], left

    whole = begun("whole")
    task(whole)
    expected = outcome(whole)
    assert STAGING not in expected[2]
    task(whole)  # its worker died once all was done
    assert outcome(whole) == expected
    for number in range(1000):
        artifact = begun(str(number))
        turns, dying_at = 0, number + 1
        try:
            task(artifact)
        except Killed:
            dying_at = -1
            task(artifact)
            assert outcome(artifact) == expected, number
        else:
            break
    assert number > 10
