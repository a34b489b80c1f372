"""Negative log-likelihood of held-out responses: how surprised the model is by what it should have answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pydantic import Field

from diversity.config import Config, UserError
from diversity.keys import order, priorities, sample_keys
from training.evaluators import Score, Subject

if TYPE_CHECKING:
    from training.chat import Tokenised

PRIMARY_SPLIT = "out"


class NllOptions(Config):
    """Which responses are scored, and how much of them.

    Attributes:
        max_samples: of a split at most, the same ones for every run; None takes all.
        max_response_tokens: the first so many of each response, its end of turn included; None takes all.
        min_response_tokens: shorter responses are left out.
    """

    max_samples: int | None = Field(default=None, ge=1)
    max_response_tokens: int | None = Field(default=None, ge=1)
    min_response_tokens: int = Field(default=20, ge=1)


class NothingToScore(UserError):
    """No held-out response is long enough."""


def evaluate(subject: Subject, options: NllOptions) -> list[Score]:
    """Return the NLL per response token in nats on each split, macro-averaged: the mean over samples of each sample's mean.

    Its standard error is that of a mean of n independent samples. The score on `out` is the primary one: on `in` a model is rewarded
    for likeness to the corpus.
    """
    scores = []
    for split, samples in subject.splits.items():
        values = sample_nll(subject, _chosen(subject, samples, split, options), options)
        figures = np.array(list(values.values()))
        se = float(figures.std(ddof=1) / np.sqrt(len(figures))) if len(figures) > 1 else float("nan")
        primary = split == PRIMARY_SPLIT
        scores.append(Score(split, "nll", float(figures.mean()), se, len(figures), False, primary, values))
    return scores


def sample_nll(subject: Subject, tokenised: Tokenised, options: NllOptions) -> dict[str, float]:
    """Return each sample's mean NLL per response token, by id, on every rank.

    Samples are packed into rows as in training, so nothing is padded; each rank computes its rows and the sums are added up.
    """
    import torch

    from training.checkpoint import synchronise
    from training.loss import token_nll
    from training.packing import Batch, Share

    longest = options.max_response_tokens or np.iinfo(np.int64).max
    shares = [Share(i, 0, int(min(length, longest))) for i, length in enumerate(tokenised.response_tokens())]
    batch = Batch.of(tokenised, shares, capacity=subject.capacity, world_size=subject.world.size)
    sums = torch.zeros(len(shares), dtype=torch.float64)
    subject.model.eval()
    with torch.no_grad():
        for items, row in zip(batch.rows, batch.of_rank(subject.world.rank), strict=True):
            nll = token_nll(subject.model, row, subject.world.device)
            if row.counts:
                owner = torch.from_numpy(np.array(items[subject.world.rank])[row.owner])
                sums.index_add_(0, owner, nll.double().cpu())
    subject.model.train()
    sums = synchronise(sums.to(subject.world.device)).cpu()
    counts = [share.last for share in shares]
    return {sample: float(total) / count for sample, total, count in zip(tokenised.sample_ids, sums, counts, strict=True)}


def _chosen(subject: Subject, samples: pa.Table, split: str, options: NllOptions) -> Tokenised:
    """Return the samples that every run scores: those long enough, in the order of a keyed hash, as many as wanted."""
    from training.chat import tokenise

    places = order(priorities(sample_keys(samples["sample_id"]), 0, "evaluate"))
    # Tokenise in growing stretches, so that 64 samples of a large split cost no more than they must.
    stretch = len(places) if options.max_samples is None else 2 * options.max_samples
    while True:
        found = tokenise(samples.take(pa.array(places[:stretch])), subject.chat, max_length=subject.max_length)
        long_enough = np.flatnonzero(found.response_tokens() >= options.min_response_tokens)
        if stretch >= len(places) or len(long_enough) >= (options.max_samples or 0):
            break
        stretch *= 2
    if not len(long_enough):
        raise NothingToScore(
            f"no held-out response of split {split} has {options.min_response_tokens} tokens: lower min_response_tokens of nll"
        )
    kept = long_enough[: options.max_samples]
    return type(found)([found.sample_ids[i] for i in kept], [found.tokens[i] for i in kept], found.counts)
