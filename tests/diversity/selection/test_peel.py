"""Pruning: equality with the naive twins, births and admissible k by definition, invariances, edge cases."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.selection.peel import Pruning, admissible, birth, peel, pool_sizes, prune
from diversity.selection.tournament import GONE, build, leftmost, lift, lower
from diversity.typings.incidence import Incidence
from tests.diversity.naive import best_pool, incidences, keys_of, peel_naive, sets_of, ties_of, typed_of, unique_naive

VARIANTS = [("peel", "peel"), ("peel", "size"), ("peel", "random"), ("static", "peel"), ("unique", "peel")]


@settings(max_examples=300, deadline=None)
@given(incidences(), st.booleans())
def test_peel_equals_the_naive_order(incidence, same_ties):
    tie = np.zeros(incidence.n_types, np.uint64) if same_ties else ties_of(incidence.n_types)
    assert peel(incidence, tie).tolist() == peel_naive(incidence, tie).tolist()


def test_peel_equals_the_naive_order_on_a_larger_corpus():
    rng = np.random.default_rng(3)
    rows = [np.unique((rng.zipf(1.3, size=rng.integers(0, 12)) - 1) % 300) for _ in range(600)]
    incidence = Incidence.from_lists(rows, 300).used()[0]
    tie = ties_of(incidence.n_types)
    assert peel(incidence, tie).tolist() == peel_naive(incidence, tie).tolist()


@settings(max_examples=150, deadline=None)
@given(incidences(max_rows=12, max_types=9))
def test_unique_equals_the_naive_pools_for_all_k(incidence):
    type_tie, sample_tie = ties_of(incidence.n_types), keys_of(incidence.n_samples)
    pruning = prune(incidence, type_tie, sample_tie, algorithm="unique")
    allowed = admissible(incidence, pruning)
    for k in range(1, incidence.n_types + 1):
        pool, covered = unique_naive(incidence, type_tie, sample_tie, k)
        assert bool(allowed[k]) == (len(covered) == k)
        if allowed[k]:
            assert set(np.flatnonzero((pruning.birth >= 1) & (pruning.birth <= k))) == pool
            assert set(np.flatnonzero(pruning.position <= k)) == covered


@settings(max_examples=100, deadline=None)
@given(incidences(), st.sampled_from(VARIANTS))
def test_positions_are_a_permutation_and_unique_needs_no_more(incidence, variant):
    typed = typed_of(incidence, algorithm=variant[0], type_order=variant[1])
    assert sorted(typed.position) == list(range(1, incidence.n_types + 1))
    assert (typed.birth[incidence.lengths() == 0] == 0).all()
    assert (typed.birth[incidence.lengths() > 0] >= 1).all()


@settings(max_examples=150, deadline=None)
@given(incidences(), st.sampled_from(VARIANTS[:4]), st.sampled_from(["strict", "loose"]))
def test_births_pools_and_admissible_k_by_definition(incidence, variant, closure):
    typed = typed_of(incidence, closure, *variant)
    allowed, sizes, sets = admissible(incidence, typed), pool_sizes(typed), sets_of(incidence)
    weights = np.arange(incidence.n_samples)
    weighted = pool_sizes(typed, weights)
    assert not allowed[0]
    for k in range(1, incidence.n_types + 1):
        kept = set(np.flatnonzero(typed.position <= k).tolist())
        inside = (lambda s, kept=kept: s <= kept) if closure == "strict" else (lambda s, kept=kept: bool(s & kept))
        pool = [i for i, s in enumerate(sets) if s and inside(s)]
        assert pool == np.flatnonzero((typed.birth >= 1) & (typed.birth <= k)).tolist()
        assert sizes[k] == len(pool)
        assert weighted[k] == weights[pool].sum()
        assert bool(allowed[k]) == (kept <= set().union(*(sets[i] for i in pool)) if pool else False)


@settings(max_examples=60, deadline=None)
@given(incidences(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(incidence, random):
    shuffled = random.sample(range(incidence.n_samples), incidence.n_samples)
    for algorithm, type_order in VARIANTS:
        tie, keys = ties_of(incidence.n_types), keys_of(incidence.n_samples)
        one = prune(incidence, tie, keys, algorithm=algorithm, type_order=type_order)
        other = prune(incidence.take(shuffled), tie, keys[shuffled], algorithm=algorithm, type_order=type_order)
        assert one.position.tolist() == other.position.tolist()
        assert one.birth[shuffled].tolist() == other.birth.tolist()


@settings(max_examples=60, deadline=None)
@given(incidences(), st.randoms(use_true_random=False))
def test_relabelled_types_keep_their_positions(incidence, random):
    new = random.sample(range(incidence.n_types), incidence.n_types)
    renamed = Incidence.from_lists([sorted(new[t] for t in s) for s in sets_of(incidence)], incidence.n_types)
    tie = ties_of(incidence.n_types)
    new_tie = np.empty_like(tie)
    new_tie[new] = tie
    assert peel(incidence, tie).tolist() == peel(renamed, new_tie)[new].tolist()


@settings(max_examples=60, deadline=None)
@given(incidences(), st.integers(2, 3))
def test_every_row_twice_peels_alike(incidence, times):
    tie = ties_of(incidence.n_types)
    assert peel(incidence, tie).tolist() == peel(incidence.take(np.tile(np.arange(incidence.n_samples), times)), tie).tolist()


@settings(max_examples=40, deadline=None)
@given(incidences(max_types=7))
def test_no_pool_is_larger_than_the_best(incidence):
    typed = typed_of(incidence)
    sizes = pool_sizes(typed)
    for k in range(1, incidence.n_types + 1):
        assert sizes[k] <= best_pool(incidence, k)


def test_disjoint_types_leave_smallest_first():
    incidence = Incidence.from_lists([[0], [1], [1], [2], [2], [2], []], 3)
    assert peel(incidence, np.zeros(3, np.uint64)).tolist() == [3, 2, 1]
    assert typed_of(incidence).birth.tolist() == [3, 2, 2, 1, 1, 1, 0]


def test_static_is_the_order_of_df_and_random_that_of_the_ties():
    incidence = Incidence.from_lists([[0, 1], [1, 2], [1], [2]], 3)
    tie = np.array([5, 1, 3], np.uint64)
    assert prune(incidence, tie, algorithm="static").position.tolist() == [3, 1, 2]
    assert prune(incidence, tie, type_order="size").position.tolist() == [3, 1, 2]
    assert prune(incidence, tie, type_order="random").position.tolist() == [1, 3, 2]


def test_the_literal_reading_leaves_no_pool_worth_the_name():
    """METHOD 2.8: once the first type is lost every sample owns a type, so that no pool has more than k samples."""
    rng = np.random.default_rng(0)
    incidence = Incidence.from_lists([np.unique(rng.integers(0, 60, size=6)) for _ in range(800)], 60)
    literal, ours = (pool_sizes(typed_of(incidence, algorithm=algorithm)) for algorithm in ("unique", "peel"))
    ks = np.arange(1, 60)
    assert (literal[1:60] <= ks).all()
    assert ours[45] > 3 * literal[45]


def test_bad_arguments_are_refused():
    incidence = Incidence.from_lists([[0]], 1)
    tie = ties_of(1)
    with pytest.raises(ValueError, match="M = 0"):
        prune(Incidence.from_lists([[], []], 0), ties_of(0))
    with pytest.raises(ValueError, match="priorities"):
        prune(incidence, ties_of(2))
    with pytest.raises(ValueError, match="sample_tie"):
        prune(incidence, tie, algorithm="unique")
    with pytest.raises(ValueError, match="belongs to algorithm peel"):
        prune(incidence, tie, algorithm="static", type_order="random")
    with pytest.raises(ValueError, match="loose"):
        prune(incidence, tie, tie, algorithm="unique", closure="loose")
    with pytest.raises(ValueError, match="algorithm"):
        prune(incidence, tie, algorithm="peeled")


def test_read_only_arrays_and_other_integers_give_the_same():
    rng = np.random.default_rng(1)
    incidence = Incidence.from_lists([np.unique(rng.integers(0, 20, size=4)) for _ in range(90)], 20)
    position = peel(incidence, ties_of(20))
    frozen = Incidence(incidence.indptr.copy(), incidence.indices.copy(), 20)
    for array in (frozen.indptr, frozen.indices):
        array.flags.writeable = False
    assert (peel(frozen, ties_of(20)) == position).all()
    assert (birth(frozen, position) == birth(incidence, position)).all()


def test_a_type_of_no_sample_goes_first_and_blocks_its_k():
    incidence = Incidence.from_lists([[0], [0]], 2)
    position = peel(incidence, ties_of(2))
    assert position.tolist() == [1, 2]
    assert admissible(incidence, Pruning(position, birth(incidence, position))).tolist() == [False, True, False]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=600), st.lists(st.tuples(st.integers(0, 599), st.integers(-3, 12)), max_size=40))
def test_the_tournament_keeps_the_leftmost_minimum(leaves, changes):
    values = np.array(leaves, dtype=np.int32)
    tree, offsets = build(values)
    for leaf, value in [(0, 5), *changes]:
        leaf %= len(values)
        value = GONE if value == 12 else value
        (lower if value <= values[leaf] else lift)(tree, offsets, leaf, value)
        values[leaf] = value
        assert tree[-1] == values.min()
        if values.min() < GONE:
            assert leftmost(tree, offsets) == np.argmin(values)
