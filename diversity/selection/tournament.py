"""A tournament tree of integers: the leftmost smallest leaf in O(log n), and a change costs only the levels it changes.

Leaves are laid out in the order of the tie rule, so "leftmost" settles ties exactly and values stay plain counts. Sixteen
children to a node keep a tree of 60,000 leaves four levels deep, and a lowered leaf usually stops at its first parent. Numba
functions over one flat array: level 0 (the leaves, padded with `GONE`) first, the root last; `offsets[l]` is where level l
starts.
"""

from __future__ import annotations

import numpy as np
from numba import njit

FAN_BITS = 4
FAN = 1 << FAN_BITS
GONE = (1 << 31) - 1  # a leaf with this value is out; every value in use is smaller (gains are stored negated)


@njit(cache=True)
def build(leaves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (tree, offsets) over `(n,)` leaves of int32 or int64; the tree has their dtype."""
    sizes = [max(FAN, (len(leaves) + FAN - 1) // FAN * FAN)]
    while sizes[-1] > FAN:
        sizes.append((sizes[-1] // FAN + FAN - 1) // FAN * FAN)
    offsets = np.zeros(len(sizes) + 1, dtype=np.int64)
    for level in range(len(sizes)):
        offsets[level + 1] = offsets[level] + sizes[level]
    tree = np.full(offsets[-1] + 1, GONE, dtype=leaves.dtype)
    tree[: len(leaves)] = leaves
    for level in range(len(sizes)):
        for node in range(sizes[level] // FAN):
            start = offsets[level] + node * FAN
            tree[offsets[level + 1] + node] = tree[start : start + FAN].min()
    return tree, offsets


@njit(cache=True)
def leftmost(tree: np.ndarray, offsets: np.ndarray) -> int:
    """Return the first leaf that holds the smallest value; meaningless where all leaves are `GONE`."""
    smallest = tree[-1]
    node = 0
    for level in range(len(offsets) - 2, -1, -1):
        node *= FAN
        while tree[offsets[level] + node] != smallest:
            node += 1
    return node


@njit(cache=True)
def lower(tree: np.ndarray, offsets: np.ndarray, leaf: int, value: int) -> None:
    """Set a leaf to a value that is not larger than it was."""
    tree[leaf] = value
    node = leaf
    for level in range(1, len(offsets)):
        node >>= FAN_BITS
        if tree[offsets[level] + node] <= value:
            return
        tree[offsets[level] + node] = value


@njit(cache=True)
def lift(tree: np.ndarray, offsets: np.ndarray, leaf: int, value: int) -> None:
    """Set a leaf to a value that is not smaller than it was."""
    tree[leaf] = value
    node = leaf
    for level in range(1, len(offsets)):
        start = offsets[level - 1] + (node & ~(FAN - 1))
        smallest = tree[start]
        for child in range(start + 1, start + FAN):
            smallest = min(smallest, tree[child])
        node >>= FAN_BITS
        if tree[offsets[level] + node] == smallest:
            return
        tree[offsets[level] + node] = smallest
