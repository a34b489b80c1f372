"""Frequent sets of tags by FP-growth (Han, Pei, Yin 2000), and the association rules that they hold.

Samples become paths in a prefix tree, tags in falling order of frequency; a tag's conditional tree is what stands above it.
Sets are bounded in length, so that the work stays near that of counting pairs and triples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

Path = tuple[int, ...]


@dataclass(frozen=True)
class Rule:
    """`body` → `head`: of `support` samples that have the body, `joint` have the head as well."""

    body: Path
    head: int
    support: int
    joint: int


def frequent_sets(rows: Iterable[Sequence[int]], least: int, longest: int) -> dict[Path, int]:
    """Return the sets of 1 to `longest` items in at least `least` rows, as ascending tuples, each with its number of rows.

    Args:
        rows: items of each row, each once.
        least: rows, at least 1.
        longest: items of a set.
    """
    return {tuple(sorted(items)): count for items, count in _grow(Counter(tuple(row) for row in rows), least, longest)}


def _grow(paths: Counter[Path], least: int, longest: int) -> Iterator[tuple[Path, int]]:
    """Yield frequent sets of weighted paths. A tree whose equal prefixes are shared is here a counter of its paths to each item."""
    df: Counter[int] = Counter()
    for path, weight in paths.items():
        for item in path:
            df[item] += weight
    rank = {item: place for place, item in enumerate(sorted((i for i in df if df[i] >= least), key=lambda i: (-df[i], i)))}
    above: dict[int, Counter[Path]] = {item: Counter() for item in rank}
    for path, weight in paths.items():
        kept = sorted((item for item in path if item in rank), key=rank.__getitem__)
        for place, item in enumerate(kept):
            above[item][tuple(kept[:place])] += weight
    for item in rank:
        yield (item,), df[item]
        if longest > 1:
            for items, count in _grow(above[item], least, longest - 1):
                yield (*items, item), count


def association_rules(sets: dict[Path, int], confidence: float) -> list[Rule]:
    """Return the rules of at least a confidence with one tag as head, ordered by body and head."""
    rules = []
    for items, joint in sets.items():
        for body in combinations(items, len(items) - 1):
            if body and joint >= confidence * sets[body]:
                head = next(item for item in items if item not in body)
                rules.append(Rule(body, head, sets[body], joint))
    return sorted(rules, key=lambda rule: (len(rule.body), rule.body, rule.head))
