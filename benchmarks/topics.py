"""Topics from vectors to labels: `python -m benchmarks.topics [--corpus PATH] [--n 11700 117000] [--compare 11700]`.

For each size, in processor time of one thread: seconds from neighbours to clusters, beside the estimate that the stage shows, and the
growth from size to size (the log tells the parts). For sizes in --compare, in the same run: stock UMAP with the recipe's settings and the
same HDBSCAN after it. `WordLlama.embed` is timed on at most --embedded of the same texts and scaled up: it works on each text alone.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpora import print_table
from benchmarks.embedders import instructions, word_llama
from diversity.typings.embedders import EmbedderConfig, embed
from diversity.typings.neighbours import one_thread
from diversity.typings.topics import TopicsConfig, density_clusters, distinct_texts, estimate_seconds

HEADER = (
    "texts",
    "distinct",
    "topics s",
    "estimate s",
    "topics",
    "noise",
    "x WordLlama.embed (limit 1.5)",
    "x stock UMAP (limit 0.7)",
)


def cpu_seconds(do: Callable[[], Any]) -> tuple[float, Any]:
    """Return (seconds of processor time, what was returned): every side runs on one thread, and other work on the machine counts less."""
    start = time.process_time()
    found = do()
    return time.process_time() - start, found


def distinct_vectors(texts: Sequence[str]) -> np.ndarray:
    """Return the static vectors of the distinct texts."""
    return np.ascontiguousarray(embed(list(texts), EmbedderConfig())[distinct_texts(texts)[0]])


def stock(vectors: np.ndarray, config: TopicsConfig) -> float:
    """Return the seconds of umap-learn from vectors to positions and of HDBSCAN on them."""
    import umap
    from fast_hdbscan import fast_hdbscan

    smallest, largest = config.sizes(len(vectors))
    made = umap.UMAP(n_neighbors=config.neighbours, n_components=5, min_dist=0.0, metric="cosine", random_state=config.seed, n_jobs=1)

    def run() -> None:
        positions = made.fit_transform(vectors).astype(np.float64)
        fast_hdbscan(positions, min_samples=config.min_samples, min_cluster_size=smallest, max_cluster_size=largest)

    return cpu_seconds(run)[0]


def measure(texts: Sequence[str], compared: bool, embedded: int) -> tuple[float, list[object]]:
    """Return (seconds of topics, the table's row)."""
    config = TopicsConfig()
    vectors = distinct_vectors(texts)
    ours, labels = cpu_seconds(lambda: density_clusters(vectors, config))
    some = texts[:: math.ceil(len(texts) / embedded)]
    theirs = word_llama()
    embedding = cpu_seconds(lambda: theirs(some))[0] * len(texts) / len(some)
    umap = f"{ours / stock(vectors, config):.2f}" if compared else ""
    noise = f"{(labels < 0).mean():.0%}"
    scaled = "" if len(some) == len(texts) else f" (scaled from {len(some):,})"
    estimate = f"{estimate_seconds(len(vectors), config):.0f}"
    row = [
        f"{len(texts):,}",
        f"{len(vectors):,}",
        f"{ours:.0f}",
        estimate,
        labels.max() + 1,
        noise,
        f"{ours / embedding:.2f}{scaled}",
        umap,
    ]
    return ours, row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, help="parquet of Alpaca rows; without it texts are made up")
    parser.add_argument("--n", type=int, nargs="+", default=[11_700, 117_000])
    parser.add_argument("--compare", type=int, nargs="*", default=[11_700])
    parser.add_argument("--embedded", type=int, default=12_000, help="texts that WordLlama.embed is timed on, at most")
    given = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    rows, times = [], []
    with one_thread():
        warm = distinct_vectors(instructions(given.corpus, 5000))
        density_clusters(warm, TopicsConfig())
        if given.compare:
            stock(warm, TopicsConfig())  # from 4,096 texts on it compiles its search, which counts for nobody
        for n in given.n:
            started = time.monotonic()
            spent, row = measure(instructions(given.corpus, n), n in given.compare, given.embedded)
            times.append(spent)
            rows.append(row)
            print(f"{n:,} texts: {spent:.0f} s of topics, {time.monotonic() - started:.0f} s in all", flush=True)
    print_table("Topics (instruction side, static vectors, one thread)", HEADER, rows)
    for (n, before), (m, after) in zip(zip(given.n, times, strict=True), list(zip(given.n, times, strict=True))[1:], strict=False):
        print(f"\ngrowth exponent from {n:,} to {m:,}: {math.log(after / before) / math.log(m / n):.2f} (limit 1.1)")


if __name__ == "__main__":
    main()
