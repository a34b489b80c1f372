"""What a planned grid can see, from a pilot's scatter: `sft-diversity power RESULTS… [--levels 7] [--seeds 1 2 3] [--change X]`.

    sft-diversity power runs/experiments/pilot --levels 0,0.5,1 --seeds 3 5 10 --change 0.02
    sft-diversity power --sigma 0.012 --levels 7 --own-seeds

Prints how far the pilot's datasets of one arm and level lie apart, the smallest change from level 0 to 1 that each number of subset seeds
finds, and how many a wanted change needs. Simulated by the rule that the verdict goes by; needs no cluster.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from fractions import Fraction

from diversity.cell import GridConfig
from diversity.config import ConfigError, parse
from diversity.effects.power import (
    Planned,
    PlannedContrast,
    PlannedSlope,
    Scatter,
    Simulation,
    nothing_shown,
    scatter,
    seeds_needed,
)
from diversity.effects.schema import Row
from ray_jobs.job.runtime import tool
from ray_jobs.tools.compare import columns
from ray_jobs.tools.results_files import TARGET_HELP, one_score, overlap_lines, read_scored


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(prog="sft-diversity power", description="What a planned grid can see.")
    parser.add_argument("results", nargs="*", metavar="RESULTS", help=f"of pilots with one score: {TARGET_HELP}")
    parser.add_argument("--sigma", type=float, help="standard deviation of a new dataset's score given its level, in place of a pilot's")
    parser.add_argument("--score", metavar="EVALUATOR/SPLIT/METRIC", help="default: the primary one, else the first")
    parser.add_argument("--levels", default="7", help="planned: a number of levels, or fractions such as 0,0.5,1 (repeats count)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4, 6, 8, 10], help="subset seeds, for the table")
    parser.add_argument("--own-seeds", action="store_true", help="every level has subset seeds of its own (grid.level_seeds: own)")
    parser.add_argument("--random", type=int, help="datasets of a strategy without a level; default: as many as at the highest level")
    parser.add_argument("--tests", type=int, default=6, help="effects tested together by Holm: the plan's primary ones, or the strategies")
    parser.add_argument("--change", type=float, help="the change from level 0 to 1 that must be found: how many seeds does it need?")
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--power", type=float, default=0.8)
    return parser.parse_args(argv)


@tool("power")
def main(argv: list[str] | None = None) -> int:
    """Print the plan's power and return the exit code."""
    given = arguments(argv)
    _check(given)
    print("\n".join(_lines(given)))
    return 0


def _check(given: argparse.Namespace) -> None:
    """Raise a ConfigError where a number makes no sense."""
    for flag, counts in (("--seeds", given.seeds), ("--tests", [given.tests]), ("--random", [given.random])):
        for count in counts:
            if count is not None and count < 1:
                raise ConfigError(f"{flag} {count}: give a number from 1 on")
    for flag, share in (("--alpha", given.alpha), ("--power", given.power)):
        if not 0 < share < 1:
            raise ConfigError(f"{flag} {share:g}: give a number between 0 and 1")
    if given.change is not None and not math.isfinite(given.change):
        raise ConfigError(f"--change {given.change:g}: give a finite number")


def _lines(given: argparse.Namespace) -> list[str]:
    levels = planned_levels(given.levels)
    lines, found = _pilot(given)
    sigma = found.sd if found else given.sigma
    told = f"{'subset seeds of its own for each level' if given.own_seeds else 'the same subset seeds at every level'}"
    lines += ["", f"Planned: levels {' '.join(f'{level:.3g}' for level in levels)}, {told}; power {given.power:.0%}, alpha {given.alpha:g}"]
    lines += ["", *table(levels, given, sigma)]
    if found:
        low, high = found.interval()
        lines += [
            "",
            f"The pilot knows sigma to a factor of {low / sigma:.2f} to {high / sigma:.2f} (95%); every figure above goes with it.",
        ]
    if given.change is not None:
        lines += ["", *_needed(levels, given, sigma, found)]
    return lines


def _pilot(given: argparse.Namespace) -> tuple[list[str], Scatter | None]:
    """Return what is told of the pilot, and its scatter; None where sigma was given."""
    if (given.sigma is None) == (not given.results):
        raise ConfigError("give either RESULTS of a pilot or --sigma")
    if given.sigma is not None:
        if not (given.sigma > 0 and math.isfinite(given.sigma)):
            raise ConfigError(f"--sigma {given.sigma:g}: a standard deviation is finite and above 0")
        return [f"sigma {given.sigma:g}, as given"], None
    score, rows = _pilots(given.results, given.score)
    try:
        result = scatter(rows)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    low, high = result.interval()
    spread = f"{result.sd:.4g} (95% interval {low:.4g} to {high:.4g}, {result.dof} degrees of freedom)"
    if not result.sd > 0:
        raise ConfigError(f"{score}: datasets of one level have equal scores, so they tell nothing of how far datasets scatter")
    return [
        f"{score}, {len({row['run'] for row in rows})} runs",
        f"sigma, of a new dataset given its arm and level: {spread}",
        f"from {result.basis}",
        *(line for target in given.results for line in overlap_lines(target)),
    ], result


def _pilots(targets: Sequence[str], wanted: str | None) -> tuple[str, list[Row]]:
    """Return the name of one score, the wanted or the first pilot's own, and all pilots' rows of it, so that they share no cell.

    Raises:
        ConfigError: a pilot has no such score: scores of different kinds have no scatter in common.
    """
    score, rows = wanted, []
    for number, target in enumerate(targets):
        _, found = read_scored(target)
        try:
            score, found, _ = one_score(found, found, score)
        except ConfigError as error:
            raise ConfigError(f"{target}: {error}; pilots are pooled on one score") from None
        rows += [{**row, "control": f"{row['control']} {number}", "run": f"{number} {row['run']}"} for row in found]
    assert score is not None
    return score, rows


def planned_levels(text: str) -> list[float]:
    """Return the levels of one seed.

    Raises:
        ConfigError: the text is neither a number of levels nor a list of fractions.
    """
    if text.isdigit() and int(text) >= 2:
        return [float(level) for level in parse(GridConfig, {"levels": int(text)}).fractions]
    try:
        levels = [float(Fraction(part)) for part in text.split(",")]
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"--levels {text}: give a number of levels from 2, or fractions such as 0,0.5,1") from None
    if len(set(levels)) < 2 or min(levels) < 0 or max(levels) > 1:
        raise ConfigError(f"--levels {text}: a slope needs two different fractions from 0 to 1")
    return levels


def table(levels: Sequence[float], given: argparse.Namespace, sigma: float) -> list[str]:
    """Return the table of detectable changes by number of subset seeds; what a design can't show is said in its place."""
    among = f"among {given.tests} by Holm"
    rows = [["seeds", "datasets", "detectable change", "in sigma", among, "highest less random", "among them"]]
    notes = []
    for count in given.seeds:
        slope = PlannedSlope.of(levels, count, given.own_seeds)
        top = sum(level == max(levels) for level in slope.levels)
        contrast = PlannedContrast(top, top if given.random is None else given.random)
        cells = [_detectable(slope, given, sigma, tests) for tests in (1, given.tests)]
        of_contrast = [_detectable(contrast, given, sigma, tests) for tests in (1, given.tests)]
        in_sigma = f"{cells[0] / sigma:.2f}" if cells[0] < float("inf") else "none"
        rows.append([str(count), str(len(slope.levels)), _told(cells[0]), in_sigma, _told(cells[1]), *map(_told, of_contrast)])
        notes += [
            note
            for planned, what in ((slope, "a slope"), (contrast, "the contrast"))
            if (note := why_not(planned, what, count, given.alpha))
        ]
    return [*columns(rows), *([""] if notes else []), *notes]


def why_not(planned: Planned, what: str, seeds: int, alpha: float) -> str:
    """Return why a design can show nothing whatever the effect, "" where it can."""
    reason = nothing_shown(planned, alpha)
    return f"{seeds} {'seed' if seeds == 1 else 'seeds'}: {what} will be not known whatever the effect: {reason}" if reason else ""


def _detectable(planned: Planned, given: argparse.Namespace, sigma: float, tests: int) -> float:
    return sigma * Simulation(planned, tests, given.alpha).detectable(given.power)


def _told(change: float) -> str:
    return f"{change:.4g}" if change < float("inf") else "none"


def _needed(levels: Sequence[float], given: argparse.Namespace, sigma: float, found: Scatter | None) -> list[str]:
    cases = [("", sigma)] + ([(f" at the upper end of sigma, {found.interval()[1]:.4g}", found.interval()[1])] if found else [])
    lines = []
    for what, value in cases:
        try:
            counts = [
                seeds_needed(given.change / value, levels, given.own_seeds, tests, given.alpha, given.power)
                for tests in dict.fromkeys((1, given.tests))
            ]
        except ValueError as error:
            raise ConfigError(f"--change {given.change:g}: {error}") from None
        told = [f"{seeds} seeds, {seeds * len(levels)} datasets a strategy" for seeds in counts]
        lines.append(f"A change of {given.change:g} needs {f', and among {given.tests} by Holm '.join(told)}{what}.")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
