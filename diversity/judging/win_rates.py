"""Win rates of one answerer against a baseline: plain, with strong verdicts counted more often, at equal length and at equal style.

The unit is the prompt group (`diversity/effects/clustered.py`): a prompt's score is the mean over its orders and repeats, and verdicts are
never taken for independent. Resampling verdicts one by one, as Arena-Hard's own script does, gives intervals of half the width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diversity.effects.clustered import Estimate, estimate, logistic_at_zero, mean_and_error, quantile, ratio_and_error

PRIOR = 0.1  # precision of the length coefficient: weak, so that it leaves no bias where there is data
STRONG = 3.0  # how often Arena-Hard counts A>>B
STEPS = 5  # of Newton's method in a resample, from the fit to all: more change nothing to 1e-8
CHUNK = 128


@dataclass(frozen=True)
class PromptScores:
    """What the verdicts on each prompt come to, `(n,)` each.

    Attributes:
        ids: of the prompts.
        groups: numbers of prompt groups.
        values: mean score of the answerer over the prompt's verdicts, in [0, 1].
        strong_values: mean of weight x score over its verdicts, a strong verdict weighing three times.
        strong_weights: mean of the weights: a prompt counts once, however often it was asked.
        longer: characters of the answer less those of the baseline's.
        style: `(n, 3)`, how much more markdown the answer has, as in `style.more_markdown`.
    """

    ids: list[str]
    groups: np.ndarray
    values: np.ndarray
    strong_values: np.ndarray
    strong_weights: np.ndarray
    longer: np.ndarray
    style: np.ndarray

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self.ids)

    def taken(self, places: np.ndarray) -> PromptScores:
        """Return some of the prompts."""
        columns = (self.groups, self.values, self.strong_values, self.strong_weights, self.longer, self.style)
        return PromptScores([self.ids[place] for place in places], *(column[places] for column in columns))


def win_rate(scores: PromptScores) -> Estimate:
    """Return the mean score over prompts; ties count one half."""
    value, se = mean_and_error(scores.values, scores.groups)
    return estimate(value, se, len(scores), len(np.unique(scores.groups)))


def weighted_win_rate(scores: PromptScores) -> Estimate:
    """Return Arena-Hard's rate, in which a strong verdict counts three times: sum(w s) / sum(w), its error linearised by prompt group."""
    value, se = ratio_and_error(scores.strong_values, scores.strong_weights, scores.groups)
    return estimate(value, se, len(scores), len(np.unique(scores.groups)))


def length_controlled_win_rate(scores: PromptScores) -> Estimate:
    """Return the rate at equal length: sigma(theta) of score = sigma(theta + phi x), x = tanh(difference of lengths / its deviation).

    The form is AlpacaEval 2's without its difficulties and its two gamed baselines, which belong to its own prompts, baseline and judge; a
    weak ridge on phi stands in their place, and the error is the sandwich estimate over prompt groups.
    """
    return _controlled(scores, length_term(scores.longer))


def style_controlled_win_rate(scores: PromptScores) -> Estimate:
    """Return the rate at equal length and equal markdown: the fit of `length_controlled_win_rate` with three more terms.

    Arena-Hard controls for the same (length, headers, lists, bold). It centres its terms, so that it tells the rate at the usual difference
    of style, and takes each verdict for independent; here zero is the same style, as zero is the same length, and errors go by group.
    """
    return _controlled(scores, np.column_stack([length_term(scores.longer), scores.style]))


def _controlled(scores: PromptScores, terms: np.ndarray) -> Estimate:
    """Return sigma(theta) of score = sigma(theta + phi terms), its interval symmetric in log-odds."""
    fit = logistic_at_zero(terms, scores.values, scores.groups, PRIOR)
    wide = quantile(fit.groups) * fit.theta_se
    if not np.isfinite(fit.theta) or not np.isfinite(wide):
        return estimate(fit.rate, fit.se, len(scores), fit.groups)
    low, high = (float(1 / (1 + np.exp(-(fit.theta + side * wide)))) for side in (-1, 1))
    return Estimate(fit.rate, fit.se, low, high, len(scores), fit.groups)


def length_term(longer: np.ndarray) -> np.ndarray:
    """Return `(n,)`: tanh of the difference of lengths over its standard deviation, not centred: 0 is equal length."""
    spread = longer.std(ddof=1) if len(longer) > 1 else 0.0
    return np.tanh(longer / spread) if spread > 0 else np.zeros(len(longer))


def bootstrap(scores: PromptScores, rounds: int, seed: int = 0) -> np.ndarray:
    """Return `(rounds, 2)`: win rate and length-controlled win rate of prompt groups drawn anew.

    All resamples of a chunk are fitted at once, by Newton's method from the fit to all prompts.

    Args:
        scores: of the prompts.
        rounds: resamples.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    names, numbers = np.unique(scores.groups, return_inverse=True)
    x, y = length_term(scores.longer), scores.values
    fit = logistic_at_zero(x, y, scores.groups, PRIOR)
    found = np.empty((rounds, 2))
    for start in range(0, rounds, CHUNK):
        draws = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=min(CHUNK, rounds - start))
        counts = draws[:, numbers].astype(np.float64)
        total, wins = counts.sum(axis=1), counts @ y
        found[start : start + len(draws), 0] = wins / total
        found[start : start + len(draws), 1] = _refitted(x, counts, wins, counts @ (x * y), fit.theta, float(fit.phi[0]))
    return found


def _refitted(x: np.ndarray, counts: np.ndarray, wins: np.ndarray, slopes: np.ndarray, theta: float, phi: float) -> np.ndarray:
    """Return `(b,)` rates at x = 0 of the fits with `counts` (b, n) as weights; wins and slopes are the sums of w y and w x y."""
    if not np.isfinite(theta) or not x.any():
        return wins / counts.sum(axis=1)
    weights = np.tile([theta, phi], (len(counts), 1))
    square = x * x
    chance, part = np.empty_like(counts), np.empty_like(counts)
    for _ in range(STEPS):
        np.multiply(weights[:, 1:], x, out=chance)
        chance += weights[:, :1]
        np.negative(chance, out=chance)
        np.exp(chance, out=chance)
        chance += 1
        np.reciprocal(chance, out=chance)
        np.multiply(counts, chance, out=part)
        pull = np.stack([wins - part.sum(axis=1), slopes - part @ x - PRIOR * weights[:, 1]], axis=1)
        np.subtract(1, chance, out=chance)
        part *= chance
        a, b, d = part.sum(axis=1), part @ x, part @ square + PRIOR
        determinant = a * d - b * b
        step = np.stack([d * pull[:, 0] - b * pull[:, 1], a * pull[:, 1] - b * pull[:, 0]], axis=1) / determinant[:, None]
        weights += np.clip(step, -4, 4)
        if np.abs(step).max() < 1e-9:
            break
    return 1 / (1 + np.exp(-weights[:, 0]))


def smallest_effect(se: float, power: float = 0.8) -> float:
    """Return the smallest true difference that a two-sided test at 5% finds with this power, for a standard error."""
    from scipy.stats import norm

    return float((norm.ppf(0.975) + norm.ppf(power)) * se)


def planned_effect(prompts: int, deviation: float = 0.55, power: float = 0.8) -> float:
    """Return the smallest difference between two answerers that so many prompts show.

    Args:
        prompts: judged for both against one baseline.
        deviation: of the difference of two answerers' scores on one prompt; 0.55 is what hard verdicts of strong models have.
        power: of the test.
    """
    return smallest_effect(deviation / np.sqrt(prompts), power) if prompts else float("inf")


def paired_difference(first: PromptScores, second: PromptScores) -> Estimate:
    """Return the win rate of the first less that of the second on the prompts that both have, its error paired by prompt."""
    places = {prompt: place for place, prompt in enumerate(second.ids)}
    common = [(place, places[prompt]) for place, prompt in enumerate(first.ids) if prompt in places]
    mine, theirs = (np.array(side, np.int64) for side in zip(*common, strict=True))
    value, se = mean_and_error(first.values[mine] - second.values[theirs], first.groups[mine])
    return estimate(value, se, len(mine), len(np.unique(first.groups[mine])))
