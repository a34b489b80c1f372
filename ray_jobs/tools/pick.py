"""Choose a dataset out of any file, without a config: `sft-diversity pick DATA --size 10000 [flags]`.

    sft-diversity pick mine.jsonl --size 1000 --out picked.jsonl
    sft-diversity pick 'data/*.parquet' --size 10000 --strategy response-meso --level 0.5 --format llama-factory --out folder

It composes an experiment of two cells, the one asked for and `random` of the same size to compare it with, and runs the stages. They seal
what they make in a storage folder, so that a second pick from the same data begins with its profile.
"""

from __future__ import annotations

import argparse
import logging
import posixpath
import time
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from diversity.artifact import Artifact, digest
from diversity.cell import CONTROLS, TYPINGS, Cell, is_typing
from diversity.config import ConfigError, near_matches, parse
from diversity.datasets.export import FORMATS, export, export_file, refuse_used
from diversity.metrics.measuring import MEASURED_SCHEMA, side_by_side
from diversity.selection.strategies import STRATEGIES
from ray_jobs import build_datasets, profile_corpus
from ray_jobs.job.experiment import Experiment, resolve_paths
from ray_jobs.job.process import cache_folder
from ray_jobs.job.runtime import Context, absolute, inside_job, run_stage, tool
from ray_jobs.tools.export import summary
from ray_jobs.tools.flags import COLUMNS_HELP, amount_of, columns_of, size_of, told_by_flags

logger = logging.getLogger(__name__)

STAGES = ("ingest", "profile_corpus", "build_datasets")
FILES = {".jsonl": "jsonl", ".parquet": "hf"}
PACKED = (".gz", ".bz2", ".zst")
SOURCES_SHOWN = 12
LONGER = 1.05  # times random's mean response length from which on the flag that holds it is named


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(prog="sft-diversity pick", description="Choose a dataset of an exact size out of any file.")
    parser.add_argument("data", nargs="+", metavar="DATA", help="files, folders, globs or URIs, as ingest reads them")
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument("--size", metavar="N", help="samples, exactly: 10000, 20k, or a share of the corpus such as 10%%")
    amount.add_argument("--tokens", metavar="T", help="response tokens in all, e.g. 2M, instead of samples; it sets --control tokens")
    parser.add_argument("--strategy", default="response-micro", help=f"{', '.join([*TYPINGS, *STRATEGIES])}")
    parser.add_argument("--level", help="nominal diversity from 0 to 1, e.g. 0.5 or 1/3; default 1")
    parser.add_argument("--seed", type=int, default=0, help="the subset seed")
    parser.add_argument("--control", default="none", help=f"what is held fixed beside the size: {', '.join(CONTROLS)}")
    parser.add_argument("--band", type=int, nargs=2, metavar=("LOW", "HIGH"), help="document frequencies of the tokens that count")
    parser.add_argument("--rho", type=float, default=1.5, help="how many times the size the pool of level 0 holds")
    parser.add_argument("--model", default="builtin:smollm2-135m", help="whose tokens are counted: built in, a folder or a hub id")
    parser.add_argument("--columns", metavar="MAPPING", help=COLUMNS_HELP)
    parser.add_argument("--max-rejected", type=float, default=0.05, help="largest share of rows that may be unusable")
    parser.add_argument("--min-score", type=float, metavar="X", help="leave out samples whose score, by --columns or --scorer, is lower")
    parser.add_argument("--scorer", choices=["ifd"], help="score every sample with --model, e.g. for --control score-quota")
    parser.add_argument("--out", metavar="FILE", help="a file (.jsonl, .parquet; .jsonl.gz …), or with --format a folder")
    parser.add_argument("--format", help=f"{', '.join(FORMATS)}")
    parser.add_argument("--leave-out", action="store_true", help="leave out, and count, samples that the format can't hold")
    parser.add_argument("--overwrite", action="store_true", help="write over what is there")
    parser.add_argument("--storage", help="where profiles and datasets are sealed; default: this machine's cache")
    return parser.parse_args(argv)


@tool("pick")
def main(argv: list[str] | None = None) -> int:
    """Pick, print what was picked, and write it; return the exit code."""
    pick(arguments(argv))
    return 0


def pick(given: argparse.Namespace) -> Artifact:
    """Run the stages, print the tables, write the file, and return the sealed dataset.

    Raises:
        UserError: what can't be had, as early as it is known.
    """
    started = time.perf_counter()
    out, format = _target(given)
    _amount(given)
    with told_by_flags():
        context = Context(compose(given), Path("pick"))
    context.storage.check_writable()
    with told_by_flags():
        run_stage(context, "ingest")
        if given.scorer and given.min_score is not None:
            run_stage(context, "profile_corpus")  # it leaves out what scores too low
    samples = profile_corpus.corpus_artifact(context).manifest["samples"]
    size = _size(given, context, samples)
    context = Context(compose(given, size), Path("pick"))
    if size > samples:
        if not is_typing(given.strategy):
            raise ConfigError(f"--size {size}: the data has {samples} usable samples; the largest size is {samples}")
        context = Context(compose(given, size, alone=True), Path("pick"))  # what can be had follows from the profile; the planner says it
    for stage in STAGES[1:]:
        run_stage(context, stage)
    cell, *others = context.experiment.cells
    print("\n\n".join(report(context, cell, others[0] if others else None)))
    dataset = build_datasets.dataset_artifact(context, cell)
    print(f"\nsealed: {dataset.uri}")
    if out is not None:
        print(_written(dataset, cell, out, format, given))
    if others:
        random = build_datasets.dataset_artifact(context, others[0])
        print(f"\n{gained(cell, dataset.manifest, random.manifest)}")
    logger.info("pick: done in %.0f s", time.perf_counter() - started)
    return dataset


def _amount(given: argparse.Namespace) -> None:
    """Check what is asked for before anything is read.

    Raises:
        ConfigError: no size and no number of tokens.
    """
    if given.tokens is None:
        size_of(given.size)
    else:
        amount_of(given.tokens, "--tokens")


def _size(given: argparse.Namespace, context: Context, samples: int) -> int:
    """Return how many samples are asked for; a number of tokens, as the size whose share of the corpus's response tokens it is."""
    if given.tokens is None:
        size = size_of(given.size)
        return size if isinstance(size, int) else max(1, int(size * samples))
    run_stage(context, "profile_corpus")
    lengths = profile_corpus.profile_artifact(context, "response-micro").read(columns=["tokens"]).column("tokens")
    wanted, total = amount_of(given.tokens, "--tokens"), int(pc.sum(lengths).as_py() or 0)
    if wanted > total:
        raise ConfigError(f"--tokens {given.tokens}: the data has {total:,} response tokens")
    if wanted * samples < total:
        least = -(-total // samples)
        raise ConfigError(f"--tokens {given.tokens}: the data's mean response is longer; the least is {least:,} response tokens")
    return wanted * samples // total


def compose(given: argparse.Namespace, size: int = 1, *, alone: bool = False) -> Experiment:
    """Return the experiment of a command line: the cell asked for, and random of the same size; only the typings that they need.

    Args:
        given: from `arguments`.
        size: how many samples that is.
        alone: without the cell of `random`.

    Raises:
        ConfigError: an unknown strategy, or a level that there isn't.
    """
    strategy, level = given.strategy, _level(given.strategy, given.level)
    if given.tokens is not None and given.control not in ("none", "tokens"):
        raise ConfigError(f"--tokens: a number of tokens is itself the control `tokens`; --control {given.control} goes with --size")
    control = "tokens" if given.tokens is not None else given.control
    band = {"low": given.band[0], "high": given.band[1]} if given.band else {"scaled": True}
    corpus = {"paths": given.data, "columns": columns_of(given.columns), "max_rejected": given.max_rejected}
    scorer = {"name": given.scorer, "min_score": given.min_score} if given.scorer else None
    if given.min_score is not None and scorer is None:
        corpus["min_score"] = given.min_score
        if "score" not in (corpus["columns"] or {}):
            raise ConfigError("--min-score: say which column holds the score, e.g. --columns '{score: rating}', or --scorer ifd")
    values: dict[str, Any] = {
        "experiment": "pick",
        "storage": given.storage or str(cache_folder() / "picks"),
        "stages": list(STAGES),
        "corpus": corpus,
        "model": given.model,
        "profile": {"typings": [], "embeddings": "needed", "band": band, "scorer": scorer},
        "selection": {"rho": given.rho},
        "grid": {
            "strategies": list(dict.fromkeys([strategy, *([] if alone else ["random"])])),
            "sizes": [size],
            "levels": [level],
            "subset_seeds": [given.seed],
            "controls": [control],
        },
        "evaluation": {"heldout": None},
    }
    if is_typing(strategy) and control.endswith("-quota"):
        values["grid"]["random_quota_from"] = strategy
    resolved = resolve_paths(values, inside_job=inside_job())
    name = digest({"corpus": resolved["corpus"], "model": resolved["model"]})
    return parse(Experiment, {**resolved, "experiment": f"pick-{name[:12]}"})


def _level(strategy: str, written: str | None) -> Fraction:
    """Return the level to ask for; without meaning, and 1, where the strategy has no dial."""
    if not is_typing(strategy) and strategy not in STRATEGIES:
        raise ConfigError(f"--strategy: unknown strategy {strategy!r}{near_matches(strategy, [*TYPINGS, *STRATEGIES])}")
    if written is None:
        return Fraction(1)
    if not is_typing(strategy) and not STRATEGIES[strategy].dial:
        dialled = ", ".join([*TYPINGS, *(name for name, entry in STRATEGIES.items() if entry.dial)])
        raise ConfigError(f"--level: strategy {strategy} has no dial; {dialled} have")
    try:
        level = Fraction(written)
    except (ValueError, ZeroDivisionError):
        level = Fraction(-1)
    if not 0 <= level <= 1:
        raise ConfigError(f"--level {written}: a level is a fraction from 0 to 1, e.g. 0.5 or 1/3")
    return level


def _target(given: argparse.Namespace) -> tuple[str | None, str]:
    """Return where and in which format to write, having refused what could not be written in the end.

    Raises:
        UserError: an unknown format, a file that is there, or a folder that is in use.
    """
    if given.format is not None and given.format not in FORMATS:
        raise ConfigError(f"--format: unknown format {given.format!r}{near_matches(given.format, FORMATS)}")
    if given.out is None:
        if given.format is not None:
            raise ConfigError("--format: say where to with --out")
        return None, ""
    out = absolute(given.out)
    suffix = _suffix(out)
    if suffix is None and given.format is None:
        raise ConfigError(f"--out {given.out}: a file ends in {' or '.join(FILES)}; for a folder say --format {'|'.join(FORMATS)}")
    format = given.format or FILES[suffix or ""]
    if suffix is not None and FORMATS[format].suffix != suffix:
        raise ConfigError(f"--out {given.out}: {format} is written as {FORMATS[format].suffix}")
    refuse_used(out, given.overwrite)
    return out, format


def _suffix(path: str) -> str | None:
    """Return the ending that makes a path a file, or None."""
    stem = next((path.removesuffix(packed) for packed in PACKED if path.endswith(f".jsonl{packed}")), path)
    suffix = posixpath.splitext(stem)[1]
    return suffix if suffix in FILES else None


def _written(dataset: Artifact, cell: Cell, out: str, format: str, given: argparse.Namespace) -> str:
    """Write the dataset where it was asked for, and say so."""
    if _suffix(out) is None:
        options = {"leave_out": given.leave_out, "overwrite": given.overwrite}
        return summary(export({cell.name: dataset}, format, out, **options), format, out)
    samples, left_out = export_file(dataset, out, format, leave_out=given.leave_out, overwrite=given.overwrite)
    lines = [f"{out}: {samples:,} samples as {format}"]
    return "\n".join([*lines, *(f"{count:,} left out: {reason}" for reason, count in left_out.most_common())])


def report(context: Context, cell: Cell, random: Cell | None) -> list[str]:
    """Return tables of what was picked beside random of the same size: posterior metrics, coverage, mix of sources."""
    shown = {"random": random, "pick": cell} if random is not None else {"pick": cell}
    manifests = {name: build_datasets.dataset_artifact(context, one).manifest for name, one in shown.items()}
    corpus = profile_corpus.corpus_artifact(context).manifest
    measured = [_metrics(build_datasets.metrics_artifact(context, one), name) for name, one in shown.items()]
    return [side_by_side(pa.concat_tables(measured)), *_composition(manifests, corpus)]


def _metrics(artifact: Artifact, name: str) -> pa.Table:
    table = artifact.read()
    return table.add_column(0, MEASURED_SCHEMA.field("dataset"), pa.array([name] * len(table), pa.string()))


def _composition(manifests: dict[str, dict[str, Any]], corpus: dict[str, Any]) -> list[str]:
    """Return a table of amounts and coverage, and one of sources."""
    names = list(manifests)
    target = manifests["pick"].get("target")
    amounts = [["", "corpus", *names], ["samples", f"{corpus['samples']:,}", *(f"{one['samples']:,}" for one in manifests.values())]]
    for side in manifests["pick"]["tokens"]:
        amounts.append([f"{side} tokens a sample", "", *(f"{one['tokens'][side] / one['samples']:.1f}" for one in manifests.values())])
    for typing in manifests["pick"]["coverage"]:
        amounts.append([f"coverage of {typing}", "100%", *(f"{one['coverage'][typing]:.1%}" for one in manifests.values())])
    if any("score" in one for one in manifests.values()):
        means = [one.get("score", {}).get("mean") for one in manifests.values()]
        amounts.append(["mean score", "", *("" if mean is None else f"{mean:.3f}" for mean in means)])
    if target:
        for what, figure in (("types kept", "k_realised"), ("types covered", "covered"), ("at most possible", "bound")):
            amounts.append([what, f"{target['M']:,}" if figure == "k_realised" else "", *[""] * (len(names) - 1), f"{target[figure]:,}"])
    mix = [["source", "corpus", *names]]
    largest = sorted(manifests["pick"]["sources"].items(), key=lambda entry: (-entry[1], entry[0]))
    for source, _ in largest[:SOURCES_SHOWN]:
        known = corpus["sources"].get(source, 0)
        shares = [one["sources"].get(source, 0) / one["samples"] for one in manifests.values()]
        mix.append([source, f"{known / corpus['samples']:.1%}", *(f"{share:.1%}" for share in shares)])
    left = len(corpus["sources"]) - len(mix) + 1
    return [_aligned(amounts), _aligned(mix) + (f"\nand {left} more sources" if left > 0 else "")]


def gained(cell: Cell, pick: Mapping[str, Any], random: Mapping[str, Any]) -> str:
    """Return what a pick has that random of the same size has not, by their manifests, and what holds the length where it grew."""
    said = []
    typing = cell.typing or "response-micro"
    if typing in pick["coverage"]:
        said.append(f"The pick covers {pick['coverage'][typing]:.1%} of {typing}, random of the same size {random['coverage'][typing]:.1%}")
    length, other = (one["tokens"]["response"] / one["samples"] for one in (pick, random))
    times = length / other
    said.append(
        f"{'i' if said else 'I'}ts responses have {length:,.0f} tokens where random's have {other:,.0f} ({times:.1f} times as long)"
    )
    said.append(f"so it holds {pick['tokens']['response']:,} response tokens and random {random['tokens']['response']:,}")
    sentence = "; ".join(said) + "."
    target = pick.get("target")
    if target and pick["coverage"][typing] < random["coverage"][typing]:
        sentence += f" At this level it keeps {target['k_realised']:,} of {target['M']:,} types; --level 1 keeps all."
    if times > LONGER and cell.control == "none":
        flag = "--control length-quota --rho 3 holds the lengths, --control tokens the amount of text" if cell.typing else ""
        sentence += f"\nLonger responses alone change what a model learns: {flag or 'this strategy obeys no control that holds length'}."
    return sentence


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines
    )


if __name__ == "__main__":
    raise SystemExit(main())
