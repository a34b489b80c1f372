"""Shards in Ray actors give what one machine gives, byte for byte."""

import os
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
import ray

from diversity.artifact import Storage
from diversity.cell import Cell, GridConfig, expand
from diversity.keys import content_priorities, sample_keys
from diversity.selection.cover import cover_then_fill
from diversity.selection.levels import level_table
from diversity.selection.peel import TypedInputs, prune
from diversity.selection.sharded import plan_sharded, prune_sharded
from diversity.selection.sharded_picks import select_sharded
from diversity.selection.strategies import Inputs, SelectionConfig, select
from diversity.typings.incidence import Incidence, Typing
from diversity.typings.typed import types_table
from ray_jobs.tasks.building import Samples, Sources, prune_typing
from ray_jobs.tasks.shards import choose_from_shards, in_shards, shards_of
from tests.diversity.naive import no_control

LEVELS = [Fraction(0), Fraction(1, 2), Fraction(1)]
RAYLETS = "TEST_RAY_ADDRESS" in os.environ  # set by tests/cluster/test_shards.py, which runs these once more, on three nodes


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
    contents = [f"type {t}".encode() for t in range(incidence.n_types)]
    labels = [content.decode() for content in contents]
    artifact.write(types_table(contents, labels, incidence.df()), "types/part-00000.parquet")
    return artifact.seal({"M": incidence.n_types, "nnz": incidence.nnz}), incidence, sample_keys(ids.tolist())


@pytest.mark.parametrize("count", [1, 2, 7] if RAYLETS else [2])
def test_actors_give_what_one_machine_gives(profile, ray_local, count):
    artifact, incidence, keys = profile
    tie = content_priorities(f"type {t}".encode() for t in range(incidence.n_types))
    pruning = prune(incidence, tie)
    typed = TypedInputs(incidence, tie, pruning.position, pruning.birth)
    shards = shards_of(artifact, count)
    assert len(nodes_of(shards)) == min(count, len([node for node in ray.nodes() if node["Alive"]]))
    sharded = prune_sharded(shards, tie, rows_a_round=400)
    assert sharded.position.tobytes() == pruning.position.tobytes()
    plans = plan_sharded(sharded, [20, 300], LEVELS)  # 20 samples don't hold all types, 300 do
    expected_plans = level_table(typed, no_control(2500), [20, 300], LEVELS)
    for size, level in [(size, level) for size, plan in plans.items() for level in plan.levels]:
        assert level == expected_plans[size].at(level.fraction)
        rows, reasons = select_sharded(sharded, level.k_realised, size, 1)
        expected = cover_then_fill(typed, level.k_realised, plans[size].quota, no_control(2500), keys, 1)
        assert rows.tobytes() == expected[0].tobytes() and reasons.tobytes() == expected[1].tobytes()


def nodes_of(shards):
    """Return the nodes that the actors live on."""
    return set(ray.get([actor.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id()) for actor in shards.actors]))


@pytest.mark.parametrize("kmin_from", ["each", "largest"] if RAYLETS else ["each"])
def test_cells_and_the_sealed_peel_are_those_of_one_machine(profile, ray_local, kmin_from):
    artifact, incidence, keys = profile
    selection = SelectionConfig(kmin_from=kmin_from)
    grid = GridConfig(strategies=["response-micro"], sizes=[20, 300], levels=LEVELS)
    typing = Typing("response-micro", incidence, *([t[name] for t in artifact.read("types").to_pylist()] for name in ("content", "label")))
    peels = [artifact.storage.artifact("peel", f"{number}{kmin_from:0>31}") for number in range(2)]
    samples = Samples(np.zeros(0), keys, np.zeros(2500, np.int32), ["a"], {"response": np.ones(2500, np.int32)})
    pruned = prune_typing(typing, samples, selection, peels[0])
    inputs = Inputs(keys, samples.tokens, samples.source, samples.source_names, {"response-micro": pruned}, grid)
    cells = expand(grid, {})
    assert len(cells) == 6 and all(in_shards(cell, selection) for cell in cells)
    sources = Sources(artifact, {"response-micro": artifact}, {}, "", selection, grid, {"response-micro": peels[1]})
    for cell, found in zip(cells, choose_from_shards(sources, cells, 3, True), strict=True):
        expected = select(inputs, cell, selection)
        assert found.rows.tobytes() == expected.rows.tobytes() and found.chosen_for.tobytes() == expected.chosen_for.tobytes()
        assert (found.pool_size, found.target, found.kept.tolist()) == (expected.pool_size, expected.target, expected.kept.tolist())
    for folder in ("data", "births"):
        assert peels[0].read(folder).equals(peels[1].read(folder))


def test_there_are_no_more_shards_than_rows(tmp_path, ray_local):
    incidence = Incidence.from_lists([[0], [0, 1], [0]], 2)
    artifact = Storage(str(tmp_path)).artifact("profile", "0" * 32).begin()
    ids = [f"{number:032x}" for number in range(1, 4)]
    artifact.write(pa.table({"sample_id": ids, "types": pa.array([incidence.row(i) for i in range(3)], pa.list_(pa.int32()))}))
    shards = shards_of(artifact.seal({"M": 2, "nnz": incidence.nnz}), 7)
    assert len(shards.actors) == 3
    tie = content_priorities([b"a", b"b"])
    assert prune_sharded(shards, tie).position.tolist() == prune(incidence, tie).position.tolist()


def test_what_shards_can_not_do_is_left_to_one_task():
    cell = Cell("response-micro", 10, Fraction(1))
    assert in_shards(cell, SelectionConfig()) and in_shards(Cell("response-macro", 10, Fraction(1)), SelectionConfig(closure="loose"))
    assert not in_shards(cell, SelectionConfig(algorithm="static"))
    assert not in_shards(cell, SelectionConfig(type_order="random"))
    assert not in_shards(Cell("response-micro", 10, Fraction(1), 0, "source-quota"), SelectionConfig())
    assert not in_shards(Cell("random", 10, None), SelectionConfig())
    assert not in_shards(Cell("response-macro", 10, Fraction(1)), SelectionConfig(outliers="nearest"))
