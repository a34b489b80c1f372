"""Posterior metrics against the usual way to compute them, same value, in one run: `python -m benchmarks.metrics [--corpus PATH]`.

Left: what people run today (all pairs, an n x n kernel, nltk). Right: the functions of `diversity.metrics`. Then the growth of what is
linear in the text: seconds at n, 2n, 4n … samples and the exponent of the fitted power law.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy.linalg import eigvalsh
from sklearn.metrics.pairwise import cosine_distances
from threadpoolctl import threadpool_limits

from diversity.metrics import (
    Sequences,
    compression_ratio,
    entropy,
    knn_distance,
    mean_pairwise_distance,
    mtld,
    ngram_ratio,
    novelsum,
    self_bleu_each,
    self_repetition,
    token_counts,
    vendi,
)
from diversity.metrics.measuring import read_dataset
from diversity.typings.embedders import embed
from diversity.typings.encoders import WordEncoder

LIMITS = {"mean pairwise distance": 1000, "self-BLEU-4": 1000, "Vendi score": 100}


def made_up(n: int, generator: np.random.Generator) -> list[str]:
    """Return n texts of Zipf-distributed words, about as long as real responses."""
    syllables = [a + b for a in "bdfglmnprst" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]
    words = np.array(["".join(generator.choice(syllables, generator.integers(1, 5))) for _ in range(50_000)])
    lengths = np.clip(generator.lognormal(3.7, 1.1, n), 2, 2000).astype(int)
    return [" ".join(words[np.minimum(generator.zipf(1.2, length), 50_000) - 1]) for length in lengths]


def seconds(do: Callable[[], Any], repeats: int = 1, clock: Callable[[], float] = time.perf_counter) -> tuple[float, Any]:
    """Return (fastest time in s, what was returned)."""
    best = float("inf")
    for _ in range(repeats):
        start = clock()
        found = do()
        best = min(best, clock() - start)
    return best, found


def all_pairs(x: np.ndarray) -> float:
    """Return the mean cosine distance over all pairs by the n x n matrix, in blocks of rows so that it fits."""
    total = sum(float(cosine_distances(x[i : i + 1000], x).sum(dtype=np.float64)) for i in range(0, len(x), 1000))
    return total / (len(x) * (len(x) - 1))


def whole_kernel(x: np.ndarray) -> float:
    """Return the Vendi score by the eigenvalues of the n x n kernel, as the package of its authors does."""
    unit = x.astype(np.float64)  # in float32 the n - d eigenvalues that should be 0 add up to a visible error
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    values = eigvalsh((unit @ unit.T) / len(x))
    values = values[values > 0]
    return float(np.exp(-(values * np.log(values)).sum()))


def nltk_bleu(rows: Sequence[list[str]], asked: Sequence[int]) -> np.ndarray:
    """Return nltk's BLEU-4 of the asked samples against all others, smoothed as `self_bleu_each(epsilon=0.1)` is."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    smooth = SmoothingFunction(epsilon=0.1).method1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.array([sentence_bleu([*rows[:i], *rows[i + 1 :]], rows[i], smoothing_function=smooth) for i in asked])


def against(texts: list[str], vectors: np.ndarray, generator: np.random.Generator, bleu_asked: int) -> None:
    """Print both sides of the three comparisons."""
    print(f"\n{'metric':24} {'work':44} {'usual s':>10} {'ours s':>10} {'ratio':>9} {'aim':>6}  values")
    n, d = vectors.shape
    usual, expected = seconds(lambda: all_pairs(vectors))
    ours, found = seconds(lambda: mean_pairwise_distance(vectors), 5)
    line("mean pairwise distance", f"n={n:,} d={d} ({vectors.nbytes / 1e6:.0f} MB)", usual, ours, expected, found)

    some = vectors[:2000]
    usual, expected = seconds(lambda: whole_kernel(some))
    ours, found = seconds(lambda: vendi(some), 5)
    line("Vendi score", f"n={len(some):,} d={d}", usual, ours, expected, found)

    chosen = [texts[i] for i in generator.permutation(len(texts))[:1000]]
    sequences = Sequences(*WordEncoder().encode(chosen))
    asked = list(range(min(bleu_asked, len(chosen))))
    usual, each = seconds(lambda: nltk_bleu([text.lower().split() for text in chosen], asked))
    ours, all_of_them = seconds(lambda: self_bleu_each(Sequences(sequences.tokens, sequences.offsets), epsilon=0.1), 5)
    assert np.allclose(each, all_of_them[asked], atol=1e-9), "not the same BLEU"
    work = f"n={len(chosen):,}, {len(sequences.tokens):,} words; nltk: {len(asked)} of them, scaled"
    line("self-BLEU-4", work, usual * len(chosen) / len(asked), ours, each.mean(), all_of_them[asked].mean())


def line(name: str, work: str, usual: float, ours: float, expected: float, found: float) -> None:
    """Print one comparison."""
    ratio, aim = usual / ours, LIMITS[name]
    verdict = "met" if ratio >= aim else "MISSED"
    print(f"{name:24} {work:44} {usual:10.3f} {ours:10.5f} {ratio:8.0f}x {aim:5}x  {expected:.6g} = {found:.6g}  {verdict}", flush=True)
    assert abs(expected - found) <= 1e-4 * max(abs(expected), 1e-3), "the two sides differ"


def growth(texts: list[str], doublings: int) -> None:
    """Print the CPU seconds (one thread) of every linear metric at n, 2n, 4n … samples, and the fitted exponent."""
    sizes = [len(texts) >> k for k in range(doublings, -1, -1)]
    functions: dict[str, Callable[[Sequences, list[str]], float]] = {
        "n-gram ratio, n=1": lambda s, t: ngram_ratio(s, 1),
        "n-gram ratio, n=2": lambda s, t: ngram_ratio(s, 2),
        "self-repetition, n=4": lambda s, t: self_repetition(s),
        "self-BLEU-4": lambda s, t: float(self_bleu_each(s).mean()),
        "entropy": lambda s, t: entropy(token_counts(s)),
        "MTLD": lambda s, t: mtld(s),
        "compression ratio": lambda s, t: compression_ratio(t),
    }
    encoded = [WordEncoder().encode(texts[:n]) for n in sizes]
    words = [len(ids) for ids, _ in encoded]
    print(f"\n{'growth: CPU s at words =':24} " + " ".join(f"{count:>12,}" for count in words) + f" {'exponent':>9}")
    for name, function in functions.items():
        took = []
        for n, (ids, offsets) in zip(sizes, encoded, strict=True):
            took.append(seconds(partial(fresh, function, ids, offsets, texts[:n]), 3, time.process_time)[0])
        slope = np.polyfit(np.log(words), np.log(took), 1)[0]
        print(f"{name:24} " + " ".join(f"{value:12.4f}" for value in took) + f" {slope:9.2f}", flush=True)


def fresh(function: Callable[[Sequences, list[str]], float], ids: np.ndarray, offsets: np.ndarray, texts: list[str]) -> float:
    """Return a metric of sequences whose n-grams are not numbered yet."""
    return function(Sequences(ids, offsets), texts)


def quadratic(vectors: np.ndarray) -> None:
    """Print the seconds of what compares all pairs, and so grows with the square of the samples."""
    for name, function in (("k-NN distance", knn_distance), ("NovelSum", novelsum)):
        for n in (5_000, 10_000):
            took, value = seconds(partial(function, vectors[:n]))
            print(f"{name:24} n={n:,} d={vectors.shape[1]}: {took:.2f} s (all pairs; value {value:.4f})", flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", help="a file that ingest reads; its responses are measured. Default: made-up texts")
    parser.add_argument("--n", type=int, default=20_000, help="samples of the comparison over all pairs")
    parser.add_argument("--nltk", type=int, default=40, help="how many of the 1,000 samples nltk scores; its time is scaled up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", nargs="+", choices=["against", "growth", "quadratic"], default=["against", "growth", "quadratic"])
    given = parser.parse_args(argv)
    generator = np.random.default_rng(0)
    texts = read_dataset(given.corpus).samples["response"].to_pylist() if given.corpus else made_up(4 * given.n, generator)
    texts = [texts[i] for i in generator.permutation(len(texts))]
    vectors = embed(texts[: given.n])
    print(f"{len(texts):,} texts, {sum(map(len, texts)) / 1e6:.1f} M characters; vectors {vectors.shape}; {given.threads} threads")
    with threadpool_limits(given.threads):
        self_bleu_each(Sequences(*WordEncoder().encode(texts[:50])))  # compiled once, outside the clock
        vendi(vectors[:300]), mean_pairwise_distance(vectors[:300]), mtld(Sequences(*WordEncoder().encode(["a b " * 60])))
        if "against" in given.parts:
            against(texts, vectors, generator, given.nltk)
        if "growth" in given.parts:
            growth(texts, 4)
        if "quadratic" in given.parts:
            quadratic(vectors)


if __name__ == "__main__":
    main()
