"""The page on judging: who wins against the baseline by how much, and what the judges are worth that say so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from diversity.effects.clustered import Estimate
from diversity.judging.agreement import Agreement
from diversity.judging.controls import NEUTRAL, SPOILT
from diversity.judging.summary import EVERY_SET, JURY, METRICS, JudgeReport
from diversity.judging.verdicts import OUTCOMES
from diversity.judging.win_rates import smallest_effect
from ray_jobs.report.page import page_parts

METRIC_NAMES = {
    "judged_win_rate": "win rate",
    "judged_win_rate_length_controlled": "at equal length",
    "judged_win_rate_style_controlled": "at equal style",
    "judged_win_rate_weighted": "strong verdicts x 3",
}
Figures = dict[str, dict[str, Estimate]]  # by set and metric


@dataclass(frozen=True)
class Row:
    """One answerer by one judge, or by the mean of several.

    Attributes:
        answerer: its name.
        again: whether it is another seed of the baseline: the A/A row.
        judge: its name.
        figures: by set and metric.
    """

    answerer: str
    again: bool
    judge: str
    figures: Figures


@dataclass(frozen=True)
class JudgingData:
    """What the page shows.

    Attributes:
        experiment: its name.
        baselines: whom all are compared with.
        prompts: of each set.
        reports: of each judge.
        rows: everyone by every judge.
        between: (judge, judge, agreement).
        primary: the judge whose win rate the verdict is to rest on, if any.
        primary_passed: whether it may.
    """

    experiment: str
    baselines: list[str]
    prompts: dict[str, int]
    reports: list[JudgeReport]
    rows: list[Row]
    between: list[tuple[str, str, Agreement | None]] = field(default_factory=list)
    primary: str | None = None
    primary_passed: bool = False

    def record(self) -> dict[str, Any]:
        """Return what a manifest says."""
        return _without_nan(asdict(self))


def _without_nan(value: Any) -> Any:
    """Return a record with null where a figure is not known: NaN is no JSON."""
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and value != value else value


def render(data: JudgingData) -> str:
    """Return the page as one HTML string that opens without a network."""
    return page_parts("judging.html.j2").render(
        data=data,
        tables=list(_tables(data)),
        cards=[_card(report) for report in data.reports],
        between=[(a, b, _percent(one.share), _figure(one.kappa), one.n) for a, b, one in data.between if one is not None],
        again=any(row.again for row in data.rows),
        outcome_names=OUTCOMES,
        controls=[*SPOILT, *NEUTRAL],
        effect=_effect(data),
        verdict=_primary(data),
    )


def lines(data: JudgingData) -> list[str]:
    """Return what the command prints: warnings first, then each answerer's rate over all sets."""
    found = [f"{report.judge}: {warning}" for report in data.reports for warning in report.warnings]
    for row in data.rows:
        chosen = EVERY_SET if EVERY_SET in row.figures else next(iter(row.figures), None)
        if chosen is not None:
            told = ", ".join(f"{METRIC_NAMES[name]} {_rate(row.figures[chosen][name])}" for name in METRICS)
            found.append(f"{row.answerer}{' (A/A)' if row.again else ''} by {row.judge}: {told}")
    return found


def _tables(data: JudgingData) -> Iterator[dict[str, Any]]:
    """Yield a table for each judge and set: every answerer with its figures and a bar of its interval."""
    judges = list(dict.fromkeys(row.judge for row in data.rows))
    for judge in judges:
        mine = [row for row in data.rows if row.judge == judge]
        warned = any(report.warnings for report in data.reports if judge in (report.judge, JURY))
        sets = list(dict.fromkeys(name for row in mine for name in row.figures))
        for chosen in sorted(sets, key=lambda name: name != EVERY_SET):
            rows = [
                {
                    "name": row.answerer,
                    "again": row.again,
                    "bar": _bar(row.figures[chosen]["judged_win_rate"]),
                    "rates": [_rate(row.figures[chosen][name]) for name in METRICS],
                    "n": row.figures[chosen]["judged_win_rate"].n,
                    "apart": _apart(data, row.answerer, chosen),
                }
                for row in mine
                if chosen in row.figures
            ]
            title = "all sets" if chosen == EVERY_SET else chosen
            yield {
                "judge": judge,
                "set": title,
                "open": chosen == EVERY_SET or len(sets) == 1,
                "rows": rows,
                "warned": warned,
                "mean": judge == JURY,
            }


def _apart(data: JudgingData, answerer: str, chosen: str) -> str:
    """Return how far the judges' own win rates of one answerer lie apart, in points."""
    mine = [row for row in data.rows if row.answerer == answerer and row.judge != JURY and chosen in row.figures]
    rates = [row.figures[chosen]["judged_win_rate"].value for row in mine]
    return f"{100 * (max(rates) - min(rates)):.1f}" if rates else ""


def _card(report: JudgeReport) -> dict[str, Any]:
    """Return what is said of one judge."""
    position = report.position
    asked = sum(report.outcomes.values())
    return {
        "judge": report.judge,
        "warnings": report.warnings,
        "passed": report.passed,
        "accuracy": _percent(report.accuracy),
        "least": _percent(report.least),
        "controls": [(name, _bar(one), _rate(one), one.n, name in SPOILT) for name, one in report.controls.items()],
        "position": None if position is None else f"{_percent(0.5 + position.value)} ± {_percent(1.96 * position.se)}",
        "orders": _agreed(report.orders),
        "repeats": _agreed(report.repeats),
        "served": sorted(report.served.items()),
        "outcomes": [(name, count, _percent(count / asked)) for name, count in report.outcomes.items() if count],
        "asked": asked,
    }


def _effect(data: JudgingData) -> str | None:
    """Return the smallest difference that the errors of this table can show, in points."""
    errors = [next(iter(row.figures.values()))["judged_win_rate"].se for row in data.rows if row.figures]
    finite = sorted(one for one in errors if one == one)
    return f"{100 * smallest_effect(finite[len(finite) // 2] * 2**0.5):.1f}" if finite else None


def _primary(data: JudgingData) -> str:
    """Return what the report's verdict rests on, in a sentence."""
    if data.primary is None:
        return "The report's verdict does not rest on these figures: its primary score is the likelihood of held-out responses."
    if data.primary_passed:
        return f"The report's verdict rests on {data.primary}, which was named beforehand and passed calibration."
    return f"{data.primary} was named for the report's verdict and did not pass calibration: the verdict does not rest on it."


def _bar(one: Estimate) -> dict[str, float]:
    """Return where a bar's interval begins, how wide it is and where its point lies, in percent of the scale 0 to 1."""
    low, high = (one.low, one.high) if one.se == one.se else (one.value, one.value)
    low, high = max(0.0, low), min(1.0, high)
    return {"low": round(100 * low, 2), "width": round(100 * (high - low), 2), "at": round(100 * min(1.0, max(0.0, one.value)), 2)}


def _rate(one: Estimate) -> str:
    """Write a rate with the half-width of its 95% interval, in percent."""
    if one.se != one.se:
        return f"{100 * one.value:.1f}%"
    return f"{100 * one.value:.1f} ± {50 * (one.high - one.low):.1f}%"


def _agreed(one: Agreement | None) -> str | None:
    return None if one is None else f"{_percent(one.share)} of {one.n:,} pairs (κ {_figure(one.kappa)})"


def _percent(value: float) -> str:
    return "not known" if value != value else f"{100 * value:.0f}%"


def _figure(value: float) -> str:
    return "not defined" if value != value else f"{value:.2f}".replace("-", "−")
