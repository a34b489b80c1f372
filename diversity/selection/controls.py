"""Controls: what is held fixed across levels beside the size, as weights, bins and quotas that the samplers respect.

Every control says the same three things, so that the samplers know none of them by name: how much of the budget a sample
takes (`weights`), which bin it belongs to (`bins`), and how much of each bin a dataset holds (`quota`). `length-window` is a
corpus of its own and, seen from here, the same as `none`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from diversity.cell import CONTROLS
from diversity.config import ConfigError, near_matches

OCTILES = 8


@dataclass(frozen=True)
class Control:
    """One control over one corpus.

    Attributes:
        name: one of `diversity.cell.CONTROLS`.
        weights: `(n,) int64`, what a sample takes of the budget: 1, or its response tokens.
        bins: `(n,) int32` in 0..n_bins-1.
        n_bins: 1 where nothing is held fixed by bin.
    """

    name: str
    weights: np.ndarray
    bins: np.ndarray
    n_bins: int

    @property
    def by_weight(self) -> bool:
        """Return whether size is counted in tokens: then taking stops at the last sample that fits."""
        return self.name == "tokens"

    @property
    def by_bin(self) -> bool:
        """Return whether the level-0 pool gives quotas to bins."""
        return self.name in ("length-quota", "source-quota", "score-quota")

    def budget(self, size: int) -> int:
        """Return what a dataset of that size holds in weights: size, or floor(size x mean response tokens of the corpus)."""
        if not self.by_weight:
            return size
        return size * int(self.weights.sum()) // max(1, len(self.weights))

    def size_of(self, budget: int) -> int:
        """Return the largest size whose budget is at most the given one."""
        if not self.by_weight:
            return budget
        return (budget * len(self.weights) + len(self.weights) - 1) // max(1, int(self.weights.sum()))

    def quota(self, size: int, pool: np.ndarray) -> np.ndarray:
        """Return `(n_bins,) int64` that sums to the budget: each bin's share in the pool, by largest remainders.

        Args:
            size: samples of a dataset.
            pool: rows of the level-0 pool, at least `size`; then no bin's quota exceeds what the pool has of it.
        """
        if not self.by_bin:
            return np.array([self.budget(size)], dtype=np.int64)
        return apportion(size, np.bincount(self.bins[pool], minlength=self.n_bins))


def make_control(
    name: str, tokens: Mapping[str, np.ndarray], sources: np.ndarray, n_sources: int, scores: np.ndarray | None = None
) -> Control:
    """Return a control over a corpus.

    Args:
        name: one of `diversity.cell.CONTROLS`.
        tokens: token counts `(n,)` of each side; `length-quota` and `tokens` go by the response's.
        sources: `(n,) int32` source codes.
        n_sources: how many codes there are.
        scores: quality `(n,) float64` for `score-quota`, NaN where a sample has none; None where no sample has one.

    Raises:
        ConfigError: an unknown control, or one by scores that the corpus has not.
    """
    ones, zeros = np.ones(len(sources), dtype=np.int64), np.zeros(len(sources), dtype=np.int32)
    if name in ("none", "length-window"):
        return Control(name, ones, zeros, 1)
    if name == "source-quota":
        return Control(name, ones, sources.astype(np.int32), n_sources)
    if name == "length-quota":
        return Control(name, ones, length_bins(tokens["response"]), OCTILES)
    if name == "score-quota":
        if scores is None:
            raise ConfigError("control score-quota: no sample has a score; map a column, corpus.columns={score: …}, or set profile.scorer")
        return Control(name, ones, score_bins(scores), OCTILES + 1)
    if name == "tokens":
        return Control(name, tokens["response"].astype(np.int64), zeros, 1)
    raise ConfigError(f"unknown control {name!r}{near_matches(name, CONTROLS)}")


def score_bins(scores: np.ndarray) -> np.ndarray:
    """Return the octile `(n,) int32` of each score, as `length_bins`; samples without one (NaN) are a bin of their own, the last."""
    bins = np.full(len(scores), OCTILES, dtype=np.int32)
    has = ~np.isnan(scores)
    bins[has] = length_bins(scores[has])
    return bins


def length_bins(lengths: np.ndarray) -> np.ndarray:
    """Return the octile `(n,) int32` of each length; equal lengths share a bin, whatever the row order."""
    if not len(lengths):
        return np.zeros(0, dtype=np.int32)
    edges = np.sort(lengths)[[len(lengths) * j // OCTILES for j in range(1, OCTILES)]]
    return np.searchsorted(edges, lengths, side="right").astype(np.int32)


def densest_window(lengths: np.ndarray) -> tuple[int, int]:
    """Return the window (a, 2a), both ends included, that holds most of the lengths; of several the shortest.

    Ours: the paper fixes lengths near 500 tokens; a window of relative width 2 is what a corpus of any lengths can fill.

    Args:
        lengths: `(n,)` token counts, n >= 1, at least one of them 1 or more.
    """
    upto = np.concatenate([[0], np.cumsum(np.bincount(lengths))])
    starts = np.arange(1, len(upto) - 1)
    held = upto[np.minimum(2 * starts, len(upto) - 2) + 1] - upto[starts]
    first = int(starts[np.argmax(held)])
    return first, 2 * first


def apportion(total: int, shares: np.ndarray) -> np.ndarray:
    """Return `(b,) int64` that sums exactly to the total, in proportion to integer shares (largest remainders, ties to the first bin).

    Where total <= sum(shares), no bin gets more than its share.
    """
    whole = int(shares.sum())
    if whole == 0:
        raise ValueError("nothing to apportion to: all shares are 0")
    exact = [total * int(share) for share in shares]
    parts = np.array([value // whole for value in exact], dtype=np.int64)
    remainders = np.array([value % whole for value in exact], dtype=np.int64)
    parts[np.argsort(-remainders, kind="stable")[: total - int(parts.sum())]] += 1
    return parts
