"""Posterior metrics: how diverse a finished dataset is, measured on one side at a time.

`measure` returns a tidy table of the paper's six (in seven rows, the n-gram ratio for n = 1 and 2) or of any metrics of `METRICS`. The
paper's formulas are not public: the definitions here are ours and stated with each function. `more_is_diverse` gives the orientation;
it is null for the mean length, which is no measure of diversity. Open `lexical.py` first; `measuring.py` measures whole files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from diversity.metrics.geometric import knn_distance, mean_pairwise_distance, novelsum, vendi
from diversity.metrics.lexical import (
    Sequences,
    compression_ratio,
    effective_types,
    entropy,
    mean_length,
    mtld,
    ngram_ratio,
    ngram_ratio_per_sample,
    self_bleu,
    self_bleu_each,
    self_repetition,
    token_counts,
)

__all__ = [
    "METRICS",
    "METRICS_SCHEMA",
    "PAPER_METRICS",
    "Metric",
    "Sequences",
    "compression_ratio",
    "effective_types",
    "entropy",
    "knn_distance",
    "mean_length",
    "mean_pairwise_distance",
    "measure",
    "mtld",
    "ngram_ratio",
    "ngram_ratio_per_sample",
    "novelsum",
    "self_bleu",
    "self_bleu_each",
    "self_repetition",
    "token_counts",
    "vendi",
]

METRICS_SCHEMA = pa.schema(
    [("metric", pa.string()), ("side", pa.string()), ("variant", pa.string()), ("value", pa.float64()), ("more_is_diverse", pa.bool_())]
)


@dataclass(frozen=True)
class Metric:
    """How a metric is computed from what it needs.

    Attributes:
        needs: `tokens` (functions take Sequences), `texts` (a list of str) or `embeddings` ((n, d) array).
        more_is_diverse: orientation; None where there is none.
        variants: name of the variant -> function; the first is the main one.
        matched: whether it depends on the amount of data, so that a variant over equally many tokens (of embeddings: samples) is
            worth having.
    """

    needs: str
    more_is_diverse: bool | None
    variants: dict[str, Callable[..., float]] = field(repr=False)
    matched: bool = False


def _entropy(sequences: Sequences, document_frequency: bool = False) -> float:
    return entropy(token_counts(sequences, document_frequency))


def _effective_types(sequences: Sequences) -> float:
    return effective_types(token_counts(sequences))


METRICS = {
    "ngram_ratio_1": Metric(
        "tokens", True, {"pooled": partial(ngram_ratio, n=1), "per-sample": partial(ngram_ratio_per_sample, n=1)}, matched=True
    ),
    "ngram_ratio_2": Metric(
        "tokens", True, {"pooled": partial(ngram_ratio, n=2), "per-sample": partial(ngram_ratio_per_sample, n=2)}, matched=True
    ),
    "embedding_distance": Metric("embeddings", True, {"pooled": mean_pairwise_distance}),
    "mean_length": Metric("tokens", None, {"per-sample": mean_length}),
    "compression_ratio": Metric("texts", False, {"pooled": compression_ratio}, matched=True),
    "self_bleu": Metric("tokens", False, {"pooled": self_bleu}, matched=True),
    "entropy": Metric("tokens", True, {"pooled": _entropy, "df": partial(_entropy, document_frequency=True)}, matched=True),
    "vendi": Metric("embeddings", True, {"pooled": vendi}, matched=True),
    "novelsum": Metric("embeddings", True, {"pooled": novelsum}, matched=True),
    "knn_distance": Metric("embeddings", True, {"pooled": knn_distance}, matched=True),
    "effective_types": Metric("tokens", True, {"pooled": _effective_types}, matched=True),
    "mtld": Metric("tokens", True, {"per-sample": mtld}),
    "self_repetition": Metric("tokens", False, {"per-sample": self_repetition}, matched=True),
}
PAPER_METRICS = ("ngram_ratio_1", "ngram_ratio_2", "embedding_distance", "mean_length", "compression_ratio", "self_bleu", "entropy")


def measure(
    side: str,
    *,
    tokens: NDArray[np.integer] | None = None,
    offsets: NDArray[np.integer] | None = None,
    texts: Iterable[str] | None = None,
    embeddings: NDArray[np.floating] | None = None,
    metrics: Sequence[str] | None = None,
    matched_tokens: int | None = None,
    matched_samples: int | None = None,
    seed: int = 0,
) -> pa.Table:
    """Return the metrics of one side of a dataset as rows of METRICS_SCHEMA; NaN where a metric has no value for so little data.

    Args:
        side: `instruction` or `response`; only a label here.
        tokens: (t,) token ids of all samples, of any tokenizer.
        offsets: (n+1,) where each sample's tokens begin, and the end.
        texts: n strings.
        embeddings: (n, d).
        metrics: names from METRICS; None takes those of PAPER_METRICS whose input is given.
        matched_tokens: adds a variant `first-<T>` of every metric that depends on the amount of text, over the first T tokens of the
            samples in a random order (whole texts for the compression ratio); NaN where the dataset has fewer.
        matched_samples: adds a variant `samples-<n>` of every metric of embeddings that depends on how many there are, over the first n
            samples in the same order; NaN where the dataset has fewer.
        seed: of that random order, which is drawn by position.

    Raises:
        ValueError: an unknown metric, or one whose input is not given.
    """
    rows_of_text = list(texts) if texts is not None else None
    sequences = Sequences(tokens, offsets) if tokens is not None and offsets is not None else None
    given = {"tokens": sequences, "texts": rows_of_text, "embeddings": embeddings}
    _check_lengths(given)
    names = [name for name in PAPER_METRICS if given[METRICS[name].needs] is not None] if metrics is None else list(metrics)
    matched = _first(sequences, rows_of_text, matched_tokens, seed)
    if embeddings is not None and matched_samples is not None:
        matched["embeddings"] = _first_rows(embeddings, matched_samples, seed)
    rows = []
    for name in names:
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r}: one of {', '.join(METRICS)}")
        metric = METRICS[name]
        if given[metric.needs] is None:
            raise ValueError(f"metric {name!r} needs {metric.needs}, and none are given")
        values = {variant: function(given[metric.needs]) for variant, function in metric.variants.items()}
        if metric.matched and metric.needs in matched:
            part = matched[metric.needs]
            variant = f"samples-{matched_samples}" if metric.needs == "embeddings" else f"first-{matched_tokens}"
            values[variant] = float("nan") if part is None else next(iter(metric.variants.values()))(part)
        rows += [(name, side, variant, value, metric.more_is_diverse) for variant, value in values.items()]
    return pa.Table.from_pylist([dict(zip(METRICS_SCHEMA.names, row, strict=True)) for row in rows], schema=METRICS_SCHEMA)


def _check_lengths(given: dict[str, Sequences | list[str] | NDArray[np.floating] | None]) -> None:
    lengths = {name: len(rows) for name, rows in given.items() if rows is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"inputs describe different numbers of samples: {lengths}")


def _first_rows(embeddings: NDArray[np.floating], n: int, seed: int) -> NDArray[np.floating] | None:
    """Return the embeddings of the first n samples of the random order; None where there are fewer."""
    return embeddings[np.random.default_rng(seed).permutation(len(embeddings))[:n]] if len(embeddings) >= n else None


def _first(sequences: Sequences | None, texts: list[str] | None, budget: int | None, seed: int) -> dict[str, Any]:
    """Return the part of the inputs that holds the first `budget` tokens of a random order; None where there are fewer."""
    if sequences is None or budget is None:
        return {}
    if len(sequences.tokens) < budget:
        return {"tokens": None, "texts": None}
    order = np.random.default_rng(seed).permutation(len(sequences))
    part, whole = sequences.first(budget, order)
    return {"tokens": part, "texts": None if texts is None else [texts[i] for i in whole]}
