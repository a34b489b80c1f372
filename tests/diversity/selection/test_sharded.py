"""Selection from shards against selection on one machine: the same bytes for any cut."""

import logging
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.selection import sharded_picks
from diversity.selection.bound import most_covered
from diversity.selection.chance import random_coverage
from diversity.selection.cover import cover_then_fill
from diversity.selection.levels import level_table
from diversity.selection.peel import admissible, peel, pool_sizes
from diversity.selection.pool import InfeasibleLevel, InfeasibleSize
from diversity.selection.shard import Shard
from diversity.selection.sharded import LocalShards, peel_sharded, plan_sharded, prune_sharded
from diversity.selection.sharded_picks import count_covered, most_covered_sharded, random_coverage_sharded, select_sharded
from diversity.typings.incidence import Incidence
from tests.diversity.naive import incidences, keys_of, no_control, ties_of, typed_of

SEVEN = [Fraction(j, 6) for j in range(7)]
CUTS = [1, 2, 7]


def cut(incidence: Incidence, count: int, seed: int = 0) -> LocalShards:
    """Return shards of rows dealt at random; some may be empty, and none need be consecutive."""
    keys, where = keys_of(incidence.n_samples), np.random.default_rng(seed).integers(0, count, incidence.n_samples)
    places = [np.flatnonzero(where == number) for number in range(count)]
    return LocalShards([Shard(incidence.take(rows), keys[rows], rows) for rows in places])


def zipf(seed: int = 0, rows: int = 1500, types: int = 200, widest: int = 9) -> Incidence:
    rng = np.random.default_rng(seed)
    lists = [np.unique((rng.zipf(1.25, size=rng.integers(0, widest)) - 1) % types) for _ in range(rows)]
    return Incidence.from_lists(lists, types).used()[0]


@pytest.mark.parametrize("count", CUTS)
@settings(max_examples=60, deadline=None)
@given(incidence=incidences(), budget=st.sampled_from([1, 3, 8, 1000]), seed=st.integers(0, 9))
def test_the_peel_of_shards_is_the_peel(count, incidence, budget, seed):
    tie = ties_of(incidence.n_types)
    shards = cut(incidence, count, seed)
    assert peel_sharded(shards, tie, budget).tolist() == peel(incidence, tie).tolist()
    assert peel_sharded(shards, tie, budget).tolist() == peel(incidence, tie).tolist()  # rows that were sent can be sent again


@pytest.mark.parametrize("count", CUTS)
@pytest.mark.parametrize("budget", [1, 20, 300, 100_000])
def test_budgets_of_a_round_change_nothing(count, budget):
    incidence = zipf()
    tie = ties_of(incidence.n_types)
    assert (peel_sharded(cut(incidence, count), tie, budget) == peel(incidence, tie)).all()


@settings(max_examples=80, deadline=None)
@given(incidences(min_rows=4), st.sampled_from(["strict", "loose"]), st.sampled_from(CUTS), st.integers(0, 3), st.data())
def test_levels_and_picks_equal_those_of_one_machine(incidence, closure, count, seed, data):
    typed, n = typed_of(incidence, closure), incidence.n_samples
    sharded = prune_sharded(cut(incidence, count, seed), ties_of(incidence.n_types), closure, 4)
    assert (sharded.position == typed.position).all()
    assert (sharded.samples == pool_sizes(typed)).all()
    assert sharded.admissible.tolist() == np.flatnonzero(admissible(incidence, typed)).tolist()
    k = data.draw(st.sampled_from(sharded.admissible.tolist()))
    size, most = data.draw(st.integers(1, n)), data.draw(st.sampled_from([1, 2, None]))
    objective = data.draw(st.sampled_from(["cover", "concave"]))
    keys = keys_of(n)
    expected = either(lambda: cover_then_fill(typed, k, np.array([size]), no_control(n), keys, seed, objective))
    found = either(lambda: select_sharded(sharded, k, size, seed, objective, most))
    assert (expected is None) == (found is None)
    if found is not None:
        assert found[0].tolist() == expected[0].tolist() and found[1].tolist() == expected[1].tolist()
        assert count_covered(sharded, k, found[0]) == incidence.covered(found[0])[typed.position <= k].sum()
        assert most_covered_sharded(sharded, k, size) == most_covered(typed, k, np.array([size]), no_control(n))
        assert random_coverage_sharded(sharded, k, size) == random_coverage(typed, k, np.array([size]), no_control(n), keys)


def either(do):
    """Return what it returns, or None where the level or size can't be had."""
    try:
        return do()
    except (InfeasibleLevel, InfeasibleSize):
        return None


@settings(max_examples=60, deadline=None)
@given(incidences(min_rows=6), st.sampled_from(CUTS), st.sampled_from(["each", "largest"]), st.data())
def test_the_table_of_levels_equals_that_of_one_machine(incidence, count, kmin_from, data):
    n = incidence.n_samples
    sizes = data.draw(st.lists(st.integers(1, max(1, n // 2)), min_size=1, max_size=2, unique=True))
    rho = data.draw(st.sampled_from([1, 1.1, 1.5]))
    sharded = prune_sharded(cut(incidence, count), ties_of(incidence.n_types))
    expected = either(lambda: level_table(typed_of(incidence), no_control(n), sizes, SEVEN, rho, kmin_from))
    found = either(lambda: plan_sharded(sharded, sizes, SEVEN, rho, kmin_from))
    assert (expected is None) == (found is None)
    for size in expected or ():
        one, other = expected[size], found[size]
        assert (one.k_min, one.n_types, one.levels, one.quota.tolist()) == (other.k_min, other.n_types, other.levels, other.quota.tolist())


@pytest.mark.parametrize("count", CUTS)
def test_a_dataset_of_some_size_needs_no_more_than_candidates(count, caplog):
    incidence = zipf(3, 4000, 150)
    typed, keys = typed_of(incidence), keys_of(4000)
    with caplog.at_level(logging.WARNING):
        sharded = prune_sharded(cut(incidence, count), ties_of(incidence.n_types))
        plan = plan_sharded(sharded, [400], SEVEN)[400]
        assert plan.levels == level_table(typed, no_control(4000), [400], SEVEN)[400].levels
        for level in plan.levels:
            expected = cover_then_fill(typed, level.k_realised, plan.quota, no_control(4000), keys, 2)
            rows, reasons = select_sharded(sharded, level.k_realised, 400, 2)
            assert rows.tolist() == expected[0].tolist() and reasons.tolist() == expected[1].tolist()
    assert "gathered" not in caplog.text
    sent = sum(len(part.rows) for part in sharded.shards.each("candidates", incidence.n_types, np.ones(incidence.n_types, bool), 0, 9))
    assert sent < 150 * 9 * count


@pytest.mark.parametrize("count", CUTS)
@pytest.mark.parametrize("size", [15, 60, 120])
def test_greedy_coverage_from_shards_is_that_of_one_machine_and_moves_few_rows(count, size, caplog, monkeypatch):
    """Sizes that can't hold all types: in windows of one, a few and many shards, asked for one, some or all at once."""
    incidence = zipf(3, 6000, 800, 20)
    typed, keys, k = typed_of(incidence), keys_of(6000), incidence.n_types
    expected = cover_then_fill(typed, k, np.array([size]), no_control(6000), keys, 5)
    assert incidence.covered(expected[0]).mean() < 1
    shards, sent = cut(incidence, count), []

    class Counted:
        def each(self, method, *arguments):
            found = shards.each(method, *arguments)
            sent.append(sum(len(part.rows.rows) for part in found) if method == "propose" else 0)
            assert method != "everything"
            return found

    sharded = replace(prune_sharded(shards, ties_of(k)), shards=Counted())
    for best, block in ((1, 1), (4, 16), (2, 1000)):
        sent.clear()
        monkeypatch.setattr(sharded_picks, "_BEST", best)
        monkeypatch.setattr(sharded_picks, "_BLOCK", block)
        rows, reasons = select_sharded(sharded, k, size, 5)
        assert rows.tolist() == expected[0].tolist() and reasons.tolist() == expected[1].tolist()
        if block == 16:
            assert sum(sent) < 6000 * (1 + count) / 2
    assert "gathered" not in caplog.text


def test_what_candidates_cannot_tell_is_gathered_and_said(caplog):
    incidence = zipf(5, 600, 60)
    typed, keys = typed_of(incidence), keys_of(600)
    sharded = prune_sharded(cut(incidence, 3), ties_of(incidence.n_types))
    with caplog.at_level(logging.WARNING):
        rows, _ = select_sharded(sharded, incidence.n_types, 300, 0, "concave")
    assert "gathered" in caplog.text
    expected, _ = cover_then_fill(typed, incidence.n_types, np.array([300]), no_control(600), keys, 0, "concave")
    assert rows.tolist() == expected.tolist()


def test_disjoint_types_with_more_rows_than_a_round_never_leave_their_shards():
    incidence = Incidence.from_lists([[int(t)] for t in np.random.default_rng(0).integers(0, 5, 500)], 5)
    shards = cut(incidence, 3)
    counts = {"send": 0, "drop": 0}

    class Counted:
        def each(self, method, *arguments):
            counts[method] = counts.get(method, 0) + 1
            return shards.each(method, *arguments)

    assert (peel_sharded(Counted(), ties_of(5), 10) == peel(incidence, ties_of(5))).all()
    assert counts["send"] == 0 and counts["drop"] == 5


def test_levels_outside_the_typing_are_refused():
    incidence = Incidence.from_lists([[0], [1]], 2)
    sharded = prune_sharded(cut(incidence, 2), ties_of(2))
    with pytest.raises(ValueError, match="outside"):
        select_sharded(sharded, 3, 1, 0)
    with pytest.raises(InfeasibleLevel, match="too little"):
        select_sharded(sharded, 2, 3, 0)
