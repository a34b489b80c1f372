"""`mig`: the sample that adds most information to a graph of labels next (Chen et al. 2025, "MIG", arXiv 2504.13835).

A sample brings its score in equal shares to its labels, and the column-normalised similarities A of the labels spread it: with
z = A sum_i v_i the information is sum_l phi(z_l), phi(z) = (z + 1e-6)^0.8, and greedy takes the largest <phi'(z), A v_i>.
Published code multiplies all samples by the dense gradient for every pick. z only grows and phi' falls, so a gain only falls:
a lazy queue finds the same sample, and a pick touches the labels within two edges of its own. Amounts are whole numbers, so
that sums don't depend on any order. Ours: labels are the instruction's tags, two are joined where the mean embeddings of
their samples, less the corpus mean, have a cosine of 0.9 or more (our tags are merged by text at 0.9 already, which would leave
no edge); without `Inputs.scores` all samples score alike. No dial. Samples without tags come last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from diversity.cell import Cell
from diversity.config import ConfigError
from diversity.selection.strategies import Inputs, Picks, SelectionConfig
from diversity.selection.tournament import GONE, build, leftmost, lift
from diversity.typings.exact_vectors import ONE, SCALE, exact_vectors
from diversity.typings.incidence import Incidence

EDGE = 0.9
_FLOW = 1 << 20  # all that flows out of a label, in whole parts
_SCORE = 1 << 16  # the best score, in whole parts


@dataclass(frozen=True)
class LabelGraph:
    """Labels and their neighbours, themselves included: those of l are `neighbour[starts[l]:starts[l+1]]`, ascending.

    Attributes:
        starts: `(L+1,) int64`.
        neighbour: `(edges,) int32`.
        flow_out: `(edges,) int64`, what of l's information the neighbour gets: A[neighbour, l] in parts of `_FLOW`.
        flow_in: `(edges,) int64`, A[l, neighbour].
    """

    starts: np.ndarray
    neighbour: np.ndarray
    flow_out: np.ndarray
    flow_in: np.ndarray


def select(inputs: Inputs, cell: Cell, config: SelectionConfig) -> Picks:
    """Return the greedy choice; equal gains in the seeded order. `chosen_for` is the label that gains most.

    Raises:
        ConfigError: no score is above 0.
    """
    assert inputs.embeddings is not None
    rows = np.argsort(inputs.order(cell), kind="stable")
    incidence = inputs.typed["instruction-meso"].incidence.take(rows)
    graph = label_graph(incidence, exact_vectors(inputs.embeddings("instruction"), rows))
    known = inputs.filled_scores()
    scores = np.ones(inputs.n) if known is None else known[rows]
    taken, label = greedy(incidence, graph, shares(incidence, scores), cell.size)
    ascending = np.argsort(rows[taken])
    return Picks(rows[taken][ascending], label[ascending], inputs.n)


def shares(incidence: Incidence, scores: np.ndarray) -> np.ndarray:
    """Return `(n,) int64`: what each sample brings to each of its labels; scores below 0 count as 0.

    Raises:
        ConfigError: no score is above 0: no sample would bring anything, and the choice would be a random draw.
    """
    positive = np.maximum(scores, 0)
    if positive.max() == 0:
        raise ConfigError(f"mig needs scores above 0, and the highest is {scores.max():g}")
    whole = np.rint(positive / positive.max() * _SCORE).astype(np.int64)
    return whole // np.maximum(1, incidence.lengths())


def label_graph(incidence: Incidence, vectors: np.ndarray, edge: float = EDGE, block: int = 1024) -> LabelGraph:
    """Return the graph of labels whose samples' mean vectors, less the mean of all, are similar.

    Args:
        incidence: samples × labels.
        vectors: `(n, d) float32` from `exact_vectors`, in the same order.
        edge: smallest cosine of two joined labels, above 0.
        block: labels compared with all at once.
    """
    columns = incidence.transpose()
    sums = _sums(columns.indptr, columns.indices, vectors)
    centred = sums - np.diff(columns.indptr)[:, None] / incidence.n_samples * vectors.sum(axis=0, dtype=np.float64)
    norms = np.sqrt((centred * centred).sum(axis=1, keepdims=True))
    means = np.rint(centred / np.maximum(norms, 1) * SCALE).astype(np.float32)
    lists, similarities = [], []
    for start in range(0, len(means), block):
        similar = means[start : start + block] @ means.T
        here = np.arange(len(similar))
        similar[here, start + here] = ONE
        left, right = np.nonzero(similar >= edge * ONE)
        lists.append(np.stack([left + start, right]))
        similarities.append(np.minimum(similar[left, right], ONE).astype(np.float64))
    left, right = np.concatenate(lists, axis=1)
    similarity = np.concatenate(similarities)
    total = np.bincount(left, weights=similarity, minlength=len(means))  # symmetric, and sums of whole numbers
    starts = np.searchsorted(left, np.arange(len(means) + 1))
    flow_out, flow_in = (np.rint(similarity / total[of] * _FLOW).astype(np.int64) for of in (left, right))
    return LabelGraph(starts, right.astype(np.int32), flow_out, flow_in)


def greedy(incidence: Incidence, graph: LabelGraph, share: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (places, label) `(size,)` in the order of taking; equal gains to the smaller place.

    Args:
        incidence: samples × labels.
        graph: of the labels.
        share: `(n,) int64` from `shares`.
        size: 1..n.
    """
    return _greedy(incidence.indptr, incidence.indices, share, graph.starts, graph.neighbour, graph.flow_out, graph.flow_in, size)


@njit(cache=True)
def slope(information: int) -> int:
    """Return phi'(z) in parts of 2^-20, of z in parts of 2^-36."""
    return int(0.8 * (information / (_FLOW * _SCORE) + 1e-6) ** -0.2 * (1 << 20))


@njit(cache=True)
def _sums(starts: np.ndarray, members: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    sums = np.zeros((len(starts) - 1, vectors.shape[1]))
    for t in range(len(sums)):
        for i in members[starts[t] : starts[t + 1]]:
            sums[t] += vectors[i]
    return sums


@njit(cache=True)
def _gain(types: np.ndarray, worth: np.ndarray, share: int) -> int:
    total = 0
    for t in types:
        total += worth[t]
    return share * total


@njit(cache=True)
def _greedy(
    indptr: np.ndarray,
    indices: np.ndarray,
    share: np.ndarray,
    starts: np.ndarray,
    neighbour: np.ndarray,
    flow_out: np.ndarray,
    flow_in: np.ndarray,
    size: int,
) -> tuple[np.ndarray, np.ndarray]:
    information = np.zeros(len(starts) - 1, dtype=np.int64)
    slopes = np.full(len(information), slope(0), dtype=np.int64)
    worth = np.zeros(len(information), dtype=np.int64)  # of a unit brought to a label: sum_m A[m, l] phi'(z_m)
    for t in range(len(worth)):
        for p in range(starts[t], starts[t + 1]):
            worth[t] += flow_out[p] * slopes[neighbour[p]]
    leaves = np.empty(len(share), dtype=np.int64)
    for i in range(len(leaves)):
        leaves[i] = -_gain(indices[indptr[i] : indptr[i + 1]], worth, share[i])
    tree, offsets = build(leaves)
    taken, label = np.empty(size, dtype=np.int64), np.full(size, -1, dtype=np.int32)
    n = 0
    while n < size:
        i = leftmost(tree, offsets)
        types = indices[indptr[i] : indptr[i + 1]]
        gain = _gain(types, worth, share[i])
        if gain < -tree[i]:
            lift(tree, offsets, i, -gain)
            continue
        taken[n] = i
        for t in types:
            if label[n] < 0 or worth[t] > worth[label[n]]:
                label[n] = t
        n += 1
        lift(tree, offsets, i, GONE)
        for t in types:
            for p in range(starts[t], starts[t + 1]):
                information[neighbour[p]] += flow_out[p] * share[i]
        for t in types:
            for p in range(starts[t], starts[t + 1]):
                m = neighbour[p]
                # The smaller of the two, so that a slope never rises by the rounding of a power.
                fall = slopes[m] - min(slopes[m], slope(information[m]))
                if fall > 0:
                    slopes[m] -= fall
                    for q in range(starts[m], starts[m + 1]):
                        worth[neighbour[q]] -= flow_in[q] * fall
    return taken, label
