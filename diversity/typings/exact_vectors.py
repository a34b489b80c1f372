"""Cosine similarities that are exact integers, so that no choice depends on batch size, threads, block order or device.

A unit vector is scaled by 4,000 and rounded. Every partial sum of a dot product of two such vectors is then a whole number
of at most 2**24 (Cauchy–Schwarz), which float32 holds exactly: fast matrix products give the same bits in any order of
summation, and ties are true ties. The price is a rounding error of a similarity of about 1e-4.
"""

from __future__ import annotations

import numpy as np

SCALE = 4000
ONE = SCALE * SCALE  # the similarity of a vector with itself, up to rounding


def exact_vectors(embeddings: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return whole-numbered vectors `(m, d) float32` of the given rows, in the order given.

    Args:
        embeddings: `(n, d) float32`, unit norm; d at most 30,000.
        rows: `(m,)` row numbers.

    Raises:
        ValueError: a vector is not of unit norm to 1%.
    """
    vectors = np.ascontiguousarray(embeddings[rows], dtype=np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    if len(norms) and not (abs(norms - 1) < 0.01).all():
        bad = int(rows[np.argmax(~(abs(norms - 1) < 0.01))])
        raise ValueError(f"the embedding of row {bad} is not of unit norm")
    return np.rint(vectors * np.float32(SCALE))
