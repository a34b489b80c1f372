"""Shards in Ray actors give what one machine gives, byte for byte."""

from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest

from diversity.artifact import Storage
from diversity.cover import cover_then_fill
from diversity.incidence import Incidence
from diversity.keys import content_priorities, priorities, sample_keys
from diversity.levels import constant_order, level_table
from diversity.peel import TypedInputs, prune
from diversity.sharded import plan_sharded, prune_sharded, select_sharded
from ray_jobs.shards import shards_of
from tests.diversity.naive import no_control

LEVELS = [Fraction(0), Fraction(1, 2), Fraction(1)]


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    """Seal a small profile of three parts, as `profile_corpus` does."""
    rng = np.random.default_rng(0)
    lists = [np.unique((rng.zipf(1.3, size=rng.integers(0, 9)) - 1) % 120).astype(np.int32) for _ in range(2500)]
    incidence, _ = Incidence.from_lists(lists, 120).used()
    ids = np.sort([f"{int(a):016x}{int(b):016x}" for a, b in rng.integers(0, 1 << 62, (2500, 2))])
    artifact = Storage(str(tmp_path_factory.mktemp("storage"))).artifact("profile", "0" * 32).begin()
    types = [incidence.row(i) for i in range(2500)]
    for part, (start, stop) in enumerate([(0, 900), (900, 1800), (1800, 2500)]):
        table = pa.table({"sample_id": ids[start:stop], "types": pa.array(types[start:stop], pa.list_(pa.int32()))})
        artifact.write(table, f"data/part-{part:05d}.parquet")
    return artifact.seal({"M": incidence.n_types}), incidence, sample_keys(ids.tolist())


@pytest.mark.parametrize("count", [1, 2, 7])
def test_actors_give_what_one_machine_gives(profile, ray_local, count):
    artifact, incidence, keys = profile
    tie = content_priorities(f"type {t}".encode() for t in range(incidence.n_types))
    pruning = prune(incidence, tie)
    typed = TypedInputs(incidence, tie, pruning.position, pruning.birth)
    sharded = prune_sharded(shards_of(artifact, count), tie, rows_a_round=400)
    assert sharded.position.tobytes() == pruning.position.tobytes()
    plan = plan_sharded(sharded, [300], LEVELS)[300]
    expected_plan = level_table(typed, keys, no_control(2500), [300], LEVELS)[300]
    assert plan.levels == expected_plan.levels
    for level in plan.levels:
        rows, reasons = select_sharded(sharded, level.k_realised, 300, 1)
        order = priorities(keys, 1, "sample")
        expected = cover_then_fill(typed, level.k_realised, plan.quota, no_control(2500), order, constant_order(keys))
        assert rows.tobytes() == expected[0].tobytes() and reasons.tobytes() == expected[1].tobytes()
