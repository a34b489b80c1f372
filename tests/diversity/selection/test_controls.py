"""What controls count in: the densest window of lengths equals a look at every window."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from diversity.selection.controls import densest_window


@given(st.lists(st.integers(0, 60), min_size=1, max_size=80).filter(any))
def test_the_densest_window_is_the_best_of_all(lengths: list[int]) -> None:
    found = densest_window(np.array(lengths))

    def held(first: int) -> int:
        return sum(first <= length <= 2 * first for length in lengths)

    best = max(range(1, max(lengths) + 1), key=lambda first: (held(first), -first))
    assert found == (best, 2 * best)
