"""`deita`: best score first, unless something chosen is too similar.

Liu et al. 2023, "What Makes Good Data for Alignment?" (arXiv 2312.15685). DEITA scores a sample by complexity x quality,
both judged by models. Where `Inputs.scores` has such scores they are used; else the score is the number of response tokens,
a stand-in that needs no model. The dial is the largest cosine allowed between chosen responses: 1 - level/2. Level 0 keeps
all, 1/5 is DEITA's 0.9, level 1 is 0.5. Where too few pass, the gap to a cosine
of 1 is halved and the rejected ones are gone through again, until the exact size is reached.
"""

from __future__ import annotations

import numpy as np

from diversity.cell import Cell
from diversity.config import ConfigError
from diversity.selection.strategies import Inputs, Picks, SelectionConfig, untyped
from diversity.typings.exact_vectors import ONE, exact_vectors

_SMALLEST_GAP = 1e-3  # below it only near-copies are left, and the best-scored of them come first


def select(inputs: Inputs, cell: Cell, config: SelectionConfig) -> Picks:
    """Return the filtered best; equal scores in the seeded order."""
    assert inputs.embeddings is not None
    if cell.level is None:
        raise ConfigError("strategy deita needs a level from 0 to 1")
    known = inputs.filled_scores()
    scores = inputs.tokens["response"] if known is None else known
    rows = np.lexsort((inputs.order(cell), -np.asarray(scores, dtype=np.float64)))
    if cell.level == 0:
        return untyped(rows[: cell.size], inputs.n)
    vectors = exact_vectors(inputs.embeddings("response"), rows)
    accepted = np.zeros(0, dtype=np.int64)
    gap = cell.level / 2
    while len(accepted) < cell.size and gap > _SMALLEST_GAP:
        accepted = accept(vectors, cell.size, int((1 - gap) * ONE), accepted)
        gap /= 2
    rejected = np.setdiff1d(np.arange(len(rows)), accepted)
    return untyped(rows[np.append(accepted, rejected[: cell.size - len(accepted)])], inputs.n)


def accept(vectors: np.ndarray, size: int, threshold: int, accepted: np.ndarray, block: int = 512) -> np.ndarray:
    """Return the accepted places and after them others, `size` in all at most, each as similar to those before it as the threshold or less.

    Products are taken block against accepted, then the few that passed against one another in order: the same as one by one.

    Args:
        vectors: `(n, d) float32` from `exact_vectors`, best first.
        size: at most n.
        threshold: similarity in units of 1/ONE.
        accepted: `(a,) int64` places that are accepted already.
        block: candidates looked at together.
    """
    kept = np.empty((size, vectors.shape[1]), dtype=np.float32)
    kept[: len(accepted)] = vectors[accepted]
    chosen = accepted.tolist()
    places = np.setdiff1d(np.arange(len(vectors)), accepted)
    for start in range(0, len(places), block):
        candidates = vectors[places[start : start + block]]
        known = len(chosen)
        passed = np.ones(len(candidates), dtype=bool)
        for first in range(0, known, 8192):
            passed &= (kept[first : min(first + 8192, known)] @ candidates.T).max(axis=0) <= threshold
        within = candidates @ candidates.T > threshold
        for place in np.flatnonzero(passed):
            if passed[place] and len(chosen) < size:
                kept[len(chosen)] = candidates[place]
                chosen.append(int(places[start + place]))
                passed &= ~within[place]
        if len(chosen) == size:
            break
    return np.array(chosen, dtype=np.int64)
