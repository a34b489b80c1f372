"""The incidence, samples × types in compressed sparse rows: the one thing that the selection algorithms see of a typing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numba import njit


@dataclass(frozen=True)
class Incidence:
    """Which types each sample has; row i holds `indices[indptr[i]:indptr[i+1]]`, ascending and without repeats.

    Attributes:
        indptr: `(n+1,) int64`.
        indices: `(nnz,) int32` type numbers.
        n_types: M; a type may occur in no sample (see `used`).
    """

    indptr: np.ndarray
    indices: np.ndarray
    n_types: int

    @classmethod
    def from_lists(cls, lists: pa.Array | pa.ChunkedArray | Sequence[Sequence[int]], n_types: int) -> Incidence:
        """Return the incidence of an Arrow list column (no copy where it is int32) or of Python lists.

        Raises:
            ValueError: a type outside 0..n_types-1, or types of a row that are not ascending without repeats.
        """
        if isinstance(lists, pa.ChunkedArray):
            lists = lists.combine_chunks()
        array = lists if isinstance(lists, pa.Array) else pa.array([list(row) for row in lists], pa.list_(pa.int32()))
        if array.null_count:
            raise ValueError("a row of the incidence is null: a sample without types has an empty list")
        offsets = array.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
        values = array.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]]
        incidence = cls(offsets - offsets[0], values.astype(np.int32, copy=False), n_types)
        incidence.validate()
        return incidence

    def validate(self) -> None:
        """Check the two promises of the class.

        Raises:
            ValueError: a type outside 0..n_types-1, or types of a row that are not ascending without repeats.
        """
        if self.nnz == 0:
            return
        low, high = int(self.indices.min()), int(self.indices.max())
        if low < 0 or high >= self.n_types:
            raise ValueError(f"type numbers run from {low} to {high}, outside 0..{self.n_types - 1}")
        bad = _first_unsorted(self.indptr, self.indices)
        if bad >= 0:
            raise ValueError(f"row {bad}: types are not ascending without repeats: {self.row(bad).tolist()}")

    @property
    def n_samples(self) -> int:
        """Return the number of rows."""
        return len(self.indptr) - 1

    @property
    def nnz(self) -> int:
        """Return the number of (sample, type) pairs."""
        return len(self.indices)

    def row(self, i: int) -> np.ndarray:
        """Return the types of one sample."""
        return self.indices[self.indptr[i] : self.indptr[i + 1]]

    def lengths(self) -> np.ndarray:
        """Return the number of types of every sample as `(n,) int64`."""
        return np.diff(self.indptr)

    def df(self) -> np.ndarray:
        """Return the number of samples that have each type as `(M,) int64`; np.bincount would first copy the indices to int64."""
        return _count(self.indices, self.n_types)

    def transpose(self) -> Incidence:
        """Return types × samples: row t holds the samples that have t, ascending. A counting sort, O(nnz)."""
        starts = np.zeros(self.n_types + 1, dtype=np.int64)
        np.cumsum(self.df(), out=starts[1:])
        return Incidence(starts, _scatter(self.indptr, self.indices, starts), self.n_samples)

    def take(self, rows: np.ndarray) -> Incidence:
        """Return the incidence of the given rows, in the order given; type numbers stay."""
        rows = np.asarray(rows, dtype=np.int64)
        indptr = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(self.indptr[rows + 1] - self.indptr[rows], out=indptr[1:])
        return Incidence(indptr, _gather(self.indptr, self.indices, rows, indptr), self.n_types)

    def covered(self, rows: np.ndarray) -> np.ndarray:
        """Return which types occur in at least one of the rows, as a mask `(M,) bool`; its mean is the coverage."""
        mask = np.zeros(self.n_types, dtype=bool)
        mask[self.take(rows).indices] = True
        return mask

    def used(self) -> tuple[Incidence, np.ndarray]:
        """Return the incidence without the types of no sample, and the old numbers `(M',) int32` of the types that stay."""
        kept = np.flatnonzero(self.df()).astype(np.int32)
        renumber = np.zeros(self.n_types, dtype=np.int32)
        renumber[kept] = np.arange(len(kept), dtype=np.int32)
        return Incidence(self.indptr, renumber[self.indices], len(kept)), kept


@dataclass(frozen=True)
class Typing:
    """A typing of a corpus: its name, incidence, and for every type its content (bytes) and a label for people."""

    name: str
    incidence: Incidence
    content: list[bytes]
    label: list[str]


def assign_nearest(incidence: Incidence, embeddings: np.ndarray, block: int = 4096) -> Incidence:
    """Return a disjoint incidence in which each sample without a type joins the topic whose centroid is nearest by cosine.

    Ours, for `outliers: nearest`: noise is 35% of a corpus, and excluding it halves what large sizes may choose from. A sample's neighbour
    depends on its own vector and the centroids alone; of equally near topics the smaller number wins.

    Args:
        incidence: at most one type for each sample.
        embeddings: `(n, d) float32`, unit norm, in the same order.
        block: rows of one matrix product.

    Raises:
        ValueError: a sample has several types, or no sample has one.
    """
    lengths = incidence.lengths()
    if lengths.max(initial=0) > 1 or incidence.nnz == 0:
        raise ValueError("outliers: nearest needs a typing with at most one type for each sample, and at least one typed sample")
    topic = np.full(incidence.n_samples, -1, dtype=np.int32)
    topic[lengths == 1] = incidence.indices
    sums = np.zeros((incidence.n_types, embeddings.shape[1]), dtype=np.float64)
    np.add.at(sums, incidence.indices, embeddings[lengths == 1].astype(np.float64))
    centroids = (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    outliers = np.flatnonzero(lengths == 0)
    for start in range(0, len(outliers), block):
        rows = outliers[start : start + block]
        topic[rows] = np.argmax(embeddings[rows] @ centroids.T, axis=1)
    return Incidence(np.arange(incidence.n_samples + 1, dtype=np.int64), topic, incidence.n_types)


@njit(cache=True)
def _count(indices: np.ndarray, n_types: int) -> np.ndarray:
    counts = np.zeros(n_types, dtype=np.int64)
    for t in indices:
        counts[t] += 1
    return counts


@njit(cache=True)
def _scatter(indptr: np.ndarray, indices: np.ndarray, starts: np.ndarray) -> np.ndarray:
    cursor = starts[:-1].copy()
    rows = np.empty(len(indices), dtype=np.int32)
    for i in range(len(indptr) - 1):
        for p in range(indptr[i], indptr[i + 1]):
            t = indices[p]
            rows[cursor[t]] = i
            cursor[t] += 1
    return rows


@njit(cache=True)
def _gather(indptr: np.ndarray, indices: np.ndarray, rows: np.ndarray, out_indptr: np.ndarray) -> np.ndarray:
    out = np.empty(out_indptr[-1], dtype=indices.dtype)
    for i in range(len(rows)):
        start = indptr[rows[i]]
        for p in range(out_indptr[i + 1] - out_indptr[i]):
            out[out_indptr[i] + p] = indices[start + p]
    return out


@njit(cache=True)
def _first_unsorted(indptr: np.ndarray, indices: np.ndarray) -> int:
    for i in range(len(indptr) - 1):
        for p in range(indptr[i] + 1, indptr[i + 1]):
            if indices[p] <= indices[p - 1]:
                return i
    return -1
