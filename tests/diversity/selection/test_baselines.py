"""The baselines against plain twins, and the exactness of their similarities."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.selection.strategies.deita import accept
from diversity.selection.strategies.facility_location import lazy_greedy, stochastic_greedy
from diversity.selection.strategies.instag import _passes
from diversity.selection.strategies.k_center import farthest_first
from diversity.selection.strategies.k_means import spherical_k_means, water_fill
from diversity.selection.strategies.token_entropy import entropies
from diversity.typings.exact_vectors import ONE, SCALE, exact_vectors
from tests.diversity.naive import incidences, sets_of


def unit(n: int, d: int = 5, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(4, d))[rng.integers(0, 4, n)] + rng.normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def exact(n: int, d: int = 5, seed: int = 0) -> np.ndarray:
    return exact_vectors(unit(n, d, seed), np.arange(n))


def similarities(vectors: np.ndarray) -> np.ndarray:
    whole = vectors.astype(np.int64)
    return whole @ whole.T


@pytest.mark.parametrize("d", [3, 256, 1024])
def test_similarities_are_whole_numbers_for_any_order_and_batch(d):
    vectors = exact(300, d)
    whole = similarities(vectors)
    assert abs(whole).max() <= 2**24
    assert (vectors @ vectors.T == whole).all()
    shuffled = np.random.default_rng(1).permutation(d)
    assert (vectors[:, shuffled] @ vectors[:, shuffled].T == whole).all()
    for start, stop in itertools.pairwise((0, 1, 8, 77, 300)):
        assert (vectors[start:stop] @ vectors.T == whole[start:stop]).all()
    assert (vectors @ vectors[7] == whole[:, 7]).all()
    assert abs(whole / ONE - unit(300, d) @ unit(300, d).T).max() < 2e-3 * math.sqrt(d) / SCALE * 1000


def test_vectors_that_are_not_unit_are_refused():
    vectors = unit(5)
    vectors[3] *= 2
    with pytest.raises(ValueError, match="row 3"):
        exact_vectors(vectors, np.arange(5)[::-1])
    assert exact_vectors(vectors, np.array([], dtype=int)).shape == (0, 5)


@pytest.mark.parametrize("seed", range(4))
def test_k_center_equals_the_plain_greedy_and_keeps_its_first_centre(seed):
    vectors, chosen = exact(60, seed=seed), [0]
    whole = ((vectors[:, None] - vectors[None]).astype(np.int64) ** 2).sum(axis=2)
    while len(chosen) < 20:
        rest = [i for i in range(60) if i not in chosen]
        chosen.append(max(rest, key=lambda i: (whole[i, chosen].min(), -i)))
    assert farthest_first(vectors, 20).tolist() == chosen
    assert sorted(farthest_first(vectors, 60)) == list(range(60))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("block", [1, 7, 64])
def test_lazy_facility_location_equals_the_plain_greedy_for_any_block(seed, block):
    vectors, chosen = exact(50, seed=seed), []
    whole = np.maximum(similarities(vectors), 0)
    while len(chosen) < 50:
        value = lambda extra: whole[:, [*chosen, extra]].max(axis=1).sum()  # noqa: E731
        rest = [i for i in range(50) if i not in chosen]
        chosen.append(max(rest, key=lambda i: (value(i), -i)))
    assert lazy_greedy(vectors, 50, block).tolist() == chosen


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(0, 5), st.sampled_from([1, 7, 64]), st.data())
def test_lazy_facility_location_equals_the_plain_greedy_on_duplicates(distinct, seed, block, data):
    places = np.array(data.draw(st.lists(st.integers(0, distinct - 1), min_size=3, max_size=90)))
    vectors, size = exact(distinct, seed=seed)[places], data.draw(st.integers(1, len(places)))
    whole, best, chosen = np.maximum(similarities(vectors), 0), np.zeros(len(places), np.int64), []
    for _ in range(size):
        gains = np.maximum(whole - best[:, None], 0).sum(axis=0)
        gains[chosen] = -1
        chosen.append(int(np.argmax(gains)))
        best = np.maximum(best, whole[:, chosen[-1]])
    assert lazy_greedy(vectors, size, block).tolist() == chosen


def test_stochastic_facility_location_is_nearly_as_good_and_follows_its_seed():
    vectors = exact(400, seed=5)
    whole = np.maximum(similarities(vectors), 0)
    value = lambda chosen: whole[:, chosen].max(axis=1).sum()  # noqa: E731
    greedy, random = value(lazy_greedy(vectors, 20)), value(np.arange(20))
    found = [stochastic_greedy(vectors, 20, seed) for seed in range(5)]
    assert all(len(set(one.tolist())) == 20 for one in found)
    assert np.mean([value(one) for one in found]) > random + 0.8 * (greedy - random)
    assert (stochastic_greedy(vectors, 20, 3) == found[3]).all()
    assert len({tuple(one.tolist()) for one in found}) > 1
    assert sorted(stochastic_greedy(vectors, 400, 0)) == list(range(400))


@pytest.mark.parametrize("block", [1, 13, 512])
@pytest.mark.parametrize("cosine", [-1.0, 0.0, 0.5, 0.9, 1.0])
def test_deita_equals_the_loop_over_pairs_for_any_block(block, cosine):
    vectors, accepted = exact(120, seed=2), []
    whole, threshold = similarities(vectors), int(cosine * ONE)
    for i in range(120):
        if all(whole[i, j] <= threshold for j in accepted) and len(accepted) < 40:
            accepted.append(i)
    nothing = np.zeros(0, dtype=np.int64)
    assert accept(vectors, 40, threshold, nothing, block).tolist() == accepted


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.data())
def test_equal_shares_lose_no_row(labels, data):
    size = data.draw(st.integers(1, len(labels)))
    label = np.array(labels)
    got = np.bincount(label[water_fill(label, size)], minlength=6)
    counts = np.bincount(label, minlength=6)
    level = max(lam for lam in range(41) if np.minimum(counts, lam).sum() <= size)
    assert got.sum() == size
    assert (got >= np.minimum(counts, level)).all() and (got <= np.minimum(counts, level + 1)).all()


def test_k_means_finds_well_separated_clusters():
    rng = np.random.default_rng(0)
    centres = np.eye(6)
    truth = rng.integers(0, 6, 900)
    truth[:6] = range(6)  # one first vector in each, as good a start as Lloyd could wish
    vectors = centres[truth] + rng.normal(size=(900, 6)) * 0.05
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    assert (spherical_k_means(exact_vectors(vectors, np.arange(900)), 6) == truth).all()
    assert (spherical_k_means(exact(50), 1) == 0).all()


def test_k_means_assigns_each_vector_to_its_most_similar_centroid():
    vectors = exact(3000, 8, seed=3)
    label = spherical_k_means(vectors, 30)
    assert (spherical_k_means(vectors, 30) == label).all()
    means = np.stack([vectors[:1920][label[:1920] == c].mean(axis=0) for c in range(30)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    assert np.mean(np.argmax(vectors @ means.T, axis=1) == label) > 0.9


def test_entropies_by_the_formula():
    samples = [[], [4], [4, 4, 4], [1, 2], [1, 2, 1, 2, 3], list(range(16))]
    ids, offsets = np.array(sum(samples, []), np.int32), np.cumsum([0, *map(len, samples)])
    expected = []
    for sample in samples:
        shares = [sample.count(v) / len(sample) for v in set(sample)]
        expected.append(-sum(p * math.log2(p) for p in shares))
    assert entropies(ids, offsets) == pytest.approx(expected)


@settings(max_examples=100, deadline=None)
@given(incidences(max_rows=20), st.data())
def test_instag_equals_the_published_passes(incidence, data):
    size = data.draw(st.integers(1, incidence.n_samples))
    sets, order = sets_of(incidence), np.argsort(-incidence.lengths(), kind="stable")
    waiting, taken = order.tolist(), []
    while len(taken) < size:
        seen, left = set(), []
        for i in waiting:
            if len(taken) < size and sets[i] - seen:
                taken.append(i)
                seen |= sets[i]
            else:
                left.append(i)
        if len(left) == len(waiting):
            taken += left[: size - len(taken)]
        waiting = left
    rows, tags = _passes(incidence.indptr, incidence.indices, order, incidence.n_types, size)
    assert rows.tolist() == taken
    assert all(tag in sets[i] or (tag == -1 and not sets[i]) for i, tag in zip(rows, tags, strict=True))


def test_max_coverage_equals_the_plain_greedy():
    from diversity.cell import Cell
    from diversity.selection.strategies import SelectionConfig, select
    from tests.diversity.selection.test_strategies import made_up

    inputs = made_up(1, SelectionConfig())
    incidence, order = inputs.typed["response-micro"].incidence, inputs.order(Cell("max_coverage", 40, None))
    sets, taken, seen = sets_of(incidence), [], set()
    while len(seen) < incidence.n_types:
        best = min((i for i in range(inputs.n) if i not in taken), key=lambda i: (-len(sets[i] - seen), -1, order[i]))
        gain = len(sets[best] - seen)
        ties = [i for i in range(inputs.n) if i not in taken and len(sets[i] - seen) == gain]
        steps = lambda i: sum(math.sqrt(have(t) + 1) - math.sqrt(have(t)) for t in sets[i])  # noqa: E731
        have = lambda t: sum(t in sets[j] for j in taken)  # noqa: E731
        best = max(ties, key=lambda i: (round(steps(i), 5), -float(order[i])))
        taken.append(best)
        seen |= sets[best]
    picks = select(inputs, Cell("max_coverage", 40, None), SelectionConfig())
    assert len(taken) < 40
    assert set(taken) <= set(picks.rows.tolist())
    assert incidence.covered(picks.rows).all()


def test_levels_of_the_baselines_that_have_one_do_what_they_say():
    from diversity.cell import Cell
    from diversity.selection.strategies import SelectionConfig, select
    from tests.diversity.selection.test_strategies import made_up

    inputs, config = made_up(0, SelectionConfig()), SelectionConfig()
    at_zero = select(inputs, Cell("k_means", 20, Fraction(0)), config).rows
    assert at_zero.tolist() == select(inputs, Cell("random", 20, None), config).rows.tolist()
    best = select(inputs, Cell("deita", 20, Fraction(0)), config).rows
    assert best.tolist() == select(inputs, Cell("longest", 20, None), config).rows.tolist()
    vectors = inputs.embeddings("response")
    closest = []
    for level in (Fraction(0), Fraction(1, 3), Fraction(1)):
        chosen = vectors[select(inputs, Cell("deita", 20, level), config).rows]
        closest.append((chosen @ chosen.T).max(initial=-1, where=~np.eye(20, dtype=bool)))
    assert closest[0] >= closest[1] - 0.05 and closest[0] >= closest[2]
