"""Win rates equal the literal count over prompts and opponents, and the length control is a maximum-likelihood fit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.config import ConfigError, parse
from training.evaluators import EvaluationConfig, SampleFigures
from training.evaluators.likelihood_win_rate import PRIOR, LikelihoodWinRateConfig, compare, length_controlled


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
def test_what_one_wins_the_other_loses_with_and_without_control(seed: int) -> None:
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


def test_the_control_is_the_maximum_of_its_likelihood() -> None:
    from scipy.optimize import minimize

    random = np.random.default_rng(3)
    tokens = random.integers(20, 500, 300)
    z = np.tanh((np.log(tokens) - np.log(tokens).mean()) / np.log(tokens).std())
    wins = (random.random(300) < 1 / (1 + np.exp(-(0.4 + 1.1 * z)))).astype(float)

    def loss(weights: Any) -> float:
        logits = weights[0] + weights[1] * z
        return float(np.sum(np.logaddexp(0, logits) - wins * logits) + 0.5 * PRIOR * weights[1] ** 2)

    best = minimize(loss, [0.0, 0.0], tol=1e-12).x
    found = length_controlled(wins, tokens, np.arange(300))
    assert found.rate == pytest.approx(1 / (1 + math.exp(-best[0])), abs=1e-6) and found.phi == pytest.approx(best[1], abs=1e-5)


def test_the_control_takes_out_what_length_alone_gives() -> None:
    """A run that wins on long references only, where most references are long: 80% plain, about half on one of usual length."""
    random = np.random.default_rng(0)
    tokens = np.where(np.arange(2000) < 1600, 300, 30) * random.uniform(0.9, 1.1, 2000)
    z = np.tanh((np.log(tokens) - np.log(tokens).mean()) / np.log(tokens).std())
    chance = 1 / (1 + np.exp(-3 * z))
    wins = (random.random(2000) < chance).astype(float)
    found = length_controlled(wins, tokens, np.arange(2000))
    assert wins.mean() > 0.6 and abs(found.rate - 0.5) < 3 * found.se and found.phi > 2
    assert 0.005 < found.se < 0.05


def test_the_error_of_the_control_is_how_it_scatters() -> None:
    """Over 300 redrawn sets of prompts, the rate's spread is the standard error that one set gives, within a fifth."""
    random = np.random.default_rng(1)
    rates, errors = [], []
    for _ in range(300):
        tokens = random.integers(20, 500, 200)
        z = (np.log(tokens) - 5) / 0.8
        wins = (random.random(200) < 1 / (1 + np.exp(-(0.3 + 0.5 * z)))).astype(float)
        found = length_controlled(wins, tokens, np.arange(200))
        rates.append(found.rate)
        errors.append(found.se)
    assert np.std(rates) == pytest.approx(np.mean(errors), rel=0.2)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_run_that_wins_all_or_nothing_has_that_rate(share: float) -> None:
    tokens = np.arange(20, 40)
    assert length_controlled(np.full(20, share), tokens, np.arange(20)).rate == share
    same = length_controlled(np.array([1.0, 0.0, 1.0, 1.0]), np.full(4, 30), np.arange(4))
    assert same.rate == 0.75 and same.phi == 0


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
