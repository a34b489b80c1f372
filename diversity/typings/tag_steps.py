"""The steps that turn raw tags into types: each takes the tags and returns a new name for each, None for a tag that goes.

The four steps are those of InsTag (frequency, rules, semantic merge, association), fitted to keyphrases; the thresholds
are ours. A semantic merge goes to a *leader*, the commonest of similar tags, since clustering by chains (DBSCAN) joins
everything from .7 down. Of association rules only mutual ones merge: a rule in one direction is most often the
boilerplate of a template, so those are only counted. `by_rules_mined` takes InsTag's way, rules out of FP-growth.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diversity.typings.itemsets import association_rules, frequent_sets
from diversity.typings.neighbours import one_thread
from diversity.typings.tagged import Tagged
from diversity.typings.taggers import RulesConfig, scaled

Embed = Callable[[Sequence[str]], np.ndarray]
EXAMPLES = 8
_MARKS = re.compile(r"[^\w+# ]+")
_POSSESSIVE = re.compile(r"(?<=\w)['’]s\b")
_ONE_WAY = 0.99


def by_frequency(found: Tagged, least: int, backoff: bool = True) -> list[str | None]:
    """Keep tags in at least `least` samples; with backoff keep a rarer phrase's longest frequent end ("thunder storm" → "storm")."""
    frequent = {name for name, df in zip(found.names, found.df(), strict=True) if df >= least}

    def end(name: str) -> str | None:
        while name and name not in frequent:
            name = name.partition(" ")[2] if backoff else ""
        return name or None

    return [end(name) for name in found.names]


def by_rules(found: Tagged) -> list[str | None]:
    """Lower-case, drop possessives, write marks as spaces, and give a phrase's last word, or an intent's verb, as lemma."""
    from simplemma import lemmatize

    def lemma(word: str) -> str:
        return lemmatize(word, lang="en").lower() if word.isalpha() and len(word) > 3 else word

    def plain(name: str) -> str | None:
        kind, colon, rest = name.lower().rpartition(":")
        words = _MARKS.sub(" ", _POSSESSIVE.sub("", rest)).split()
        if not words:
            return None
        if kind in ("", "do"):
            words[-1] = lemma(words[-1])
        return kind + colon + " ".join(words)

    return [plain(name) for name in found.names]


def by_share(found: Tagged, most: float) -> list[str | None]:
    """Drop tags in more than `most` samples."""
    return [name if df <= most else None for name, df in zip(found.names, found.df(), strict=True)]


def by_leader(found: Tagged, least_cosine: float, embed_texts: Embed) -> list[str | None]:
    """Give each phrase the name of the most similar commoner leader at the cosine or above; without one it leads.

    Phrases are taken by falling frequency, then by spelling; intents and forms stay as they are.
    """
    df = found.df()
    order = sorted((i for i, name in enumerate(found.names) if ":" not in name), key=lambda i: (-df[i], found.names[i]))
    new: list[str | None] = list(found.names)
    if not order:
        return new
    with one_thread():
        vectors = np.ascontiguousarray(embed_texts([found.names[i] for i in order]), np.float32)
        starts, similar, cosines = similar_pairs(vectors, least_cosine)
    leads = np.zeros(len(order), bool)
    for row in range(len(order)):
        near = slice(starts[row], starts[row + 1])
        leaders = leads[similar[near]]  # those after this row lead nothing yet
        leads[row] = not leaders.any()
        if not leads[row]:
            candidates, values = similar[near][leaders], cosines[near][leaders]
            new[order[row]] = found.names[order[candidates[np.lexsort((candidates, -values))[0]]]]
    return new


def similar_pairs(vectors: np.ndarray, least_cosine: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (starts (n + 1,), row, cosine): the rows at the cosine or above to row i are those from starts[i] to starts[i + 1]."""
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    # faiss wants more than its radius, and we take equal ones too
    starts, cosines, rows = index.range_search(vectors, float(np.nextafter(np.float32(least_cosine), np.float32(-1))))
    return starts.astype(np.int64), rows, cosines


def by_association(found: Tagged, least: int, ratio: float, steps: list[dict[str, Any]]) -> list[str | None]:
    """Join tags that nearly always occur together: both frequencies at most `ratio` times the joint one.

    The commoner tag's name stays, then the first by spelling. Rules in one direction (99%) are told in `steps`.
    """
    first, second, joint = joint_counts(found, least)
    df = found.df()
    low, high = np.minimum(df[first], df[second]), np.maximum(df[first], df[second])
    mutual = high <= ratio * joint
    one_way = np.flatnonzero(~mutual & (joint >= _ONE_WAY * low))
    strongest = one_way[np.argsort(-joint[one_way], kind="stable")][:EXAMPLES]
    rules = [sorted((found.names[first[i]], found.names[second[i]]), key=found.names.index) for i in strongest]
    steps.append({"step": "one-way rules", "rules": len(one_way), "examples": [" & ".join(rule) for rule in rules]})
    order = sorted(range(len(found.names)), key=lambda i: (-df[i], found.names[i]))
    rank = {tag: place for place, tag in enumerate(order)}
    head = list(range(len(found.names)))
    pairs = [sorted((int(first[i]), int(second[i])), key=rank.__getitem__) for i in np.flatnonzero(mutual)]
    for a, b in sorted(pairs, key=lambda pair: (rank[pair[0]], rank[pair[1]])):
        if head[b] == b:
            head[b] = head[a]
    return [found.names[head[i]] for i in range(len(found.names))]


def by_rules_mined(found: Tagged, config: RulesConfig, steps: list[dict[str, Any]]) -> list[str | None]:
    """Give a tag the name of the tag that nearly always comes with it, followed to the end; of a circle the commonest stays.

    The rules are those of FP-growth. One with several tags in its body names no single tag that could go: those are told in `steps`.
    That a rule's tag takes the name of its head is how we read InsTag's "merged into atomic tags".
    """
    least = scaled(config.support, found.n)
    rows = (found.codes[a:b].tolist() for a, b in zip(found.bounds[:-1], found.bounds[1:], strict=True))
    rules = association_rules(frequent_sets(rows, least, config.longest), config.confidence)
    longer = sorted((rule for rule in rules if len(rule.body) > 1), key=lambda rule: (-rule.joint, rule.body, rule.head))
    told = [f"{' & '.join(found.names[i] for i in rule.body)} → {found.names[rule.head]} ({rule.joint})" for rule in longer[:EXAMPLES]]
    steps.append({"step": "mined rules", "support": least, "rules": len(rules), "longer": len(longer), "examples": told})
    df = found.df()
    best: dict[int, tuple[int, int, str, int]] = {}
    for rule in rules:
        if len(rule.body) == 1:  # the strongest rule; then the commonest head, then by spelling
            rank = (-rule.joint, -int(df[rule.head]), found.names[rule.head], rule.head)
            best[rule.body[0]] = min(best.get(rule.body[0], rank), rank)

    def end(tag: int) -> int:
        seen: dict[int, None] = {}
        while tag in best and tag not in seen:
            seen[tag] = None
            tag = best[tag][3]
        if tag not in seen:
            return tag
        circle = list(seen)[list(seen).index(tag) :]
        return min(circle, key=lambda i: (-df[i], found.names[i]))

    return [found.names[end(tag)] for tag in range(len(found.names))]


def joint_counts(found: Tagged, least: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (first, second, joint): the pairs of tags that occur together in at least `least` samples, first < second."""
    from scipy.sparse import csr_matrix, triu

    shape = (found.n, len(found.names))
    incidence = csr_matrix((np.ones(len(found.codes), np.int32), found.codes, found.bounds), shape=shape)
    both = triu(incidence.T @ incidence, k=1).tocoo()
    kept = both.data >= least
    first, second, joint = both.row[kept], both.col[kept], both.data[kept]
    order = np.lexsort((second, first))
    return first[order], second[order], joint[order]
