"""Slow, plain twins of the selection algorithms, written from METHOD's definitions, and what the tests draw at random."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from diversity.keys import content_priorities, priorities
from diversity.selection.controls import Control
from diversity.selection.greedy import EPSILON
from diversity.selection.peel import TypedInputs, admissible, pool_sizes, prune
from diversity.typings.incidence import Incidence


@st.composite
def incidences(draw, max_rows: int = 25, max_types: int = 12, min_rows: int = 1, disjoint: bool = False) -> Incidence:
    """Draw a small incidence in which every type occurs and rows may be empty."""
    n_types = draw(st.integers(1, max_types))
    size = 1 if disjoint else draw(st.integers(1, min(5, n_types)))
    row = st.lists(st.integers(0, n_types - 1), max_size=size, unique=True).map(sorted)
    rows = draw(st.lists(row, min_size=min_rows, max_size=max_rows))
    return Incidence.from_lists(rows, n_types).used()[0] if any(rows) else Incidence.from_lists([[0]], 1)


def keys_of(n: int, salt: int = 0) -> np.ndarray:
    """Return distinct sample keys."""
    return priorities(np.arange(n, dtype=np.uint64), salt, "made-up")


def ties_of(n_types: int) -> np.ndarray:
    return content_priorities(f"type {t}".encode() for t in range(n_types))


def typed_of(incidence: Incidence, closure="strict", algorithm="peel", type_order="peel") -> TypedInputs:
    tie = ties_of(incidence.n_types)
    pruning = prune(incidence, tie, keys_of(incidence.n_samples, 1), algorithm=algorithm, type_order=type_order, closure=closure)
    return TypedInputs(incidence, tie, pruning.position, pruning.birth)


def no_control(n: int) -> Control:
    return Control("none", np.ones(n, np.int64), np.zeros(n, np.int32), 1)


def sets_of(incidence: Incidence) -> list[set[int]]:
    return [set(incidence.row(i).tolist()) for i in range(incidence.n_samples)]


def peel_naive(incidence: Incidence, tie: np.ndarray) -> np.ndarray:
    """Recount everything before each removal: O(M nnz)."""
    rows = [s for s in sets_of(incidence) if s]
    live = set(range(incidence.n_types))
    position = np.zeros(incidence.n_types, np.int32)
    while live:
        count = {t: sum(t in s for s in rows) for t in live}
        worst = min(live, key=lambda t: (count[t], tie[t], t))
        position[worst] = len(live)
        live.remove(worst)
        rows = [s for s in rows if worst not in s]
    return position


def unique_naive(incidence: Incidence, type_tie: np.ndarray, sample_tie: np.ndarray, k: int) -> tuple[set[int], set[int]]:
    """Remove the sample that alone covers fewest types until at most k types are covered; return (samples, types) that remain."""
    sets = sets_of(incidence)
    pool = {i for i, s in enumerate(sets) if s}
    covered = set().union(*(sets[i] for i in pool)) if pool else set()
    while len(covered) > k:
        count = {t: sum(t in sets[i] for i in pool) for t in covered}
        worst = min(pool, key=lambda i: (sum(count[t] == 1 for t in sets[i]), sample_tie[i], i))
        pool.remove(worst)
        covered = set().union(*(sets[i] for i in pool)) if pool else set()
    return pool, covered


def best_pool(incidence: Incidence, k: int) -> int:
    """Return the largest pool of any k types, by trying all."""
    sets = [s for s in sets_of(incidence) if s]
    return max(sum(s <= set(kept) for s in sets) for kept in itertools.combinations(range(incidence.n_types), k))


def admissible_k(data, typed: TypedInputs, at_least: int = 1) -> int:
    """Draw an admissible k whose pool has at least so many samples."""
    allowed = np.flatnonzero(admissible(typed.incidence, typed) & (pool_sizes(typed) >= at_least))
    assume(len(allowed))
    return int(data.draw(st.sampled_from(allowed.tolist())))


def pool_naive(incidence, position, closure, k, priority) -> tuple[list[int], set[int]]:
    """Return the samples of the pool of k in the order of priority, and K_k."""
    kept = {t for t in range(incidence.n_types) if position[t] <= k}
    inside = (lambda s: s <= kept) if closure == "strict" else (lambda s: bool(s & kept))
    pool = [i for i, s in enumerate(sets_of(incidence)) if s and inside(s)]
    return sorted(pool, key=lambda i: (priority[i], i)), kept


def rarest_naive(incidence, position, closure, k, tie, priority) -> tuple[list[int], list[int], list[int]]:
    """Phase A1 of METHOD 4.5; returns (rows, reasons, the kept types, rarest first)."""
    sets = sets_of(incidence)
    pool, kept = pool_naive(incidence, position, closure, k, priority)
    members = {t: [i for i in pool if t in sets[i]] for t in kept}
    order = sorted(kept, key=lambda t: (len(members[t]), tie[t], t))
    taken, reasons = [], []
    for t in order:
        if not any(t in sets[i] for i in taken):
            taken.append(members[t][0])
            reasons.append(t)
    return taken, reasons, order


def greedy_naive(incidence, position, closure, k, tie, keys, seed, quota, control) -> tuple[list[int], list[int]]:
    """Phase A2: rounds of windows, gains counted anew for each look; returns (rows, reasons)."""
    sets, weight, bins = sets_of(incidence), control.weights.tolist(), control.bins.tolist()
    pool, kept = pool_naive(incidence, position, closure, k, keys)
    *_, rarest = rarest_naive(incidence, position, closure, k, tie, keys)
    in_window = math.ceil(sum(weight[i] for i in pool) / sum(quota) * math.log(1 / EPSILON))
    left, waiting, taken, reasons = list(quota), set(kept), [], []
    for number in itertools.count():
        fits = lambda i: weight[i] <= left[bins[i]]  # noqa: E731
        still = [i for i in pool if fits(i) and sets[i] & waiting]
        if not still:
            return taken, reasons
        count = max(1, len(still) // in_window)
        priority = priorities(keys, seed, f"cover {number}")
        for window in range(count):
            inside = [i for i in still if (int(priority[i]) >> 32) * count >> 32 == window and fits(i) and sets[i] & waiting]
            if inside:
                best = min(inside, key=lambda i: (Fraction(-len(sets[i] & waiting), weight[i]), priority[i]))
                taken.append(best)
                reasons.append(min(sets[best] & waiting, key=rarest.index))
                left[bins[best]] -= weight[best]
                waiting -= sets[best]


def sampling_naive(incidence, position, closure, k, tie, keys, seed, size) -> tuple[list[int], list[int], bool]:
    """METHOD 4.5 with recounting; returns (rows, reasons, whether the exact cover fits) in the order of taking."""
    sets, order = sets_of(incidence), priorities(keys, seed, "sample")
    pool, kept = pool_naive(incidence, position, closure, k, order)
    members = {t: [i for i in pool if t in sets[i]] for t in kept}
    taken, reasons, _ = rarest_naive(incidence, position, closure, k, tie, order)
    fits = len(taken) <= size
    if not fits:
        taken, reasons = greedy_naive(incidence, position, closure, k, tie, keys, seed, [size], no_control(len(sets)))
    while len(taken) < size:
        have = {t: sum(t in sets[i] for i in taken) for t in kept}
        open_types = [t for t in kept if any(i not in taken for i in members[t])]
        t = min(open_types, key=lambda t: (have[t], tie[t], t))
        taken.append(next(i for i in members[t] if i not in taken))
        reasons.append(t)
    return taken, reasons, fits


def most_naive(incidence, pool, kept, quota, control) -> int:
    """Return the most types of K_k that any samples of the pool within the quota cover, by trying all."""
    sets, best = [s & kept for s in sets_of(incidence)], 0
    for taken in itertools.chain.from_iterable(itertools.combinations(pool, r) for r in range(len(pool) + 1)):
        rows = list(taken)
        used = np.bincount(control.bins[rows], control.weights[rows], minlength=len(quota))
        if (used <= quota).all():
            best = max(best, len(set().union(*(sets[i] for i in rows))))
    return best
