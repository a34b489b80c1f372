"""Metrics of token sequences, each in time linear in the tokens: n-gram ratios, self-BLEU, self-repetition, entropy, MTLD, compression.

A dataset's side is a CSR of token ids: `tokens` (t,) int32 and `offsets` (n+1,) int64; sample i is tokens[offsets[i]:offsets[i+1]]. No
n-gram crosses the border between two samples.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np
from numba import njit
from numpy.typing import NDArray

from diversity.metrics.ngrams import Ngrams, number, number_tokens

Ints = NDArray[np.int32]
Longs = NDArray[np.int64]
Floats = NDArray[np.float64]


class Sequences:
    """Token sequences of one side, with their n-grams numbered once for all metrics that count them.

    Raises:
        ValueError: offsets that don't run from 0 to the number of tokens in ascending order, a negative token or one from 2^31 on, or
            2^31 tokens.
    """

    def __init__(self, tokens: NDArray[np.integer], offsets: NDArray[np.integer]) -> None:
        if len(tokens) and tokens.max() >= 1 << 31:
            raise ValueError(f"token id {tokens.max()}: ids lie below 2^31")
        self.tokens: Ints = np.ascontiguousarray(tokens, dtype=np.int32)
        self.offsets: Longs = np.ascontiguousarray(offsets, dtype=np.int64)
        if len(self.offsets) < 1 or self.offsets[0] != 0 or self.offsets[-1] != len(self.tokens) or (np.diff(self.offsets) < 0).any():
            raise ValueError(f"offsets must ascend from 0 to {len(self.tokens)}, the number of tokens")
        if len(self.tokens) >= 1 << 31:
            raise ValueError("more than 2^31 tokens: measure a part")
        if len(tokens) and tokens.min() < 0:
            raise ValueError("a token id is never negative")
        self._numbered: list[Ngrams] = []

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Longs:
        """Return the number of tokens of each sample."""
        return np.diff(self.offsets)

    def ngrams(self, n: int) -> Ngrams:
        """Return the numbered n-grams, n >= 1."""
        if not self._numbered:
            self._numbered.append(number_tokens(self.tokens))
        while len(self._numbered) < n:
            self._numbered.append(number(self._numbered[-1], self.offsets, len(self._numbered) + 1))
        return self._numbered[n - 1]

    def first(self, budget: int, order: Longs) -> tuple[Sequences, Longs]:
        """Return the first `budget` tokens of the samples in a given order, and the samples that lie wholly within."""
        lengths = self.lengths[order]
        ends = np.cumsum(lengths)
        whole = int(np.searchsorted(ends, budget, side="right"))
        kept = np.minimum(ends, budget)
        used = order[: min(whole + 1, len(order))]
        cut = np.diff(np.concatenate([[0], kept[: len(used)]]))
        pieces = [self.tokens[self.offsets[i] : self.offsets[i] + length] for i, length in zip(used, cut, strict=True)]
        tokens = np.concatenate(pieces) if pieces else np.empty(0, np.int32)
        return Sequences(tokens, np.concatenate([[0], np.cumsum(cut)]).astype(np.int64)), order[:whole]


def ngram_ratio(sequences: Sequences, n: int) -> float:
    """Return distinct n-grams / n-grams over all samples together, in (0, 1]; it falls with the amount of text (Heaps' law)."""
    numbered = sequences.ngrams(n)
    return numbered.distinct / numbered.total if numbered.total else float("nan")


def ngram_ratio_per_sample(sequences: Sequences, n: int) -> float:
    """Return the mean over samples of distinct n-grams / n-grams inside the sample; samples of fewer than n tokens are left out."""
    numbered = sequences.ngrams(n)
    rows, _, counts = _counts(numbered, sequences.offsets)
    totals = sequences.lengths - (n - 1)
    repeats = np.concatenate([[0], np.cumsum(counts - 1)])
    distinct = totals - (repeats[rows[1:]] - repeats[rows[:-1]])
    long_enough = totals > 0
    return float(np.mean(distinct[long_enough] / totals[long_enough])) if long_enough.any() else float("nan")


def mean_length(sequences: Sequences) -> float:
    """Return the mean number of tokens of a sample."""
    return float(sequences.lengths.mean()) if len(sequences) else float("nan")


def self_bleu(sequences: Sequences, max_n: int = 4, epsilon: float = 0.0) -> float:
    """Return the mean of BLEU of each sample against all others as references, in [0, 1]; high means that samples repeat one another."""
    return float(self_bleu_each(sequences, max_n, epsilon).mean()) if len(sequences) > 1 else float("nan")


def self_bleu_each(sequences: Sequences, max_n: int = 4, epsilon: float = 0.0) -> Floats:
    """Return (n,) exact BLEU of each sample against all others (Zhu et al. 2018; BLEU of Papineni et al. 2002).

    BLEU = BP exp(mean_n log p_n). p_n clips the count of each n-gram by its largest count in another sample, so over all samples only
    the largest and the second-largest count of each n-gram are needed: linear in the n-grams, where n^2 comparisons are usual. BP =
    min(1, exp(1 - r / c)) with r the other sample's length that is nearest to c, the shorter of two.

    Args:
        sequences: at least 2 samples.
        max_n: n-grams up to this length, weighted equally.
        epsilon: added to the numerator of a p_n without any match; 0 makes such a sample's BLEU 0 (samples of fewer than max_n tokens
            too). A sample that shares no token with others is 0 in any case.
    """
    lengths = sequences.lengths
    logs = np.zeros(len(sequences))
    dead = np.zeros(len(sequences), bool)
    for n in range(1, max_n + 1):
        numbered = sequences.ngrams(n)
        rows, ids, counts = _counts(numbered, sequences.offsets)
        matched = _clipped_matches(rows, ids, counts, numbered.numbered)
        possible = np.maximum(lengths - (n - 1), 1)
        precision = np.where(matched > 0, matched, epsilon if n > 1 else 0.0) / possible
        dead |= precision <= 0
        logs += np.log(np.where(precision > 0, precision, 1.0)) / max_n
    nearest = _nearest_other_length(lengths)
    brevity = np.minimum(0.0, 1 - nearest / np.maximum(lengths, 1))
    return np.where(dead, 0.0, np.exp(logs + brevity))


def self_repetition(sequences: Sequences, n: int = 4) -> float:
    """Return the mean over samples of ln(1 + sum over the sample's distinct n-grams of the number of other samples that have it).

    Salkar et al. 2022, with distinct n-grams, as the `diversity` package of Shaib et al. counts them.
    """
    if not len(sequences):
        return float("nan")
    numbered = sequences.ngrams(n)
    rows, ids, _ = _counts(numbered, sequences.offsets)
    others = np.bincount(ids, minlength=numbered.numbered)[ids] - 1
    totals = np.concatenate([[0], np.cumsum(others)])
    return float(np.log1p(totals[rows[1:]] - totals[rows[:-1]]).mean())


def token_counts(sequences: Sequences, document_frequency: bool = False) -> Longs:
    """Return how often each token occurs, or in how many samples; tokens that don't occur are left out."""
    numbered = sequences.ngrams(1)
    ids = numbered.ids
    if document_frequency:
        _, ids, _ = _counts(numbered, sequences.offsets)
    return np.bincount(ids, minlength=numbered.distinct)


def entropy(counts: NDArray[np.integer]) -> float:
    """Return the Shannon entropy of counts in bits: -sum p log2 p."""
    positive = counts[counts > 0].astype(np.float64)
    if not len(positive):
        return float("nan")
    shares = positive / positive.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def effective_types(counts: NDArray[np.integer]) -> float:
    """Return 2^entropy: how many equally frequent types have the same entropy (the Hill number of order 1)."""
    return float(2 ** entropy(counts))


def mtld(sequences: Sequences, threshold: float = 0.72, min_tokens: int = 50) -> float:
    """Return the mean measure of textual lexical diversity of the samples that have at least `min_tokens` (McCarthy & Jarvis 2010).

    A factor is a run of tokens whose share of distinct ones has come down to the threshold; the rest counts as the part of a factor
    that it has come. MTLD = tokens / factors, the mean of reading forwards and backwards; without a repeated token it is the length.

    Args:
        sequences: the samples.
        threshold: share of distinct tokens at which a factor is full, in (0, 1).
        min_tokens: shorter samples are left out: their value depends on the remainder alone.
    """
    numbered = sequences.ngrams(1)
    each = _mtld_each(numbered.ids, sequences.offsets, numbered.distinct, threshold, min_tokens)
    return float(np.nanmean(each)) if np.isfinite(each).any() else float("nan")


def compression_ratio(texts: Iterable[str]) -> float:
    """Return bytes / bytes after gzip (level 9) of the texts in UTF-8, one after the other with a line feed between.

    High means redundant, so more is *less* diverse. The stream is compressed once. It depends a little on the order of the texts (a
    window of 32 KB) and on the zlib in use.
    """
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    before = after = 0
    border = b""
    for text in texts:
        content = border + text.encode("utf-8")
        before += len(content)
        after += len(squeeze.compress(content))
        border = b"\n"
    return before / (after + len(squeeze.flush())) if before else float("nan")


def _counts(numbered: Ngrams, offsets: Longs) -> tuple[Longs, Ints, Ints]:
    """Return (rows, ids, counts): a CSR of the distinct numbered n-grams of each sample with their counts in it."""
    rows = np.zeros(len(offsets), np.int64)
    ids, counts = np.empty((2, len(numbered.ids)), np.int32)
    place = np.full(numbered.numbered, -1, np.int32)  # an index into less than 2^31 tokens
    _count_by_sample(numbered.ids, offsets, place, rows, ids, counts)
    return rows, ids[: rows[-1]], counts[: rows[-1]]


@njit(cache=True)
def _count_by_sample(numbers: Ints, offsets: Longs, place: Ints, rows: Longs, ids: Ints, counts: Ints) -> None:
    used = 0
    for sample in range(len(offsets) - 1):
        start = used
        for i in range(offsets[sample], offsets[sample + 1]):
            if numbers[i] < 0:
                continue
            if place[numbers[i]] < start:
                place[numbers[i]] = used
                ids[used] = numbers[i]
                counts[used] = 0
                used += 1
            counts[place[numbers[i]]] += 1
        rows[sample + 1] = used


@njit(cache=True)
def _clipped_matches(rows: Longs, ids: Ints, counts: Ints, numbered: int) -> Longs:
    """Return for each sample the sum over its n-grams of min(count here, largest count in another sample).

    Most counts are 1. For those it is enough to know whether two samples have the n-gram: a byte, found in a cache where the larger counts'
    table would not be.
    """
    samples = np.zeros(numbered, np.uint8)  # that have the n-gram: 0, 1, or 2 for more
    # Largest count, second largest, and whose the largest is, of counts above 1.
    best = np.zeros((numbered, 3), np.int32)
    for sample in range(len(rows) - 1):
        for j in range(rows[sample], rows[sample + 1]):
            samples[ids[j]] = min(samples[ids[j]] + 1, 2)
            if counts[j] == 1:
                continue
            own = best[ids[j]]
            if counts[j] > own[0]:
                own[1] = own[0]
                own[0] = counts[j]
                own[2] = sample
            elif counts[j] > own[1]:
                own[1] = counts[j]
    matched = np.zeros(len(rows) - 1, np.int64)
    for sample in range(len(rows) - 1):
        for j in range(rows[sample], rows[sample + 1]):
            if samples[ids[j]] < 2:
                continue
            other = 1
            if counts[j] > 1:
                own = best[ids[j]]
                other = max(other, own[1] if own[2] == sample else own[0])
            matched[sample] += min(counts[j], other)
    return matched


def _nearest_other_length(lengths: Longs) -> Longs:
    """Return for each sample the length of another one that is nearest to its own, the shorter of two that are equally near."""
    order = np.argsort(lengths, kind="stable")
    ordered = lengths[order]
    far = np.int64(1) << np.int64(60)
    below = np.concatenate([[-far], ordered[:-1]])
    above = np.concatenate([ordered[1:], [far]])
    nearest = np.empty_like(lengths)
    nearest[order] = np.where(ordered - below <= above - ordered, below, above)
    return nearest


@njit(cache=True)
def _mtld_each(ids: Ints, offsets: Longs, distinct: int, threshold: float, min_tokens: int) -> Floats:
    result = np.full(len(offsets) - 1, np.nan)
    seen = np.full(distinct, -1, np.int64)
    run = 0
    for sample in range(len(offsets) - 1):
        start, end = offsets[sample], offsets[sample + 1]
        if end - start < max(1, min_tokens):
            continue
        both = 0.0
        for backwards in range(2):
            factors, types, length = 0.0, 0, 0
            run += 1
            for step in range(end - start):
                token = ids[end - 1 - step] if backwards else ids[start + step]
                length += 1
                if seen[token] != run:
                    seen[token] = run
                    types += 1
                if types <= threshold * length:
                    factors += 1
                    types, length = 0, 0
                    run += 1
            if length > 0:
                factors += (1 - types / length) / (1 - threshold)
            both += (end - start) / factors if factors > 0 else float(end - start)
        result[sample] = both / 2
    return result
