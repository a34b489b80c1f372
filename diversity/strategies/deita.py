"""`deita`: best score first, unless something chosen is too similar.

Liu et al. 2023, "What Makes Good Data for Alignment?" (arXiv 2312.15685). DEITA scores a sample by complexity x quality,
both judged by models. Where `Inputs.scores` has such scores they are used; else the score is the number of response tokens,
a stand-in that needs no model. The dial is the largest cosine allowed between chosen responses: 1 - level/2. Level 0 keeps
all, 1/5 is DEITA's 0.9, level 1 is 0.5. Where too few pass, the best-scored rejected ones make up the exact size.
"""

from __future__ import annotations

import numpy as np

from diversity.cell import Cell
from diversity.config import ConfigError
from diversity.exact_vectors import ONE, exact_vectors
from diversity.strategies import Inputs, Picks, SelectionConfig, untyped


def select(inputs: Inputs, cell: Cell, config: SelectionConfig) -> Picks:
    """Return the filtered best; equal scores in the seeded order."""
    assert inputs.embeddings is not None
    if cell.level is None:
        raise ConfigError("strategy deita needs a level from 0 to 1")
    scores = inputs.scores() if inputs.scores else inputs.tokens["response"]
    rows = np.lexsort((inputs.order(cell), -np.asarray(scores, dtype=np.float64)))
    if cell.level == 0:
        return untyped(rows[: cell.size], inputs.n)
    threshold = int((1 - cell.level / 2) * ONE)
    accepted = accept(exact_vectors(inputs.embeddings("response"), rows), cell.size, threshold)
    rejected = np.setdiff1d(np.arange(len(rows)), accepted, assume_unique=True)
    return untyped(rows[np.append(accepted, rejected[: cell.size - len(accepted)])], inputs.n)


def accept(vectors: np.ndarray, size: int, threshold: int, block: int = 512) -> np.ndarray:
    """Return at most `size` places `int64`: each whose similarity to every accepted one before it is at most the threshold.

    Products are taken block against accepted, then the few that passed against one another in order: the same as one by one.

    Args:
        vectors: `(n, d) float32` from `exact_vectors`, best first.
        size: at most n.
        threshold: similarity in units of 1/ONE.
        block: candidates looked at together.
    """
    kept = np.empty((size, vectors.shape[1]), dtype=np.float32)
    accepted: list[int] = []
    for start in range(0, len(vectors), block):
        candidates = vectors[start : start + block]
        known = len(accepted)
        passed = np.ones(len(candidates), dtype=bool)
        for first in range(0, known, 8192):
            passed &= (kept[first : min(first + 8192, known)] @ candidates.T).max(axis=0) <= threshold
        within = candidates @ candidates.T > threshold
        for place in np.flatnonzero(passed):
            if not within[place, np.array(accepted[known:], dtype=np.int64) - start].any():
                kept[len(accepted)] = candidates[place]
                accepted.append(start + int(place))
                if len(accepted) == size:
                    return np.array(accepted, dtype=np.int64)
    return np.array(accepted, dtype=np.int64)
