"""What a random draw of the same size from the same pool covers: the yardstick that each dataset stands beside."""

from __future__ import annotations

import numpy as np

from diversity.keys import priorities
from diversity.selection.controls import Control
from diversity.selection.fill import fill_by_weight
from diversity.selection.peel import TypedInputs

DRAWS = 5


def random_coverage(typed: TypedInputs, k: int, quota: np.ndarray, control: Control, keys: np.ndarray) -> float:
    """Return how many types of K_k a random draw from the pool of k covers, the mean of five draws; it obeys the control.

    Args:
        typed: incidence and pruning.
        k: types kept.
        quota: `(bins,) int64`, in the control's weights; the pool has as much.
        control: weights and bins.
        keys: `(n,) uint64` sample keys.
    """
    rows = np.flatnonzero((typed.birth >= 1) & (typed.birth <= k))
    covered = 0
    for seed in range(DRAWS):
        order = rows[np.argsort(draw_priorities(keys[rows], seed), kind="stable")]
        covered += int(typed.incidence.covered(draw(order, quota, control))[typed.position <= k].sum())
    return covered / DRAWS


def draw_priorities(keys: np.ndarray, seed: int) -> np.ndarray:
    """Return the order `(n,) uint64` of a draw, lower first; which draws there are depends on no subset seed."""
    return priorities(keys, seed, "random")


def draw(order: np.ndarray, quota: np.ndarray, control: Control) -> np.ndarray:
    """Return the first rows of an order: as many as the quota of each bin has, or as fit the token budget."""
    if control.by_weight:
        return order[fill_by_weight(control.weights[order], int(quota.sum()))]
    if not control.by_bin:
        return order[: int(quota.sum())]
    bins = control.bins[order]
    return np.concatenate([order[bins == number][:share] for number, share in enumerate(quota.tolist())])
