"""Win rates equal the literal count over prompts and opponents."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.config import ConfigError, parse
from training.evaluators import EvaluationConfig, SampleFigures
from training.evaluators.likelihood_win_rate import LikelihoodWinRateConfig, compare


def figures(values: Any, tokens: Any = None, groups: Any = None, ids: Any = None) -> SampleFigures:
    n = len(values)
    return SampleFigures(
        [f"{i:04d}" for i in range(n)] if ids is None else ids,
        np.arange(n, dtype=np.int32) if groups is None else np.array(groups, np.int32),
        np.full(n, 30, np.int32) if tokens is None else np.array(tokens, np.int32),
        np.array(values, np.float64),
    )


@settings(deadline=None)
@given(st.data())
def test_the_win_rate_is_the_literal_share(data: Any) -> None:
    n = data.draw(st.integers(2, 12))
    nlls = st.lists(st.sampled_from([1.0, 1.5, 2.0, 2.5]), min_size=n, max_size=n)
    mine, others = data.draw(nlls), data.draw(st.lists(nlls, min_size=1, max_size=4))
    score = next(compare("out", figures(mine), [figures(other) for other in others]))
    literal = [np.mean([1.0 if m < o else 0.5 if m == o else 0.0 for m, o in zip(mine, other)]) for other in others]
    assert score.value == pytest.approx(np.mean(literal)) and score.n == n and score.metric == "win_rate" and score.higher_is_better
    assert score.samples is not None and score.samples.values.mean() == pytest.approx(score.value)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_one_wins_the_other_loses(seed: int) -> None:
    random = np.random.default_rng(seed)
    n = 60
    tokens = random.integers(20, 400, n)
    one = figures(random.choice([1.0, 1.5, 2.0], n), tokens, random.integers(0, 20, n))
    two = SampleFigures(one.ids, one.groups, one.tokens, random.choice([1.0, 1.5, 2.0], n))
    for ours, theirs in zip(compare("in", one, [two]), compare("in", two, [one]), strict=True):
        assert ours.value + theirs.value == pytest.approx(1) and ours.se == pytest.approx(theirs.se)
    for score in compare("in", one, [one]):
        assert score.value == 0.5


def test_samples_are_paired_by_their_ids_and_not_by_their_places() -> None:
    mine = figures([1.0, 2.0, 3.0], ids=["a", "b", "c"])
    other = figures([2.5, 1.5, 9.0, 9.0], ids=["c", "a", "x", "y"])
    score = next(compare("out", mine, [other]))
    assert score.n == 2 and score.value == 0.5  # wins on a, loses on c; b, x and y are not common
    assert not list(compare("out", mine, [figures([1.0], ids=["z"])])) and not list(compare("out", mine, []))


def test_prompts_are_not_weighed_by_length() -> None:
    """Its twin that was "length-controlled" moved a planted gain of pure training length from 0.636 to 0.641: it is gone."""
    scores = list(compare("out", figures([1.0, 2.0], [20, 400]), [figures([2.0, 1.0], [20, 400])]))
    assert [score.metric for score in scores] == ["win_rate"] and scores[0].value == 0.5


def test_comparisons_are_configured_but_change_no_run() -> None:
    both = EvaluationConfig()
    assert [one.name for one in both.scoring] == ["nll"] and [one.name for one in both.comparisons] == ["likelihood_win_rate"]
    alone = parse(EvaluationConfig, {"evaluators": ["nll"]})
    assert both.identity() == alone.identity() and alone.comparisons == []
    other = parse(EvaluationConfig, {"evaluators": ["nll", {"name": "likelihood_win_rate", "against": "longest"}]})
    assert other.comparisons[0].parsed() == LikelihoodWinRateConfig(against="longest")
    for evaluators, message in [
        (["likelihood_win_rate", "nll"], "name it after nll"),
        (["likelihood_win_rate"], "name it after nll"),
        (["nll", {"name": "likelihood_win_rate", "agains": "x"}], "did you mean 'against'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            parse(EvaluationConfig, {"evaluators": evaluators})
