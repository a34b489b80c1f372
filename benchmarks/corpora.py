"""What the selection benchmarks share: a real or a generated incidence, the fastest of some runs, and tables."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numba import njit

from diversity.keys import content_priorities
from diversity.typings.incidence import Incidence
from diversity.typings.tokens import BandConfig

TYPES = 26_000  # about what a side of the real corpus has in the band 10-500


def seconds(do: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """Return (least CPU time in s, what was returned last): of all threads, so that other work on the machine does not count."""
    best, found = float("inf"), None
    for _ in range(repeats):
        start = time.process_time()
        found = do()
        best = min(best, time.process_time() - start)
    return best, found


def peak_memory() -> int:
    """Return the largest resident size of this process so far, in bytes; `ru_maxrss` would count its parent's, from before the exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a title and a Markdown table, each row as soon as it is there."""
    print(f"\n{title}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(str(cell) for cell in row)} |", flush=True)


def real_incidence(path: Path, side: str, limit: int | None = None) -> Incidence:
    """Return the micro typing of a side of a real corpus (parquet that ingest reads), by the default model's tokenizer; band 10 to 500."""
    return real_typing(path, f"{side}-micro", limit, BandConfig())


def real_typing(path: Path, typing: str, limit: int | None = None, band: BandConfig | None = None, keep: Path | None = None) -> Incidence:
    """Return a typing of a real corpus, without types that no sample has.

    Args:
        path: parquet with Alpaca columns.
        typing: one of the six.
        limit: only so many samples, the first by sample_id; then frequencies are those of the smaller corpus.
        band: of tokens; by default 10 to 500 in 117,000 samples, scaled.
        keep: a folder in which it is kept for the next run.
    """
    kept = keep / f"{typing}-{limit}.npz" if keep else None
    if kept is not None and kept.exists():
        stored = np.load(kept)
        return Incidence(stored["indptr"], stored["indices"], int(stored["n"]))
    from diversity.notebook import typed
    from ray_jobs.job.process import cache_folder
    from training.model_source import resolve_model

    texts = real_texts(path)
    model = resolve_model("builtin:smollm2-135m", cache_folder(), tokenizer_only=True)
    found = typed(texts.slice(0, limit or len(texts)), typing, model=model, band=band)
    incidence = Incidence.from_lists(found.data.column("types"), found.types.num_rows).used()[0]
    if kept is not None:
        np.savez(kept, indptr=incidence.indptr, indices=incidence.indices, n=incidence.n_types)
    return incidence


@functools.cache
def real_texts(path: Path) -> pa.Table:
    """Return the usable samples, read once in a run."""
    from diversity.notebook import read

    return read([row for row in pq.read_table(path).to_pylist() if row["instruction"].strip() and row["response"].strip()])


def made_up_df(n_types: int = TYPES) -> np.ndarray:
    """Return `(M,)` document frequencies in a corpus of 117,000 that fall from 500 to 10 like those of a tokenizer's tokens."""
    return np.round(10 * 50 ** np.linspace(1, 0, n_types) ** 1.6).astype(np.int64)


def generated(n: int, df: np.ndarray, lengths: np.ndarray, seed: int = 0) -> Incidence:
    """Return an incidence of n samples whose number of types and whose document frequencies follow those given.

    Args:
        n: samples.
        df: `(M,)`, in any unit.
        lengths: `(m,)` numbers of types of real samples; each sample gets one of them.
        seed: of the draws.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    picked = np.minimum(random.choice(lengths, n), len(df) // 4).astype(np.int64)
    indptr = np.append(0, np.cumsum(picked))
    share, other = _alias(df / df.mean())
    return Incidence(indptr, _draw(indptr, share, other, np.uint64(seed)), len(df))


def made_up_lengths(n: int = 100_000, mean: float = 16.0) -> np.ndarray:
    """Return numbers of types like those of real samples: skewed, many small."""
    return np.clip(np.random.default_rng(1).lognormal(np.log(mean) - 0.5, 1.0, n), 0, 300).astype(np.int64)


def ties(n_types: int) -> np.ndarray:
    """Return the priorities of n made-up types."""
    return content_priorities(f"type {t}".encode() for t in range(n_types))


def _alias(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Walker's alias table of weights whose mean is 1: a draw takes O(1)."""
    share, other = weight.astype(np.float64).copy(), np.arange(len(weight))
    small, large = [list(np.flatnonzero(share < 1)), list(np.flatnonzero(share >= 1))]
    while small and large:
        low, high = small.pop(), large[-1]
        other[low] = high
        share[high] -= 1 - share[low]
        if share[high] < 1:
            small.append(large.pop())
    return share, other


@njit(cache=True)
def _draw(indptr: np.ndarray, share: np.ndarray, other: np.ndarray, state: np.uint64) -> np.ndarray:
    """Return ascending types of every row, drawn without repeats."""
    indices = np.empty(indptr[-1], dtype=np.int32)
    unit = 1.0 / 9007199254740992.0
    for i in range(len(indptr) - 1):
        start = indptr[i]
        for place in range(start, indptr[i + 1]):
            fresh = False
            while not fresh:
                state += np.uint64(0x9E3779B97F4A7C15)
                z = state
                z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
                z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
                z ^= z >> np.uint64(31)
                where = np.float64(z >> np.uint64(11)) * unit * len(share)
                t = int(where)
                if where - t >= share[t]:
                    t = other[t]
                p = place
                while p > start and indices[p - 1] > t:
                    p -= 1
                fresh = p == start or indices[p - 1] != t
            for q in range(place, p, -1):
                indices[q] = indices[q - 1]
            indices[p] = t
    return indices
