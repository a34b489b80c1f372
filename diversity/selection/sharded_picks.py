"""Selection from shards, byte for byte what one machine chooses; what leaves a shard grows with the size of the dataset, not with its rows.

**Rarest first, and filling** run on candidates: each shard proposes, for every type, its first q rows by priority; merged, they hold the
first q of the whole corpus. The result stands if nothing was taken, or looked for, beyond the first q of a type; else q is quadrupled.
**Greedy coverage** goes by windows, which are ranges of a global priority. Shards say how many of their rows still add a type, which
settles how many windows a round has; then they send their few best of some windows at once. What the coordinator chooses meanwhile only
lowers gains, so a window is settled if its best is at least as good as the last that a shard sent; else shards are asked again from there.
**Bound and random**: shards score their rows by prices and count the best; of a random draw they send the smallest priorities.
Only the objective `concave` gathers the rows on the coordinator, and says so.
"""

from __future__ import annotations

import itertools
import logging

import numpy as np
from numba import njit

from diversity.keys import priorities
from diversity.selection.bound import largest, least_bound
from diversity.selection.chance import DRAWS
from diversity.selection.cover import cover_rarest, cover_then_fill, too_small
from diversity.selection.fill import Objective, fill
from diversity.selection.greedy import cover_by, gain_of, n_windows, ranks, window_size
from diversity.selection.peel import TypedInputs
from diversity.selection.pool import Pool, make_pool, rarest_first
from diversity.selection.shard import Rows, first_of_types
from diversity.selection.sharded import ShardedTyping, append, no_control
from diversity.typings.incidence import Incidence

logger = logging.getLogger(__name__)

_BEST = 4  # rows of a window that a shard sends
_BLOCK = 16  # windows that shards are asked for at once, to begin with

Chosen = tuple[Rows, np.ndarray]  # rows in the order of taking, and the types that they were taken for


def select_sharded(
    typing: ShardedTyping, k: int, size: int, subset_seed: int, objective: Objective = "cover", most: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows, chosen_for) as `cover.cover_then_fill` gives them under control none, rows by their numbers in the corpus.

    Args:
        typing: pruned.
        k: types kept, admissible.
        size: samples.
        subset_seed: of the orders and windows.
        objective: how phase B fills.
        most: q, candidates of a type to begin with; by default four times what a type gets on average.

    Raises:
        InfeasibleLevel: the pool is too small.
    """
    if not 1 <= k <= len(typing.position):
        raise ValueError(f"k = {k} is outside 1..{len(typing.position)}")
    if typing.samples[k] < size:
        raise too_small(k, int(typing.samples[k]), f"{size} samples", np.flatnonzero(typing.samples >= size))
    if objective != "cover":
        typed, keys, rows = gather(typing, f"k = {k}, size {size}: the objective is {objective}")
        taken, reasons = cover_then_fill(typed, k, np.array([size]), no_control(len(keys)), keys, subset_seed, objective)
        return rows[taken], reasons
    counts = np.sum(typing.shards.each("count", k), axis=0)
    rarest = rarest_first(np.argsort(typing.type_tie, kind="stable"), counts)
    pool, _ = _pool(typing, k, subset_seed, 1, None)  # rarest-first looks at the first of each type and no further
    *_, fits = cover_rarest(pool, k, rarest, np.array([size]))
    greedy = None if fits else _cover_from_windows(typing, k, size, subset_seed, rarest)
    if greedy is not None and len(greedy[1]) == size:
        return greedy[0].rows, greedy[1]
    most = most or 8 + 4 * size // k
    while True:
        rows, reasons, settled = _fill_from_candidates(typing, k, size, subset_seed, counts, rarest, greedy, most)
        if settled:
            return rows, reasons
        most *= 4
        logger.info("k = %d, size %d: a type's candidates ran out, now %d of each", k, size, most)


def count_covered(typing: ShardedTyping, k: int, rows: np.ndarray) -> int:
    """Return how many types of K_k the rows cover."""
    return int((np.any(typing.shards.each("covered", rows), axis=0) & (typing.position <= k)).sum())


def most_covered_sharded(typing: ShardedTyping, k: int, size: int) -> int:
    """Return what `bound.most_covered` gives under control none."""
    shards = typing.shards
    shards.each("begin_bound", k)

    def best(prices: np.ndarray) -> tuple[int, np.ndarray]:
        most, threshold, left = largest(np.concatenate(shards.each("score", prices, size + 1)), size)
        above, at, weight_at = (np.sum(part, axis=0) for part in zip(*shards.each("count_best", threshold), strict=True))
        return most, above + at * (left / max(1, int(weight_at)))

    counts = np.sum(shards.each("count", k), axis=0)
    return least_bound(typing.position <= k, counts, int(typing.samples[k]) / max(1, size), best)


def random_coverage_sharded(typing: ShardedTyping, k: int, size: int) -> float:
    """Return what `chance.random_coverage` gives under control none."""
    shards, covered = typing.shards, 0
    for seed in range(DRAWS):
        last = np.partition(np.concatenate(shards.each("first_priorities", k, seed, size)), size - 1)[size - 1]
        covered += int((np.any(shards.each("drawn", k, seed, int(last)), axis=0) & (typing.position <= k)).sum())
    return covered / DRAWS


def gather(typing: ShardedTyping, reason: str) -> tuple[TypedInputs, np.ndarray, np.ndarray]:
    """Return (typing, sample keys, row numbers) of all rows on this machine, rows ascending."""
    logger.warning("%s: all rows are gathered on one machine", reason)
    merged = _merge(typing.shards.each("everything"))
    ascending = np.argsort(merged.rows)
    incidence = merged.incidence.take(ascending)
    typed = TypedInputs(incidence, typing.type_tie, typing.position, merged.births[ascending])
    return typed, merged.keys[ascending], merged.rows[ascending]


def _cover_from_windows(typing: ShardedTyping, k: int, size: int, seed: int, rarest: np.ndarray) -> Chosen:
    """Return what `greedy.cover_greedily` takes."""
    shards, waiting = typing.shards, typing.position <= k
    rank, in_window, block = ranks(rarest), window_size(int(typing.samples[k]), size), _BLOCK
    shards.each("begin_cover", k, waiting)
    told, left, chosen, reasons = waiting.copy(), size, [_none(typing)], [np.zeros(0, np.int32)]
    for number in itertools.count():
        n_open, told = sum(shards.each("begin_round", np.flatnonzero(told & ~waiting), seed, number)), waiting.copy()
        if not n_open or not left:
            break
        window, count = 0, n_windows(n_open, in_window)
        while window < count and left:
            stop = min(count, window + block)
            sent, told = shards.each("propose", np.flatnonzero(told & ~waiting), window, stop, count, _BEST), waiting.copy()
            merged = _merge([part.rows for part in sent])
            windows, gains, priority, more = (np.concatenate([part[field] for part in sent]) for field in range(1, 5))
            order = np.lexsort((priority, windows))
            merged = _take(merged, order)
            indptr, indices = merged.incidence.indptr, merged.incidence.indices
            best, why, reached = _settle(indptr, indices, windows[order], gains[order], more[order], waiting, rank, left, stop)
            chosen.append(_take(merged, best))
            reasons.append(why)
            left -= len(best)
            block = 2 * block if reached == stop else max(1, reached - window)
            window = reached
    return _merge(chosen), np.concatenate(reasons)


def _fill_from_candidates(
    typing: ShardedTyping,
    k: int,
    size: int,
    seed: int,
    counts: np.ndarray,
    rarest: np.ndarray,
    greedy: Chosen | None,
    most: int,
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return (rows, chosen_for, whether so many candidates of each type sufficed); what greedy coverage took comes first, if it did."""
    pool, rows = _pool(typing, k, seed, most, greedy)
    if greedy is None:
        base, why, _ = cover_rarest(pool, k, rarest, np.array([size]))
    else:
        base, why = _places(rows, greedy[0].rows), greedy[1]
    taken, reasons = fill(pool, k, np.array([size]), base, why, False)
    done = len(base) if greedy else 0
    return rows[taken], reasons, bool(_sufficed(pool.starts, pool.members, taken, reasons, done, counts, typing.position <= k, most))


def _pool(typing: ShardedTyping, k: int, seed: int, most: int, greedy: Chosen | None) -> tuple[Pool, np.ndarray]:
    """Return the pool that candidates of all shards and what greedy coverage took make, and the corpus row of each candidate.

    The first `most` of each type are whole.
    """
    kept = typing.position <= k
    merged = _merge(typing.shards.each("candidates", k, kept, seed, most))
    merged = _take(merged, np.argsort(priorities(merged.keys, seed, "sample"), kind="stable"))
    merged = _take(merged, np.flatnonzero(first_of_types(merged.incidence, kept, most)))
    if greedy is not None:
        merged = _merge([merged, _take(greedy[0], np.flatnonzero(~np.isin(greedy[0].rows, merged.rows)))])
    typed = TypedInputs(merged.incidence, typing.type_tie, typing.position, merged.births)
    pool = make_pool(typed, no_control(len(merged.rows)), priorities(merged.keys, seed, "sample"), k)
    return pool, merged.rows[pool.rows]


def _places(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return where each wanted number stands among distinct ones."""
    order = np.argsort(rows)
    return order[np.searchsorted(rows[order], wanted)]


def _none(typing: ShardedTyping) -> Rows:
    nothing = np.zeros(0, dtype=np.int64)
    return Rows(
        nothing, nothing.astype(np.uint64), nothing.astype(np.int32), Incidence(np.zeros(1, np.int64), nothing, len(typing.position))
    )


def _take(rows: Rows, places: np.ndarray) -> Rows:
    return Rows(rows.rows[places], rows.keys[places], rows.births[places], rows.incidence.take(places))


def _merge(parts: list[Rows]) -> Rows:
    rows, keys, births = (np.concatenate([part[field] for part in parts]) for field in range(3))
    return Rows(rows, keys, births, append([part.incidence for part in parts]))


@njit(cache=True)
def _settle(
    indptr: np.ndarray,
    indices: np.ndarray,
    windows: np.ndarray,
    gains: np.ndarray,
    more: np.ndarray,
    waiting: np.ndarray,
    rank: np.ndarray,
    left: int,
    stop: int,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Take the best of window after window, and return (places, types taken for, the window that is not settled, or stop).

    What is sent comes by window, then priority. `gains` are as they were when it was sent; whoever was not sent gains no more, now or then,
    than the last of its shard that was, which is marked by `more`.
    """
    taken, reasons = np.empty(left, dtype=np.int64), np.empty(left, dtype=np.int32)
    n, first = 0, 0
    while first < len(windows) and n < left:
        best, most, bar, limit = -1, 0, -1, 0
        last = first
        while last < len(windows) and windows[last] == windows[first]:
            gain = gain_of(indptr, indices, last, waiting)
            if gain > most:
                best, most = last, gain
            if more[last] and gains[last] > limit:
                bar, limit = last, gains[last]
            last += 1
        if most < limit or (most == limit and best > bar >= 0):
            return taken[:n].copy(), reasons[:n].copy(), windows[first]
        if best >= 0:
            taken[n], reasons[n] = best, cover_by(indptr, indices, best, waiting, rank)
            n += 1
        first = last
    return taken[:n].copy(), reasons[:n].copy(), stop


@njit(cache=True)
def _sufficed(
    starts: np.ndarray,
    members: np.ndarray,
    taken: np.ndarray,
    reasons: np.ndarray,
    greedy: int,
    counts: np.ndarray,
    kept: np.ndarray,
    most: int,
) -> bool:
    """Return whether nothing after the greedy ones was taken beyond the first `most` of a type, and none with more samples ran out."""
    is_taken = np.zeros(max(1, taken.max() + 1 if len(taken) else 1), dtype=np.bool_)
    for c in taken:
        is_taken[c] = True
    for j in range(greedy, len(taken)):
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
