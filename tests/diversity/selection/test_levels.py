"""Levels against plain scans, and the errors that say what can be had."""

import logging
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.selection.controls import Control
from diversity.selection.cover import cover
from diversity.selection.levels import constant_order, level_table
from diversity.selection.peel import admissible, pool_sizes
from diversity.selection.pool import InfeasibleLevel, InfeasibleSize, make_pool
from diversity.typings.incidence import Incidence
from tests.diversity.naive import incidences, keys_of, no_control, typed_of

SEVEN = [Fraction(j, 6) for j in range(7)]


def fitting(typed, control, size, rho):
    """Return (k_min, k_max, quota, every k that fits that quota) by asking every k anew, or None where there is none."""
    n_types = typed.incidence.n_types
    pool = make_pool(typed, control, constant_order(keys_of(typed.incidence.n_samples)), n_types)
    allowed = np.flatnonzero(admissible(typed.incidence, typed))
    weights, need = pool_sizes(typed, control.weights), -(-control.budget(size) * rho.numerator // rho.denominator)
    for k in allowed:
        quota = control.quota(size, np.flatnonzero((typed.birth >= 1) & (typed.birth <= k))) if weights[k] >= need else None
        if quota is not None and cover(pool, int(k), quota):
            fits = [int(other) for other in allowed if cover(pool, int(other), quota)]
            return int(k), max(fits), quota, fits
    return None


@settings(max_examples=200, deadline=None)
@given(incidences(min_rows=6), st.sampled_from(["strict", "loose"]), st.sampled_from(["none", "tokens", "source-quota"]), st.data())
def test_the_table_equals_plain_scans(incidence, closure, name, data):
    typed, n = typed_of(incidence, closure), incidence.n_samples
    weights = (
        np.array(data.draw(st.lists(st.integers(1, 9), min_size=n, max_size=n)), np.int64) if name == "tokens" else np.ones(n, np.int64)
    )
    bins = np.array(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)), np.int32)
    control = Control(name, weights, bins if name == "source-quota" else np.zeros(n, np.int32), 3 if name == "source-quota" else 1)
    size = data.draw(st.integers(1, max(1, n // 2)))
    rho = data.draw(st.sampled_from([Fraction(1), Fraction("1.1"), Fraction("1.5"), Fraction(3)]))
    expected = fitting(typed, control, size, rho)
    try:
        plan = level_table(typed, keys_of(n), control, [size], SEVEN, float(rho))[size]
    except InfeasibleSize:
        assert expected is None
        return
    k_min, k_max, quota, fits = expected
    assert (plan.k_min, plan.k_max, plan.n_types) == (k_min, k_max, incidence.n_types)
    assert plan.quota.tolist() == quota.tolist()
    assert plan.quota.sum() == plan.budget == control.budget(size)
    for level in plan.levels:
        assert level.k_requested == round(k_min + level.fraction * (k_max - k_min))
        assert level.k_realised == max(k for k in fits if k <= level.k_requested)
        assert level.pool_size == pool_sizes(typed)[level.k_realised]
        assert plan.at(level.fraction) is level
    realised = [level.k_realised for level in plan.levels]
    assert realised == sorted(realised)
    assert (realised[0], realised[-1]) == (k_min, k_max)


def corpus(seed: int = 0, rows: int = 3000, types: int = 400) -> Incidence:
    rng = np.random.default_rng(seed)
    lists = [np.unique((rng.zipf(1.25, size=rng.integers(1, 9)) - 1) % types) for _ in range(rows)]
    return Incidence.from_lists(lists, types).used()[0]


def test_a_long_downward_scan_finds_what_asking_every_k_finds():
    incidence = corpus()
    typed, control = typed_of(incidence), no_control(3000)
    plan = level_table(typed, keys_of(3000), control, [60], SEVEN, 1.5)[60]
    k_min, k_max, _, fits = fitting(typed, control, 60, Fraction(3, 2))
    assert (plan.k_min, plan.k_max) == (k_min, k_max)
    assert k_max < incidence.n_types - 50
    assert all(level.k_realised in fits for level in plan.levels)


def test_rho_is_taken_as_written_not_as_a_binary_fraction():
    incidence = Incidence.from_lists([[0]] * 11 + [[1]] * 40, 2)
    typed = typed_of(incidence)
    typed = type(typed)(incidence, typed.type_tie, np.array([1, 2], np.int32), np.array([1] * 11 + [2] * 40, np.int32))
    assert level_table(typed, keys_of(51), no_control(51), [10], [Fraction(0)], 1.1)[10].k_min == 1  # 1.1 x 10 is 11, not 11.000…02


def test_k_of_the_largest_size_serves_all_sizes():
    incidence = corpus(1)
    typed, sizes = typed_of(incidence), [700, 1000, 1400]
    each = level_table(typed, keys_of(3000), no_control(3000), sizes, SEVEN, 1.5)
    common = level_table(typed, keys_of(3000), no_control(3000), sizes, SEVEN, 1.5, "largest")
    assert len({plan.k_min for plan in each.values()}) == 3
    assert {plan.k_min for plan in common.values()} == {each[1400].k_min}
    assert len({tuple(level.k_realised for level in plan.levels) for plan in common.values()}) == 1
    with pytest.raises(InfeasibleLevel, match="can't cover k = .* it must be at least"):
        level_table(typed, keys_of(3000), no_control(3000), [20, 1400], SEVEN, 1.5, "largest")


def test_sizes_that_cannot_be_had_are_told_what_can():
    typed = typed_of(Incidence.from_lists([[0]] * 20 + [[1]] * 10 + [[]] * 70, 2))
    with pytest.raises(InfeasibleSize, match=r"the smallest is 1, the largest 20 \(30 samples have a type\)"):
        level_table(typed, keys_of(100), no_control(100), [21], SEVEN, 1.5)
    assert level_table(typed, keys_of(100), no_control(100), [20], SEVEN, 1.5)[20].levels[-1].k_realised == 2


@settings(max_examples=40, deadline=None)
@given(incidences())
def test_the_next_size_above_a_gap_is_told(incidence):
    """What can be had is not an interval: a larger pool has more types to cover."""
    typed, n = typed_of(incidence), incidence.n_samples
    refused, had = {}, []
    for size in range(1, n + 1):
        try:
            level_table(typed, keys_of(n), no_control(n), [size], [Fraction(0)])
            had.append(size)
        except InfeasibleSize as error:
            refused[size] = str(error)
    for size, message in refused.items():
        above = min((one for one in had if one > size), default=None)
        told = re.search(r"the next above \d+ is (\d+)", message)
        inside = bool(had) and had[0] < size < had[-1]
        assert (int(told[1]) if told else None) == (above if inside else None), message


def test_equal_ends_are_warned_of(caplog):
    typed = typed_of(Incidence.from_lists([[0]] * 5, 1))
    with caplog.at_level(logging.WARNING):
        plan = level_table(typed, keys_of(5), no_control(5), [2], SEVEN, 1)[2]
    assert {level.k_realised for level in plan.levels} == {1}
    assert "all levels are equal" in caplog.text


def test_little_room_for_quotas_is_warned_of(caplog):
    typed = typed_of(Incidence.from_lists([[0]] * 9, 1))
    control = Control("length-quota", np.ones(9, np.int64), np.zeros(9, np.int32), 1)
    with caplog.at_level(logging.WARNING):
        level_table(typed, keys_of(9), control, [2], [Fraction(1)], 1.5)
    assert "rho" in caplog.text


@pytest.mark.parametrize(("sizes", "rho", "fraction"), [([], 1, 0), ([0], 1, 0), ([1], 0.9, 0), ([1], 1, 2)])
def test_bad_arguments_are_refused(sizes, rho, fraction):
    typed = typed_of(Incidence.from_lists([[0]] * 5, 1))
    with pytest.raises(ValueError, match="at least 1"):
        level_table(typed, keys_of(5), no_control(5), sizes, [Fraction(fraction)], rho)


def test_unplanned_levels_are_refused():
    typed = typed_of(Incidence.from_lists([[0]] * 5, 1))
    plan = level_table(typed, keys_of(5), no_control(5), [2], [Fraction(1)], 1)[2]
    with pytest.raises(ValueError, match="not planned"):
        plan.at(Fraction(1, 2))


def test_pools_of_higher_levels_hold_those_of_lower_ones():
    typed = typed_of(corpus(2))
    plan = level_table(typed, keys_of(3000), no_control(3000), [500], SEVEN)[500]
    pools = [set(np.flatnonzero((typed.birth >= 1) & (typed.birth <= level.k_realised))) for level in plan.levels]
    kept = [set(np.flatnonzero(typed.position <= level.k_realised)) for level in plan.levels]
    assert all(small <= large for small, large in zip(pools, pools[1:], strict=False))
    assert all(small < large for small, large in zip(kept, kept[1:], strict=False))
