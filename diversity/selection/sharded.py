"""Selection from a corpus in shards, byte for byte what one machine chooses: rows stay where they are, the coordinator holds types.

**Peel.** The coordinator has the counts of all types and pops the smallest, as `peel` does. To know what a removal takes from
the other counts it needs the types of the rows that die. It asks all shards at once for the rows of the next-smallest types,
as many as a round's budget of rows allows, and goes on alone until it comes to a type it has not asked for. A shard sends a
row once. A type with more rows than the budget is not fetched: shards return by how much its removal lowers each count.
Exact for any cut, because a type that was asked for has all its living rows here. Rounds: about (rows sent) / budget.
**Levels.** Pool sizes for all k are one histogram of births. Whether a cover fits is asked of rarest-first, which takes the
first sample of a type and so needs no more than one candidate a type.
**Sampling.** Each shard proposes, for every type, its first q rows by priority; merged, they hold the first q of the whole
corpus. Phases A and B run on these candidates. The result stands if nothing was taken, or looked for, beyond the first q of a
type; else q is quadrupled.
What can't be told from candidates (the greedy set cover where rarest-first does not fit, the concave objective) gathers the rows
on the coordinator, and says so. Under the controls `none` and `length-window`; the others need the corpus's bins.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from numba import njit

from diversity.keys import priorities
from diversity.selection.controls import Control
from diversity.selection.cover import Taken, cover_rarest, cover_then_fill
from diversity.selection.fill import Objective, fill
from diversity.selection.levels import KminFrom, LevelPlan, Planner, constant_order, level_table
from diversity.selection.peel import Closure, TypedInputs, admissible_from
from diversity.selection.pool import make_pool
from diversity.selection.shard import Rows, Shard, first_of_types
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
        widest: most types of a sample.
    """

    shards: Shards
    type_tie: np.ndarray
    position: np.ndarray
    samples: np.ndarray
    admissible: np.ndarray
    widest: int


def prune_sharded(shards: Shards, type_tie: np.ndarray, closure: Closure = "strict", rows_a_round: int = ROWS_A_ROUND) -> ShardedTyping:
    """Return the pruned typing; every shard knows its births from then on."""
    position = peel_sharded(shards, type_tie, rows_a_round)
    found = shards.each("prune", position, closure)
    first = np.minimum.reduce([one[0] for one in found])
    samples = np.sum([one[1] for one in found], axis=0)
    samples[0] = 0
    allowed = np.flatnonzero(admissible_from(first, position))
    return ShardedTyping(shards, type_tie, position, np.cumsum(samples), allowed, max(one[2] for one in found))


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
            here = _append([here.take(np.flatnonzero(~dead)), *shards.each("send", next_types)])
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
    typing: ShardedTyping,
    sizes: Iterable[int],
    fractions: Sequence[Fraction],
    rho: float = 1.5,
    kmin_from: KminFrom = "each",
) -> dict[int, LevelPlan]:
    """Return what `levels.level_table` returns under control none."""
    sizes = list(sizes)
    try:
        return _Planner(typing, rho).table(sizes, fractions, kmin_from)
    except _Unsettled as reason:
        typed, keys, _ = gather(typing, str(reason))
        return level_table(typed, keys, _no_control(len(keys)), sizes, fractions, rho, kmin_from)


def select_sharded(
    typing: ShardedTyping, k: int, size: int, subset_seed: int, objective: Objective = "cover", most: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows, chosen_for) as `cover.cover_then_fill` gives them under control none, rows by their numbers in the corpus.

    Args:
        typing: pruned.
        k: types kept, admissible.
        size: samples.
        subset_seed: of the order of the samples.
        objective: how phase B fills.
        most: q, candidates of a type to begin with; by default four times what a type gets on average.

    Raises:
        InfeasibleLevel: the pool is too small, or no cover fits.
    """
    if not 1 <= k <= len(typing.position):
        raise ValueError(f"k = {k} is outside 1..{len(typing.position)}")
    quota = np.array([size], dtype=np.int64)
    if objective == "cover" and typing.samples[k] >= size:
        counts = np.sum(typing.shards.each("count", k), axis=0)
        kept = typing.position <= k
        most = most or 8 + 4 * size // k
        while True:
            found = _attempt(typing, k, quota, subset_seed, counts, kept, most)
            if found is None:
                break
            rows, reasons, settled = found
            if settled:
                return rows, reasons
            most *= 4
            logger.info("k = %d, size %d: a type's candidates ran out, now %d of each", k, size, most)
    typed, keys, rows = gather(typing, f"k = {k}, size {size}: rarest-first does not fit, or the objective is {objective}")
    order, constant = priorities(keys, subset_seed, "sample"), constant_order(keys)
    taken, reasons = cover_then_fill(typed, k, quota, _no_control(len(keys)), order, constant, objective)
    return rows[taken], reasons


def gather(typing: ShardedTyping, reason: str) -> tuple[TypedInputs, np.ndarray, np.ndarray]:
    """Return (typing, sample keys, row numbers) of all rows on this machine, rows ascending."""
    logger.warning("%s: all rows are gathered on one machine", reason)
    merged = _merge(typing.shards.each("everything"))
    ascending = np.argsort(merged.rows)
    incidence = merged.incidence.take(ascending)
    typed = TypedInputs(incidence, typing.type_tie, typing.position, merged.births[ascending])
    return typed, merged.keys[ascending], merged.rows[ascending]


class _Unsettled(Exception):
    """Candidates don't tell whether a cover fits."""


class _Planner(Planner):
    """The scans over k with covers out of candidates."""

    def __init__(self, typing: ShardedTyping, rho: float) -> None:
        self.begin(_no_control(0), len(typing.position), rho)
        self.typing, self.widest, self.admissible = typing, typing.widest, typing.admissible
        self.samples = self.weights = typing.samples

    def cover(self, k: int, quota: np.ndarray) -> Taken | None:
        """Return the cover by rarest-first."""
        counts = np.sum(self.typing.shards.each("count", k), axis=0)
        pool, _ = _pool(self.typing, k, 0, "cover", self.typing.position <= k, 1)
        found, reasons, fits = cover_rarest(pool, k, counts, quota)
        if not fits:
            raise _Unsettled(f"k = {k}: rarest-first does not fit {int(quota.sum())} samples")
        return Taken(found, reasons)

    def weight(self, found: Taken) -> int:
        """Return the number of samples of a cover."""
        return len(found.candidates)


def _attempt(
    typing: ShardedTyping, k: int, quota: np.ndarray, seed: int, counts: np.ndarray, kept: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray, bool] | None:
    """Return (rows, chosen_for, whether the candidates sufficed), or None where rarest-first does not fit."""
    pool, rows = _pool(typing, k, seed, "sample", kept, most)
    found, reasons, fits = cover_rarest(pool, k, counts, quota)
    if not fits:
        return None
    taken, reasons = fill(pool, k, quota, found, reasons, False)
    return rows[pool.rows[taken]], reasons, bool(_sufficed(pool.starts, pool.members, taken, reasons, counts, kept, most))


def _pool(typing: ShardedTyping, k: int, seed: int, tag: str, kept: np.ndarray, most: int) -> tuple[Any, np.ndarray]:
    """Return the pool that the candidates of all shards make, and their rows: the first `most` of each type are whole."""
    merged = _merge(typing.shards.each("candidates", k, kept, seed, tag, most))
    priority = priorities(merged.keys, seed, tag)
    order = np.argsort(priority, kind="stable")
    order = order[first_of_types(merged.incidence.take(order), kept, most)]
    typed = TypedInputs(merged.incidence.take(order), typing.type_tie, typing.position, merged.births[order])
    return make_pool(typed, _no_control(len(order)), priority[order], k), merged.rows[order]


def _merge(parts: list[Rows]) -> Rows:
    rows, keys, births = (np.concatenate([part[field] for part in parts]) for field in range(3))
    return Rows(rows, keys, births, _append([part.incidence for part in parts]))


def _append(parts: list[Incidence]) -> Incidence:
    """Return the rows of several incidences, one after the other."""
    lengths = np.concatenate([part.lengths() for part in parts])
    indptr = np.append(np.int64(0), np.cumsum(lengths))
    return Incidence(indptr, np.concatenate([part.indices for part in parts]), parts[0].n_types)


def _no_control(n: int) -> Control:
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


@njit(cache=True)
def _sufficed(
    starts: np.ndarray, members: np.ndarray, taken: np.ndarray, reasons: np.ndarray, counts: np.ndarray, kept: np.ndarray, most: int
) -> bool:
    """Return whether nothing was taken beyond the first `most` of a type, and no type with more samples ran out of candidates."""
    is_taken = np.zeros(max(1, taken.max() + 1 if len(taken) else 1), dtype=np.bool_)
    for c in taken:
        is_taken[c] = True
    for j in range(len(taken)):
        t = reasons[j]
        if counts[t] > most and np.searchsorted(members[starts[t] : starts[t + 1]], taken[j]) >= most:
            return False
    for t in range(len(kept)):
        here = members[starts[t] : starts[t + 1]]
        if not kept[t] or counts[t] <= len(here):
            continue
        free = False
        for c in here:
            if c >= len(is_taken) or not is_taken[c]:
                free = True
                break
        if not free:
            return False
    return True
