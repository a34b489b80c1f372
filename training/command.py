"""`python -m training.sft DATASET --model …`: one fine-tuning without Ray, alone or under torchrun."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed as dist
import yaml

from diversity.config import ConfigError, UserError, parse
from training import sft
from training.checkpoint import FolderCheckpoints, export
from training.config import SftConfig
from training.evaluators import EvaluationConfig, EvaluatorConfig, Subject, evaluate
from training.model_source import resolve_model

EPILOG = "examples: --set budget='{response_tokens: 4096}' --set lr=1e-4 --set zero='{stage: 2}'"


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(prog="python -m training.sft", description=__doc__, epilog=EPILOG)
    parser.add_argument("dataset", type=Path, help="a parquet file, or the folder of a dataset")
    parser.add_argument("--model", default="builtin:smollm2-135m", help="builtin:smollm2-135m, a folder, or a hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder for hf/, train.parquet and scores.json; checkpoints lie there too")
    parser.add_argument("--heldout", type=Path, help="parquet file or folder of samples to score the model on")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="a key of the sft section, value as YAML")
    parser.add_argument("--seed", type=int, default=0, help="of data order")
    default_cache = Path(os.environ.get("SFT_DIVERSITY_CACHE") or Path.home() / ".cache" / "sft-diversity")
    parser.add_argument("--cache", type=Path, default=default_cache, help="node-local folder for models (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Train, export and score; return the exit code. What a person can mend is told in one line."""
    given = arguments(argv)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logging.getLogger("training").setLevel(logging.INFO)
    try:
        run(given)
    except UserError as error:
        print(f"training.sft: {error}", file=sys.stderr)
        return error.exit_code
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


def run(given: argparse.Namespace) -> None:
    """Do what the command line asks.

    Raises:
        UserError: anything that can't be used.
    """
    config = configured(given.set)
    samples = read_samples(given.dataset)
    folder = resolve_model(given.model, given.cache)
    world = sft.init_process_group()
    if world.size != config.world_size and any(one.startswith("world_size=") for one in given.set):
        raise ConfigError(f"world_size={config.world_size}, but {world.size} processes run: use torchrun --nproc-per-node")
    checkpoints = FolderCheckpoints(given.out / "checkpoints")
    trained = sft.train(samples, folder, config, seed=given.seed, world=world, checkpoints=checkpoints, label=given.dataset.stem)
    part = given.out / "hf.part"
    export(trained.engine, trained.chat, folder, part, config.lora)
    scores: list[dict[str, object]] = []
    if given.heldout:
        splits = {"in": read_samples(given.heldout)}
        subject = Subject(trained.engine, trained.chat, world, splits, config.max_length, config.capacity)
        scores = evaluate(subject, EvaluationConfig(evaluators=[EvaluatorConfig(name="nll")]), given.dataset.stem)[0].to_pylist()
    if world.main:
        pq.write_table(sft.train_table(trained.rows), given.out / "train.parquet")
        (given.out / "scores.json").write_text(json.dumps({"summary": trained.summary, "scores": scores}, indent=1), "utf-8")
        shutil.rmtree(given.out / "hf", ignore_errors=True)
        part.rename(given.out / "hf")
        for score in scores:
            print(f"{score['split']} {score['metric']} {score['value']:.4f} ± {score['se']:.4f} (n = {score['n']})")
        print(given.out / "hf")
    checkpoints.clear()


def configured(settings: list[str]) -> SftConfig:
    """Return the sft section that `key=value` settings make.

    Raises:
        ConfigError: a setting that can't be used.
    """
    values = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting!r}: give key=value")
        values[key] = yaml.safe_load(text)
    return parse(SftConfig, values)


def read_samples(path: Path) -> pa.Table:
    """Return sample_id and messages of a parquet file, or of a dataset's folder.

    Raises:
        ConfigError: there is no such file, or it holds other columns.
    """
    source = path / "data" if (path / "data").is_dir() else path
    if not source.exists():
        raise ConfigError(f"there is no dataset {path}")
    columns = pq.ParquetDataset(source).schema.names
    if missing := {"sample_id", "messages"} - set(columns):
        raise ConfigError(f"{path} has no column {' and '.join(sorted(missing))}: a dataset of build_datasets is wanted")
    return pq.read_table(source, columns=["sample_id", "messages"])
