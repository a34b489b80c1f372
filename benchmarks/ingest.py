"""Ingest of growing JSONL files: time, throughput and memory, `python -m benchmarks.ingest [--megabytes 200 1000] [--packed]`.

The file is made up (a fifth of its rows twice, one in a hundred unusable), or repeats the rows of `--corpus` under ids of their own. The
real stage `ingest` runs on a cluster that is up already. Memory must not grow with the file: neither a worker's nor the driver's.

Beside it, in processes of their own in the same run: pyarrow's JSON reader and `datasets`, which parse the file and neither hash, sort,
check nor remove duplicates.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import ray
import yaml

from benchmarks.metrics import made_up
from benchmarks.tokens import PeakMemory, own_bytes
from diversity.corpus.config import CorpusConfig
from diversity.corpus.inputs import read_corpus
from ray_jobs import ingest
from ray_jobs.job.experiment import load_experiment
from ray_jobs.job.process import configure_process
from ray_jobs.job.runtime import Context

BESIDE = {
    "pyarrow.json": "import pyarrow.json as reader\nfor batch in reader.open_json(path):\n    rows += len(batch)",
    "datasets": "import datasets\nrows = len(datasets.load_dataset('json', data_files=path, split='train', cache_dir=path + '.cache'))",
    "ingest in one process": "from diversity.corpus.inputs import CorpusConfig, read_corpus\n"
    "rows = read_corpus(CorpusConfig(paths=[path]))[2].rows_read",
}
MEASURED = """import sys, time
path, rows, begun = sys.argv[1], 0, time.perf_counter()
{code}
took = time.perf_counter() - begun
peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]
print(rows, took, time.process_time(), int(peak) / 1e3)"""


def beside(path: Path) -> dict[str, tuple[int, float, float, float]]:
    """Return (rows, seconds, seconds of processor time, peak MB) of reading a file, imports included, each in a process of its own."""
    found = {}
    for name, code in BESIDE.items():
        done = subprocess.run([sys.executable, "-c", MEASURED.format(code=code), str(path)], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name}: {done.stderr.strip().splitlines()[-1]}")
            continue
        rows, took, cpu, peak = done.stdout.split()[-4:]
        found[name] = (int(rows), float(took), float(cpu), float(peak))
        shutil.rmtree(f"{path}.cache", ignore_errors=True)
    return found


def lines(corpus: str | None) -> list[tuple[str, str]]:
    """Return pairs of instruction and response that rows are made of."""
    if corpus:
        table = read_corpus(CorpusConfig(paths=[corpus]))[0]
        return list(zip(table["instruction"].to_pylist(), table["response"].to_pylist(), strict=True))
    texts = made_up(20_000, np.random.default_rng(0))
    return list(zip(texts[:10_000], texts[10_000:], strict=True))


def write(path: Path, pairs: list[tuple[str, str]], megabytes: int) -> int:
    """Write a JSONL file of about so many megabytes before packing; return its rows."""
    rows = size = 0
    with gzip.open(path, "wt", 1) if path.suffix == ".gz" else path.open("w") as out:
        while size < megabytes * 1_000_000:
            asked, answered = pairs[rows % len(pairs)]
            number = rows - rows % 5 // 4  # every fifth row repeats the one before
            if number != rows:
                asked, answered = pairs[number % len(pairs)]
            row = {"instruction": f"{asked} ({number})", "output": answered} if rows % 100 != 50 else {"instruction": asked}
            line = json.dumps(row) + "\n"
            out.write(line)
            size += len(line)
            rows += 1
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", help="a file that ingest reads, whose rows are repeated; default: made-up rows")
    parser.add_argument("--megabytes", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--packed", action="store_true", help="gzip, which can't be read in parts")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(argv)
    configure_process()
    folder = Path(tempfile.mkdtemp(prefix="ingest-"))
    try:
        measure(given, folder)
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def measure(given: argparse.Namespace, folder: Path) -> None:
    """Print a line for each size."""
    pairs = lines(given.corpus)
    path, config = folder / f"rows.jsonl{'.gz' * given.packed}", folder / "ingest.yaml"
    settings = {"experiment": "e", "storage": f"{folder}/runs", "corpus": {"paths": [str(path)]}, "resources": {"num_cpus": given.threads}}
    config.write_text(yaml.safe_dump(settings))
    heads = ["MB", "rows", "samples", "duplicates", "rejected", "s", "MB/s", "worker", "driver"]
    points = []
    for megabytes in given.megabytes:
        rows = write(path, pairs, megabytes)
        context = Context(load_experiment(config, [], inside_job=False), config)
        context.connect()
        ray.get(ray.remote(lambda: None).remote())  # a worker has started
        before, begun = own_bytes(psutil.Process()), time.perf_counter()
        with PeakMemory() as memory:
            ingest.run(context)
        took = time.perf_counter() - begun
        found = context.index.get("ingested").manifest
        assert found["rows_read"] == rows == found["samples"] + found["duplicates"] + found["rejected"]
        if not points:
            print(" ".join(f"{head:>11}" for head in heads))
        grown = own_bytes(psutil.Process()) - before
        cells = [f"{megabytes:,}", f"{rows:,}", f"{found['samples']:,}", f"{found['duplicates']:,}", f"{found['rejected']:,}"]
        cells += [f"{took:.1f}", f"{megabytes / took:.1f}", f"{memory.peak / 1e6:.0f} MB", f"+{max(grown, 0) / 1e6:.0f} MB"]
        print(" ".join(f"{cell:>11}" for cell in cells), flush=True)
        points.append((megabytes, took))
        for name, (others, seconds, cpu, peak) in beside(path).items():
            per_second = f"{others / seconds:,.0f} rows/s, {others / cpu:,.0f} per second of processor time"
            print(f"{'':>11} {name}: {per_second}, peak {peak:.0f} MB; the stage: {rows / took:,.0f} rows/s", flush=True)
        shutil.rmtree(folder / "runs")
    if len(points) > 1:
        print(f"growth exponent {np.polyfit(*np.log(np.array(points, float)).T, 1)[0]:.3f} (limit 1.1); memory should not grow")


if __name__ == "__main__":
    main()
