"""Meso typing: raw tags → normalised tags, step by step, with what each step did.

The four steps are those of InsTag (frequency, rules, semantic merge, association), fitted to keyphrases; the thresholds
are ours. A semantic merge goes to a *leader*, the commonest of similar tags, since clustering by chains (DBSCAN) joins
everything from .7 down. Of association rules only mutual ones merge: a rule in one direction is most often the
boilerplate of a template, so those are only counted.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numba import njit

from diversity.cell import typing_parts
from diversity.embedders import EmbedderConfig, embed
from diversity.neighbours import one_thread
from diversity.taggers import TaggerConfig, load_tagger
from diversity.tokens import distinct_rows
from diversity.typed import DATA_SCHEMA, NoTypesError, Typed, list_array, types_table

log = logging.getLogger(__name__)

RAW_SCHEMA = pa.schema([("sample_id", pa.string()), ("tags", pa.list_(pa.string()))])
Embed = Callable[[Sequence[str]], np.ndarray]
_MARKS = re.compile(r"[^\w+# ]+")
INTENTS = ("ask:", "do:")
_EXAMPLES = 8
_ONE_WAY = 0.99
_BLOCK = 2048


@dataclass(frozen=True)
class Tagged:
    """Tags of n samples as numbers: sample i has codes[bounds[i]:bounds[i + 1]], ranked, each once.

    Attributes:
        names: the tag of each number.
        codes: (nnz,) int32.
        bounds: (n + 1,) int64.
    """

    names: list[str]
    codes: np.ndarray
    bounds: np.ndarray

    @property
    def n(self) -> int:
        """Return the number of samples."""
        return len(self.bounds) - 1

    def df(self) -> np.ndarray:
        """Return (tags,) int64: in how many samples each tag occurs."""
        return np.bincount(self.codes, minlength=len(self.names))

    def renamed(self, new: Sequence[str | None]) -> Tagged:
        """Return the tags under new names, None dropping one; tags that come to have one name count once a sample."""
        index: dict[str, int] = {}
        mapping = np.array([-1 if name is None else index.setdefault(name, len(index)) for name in new], np.int32)
        codes, bounds = first_occurrences(mapping[self.codes], self.bounds, max(1, len(index)))
        return Tagged(list(index), codes, bounds)

    def capped(self, most: int) -> Tagged:
        """Return at most so many tags of each sample: its intent, then the rarest, of equals the first ranked.

        Common tags lose samples by this, rare ones hardly any, so that nearly every tag stays above the threshold.
        """
        lengths = np.diff(self.bounds)
        rows = np.repeat(np.arange(self.n), lengths)
        place = np.arange(len(self.codes)) - np.repeat(self.bounds[:-1], lengths)
        intent = np.array([name.startswith(INTENTS) for name in self.names], bool)[self.codes]
        order = np.lexsort((place, self.df()[self.codes], ~intent, rows))
        kept = np.empty(len(order), bool)
        kept[order] = place < most  # `order` keeps rows together, so places count up within it as well
        return Tagged(self.names, self.codes[kept], np.concatenate([[0], np.cumsum(kept)])[self.bounds])


class TagCounter:
    """A block of samples → their raw tags (RAW_SCHEMA)."""

    def __init__(self, config: TaggerConfig, side: str) -> None:
        """Load the tagger."""
        self._side = side
        self._tagger = load_tagger(config, side)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the samples' raw tags, ranked."""
        found = self._tagger(table[self._side].to_pylist())
        columns = [table["sample_id"], pa.array(found, pa.list_(pa.string()))]
        return pa.Table.from_arrays(columns, names=RAW_SCHEMA.names).cast(RAW_SCHEMA)


def tags(table: pa.Table, typing: str, config: TaggerConfig | None = None, embedder: EmbedderConfig | None = None) -> Typed:
    """Return a meso typing of a table of samples, in this process.

    Args:
        table: sample columns, sorted by sample_id.
        typing: `instruction-meso` or `response-meso`.
        config: tagger and normalisation.
        embedder: of the tags, for the semantic merge.
    """
    config = config or TaggerConfig()
    raw = TagCounter(config, typing_parts(typing)[0])(table)
    return normalise(raw, typing, config, partial(embed, config=embedder))


def normalise(raw: pa.Table, typing: str, config: TaggerConfig, embed_texts: Embed) -> Typed:
    """Return the meso typing of samples with raw tags.

    Args:
        raw: RAW_SCHEMA rows sorted by sample_id.
        typing: `instruction-meso` or `response-meso`.
        config: thresholds.
        embed_texts: unit vectors of tags.

    Raises:
        NoTypesError: no tag is left.
    """
    found = coded(raw["tags"])
    least = config.threshold(found.n)
    steps: list[dict[str, Any]] = []
    plan: list[tuple[str, Callable[[Tagged], list[str | None]]]] = [
        ("frequency", partial(by_frequency, least=least)),
        ("rules", by_rules),
        ("common", partial(by_share, most=config.max_share * found.n)),
    ]
    if config.merge is not None:
        plan.append(("semantic", partial(by_leader, least_cosine=config.merge, embed_texts=embed_texts)))
    if config.mutual is not None:
        plan.append(("association", partial(by_association, least=least, ratio=config.mutual, steps=steps)))
    for name, step in plan:
        new = step(found)
        after = found.renamed(new)
        steps.append(_told(name, found, new, after))
        found = after
    capped = found.capped(config.max_tags)
    new = [name if df else None for name, df in zip(found.names, capped.df(), strict=True)]
    steps.append(_told("cap", found, new, found := capped.renamed(new)))
    if not found.names:
        raise NoTypesError(f"{typing}: no tag occurs in {least} samples of {found.n:,}: lower profile.tagger.alpha")
    manifest = {"tagger": config.name, "stand_in": config.name == "keyphrase", "alpha": least, "steps": steps}
    result = _typed(typing, raw["sample_id"], found, manifest)
    log.info("%s: %d tags, %.1f a sample; %s", typing, len(found.names), len(found.codes) / max(1, found.n), _line(steps))
    return result


def coded(column: pa.ChunkedArray) -> Tagged:
    """Return a column of lists of tags as numbers, in order of first occurrence."""
    index: dict[str, int] = {}
    rows = column.to_pylist()
    codes = np.fromiter((index.setdefault(tag, len(index)) for tag in chain.from_iterable(rows)), np.int32)
    bounds = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=bounds[1:])
    codes, bounds = first_occurrences(codes, bounds, max(1, len(index)))
    return Tagged(list(index), codes, bounds)


def by_frequency(found: Tagged, least: int) -> list[str | None]:
    """Keep tags in at least `least` samples; of a rarer phrase keep its longest frequent end ("thunder storm" → "storm")."""
    frequent = {name for name, df in zip(found.names, found.df(), strict=True) if df >= least}

    def end(name: str) -> str | None:
        while name and name not in frequent:
            name = name.partition(" ")[2]
        return name or None

    return [end(name) for name in found.names]


def by_rules(found: Tagged) -> list[str | None]:
    """Lower-case, drop possessives, write marks as spaces, and give a phrase's last word, or an intent's verb, as lemma."""
    from simplemma import lemmatize

    def lemma(word: str) -> str:
        return lemmatize(word, lang="en").lower() if word.isalpha() and len(word) > 3 else word

    def plain(name: str) -> str | None:
        kind, colon, rest = name.lower().rpartition(":")
        words = _MARKS.sub(" ", rest.replace("'s", "")).split()
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
        leads = np.zeros(len(order), bool)
        for start in range(0, len(order), _BLOCK):
            block = vectors[start : start + _BLOCK] @ vectors[: start + _BLOCK].T
            for row, similar in enumerate(block, start):
                best = int(np.where(leads[:row], similar[:row], -1).argmax()) if row else -1
                leads[row] = best < 0 or similar[best] < least_cosine
                if not leads[row]:
                    new[order[row]] = found.names[order[best]]
    return new


def by_association(found: Tagged, least: int, ratio: float, steps: list[dict[str, Any]]) -> list[str | None]:
    """Join tags that nearly always occur together: both frequencies at most `ratio` times the joint one.

    The commoner tag's name stays, then the first by spelling. Rules in one direction (99%) are told in `steps`.
    """
    first, second, joint = joint_counts(found, least)
    df = found.df()
    low, high = np.minimum(df[first], df[second]), np.maximum(df[first], df[second])
    mutual = high <= ratio * joint
    one_way = np.flatnonzero(~mutual & (joint >= _ONE_WAY * low))
    strongest = one_way[np.argsort(-joint[one_way], kind="stable")][:_EXAMPLES]
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


def _told(name: str, before: Tagged, new: Sequence[str | None], after: Tagged) -> dict[str, Any]:
    """Return what the manifest says about a step: tags before and after, and its commonest changes."""
    df = before.df()
    changed = sorted((i for i, to in enumerate(new) if to != before.names[i]), key=lambda i: (-df[i], before.names[i]))
    examples = [f"{before.names[i]} ({df[i]}) → {new[i] or 'dropped'}" for i in changed[:_EXAMPLES]]
    empty = int((np.diff(after.bounds) == 0).sum())
    return {
        "step": name,
        "before": len(before.names),
        "after": len(after.names),
        "a_sample": round(len(after.codes) / max(1, after.n), 2),
        "without": empty,
        "examples": examples,
    }


def _line(steps: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"{step['step']} {step['before']} → {step['after']}" for step in steps if "after" in step)


def _typed(typing: str, ids: Any, found: Tagged, manifest: dict[str, Any]) -> Typed:
    """Return the typing with tags numbered in ascending order of their UTF-8."""
    order = sorted(range(len(found.names)), key=lambda i: found.names[i].encode())
    number = np.empty(len(order), np.int32)
    number[order] = np.arange(len(order))
    bounds, types, _ = distinct_rows(number[found.codes], found.bounds, len(order))
    data = pa.Table.from_arrays([ids, list_array(types, bounds)], names=DATA_SCHEMA.names).cast(DATA_SCHEMA)
    names = [found.names[i] for i in order]
    table = types_table([name.encode() for name in names], names, found.df()[order])
    return Typed(typing, data, table, manifest)


@njit(cache=True)
def first_occurrences(codes, bounds, size):  # type: ignore[no-untyped-def]
    """Return (codes, bounds) without negative codes and without the repeats within a row; order stays.

    Args:
        codes: (nnz,) int32 in [-1, size).
        bounds: (n + 1,) int64.
        size: number of possible codes.
    """
    n = len(bounds) - 1
    seen = np.full(size, -1, np.int64)
    kept = np.empty(len(codes), np.int32)
    new_bounds = np.zeros(n + 1, np.int64)
    end = 0
    for i in range(n):
        for j in range(bounds[i], bounds[i + 1]):
            code = codes[j]
            if code >= 0 and seen[code] != i:
                seen[code] = i
                kept[end] = code
                end += 1
        new_bounds[i + 1] = end
    return kept[:end].copy(), new_bounds
