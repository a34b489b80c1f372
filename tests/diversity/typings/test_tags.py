import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.typings.itemsets import association_rules, frequent_sets
from diversity.typings.tag_steps import (
    by_association,
    by_frequency,
    by_leader,
    by_rules,
    by_rules_mined,
    by_share,
    joint_counts,
    similar_pairs,
)
from diversity.typings.tagged import Tagged, coded
from diversity.typings.taggers import TAGGERS, RulesConfig, TaggerConfig, load_tagger, tagger_class
from diversity.typings.tags import TagCounter, normalise, tags
from diversity.typings.typed import NoTypesError


def tagged(rows):
    return coded(pa.chunked_array([pa.array(rows, pa.list_(pa.string()))]))


def as_rows(found):
    names = [found.names[code] for code in found.codes]
    return [names[a:b] for a, b in zip(found.bounds[:-1], found.bounds[1:])]


def no_vectors(texts):
    return np.eye(len(texts), max(1, len(texts)), dtype=np.float32)


def tag(text, side="instruction"):
    return load_tagger(TaggerConfig(), side)([text])[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is the capital of France?", ["ask:what", "capital", "france"]),
        ("Write a short story about the old sea dragon", ["do:write", "short story", "old sea dragon"]),
        ("Explain. Explain: gradient descent, gradient descent", ["gradient descent"]),
        ("Sort these numbers:\n- 3 apples\n- 4 pears", ["do:sort", "form:list", "numbers", "apples", "pears"]),
        ("```\nx = 1;\n```", ["form:code"]),
        ("请写一首诗", ["form:cjk", "请写一首诗"]),
        ("42", ["form:number"]),
        ("the of and", []),
        ("C++ or C# isn't Bob’s", ["c++", "c#", "bob's"]),
        ("large language model training run", ["do:large", "large language", "model training run"]),
    ],
)
def test_keyphrases(text, expected):
    found = tag(text)
    assert [name for name in found if name in expected] == expected
    assert len(found) == len(set(found))


def test_runs_are_cut_from_their_end_into_three_words():
    assert tag("one quick brown fox jumps high", "response") == ["quick brown", "fox jumps high"]
    assert tag("alpha beta gamma delta epsilon", "response") == ["alpha beta", "gamma delta epsilon"]


def test_an_intent_is_not_a_phrase_as_well():
    assert tag("Translate poems, translate") == ["do:translate", "translate poems"]


def test_of_a_response_only_the_start_is_read():
    text = "apple " * 200 + "zebra"
    assert all("zebra" not in phrase for phrase in tag(text, "response"))
    assert tag("Write about zebra", "response")[0] != "do:write"


@given(st.text(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_text_gets_tags_each_once_and_on_its_own(text):
    for side in ("instruction", "response"):
        tagger = load_tagger(TaggerConfig(), side)
        found = tagger([text])[0]
        assert len(found) == len(set(found)) and all(found)
        assert tagger(["x", text, "y"])[1] == found


def test_frequency_keeps_the_longest_frequent_end():
    found = tagged([["storm"]] * 3 + [["thunder storm"], ["big thunder storm"], ["lone"], ["do:dance"]])
    assert by_frequency(found, 3) == ["storm", "storm", "storm", None, None]
    assert as_rows(found.renamed(by_frequency(found, 3))) == [["storm"]] * 5 + [[], []]


def test_rules_lower_lemmatise_and_strip_marks():
    found = tagged([["Short Stories", "patient's symptoms", "step-by-step", "do:writes", "ask:what", "form:list", "c++", "c#", "!!"]])
    expected = ["short story", "patient symptom", "step by step", "do:write", "ask:what", "form:list", "c++", "c#", None]
    assert by_rules(found) == expected
    found = tagged([["python 'self' keyword", "the 'switch' case", "world’s history", "world's atlas", "James's dogs", "'s"]])
    assert by_rules(found) == ["python self keyword", "the switch case", "world history", "world atlas", "james dog", "s"]


def test_common_tags_are_dropped_and_the_limit_is_inclusive():
    found = tagged([["a", "b"]] * 2 + [["a"]])
    assert by_share(found, 2) == [None, "b"]


def test_leaders_take_the_similar_and_rarer():
    found = tagged([["cat", "form:x"]] * 3 + [["kitten"]] * 2 + [["feline"], ["rock"]])
    vectors = {"cat": [1, 0, 0], "kitten": [0.95, 0.3122499, 0], "feline": [0.8, 0.6, 0], "rock": [0, 0, 1]}

    def embed(names):
        return np.array([vectors[name] for name in names], np.float32)

    # kitten joins cat; feline is near kitten (.947) but kitten leads nothing, and cat is too far (.8)
    assert by_leader(found, 0.9, embed) == ["cat", "form:x", "cat", "feline", "rock"]
    assert by_leader(found, 0.75, embed) == ["cat", "form:x", "cat", "cat", "rock"]


def leaders_one_by_one(found, vectors, least):
    """Return what `by_leader` should: each phrase against all leaders before it, in Python."""
    df, names = found.df(), found.names
    order = sorted(range(len(names)), key=lambda i: (-df[i], names[i]))
    leaders, new = [], list(names)
    for i in order:
        near = [(float(np.float32(vectors[i] @ vectors[j])), -place, j) for place, j in enumerate(leaders)]
        best = max((one for one in near if one[0] >= least), default=None)
        if best is None:
            leaders.append(i)
        else:
            new[i] = names[best[2]]
    return new


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcdefghij"), max_size=4), min_size=1, max_size=20), st.integers(0, 99), st.floats(0.2, 0.99))
def test_leaders_equal_one_by_one(rows, seed, least):
    found = tagged(rows)
    vectors = np.random.default_rng(seed).normal(size=(len(found.names), 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    close = np.abs(vectors @ vectors.T - least) < 1e-5
    if close.any():
        return  # at the very threshold the order of additions decides
    place = {name: i for i, name in enumerate(found.names)}
    assert by_leader(found, least, lambda names: vectors[[place[name] for name in names]]) == leaders_one_by_one(found, vectors, least)


def test_a_cosine_of_exactly_the_threshold_counts():
    vectors = np.array([[1, 0], [0.5, 0.75**0.5], [-1, 0]], np.float32)
    starts, rows, cosines = similar_pairs(vectors, 0.5)
    assert starts.tolist() == [0, 2, 4, 5] and sorted(rows[:2].tolist()) == [0, 1] and (cosines >= 0.5).all()


def test_without_backoff_a_rare_phrase_goes():
    found = tagged([["storm"]] * 3 + [["thunder storm"]])
    assert by_frequency(found, 3, backoff=False) == ["storm", None]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 6), unique=True, max_size=6), min_size=1, max_size=20),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([0.5, 0.8, 1.0]),
)
def test_frequent_sets_and_rules_equal_all_subsets(rows, least, longest, confidence):
    def holds(items):
        return sum(set(items) <= set(row) for row in rows)

    every = [items for size in range(1, longest + 1) for items in itertools.combinations(range(7), size)]
    expected = {items: holds(items) for items in every if holds(items) >= least}
    assert frequent_sets(rows, least, longest) == expected
    found = {(rule.body, rule.head): (rule.support, rule.joint) for rule in association_rules(expected, confidence)}
    assert found == {
        (body, head): (holds(body), joint)
        for items, joint in expected.items()
        for head in items
        if (body := tuple(item for item in items if item != head)) and joint >= confidence * holds(body)
    }


def test_mined_rules_merge_single_tags_along_the_chain():
    rows = [["python", "code"]] * 6 + [["code"]] * 4 + [["numpy", "python", "code"]] * 5 + [["x", "y", "z"]] * 3 + [["x"], ["y"]] * 3
    steps = []
    found = tagged(rows)
    new = dict(zip(found.names, by_rules_mined(found, RulesConfig(support=3), steps)))
    assert new == {"python": "code", "code": "code", "numpy": "code", "x": "x", "y": "y", "z": "x"}
    assert steps[0]["longer"] > 0 and any("x & y → z" in told for told in steps[0]["examples"])
    circle = tagged([["b", "a"]] * 5 + [["c"]])
    assert by_rules_mined(circle, RulesConfig(), []) == ["a", "a", "c"]  # each implies the other: the first by spelling stays


def test_rules_take_the_place_of_mutual_association():
    rows = [["numpy", "code"]] * 4 + [["code"]] * 6
    raw = pa.table({"sample_id": [f"{i:032x}" for i in range(10)], "tags": pa.array(rows, pa.list_(pa.string()))})
    typed = normalise(raw, "response-meso", TaggerConfig(max_share=1, merge=None, rules=RulesConfig()), no_vectors)
    assert typed.types["label"].to_pylist() == ["code"]
    assert [step["step"] for step in typed.manifest["steps"]] == ["frequency", "rules", "common", "mined rules", "association", "cap"]
    assert len(normalise(raw, "response-meso", TaggerConfig(max_share=1, merge=None), no_vectors).types) == 2


def test_only_mutual_association_merges():
    rows = [["a", "b", "c"]] * 5 + [["c"]] * 5 + [["d"]]
    steps = []
    found = tagged(rows)
    assert by_association(found, 3, 1.02, steps) == ["a", "a", "c", "d"]
    assert steps[0]["rules"] == 2 and steps[0]["examples"] == ["a & c", "b & c"]
    assert by_association(found, 6, 1.02, steps) == ["a", "b", "c", "d"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcde"), max_size=5), min_size=1, max_size=15), st.integers(1, 3))
def test_joint_counts_equal_the_naive_ones(rows, least):
    found = tagged(rows)
    sets = [set(row) for row in rows]
    expected = {}
    for i, a in enumerate(found.names):
        for j, b in enumerate(found.names):
            together = sum(a in s and b in s for s in sets)
            if i < j and together >= least:
                expected[i, j] = together
    first, second, joint = joint_counts(found, least)
    assert dict(zip(zip(first.tolist(), second.tolist(), strict=True), joint.tolist(), strict=True)) == expected


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["ask:a", "do:b", "c", "d", "e", "f"]), unique=True, max_size=6), min_size=1, max_size=12),
    st.integers(1, 4),
)
def test_cap_keeps_the_intent_and_the_rarest(rows, most):
    found = tagged(rows)
    df = dict(zip(found.names, found.df().tolist()))
    for before, after in zip(rows, as_rows(found.capped(most)), strict=True):
        ranked = sorted(before, key=lambda name: (not name.startswith(("ask:", "do:")), df[name], before.index(name)))
        assert set(after) == set(ranked[:most])
        assert after == [name for name in before if name in after]


def test_normalise_numbers_by_bytes_and_tells_every_step():
    rows = [["zebra", "do:ask"], ["zebra", "Éa"], ["apples", "zebra"], ["apple", "Éa"], ["Éa"], ["apple"], []] + [["form:list"]] * 3
    raw = pa.table({"sample_id": [f"{i:032x}" for i in range(len(rows))], "tags": pa.array(rows, pa.list_(pa.string()))})
    config = TaggerConfig(max_share=1.0)
    typed = normalise(raw, "response-meso", config, no_vectors)
    assert typed.types["label"].to_pylist() == ["form:list", "zebra", "éa"]
    assert typed.types["content"].to_pylist() == [b"form:list", b"zebra", "éa".encode()]
    assert typed.types["df"].to_pylist() == [3, 3, 3]
    assert typed.data["types"].to_pylist()[:3] == [[1], [1, 2], [1]]
    names = [step["step"] for step in typed.manifest["steps"]]
    assert names == ["frequency", "rules", "common", "semantic", "one-way rules", "association", "cap"]
    assert typed.manifest["stand_in"] and typed.manifest["alpha"] == 3
    assert typed.manifest["steps"][0]["before"] == 6 and typed.manifest["steps"][0]["after"] == 3
    summary = typed.summary()
    assert summary["M"] == 3 and summary["empty"] == 2 and summary["nnz"] == 9


def test_no_tag_at_all_is_an_error():
    raw = pa.table({"sample_id": ["0" * 32], "tags": pa.array([["a"]], pa.list_(pa.string()))})
    with pytest.raises(NoTypesError, match="no tag occurs in 3 samples of 1"):
        normalise(raw, "response-meso", TaggerConfig(), no_vectors)


@pytest.mark.parametrize(
    ("rows", "config", "message"),
    [
        ([["a"], ["b"]] * 50, TaggerConfig(), "every tag that is left occurs in more than 0.05 of 100 samples: raise .*max_share"),
        ([["a"], ["b"]], TaggerConfig(), "no tag occurs in 3 samples of 2: no profile.tagger.alpha asks for fewer"),
        ([["a"]] * 5, TaggerConfig(alpha=10**6), r"no tag occurs in \d+ samples of 5: lower profile.tagger.alpha"),
        ([["!!"]] * 5, TaggerConfig(), r"the step rules left no tag: !! \(5\) → dropped"),
        ([[]] * 5, TaggerConfig(), "the tagger keyphrase gave no sample a tag"),
    ],
)
def test_the_step_that_left_no_tag_is_named(rows, config, message):
    raw = pa.table({"sample_id": [f"{i:032x}" for i in range(len(rows))], "tags": pa.array(rows, pa.list_(pa.string()))})
    with pytest.raises(NoTypesError, match=f"response-meso: {message}"):
        normalise(raw, "response-meso", config, no_vectors)


def test_a_threshold_scales():
    assert TaggerConfig().threshold(117_000) == 20
    assert TaggerConfig().threshold(100) == 3
    with pytest.raises(ValueError, match="did you mean 'keyphrase'"):
        TaggerConfig(name="keyphrases")


@pytest.mark.parametrize("name", sorted(TAGGERS))
def test_every_tagger_has_an_identity(name):
    config = TaggerConfig(name=name, **({"model": "m", "base_url": "http://x"} if name == "llm" else {}))
    assert tagger_class(config).identity(config)["name"] == name


def test_blocks_change_nothing():
    texts = ["Write a poem about rivers", "What is a river?", "Name rivers", "Explain how rivers flow"] * 3
    table = pa.table({"sample_id": [f"{i:032x}" for i in range(12)], "instruction": texts})
    whole = TagCounter(TaggerConfig(), "instruction")(table)
    parts = [TagCounter(TaggerConfig(), "instruction")(table.slice(i, 5)) for i in range(0, 12, 5)]
    assert pa.concat_tables(parts).equals(whole)
    pytest.importorskip("wordllama")
    typed = tags(table, "instruction-meso", TaggerConfig(max_share=1))
    assert "river" in typed.types["label"].to_pylist()


def test_renaming_counts_a_tag_once_a_sample():
    found = Tagged(["a", "b", "c"], np.array([0, 1, 2, 1], np.int32), np.array([0, 3, 4]))
    assert as_rows(found.renamed(["x", "x", None])) == [["x"], ["x"]]
