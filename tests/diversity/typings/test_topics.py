import math

import faiss
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.typings import neighbours
from diversity.typings.layout import A, B, fuzzy_graph, layout, memberships, start_positions
from diversity.typings.neighbours import cosine_neighbours, k_means, mean_vectors, nearest_centroid, one_thread
from diversity.typings.topics import TopicsConfig, agreement, by_first_row, distinct_texts, estimate_seconds, label_words, topics
from diversity.typings.typed import NoTypesError

THEMES = ["apple banana cherry fruit", "python function class code", "planet star galaxy orbit", "goal match team player"]


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def corpus(per_theme=60, noise=13, seed=0):
    """Return (table, vectors, theme of each row): tight themes, and rows that belong to none."""
    generator = np.random.default_rng(seed)
    centres = unit(generator.normal(size=(len(THEMES), 32)))
    themes = np.repeat([*range(len(THEMES)), -1], [per_theme] * len(THEMES) + [noise])
    generator.shuffle(themes)
    texts = [f"{THEMES[t] if t >= 0 else 'misc'} {i}" for i, t in enumerate(themes)]
    spread = generator.normal(size=(len(themes), 32))
    vectors = unit(np.where(themes[:, None] >= 0, centres[themes] * 8 + spread * 0.4, spread))
    ids = [f"{i:032x}" for i in range(len(themes))]
    table = pa.table({"sample_id": ids, "source": [f"s{t % 2}" for t in themes], "response": texts})
    return table, vectors, themes


CONFIG = TopicsConfig(min_cluster_size=15, max_share=1, min_topics=2, epochs=100)


@pytest.fixture(scope="module")
def found():
    table, vectors, themes = corpus()
    return table, themes, topics(table, vectors, "response-macro", CONFIG)


def labels_of(typed):
    return np.array([row[0] if row else -1 for row in typed.data["types"].to_pylist()])


def test_themes_become_topics(found):
    table, themes, typed = found
    labels = labels_of(typed)
    assert typed.types.num_rows == len(THEMES)
    for theme in range(len(THEMES)):
        own = labels[themes == theme]
        assert (own == np.bincount(own[own >= 0]).argmax()).mean() > 0.9
    summary = typed.summary()
    assert summary["method"] == "density" and summary["M"] == 4 and summary["empty"] == (labels < 0).sum()
    assert 0 < summary["largest"] < 0.3


def test_noise_has_no_type_and_is_central_to_nothing(monkeypatch):
    table, vectors, themes = corpus()
    monkeypatch.setattr("diversity.typings.topics.density_clusters", lambda vectors, config: np.where(themes == 2, -1, themes + 1))
    typed = topics(table, vectors, "response-macro", CONFIG)
    assert [not row for row in typed.data["types"].to_pylist()] == (themes == 2).tolist()
    assert typed.summary()["empty"] == 60 and typed.manifest["noise"] == round(60 / 253, 4)
    place = {sample: row for row, sample in enumerate(table["sample_id"].to_pylist())}
    assert all(themes[place[sample]] != 2 for central in typed.types["central"].to_pylist() for sample in central)


def test_types_are_numbered_by_smallest_sample_id(found):
    table, _, typed = found
    labels = labels_of(typed)
    ids = table["sample_id"].to_pylist()
    contents = typed.types["content"].to_pylist()
    assert contents == sorted(contents) and typed.types["type"].to_pylist() == list(range(len(contents)))
    for number, content in enumerate(contents):
        assert content.decode() == ids[np.flatnonzero(labels == number)[0]]
    assert typed.types["df"].to_pylist() == np.bincount(labels[labels >= 0]).tolist()


def test_labels_and_central_samples(found):
    table, themes, typed = found
    place = {sample: row for row, sample in enumerate(table["sample_id"].to_pylist())}
    for row in typed.types.to_pylist():
        theme = next(i for i, words in enumerate(THEMES) if row["label"].split(", ")[0] in words)
        assert set(row["label"].split(", ")) == set(THEMES[theme].split())
        assert len(row["central"]) == 3 and all(themes[place[sample]] == theme for sample in row["central"])


def test_same_rows_same_topics_and_duplicates_follow(found):
    table, themes, typed = found
    vectors = corpus()[1]
    again = topics(table, vectors, "response-macro", CONFIG)
    assert again.data.equals(typed.data) and again.types.equals(typed.types)
    doubled = pa.concat_tables([table, table.slice(0, 30).set_column(0, "sample_id", [[f"{i + 900:032x}" for i in range(30)]])])
    more = topics(doubled, np.concatenate([vectors, vectors[:30]]), "response-macro", CONFIG)
    assert (labels_of(more)[: len(table)] == labels_of(typed)).all()
    assert (labels_of(more)[len(table) :] == labels_of(typed)[:30]).all()
    assert more.manifest["distinct"] == len(table)


def test_too_few_topics_is_an_error():
    table, vectors, _ = corpus(20, 5)
    with pytest.raises(NoTypesError, match=r"4 topics in 85 distinct texts.*min_topics is 9"):
        topics(table, vectors, "response-macro", CONFIG.model_copy(update={"min_topics": 9, "min_cluster_size": 10}))
    with pytest.raises(NoTypesError, match="0 topics"):
        topics(table.slice(0, 9), vectors[:9], "response-macro")


def test_k_means_has_no_noise():
    table, vectors, themes = corpus(noise=0)
    typed = topics(table, vectors, "response-macro", TopicsConfig(method="k-means", clusters=4, min_topics=2))
    labels = labels_of(typed)
    assert (labels >= 0).all() and typed.manifest["method"] == "k-means"
    assert all(len(set(labels[themes == theme])) == 1 for theme in range(4))


def test_k_means_is_trained_on_the_first_rows_and_assigned_in_blocks(monkeypatch):
    from diversity.typings import topics as module

    table, vectors, _ = corpus(per_theme=120, noise=20)
    config = TopicsConfig(method="k-means", clusters=4, min_topics=2)
    monkeypatch.setattr(module, "_TRAINED", 25)
    assert module.training_rows(500, config) == 100
    monkeypatch.setattr(neighbours, "BLOCK", 64)
    monkeypatch.setattr(module, "BLOCK", 64)
    typed = topics(table, vectors, "response-macro", config)
    centroids = k_means(vectors[:100], 4, seed=0)
    nearest = (vectors @ centroids.T).argmax(axis=1)
    assert [row[0] for row in typed.data["types"].to_pylist()] == by_first_row(nearest)[0].tolist()
    assert module.assignment_blocks(500) == [(a, min(a + 64, 500)) for a in range(0, 500, 64)]
    place = {sample: row for row, sample in enumerate(table["sample_id"].to_pylist())}
    for number, central in enumerate(typed.types["central"].to_pylist()):
        own = np.flatnonzero(by_first_row(nearest)[0] == number)
        cosines = (vectors[own] * centroids[nearest[own]]).sum(axis=1)
        assert {place[sample] for sample in central} == set(own[np.argsort(-cosines)[:3]].tolist())


def test_method_follows_the_number_of_samples():
    assert TopicsConfig().by_density(200_000) and not TopicsConfig().by_density(200_001)
    assert TopicsConfig().centroids(5_000) == 50 and TopicsConfig().centroids(10**7) == 2000


def test_size_cap():
    assert TopicsConfig().sizes(117_000) == (23, 1170)
    assert TopicsConfig().sizes(1000) == (10, 40)
    table, vectors, _ = corpus(per_theme=100, noise=0)
    capped = CONFIG.model_copy(update={"max_share": 0.1, "min_cluster_size": 5})
    typed = topics(table, vectors, "response-macro", capped)
    assert max(typed.types["df"].to_pylist()) <= capped.sizes(400)[1] == 40


def test_estimates_grow_with_the_corpus():
    estimates = [estimate_seconds(n, TopicsConfig()) for n in (1000, 20_000, 100_000, 200_000)]
    assert estimates == sorted(estimates) and 60 < estimates[2] < 300


def brute_neighbours(vectors, k):
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, np.inf)
    order = np.argsort(-similar, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(similar, order, 1)


def test_neighbours_equal_brute_force():
    vectors = unit(np.random.default_rng(1).normal(size=(300, 16)))
    own, distances = cosine_neighbours(vectors, 15)
    order, similar = brute_neighbours(vectors, 15)
    assert (own == order).all()
    assert np.abs(distances[:, 1:] - (1 - similar[:, 1:])).max() < 1e-5
    assert (distances[:, 0] == 0).all() and (np.diff(distances, axis=1) >= 0).all()


def test_a_row_is_its_own_first_neighbour_among_equals():
    vectors = np.repeat(unit(np.random.default_rng(2).normal(size=(6, 8))), 20, axis=0)
    own, distances = cosine_neighbours(vectors, 5)
    assert (own[:, 0] == np.arange(120)).all()
    assert all(len(set(row)) == 5 for row in own.tolist())
    assert distances.max() < 1e-5


def test_search_in_lists_finds_most_neighbours(monkeypatch):
    monkeypatch.setattr(neighbours, "EXACT_BELOW", 1000)
    monkeypatch.setattr(neighbours, "LISTS", 32)
    generator = np.random.default_rng(3)
    vectors = unit(np.repeat(generator.normal(size=(100, 16)), 30, axis=0) + 0.3 * generator.normal(size=(3000, 16)))
    own, _ = cosine_neighbours(vectors, 10)
    order, _ = brute_neighbours(vectors, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(own.tolist(), order.tolist())])
    assert recall > 0.9 and (own[:, 0] == np.arange(3000)).all()


def test_search_in_lists_equals_a_search_row_by_row(monkeypatch):
    """Some rows look into lists of fewer than k rows."""
    monkeypatch.setattr(neighbours, "LISTS", 64)
    monkeypatch.setattr(neighbours, "PROBES", 2)
    vectors = unit(np.random.default_rng(6).normal(size=(2600, 16)))
    with one_thread():
        similar, own = neighbours._search_lists(vectors, 60)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(16), 16, 64, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.add(vectors)
        index.nprobe = 2
        expected, rows = index.search(vectors, 60)
        again = neighbours._search_lists(vectors, 60)
    assert (rows < 0).any() and ((own < 0) == (rows < 0)).all()
    assert (own == rows).all() and np.abs(similar - expected)[rows >= 0].max() < 1e-5
    assert (again[0] == similar).all() and (again[1] == own).all()


def test_k_means_is_seeded_and_of_unit_norm():
    vectors = unit(np.random.default_rng(4).normal(size=(500, 8)))
    with one_thread():
        first, second, other = (k_means(vectors, 10, seed=seed) for seed in (0, 0, 1))
    assert (first == second).all() and not (first == other).all()
    assert np.allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)
    nearest, cosine = nearest_centroid(vectors, first)
    assert (nearest == (vectors @ first.T).argmax(1)).all() and np.allclose(cosine, (vectors @ first.T).max(1))


def test_mean_vectors_equal_the_naive_means():
    vectors = unit(np.random.default_rng(5).normal(size=(50, 8)))
    labels = np.array([-1, 0, 2, 1, 1] * 10)
    expected = unit(np.stack([vectors[labels == i].sum(0) for i in range(3)]))
    assert np.allclose(mean_vectors(vectors, labels, 3), expected, atol=1e-6)


def test_memberships_sum_to_log2_of_k():
    vectors = unit(np.random.default_rng(6).normal(size=(400, 16)))
    own, distances = cosine_neighbours(vectors, 15)
    weights = memberships(own, distances)
    assert np.allclose(weights[:, 1:].sum(1), math.log2(15), atol=1e-3)
    assert (weights[:, 0] == 0).all() and np.allclose(weights[:, 1], 1)
    graph = fuzzy_graph(own, distances).toarray()
    directed = np.zeros((400, 400))
    np.put_along_axis(directed, own, weights, 1)
    assert np.allclose(graph, directed + directed.T - directed * directed.T, atol=1e-6)


def test_graph_equals_that_of_umap_learn():
    package = pytest.importorskip("umap.umap_")
    generator = np.random.default_rng(7)
    vectors = unit(np.concatenate([generator.normal(size=(300, 16)), np.repeat(generator.normal(size=(1, 16)), 20, axis=0)]))
    own, distances = cosine_neighbours(vectors, 15)
    expected = package.fuzzy_simplicial_set(np.zeros((320, 1)), 15, None, "precomputed", knn_indices=own, knn_dists=distances)[0]
    assert np.abs((expected - fuzzy_graph(own, distances)).toarray()).max() < 1e-4
    curve = package.find_ab_params(1.0, 0.0)
    assert np.allclose(curve, (A, B))


def test_layout_keeps_neighbours_together_and_is_seeded():
    _, vectors, themes = corpus(noise=0)
    own, distances = cosine_neighbours(vectors, 15)
    start = start_positions(vectors, 0)
    assert start.shape == (240, 5) and 9.9 < np.abs(start).max() < 10.1
    first = layout(own, distances, start, epochs=60, seed=1)
    assert (first == layout(own, distances, start, epochs=60, seed=1)).all()
    assert not (first == layout(own, distances, start, epochs=60, seed=2)).all()
    gaps = np.linalg.norm(first[:, None] - first[None], axis=2)
    np.fill_diagonal(gaps, np.inf)
    assert (themes[gaps.argmin(1)] == themes).mean() > 0.99


def test_start_of_few_dimensions_and_equal_rows():
    flat = unit(np.ones((10, 3)))
    assert np.isfinite(start_positions(flat, 0)).all()


@given(st.lists(st.integers(-1, 5), min_size=1, max_size=30))
def test_numbering_by_first_row(labels):
    found, count = by_first_row(np.array(labels))
    order = list(dict.fromkeys(label for label in labels if label >= 0))
    assert count == len(order)
    assert found.tolist() == [order.index(label) if label >= 0 else -1 for label in labels]


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12))
def test_distinct_texts(texts):
    first, of = distinct_texts(texts)
    assert [texts[i] for i in first] == list(dict.fromkeys(texts))
    assert [texts[first[i]] for i in of] == texts


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-1, 2), st.lists(st.sampled_from(["red", "blue", "green", "the"]), max_size=5)), min_size=1, max_size=12)
)
def test_label_words_equal_the_formula(rows):
    labels = np.array([label for label, _ in rows])
    texts = [" ".join(words) for _, words in rows]
    counts = {t: [w for label, words in rows for w in words if label == t and w != "the"] for t in range(3)}
    everything = [word for words in counts.values() for word in words]
    found = label_words(texts, labels, 3)
    mean = len(everything) / 3

    def weight(topic, word):
        words = counts[topic]
        return words.count(word) / len(words) * math.log1p(mean / everything.count(word))

    for topic in range(3):
        best = sorted(set(counts[topic]), key=lambda word: (-round(weight(topic, word), 12), word))
        shown = [] if found[topic] == "(no words)" else found[topic].split(", ")
        assert sorted(shown) == sorted(best)
        weights = [weight(topic, word) for word in shown]
        assert all(a >= b - 1e-12 for a, b in zip(weights, weights[1:]))


def test_agreement_with_sources():
    same = agreement(np.array([0, 0, 1, 1, -1]), ["a", "a", "b", "b", "c"])
    assert same == {"source_nmi": 1.0, "source_purity": 1.0, "one_source": 1.0}
    mixed = agreement(np.array([0, 0, 1, 1]), ["a", "b", "a", "b"])
    assert mixed == {"source_nmi": 0.0, "source_purity": 0.5, "one_source": 0.0}
