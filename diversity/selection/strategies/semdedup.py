"""`semdedup`: near-copies go, the rest is drawn at random (Abbas et al. 2023, "SemDeDup", arXiv 2303.09540).

The embeddings of the responses are clustered. Within a cluster samples stand from the least to the most typical (cosine to the
centroid, smallest first), and one is a duplicate if it is more similar than a threshold to any that stands before it, as in
the paper's code. The dial is that threshold, as for `deita`: 1 - level/2. Level 0 drops nothing, a random draw; 1/5 drops
above 0.9; level 1 above 0.5. The exact size is ours: survivors in the seeded order, and where they are too few, the least
similar duplicates first. Also ours: clusters of about 1,000 samples, which bounds the work at n x 1,000 similarities.
"""

from __future__ import annotations

import numpy as np

from diversity.cell import Cell
from diversity.config import ConfigError
from diversity.selection.strategies import Inputs, Picks, SelectionConfig, untyped
from diversity.selection.strategies.k_means import spherical_k_means
from diversity.typings.exact_vectors import ONE, SCALE, exact_vectors

SAMPLES_A_CLUSTER = 1000
NOTHING_BEFORE = -2 * ONE  # below every similarity


def select(inputs: Inputs, cell: Cell, config: SelectionConfig) -> Picks:
    """Return the first survivors of the seeded order, and duplicates only where there are not enough."""
    assert inputs.embeddings is not None
    if cell.level is None:
        raise ConfigError("strategy semdedup needs a level from 0 to 1")
    rows = np.argsort(inputs.order(cell), kind="stable")
    if cell.level == 0:
        return untyped(rows[: cell.size], inputs.n)
    vectors = exact_vectors(inputs.embeddings("response"), rows)
    label = spherical_k_means(vectors, max(1, inputs.n // SAMPLES_A_CLUSTER))
    threshold = int((1 - cell.level / 2) * ONE)
    closest = np.maximum(most_similar_before(vectors, label), threshold)
    return untyped(rows[np.argsort(closest, kind="stable")[: cell.size]], inputs.n)


def most_similar_before(vectors: np.ndarray, label: np.ndarray, block: int = 1024) -> np.ndarray:
    """Return `(n,) int64`: the largest similarity of each vector to one that stands before it in its cluster, in units of 1/ONE.

    One number a sample serves every threshold: the duplicates at t are those above t.

    Args:
        vectors: `(n, d) float32` from `exact_vectors`.
        label: `(n,)` clusters.
        block: vectors compared at once; memory is block x the largest cluster.
    """
    found = np.full(len(vectors), NOTHING_BEFORE, dtype=np.int64)
    by_label = np.argsort(label, kind="stable")
    ends = np.flatnonzero(np.diff(label[by_label], append=-1)) + 1
    for start, stop in zip(np.append(0, ends[:-1]), ends, strict=True):
        members = by_label[start:stop]
        members = members[np.argsort(_typicality(vectors[members]), kind="stable")]
        cluster = vectors[members]
        for first in range(0, len(members), block):
            similar = cluster[first : first + block] @ cluster[: first + block].T
            later = np.arange(similar.shape[1]) >= first + np.arange(len(similar))[:, None]
            similar[later] = NOTHING_BEFORE
            found[members[first : first + block]] = similar.max(axis=1)
    return found


def _typicality(cluster: np.ndarray) -> np.ndarray:
    """Return the similarity of each vector to the rounded centroid: exact, so that ties are true ties."""
    total = cluster.sum(axis=0, dtype=np.float64)  # of whole numbers, so exact
    centroid = np.rint(total / max(1.0, float(np.sqrt(total @ total))) * SCALE)
    return cluster @ centroid.astype(np.float32)
