"""The pool of a level as the samplers see it: candidates in the order of their priority, with their types both ways."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from diversity.config import UserError
from diversity.selection.controls import Control
from diversity.selection.peel import TypedInputs


class InfeasibleLevel(UserError, ValueError):
    """At this level the pool is too small for the size."""


class InfeasibleSize(UserError, ValueError):
    """No level of the typing can give this size."""


class Pool(NamedTuple):
    """Candidates in the order of their priority, and their types both ways; c below is a candidate's place in that order.

    Attributes:
        rows: `(m,) int64` corpus rows.
        birth: `(m,) int32` smallest k that has the candidate.
        weight: `(m,) int64`; bin: `(m,) int32`, of its control.
        indptr, indices: the types of c are `indices[indptr[c]:indptr[c+1]]`.
        starts, members: the candidates of type t, in order, are `members[starts[t]:starts[t+1]]`.
        position: `(M,) int32`; type t counts at k where `position[t] <= k`.
        type_at: `(M,) int64` the types in the order of their ties.
    """

    rows: np.ndarray
    birth: np.ndarray
    weight: np.ndarray
    bin: np.ndarray
    indptr: np.ndarray
    indices: np.ndarray
    starts: np.ndarray
    members: np.ndarray
    position: np.ndarray
    type_at: np.ndarray


def make_pool(typed: TypedInputs, control: Control, priority: np.ndarray, k: int) -> Pool:
    """Return the pool of k, or of every smaller k too where functions below are given that.

    Args:
        typed: incidence and pruning.
        control: weights and bins of the corpus.
        priority: `(n,) uint64`, lower first.
        k: 1..M.
    """
    rows = np.flatnonzero((typed.birth >= 1) & (typed.birth <= k))
    rows = rows[np.argsort(priority[rows], kind="stable")]
    incidence = typed.incidence.take(rows)
    columns = incidence.transpose()
    return Pool(
        rows,
        typed.birth[rows],
        control.weights[rows],
        control.bins[rows],
        incidence.indptr,
        incidence.indices,
        columns.indptr,
        columns.indices,
        np.array(typed.position),
        np.argsort(typed.type_tie, kind="stable"),
    )


@njit(cache=True)
def count_types(pool: Pool, k: int) -> np.ndarray:
    """Return how many candidates of the pool of k have each type, `(M,) int64`."""
    counts = np.zeros(len(pool.position), dtype=np.int64)
    for c in range(len(pool.birth)):
        if pool.birth[c] <= k:
            for t in pool.indices[pool.indptr[c] : pool.indptr[c + 1]]:
                counts[t] += 1
    return counts


def rarest_first(type_at: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the types `(M,)` by how many candidates have them, ties in the types' own order `type_at`."""
    return type_at[np.argsort(counts[type_at], kind="stable")]
