"""Levels against METHOD's definition, recounted, and the errors that say what can be had."""

import logging
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.selection.controls import Control
from diversity.selection.levels import level_table
from diversity.selection.peel import admissible, pool_sizes
from diversity.selection.pool import InfeasibleSize
from diversity.typings.incidence import Incidence
from tests.diversity.naive import incidences, no_control, sets_of, typed_of

SEVEN = [Fraction(j, 6) for j in range(7)]


def ends(typed, closure, control, size, rho):
    """Return (k_min, quota) by looking at each k anew, or None where no pool is large enough."""
    incidence, position = typed.incidence, typed.position
    sets = sets_of(incidence)
    for k in range(1, incidence.n_types + 1):
        kept = {t for t in range(incidence.n_types) if position[t] <= k}
        pool = [i for i, s in enumerate(sets) if s and (s <= kept if closure == "strict" else s & kept)]
        occurs = kept <= set().union(*(sets[i] for i in pool))
        if occurs and control.weights[pool].sum() >= rho * control.budget(size):
            return k, control.quota(size, np.array(pool))
    return None


@settings(max_examples=200, deadline=None)
@given(incidences(min_rows=6), st.sampled_from(["strict", "loose"]), st.sampled_from(["none", "tokens", "source-quota"]), st.data())
def test_the_table_is_what_the_definition_says(incidence, closure, name, data):
    typed, n = typed_of(incidence, closure), incidence.n_samples
    weights = np.array(data.draw(st.lists(st.integers(1, 9), min_size=n, max_size=n)) if name == "tokens" else [1] * n, np.int64)
    bins = np.array(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)), np.int32)
    control = Control(name, weights, bins if name == "source-quota" else np.zeros(n, np.int32), 3 if name == "source-quota" else 1)
    size = data.draw(st.integers(1, n))
    rho = data.draw(st.sampled_from([Fraction(1), Fraction("1.1"), Fraction("1.5"), Fraction(3)]))
    expected = ends(typed, closure, control, size, rho)
    try:
        plan = level_table(typed, control, [size], SEVEN, float(rho))[size]
    except InfeasibleSize as error:
        assert expected is None
        largest = re.search(r"the largest (\d+)", str(error))
        assert ends(typed, closure, control, int(largest[1]), rho) if largest else ends(typed, closure, control, 1, rho) is None
        return
    k_min, quota = expected
    n_types, allowed = incidence.n_types, np.flatnonzero(admissible(incidence, typed))
    assert (plan.k_min, plan.n_types, plan.quota.tolist()) == (k_min, n_types, quota.tolist())
    assert plan.quota.sum() == plan.budget == control.budget(size)
    for level in plan.levels:
        assert level.k_requested == round(k_min + level.fraction * (n_types - k_min))
        assert level.k_realised == max(k for k in allowed if k <= level.k_requested)
        assert level.pool_size == pool_sizes(typed)[level.k_realised]
        assert plan.at(level.fraction) is level
    assert (plan.levels[0].k_realised, plan.levels[-1].k_realised) == (k_min, n_types)


def corpus(seed: int = 0, rows: int = 3000, types: int = 400) -> Incidence:
    rng = np.random.default_rng(seed)
    lists = [np.unique((rng.zipf(1.25, size=rng.integers(1, 9)) - 1) % types) for _ in range(rows)]
    return Incidence.from_lists(lists, types).used()[0]


def test_every_size_has_every_level_up_to_the_samples_with_a_type():
    """A size that is small beside M ended far below M when its levels had to be covered exactly."""
    typed, control = typed_of(corpus()), no_control(3000)
    for size in (1, 7, 60, 700, 1500, 2000):
        plan = level_table(typed, control, [size], SEVEN, 1.5)[size]
        realised = [level.k_realised for level in plan.levels]
        assert realised[-1] == plan.n_types and realised == sorted(realised)
        assert len(set(realised)) == (1 if size == 2000 else 7)
    with pytest.raises(InfeasibleSize, match="the smallest is 1, the largest 2000 .* with rho 1 the largest is 3000"):
        level_table(typed, control, [2001], SEVEN, 1.5)


def test_rho_is_taken_as_written_not_as_a_binary_fraction():
    incidence = Incidence.from_lists([[0]] * 11 + [[1]] * 40, 2)
    typed = typed_of(incidence)
    typed = type(typed)(incidence, typed.type_tie, np.array([1, 2], np.int32), np.array([1] * 11 + [2] * 40, np.int32))
    assert level_table(typed, no_control(51), [10], [Fraction(0)], 1.1)[10].k_min == 1  # 1.1 x 10 is 11, not 11.000…02


def test_k_of_the_largest_size_serves_all_sizes():
    incidence = corpus(1)
    typed, sizes = typed_of(incidence), [700, 1000, 1400]
    each = level_table(typed, no_control(3000), sizes, SEVEN, 1.5)
    common = level_table(typed, no_control(3000), sizes, SEVEN, 1.5, "largest")
    assert len({plan.k_min for plan in each.values()}) == 3
    assert {plan.k_min for plan in common.values()} == {each[1400].k_min}
    assert len({tuple(level.k_realised for level in plan.levels) for plan in common.values()}) == 1


def test_sizes_that_cannot_be_had_are_told_what_can():
    typed = typed_of(Incidence.from_lists([[0]] * 20 + [[1]] * 10 + [[]] * 70, 2))
    with pytest.raises(InfeasibleSize, match=r"the smallest is 1, the largest 20 \(30 samples have a type\)"):
        level_table(typed, no_control(100), [21], SEVEN, 1.5)
    assert level_table(typed, no_control(100), [20], SEVEN, 1.5)[20].levels[-1].k_realised == 2


def test_equal_ends_are_warned_of(caplog):
    typed = typed_of(Incidence.from_lists([[0]] * 5, 1))
    with caplog.at_level(logging.WARNING):
        plan = level_table(typed, no_control(5), [2], SEVEN, 1)[2]
    assert {level.k_realised for level in plan.levels} == {1}
    assert "all levels are equal" in caplog.text


def test_little_room_for_quotas_is_warned_of(caplog):
    typed = typed_of(Incidence.from_lists([[0]] * 9, 1))
    control = Control("length-quota", np.ones(9, np.int64), np.zeros(9, np.int32), 1)
    with caplog.at_level(logging.WARNING):
        level_table(typed, control, [2], [Fraction(1)], 1.5)
    assert "rho" in caplog.text


@pytest.mark.parametrize(("sizes", "rho", "fraction"), [([], 1, 0), ([0], 1, 0), ([1], 0.9, 0), ([1], 1, 2)])
def test_bad_arguments_are_refused(sizes, rho, fraction):
    typed = typed_of(Incidence.from_lists([[0]] * 5, 1))
    with pytest.raises(ValueError, match="at least 1"):
        level_table(typed, no_control(5), sizes, [Fraction(fraction)], rho)


def test_unplanned_levels_are_refused():
    typed = typed_of(Incidence.from_lists([[0]] * 5, 1))
    plan = level_table(typed, no_control(5), [2], [Fraction(1)], 1)[2]
    with pytest.raises(ValueError, match="not planned"):
        plan.at(Fraction(1, 2))


def test_pools_of_higher_levels_hold_those_of_lower_ones():
    typed = typed_of(corpus(2))
    plan = level_table(typed, no_control(3000), [500], SEVEN)[500]
    pools = [set(np.flatnonzero((typed.birth >= 1) & (typed.birth <= level.k_realised))) for level in plan.levels]
    kept = [set(np.flatnonzero(typed.position <= level.k_realised)) for level in plan.levels]
    assert all(small <= large for small, large in zip(pools, pools[1:], strict=False))
    assert all(small < large for small, large in zip(kept, kept[1:], strict=False))
