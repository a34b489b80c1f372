"""Reverse greedy pruning (Algorithm 1): in which order types are given up, and the level at which each sample enters the pool.

`peel`, our reading of the paper's sentence: give up the type that fewest remaining samples have, together with those samples, until none is
left. It is the reverse greedy of Asahiro et al. (2000) for dense k-vertex subgraphs, on a hypergraph; no bound on its pool is claimed.
`unique`, the literal reading: remove the sample with fewest types that it alone still covers, and read off when each type is lost. Its
pools have at most about k samples, so that most sizes can't be had; it is kept to show that.
`static`: types in order of df, without updates.
Ties go to the smaller priority, then the smaller type number: the same order for any row order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numba import njit

from diversity.selection.tournament import FAN_BITS, GONE, build, leftmost, lift, lower
from diversity.typings.incidence import Incidence

Algorithm = Literal["peel", "unique", "static"]
TypeOrder = Literal["peel", "size", "random"]
Closure = Literal["strict", "loose"]
BLOCK = 512  # rows that `peel` looks up together


@dataclass(frozen=True)
class Pruning:
    """What pruning leaves behind, enough for every level: K_k = {t: position[t] <= k}, pool_k = {i: 1 <= birth[i] <= k}.

    Attributes:
        position: `(M,) int32`, a permutation of 1..M; 1 was removed last.
        birth: `(n,) int32`, the smallest k whose pool has the sample; 0 for a sample without types, which is in no pool.
    """

    position: np.ndarray
    birth: np.ndarray


@dataclass(frozen=True)
class TypedInputs:
    """One typing of a corpus, pruned: everything the samplers need for every level.

    Attributes:
        incidence: samples × types.
        type_tie: `(M,) uint64`, constant priorities of the types' content.
        position, birth: see `Pruning`.
    """

    incidence: Incidence
    type_tie: np.ndarray
    position: np.ndarray
    birth: np.ndarray


def prune(
    incidence: Incidence,
    type_tie: np.ndarray,
    sample_tie: np.ndarray | None = None,
    *,
    algorithm: Algorithm = "peel",
    type_order: TypeOrder = "peel",
    closure: Closure = "strict",
) -> Pruning:
    """Return the type positions and the sample births of one typing: all that levels need, computed once.

    Args:
        incidence: samples × types.
        type_tie: `(M,) uint64`, constant priorities of the types' content (`keys.content_priorities`).
        sample_tie: `(n,) uint64`, constant priorities of the samples; `unique` alone needs them.
        algorithm: see the module.
        type_order: what `peel` goes by: `peel` itself, `size` (df, the same as `static`), or `random` (the types' priorities).
        closure: `strict`: a sample is in the pool when all its types are kept; `loose`: when one of them is.

    Raises:
        ValueError: no types at all, or options that contradict one another.
    """
    _refuse_bad(incidence, type_tie, algorithm, type_order, closure)
    if algorithm == "unique":
        if sample_tie is None:
            raise ValueError("algorithm unique needs sample_tie, the priorities of the samples")
        return unique(incidence, type_tie, sample_tie)
    if algorithm == "static" or type_order == "size":
        position = _positions(np.lexsort((type_tie, incidence.df())))
    elif type_order == "random":
        position = _positions(np.argsort(type_tie, kind="stable"))
    else:
        position = peel(incidence, type_tie)
    return Pruning(position, birth(incidence, position, closure))


def peel(incidence: Incidence, tie: np.ndarray, transposed: Incidence | None = None) -> np.ndarray:
    """Return `(M,) int32` positions of exact reverse greedy pruning: 1 = removed last.

    Each sample dies once and each incidence is subtracted once, so that the work is O(nnz) plus O(log M) for a removal.

    Args:
        incidence: samples × types.
        tie: `(M,) uint64`; among types of one count the smallest (tie, number) goes first.
        transposed: `incidence.transpose()`, where the caller has it already.
    """
    columns = transposed or incidence.transpose()
    type_at = np.argsort(tie, kind="stable").astype(np.int32)
    counts = np.diff(columns.indptr)[type_at].astype(np.int32)
    position, _ = _peel(incidence.indptr, incidence.indices, columns.indptr, columns.indices, type_at, _inverse(type_at), counts)
    return position


def birth(incidence: Incidence, position: np.ndarray, closure: Closure = "strict") -> np.ndarray:
    """Return `(n,) int32`: the largest position among a sample's types (strict), or the smallest (loose); 0 without types."""
    return _birth(incidence.indptr, incidence.indices, position, closure == "loose")


def unique(incidence: Incidence, type_tie: np.ndarray, sample_tie: np.ndarray) -> Pruning:
    """Return the literal reading: samples leave in order of how many types they alone still cover.

    pool_k is what remains when the number of covered types first falls to k or below; the k that are jumped over are not admissible.
    Types lost at one removal leave in the order of their ties. A lazy queue: what a sample alone covers only grows as others leave.
    """
    type_rank = _inverse(np.argsort(type_tie, kind="stable"))
    sample_at = np.argsort(sample_tie, kind="stable")
    position, births = _unique(incidence.indptr, incidence.indices, incidence.df(), type_rank, sample_at, _inverse(sample_at))
    return Pruning(position, births)


def admissible(incidence: Incidence, pruning: Pruning | TypedInputs) -> np.ndarray:
    """Return `(M+1,) bool`: the k >= 1 at which every kept type occurs in the pool.

    A type t is kept from k = position[t] on and has its first sample at k = min birth of its samples; between the two, k won't do.
    """
    return admissible_from(first_births(incidence, pruning.birth), pruning.position)


def first_births(incidence: Incidence, births: np.ndarray) -> np.ndarray:
    """Return `(M,) int64`: the smallest birth of a type's samples, M + 1 where it has none."""
    return _first_birth(incidence.indptr, incidence.indices, births, incidence.n_types)


def admissible_from(first: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Return `admissible` from `first_births` and the positions."""
    n_types = len(position)
    change = np.bincount(position, minlength=n_types + 2)
    change -= np.bincount(np.maximum(first, position), minlength=n_types + 2)
    allowed = np.cumsum(change)[: n_types + 1] == 0
    allowed[0] = False
    return allowed


def pool_sizes(pruning: Pruning | TypedInputs, weights: np.ndarray | None = None) -> np.ndarray:
    """Return `(M+1,) int64`: how many samples, or how much of their integer weights, the pool of each k = 0..M has."""
    n_types = len(pruning.position)
    if weights is None:
        per_k = np.bincount(pruning.birth, minlength=n_types + 1)
    else:
        per_k = np.zeros(n_types + 1, dtype=np.int64)
        np.add.at(per_k, pruning.birth, weights)
    per_k[0] = 0
    return np.cumsum(per_k)


def _refuse_bad(incidence: Incidence, tie: np.ndarray, algorithm: str, type_order: str, closure: str) -> None:
    if incidence.n_types == 0:
        raise ValueError("the typing has no types (M = 0): no type's df is inside the band, or no sample got a topic or tag")
    if len(tie) != incidence.n_types:
        raise ValueError(f"{len(tie)} priorities for {incidence.n_types} types")
    for name, value, allowed in (
        ("algorithm", algorithm, ("peel", "unique", "static")),
        ("type_order", type_order, ("peel", "size", "random")),
        ("closure", closure, ("strict", "loose")),
    ):
        if value not in allowed:
            raise ValueError(f"{name}: {value!r} is not one of {', '.join(allowed)}")
    if algorithm != "peel" and type_order != "peel":
        raise ValueError(f"type_order {type_order} belongs to algorithm peel, not to {algorithm}")
    if algorithm == "unique" and closure == "loose":
        raise ValueError("closure loose has no meaning for algorithm unique, which removes samples")


def _positions(removal_order: np.ndarray) -> np.ndarray:
    """Return positions from the types in the order of their removal."""
    position = np.empty(len(removal_order), dtype=np.int32)
    position[removal_order] = np.arange(len(removal_order), 0, -1, dtype=np.int32)
    return position


def _inverse(permutation: np.ndarray) -> np.ndarray:
    inverse = np.empty(len(permutation), dtype=np.int32)
    inverse[permutation] = np.arange(len(permutation), dtype=np.int32)
    return inverse


@njit(cache=True)
def _peel(
    indptr: np.ndarray,
    indices: np.ndarray,
    starts: np.ndarray,
    rows: np.ndarray,
    type_at: np.ndarray,
    leaf_of: np.ndarray,
    counts: np.ndarray,
) -> tuple[np.ndarray, int]:
    """Return the positions, and a sum that has no meaning but keeps the reads that it is made of from being dropped."""
    n_types = len(type_at)
    position = np.empty(n_types, dtype=np.int32)
    dead = np.zeros((len(indptr) + 62) >> 6, dtype=np.uint64)  # bits: a byte a row would not stay in a core's cache
    alive, begin, end = np.empty(BLOCK, dtype=np.int64), np.empty(BLOCK, dtype=np.int64), np.empty(BLOCK, dtype=np.int64)
    tree, offsets = build(counts)
    touched = 0
    for left in range(n_types, 0, -1):
        leaf = leftmost(tree, offsets)
        supported = tree[leaf] > 0
        t = type_at[leaf]
        position[t] = left
        lift(tree, offsets, leaf, GONE)
        if not supported:
            continue
        # Nearly all rows of a type have died with others before, and the living ones lie far apart. So a block's are gathered first,
        # without a branch to guess wrong, and their places looked up together: the waits for memory overlap.
        for first in range(starts[t], starts[t + 1], BLOCK):
            living = 0
            for i in rows[first : min(first + BLOCK, starts[t + 1])]:
                word, bit = dead[i >> 6], np.uint64(1) << np.uint64(i & 63)
                alive[living] = i
                living += (word & bit) == 0
                dead[i >> 6] = word | bit
            for j in range(living):
                begin[j], end[j] = indptr[alive[j]], indptr[alive[j] + 1]
                touched += indices[begin[j]]
            for j in range(living):
                for u in indices[begin[j] : end[j]]:
                    other = leaf_of[u]
                    count = tree[other] - 1
                    tree[other] = count
                    # Nearly always the parent is smaller still; asking here and not in `lower` saves a fifth of the time.
                    if count < tree[offsets[1] + (other >> FAN_BITS)] and other != leaf:
                        lower(tree, offsets, other, count)
    return position, touched


@njit(cache=True)
def _birth(indptr: np.ndarray, indices: np.ndarray, position: np.ndarray, loose: bool) -> np.ndarray:
    births = np.zeros(len(indptr) - 1, dtype=np.int32)
    for i in range(len(births)):
        if indptr[i] == indptr[i + 1]:
            continue
        enters = position[indices[indptr[i]]]
        for p in range(indptr[i] + 1, indptr[i + 1]):
            other = position[indices[p]]
            enters = min(enters, other) if loose else max(enters, other)
        births[i] = enters
    return births


@njit(cache=True)
def _first_birth(indptr: np.ndarray, indices: np.ndarray, births: np.ndarray, n_types: int) -> np.ndarray:
    first = np.full(n_types, n_types + 1, dtype=np.int64)
    for i in range(len(births)):
        for p in range(indptr[i], indptr[i + 1]):
            first[indices[p]] = min(first[indices[p]], births[i])
    return first


@njit(cache=True)
def _unique(
    indptr: np.ndarray, indices: np.ndarray, df: np.ndarray, type_rank: np.ndarray, sample_at: np.ndarray, leaf_of: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Samples leave by (types they alone cover, tie). `holder[t]` is the XOR of t's samples: the last one when one is left."""
    n = len(indptr) - 1
    count = df.copy()
    holder = np.zeros(len(df), dtype=np.int64)
    for i in range(n):
        for p in range(indptr[i], indptr[i + 1]):
            holder[indices[p]] ^= i
    alone = np.zeros(n, dtype=np.int32)
    for t in range(len(df)):
        if count[t] == 1:
            alone[holder[t]] += 1
    leaves = np.empty(n, dtype=np.int32)
    remaining = 0
    for i in range(n):
        typed = indptr[i + 1] > indptr[i]
        leaves[leaf_of[i]] = alone[i] if typed else GONE
        remaining += typed
    tree, offsets = build(leaves)
    position = np.zeros(len(df), dtype=np.int32)
    births = np.zeros(n, dtype=np.int32)
    live = len(df)
    live -= _place(np.flatnonzero(count == 0), type_rank, position, live)
    while remaining:
        leaf = leftmost(tree, offsets)
        i = sample_at[leaf]
        if tree[leaf] < alone[i]:
            lift(tree, offsets, leaf, alone[i])
            continue
        births[i] = live
        lift(tree, offsets, leaf, GONE)
        remaining -= 1
        types = indices[indptr[i] : indptr[i + 1]]
        for t in types:
            count[t] -= 1
            holder[t] ^= i
            if count[t] == 1:
                alone[holder[t]] += 1
        live -= _place(types[count[types] == 0], type_rank, position, live)
    return position, births


@njit(cache=True)
def _place(lost: np.ndarray, type_rank: np.ndarray, position: np.ndarray, live: int) -> int:
    """Give the lost types the positions live, live-1, … in the order of their ties; return how many there were."""
    for t in lost[np.argsort(type_rank[lost])]:
        position[t] = live
        live -= 1
    return len(lost)
