"""Static embeddings: the mean of the token vectors of the package `wordllama`, many times as fast as its own `embed`.

Its tokenizer (Llama 2's, no pre-tokenizer) merges over a whole text. But no token has a space mark behind another letter,
and none holds a line end, so no merge crosses the start of a word: words are tokenised alone, each once, and a text is
the sum of its words' vectors. The vectors are those of `WordLlama.embed` up to the order of float additions.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from diversity.config import ConfigError
from diversity.typings.embedders import EmbedderConfig

WEIGHTS = ("weights/l2_supercat_256.safetensors", "64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5")
TOKENIZER = (
    "tokenizers/l2_supercat_tokenizer_config.json",
    "93248f2a9ec36c7b35f700a033d5f36228aae48db61aee31007fa49062cdeb68",
)
MARK = "\u2581"  # what the tokenizer writes for a space
_WORDS = re.compile(f"{MARK}+[^{MARK}\n]*|[^{MARK}\n]+|\n")
_CONTROL = re.compile("</?s>|<unk>")
_CACHED_WORDS = 150_000  # 1 KB each


class StaticEmbedder:
    """256-dimensional mean-of-token vectors, single-threaded; each row depends on its own text alone."""

    dimension = 256

    def __init__(self, config: EmbedderConfig, device: str = "cpu") -> None:
        """Load weights and tokenizer out of the installed package, after a check of their sha256.

        Raises:
            ConfigError: the package is missing or its files are others than the recorded ones.
        """
        from safetensors.numpy import load
        from tokenizers import Tokenizer

        del config
        weights, spec = _checked_file(WEIGHTS), _checked_file(TOKENIZER)
        self._vectors = np.ascontiguousarray(load(weights)["embedding.weight"], np.float32)
        whole = json.loads(spec)
        self._whole = Tokenizer.from_str(spec.decode())
        self._words = Tokenizer.from_str(json.dumps({**whole, "normalizer": None, "added_tokens": []}))
        self._index: dict[str, int] = {}
        self._cache = np.empty((_CACHED_WORDS, self.dimension), np.float32)

    @staticmethod
    def identity(config: EmbedderConfig, device: str = "cpu") -> dict[str, Any]:
        """Return the digests of the weights and the tokenizer."""
        return {"name": config.name, "weights": WEIGHTS[1], "tokenizer": TOKENIZER[1]}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return (n, 256) float32 unit vectors; an empty text gets zeros."""
        rows = [_WORDS.findall(MARK + text.replace(" ", MARK)) if text else [] for text in texts]
        self._learn(rows)
        index = self._index
        codes = np.fromiter(map(index.__getitem__, chain.from_iterable(rows)), np.int64)
        bounds = np.cumsum([0, *map(len, rows)])
        sums = sum_rows(codes, bounds, self._cache)
        for i, text in enumerate(texts):
            if _CONTROL.search(text):  # its own `embed` reads these as control tokens
                sums[i] = self._sum(self._whole.encode(text, add_special_tokens=False).ids)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        return sums / np.where(norms > 0, norms, 1)

    def _learn(self, rows: Sequence[Sequence[str]]) -> None:
        """Make sure that every word has its row in the cache; a full cache is emptied first."""
        new = [word for word in dict.fromkeys(chain.from_iterable(rows)) if word not in self._index]
        if len(self._index) + len(new) > _CACHED_WORDS:
            self._index = {}
            new = list(dict.fromkeys(chain.from_iterable(rows)))
            if len(new) > len(self._cache):
                self._cache = np.empty((len(new), self.dimension), np.float32)
        start = len(self._index)
        self._index.update({word: start + i for i, word in enumerate(new)})
        for i, one in enumerate(self._words.encode_batch_fast(new, add_special_tokens=False)):
            self._cache[start + i] = self._sum(one.ids)

    def _sum(self, ids: Sequence[int]) -> np.ndarray:
        return self._vectors[ids].sum(axis=0)


@njit(cache=True)
def sum_rows(codes, bounds, vectors):  # type: ignore[no-untyped-def]
    """Return (n, d) float32: row i is the sum of vectors[codes[bounds[i]:bounds[i + 1]]], added in that order."""
    n, d = len(bounds) - 1, vectors.shape[1]
    sums = np.zeros((n, d), np.float32)
    for i in range(n):
        for j in range(bounds[i], bounds[i + 1]):
            code = codes[j]
            for k in range(d):
                sums[i, k] += vectors[code, k]
    return sums


def _checked_file(recorded: tuple[str, str]) -> bytes:
    """Return the bytes of a file of the package, or raise ConfigError where they aren't the recorded ones."""
    spec = importlib.util.find_spec("wordllama")  # found, not imported: its import configures logging
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("embedder static needs the package wordllama: pip install wordllama, or name another embedder")
    name, expected = recorded
    path = Path(spec.submodule_search_locations[0]) / name
    if not path.exists():
        raise ConfigError(f"{path} isn't there: install the wordllama release of constraints.txt")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != expected:
        raise ConfigError(f"{path} is not the recorded file (sha256 {expected[:12]}…): reinstall wordllama")
    return content
