"""What controls count in: the densest window of lengths equals a look at every window."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diversity.config import ConfigError
from diversity.selection.controls import OCTILES, densest_window, length_bins, make_control


@given(st.lists(st.integers(0, 60), min_size=1, max_size=80).filter(any))
def test_the_densest_window_is_the_best_of_all(lengths: list[int]) -> None:
    found = densest_window(np.array(lengths))

    def held(first: int) -> int:
        return sum(first <= length <= 2 * first for length in lengths)

    best = max(range(1, max(lengths) + 1), key=lambda first: (held(first), -first))
    assert found == (best, 2 * best)


@given(st.lists(st.none() | st.floats(-5, 5), min_size=1, max_size=40))
def test_score_bins_are_octiles_of_those_that_have_one_and_a_bin_of_the_others(scores: list[float | None]) -> None:
    given_scores = np.array([np.nan if score is None else score for score in scores])
    control = make_control("score-quota", {}, np.zeros(len(scores), np.int32), 1, given_scores)
    has = ~np.isnan(given_scores)
    assert (control.bins[~has] == OCTILES).all() and control.by_bin
    assert control.bins[has].tolist() == length_bins(given_scores[has]).tolist()
    quota = control.quota(len(scores) // 2, np.arange(len(scores)))
    assert quota.sum() == len(scores) // 2 and (quota <= np.bincount(control.bins, minlength=control.n_bins)).all()
    with pytest.raises(ConfigError, match="no sample has a score"):
        make_control("score-quota", {}, np.zeros(1, np.int32), 1)
