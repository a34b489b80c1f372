"""Answers and verdicts in the files of AlpacaEval and Arena-Hard: `sft-diversity judgments …`.

    sft-diversity judgments CONFIG.yaml [key=value …] --export alpaca-eval|arena-hard --to FOLDER
    sft-diversity judgments --import annotations.json [--gamed df_gamed.csv]
    sft-diversity judgments --import model_judgment/JUDGE/MODEL.jsonl

Export writes everyone's answers and, for alpaca-eval, every judge's annotations against the first baseline. Import reads AlpacaEval's
annotations, or Arena-Hard's judgments (JSON lines), and prints their win rates, ours and the tool's own. Answers that others gave come in
by `judging.answerers` (`files`).
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from diversity.config import ConfigError, UserError
from diversity.judging import alpaca_eval, arena_hard, exchange
from diversity.judging.rubrics import load_rubric
from diversity.judging.summary import METRICS, prompt_scores
from diversity.judging.verdicts import outcomes
from ray_jobs.job.experiment import load_experiment
from ray_jobs.job.runtime import Context, inside_job, tool
from ray_jobs.judge import contest_of
from ray_jobs.tasks.contest import Contest


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(prog="sft-diversity judgments", description="AlpacaEval's and Arena-Hard's files, in and out.")
    parser.add_argument("config", nargs="*", help="CONFIG.yaml and key=value …, to export")
    parser.add_argument("--export", choices=exchange.FORMATS, help="write answers, and annotations of alpaca-eval")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="where they go")
    parser.add_argument("--import", dest="read", type=Path, metavar="FILE", help="AlpacaEval's annotations.json, Arena-Hard's judgments")
    parser.add_argument("--gamed", type=Path, metavar="FILE", help="AlpacaEval's df_gamed.csv, for its length-controlled rates in full")
    return parser.parse_intermixed_args(argv)


@tool("judgments")
def main(argv: Sequence[str] | None = None) -> int:
    """Export or import, and return the exit code."""
    given = arguments(argv)
    if (given.read is None) == (given.export is None):
        raise ConfigError("give one of --export (with CONFIG.yaml and --to) and --import")
    if given.read is not None:
        lines = judged_lines(given.read) if given.read.suffix == ".jsonl" else imported(given.read, given.gamed)
        print("\n".join(lines))
        return 0
    if not given.config or given.to is None:
        raise ConfigError("--export needs CONFIG.yaml and --to FOLDER")
    path, *overrides = given.config
    context = Context(load_experiment(Path(path), overrides, inside_job=inside_job()), Path(path), tuple(overrides))
    for written in exported(contest_of(context), given.export, given.to):
        print(written)
    return 0


def exported(contest: Contest, form: str, folder: Path) -> list[Path]:
    """Write everyone's answers, and annotations where the format has them, and return the files."""
    written = []
    for one in contest.answerers:
        place = folder / one.name
        if form == "arena-hard":
            written.append(folder / "model_answer" / f"{one.name}.jsonl")
            exchange.write_lines(written[-1], exchange.arena_answers(contest.prompts, one.table(), one.name), lines=True)
            continue
        written.append(place / "model_outputs.json")
        exchange.write_lines(written[-1], exchange.alpaca_outputs(contest.prompts, one.table(), one.name), lines=False)
        baseline = contest.baselines[0]
        for judge in contest.config.judges:
            rubric = load_rubric(judge.rubric)
            verdicts = contest.verdicts(judge, rubric, one.answers.fingerprint, baseline.answers.fingerprint)
            if verdicts.sealed:
                named = {"generator": one.name, "against": baseline.name, "annotator": judge.name}
                rows = exchange.alpaca_annotations(contest.prompts, one.table(), baseline.table(), verdicts.read(), **named)
                written.append(place / judge.name / "annotations.json")
                exchange.write_lines(written[-1], rows, lines=False)
    return written


def imported(path: Path, gamed: Path | None) -> list[str]:
    """Return the figures of AlpacaEval's annotations, ours and its own, in lines."""
    verdicts, facts = exchange.read_annotations(path)
    lines = _ours(verdicts, facts, METRICS)
    lines += [f"AlpacaEval's {name:<23} {value:7.2f}" for name, value in facts["alpaca_eval"].items()]
    baseline_lengths, lengths = exchange.lengths(path)
    known = None if gamed is None else _gamed(gamed)
    for variant in alpaca_eval.VARIANTS if known else ["length_controlled_minimal"]:
        values = np.array([np.nan if value is None else value for value in verdicts["score"].to_pylist()])
        try:
            fitted = alpaca_eval.length_controlled(values, baseline_lengths, lengths, known, variant)
            lines.append(f"AlpacaEval's {variant:<23} {fitted['length_controlled_winrate']:7.2f}")
        except UserError as error:
            lines.append(f"AlpacaEval's {variant}: not defined, {error}")
    return lines


def _gamed(path: Path) -> alpaca_eval.Gamed:
    """Return what AlpacaEval's df_gamed.csv holds."""
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            return alpaca_eval.Gamed.of(list(csv.DictReader(stream)))
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        raise exchange.ExchangeError(f"{path} is no df_gamed.csv of AlpacaEval: {type(error).__name__}: {error}") from None


def judged_lines(path: Path) -> list[str]:
    """Return the figures of Arena-Hard's judgments, ours and its own, in lines."""
    verdicts, facts = arena_hard.read_judgments(path)
    controlled = [name for name in METRICS if name.endswith("_controlled")]
    lines = _ours(verdicts, facts, [name for name in METRICS if facts["lengths"] or name not in controlled])
    lines.append(f"Arena-Hard's score                   {facts['arena_hard']:7.2f}  (prompts with both verdicts)")
    if not facts["lengths"]:
        lines.append("length and style are not known: there is no model_answer/ with both sides' answers beside model_judgment/")
    return lines


def _ours(verdicts: pa.Table, facts: Mapping[str, Any], metrics: Iterable[str]) -> list[str]:
    """Return who is compared with whom, what became of the verdicts, and our figures, in lines."""
    told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in outcomes(verdicts).items() if count)
    lines = [
        f"{facts['model']} against {facts['baseline']}, annotated by {', '.join(facts['annotators'])}: {verdicts.num_rows} rows ({told})"
    ]
    scores = prompt_scores(verdicts)
    for name in metrics if len(scores) else ():
        one = METRICS[name](scores)
        lines.append(f"{name:<36} {100 * one.value:7.2f}  95% {100 * one.low:.2f} to {100 * one.high:.2f}  ({one.n} prompts)")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
