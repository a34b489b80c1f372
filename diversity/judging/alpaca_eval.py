"""AlpacaEval 2's own figures, in its exact form, for comparison with what is published: `length_controlled_win_rate` is ours.

Their length control is a logistic model of the preference on tanh(l / sd(l)), with l the difference of characters, on the difficulty of the
instruction and on a constant. It is fitted with an L1 penalty chosen by five folds, and pulled by the answers of two gamed baselines, which
weigh 0.1 each. The rate is the mean prediction with the length term at 0. Three things in it belong to its data alone: difficulties go by
row, folds go by row, and the gamed baselines are GPT-4's before GPT-4 as judge. Its `lc_standard_error` is the error of the mean of the
predictions and not of the rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diversity.config import UserError

VARIANTS = {"length_controlled_v1": (True, True), "length_controlled_noreg": (True, False), "length_controlled_minimal": (False, False)}
"""Whether a variant has difficulties, and whether it is pulled by the gamed baselines."""

WEIGHTS = ("np.tanh(std_delta_len)", "instruction_difficulty", "not_gamed_baseline.astype(float)")
FOLDS = 5
STRENGTHS = np.logspace(-4, 4, 10)  # C of scikit-learn
GAMED_WEIGHT = 0.2 / 2
SEED = 123
EPSILON = 1e-15


@dataclass(frozen=True)
class Gamed:
    """The rows of the two gamed baselines, `(m,)` each, and the difficulty of each instruction by its row.

    Attributes:
        preferences: in [0, 1].
        lengths: differences of lengths over their deviation.
        difficulties: of the rows' instructions.
        by_row: `(805,)` difficulties by the number of the instruction.
    """

    preferences: np.ndarray
    lengths: np.ndarray
    difficulties: np.ndarray
    by_row: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, str]]) -> Gamed:
        """Return what rows of `df_gamed.csv` hold."""
        columns = [np.array([float(row[name]) for row in rows]) for name in ("preference", "std_delta_len", "instruction_difficulty")]
        by_row: dict[int, float] = {}
        for row, difficulty in zip(rows, columns[2], strict=True):
            by_row.setdefault(int(row["index"]), float(difficulty))
        return cls(columns[0], columns[1], columns[2], np.array([by_row[i] for i in sorted(by_row)]))


def preferences(values: Sequence[float | None]) -> np.ndarray:
    """Return `(n,)` in [0, 1] of preferences in [1, 2]; 0 is a tie, NaN what is invalid."""
    found = np.array([np.nan if value is None else 1.5 if value == 0 else value for value in values], np.float64)
    return found - 1


def win_rate(values: np.ndarray) -> dict[str, float]:
    """Return AlpacaEval's plain figures, in percent: rows that are invalid are left out, and NaN is what too few don't say."""
    valid = values[~np.isnan(values)]
    rounded = np.where(valid == 0.5, 0.5, np.round(valid))
    return {
        "win_rate": float(100 * valid.mean()) if len(valid) else float("nan"),
        "standard_error": float(100 * valid.std(ddof=1) / np.sqrt(len(valid))) if len(valid) > 1 else float("nan"),
        "discrete_win_rate": float(100 * rounded.mean()) if len(valid) else float("nan"),
        "n_wins": int((rounded == 1).sum()),
        "n_wins_base": int((rounded == 0).sum()),
        "n_draws": int((rounded == 0.5).sum()),
        "n_total": len(valid),
    }


def length_controlled(
    values: np.ndarray, baseline_lengths: np.ndarray, lengths: np.ndarray, gamed: Gamed | None, variant: str = "length_controlled_v1"
) -> dict[str, float | dict[str, float]]:
    """Return a variant's rate, its `lc_standard_error` (both in percent) and its weights by their names.

    Args:
        values: `(n,)` preferences in [0, 1], NaN where invalid, in the order of AlpacaEval's instructions.
        baseline_lengths: `(n,)` characters of the baseline's answers.
        lengths: `(n,)` characters of the model's.
        gamed: for the variants that need it.
        variant: one of `VARIANTS`.

    Raises:
        UserError: the variant needs difficulties and there are none for so many rows, too few rows are valid, or all differences of lengths
            are equal.
    """
    difficult, pulled = VARIANTS[variant]
    if difficult and (gamed is None or len(values) > len(gamed.by_row)):
        known = 0 if gamed is None else len(gamed.by_row)
        raise UserError(f"{variant} needs the difficulty of every instruction: there are {known} for {len(values)} rows")
    longer = (baseline_lengths - lengths).astype(np.float64)
    if np.count_nonzero(~np.isnan(values)) < FOLDS or longer.std(ddof=1) == 0:
        raise UserError(f"{variant} needs {FOLDS} rows with a preference and differences of lengths that differ")
    columns = [np.tanh(longer / longer.std(ddof=1)), np.ones(len(values))]
    if difficult and gamed is not None:
        columns.insert(1, gamed.by_row[: len(values)])
    design, valid = np.column_stack(columns), ~np.isnan(values)
    rows, targets, weights = design[valid], values[valid], np.ones(int(valid.sum()))
    if pulled and gamed is not None:
        theirs = np.column_stack([np.tanh(gamed.lengths), gamed.difficulties, np.zeros(len(gamed.lengths))])
        rows, targets = np.vstack([theirs, rows]), np.concatenate([gamed.preferences, targets])
        weights = np.concatenate([np.full(len(theirs), GAMED_WEIGHT), weights])
    coefficients = _fit_by_folds(rows, targets, weights)
    design[:, 0] = 0
    predicted = 1 / (1 + np.exp(-design @ coefficients))
    names = WEIGHTS if difficult else (WEIGHTS[0], WEIGHTS[2])
    return {
        "length_controlled_winrate": float(100 * predicted.mean()),
        "lc_standard_error": float(100 * predicted.std(ddof=1) / np.sqrt(len(predicted))),
        "weights": dict(zip(names, coefficients.tolist(), strict=True)),
    }


def _fit_by_folds(rows: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the coefficients at the penalty that predicts left-out rows best. Each soft label is a row with 1 and one with 0."""
    from sklearn.model_selection import GroupKFold

    n = len(rows)
    doubled, labels = np.vstack([rows, rows]), np.repeat([1, 0], n)
    weighted = np.concatenate([targets * weights, (1 - targets) * weights])
    scores = np.zeros((FOLDS, len(STRENGTHS)))
    folds = GroupKFold(FOLDS).split(doubled, labels, np.tile(np.arange(n), 2))
    for fold, (train, test) in enumerate(folds):
        for place, strength in enumerate(STRENGTHS):
            found = _l1(doubled[train], labels[train], weighted[train], strength)
            chance = np.clip(1 / (1 + np.exp(-doubled[test] @ found)), EPSILON, 1 - EPSILON)
            scores[fold, place] = (weighted[test] * np.log(np.where(labels[test] == 1, chance, 1 - chance))).mean()
    return _l1(doubled, labels, weighted, float(STRENGTHS[np.argmax(scores.mean(axis=0))]))


def _l1(rows: np.ndarray, labels: np.ndarray, weights: np.ndarray, strength: float) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(l1_ratio=1, solver="liblinear", C=strength, fit_intercept=False, random_state=SEED)
    return model.fit(rows, labels, sample_weight=weights).coef_[0]
