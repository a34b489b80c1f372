"""SemDeDup, NovelSelect and MIG against plain twins written from their papers."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diversity.cell import Cell
from diversity.config import ConfigError
from diversity.selection.strategies import SelectionConfig, select
from diversity.selection.strategies.mig import EDGE, LabelGraph, greedy, label_graph, shares, slope
from diversity.selection.strategies.novelselect import densities, most_novel_first
from diversity.selection.strategies.semdedup import NOTHING_BEFORE, most_similar_before
from diversity.typings.exact_vectors import ONE, SCALE, exact_vectors
from tests.diversity.naive import incidences, sets_of
from tests.diversity.selection.test_baselines import exact, similarities
from tests.diversity.selection.test_strategies import made_up

FLOW = 1 << 20


@pytest.mark.parametrize("block", [1, 7, 1024])
@pytest.mark.parametrize("clusters", [1, 3])
def test_duplicates_equal_the_loop_over_pairs_for_any_block(block, clusters):
    vectors = exact(80, seed=clusters)
    vectors[40:50] = vectors[:10]
    label = np.random.default_rng(0).integers(0, clusters, 80)
    whole, found = similarities(vectors), most_similar_before(vectors, label, block)
    for cluster in range(clusters):
        members = np.flatnonzero(label == cluster)
        mean = vectors[members].sum(axis=0, dtype=np.float64)
        centroid = np.rint(mean / np.linalg.norm(mean) * SCALE)
        standing = sorted(members, key=lambda i: (vectors[i].astype(np.float64) @ centroid, i))
        for place, i in enumerate(standing):
            assert found[i] == max((whole[i, j] for j in standing[:place]), default=NOTHING_BEFORE)


def test_semdedup_drops_near_copies_first_and_more_at_higher_levels():
    inputs, config = made_up(0, SelectionConfig()), SelectionConfig()
    vectors = inputs.embeddings("response").copy()
    vectors[80:] = vectors[:80]
    inputs = dataclasses.replace(inputs, embeddings=lambda side: vectors)
    chosen = [set(select(inputs, Cell("semdedup", 40, level), config).rows.tolist()) for level in (Fraction(0), Fraction(1, 100))]
    assert chosen[0] == set(select(inputs, Cell("random", 40, None), config).rows.tolist())
    assert len({i % 80 for i in chosen[1]}) == 40 > len({i % 80 for i in chosen[0]})
    alike = most_similar_before(exact_vectors(vectors, np.arange(160)), np.zeros(160, int)) / ONE
    for level in (Fraction(1, 10), Fraction(1, 4), Fraction(1)):
        found = vectors[select(inputs, Cell("semdedup", 20, level), config).rows]
        closest = (found @ found.T).max(initial=-1, where=~np.eye(20, dtype=bool))
        enough = (alike <= 1 - level / 2).sum() >= 20
        assert enough == (level < 1)
        assert closest <= 1 - level / 2 + 1e-3 if enough else closest <= np.sort(alike)[19] + 1e-3
    assert len({tuple(select(inputs, Cell("semdedup", 20, Fraction(1, 10), seed), config).rows) for seed in range(4)}) == 4
    everything = select(inputs, Cell("semdedup", 160, Fraction(1)), config).rows
    assert everything.tolist() == list(range(160))


def novelties(vectors: np.ndarray, density: np.ndarray, chosen: list[int], near: int) -> np.ndarray:
    """Return every candidate's novelty by sorting all its values; beyond the nearest, the mean stands for each."""
    similar = similarities(vectors)[:, chosen] / ONE
    values = np.sort(np.maximum(1 - similar, 0) * (density[:, None] + density[chosen]), axis=1)
    values[:, near:] = values[:, near:].mean(axis=1, keepdims=True) if len(chosen) > near else 0
    return values @ (1 / np.arange(1, len(chosen) + 1))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("near", [1, 4, 40])
def test_novelselect_equals_sorting_all_values_for_every_pick(seed, near):
    vectors = exact(70, seed=seed)
    density = densities(vectors)
    taken = most_novel_first(vectors, density, 40, near).tolist()
    assert taken[0] == 0 and len(set(taken)) == 40
    for step in range(1, 40):
        novelty = novelties(vectors, density, taken[:step], near)
        novelty[taken[:step]] = -np.inf
        assert novelty[taken[step]] == pytest.approx(novelty.max(), rel=1e-12)
    assert sorted(most_novel_first(vectors, density, 70, near)) == list(range(70))


@pytest.mark.parametrize("block", [1, 13, 256])
def test_densities_are_those_of_the_definition_for_any_block(block):
    vectors = np.concatenate([exact(60, seed=1), exact(60, seed=1)[:5]])
    distinct = vectors[:60].astype(np.float64) / SCALE
    squared = 2 - 2 * distinct @ distinct.T
    np.fill_diagonal(squared, np.inf)
    expected = (np.sort(squared, axis=1)[:, :10].mean(axis=1) + 1e-9) ** -0.5
    found = densities(vectors, 10, block)
    assert found[:60] == pytest.approx(expected, rel=1e-9)
    assert (found[60:] == found[:5]).all()
    assert (densities(exact(8)) == 1).all()


def test_novelselect_prefers_what_is_far_from_all_chosen():
    centres = np.eye(6, dtype=np.float32)[[0] * 30 + [1, 2, 3, 4, 5]]
    vectors = exact_vectors(centres, np.arange(35))
    assert set(most_novel_first(vectors, np.ones(35), 6)) == {0, 30, 31, 32, 33, 34}


def dense_matrix(graph: LabelGraph) -> np.ndarray:
    """Return A in whole parts: A[m, l] is what of l's information m gets."""
    n = len(graph.starts) - 1
    matrix = np.zeros((n, n), dtype=np.int64)
    for label in range(n):
        for p in range(graph.starts[label], graph.starts[label + 1]):
            matrix[graph.neighbour[p], label] = graph.flow_out[p]
            assert graph.flow_in[p] == graph.flow_out[[q for q in _of(graph, graph.neighbour[p]) if graph.neighbour[q] == label]][0]
    return matrix


def _of(graph: LabelGraph, label: int) -> range:
    return range(graph.starts[label], graph.starts[label + 1])


def dense_greedy(sets, matrix: np.ndarray, share: np.ndarray, size: int) -> list[int]:
    """Return the picks of the published dense form: every sample's row times the gradient, for every pick."""
    brings = np.array([[share[i] if label in s else 0 for label in range(len(matrix))] for i, s in enumerate(sets)], dtype=np.int64)
    spread = brings @ matrix.T
    information, taken = np.zeros(len(matrix), dtype=np.int64), []
    while len(taken) < size:
        gains = spread @ np.array([slope(z) for z in information], dtype=np.int64)
        gains[taken] = -1
        taken.append(int(np.argmax(gains)))
        information += spread[taken[-1]]
    return taken


@settings(max_examples=60, deadline=None)
@given(incidences(max_rows=20), st.integers(0, 5), st.floats(0.05, 0.9), st.data())
def test_mig_equals_the_dense_form(incidence, seed, edge, data):
    n = incidence.n_samples
    graph = label_graph(incidence, exact(n, 3, seed), edge, block=4)
    scores = np.array(data.draw(st.lists(st.floats(-1, 1), min_size=n, max_size=n))) if data.draw(st.booleans()) else np.ones(n)
    assume(scores.max() > 0)
    share, sets = shares(incidence, scores), sets_of(incidence)
    taken, label = greedy(incidence, graph, share, n)
    assert taken.tolist() == dense_greedy(sets, dense_matrix(graph), share, n)
    assert all(t in sets[i] if sets[i] else t == -1 for i, t in zip(taken, label, strict=True))


def test_the_label_graph_is_column_normalised_and_joins_labels_of_like_samples():
    directions = np.eye(4, dtype=np.float32)
    rows = [[0], [1], [2], [0, 1], [3], [0], [1], []]
    vectors = directions[[0, 0, 1, 0, 2, 0, 0, 3]]
    from diversity.typings.incidence import Incidence

    incidence = Incidence.from_lists(rows, 4)
    graph = label_graph(incidence, exact_vectors(vectors, np.arange(8)), EDGE)
    matrix = dense_matrix(graph)
    assert (matrix > 0).tolist() == [[True, True, False, False]] * 2 + [[False, False, True, False], [False, False, False, True]]
    assert (abs(matrix.sum(axis=0) - FLOW) <= 4).all()
    taken, _ = greedy(incidence, graph, shares(incidence, np.ones(8)), 3)
    assert sorted({0: 0, 1: 0, 2: 2, 3: 3}[rows[i][0]] for i in taken) == [0, 2, 3]


def test_scores_weigh_information():
    inputs = made_up(2, SelectionConfig())
    scores = np.zeros(inputs.n)
    scores[100:] = 1.0
    picks = select(dataclasses.replace(inputs, scores=lambda: scores), Cell("mig", 20, None), SelectionConfig())
    assert picks.rows.min() >= 100


def test_scores_of_which_none_is_above_zero_are_refused():
    inputs, cell = made_up(2, SelectionConfig()), Cell("mig", 20, None)
    for scores in (np.full(inputs.n, -1.5), np.minimum(np.arange(inputs.n) - inputs.n + 1, 0)):
        with pytest.raises(ConfigError, match=r"mig_n20_s0: mig needs scores above 0, and the highest is (-1\.5|0)$"):
            select(dataclasses.replace(inputs, scores=lambda scores=scores: scores), cell, SelectionConfig())
