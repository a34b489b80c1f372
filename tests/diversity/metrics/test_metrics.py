from __future__ import annotations

import gzip
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from diversity import metrics
from diversity.metrics import METRICS, METRICS_SCHEMA, PAPER_METRICS, Sequences, geometric, measure, ngrams

few = settings(max_examples=60, deadline=None)
documents = st.lists(st.lists(st.integers(0, 6), max_size=14), min_size=1, max_size=9)


def csr(rows):
    return Sequences(np.array([t for row in rows for t in row], np.int32), np.cumsum([0, *map(len, rows)]))


def grams(row, n):
    return [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]


def zipf_documents(n, generator):
    lengths = generator.integers(5, 120, size=n)
    return [np.minimum(generator.zipf(1.3, size=length), 5000).tolist() for length in lengths]


# ---- naive twins


def naive_bleu(row, others, max_n, epsilon):
    """BLEU as Papineni et al. write it, against every reference in turn."""
    logs = 0.0
    for n in range(1, max_n + 1):
        counts = Counter(grams(row, n))
        references = [Counter(grams(other, n)) for other in others]
        matched = sum(min(count, max(reference[gram] for reference in references)) for gram, count in counts.items())
        if matched == 0 and (n == 1 or epsilon == 0):
            return 0.0
        logs += math.log((matched or epsilon) / max(1, sum(counts.values()))) / max_n
    nearest = min((len(other) for other in others), key=lambda length: (abs(length - len(row)), length))
    return math.exp(logs + min(0.0, 1 - nearest / len(row)))


def naive_mtld(row, threshold):
    def one_way(tokens):
        factors, types, length = 0.0, set(), 0
        for token in tokens:
            types.add(token)
            length += 1
            if Fraction(len(types), length) <= Fraction(str(threshold)):
                factors, types, length = factors + 1, set(), 0
        if length:
            factors += (1 - len(types) / length) / (1 - threshold)
        return len(tokens) / factors if factors else len(tokens)

    return (one_way(row) + one_way(row[::-1])) / 2


def assert_numbered_by_content(rows, n):
    """Equal n-grams have one number, others another one, and what occurs once has none where n is 2 or more."""
    numbered = csr(rows).ngrams(n)
    expected = [gram for row in rows for gram in grams(row, n)]
    counts = Counter(expected)
    found = numbered.ids[numbered.ids != ngrams.BORDER].tolist()
    assert numbered.total == len(expected) == len(found)
    assert numbered.distinct == len(counts)
    assert [number == ngrams.ONCE for number in found] == [n > 1 and counts[gram] == 1 for gram in expected]
    pairs = {(number, gram) for number, gram in zip(found, expected) if number != ngrams.ONCE}
    assert sorted(number for number, _ in pairs) == list(range(numbered.numbered))
    assert len({gram for _, gram in pairs}) == numbered.numbered


@few
@given(documents, st.integers(1, 5))
def test_ngrams_are_numbered_by_content_and_cross_no_border(rows, n):
    assert_numbered_by_content(rows, n)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("first", [0, ngrams.MOST_TOKENS])
def test_ngrams_of_many_tokens(n, first):
    """Here there are many runs, and token ids that are looked up directly and not."""
    rows = [[first + token for token in row] for row in zipf_documents(900, np.random.default_rng(7))]
    assert sum(map(len, rows)) > 2 * ngrams.RUN_PAIRS
    assert_numbered_by_content(rows, n)


@few
@given(documents, st.integers(1, 4))
def test_ngram_ratios(rows, n):
    everything = [gram for row in rows for gram in grams(row, n)]
    assume(everything)
    assert metrics.ngram_ratio(csr(rows), n) == len(set(everything)) / len(everything)
    each = [len(set(grams(row, n))) / len(grams(row, n)) for row in rows if len(row) >= n]
    assert metrics.ngram_ratio_per_sample(csr(rows), n) == pytest.approx(np.mean(each))


@few
@given(documents.filter(lambda rows: len(rows) > 1), st.sampled_from([0.0, 0.1]), st.integers(1, 4))
def test_self_bleu_is_that_of_all_pairs(rows, epsilon, max_n):
    expected = [naive_bleu(row, rows[:i] + rows[i + 1 :], max_n, epsilon) if row else 0.0 for i, row in enumerate(rows)]
    assert metrics.self_bleu_each(csr(rows), max_n, epsilon) == pytest.approx(expected, abs=1e-12)
    assert metrics.self_bleu(csr(rows), max_n, epsilon) == pytest.approx(np.mean(expected), abs=1e-12)


def test_self_bleu_is_nltks():
    bleu = pytest.importorskip("nltk.translate.bleu_score", reason="needs nltk, of the extra `bench`")
    smooth = bleu.SmoothingFunction(epsilon=0.1).method1
    rows = [row for row in zipf_documents(40, np.random.default_rng(5)) if len(row) >= 4]
    expected = [bleu.sentence_bleu(rows[:i] + rows[i + 1 :], row, smoothing_function=smooth) for i, row in enumerate(rows)]
    assert metrics.self_bleu_each(csr(rows), epsilon=0.1) == pytest.approx(expected, rel=1e-12)
    assert 0.05 < np.mean(expected) < 0.9


def test_self_bleu_by_hand():
    same = [[1, 2, 3, 4, 5]] * 2
    assert metrics.self_bleu(csr(same)) == pytest.approx(1.0)
    assert metrics.self_bleu(csr([[1, 2, 3, 4], [5, 6, 7, 8]])) == 0
    # the n-gram 2 2 occurs twice here and once elsewhere: clipped to 1; unigrams 3/4, bigrams 2/3; the lengths agree
    value = metrics.self_bleu_each(csr([[2, 2, 2, 9], [2, 2, 8, 9]]), max_n=2)[0]
    assert value == pytest.approx(math.sqrt(3 / 4 * 1 / 3))


@few
@given(documents, st.integers(1, 4))
def test_self_repetition(rows, n):
    sets = [set(grams(row, n)) for row in rows]
    expected = [math.log(1 + sum(gram in other for gram in own for j, other in enumerate(sets) if j != i)) for i, own in enumerate(sets)]
    assert metrics.self_repetition(csr(rows), n) == pytest.approx(np.mean(expected), abs=1e-12)


@few
@given(documents)
def test_entropy_and_effective_types(rows):
    counts = Counter(token for row in rows for token in row)
    assume(counts)
    total = sum(counts.values())
    expected = -sum(c / total * math.log2(c / total) for c in counts.values())
    table = measure("response", tokens=csr(rows).tokens, offsets=csr(rows).offsets, metrics=["entropy", "effective_types"]).to_pylist()
    assert [row["value"] for row in table if row["variant"] == "pooled"] == pytest.approx([expected, 2**expected])
    df = Counter(token for row in rows for token in set(row))
    assert sorted(metrics.token_counts(csr(rows), document_frequency=True)) == sorted(df.values())
    assert metrics.entropy(np.array([7, 7, 7, 7, 0])) == 2 and metrics.effective_types(np.array([7, 7, 7, 7])) == 4


@few
@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=80), min_size=1, max_size=4), st.sampled_from([0.5, 0.72]))
def test_mtld(rows, threshold):
    expected = np.mean([naive_mtld(row, threshold) for row in rows])
    assert metrics.mtld(csr(rows), threshold, min_tokens=1) == pytest.approx(expected)


def test_mtld_leaves_short_samples_out_and_gives_the_length_without_repeats():
    assert metrics.mtld(csr([list(range(60)), [1, 1]])) == 60
    assert math.isnan(metrics.mtld(csr([[1, 2, 3]])))


def test_compression_is_that_of_one_gzip():
    texts = ["the same line again " * 30, "", "naïve — 雪"]
    content = "\n".join(texts).encode()
    assert metrics.compression_ratio(texts) == pytest.approx(len(content) / len(gzip.compress(content, 9, mtime=0)), rel=1e-3)
    generator = np.random.default_rng(0)
    noise = ["".join(chr(33 + c) for c in generator.integers(90, size=2000))]
    assert metrics.compression_ratio(["ab" * 1000]) > 20 > metrics.compression_ratio(noise)
    assert math.isnan(metrics.compression_ratio([]))


def vectors(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def similarities(x):
    unit = geometric.unit_rows(x).astype(np.float64)
    return unit @ unit.T


@pytest.mark.parametrize(("n", "d"), [(2, 3), (5, 8), (40, 5), (1500, 4)])
def test_mean_pairwise_distance_is_that_of_all_pairs(n, d):
    x = vectors(n, d) + 0.5
    x[0] = 0  # a zero row is at distance 1 from everything
    distance = 1 - similarities(x)[~np.eye(n, dtype=bool)]
    assert metrics.mean_pairwise_distance(x) == pytest.approx(distance.mean(), rel=1e-6)


@pytest.mark.parametrize("q", [0, 0.5, 1, 2, math.inf])
@pytest.mark.parametrize(("n", "d"), [(40, 6), (6, 40), (1300, 3)])
def test_vendi_is_that_of_the_whole_kernel(n, d, q):
    values = np.linalg.eigvalsh(similarities(vectors(n, d)) / n)
    values = values[values > 1e-9]
    if q == 1:
        expected = math.exp(-(values * np.log(values)).sum())
    else:
        expected = 1 / values.max() if q == math.inf else (values**q).sum() ** (1 / (1 - q))
    assert metrics.vendi(vectors(n, d), q) == pytest.approx(expected, rel=1e-4)


def test_vendi_counts_different_samples():
    assert metrics.vendi(np.eye(7)) == pytest.approx(7)
    assert metrics.vendi(np.repeat(np.eye(3), 5, axis=0)) == pytest.approx(3)
    assert metrics.vendi(np.ones((9, 4))) == pytest.approx(1)
    with pytest.raises(ValueError, match="at least 0"):
        metrics.vendi(np.eye(2), -1)


@pytest.mark.parametrize("k", [1, 3])
def test_knn_distance_is_that_of_all_pairs(k):
    x = vectors(1100, 6)
    distance = 1 - similarities(x)
    np.fill_diagonal(distance, np.inf)
    assert metrics.knn_distance(x, k) == pytest.approx(np.sort(distance, axis=1)[:, k - 1].mean(), abs=1e-6)
    assert metrics.knn_distance(np.repeat(x[:50], 2, axis=0)) == pytest.approx(0, abs=1e-6)
    assert math.isnan(metrics.knn_distance(x[:k], k))


@pytest.mark.parametrize("reference", [None, "corpus"])
def test_novelsum_is_that_of_its_definition(reference):
    x = vectors(60, 5)
    around = x if reference is None else np.concatenate([x, vectors(200, 5, seed=1)])
    unit, near = geometric.unit_rows(x).astype(float), geometric.unit_rows(around).astype(float)
    scores = []
    for row in unit:
        distance = np.sort(1 - unit @ row)
        squared = np.sort(((near - row) ** 2).sum(axis=1))[1:11]
        weights = 1 / np.arange(1, 61)
        scores.append((squared.mean() + 1e-9) ** -0.5 * (weights @ distance) / weights.sum())
    found = metrics.novelsum(x, None if reference is None else around)
    assert found == pytest.approx(np.mean(scores), rel=1e-4)


# ---- what holds for every metric that is registered


def measured(rows, seed=0, **more):
    sequences = csr(rows)
    texts = [" ".join(map(str, row)) for row in rows]
    embeddings = np.stack([np.bincount(np.array(row) % 16, minlength=16) for row in rows]).astype(np.float32)
    table = measure("response", tokens=sequences.tokens, offsets=sequences.offsets, texts=texts, embeddings=embeddings, seed=seed, **more)
    return {(row["metric"], row["variant"]): row["value"] for row in table.to_pylist()}, table


def test_every_metric_has_a_value_and_does_not_depend_on_the_order():
    generator = np.random.default_rng(0)
    rows = zipf_documents(80, generator)
    found, table = measured(rows, metrics=list(METRICS))
    assert table.schema == METRICS_SCHEMA
    assert {metric for metric, _ in found} == set(METRICS)
    assert all(math.isfinite(value) for value in found.values())
    shuffled, _ = measured([rows[i] for i in generator.permutation(80)], metrics=list(METRICS))
    for key, value in found.items():
        assert shuffled[key] == pytest.approx(value, rel=0.05 if key[0] == "compression_ratio" else 1e-6), key


def test_every_orientation_is_the_stated_one():
    """A dataset of one sample many times over is the least diverse that there is, whichever metric looks."""
    generator = np.random.default_rng(1)
    rows = zipf_documents(60, generator)
    long_rows = [[5] * 100] * 60
    diverse, table = measured(rows, metrics=list(METRICS))
    uniform, _ = measured(long_rows, metrics=list(METRICS))
    orientation = {(row["metric"], row["variant"]): row["more_is_diverse"] for row in table.to_pylist()}
    for key, more in orientation.items():
        if more is not None:
            left, right = (uniform[key], diverse[key]) if more else (diverse[key], uniform[key])
            assert left <= right or math.isnan(left), key


def test_the_default_is_the_papers_six_as_far_as_the_input_goes():
    rows = zipf_documents(20, np.random.default_rng(2))
    found, _ = measured(rows)
    assert tuple(dict.fromkeys(metric for metric, _ in found)) == PAPER_METRICS
    only_tokens = measure("instruction", tokens=csr(rows).tokens, offsets=csr(rows).offsets)
    assert set(only_tokens["metric"].to_pylist()) == {m for m in PAPER_METRICS if METRICS[m].needs == "tokens"}
    assert set(only_tokens["side"].to_pylist()) == {"instruction"}


def test_the_matched_variant_is_over_equally_many_tokens():
    rows = zipf_documents(100, np.random.default_rng(3))
    sequences = csr(rows)
    part, whole = sequences.first(500, np.arange(100))
    assert len(part.tokens) == 500 and (part.tokens == sequences.tokens[:500]).all()
    assert len(whole) in (len(part), len(part) - 1)
    found, _ = measured(rows, matched_tokens=500)
    assert found["ngram_ratio_1", "first-500"] > found["ngram_ratio_1", "pooled"]  # Heaps
    assert math.isfinite(found["compression_ratio", "first-500"])
    assert ("mean_length", "first-500") not in found and ("embedding_distance", "first-500") not in found
    too_many, _ = measured(rows, matched_tokens=10**9)
    assert math.isnan(too_many["entropy", "first-1000000000"])


@few
@given(documents, st.integers(0, 150), st.randoms())
def test_the_first_tokens_of_any_order(rows, budget, random):
    order = list(range(len(rows)))
    random.shuffle(order)
    part, whole = csr(rows).first(budget, np.array(order))
    flat = [token for i in order for token in rows[i]]
    assert part.tokens.tolist() == flat[:budget]
    assert all(sum(len(rows[j]) for j in order[: k + 1]) <= budget for k in range(len(whole)))


def test_too_little_data_is_no_value_rather_than_a_wrong_one():
    found, _ = measured([[1, 2, 3]], metrics=list(METRICS))
    assert math.isnan(found["self_bleu", "pooled"]) and math.isnan(found["embedding_distance", "pooled"])
    empty = measure("response", tokens=np.empty(0, np.int32), offsets=np.array([0]), texts=[], embeddings=np.empty((0, 4), np.float32))
    assert all(math.isnan(value) for value in empty["value"].to_pylist())


def test_bad_input():
    with pytest.raises(ValueError, match="offsets must ascend"):
        Sequences(np.array([1, 2]), np.array([0, 3]))
    with pytest.raises(ValueError, match="never negative"):
        Sequences(np.array([-1]), np.array([0, 1]))
    for wide in (np.array([5, 2**32 + 5]), np.array([2**31]), np.array([2**63], np.uint64)):
        with pytest.raises(ValueError, match="ids lie below 2"):  # not taken for another id
            Sequences(wide, np.array([0, len(wide)]))
    assert Sequences(np.array([2**31 - 1]), np.array([0, 1])).tokens.tolist() == [2**31 - 1]
    with pytest.raises(ValueError, match="unknown metric 'entropi'"):
        measure("response", texts=["a"], metrics=["entropi"])
    with pytest.raises(ValueError, match="needs embeddings"):
        measure("response", texts=["a"], metrics=["vendi"])
    with pytest.raises(ValueError, match="different numbers of samples"):
        measure("response", texts=["a"], embeddings=np.ones((2, 3)))
    for broken in (np.nan, np.inf):
        for function in (metrics.mean_pairwise_distance, metrics.vendi):
            with pytest.raises(ValueError, match="finite"):
                function(np.full((2, 3), broken))
    with pytest.raises(ValueError, match="shape"):
        metrics.mean_pairwise_distance(np.ones(3))


def test_arrow_arrays_and_large_token_ids_are_taken():
    rows = pa.array([[2**31 - 1, 5], [2**31 - 1]], pa.list_(pa.int32()))
    sequences = Sequences(rows.values.to_numpy(), rows.offsets.to_numpy())
    assert metrics.ngram_ratio(sequences, 1) == 2 / 3
