"""Sampling: all phases against a recounting twin, water-filling against the max-min optimum, and controls."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.selection.bound import most_covered
from diversity.selection.controls import Control, apportion, length_bins, make_control
from diversity.selection.cover import cover_then_fill
from diversity.selection.fill import fill_by_weight
from diversity.selection.peel import pool_sizes
from diversity.selection.pool import InfeasibleLevel
from diversity.typings.incidence import Incidence
from tests.diversity.naive import admissible_k, incidences, keys_of, no_control, sampling_naive, ties_of, typed_of

CLOSURES = st.sampled_from(["strict", "loose"])


def run(typed, k, quota, control=None, salt=0, objective="cover"):
    n = typed.incidence.n_samples
    quota = np.array([quota] if isinstance(quota, int) else quota, dtype=np.int64)
    return cover_then_fill(typed, k, quota, control or no_control(n), keys_of(n), salt, objective)


@settings(max_examples=150, deadline=None)
@given(incidences(), CLOSURES, st.data())
def test_all_phases_equal_the_recounting_twin(incidence, closure, data):
    typed = typed_of(incidence, closure)
    k = admissible_k(data, typed)
    size = data.draw(st.integers(1, int(pool_sizes(typed)[k])))
    rows, reasons, _ = sampling_naive(incidence, typed.position, closure, k, typed.type_tie, keys_of(incidence.n_samples), 9, size)
    got, got_reasons = run(typed, k, size, salt=9)
    assert got.tolist() == rows
    assert got_reasons.tolist() == reasons


@settings(max_examples=150, deadline=None)
@given(incidences(), CLOSURES, st.sampled_from(["cover", "concave"]), st.integers(0, 3), st.data())
def test_size_coverage_pool_and_reasons(incidence, closure, objective, salt, data):
    typed = typed_of(incidence, closure)
    k = admissible_k(data, typed)
    size = data.draw(st.integers(1, int(pool_sizes(typed)[k])))
    rows, reasons = run(typed, k, size, salt=salt, objective=objective)
    assert len(rows) == len(set(rows.tolist())) == size
    assert ((typed.birth[rows] >= 1) & (typed.birth[rows] <= k)).all()
    covered, kept = incidence.covered(rows), typed.position <= k
    at_most = most_covered(typed, k, np.array([size]), no_control(incidence.n_samples))
    assert 1 <= covered[kept].sum() <= at_most <= k
    assert closure == "loose" or not covered[~kept].any()
    assert all(reason in incidence.row(row) and kept[reason] for row, reason in zip(rows, reasons, strict=True))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.data())
def test_disjoint_types_are_filled_like_water(counts, data):
    incidence = Incidence.from_lists([[t] for t, count in enumerate(counts) for _ in range(count)], len(counts))
    size = data.draw(st.integers(len(counts), sum(counts)))
    rows, _ = run(typed_of(incidence), len(counts), size)
    got = incidence.take(rows).df()
    level = max(lam for lam in range(10) if sum(min(c, lam) for c in counts) <= size)
    # The integer max-min optimum: all at min(c, level), and what is left over one each to types that have more.
    assert all(min(c, level) <= g <= min(c, level + 1) for c, g in zip(counts, got, strict=True))
    assert got.sum() == size


@settings(max_examples=60, deadline=None)
@given(incidences(), st.randoms(use_true_random=False), st.data())
def test_the_order_of_rows_does_not_matter(incidence, random, data):
    typed = typed_of(incidence)
    k = admissible_k(data, typed)
    n, size = incidence.n_samples, int(pool_sizes(typed)[k])
    new = np.array(random.sample(range(n), n))
    moved = type(typed)(incidence.take(new), typed.type_tie, typed.position, typed.birth[new])
    keys, quota = keys_of(n), np.array([data.draw(st.integers(1, size))])
    rows, reasons = cover_then_fill(typed, k, quota, no_control(n), keys, 1)
    again, why = cover_then_fill(moved, k, quota, no_control(n), keys[new], 1)
    assert new[again].tolist() == rows.tolist()
    assert why.tolist() == reasons.tolist()


@settings(max_examples=60, deadline=None)
@given(incidences(), CLOSURES, st.randoms(use_true_random=False), st.data())
def test_the_numbers_of_types_do_not_matter(incidence, closure, random, data):
    typed, n = typed_of(incidence, closure), incidence.n_samples
    k = admissible_k(data, typed)
    quota = np.array([data.draw(st.integers(1, int(pool_sizes(typed)[k])))])
    new = np.array(random.sample(range(incidence.n_types), incidence.n_types))  # type t is called new[t]
    lists = [sorted(new[incidence.row(i)].tolist()) for i in range(n)]
    back = np.argsort(new)
    renamed = type(typed)(Incidence.from_lists(lists, incidence.n_types), typed.type_tie[back], typed.position[back], typed.birth)
    rows, reasons = cover_then_fill(typed, k, quota, no_control(n), keys_of(n), 1)
    again, why = cover_then_fill(renamed, k, quota, no_control(n), keys_of(n), 1)
    assert again.tolist() == rows.tolist() and why.tolist() == new[reasons].tolist()
    assert most_covered(renamed, k, quota, no_control(n)) == most_covered(typed, k, quota, no_control(n))


@settings(max_examples=150, deadline=None)
@given(incidences(min_rows=4), CLOSURES, st.sampled_from(["cover", "concave"]), st.data())
def test_quotas_are_met_bin_by_bin(incidence, closure, objective, data):
    typed = typed_of(incidence, closure)
    k = admissible_k(data, typed)
    n = incidence.n_samples
    bins = np.array(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)), dtype=np.int32)
    control = Control("source-quota", np.ones(n, np.int64), bins, 3)
    inside = np.flatnonzero((typed.birth >= 1) & (typed.birth <= k))
    quota = control.quota(data.draw(st.integers(1, len(inside))), inside)
    rows, _ = run(typed, k, quota, control, objective=objective)
    assert np.bincount(bins[rows], minlength=3).tolist() == quota.tolist()
    assert 1 <= incidence.covered(rows)[typed.position <= k].sum() <= most_covered(typed, k, quota, control)
    assert len(set(rows.tolist())) == len(rows)


@settings(max_examples=150, deadline=None)
@given(incidences(min_rows=3), CLOSURES, st.sampled_from(["cover", "concave"]), st.data())
def test_token_budgets_leave_less_than_one_sample(incidence, closure, objective, data):
    typed = typed_of(incidence, closure)
    k = admissible_k(data, typed)
    n = incidence.n_samples
    weights = np.array(data.draw(st.lists(st.integers(1, 30), min_size=n, max_size=n)), dtype=np.int64)
    inside = (typed.birth >= 1) & (typed.birth <= k)
    budget = data.draw(st.integers(1, int(weights[inside].sum())))
    control = Control("tokens", weights, np.zeros(n, np.int32), 1)
    if budget < weights[inside].min():
        with pytest.raises(InfeasibleLevel, match="no sample of the pool"):
            run(typed, k, budget, control, objective=objective)
        return
    rows, _ = run(typed, k, budget, control, objective=objective)
    gap = budget - int(weights[rows].sum())
    assert 0 <= gap < weights[inside].max()
    covered = incidence.covered(rows)[typed.position <= k].sum()
    assert 1 <= covered <= most_covered(typed, k, np.array([budget]), control)
    assert len(set(rows.tolist())) == len(rows)
    free = np.setdiff1d(np.flatnonzero(inside), rows)
    assert covered == k or not (weights[free] <= gap).any(), "where types are missing, it goes on until nothing fits"


@pytest.mark.parametrize("objective", ["cover", "concave"])
def test_a_token_budget_is_closed_where_what_covers_leaves_room_for_a_shorter_sample(objective):
    """Row 2 is too long; whether it stands before the others of its type or not, they fit, and what covers stays."""
    typed = typed_of(Incidence.from_lists([[0], [1], [0], [0]], 2))
    control = Control("tokens", np.array([5, 5, 50, 7], np.int64), np.zeros(4, np.int32), 1)
    for salt in range(12):
        rows, reasons = run(typed, 2, 18, control, salt, objective)
        assert sorted(rows.tolist()) == [0, 1, 3] and sorted(reasons.tolist()) == [0, 0, 1]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(0, 400))
def test_filling_by_weight_stops_at_the_last_that_fits_and_closes_the_gap(weights, budget):
    weights = np.array(weights, dtype=np.int64)
    taken = fill_by_weight(weights, budget)
    plain = list(itertools.takewhile(lambda n: weights[:n].sum() <= budget, range(len(weights) + 1)))[-1]
    wanted = max(plain, int(budget >= weights.min()))  # the first may be too large where another fits
    assert len(taken) == wanted == len(set(taken.tolist()))
    assert taken[:-1].tolist() == list(range(max(0, plain - 1)))
    gap = budget - weights[taken].sum()
    assert gap >= 0
    if wanted:
        rest = [w for i, w in enumerate(weights) if i not in taken[:-1] and w <= budget - weights[taken[:-1]].sum()]
        assert weights[taken[-1]] == max(rest)


def test_even_filling_beats_a_random_draw_from_the_pool():
    def evenness(incidence, rows):
        share = incidence.take(rows).df() / incidence.take(rows).nnz
        share = share[share > 0]
        return -(share * np.log(share)).sum() / np.log(incidence.n_types)

    for fixture in range(3):
        rng = np.random.default_rng(fixture)
        lists = [np.unique((rng.zipf(1.2 + fixture / 5, size=6) - 1) % 80) for _ in range(2000)]
        incidence = Incidence.from_lists(lists, 80).used()[0]
        rows, _ = run(typed_of(incidence), incidence.n_types, 300)
        at_random = [evenness(incidence, rng.permutation(2000)[:300]) for _ in range(20)]
        assert evenness(incidence, rows) > np.mean(at_random)
        df, whole = incidence.take(rows).df(), incidence.df()
        assert df.min() >= min(1, whole.min())


def test_exchangeable_rows_are_taken_equally_often():
    """Chi-square over seeds: 40 rows of one type, 10 taken; each row's count is binomial with mean seeds/4."""
    incidence = Incidence.from_lists([[0]] * 40, 1)
    typed, seeds = typed_of(incidence), 400
    counts = np.zeros(40)
    for seed in range(seeds):
        counts[run(typed, 1, 10, salt=seed + 10)[0]] += 1
    statistic = ((counts - seeds / 4) ** 2 / (seeds / 4)).sum() / (1 - 10 / 40)
    assert statistic < 73  # the 99.9% point of chi-square with 39 degrees of freedom


def test_size_equal_to_the_pool_takes_the_pool_and_one_more_is_refused():
    incidence = Incidence.from_lists([[0], [0, 1], [1], [2], [2], [2], []], 3)
    typed = typed_of(incidence)
    assert sorted(run(typed, 3, 6)[0].tolist()) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(InfeasibleLevel, match="no k has enough"):
        run(typed, 3, 7)
    with pytest.raises(InfeasibleLevel, match="the smallest k whose pool has enough is 3"):
        run(typed, 1, 6)


def test_k_outside_the_typing_is_refused():
    typed = typed_of(Incidence.from_lists([[0], [1], [2], [0]], 3))
    for k in (0, 4):
        with pytest.raises(ValueError, match="outside 1..3"):
            run(typed, k, 2)


def test_scarce_bins_are_kept_for_the_types_that_occur_only_there():
    lists = [[0], [0], [1], [2]]
    bins = np.array([0, 1, 0, 1], dtype=np.int32)
    control = Control("source-quota", np.ones(4, np.int64), bins, 2)
    for salt in range(6):
        rows, _ = run(typed_of(Incidence.from_lists(lists, 3)), 3, [2, 1], control, salt=salt)
        assert sorted(rows.tolist()) == [0, 2, 3]


@given(st.integers(0, 500), st.lists(st.integers(0, 40), min_size=1, max_size=9).filter(any))
def test_apportionment_loses_no_row_and_overdraws_no_bin(total, shares):
    parts = apportion(total, np.array(shares))
    assert parts.sum() == total
    assert all(abs(part - total * share / sum(shares)) < 1 for part, share in zip(parts, shares, strict=True))
    if total <= sum(shares):
        assert (parts <= shares).all()


def test_length_bins_are_octiles_and_ties_share_one():
    lengths = np.arange(80)[np.random.default_rng(0).permutation(80)]
    assert np.bincount(length_bins(lengths)).tolist() == [10] * 8
    assert len(set(length_bins(np.full(30, 7)).tolist())) == 1
    assert len(length_bins(np.zeros(0, dtype=int))) == 0


def test_controls_say_what_they_hold():
    tokens = {"response": np.array([1, 2, 3, 10], np.int32)}
    source = np.array([0, 1, 1, 0])
    make = lambda name: make_control(name, tokens, source, 2)  # noqa: E731
    assert make("tokens").budget(3) == 12
    assert make("tokens").size_of(12) == 3
    assert make("none").budget(3) == 3
    assert make("source-quota").quota(2, np.array([0, 1, 2])).tolist() == [1, 1]
    with pytest.raises(ValueError, match="length-quota"):
        make("length-quoto")


def test_ties_of_types_settle_equal_counts():
    """Two types of one count: the one of smaller tie is taken for first, whatever their numbers."""
    incidence = Incidence.from_lists([[0], [1]], 2)
    for low in (0, 1):
        tie = np.array([1, 0] if low else [0, 1], np.uint64)
        typed = type(typed_of(incidence))(incidence, tie, np.array([1, 2], np.int32), np.array([1, 2], np.int32))
        assert run(typed, 2, 2)[1].tolist() == [low, 1 - low]
    assert len(set(ties_of(5).tolist())) == 5
