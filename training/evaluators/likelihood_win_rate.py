"""Likelihood win rate: on which share of prompts a run finds the reference likelier than runs of random datasets do.

Other evaluators score one model. This one compares scores that are sealed: a run's scores may not depend on which other runs an
experiment has, so it is computed where all of them are gathered, by `ray_jobs.analyze`, from the NLL of single samples.

**Win rate.** w_i is the mean over the random runs j of the run's size and control of 1 where its NLL on prompt i is below that of j,
0.5 where they are equal, 0 else. A random run is not compared with itself. The win rate is the mean of w_i over prompts; its standard
error is over prompt groups (how much random runs differ shows in their own win rates).

It has no length-controlled twin. Both runs are scored on one reference, so there is no difference of two answers' lengths to take out, and
to weigh prompts by the length of their reference removes nothing of what a run owes to the length of its training responses. That is held
fixed between runs, by the controls `length-quota` and `length-window`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from diversity.config import Config
from training.evaluators import SampleFigures, Score, mean_and_error


class LikelihoodWinRateConfig(Config):
    """With whose runs others are compared.

    Attributes:
        against: a strategy of the grid; each run is compared with all its runs of the same size and control.
    """

    against: str = "random"


def compare(split: str, mine: SampleFigures, others: list[SampleFigures]) -> Iterator[Score]:
    """Yield the win rate of one run over others on a split; nothing where they share no prompt.

    Args:
        split: which samples these are.
        mine: the run's NLL by sample.
        others: those of the runs that it is compared with.
    """
    common = sorted(set(mine.ids).intersection(*(other.ids for other in others))) if others else []
    if not common:
        return
    places = places_of(mine, common)
    values = mine.values[places]
    wins = np.zeros(len(common))
    for other in others:
        theirs = other.values[places_of(other, common)]
        wins += np.where(values < theirs, 1.0, np.where(values == theirs, 0.5, 0.0))
    wins /= len(others)
    mean, se = mean_and_error(wins, mine.groups[places])
    single = SampleFigures(common, mine.groups[places], mine.tokens[places], wins)
    yield Score(split, "win_rate", mean, se, len(common), higher_is_better=True, samples=single)


def places_of(figures: SampleFigures, ids: list[str]) -> np.ndarray:
    """Return where each of some sample ids stands in the figures, int64."""
    at = {sample_id: place for place, sample_id in enumerate(figures.ids)}
    return np.array([at[sample_id] for sample_id in ids], np.int64)
