"""What the primary score allows to be said, in plain words and never more than its interval allows.

An arm has an effect only if the 95% interval of its slope leaves out zero, its p value stays below 5% after Holm over the strategies, and
shuffling the runs agrees. Otherwise nothing is claimed beyond what the interval excludes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from diversity.effects.schema import Row, arm_name

Claim = Literal["better", "worse", "none shown", "not known"]
ALPHA = 0.05


@dataclass(frozen=True)
class Statement:
    """One sentence or two about one arm, or about the best cell.

    Attributes:
        subject: what it is about, e.g. `response-micro, 10,000 samples`.
        claim: whether more diversity is shown to be better or worse; `none shown` where the interval holds zero or a test disagrees,
            `not known` where there are too few runs for an interval.
        text: the words.
        excluded: the size of effect that the interval leaves no room for; None where there is no interval.
        kind: what it rests on: `slope`, `contrast` or `best`, as in the table of effects.
    """

    subject: str
    claim: Claim
    text: str
    excluded: float | None = None
    kind: str = "slope"


def verdict(effects: pa.Table) -> list[Statement]:
    """Return what may be said from the primary score: each arm's slope on level, then the contrasts, then the best cells.

    Args:
        effects: rows of EFFECTS_SCHEMA. Without a primary score there is no verdict: the list is empty.
    """
    primary = [row for row in effects.to_pylist() if row["primary"]]
    slopes = [row for row in primary if row["kind"] == "slope" and row["method"] == "ols" and row["predictor"] == "level"]
    slopes = [row for row in slopes if row["size"] is not None]
    without = {_key(row): row for row in slopes if row["subset"] != "all"}
    found = [_of_slope(row, without.get(_key(row))) for row in slopes if row["subset"] == "all"]
    found += [_of_contrast(row) for row in primary if row["kind"] == "contrast" and row["other"].split(", ")[0] == "random"]
    return found + [_of_best(row) for row in primary if row["kind"] == "best"]


def _key(row: Row) -> tuple[str, int, str]:
    return row["strategy"], row["size"], row["control"]


def subject_of(row: Row) -> str:
    """Return the arm and size that a row is about."""
    name = arm_name(row["strategy"], row["control"])
    return name if row["size"] is None else f"{name}, {row['size']:,} samples"


def _of_slope(row: Row, without: Row | None) -> Statement:
    if row["low"] is None:
        reason = row["note"] or f"{row['n']} runs leave no degree of freedom"
        return Statement(subject_of(row), "not known", f"Nothing can be said: {reason}.")
    claim, excluded = claim_of(row), max(abs(row["low"]), abs(row["high"]))
    change = f"{_number(row['estimate'], row)} (95% interval {_interval(row)}; {row['n']} runs)"
    if claim in ("better", "worse"):
        verb = "improves" if claim == "better" else "worsens"
        text = f"Raising the level from 0 to 1 {verb} {row['metric']} on {row['split']}: it changes by {change}{_tests(row)}. "
        return Statement(subject_of(row), claim, text + _without_level_0(row, without), excluded)
    text = f"No effect of the level on {row['metric']} on {row['split']} is shown: it changes by {change}{_tests(row)}. {_doubt(row)}"
    return Statement(subject_of(row), claim, text + f"An effect larger than {_size(excluded, row)} is excluded.", excluded)


def _of_contrast(row: Row) -> Statement:
    subject = f"{subject_of(row)}: level {row['level']:.2g} less {row['other']}"
    if row["low"] is None:
        return Statement(subject, "not known", f"Nothing can be said: {row['note'] or 'the runs do not differ'}.", kind="contrast")
    claim, excluded = claim_of(row), max(abs(row["low"]), abs(row["high"]))
    change = f"{_number(row['estimate'], row)} (95% interval {_interval(row)}; {row['n']} runs)"
    told = f"the difference in {row['metric']} is {change}{_tests(row)}."
    if claim in ("better", "worse"):
        return Statement(subject, claim, f"The most diverse datasets are {claim} than {row['other']}: {told}", excluded, "contrast")
    text = f"No difference from {row['other']} is shown: {told} {_doubt(row)}One larger than {_size(excluded, row)} is excluded."
    return Statement(subject, claim, text, excluded, "contrast")


def _of_best(row: Row) -> Statement:
    place = "" if row["level"] is None else f" at level {row['level']:.2g}"
    where = f"best of {row['size']:,} samples"
    if row["low"] is None:
        text = f"{subject_of(row)}{place} has the best mean, {row['estimate']:.4g}; {row['note']}."
        return Statement(where, "not known", text, kind="best")
    digits = _digits(row)
    ends = f"{row['low']:.{digits}f} to {row['high']:.{digits}f}"
    text = f"{subject_of(row)}{place} has the best mean, {row['estimate']:.{digits}f} (95% interval {ends}, selection apart). "
    text += f"Were the runs made anew it would lead in {row['chance']:.0%} of cases; {row['note']}."
    return Statement(where, "none shown", text, kind="best")


def claim_of(row: Row) -> Claim:
    """Return what a slope or contrast with its interval and p values allows to be claimed."""
    if row["low"] is None or row["high"] is None:
        return "not known"
    if row["low"] <= 0 <= row["high"] or any(row[p] is None or row[p] >= ALPHA for p in ("p_holm", "p_permutation")):
        return "none shown"
    return "better" if (row["estimate"] > 0) == bool(row["higher_is_better"]) else "worse"


def _doubt(row: Row) -> str:
    """Return why an interval without zero is not enough, where that is so."""
    if row["low"] <= 0 <= row["high"]:
        return ""
    if row["p_holm"] is None or row["p_holm"] >= ALPHA:
        return "Its interval leaves out zero, but not after Holm over all that were tested. "
    return "Its interval leaves out zero, but shuffled runs do as well too often. "


def _without_level_0(row: Row, without: Row | None) -> str:
    if without is None or without["low"] is None:
        return "There are too few runs to say whether it holds without level 0."
    change = f"{_number(without['estimate'], without)}, 95% interval {_interval(without)}"
    same = (without["estimate"] > 0) == (row["estimate"] > 0)
    if same and not without["low"] <= 0 <= without["high"]:
        return f"It holds without level 0 ({change})."
    return f"Without level 0 the interval holds zero or turns ({change}): the effect may rest on level 0 alone."


def _tests(row: Row) -> str:
    parts = [("p", row["p"]), ("shuffled", row["p_permutation"]), ("Holm", row["p_holm"])]
    told = ", ".join(f"{name} {'< 0.001' if p < 0.001 else f'{p:.3f}'}" for name, p in parts if p is not None)
    return f"; {told}" if told else ""


def _digits(row: Row) -> int:
    """Return decimals that show two digits of the standard error."""
    error = row["se"]
    return 3 if not error or not np.isfinite(error) else int(np.clip(1 - np.floor(np.log10(error)), 0, 12))


def _number(value: float, row: Row) -> str:
    return f"{value:+.{_digits(row)}f}".replace("-", "−")


def _size(value: float, row: Row) -> str:
    """Write a bound, rounded up: rounded down it would exclude what the interval allows."""
    scale = 10 ** _digits(row)
    return f"{np.ceil(value * scale - 1e-9) / scale:.{_digits(row)}f}"


def _interval(row: Row) -> str:
    return f"{_number(row['low'], row)} to {_number(row['high'], row)}"


def verdict_lines(statements: Sequence[Statement]) -> list[str]:
    """Return the statements as lines of text."""
    return [f"{statement.subject}: {statement.text}" for statement in statements]
