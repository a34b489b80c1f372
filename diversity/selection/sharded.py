"""A typing in shards, pruned and planned byte for byte as on one machine: rows stay where they are, the coordinator holds types.

**Peel.** The coordinator has the counts of all types and pops the smallest, as `peel` does. To know what a removal takes from
the other counts it needs the types of the rows that die. It asks all shards at once for the rows of the next-smallest types,
as many as a round's budget of rows allows, and goes on alone until it comes to a type it has not asked for. A shard sends a
row once. A type with more rows than the budget is not fetched: shards return by how much its removal lowers each count.
Exact for any cut, because a type that was asked for has all its living rows here. Rounds: about (rows sent) / budget.
**Levels.** Pool sizes for all k are one histogram of births, and levels need no more.

Datasets are chosen by `sharded_picks`. Under the controls `none` and `length-window`; the others need the corpus's bins.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from numba import njit

from diversity.selection.controls import Control
from diversity.selection.levels import KminFrom, LevelPlan, Pools, plan_levels
from diversity.selection.peel import Closure, admissible_from
from diversity.selection.shard import Shard
from diversity.selection.tournament import GONE, build, leftmost, lift, lower
from diversity.typings.incidence import Incidence

logger = logging.getLogger(__name__)

ROWS_A_ROUND = 1 << 18


class Shards(Protocol):
    """Where the shards are: here, or one in each of many processes."""

    def each(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of every `Shard` and return what each returned, in the order of the shards."""


@dataclass(frozen=True)
class LocalShards:
    """Shards in this process."""

    shards: Sequence[Shard]

    def each(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of every shard."""
        return [getattr(shard, method)(*arguments) for shard in self.shards]


@dataclass(frozen=True)
class ShardedTyping:
    """A typing whose rows are elsewhere, pruned: what is known of it by type.

    Attributes:
        shards: the rows.
        type_tie: `(M,) uint64`.
        position: `(M,) int32`, see `peel.Pruning`.
        samples: `(M+1,) int64`, the pool's size at each k.
        admissible: ascending k at which every kept type occurs.
    """

    shards: Shards
    type_tie: np.ndarray
    position: np.ndarray
    samples: np.ndarray
    admissible: np.ndarray


def prune_sharded(shards: Shards, type_tie: np.ndarray, closure: Closure = "strict", rows_a_round: int = ROWS_A_ROUND) -> ShardedTyping:
    """Return the pruned typing; every shard knows its births from then on."""
    position = peel_sharded(shards, type_tie, rows_a_round)
    found = shards.each("prune", position, closure)
    first = np.minimum.reduce([one[0] for one in found])
    samples = np.sum([one[1] for one in found], axis=0)
    samples[0] = 0
    allowed = np.flatnonzero(admissible_from(first, position))
    return ShardedTyping(shards, type_tie, position, np.cumsum(samples), allowed)


def peel_sharded(shards: Shards, type_tie: np.ndarray, rows_a_round: int = ROWS_A_ROUND) -> np.ndarray:
    """Return the positions `(M,) int32` that `peel.peel` gives for all rows together.

    Args:
        shards: the rows.
        type_tie: `(M,) uint64`.
        rows_a_round: rows that the coordinator asks for at once, and about as many as it holds.
    """
    n_types = len(type_tie)
    type_at = np.argsort(type_tie, kind="stable").astype(np.int32)
    leaf_of = np.empty(n_types, dtype=np.int32)
    leaf_of[type_at] = np.arange(n_types, dtype=np.int32)
    counts = np.sum(shards.each("df"), axis=0)
    tree, offsets = build(counts[type_at])
    known, position = np.zeros(n_types, dtype=bool), np.zeros(n_types, dtype=np.int32)
    here, dead = Incidence(np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.int32), n_types), np.zeros(0, dtype=bool)
    left = n_types
    rounds = 0
    while left:
        next_types = _next_types(tree[:n_types][leaf_of], type_tie, known, rows_a_round)
        rounds += 1
        if len(next_types):
            known[next_types] = True
            here = append([here.take(np.flatnonzero(~dead)), *shards.each("send", next_types)])
            dead = np.zeros(here.n_samples, dtype=bool)
        else:
            biggest = int(type_at[leftmost(tree, offsets)])
            lost = np.sum(shards.each("drop", biggest), axis=0)
            _lower_counts(tree, offsets, leaf_of, lost)
            known[biggest] = True
        columns = here.transpose()
        left = _pop_known(
            here.indptr, here.indices, columns.indptr, columns.indices, type_at, leaf_of, tree, offsets, known, dead, position, left
        )
    logger.info("%d types peeled in %d rounds", n_types, rounds)
    return position


def plan_sharded(
    typing: ShardedTyping, sizes: Iterable[int], fractions: Sequence[Fraction], rho: float = 1.5, kmin_from: KminFrom = "each"
) -> dict[int, LevelPlan]:
    """Return what `levels.level_table` returns under control none."""
    pools = Pools(typing.admissible, typing.samples, typing.samples, lambda k: np.zeros(0, dtype=np.int64))
    return plan_levels(pools, no_control(0), sizes, fractions, rho, kmin_from)


def append(parts: list[Incidence]) -> Incidence:
    """Return the rows of several incidences of the same types, one after the other."""
    lengths = np.concatenate([part.lengths() for part in parts])
    indptr = np.append(np.int64(0), np.cumsum(lengths))
    return Incidence(indptr, np.concatenate([part.indices for part in parts]), parts[0].n_types)


def no_control(n: int) -> Control:
    """Return the control of n rows that holds nothing fixed."""
    return Control("none", np.ones(n, dtype=np.int64), np.zeros(n, dtype=np.int32), 1)


def _next_types(counts: np.ndarray, tie: np.ndarray, known: np.ndarray, budget: int) -> np.ndarray:
    """Return the types to ask for: unknown, smallest first, as many as the budget of rows allows; none where not even one fits."""
    unknown = np.flatnonzero(~known & (counts != GONE))
    unknown = unknown[np.lexsort((tie[unknown], counts[unknown]))]
    return unknown[np.cumsum(counts[unknown]) <= budget]


@njit(cache=True)
def _lower_counts(tree: np.ndarray, offsets: np.ndarray, leaf_of: np.ndarray, lost: np.ndarray) -> None:
    for t in range(len(lost)):
        if lost[t] > 0 and tree[leaf_of[t]] != GONE:
            lower(tree, offsets, leaf_of[t], tree[leaf_of[t]] - lost[t])


@njit(cache=True)
def _pop_known(
    indptr: np.ndarray,
    indices: np.ndarray,
    starts: np.ndarray,
    members: np.ndarray,
    type_at: np.ndarray,
    leaf_of: np.ndarray,
    tree: np.ndarray,
    offsets: np.ndarray,
    known: np.ndarray,
    dead: np.ndarray,
    position: np.ndarray,
    left: int,
) -> int:
    """Remove types, smallest count first, until one comes whose rows are not here; return how many are left."""
    while left > 0:
        leaf = leftmost(tree, offsets)
        t = type_at[leaf]
        if tree[leaf] > 0 and not known[t]:
            break
        position[t] = left
        left -= 1
        lift(tree, offsets, leaf, GONE)
        for i in members[starts[t] : starts[t + 1]]:
            if dead[i]:
                continue
            dead[i] = True
            for u in indices[indptr[i] : indptr[i + 1]]:
                if tree[leaf_of[u]] != GONE:
                    lower(tree, offsets, leaf_of[u], tree[leaf_of[u]] - 1)
    return left
