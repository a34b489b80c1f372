"""Greedy coverage against its twin, brute force and chance; and the bound, which nothing may exceed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.keys import priorities
from diversity.selection.bound import SCALE, least_bound, most_covered
from diversity.selection.chance import random_coverage
from diversity.selection.controls import Control
from diversity.selection.cover import cover_then_fill
from diversity.selection.greedy import EPSILON, cover_greedily, n_windows, window_of, window_size
from diversity.selection.pool import Pool, count_types, make_pool, rarest_first
from diversity.typings.incidence import Incidence
from tests.diversity.naive import admissible_k, greedy_naive, incidences, keys_of, most_naive, no_control, pool_naive, typed_of

CLOSURES = st.sampled_from(["strict", "loose"])


@st.composite
def controlled(draw, n: int) -> tuple[Control, np.ndarray]:
    """Draw a control over n rows, and a quota in its weights."""
    name = draw(st.sampled_from(["none", "tokens", "source-quota"]))
    weights = np.array(draw(st.lists(st.integers(1, 9), min_size=n, max_size=n)) if name == "tokens" else [1] * n, dtype=np.int64)
    n_bins = 3 if name == "source-quota" else 1
    bins = np.array(draw(st.lists(st.integers(0, n_bins - 1), min_size=n, max_size=n)), dtype=np.int32)
    quota = draw(st.lists(st.integers(0, int(weights.sum()) // n_bins), min_size=n_bins, max_size=n_bins).filter(any))
    return Control(name, weights, bins, n_bins), np.array(quota, dtype=np.int64)


def greedily(typed, k: int, quota: np.ndarray, control: Control, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows, chosen_for) of greedy coverage alone."""
    keys = keys_of(typed.incidence.n_samples)
    pool = pool_of(typed, k, control, seed)
    taken, reasons = cover_greedily(pool, k, quota, keys, seed, rarest_first(pool.type_at, count_types(pool, k)))
    return pool.rows[taken], reasons


def pool_of(typed, k: int, control: Control, seed: int = 0) -> Pool:
    return make_pool(typed, control, priorities(keys_of(typed.incidence.n_samples), seed, "sample"), k)


def zipf(rows: int, types: int, seed: int = 0, spread: float = 1.0) -> Incidence:
    """Return samples of different width; `spread` is the standard deviation of its logarithm."""
    rng = np.random.default_rng(seed)
    lists = [np.unique((rng.zipf(1.2, size=int(rng.lognormal(1.5, spread)) + 1) - 1) % types) for _ in range(rows)]
    return Incidence.from_lists(lists, types).used()[0]


@settings(max_examples=200, deadline=None)
@given(incidences(min_rows=2), CLOSURES, st.integers(0, 5), st.data())
def test_greedy_coverage_equals_its_twin_under_every_control(incidence, closure, seed, data):
    typed, n = typed_of(incidence, closure), incidence.n_samples
    control, quota = data.draw(controlled(n))
    k = admissible_k(data, typed)
    rows, reasons = greedily(typed, k, quota, control, seed)
    expected = greedy_naive(incidence, typed.position, closure, k, typed.type_tie, keys_of(n), seed, quota.tolist(), control)
    assert (rows.tolist(), reasons.tolist()) == expected


@pytest.mark.parametrize("size", [10, 60])
def test_greedy_coverage_equals_its_twin_where_rounds_have_many_windows(size):
    incidence = zipf(400, 250)
    typed, control, quota = typed_of(incidence), no_control(400), np.array([size])
    rows, reasons = greedily(typed, incidence.n_types, quota, control, 3)
    expected = greedy_naive(incidence, typed.position, "strict", incidence.n_types, typed.type_tie, keys_of(400), 3, [size], control)
    assert (rows.tolist(), reasons.tolist()) == expected
    assert n_windows(400, window_size(400, size)) > 2


@settings(max_examples=150, deadline=None)
@given(incidences(max_rows=9, max_types=9, min_rows=2), CLOSURES, st.data())
def test_no_choice_of_samples_covers_more_than_the_bound(incidence, closure, data):
    typed, n = typed_of(incidence, closure), incidence.n_samples
    control, quota = data.draw(controlled(n))
    k = admissible_k(data, typed)
    pool, kept = pool_naive(incidence, typed.position, closure, k, keys_of(n))
    best = most_naive(incidence, pool, kept, quota, control)
    covered = incidence.covered(greedily(typed, k, quota, control, 0)[0])[typed.position <= k].sum()
    assert covered <= best <= most_covered(typed, k, quota, control) <= k


@settings(max_examples=30, deadline=None)
@given(incidences(max_rows=14, max_types=12, min_rows=8), st.data())
def test_on_average_over_seeds_it_reaches_its_share_of_the_optimum(incidence, data):
    typed, n, k = typed_of(incidence), incidence.n_samples, incidence.n_types
    size = data.draw(st.integers(1, 4))
    pool, kept = pool_naive(incidence, typed.position, "strict", k, keys_of(n))
    best = most_naive(incidence, pool, kept, np.array([size]), no_control(n))
    found = [incidence.covered(greedily(typed, k, np.array([size]), no_control(n), seed)[0]).sum() for seed in range(12)]
    assert np.mean(found) >= (1 - 1 / np.e - EPSILON) * best


@settings(max_examples=100, deadline=None)
@given(incidences(max_rows=9, min_rows=2), st.lists(st.integers(0, SCALE), min_size=12, max_size=12), st.data())
def test_any_prices_give_a_bound(incidence, prices, data):
    """Weak duality itself, at prices that no update would find."""
    k, n, size = incidence.n_types, incidence.n_samples, data.draw(st.integers(1, incidence.n_samples))
    scores = sorted((sum(prices[t] for t in incidence.row(i)) for i in range(n)), reverse=True)
    bound = (sum(SCALE - price for price in prices[:k]) + sum(scores[:size])) // SCALE
    assert most_naive(incidence, list(range(n)), set(range(k)), np.array([size]), no_control(n)) <= bound


def test_the_bound_is_exact_for_disjoint_types_and_close_for_real_shapes():
    disjoint = typed_of(Incidence.from_lists([[t] for t in range(30) for _ in range(3)], 30))
    assert most_covered(disjoint, 30, np.array([12]), no_control(90)) == 12
    uneven = typed_of(Incidence.from_lists([[t] for t in range(80) for _ in range(1 + t % 7)], 80))
    assert most_covered(uneven, 80, np.array([50]), no_control(uneven.incidence.n_samples)) == 50
    assert most_covered(disjoint, 30, np.array([90]), no_control(90)) == 30
    incidence = zipf(2000, 900)
    typed = typed_of(incidence)
    for size in (20, 80):
        covered = incidence.covered(greedily(typed, incidence.n_types, np.array([size]), no_control(2000), 0)[0]).sum()
        assert 0.93 < covered / most_covered(typed, incidence.n_types, np.array([size]), no_control(2000)) <= 1


def test_the_bound_ends_at_k_where_prices_say_more():
    kept = np.array([True, True, False])
    assert least_bound(kept, np.array([1, 1, 0]), 1.0, lambda prices: (int(prices.sum()) * 9, np.zeros(3))) == 2


def test_two_seeds_choose_different_samples_and_both_beat_a_random_draw():
    incidence = zipf(3000, 1500, spread=0.6)
    typed, k, control, keys = typed_of(incidence), incidence.n_types, no_control(3000), keys_of(3000)
    for size in (150, 500):
        sets = [set(cover_then_fill(typed, k, np.array([size]), control, keys, seed)[0].tolist()) for seed in range(4)]
        at_random = random_coverage(typed, k, np.array([size]), control, keys)
        assert all(incidence.covered(np.array(sorted(one))).sum() > 1.2 * at_random for one in sets)
        assert all(len(one & other) <= 0.7 * size for one in sets for other in sets if one is not other)


def test_coverage_rises_with_the_number_of_kept_types():
    incidence = zipf(4000, 1200, 1)
    typed, keys, n_types = typed_of(incidence), keys_of(4000), incidence.n_types
    for size in (30, 120, 400):
        smallest = int(np.sort(typed.birth[typed.birth > 0])[2 * size])
        ks = [smallest + (n_types - smallest) * j // 6 for j in range(7)]
        covered = [incidence.covered(cover_then_fill(typed, k, np.array([size]), no_control(4000), keys, 0)[0]).sum() for k in ks]
        assert all(low < high for low, high in zip(covered, covered[1:], strict=False)), covered


def test_windows_are_equal_ranges_that_cut_nothing_else():
    priority = np.sort(priorities(np.arange(20_000, dtype=np.uint64), 0, "x"))
    windows = window_of(priority, 50)
    assert windows[0] == 0 and windows[-1] == 49 and (np.diff(windows) >= 0).all()
    assert abs(np.bincount(windows) - 400).max() < 5 * 20
    assert (window_size(1000, 10), window_size(10, 1000), n_windows(5, 100)) == (300, 1, 1)


def test_random_coverage_is_the_mean_of_draws_that_obey_the_control():
    incidence = zipf(500, 100)
    typed, keys, n_types = typed_of(incidence), keys_of(500), incidence.n_types
    rng = np.random.default_rng(0)
    drawn = [incidence.covered(rng.choice(500, 40, replace=False)).sum() for _ in range(300)]
    found = random_coverage(typed, n_types, np.array([40]), no_control(500), keys)
    assert abs(found - np.mean(drawn)) < 4 * np.std(drawn) / np.sqrt(5)
    bins = (np.arange(500) % 2).astype(np.int32)
    assert random_coverage(typed, n_types, np.array([250, 0]), Control("source-quota", np.ones(500, np.int64), bins, 2), keys) == (
        incidence.covered(np.flatnonzero(bins == 0)).sum()
    )
    whole = random_coverage(typed, n_types, np.array([500]), no_control(500), keys)
    assert whole == n_types
