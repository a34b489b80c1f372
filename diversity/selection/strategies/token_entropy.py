"""`token_entropy`: the samples whose own responses are least repetitive: largest Shannon entropy of the tokens of one sample.

The per-sample counterpart of a dataset's entropy: it looks at each sample alone, so that it may choose the same thing many
times. Entropy is at most log2(tokens), so that it favours long responses. No dial.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from diversity.cell import Cell
from diversity.selection.strategies import Inputs, Picks, SelectionConfig, untyped


def select(inputs: Inputs, cell: Cell, config: SelectionConfig) -> Picks:
    """Return the samples of largest entropy; equal ones (to 1e-9 bits) in the seeded order."""
    assert inputs.token_ids is not None
    ids, offsets = inputs.token_ids("response")
    bits = np.rint(entropies(ids, offsets) * 1e9).astype(np.int64)
    return untyped(np.lexsort((inputs.order(cell), -bits))[: cell.size], inputs.n)


@njit(cache=True)
def entropies(ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return -sum_v p_v log2 p_v in bits, `(n,) float64`, of the tokens `ids[offsets[i]:offsets[i+1]]` of each sample; 0 for none."""
    result = np.zeros(len(offsets) - 1)
    for i in range(len(result)):
        tokens = np.sort(ids[offsets[i] : offsets[i + 1]])
        run = 0
        for p in range(len(tokens)):
            run += 1
            if p + 1 == len(tokens) or tokens[p + 1] != tokens[p]:
                result[i] -= run / len(tokens) * np.log2(run / len(tokens))
                run = 0
    return result
