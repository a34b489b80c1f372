"""The token profile of a corpus against a bare tiktoken loop: `python -m benchmarks.tokens [--corpus PATH] [--copies 1 10]`.

The corpus is repeated (`--copies`), every copy with ids of its own, and sealed as `ingest` would. Then, for each number of copies and in
one run: the real stage `profile_corpus` types both sides on a cluster that is up already, timed from its first read task to the last
manifest; and `Encoding.encode_ordinary_batch` encodes the same texts, already in memory, with as many threads as the cluster has cores.
Printed: work, seconds and throughput of both, their ratio, the peak memory of any worker, and the exponent of the stage's growth.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import ray
import yaml

from benchmarks.metrics import made_up
from diversity.artifact import Artifact
from diversity.corpus.config import CorpusConfig
from diversity.corpus.inputs import read_corpus
from diversity.corpus.samples import SAMPLE_SCHEMA, sample_id
from diversity.typings.encoders import ExactEncoder, read_spec
from ray_jobs import profile_corpus
from ray_jobs.job.experiment import load_experiment
from ray_jobs.job.process import cache_folder, configure_process
from ray_jobs.job.runtime import Context
from training.model_source import resolve_model

SIDES = ("instruction", "response")
PART_BYTES = 128 << 20


class PeakMemory:
    """Watches what workers of this Ray hold for themselves (resident less shared), twice a second."""

    def __init__(self) -> None:
        self.peak = 0.0
        self.by_time: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        start = time.perf_counter()
        while not self._stop.wait(0.5):
            now = max((own_bytes(worker) for worker in workers()), default=0)
            self.by_time.append((time.perf_counter() - start, now))
            self.peak = max(self.peak, now)


def workers() -> list[psutil.Process]:
    """Return the Ray workers that descend from this process."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if child.cmdline()[:1] and child.cmdline()[0].startswith("ray::"):
                found.append(child)
        except psutil.Error:
            continue
    return found


def own_bytes(process: psutil.Process) -> int:
    """Return resident memory that is not shared, in bytes; 0 for a process that has ended."""
    try:
        memory = process.memory_info()
    except psutil.Error:
        return 0
    return memory.rss - memory.shared


def samples_of(path: str | None, n: int) -> pa.Table:
    """Return the corpus, or made-up samples."""
    if path:
        return read_corpus(CorpusConfig(paths=[path]))[0]
    texts = made_up(2 * n, np.random.default_rng(0))
    rows = []
    for asked, answered in zip(texts[:n], texts[n:], strict=True):
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        rows.append(
            {"sample_id": sample_id(messages), "source": "made up", "instruction": asked, "response": answered, "messages": messages}
        )
    return pa.Table.from_pylist(rows, schema=SAMPLE_SCHEMA)


def seal(target: Artifact, samples: pa.Table, copies: int) -> None:
    """Seal the samples so many times over, sorted by id within each copy, in parts of about 128 MB."""
    target = target.begin()
    rows = max(1, int(len(samples) * PART_BYTES / samples.nbytes))
    number = 0
    for copy in range(copies):
        ids = [hashlib.blake2b(f"{copy}/{key}".encode(), digest_size=16).hexdigest() for key in samples["sample_id"].to_pylist()]
        table = samples.set_column(0, "sample_id", pa.array(ids)).sort_by("sample_id")
        for start in range(0, len(table), rows):
            target.write(table.slice(start, rows), f"data/part-{number:05d}.parquet")
            number += 1
    target.seal({"samples": copies * len(samples)})


def bare_loop(corpus: Artifact, threads: int) -> tuple[float, int]:
    """Return (seconds, tokens) of `encode_ordinary_batch` over both sides; reading the texts is not timed."""
    folder = resolve_model("builtin:smollm2-135m", cache_folder(), tokenizer_only=True)
    encoding = ExactEncoder(read_spec(folder)).encoding
    took, tokens = 0.0, 0
    for part in corpus.parts():
        for side in SIDES:
            column = pa.parquet.read_table(part, columns=[side])[side]
            for start in range(0, len(column), 10_000):
                texts = column.slice(start, 10_000).to_pylist()
                begun = time.perf_counter()
                found = encoding.encode_ordinary_batch(texts, num_threads=threads)
                took += time.perf_counter() - begun
                tokens += sum(map(len, found))
    return took, tokens


def profile(folder: Path, corpus: Artifact, copies: int, config: Path) -> tuple[float, float, int, list[tuple[float, float]]]:
    """Return (seconds, peak bytes of a worker, tokens, memory over time) of the stage over both sides."""
    overrides = [f"storage={folder}/runs", f"experiment=x{copies}"]
    context = Context(load_experiment(config, overrides, inside_job=False), config, corpus=corpus)
    with PeakMemory() as memory:
        begun = time.perf_counter()
        profile_corpus.run(context)
        took = time.perf_counter() - begun
    tokens = sum(profile_corpus.profile_artifact(context, f"{side}-micro").manifest["tokens"] for side in SIDES)
    return took, memory.peak, tokens, memory.by_time


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", help="a file that ingest reads; default: made-up samples")
    parser.add_argument("--n", type=int, default=20_000, help="made-up samples of one copy")
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-bare", action="store_true", help="leave the bare loop out: growth and memory only")
    given = parser.parse_args(argv)
    configure_process()
    folder = Path(tempfile.mkdtemp(prefix="tokens-"))
    config = folder / "tokens.yaml"
    settings = {
        "experiment": "tokens",
        "corpus": {"paths": ["builtin:python-docs"]},
        "stages": ["ingest", "profile_corpus"],
        "evaluation": {"heldout": None},
        "grid": {"strategies": ["random"], "sizes": [10]},
        "profile": {"typings": ["instruction-micro", "response-micro"], "embeddings": "needed"},
        "resources": {"num_cpus": given.threads},
    }
    config.write_text(yaml.safe_dump(settings))
    try:
        compare(given, folder, config)
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def compare(given: argparse.Namespace, folder: Path, config: Path) -> None:
    """Print a line for each number of copies."""
    samples = samples_of(given.corpus, given.n)
    megabytes = sum(samples[side].nbytes for side in SIDES) / 1e6
    context = Context(load_experiment(config, [f"storage={folder}/runs"], inside_job=False), config)
    context.connect()
    ray.get(ray.remote(lambda: None).remote())  # a worker has started
    heads = ["samples", "MB", "tokens", "bare s", "stage s", "bare MB/s", "stage MB/s", "ratio", "peak worker"]
    print(" ".join(f"{head:>11}" for head in heads))
    points = []
    for copies in given.copies:
        corpus = context.storage.artifact("corpus", f"x{copies}")
        seal(corpus, samples, copies)
        took, peak, tokens, by_time = profile(folder, corpus, copies, config)
        bare, bare_tokens = (float("nan"), tokens) if given.no_bare else bare_loop(corpus, given.threads)
        work = copies * megabytes
        cells = [f"{copies * len(samples):,}", f"{work:.0f}", f"{tokens:,}", f"{bare:.1f}", f"{took:.1f}"]
        cells += [f"{work / bare:.2f}", f"{work / took:.2f}", f"{bare / took:.2f}", f"{peak / 1e6:.0f} MB"]
        print(" ".join(f"{cell:>11}" for cell in cells), flush=True)
        halves = [max((b for t, b in by_time if low <= t / took < high), default=0) / 1e6 for low, high in ((0, 0.5), (0.5, 1.1))]
        differ = f"{abs(tokens - bare_tokens):,} tokens, of texts that only Hugging Face can encode"
        print(f"{'':11} peak in the first half {halves[0]:.0f} MB, in the second {halves[1]:.0f} MB; the bare loop differs by {differ}")
        points.append((copies, took))
        shutil.rmtree(corpus.uri)
    if len(points) > 1:
        slope = np.polyfit(*(np.log(np.array(points, float)).T), 1)[0]
        print(f"growth exponent {slope:.3f} (limit 1.1); ratio's aim 0.7; worker's limit 1500 MB")


if __name__ == "__main__":
    main()
