"""Verdicts become figures: score rows of an answerer, what a judge is worth, and sentences about both.

`scores` gives ordinary rows with their values by prompt, so that slopes, bands and verdicts work on them as on any score.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from diversity.effects.clustered import Estimate
from diversity.effects.scores import SAMPLE_SCORES_SCHEMA, SCORES_SCHEMA
from diversity.judging import agreement, style
from diversity.judging.controls import SPOILT
from diversity.judging.rubrics import STRENGTH
from diversity.judging.verdicts import SCORED, outcomes
from diversity.judging.win_rates import (
    STRONG,
    PromptScores,
    length_controlled_win_rate,
    style_controlled_win_rate,
    weighted_win_rate,
    win_rate,
)

METRICS = {
    "judged_win_rate": win_rate,
    "judged_win_rate_length_controlled": length_controlled_win_rate,
    "judged_win_rate_style_controlled": style_controlled_win_rate,
    "judged_win_rate_weighted": weighted_win_rate,
}
EVERY_SET = "all"
JURY = "mean of judges"
MOST_LOST = 0.05  # share of verdicts


def prompt_scores(verdicts: pa.Table, chosen: str | None = None) -> PromptScores:
    """Return each prompt's score over all its verdicts: orders, repeats, and baselines where several are averaged.

    Args:
        verdicts: VERDICTS_SCHEMA of one answerer and one judge, against one baseline or several.
        chosen: a set; None takes all, a prompt of several sets once.
    """
    names = ["set", "prompt_id", "group", "outcome", "label", "score", "longer", *style.COLUMNS]
    rows = [row for row in verdicts.select(names).to_pylist() if row["outcome"] in SCORED and (chosen is None or row["set"] == chosen)]
    by_prompt: dict[str, list[dict[str, Any]]] = defaultdict(list)
    home: dict[str, str] = {}
    for row in rows:
        if home.setdefault(row["prompt_id"], row["set"]) == row["set"]:
            by_prompt[row["prompt_id"]].append(row)
    ids = sorted(by_prompt)
    weighted = [[_weight(row) for row in by_prompt[one]] for one in ids]
    return PromptScores(
        ids,
        np.array([by_prompt[one][0]["group"] for one in ids], np.int32),
        np.array([_mean(by_prompt[one], "score") for one in ids], np.float64),
        np.array([_weighted_mean(by_prompt[one], ws) for one, ws in zip(ids, weighted, strict=True)], np.float64),
        np.array([sum(ws) / len(ws) for ws in weighted], np.float64),
        np.array([_mean(by_prompt[one], "longer") for one in ids], np.float64),
        np.array([_mean(by_prompt[one], name) for one in ids for name in style.COLUMNS], np.float64).reshape(-1, len(style.COLUMNS)),
    )


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


def _weighted_mean(rows: Sequence[Mapping[str, Any]], weights: Sequence[float]) -> float:
    return sum(weight * row["score"] for weight, row in zip(weights, rows, strict=True)) / len(rows)


def _weight(row: Mapping[str, Any]) -> float:
    return STRONG if row["label"] is not None and abs(STRENGTH[row["label"]]) == 2 else 1.0


def averaged(parts: Sequence[PromptScores]) -> PromptScores:
    """Return the mean of several judges' scores on the prompts that all of them judged."""
    common = sorted(set(parts[0].ids).intersection(*(part.ids for part in parts)))
    places = [{one: place for place, one in enumerate(part.ids)} for part in parts]
    taken = [part.taken(np.array([place[one] for one in common], np.int64)) for part, place in zip(parts, places, strict=True)]
    shares = [(one.strong_values / one.strong_weights) for one in taken]
    weights = [one.strong_weights for one in taken]
    return PromptScores(
        common,
        taken[0].groups,
        np.mean([one.values for one in taken], axis=0),
        np.mean([share * weight for share, weight in zip(shares, weights, strict=True)], axis=0),
        np.mean(weights, axis=0),
        taken[0].longer,
        taken[0].style,
    )


def sets_of(verdicts: pa.Table) -> list[str | None]:
    """Return the sets in verdicts, and None for all of them where there are several."""
    names = sorted(pc.unique(verdicts["set"]).to_pylist())
    return [*names, *([None] if len(names) > 1 else [])]


def estimates(verdicts: Sequence[pa.Table]) -> dict[str, dict[str, Estimate]]:
    """Return the figures of one answerer by set and metric; of several judges' verdicts, those of their mean."""
    found: dict[str, dict[str, Estimate]] = {}
    for chosen in sets_of(verdicts[0]):
        scores = averaged([prompt_scores(table, chosen) for table in verdicts])
        if len(scores):
            found[chosen or EVERY_SET] = {name: function(scores) for name, function in METRICS.items()}
    return found


def scores(verdicts: Sequence[pa.Table], *, run: str, judge: str, tokens: Mapping[str, int]) -> tuple[pa.Table, pa.Table]:
    """Return (`SCORES_SCHEMA`, `SAMPLE_SCORES_SCHEMA`) of one answerer by one judge, or by the mean of several.

    Args:
        verdicts: VERDICTS_SCHEMA, one table for each judge.
        run: the name that the rows get.
        judge: the evaluator.
        tokens: of the answers, by prompt.
    """
    rows, singles = [], []
    for chosen in sets_of(verdicts[0]):
        found = averaged([prompt_scores(table, chosen) for table in verdicts])
        if not len(found):
            continue
        head = {"run": run, "evaluator": judge, "split": chosen or EVERY_SET}
        for metric, function in METRICS.items():
            one = function(found)
            figures = {"value": one.value, "se": one.se, "n": one.n, "higher_is_better": True, "primary": False}
            rows.append({**head, "metric": metric, **figures})
        for prompt, group, value in zip(found.ids, found.groups.tolist(), found.values.tolist(), strict=True):
            place = {"sample_id": prompt, "group": group, "tokens": tokens.get(prompt, 0), "value": value}
            singles.append({**head, "metric": "judged_win_rate", **place})
    return pa.Table.from_pylist(rows, schema=SCORES_SCHEMA), pa.Table.from_pylist(singles, schema=SAMPLE_SCORES_SCHEMA)


@dataclass(frozen=True)
class JudgeReport:
    """What a judge is worth, over all its verdicts on real answers.

    Attributes:
        judge: its name.
        outcomes: counts of all verdicts that were asked; their sum is that.
        position: P(first wins) - 0.5 over verdicts that are no ties.
        orders: agreement when the answers change places.
        repeats: agreement when it is asked again.
        served: verdicts by the model that the endpoint says has answered.
        controls: each control's win rate against the clean answers that it is made from.
        accuracy: share of clean answers that win against spoilt ones, ties counting one half; NaN without calibration.
        least: what it must be.
        passed: whether the judge may be relied on: calibrated on every control, above the threshold, and not taken in by a null answer or a
            tail.
        warnings: what a reader must know before the judge's figures.
    """

    judge: str
    outcomes: dict[str, int]
    position: Estimate | None
    orders: agreement.Agreement | None
    repeats: agreement.Agreement | None
    served: dict[str, int]
    controls: dict[str, Estimate]
    accuracy: float
    least: float
    passed: bool = False
    warnings: list[str] = field(default_factory=list)


def judge_report(judge: str, verdicts: pa.Table, calibration: Mapping[str, pa.Table], least: float) -> JudgeReport:
    """Return what a judge is worth.

    Args:
        judge: its name.
        verdicts: of all answerers, VERDICTS_SCHEMA with `answerer` and `baseline`.
        calibration: verdicts on each control.
        least: accuracy below which the judge gets a warning.
    """
    judged = {name: win_rate(found) for name, table in calibration.items() if len(found := prompt_scores(table))}
    spoilt = [(judged[name].value, judged[name].n) for name in SPOILT if name in judged]
    accuracy = 1 - float(np.average([v for v, _ in spoilt], weights=[n for _, n in spoilt])) if spoilt else float("nan")
    counted = outcomes(verdicts)
    served = pc.value_counts(verdicts.filter(pc.is_valid(verdicts["served_model"]))["served_model"]).to_pylist()
    names = {row["values"]: row["counts"] for row in served}
    report = JudgeReport(
        judge,
        counted,
        agreement.position_bias(verdicts),
        agreement.over_orders(verdicts),
        agreement.over_repeats(verdicts),
        names,
        judged,
        accuracy,
        least,
    )
    failed = _failed(report, {name: outcomes(table) for name, table in calibration.items()})
    return replace(report, passed=not failed, warnings=[*failed, *_warnings(report)])


def _failed(report: JudgeReport, calibration: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Return why a judge does not pass calibration, one sentence each.

    Args:
        report: on it.
        calibration: outcomes of its verdicts by control; of one that could not be made of any answer there are none.
    """
    if not report.controls:
        return ["not calibrated: nothing says that it tells good answers from bad ones"]
    found = []
    if missing := [name for name, counted in calibration.items() if _asked(counted) and name not in report.controls]:
        found.append(f"not calibrated on {', '.join(missing)}: it gave no verdict there")
    if report.accuracy < report.least:
        found.append(f"prefers clean answers to spoilt ones in only {report.accuracy:.0%} of pairs; {report.least:.0%} is asked of a judge")
    if (null := report.controls.get("null answer")) is not None and not null.high < 0.5:
        found.append(f"a null answer does not clearly lose: it wins {null.value:.0%}")
    if (tail := report.controls.get("neutral tail")) is not None and tail.low > 0.5:
        found.append(f"a neutral tail wins {tail.value:.0%} against the same answer without it")
    return [*found, *_lost(sum((Counter(counted) for counted in calibration.values()), Counter[str]()), " in calibration")]


def _lost(counted: Mapping[str, int], where: str = "") -> list[str]:
    """Return a sentence on verdicts that are none, where they are more than `MOST_LOST`."""
    asked = _asked(counted)
    lost = asked - counted["ok"]
    return [f"{lost:,} of {asked:,} verdicts{where} are none ({_most(counted)})"] if lost > MOST_LOST * asked else []


def _asked(counted: Mapping[str, int]) -> int:
    return sum(counted.values()) - counted["same"] - counted["unanswered"]


def _warnings(report: JudgeReport) -> list[str]:
    """Return what else a reader must know before a judge's figures, one sentence each."""
    found = _lost(report.outcomes)
    if report.position is not None and abs(report.position.value) > 0.1 and not report.position.low <= 0 <= report.position.high:
        found.append(f"likes a place: the answer that stands first wins {0.5 + report.position.value:.0%} of verdicts that are no ties")
    if len(report.served) > 1:
        found.append(f"several models answered under its name: {', '.join(report.served)}")
    return found


def _most(counted: Mapping[str, int]) -> str:
    lost = {name: count for name, count in counted.items() if count and name not in ("ok", "same", "unanswered")}
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in sorted(lost.items(), key=lambda one: -one[1]))
