"""Likelihood win rate: on which share of prompts a run finds the reference likelier than runs of random datasets do.

Other evaluators score one model. This one compares scores that are sealed: a run's scores may not depend on which other runs an
experiment has, so it is computed where all of them are gathered, by `ray_jobs.analyze`, from the NLL of single samples.

**Win rate.** w_i is the mean over the random runs j of the run's size and control of 1 where its NLL on prompt i is below that of j,
0.5 where they are equal, 0 else. A random run is not compared with itself. The win rate is the mean of w_i over prompts; its standard
error is over prompt groups (how much random runs differ shows in their own win rates).

**Length-controlled win rate**, after the logistic form of AlpacaEval 2: w_i is fitted by q_i = sigma(theta + phi tanh(z_i)), and the rate
is sigma(theta), the prediction where the length term is 0. There z is the difference of two answers' lengths. Here both runs are scored on
one reference, so z_i = (log n_i - mean) / sd of the reference's n_i response tokens: it is the win rate on a reference of usual length.
What a run owes to the length of what it was trained on shows as phi, and is taken out. A standard normal prior on phi keeps it finite.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from diversity.config import Config
from diversity.effects.clustered import logistic_at_zero
from training.evaluators import SampleFigures, Score, mean_and_error

PRIOR = 1.0  # precision of phi


class LikelihoodWinRateConfig(Config):
    """With whose runs others are compared.

    Attributes:
        against: a strategy of the grid; each run is compared with all its runs of the same size and control.
    """

    against: str = "random"


def compare(split: str, mine: SampleFigures, others: list[SampleFigures]) -> Iterator[Score]:
    """Yield the win rate of one run over others on a split, plain and length-controlled; nothing where they share no prompt.

    Args:
        split: which samples these are.
        mine: the run's NLL by sample.
        others: those of the runs that it is compared with.
    """
    common = sorted(set(mine.ids).intersection(*(other.ids for other in others))) if others else []
    if not common:
        return
    places = _places(mine, common)
    values = mine.values[places]
    wins = np.zeros(len(common))
    for other in others:
        theirs = other.values[_places(other, common)]
        wins += np.where(values < theirs, 1.0, np.where(values == theirs, 0.5, 0.0))
    wins /= len(others)
    groups, tokens = mine.groups[places], mine.tokens[places]
    mean, se = mean_and_error(wins, groups)
    single = SampleFigures(common, groups, tokens, wins)
    yield Score(split, "win_rate", mean, se, len(common), higher_is_better=True, samples=single)
    fitted = length_controlled(wins, tokens, groups)
    yield Score(split, "win_rate_length_controlled", fitted.rate, fitted.se, len(common), higher_is_better=True)


@dataclass(frozen=True)
class LengthControlled:
    """The win rate on a reference of usual length, its standard error, and phi: above 0 where the run wins on long references."""

    rate: float
    se: float
    phi: float


def length_controlled(wins: np.ndarray, tokens: np.ndarray, groups: np.ndarray) -> LengthControlled:
    """Return the logistic fit of soft wins on the reference's length.

    The standard error is the sandwich estimate over prompt groups, carried from theta to sigma(theta).

    Args:
        wins: `(n,)` in [0, 1].
        tokens: `(n,)` response tokens, at least 1.
        groups: `(n,)` numbers of prompt groups.
    """
    lengths = np.log(tokens)
    spread = lengths.std()
    x = np.tanh((lengths - lengths.mean()) / spread) if spread else np.zeros(len(wins))
    fitted = logistic_at_zero(x, wins, groups, PRIOR)
    return LengthControlled(fitted.rate, fitted.se, fitted.phi)


def _places(figures: SampleFigures, ids: list[str]) -> np.ndarray:
    at = {sample_id: place for place, sample_id in enumerate(figures.ids)}
    return np.array([at[sample_id] for sample_id in ids], np.int64)
