"""A proof that no cover fits, for a whole range of k at once, so that the downward scan for k_max can skip what it would only refute.

For prices y >= 0 on types, any cover of K_k that fits the quota q gathers at least sum_{t in K_k} y_t, as each type is met.
But rows can gather at most sum_b [q_b z_b + sum_{i in b} max(0, s_i - z_b w_i)] for any z >= 0, where s_i = sum_{t in S_i}
y_t and each row is taken at most once (weak duality). Where the first exceeds the second, k is refuted; a smaller k has
fewer rows with smaller s_i, so that the same sum refutes each smaller k whose own prices still exceed it. Prices are
integers, so a refutation is exact; how good they are (they are improved by multiplicative updates) decides only how much is
skipped.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from diversity.selection.pool import Pool

_SCALE = 1 << 24
_ROUNDS = 24
_WORTH_A_JUMP = 0.98


class Bound:
    """Prices of one typing, improved from call to call."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.log_price = np.zeros(len(pool.position))
        self.by_position = np.argsort(pool.position, kind="stable")

    def refuted_down_to(self, k: int, quota: np.ndarray, rounds: int = _ROUNDS) -> int:
        """Return the smallest k' <= k + 1 such that no cover of any of k', …, k fits the quota, as far as can soon be proved."""
        lowest = k + 1
        for step in range(rounds):
            kept = self.pool.position <= k
            price = np.where(kept, np.exp(self.log_price - self.log_price[kept].max()), 0.0)
            prices = np.ceil(price * _SCALE).astype(np.int64)
            scores = _scores(self.pool, k, prices)
            most, times = self._most(k, quota, scores)
            gathered = np.cumsum(prices[self.by_position[:k]])
            lowest = min(lowest, int(np.searchsorted(gathered, most, side="right")) + 1)
            if lowest < _WORTH_A_JUMP * k:
                break
            rate = 1.0 / (1 + step)
            self.log_price[kept] += rate * (1.0 - np.minimum(times[kept], 4.0))
        return lowest

    def _most(self, k: int, quota: np.ndarray, scores: np.ndarray) -> tuple[int, np.ndarray]:
        """Return what rows can gather at most, and how often the rows that gather it have each type."""
        pool, most = self.pool, 0
        threshold = np.zeros(len(quota), dtype=np.int64)
        for b in range(len(quota)):
            inside = np.flatnonzero((pool.bin == b) & (pool.birth <= k)) if len(quota) > 1 else np.flatnonzero(pool.birth <= k)
            threshold[b] = _threshold(scores[inside], pool.weight[inside], int(quota[b]))
            surplus = np.maximum(scores[inside] - threshold[b] * pool.weight[inside], 0)
            most += int(quota[b]) * int(threshold[b]) + int(surplus.sum())
        return most, _times(pool, k, scores, threshold)


def _threshold(scores: np.ndarray, weights: np.ndarray, quota: int) -> int:
    """Return about the score per weight at which the best rows fill the quota."""
    if not len(scores) or int(weights.sum()) <= quota:
        return 0
    per_weight = scores // weights
    if weights.min() == weights.max() == 1:
        return int(-np.partition(-per_weight, quota - 1)[quota - 1]) if quota else int(per_weight.max())
    ranked = np.argsort(-per_weight)
    return int(per_weight[ranked[np.searchsorted(np.cumsum(weights[ranked]), quota, side="left")]])


@njit(cache=True)
def _scores(pool: Pool, k: int, prices: np.ndarray) -> np.ndarray:
    scores = np.zeros(len(pool.rows), dtype=np.int64)
    for c in range(len(scores)):
        if pool.birth[c] <= k:
            for t in pool.indices[pool.indptr[c] : pool.indptr[c + 1]]:
                scores[c] += prices[t]
    return scores


@njit(cache=True)
def _times(pool: Pool, k: int, scores: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    times = np.zeros(len(pool.position))
    for c in range(len(scores)):
        if pool.birth[c] <= k and scores[c] > threshold[pool.bin[c]] * pool.weight[c]:
            for t in pool.indices[pool.indptr[c] : pool.indptr[c + 1]]:
                times[t] += 1
    return times
