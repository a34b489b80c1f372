"""How many types any samples of a pool can cover at most: what a certificate holds a dataset against, whoever chose it.

For prices y in [0, 1] on the types of K_k, no N samples of the pool cover more than

    sum_t (1 - y_t) + (the sum of the N largest s_i),    s_i = sum_{t in S_i} y_t,

since a covered type counts at most 1 - y_t beyond what it pays to a sample that has it: LP duality of maximum coverage. Under quotas it
is the sum of the largest of each bin up to its quota; under a token budget, of the fractional knapsack by s_i per token. Types outside
K_k have no price, so it holds for loose pools too. Prices are integers, so each value is exact; multiplicative updates only make it
smaller: a type that the best samples have more than once gets cheaper, one that they lack dearer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit

from diversity.selection.controls import Control
from diversity.selection.peel import TypedInputs

SCALE = 1 << 30  # the price 1
ROUNDS = 60
_RATE, _DECAY = 0.5, 0.1
_TIMES = 4.0  # above so many, how often the best samples have a type says no more

Best = Callable[[np.ndarray], tuple[int, np.ndarray]]


def most_covered(typed: TypedInputs, k: int, quota: np.ndarray, control: Control) -> int:
    """Return how many types of K_k the quota can cover at most, whichever samples of the pool of k are taken.

    Args:
        typed: incidence and pruning.
        k: types kept.
        quota: `(bins,) int64`, in the control's weights.
        control: weights and bins.
    """
    rows = np.flatnonzero((typed.birth >= 1) & (typed.birth <= k))
    rows = rows[np.argsort(control.bins[rows], kind="stable")]
    incidence, weight = typed.incidence.take(rows), control.weights[rows]
    ends = np.cumsum(np.bincount(control.bins[rows], minlength=len(quota)))
    shares = [(slice(end - size, end), share) for end, size, share in zip(ends, np.diff(ends, prepend=0), quota.tolist(), strict=True)]

    def best(prices: np.ndarray) -> tuple[int, np.ndarray]:
        scores, most = row_scores(incidence.indptr, incidence.indices, prices), 0
        times = np.zeros(len(prices))
        for inside, share in shares:
            gathered, threshold, left = _knapsack(scores[inside], weight[inside], share)
            most += gathered
            indptr = incidence.indptr[inside.start : inside.stop + 1]
            above, at, weight_at = count_best(indptr, incidence.indices, scores[inside], weight[inside], threshold, len(prices))
            times += above + at * (left / max(1, weight_at))
        return most, times

    return least_bound(typed.position <= k, incidence.df(), int(weight.sum()) / max(1, int(quota.sum())), best)


def least_bound(kept: np.ndarray, counts: np.ndarray, spare: float, best: Best) -> int:
    """Return the smallest bound that the updates find.

    Args:
        kept: `(M,) bool` mask of K_k.
        counts: `(M,) int64` samples of the pool that have each type.
        spare: how many times the budget the pool is: a type that a random draw has so many times begins at a price so much lower.
        best: prices `(M,) int64` to (what the best samples within the budget gather, how often they have each type `(M,) float64`).
    """
    k = int(kept.sum())

    def bound_at(prices: np.ndarray) -> tuple[int, np.ndarray]:
        most, times = best(prices)
        return (k * SCALE - int(prices.sum()) + most) // SCALE, times

    least = min(k, bound_at(np.where(kept, SCALE, 0))[0])  # at the price 1 it is the types of the widest samples, exact for disjoint types
    price = np.where(kept, np.minimum(1.0, spare / np.maximum(counts, 1)), 0.0)
    for step in range(ROUNDS):
        bound, times = bound_at(np.floor(price * SCALE).astype(np.int64))
        least = min(least, bound)
        # (1 + x/8)^8 for e^x: made of products alone, it is the same on every processor.
        factor = 1.0 + _RATE / (1.0 + _DECAY * step) * (1.0 - np.minimum(times, _TIMES)) / 8.0
        for _ in range(3):
            factor = factor * factor
        price = np.minimum(1.0, price * factor)
    return least


def largest(scores: np.ndarray, size: int) -> tuple[int, int, int]:
    """Return (sum of the `size` largest scores, the smallest of them, how many of them equal it); -1 for the smallest where that is all."""
    if size >= len(scores):
        return int(scores.sum()), -1, 0
    if not size:
        return 0, int(scores.max()), 0
    threshold = int(-np.partition(-scores, size - 1)[size - 1])
    above = scores[scores > threshold]
    left = size - len(above)
    return int(above.sum()) + left * threshold, threshold, left


def _knapsack(scores: np.ndarray, weight: np.ndarray, budget: int) -> tuple[int, int, int]:
    """Return `largest` by score per weight, where a part of a sample may be taken; the last figure in weights.

    For any z >= 0, budget z + sum max(0, s_i - z w_i) is no less than what fits gathers; z is the score per weight at which it is full.
    """
    if weight.min(initial=1) == weight.max(initial=1) == 1:
        return largest(scores, budget)
    if int(weight.sum()) <= budget:
        return int(scores.sum()), -1, 0
    per_weight = scores // np.maximum(weight, 1)
    ranked = np.argsort(-per_weight, kind="stable")
    threshold = int(per_weight[ranked[np.searchsorted(np.cumsum(weight[ranked]), budget, side="left")]])
    left = budget - int(weight[per_weight > threshold].sum())
    return budget * threshold + int(np.maximum(scores - threshold * weight, 0).sum()), threshold, max(0, left)


@njit(cache=True)
def row_scores(indptr: np.ndarray, indices: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """Return s_i, the sum of the prices of each row's types, `(n,) int64`."""
    scores = np.zeros(len(indptr) - 1, dtype=np.int64)
    for i in range(len(scores)):
        for t in indices[indptr[i] : indptr[i + 1]]:
            scores[i] += prices[t]
    return scores


@njit(cache=True)
def count_best(
    indptr: np.ndarray, indices: np.ndarray, scores: np.ndarray, weight: np.ndarray, threshold: int, n_types: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return how many rows above the threshold, by score per weight, and how many at it have each type; and the weight of those at it."""
    above, at = np.zeros(n_types, dtype=np.int64), np.zeros(n_types, dtype=np.int64)
    weight_at = 0
    for i in range(len(scores)):
        per_weight = scores[i] // max(1, weight[i])
        if per_weight < threshold:
            continue
        counts = above if per_weight > threshold else at
        for t in indices[indptr[i] : indptr[i + 1]]:
            counts[t] += 1
        if per_weight == threshold:
            weight_at += weight[i]
    return above, at, weight_at
