"""UMAP's layout of a nearest-neighbour graph (McInnes, Healy, Melville 2018), deterministic, compiled once and cached.

The same algorithm as the package umap-learn with precomputed neighbours, min_dist 0 and spread 1: smooth neighbour
distances, fuzzy union, stochastic gradient descent on sampled edges with five negative samples each. Written out here
because it takes half the package's time at one thread, compiles in a second, and can say how far it is.
Tests hold the memberships equal to the package's.
"""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

log = logging.getLogger(__name__)

# The curve 1 / (1 + A d^2B) fitted to min_dist 0 and spread 1: umap-learn's find_ab_params(1.0, 0.0).
A, B = 1.9328083980052901, 0.7904949736958765
NEGATIVES = 5
DIMENSIONS = 5  # a constant, so that the inner loops unroll
_BANDWIDTH_STEPS, _BANDWIDTH_TOLERANCE, _MIN_SCALE = 64, 1e-5, 1e-3


def layout(neighbours: np.ndarray, distances: np.ndarray, start: np.ndarray, *, epochs: int = 200, seed: int = 0) -> np.ndarray:
    """Return (n, 5) float32 positions in which neighbours lie together.

    Args:
        neighbours: (n, k) integer, the point itself first.
        distances: (n, k) float32, ascending, 0 for the point itself.
        start: (n, 5) float32, the positions to start from, within about ±10.
        epochs: passes of gradient descent.
        seed: of the negative samples.
    """
    graph = fuzzy_graph(neighbours, distances)
    strongest = graph.data.max()
    kept = graph.data >= strongest / epochs  # a weaker edge would never be sampled
    heads = np.repeat(np.arange(graph.shape[0], dtype=np.int32), np.diff(graph.indptr))[kept]
    tails = graph.indices[kept].astype(np.int32)
    period = (strongest / graph.data[kept]).astype(np.float32)
    positions = np.array(start, np.float32, order="C")
    due, due_negative = period.copy(), period / NEGATIVES
    state = np.array([_first_state(seed)], np.uint64)
    log.info("layout: %d points, %d edges, %d epochs", len(positions), len(heads), epochs)
    said = time.monotonic()
    for epoch in range(epochs):
        rate = 1.0 - epoch / epochs
        descend(positions, heads, tails, period, due, due_negative, state, np.float32(epoch), np.float32(rate))
        if time.monotonic() - said > 10:
            said = time.monotonic()
            log.info("layout: epoch %d of %d", epoch + 1, epochs)
    return positions


def fuzzy_graph(neighbours: np.ndarray, distances: np.ndarray) -> csr_matrix:
    """Return the symmetric graph of memberships: p + q - pq of each pair's two directed memberships."""
    from scipy.sparse import csr_matrix

    n, k = neighbours.shape
    weights = memberships(neighbours.astype(np.int64), distances.astype(np.float32))
    rows = np.repeat(np.arange(n), k)
    directed = csr_matrix((weights.ravel(), (rows, neighbours.ravel())), shape=(n, n))
    directed.eliminate_zeros()
    reverse = directed.T.tocsr()
    graph = (directed + reverse - directed.multiply(reverse)).tocsr()
    graph.sort_indices()
    return graph


def start_positions(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Return (n, 5) float32: the first principal components, the widest scaled to ±10, with tiny seeded jitter.

    Signs are fixed (each component's largest loading is positive), so that they don't depend on the LAPACK in use.
    """
    centred = vectors - vectors.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T.astype(np.float64) @ centred)
    axes = axes[:, ::-1][:, :DIMENSIONS]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    found = np.zeros((len(vectors), DIMENSIONS))
    found[:, : axes.shape[1]] = centred @ axes
    found *= 10 / max(np.abs(found).max(), 1e-12)
    return (found + np.random.default_rng(seed).normal(scale=1e-4, size=found.shape)).astype(np.float32)


@njit(cache=True)
def memberships(neighbours, distances):  # type: ignore[no-untyped-def]
    """Return (n, k) float32: exp(-(d - rho) / sigma) with sigma so that a row sums to log2(k); 0 for the point itself.

    rho is the nearest distance above 0. Distances that do not exceed it are memberships of 1.
    """
    n, k = distances.shape
    target = math.log2(k)
    mean_all = distances.mean()
    weights = np.zeros((n, k), np.float32)
    for i in range(n):
        rho = 0.0
        for j in range(k):
            if distances[i, j] > 0:
                rho = distances[i, j]
                break
        low, high, sigma = 0.0, np.inf, 1.0
        for _ in range(_BANDWIDTH_STEPS):
            total = 0.0
            for j in range(1, k):
                gap = distances[i, j] - rho
                total += math.exp(-gap / sigma) if gap > 0 else 1.0
            if abs(total - target) < _BANDWIDTH_TOLERANCE:
                break
            if total > target:
                high = sigma
                sigma = (low + high) / 2
            else:
                low = sigma
                sigma = sigma * 2 if high == np.inf else (low + high) / 2
        scale = distances[i].mean() if rho > 0 else mean_all
        sigma = max(sigma, _MIN_SCALE * scale)
        for j in range(k):
            if neighbours[i, j] == i:
                continue
            gap = distances[i, j] - rho
            weights[i, j] = math.exp(-gap / sigma) if gap > 0 and sigma > 0 else 1.0
    return weights


@njit(cache=True, fastmath=True)
def descend(positions, heads, tails, period, due, due_negative, state, epoch, rate):  # type: ignore[no-untyped-def]
    """Move the positions by one epoch: each edge that is due pulls its ends together and pushes random points away.

    Args:
        positions: (n, 5) float32, changed in place.
        heads: (m,) int32, ascending.
        tails: (m,) int32.
        period: (m,) float32, epochs from one sample of the edge to the next.
        due: (m,) float32, changed in place.
        due_negative: (m,) float32, changed in place.
        state: (1,) uint64 of the random numbers, changed in place.
        epoch: this epoch's number as float32.
        rate: the learning rate as float32.
    """
    a, b = np.float32(A), np.float32(B)
    pull_factor, push_factor = np.float32(-2.0 * A * B), np.float32(2.0 * B)
    one, tiny, limit = np.float32(1.0), np.float32(0.001), np.float32(4.0)
    n = len(positions)
    random = state[0]
    for e in range(len(heads)):
        if due[e] > epoch:
            continue
        j, k = heads[e], tails[e]
        square = np.float32(0.0)
        for c in range(DIMENSIONS):
            gap = positions[j, c] - positions[k, c]
            square += gap * gap
        if square > 0:
            power = math.exp(b * math.log(square))
            pull = pull_factor * power / (square * (a * power + one))
            for c in range(DIMENSIONS):
                step = min(limit, max(-limit, pull * (positions[j, c] - positions[k, c]))) * rate
                positions[j, c] += step
                positions[k, c] -= step
        due[e] += period[e]
        every = period[e] / np.float32(NEGATIVES)
        times = int((epoch - due_negative[e]) / every)
        for _ in range(times):
            random ^= random << np.uint64(13)
            random ^= random >> np.uint64(7)
            random ^= random << np.uint64(17)
            k = np.int64(((random >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32))
            square = np.float32(0.0)
            for c in range(DIMENSIONS):
                gap = positions[j, c] - positions[k, c]
                square += gap * gap
            if square > 0:
                power = math.exp(b * math.log(square))
                push = push_factor / ((tiny + square) * (a * power + one))
                for c in range(DIMENSIONS):
                    step = min(limit, max(-limit, push * (positions[j, c] - positions[k, c]))) * rate
                    positions[j, c] += step
        due_negative[e] += np.float32(times) * every
    state[0] = random


def _first_state(seed: int) -> int:
    """Return a well-mixed, non-zero 64-bit state (one step of splitmix64)."""
    value = (seed + 0x9E3779B97F4A7C15) & (2**64 - 1)
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (value ^ (value >> 31)) or 1
