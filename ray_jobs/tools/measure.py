"""Posterior metrics of any files or sealed datasets, side by side: `sft-diversity measure FILE… [flags]`.

    sft-diversity measure mine.jsonl hf://owner/name runs/datasets/0f3c… --all --parquet metrics.parquet

Needs no cluster. Every dataset is read whole into memory, since each metric is exact over all of it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diversity.cell import SIDES
from diversity.config import ConfigError, UserError, parse
from diversity.metrics import METRICS, PAPER_METRICS
from diversity.metrics.measuring import measure_datasets, read_dataset, side_by_side
from diversity.typings.embedders import EmbedderConfig, embed
from diversity.typings.encoders import Encoder, WordEncoder, load_encoder
from diversity.typings.tokens import CHECKED, WORD
from ray_jobs.job.process import cache_folder
from ray_jobs.job.runtime import tool
from ray_jobs.tools.flags import COLUMNS_HELP, columns_of, told_by_flags
from training.model_source import resolve_model


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(prog="sft-diversity measure", description="Posterior diversity metrics of datasets, side by side.")
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="files, folders, globs or URIs as ingest reads them, or sealed dataset folders"
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--metrics", nargs="+", metavar="NAME", help=f"of {', '.join(METRICS)}; default: the paper's {len(PAPER_METRICS)}")
    chosen.add_argument("--all", action="store_true", help="every metric there is; those of neighbours take time quadratic in the samples")
    parser.add_argument("--side", choices=SIDES, action="append", help="one side only; default both")
    parser.add_argument("--model", default="builtin:smollm2-135m", help="whose tokenizer counts tokens: built in, a folder or a hub id")
    parser.add_argument("--unit", default="", help="count by another unit: `word`, or a tiktoken encoding such as cl100k_base")
    parser.add_argument("--embedder", default="static", help="static, transformer, or none")
    parser.add_argument("--embedder-model", help="folder or hub id for --embedder transformer")
    parser.add_argument("--columns", metavar="MAPPING", help=COLUMNS_HELP)
    parser.add_argument(
        "--matched", type=int, metavar="T", help="also over the first T tokens of each; default: of the smallest, where there are several"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random order behind the matched variants")
    parser.add_argument("--json", action="store_true", help="print rows as JSON instead of a table")
    parser.add_argument("--parquet", type=Path, metavar="PATH", help="also write the rows to a parquet file")
    return parser.parse_args(argv)


@tool("measure")
def main(argv: list[str] | None = None) -> int:
    """Measure the files and print the table; return the exit code."""
    given = arguments(argv)
    if given.matched is not None and given.matched < 1:
        raise ConfigError(f"--matched {given.matched}: give a number of tokens from 1 on")
    if given.embedder_model is not None and given.embedder != "transformer":
        raise ConfigError(f"--embedder-model is of --embedder transformer, not of {given.embedder}")
    table = _measure(given)
    if given.json:
        rows = [{**row, "value": None if math.isnan(row["value"]) else row["value"]} for row in table.to_pylist()]
        print(json.dumps(rows, ensure_ascii=False, indent=1))
    else:
        print(side_by_side(table))
    if given.parquet:
        try:
            given.parquet.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, given.parquet)
        except OSError as error:
            raise UserError(f"can't write {given.parquet}: {error.strerror or error}") from None
    return 0


def _measure(given: argparse.Namespace) -> pa.Table:
    columns = columns_of(given.columns)
    with told_by_flags():
        datasets = [read_dataset(path, columns) for path in dict.fromkeys(given.files)]
    for one in datasets:
        print(f"{one.name}: {len(one.samples):,} samples{f'; {one.note}' if one.note else ''}", file=sys.stderr)
    embedder = _embedder(given.embedder, given.embedder_model)
    everything = [name for name, metric in METRICS.items() if embedder or metric.needs != "embeddings"]
    first = datasets[0].samples["response"][:CHECKED].to_pylist()
    return measure_datasets(
        datasets,
        _encoders(given.unit, given.model, first),
        embedder,
        metrics=everything if given.all else given.metrics,
        sides=given.side or SIDES,
        matched=True if given.matched is None else given.matched,
        seed=given.seed,
    )


def _encoders(unit: str, model: str, check_on: Sequence[str]) -> Callable[[], Encoder]:
    """Return what makes the tokenizer; words are numbered anew for every dataset and side."""
    if unit == WORD:
        return WordEncoder
    folder = None if unit else resolve_model(model, cache_folder(), tokenizer_only=True)
    return cache(partial(load_encoder, unit, folder, check_on=check_on))


def _embedder(name: str, model: str | None) -> Callable[[Sequence[str]], np.ndarray] | None:
    if name == "none":
        return None
    return partial(embed, config=parse(EmbedderConfig, {"name": name, "model": model}))


if __name__ == "__main__":
    raise SystemExit(main())
