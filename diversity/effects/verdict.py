"""What the primary score allows to be said, in plain words and never more than its interval allows.

An arm has an effect only if the 95% interval of its slope leaves out zero, its p value stays below 5% after Holm, and shuffles of the
datasets agree. Nothing is claimed while planned runs are missing or have diverged, where one subset seed is all there is, or where so few
datasets can't give a small p. A change is called too small to matter only by the plan's margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from diversity.effects.schema import Row, arm_name

Claim = Literal["better", "worse", "equivalent", "none shown", "not known"]
ALPHA = 0.05
FEW_DOF = 3
LENGTH_CONTROLS = ("length-quota", "length-window")


@dataclass(frozen=True)
class Statement:
    """A few sentences about one arm, or about the best cell.

    Attributes:
        subject: what it is about, e.g. `response-micro, 10,000 samples`.
        claim: whether more diversity is shown to be better or worse; `equivalent` where a change that matters is ruled out; `none shown`
            where the interval holds zero or a test disagrees; `not known` where runs are missing, or too few to tell.
        text: the words.
        kind: what it rests on: `slope`, `contrast` or `best`, as in the table of effects.
        role: `confirmatory` where a plan named it before the first run was scored, else `exploratory`.
    """

    subject: str
    claim: Claim
    text: str
    kind: str = "slope"
    role: str = "exploratory"


def verdict(effects: pa.Table) -> list[Statement]:
    """Return what may be said from the primary score: each arm's slope on level, then the contrasts, then the best cells.

    Contrasts are those with random datasets, and those that a plan names. Confirmatory ones come first of each kind.

    Args:
        effects: rows of EFFECTS_SCHEMA. Without a primary score there is no verdict: the list is empty.
    """
    primary = [row for row in effects.to_pylist() if row["primary"]]
    arms = _Arms(primary)
    found = [_of_slope(row, arms) for row in primary if _is_slope(row) and row["subset"] == "all"]
    contrasts = [row for row in primary if row["kind"] == "contrast"]
    found += [_of_contrast(row) for row in contrasts if row["role"] == "confirmatory" or row["other"].split(", ")[0] == "random"]
    found.sort(key=lambda statement: (statement.kind == "contrast", statement.role != "confirmatory"))
    return found + [_of_best(row) for row in primary if row["kind"] == "best"]


def _is_slope(row: Row) -> bool:
    return row["kind"] == "slope" and row["method"] == "ols" and row["predictor"] == "level" and row["size"] is not None


class _Arms:
    """What else is known of each arm, beside its slope."""

    def __init__(self, rows: Sequence[Row]) -> None:
        slopes = [row for row in rows if _is_slope(row)]
        self.slopes = {_key(row): row for row in slopes if row["subset"] == "all"}
        self.without = {_key(row): row for row in slopes if row["subset"] != "all"}
        self.ends = {_key(row): row for row in rows if row["kind"] == "ends"}
        self.fits = {_key(row): row for row in rows if row["kind"] == "fit"}
        differences = [row for row in rows if row["kind"] == "difference" and row["subset"] == "all" and row["other"] == row["strategy"]]
        self.differences = {_key(row): row for row in differences}

    def held(self, row: Row) -> list[tuple[Row, Row | None]]:
        """Return slope, and its difference from the arm's own, of each arm that holds length fixed."""
        keys = [(row["strategy"], row["size"], control) for control in LENGTH_CONTROLS if row["control"] == "none"]
        return [(self.slopes[key], self.differences.get(key)) for key in keys if key in self.slopes]


def _key(row: Row) -> tuple[str, int, str]:
    return row["strategy"], row["size"], row["control"]


def subject_of(row: Row) -> str:
    """Return the arm and size that a row is about."""
    name = arm_name(row["strategy"], row["control"])
    return name if row["size"] is None else f"{name}, {row['size']:,} samples"


def unknown(row: Row) -> str | None:
    """Return why nothing can be claimed of a slope or contrast whatever its figures say, or None."""
    planned, missing, diverged = (row[name] or 0 for name in ("planned", "missing", "diverged"))
    if diverged:
        return f"{diverged} of {planned} planned runs diverged, and runs that diverge are not missing by chance"
    if missing:
        return f"this is an interim look at {planned - missing} of {planned} planned runs, and a claim waits for all of them"
    if row["low"] is None:
        return row["note"] or f"{row['n']} datasets leave no degree of freedom"
    if row["design"] == "one subset seed":
        return row["note"]
    if row["p_smallest"] is not None and row["p_smallest"] >= ALPHA:
        return f"{row['n']} datasets allow p ≥ {row['p_smallest']:.2g} by shuffling, whatever the effect"
    return None


def claim_of(row: Row) -> Claim:
    """Return what a slope or contrast with its interval and p values allows to be claimed."""
    if unknown(row) is not None:
        return "not known"
    shown = not row["low"] <= 0 <= row["high"] and all(row[p] is not None and row[p] < ALPHA for p in ("p_holm", "p_permutation"))
    if shown:
        return "better" if (row["estimate"] > 0) == bool(row["higher_is_better"]) else "worse"
    return "equivalent" if row["p_equivalence"] is not None and row["p_equivalence"] < ALPHA else "none shown"


def _of_slope(row: Row, arms: _Arms) -> Statement:
    claim, score = claim_of(row), f"{row['metric']} on {row['split']}"
    if claim == "not known":
        text = f"Nothing can be said: {unknown(row)}."
        if row["low"] is not None:
            text += f" The line through its {row['n']} datasets changes by {_change(row)}."
        return Statement(subject_of(row), claim, text, role=_role(row))
    if claim in ("better", "worse"):
        verb = "improves" if claim == "better" else "worsens"
        text = f"Raising the level from 0 to 1 {verb} {score}: along a line it changes by {_change(row)}{_tests(row)}. "
        text += _without_level_0(row, arms.without.get(_key(row)))
    else:
        text = f"No linear change of {score} with the level is shown: it changes by {_change(row)}{_tests(row)}. {_doubt(row)}"
    parts = [text.strip(), _equivalence(row), _shape(arms.ends.get(_key(row)), arms.fits.get(_key(row))), _few(row), _length(row, arms)]
    return Statement(subject_of(row), claim, " ".join(part for part in parts if part), role=_role(row))


def _of_contrast(row: Row) -> Statement:
    subject, claim = f"{subject_of(row)}: level {row['level']:.2g} less {row['other']}", claim_of(row)
    if claim == "not known":
        text = f"Nothing can be said: {unknown(row)}."
        if row["low"] is not None:
            text += f" The means differ by {_change(row)}."
        return Statement(subject, claim, text, "contrast", _role(row))
    told = f"the difference in {row['metric']} is {_change(row)}{_tests(row)}."
    if claim in ("better", "worse"):
        text = f"The most diverse datasets are {claim} than {row['other']}: {told}"
    else:
        text = f"No difference from {row['other']} is shown: {told} {_doubt(row)}"
    return Statement(
        subject, claim, " ".join(part for part in (text.strip(), _equivalence(row), _few(row)) if part), "contrast", _role(row)
    )


def _of_best(row: Row) -> Statement:
    place = "" if row["level"] is None else f" at level {row['level']:.2g}"
    lost = row["missing"] + row["diverged"]
    among = f"Among the {row['planned'] - lost} of {row['planned']} planned runs that are scored, " if lost else ""
    subject = f"{among}{subject_of(row)}{place}"
    where = f"best of {row['size']:,} samples"
    if row["low"] is None:
        text = f"{subject} has the best mean, {row['estimate']:.4g}; {row['note']}."
        return Statement(where, "not known", text, kind="best")
    digits = _digits(row)
    ends = f"{row['low']:.{digits}f} to {row['high']:.{digits}f}"
    text = f"{subject} has the best mean, {row['estimate']:.{digits}f} (95% interval {ends}, too good by selection); "
    return Statement(where, "none shown", text + f"{row['note']}.", kind="best")


def _role(row: Row) -> str:
    return row["role"] or "exploratory"


def _change(row: Row) -> str:
    """Return estimate, interval, and what it rests on."""
    rests = [f"{row['n']} datasets"]
    if row["runs"] != row["n"]:
        rests.append(f"{row['runs']} runs")
    if row["missing"] or row["diverged"]:
        rests.append(f"{row['planned'] - row['missing'] - row['diverged']} of {row['planned']} planned runs")
    if row["se_prompts"]:
        rests.append("errors over prompts included")
    return f"{_number(row['estimate'], row)} (95% interval {_interval(row)}; {', '.join(rests)})"


def _doubt(row: Row) -> str:
    """Return why an interval without zero is not enough, where that is so."""
    if row["low"] <= 0 <= row["high"]:
        return ""
    if row["p_holm"] is None or row["p_holm"] >= ALPHA:
        return "Its interval leaves out zero, but not after Holm over all that were tested. "
    return "Its interval leaves out zero, but shuffled datasets do as well too often. "


def _equivalence(row: Row) -> str:
    if row["margin"] is None or row["p_equivalence"] is None:
        return ""
    told = f"(two one-sided tests against the plan's {row['margin']:.4g}: {_p(row['p_equivalence'])})"
    if row["p_equivalence"] < ALPHA:
        return f"It is smaller than what the plan calls a change that matters {told}."
    return f"That it is too small to matter isn't shown either {told}." if row["low"] <= 0 <= row["high"] else ""


def _shape(ends: Row | None, fit: Row | None) -> str:
    """Return what the means of levels say beside the line, where a line may mislead."""
    if fit is None or fit["p"] is None or fit["p"] >= ALPHA:
        return ""
    text = f"The means of levels do not lie on a line (lack of fit, {_p(fit['p'])})"
    if ends is None or ends["low"] is None:
        return f"{text}: look at the picture."
    change = f"{_number(ends['estimate'], ends)} (95% interval {_interval(ends)})"
    return f"{text}: from the means alone, level {ends['level']:.2g} less the lowest is {change}, and a level between may lie beyond both."


def _few(row: Row) -> str:
    """Return a warning where Student's t has little to stand on."""
    if row["dof"] is None or row["dof"] >= FEW_DOF:
        return ""
    return f"With {row['dof']} {'degree' if row['dof'] == 1 else 'degrees'} of freedom this interval rests on noise being normal."


def _length(row: Row, arms: _Arms) -> str:
    """Return what is left with length held fixed, why nothing can be said of that, or that it isn't held."""
    reasons = []
    for slope, difference in arms.held(row):
        reason = unknown(slope) if difference is None else unknown(slope) or unknown(difference)
        if reason is None and difference is not None:
            left = f"{_number(slope['estimate'], slope)} (95% interval {_interval(slope)})"
            less = f"{_number(difference['estimate'], difference)} (95% interval {_interval(difference)})"
            return f"With length held fixed ({slope['control']}) it changes by {left}; that less the change in all is {less}."
        reasons.append(f"With length held fixed ({slope['control']}) nothing can be said: {reason}.")
    if reasons:
        return " ".join(reasons)
    if row["control"] in LENGTH_CONTROLS or row["length_ratio"] is None:
        return ""
    times = f"{row['length_ratio']:.2g} times as long at the highest level as at the lowest"
    return f"Length is not held fixed: responses are {times}."


def _without_level_0(row: Row, without: Row | None) -> str:
    if without is None or (reason := unknown(without)) is not None:
        return f"Whether it holds without level 0 can't be said{f': {reason}' if without else ''}."
    change = f"{_number(without['estimate'], without)}, 95% interval {_interval(without)}"
    same = (without["estimate"] > 0) == (row["estimate"] > 0)
    if same and not without["low"] <= 0 <= without["high"]:
        return f"It holds without level 0 ({change})."
    return f"Without level 0 the interval holds zero or turns ({change}): the effect may rest on level 0 alone."


def _tests(row: Row) -> str:
    parts = [("p", row["p"]), ("shuffled", row["p_permutation"]), ("Holm", row["p_holm"])]
    told = ", ".join(f"{name} {_p(p)[2:]}" for name, p in parts if p is not None)
    return f"; {told}" if told else ""


def _p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"


def _digits(row: Row) -> int:
    """Return decimals that show two digits of the standard error."""
    error = row["se"]
    return 3 if not error or not np.isfinite(error) else int(np.clip(1 - np.floor(np.log10(error)), 0, 12))


def _number(value: float, row: Row) -> str:
    return f"{value:+.{_digits(row)}f}".replace("-", "−")


def _interval(row: Row) -> str:
    return f"{_number(row['low'], row)} to {_number(row['high'], row)}"


def verdict_lines(statements: Sequence[Statement]) -> list[str]:
    """Return the statements as lines of text."""
    return [f"{_subject(statement)}: {statement.text}" for statement in statements]


def _subject(statement: Statement) -> str:
    return statement.subject if statement.kind == "best" else f"{statement.subject} ({statement.role})"
