"""Two experiments side by side: `sft-diversity compare A B [--score EVALUATOR/SPLIT/METRIC] [--cells] [--html FILE]`.

    sft-diversity compare runs/experiments/llama-2 runs/experiments/llama-3

A and B differ in whatever their configurations differ in: model, budget, pruning, corpus. Cells go by their names; what is compared is the
slope of each arm on level (B less A), and the scores of the cells that both have. Needs no cluster.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from diversity.effects.comparing import ComparedArm, ComparedCells, compare_arms, compare_cells
from diversity.effects.regression import Slope
from diversity.effects.schema import arm_name
from ray_jobs.job.runtime import tool
from ray_jobs.tools.results_files import TARGET_HELP, one_score, read_scored


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(prog="sft-diversity compare", description="Two experiments side by side.")
    parser.add_argument("first", metavar="A", help=TARGET_HELP)
    parser.add_argument("second", metavar="B")
    parser.add_argument("--score", metavar="EVALUATOR/SPLIT/METRIC", help="default: the primary one of both, else the first")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page with both lines of every arm")
    parser.add_argument("--cells", action="store_true", help="also list every cell that both have")
    return parser.parse_args(argv)


@tool("compare")
def main(argv: list[str] | None = None) -> int:
    """Print the comparison and return the exit code."""
    given = arguments(argv)
    (a, first), (b, second) = read_scored(given.first), read_scored(given.second)
    score, first, second = one_score(first, second, given.score)
    better = "higher is better" if first[0]["higher_is_better"] else "lower is better"
    print(f"A: {a}\nB: {b}\nscore: {score} ({better})\n")
    arms, cells = compare_arms(first, second), compare_cells(first, second)
    print("\n".join(arm_lines(arms)))
    print("\n" + "\n".join(cell_lines(cells, list_all=given.cells)))
    if given.html:
        from ray_jobs.report.page import write
        from ray_jobs.report.side_by_side import page

        write(given.html, page((a, b), score, (first, second), arms, cells, cell_lines(cells)))
        print(f"\npage: {given.html}")
    return 0


def arm_lines(arms: Sequence[ComparedArm]) -> list[str]:
    """Return the table of slopes, change of the score from level 0 to 1."""
    if not arms:
        return ["No arm has three scored levels in both: there are no slopes to compare."]
    rows = [["slope, level 0 to 1", "size", "A", "B", "B less A", "95% interval", "p", "Holm"]]
    for arm in arms:
        low, high = arm.difference.interval()
        slopes = [f"{slope.estimate:+.4g} ± {slope.se:.2g}" for slope in (arm.first, arm.second)]
        rows.append([arm_name(arm.strategy, arm.control), f"{arm.size:,}", *slopes, f"{arm.difference.estimate:+.4g}"])
        rows[-1] += [f"{low:+.4g} to {high:+.4g}", *(_small(p) for p in (arm.difference.p, arm.p_holm))]
    return columns(rows)


def _small(p: float) -> str:
    return "" if p != p else "< 0.001" if p < 0.001 else f"{p:.3f}"


def cell_lines(compared: ComparedCells, list_all: bool = False) -> list[str]:
    """Return what is said of the cells that both have."""
    lines = [f"{len(compared.cells)} datasets are scored in both, of {compared.seeds} sets of subset seeds that share none."]
    if compared.difference is not None:
        lines.append(f"Mean of B less A over seeds: {told(compared.difference)}.")
    if compared.correlation == compared.correlation:
        lines.append(f"Correlation of A's scores with B's over datasets: {compared.correlation:.2f}.")
    if list_all and compared.cells:
        lines += ["", *columns([["cell", "A", "B"], *([cell, f"{a:.5g}", f"{b:.5g}"] for cell, a, b in compared.cells)])]
    return lines


def told(difference: Slope) -> str:
    """Return a difference with its interval in words that claim no more than that."""
    low, high = difference.interval()
    if low != low:
        return f"{difference.estimate:+.4g}"
    text = f"{difference.estimate:+.4g} (95% interval {low:+.4g} to {high:+.4g})"
    return text if not low <= 0 <= high else f"{text}: none is shown"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of text with aligned columns, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    aligned = ([text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))] for row in rows)
    return ["  ".join(row).rstrip() for row in aligned]


if __name__ == "__main__":
    raise SystemExit(main())
