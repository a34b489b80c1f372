"""Negative log-likelihood of held-out responses: how surprised a model is by what it should have answered."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from diversity.config import Config, UserError
from diversity.keys import order, priorities, sample_keys
from training.chat import NO_LABEL, ChatEncoder, Encoded, cut_response, fit
from training.evaluators import Score, Subject
from training.packing import Batch, assign, collate, model_inputs

logger = logging.getLogger(__name__)

PRIMARY_SPLIT = "out"
PRIMARY_MIN_TOKENS = 20
ROW_TOKENS = {"cpu": 512, "cuda": 8192}  # a mask makes attention over a row cost its square, so rows are short where one is needed
LOGIT_ROWS = 1024  # positions whose logits are held in fp32 at once


class NothingToScore(UserError):
    """No held-out response of a split can be scored."""


class NllConfig(Config):
    """Which responses are scored, and how much of them.

    Attributes:
        max_samples: of a split at most, the same ones for every run; null takes all.
        max_response_tokens: the first so many of each response; null takes all.
        min_response_tokens: shorter responses, their end of turn included, are left out. Below 20, no score is primary.
        max_length: tokens of a sample; what is longer is cut at its response's end.
        row_tokens: tokens of a packed row; null takes 512 on a CPU and 8192 on a GPU. It changes no score.
    """

    max_samples: int | None = Field(default=None, ge=1)
    max_response_tokens: int | None = Field(default=None, ge=1)
    min_response_tokens: int = Field(default=PRIMARY_MIN_TOKENS, ge=1)
    max_length: int = Field(default=2048, ge=8)
    row_tokens: int | None = Field(default=None, ge=1)


def evaluate(subject: Subject, config: NllConfig) -> Iterator[Score]:
    """Yield for each split the NLL per response token in nats, macro-averaged: the mean over samples of each sample's mean.

    The standard error is that of a mean of n independent samples. The score on `out` is the primary one: on `in`, a model is rewarded
    for likeness to the corpus.
    """
    for split, samples in subject.splits.items():
        ids, encoded = chosen(samples, split, subject.encoder, config)
        values = sample_nll(
            subject.model, encoded, subject.device, row_tokens=config.row_tokens, rank=subject.rank, world_size=subject.world_size
        )
        se = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
        primary = split == PRIMARY_SPLIT and config.min_response_tokens >= PRIMARY_MIN_TOKENS
        each = dict(zip(ids, values.tolist(), strict=True))
        yield Score(split, "nll", float(values.mean()), se, len(values), higher_is_better=False, primary=primary, samples=each)


def chosen(samples: pa.Table, split: str, encoder: ChatEncoder, config: NllConfig) -> tuple[list[str], list[Encoded]]:
    """Return ids and tokens of the samples that every run scores: in the order of a keyed hash, so many as are wanted.

    Which they are depends on the samples, the tokenizer and the config, never on the run.

    Raises:
        NothingToScore: no response is long enough.
    """
    places = order(priorities(sample_keys(samples["sample_id"]), 0, "evaluate"))
    wanted = config.max_samples or len(places)
    ids: list[str] = []
    encoded: list[Encoded] = []
    left_out = 0
    for start in range(0, len(places), 256):  # 64 samples of a large split cost no more than they must
        some = samples.take(pa.array(places[start : start + 256]))
        for sample_id, whole in zip(some["sample_id"].to_pylist(), encoder.encode_all(some["messages"].to_pylist()), strict=True):
            sample = _scored_part(whole, config)
            if sample is None:
                left_out += 1
            elif len(ids) < wanted:
                ids.append(sample_id)
                encoded.append(sample)
        if len(ids) == wanted:
            break
    if not ids:
        raise NothingToScore(
            f"none of {len(places)} held-out samples of split {split} has a response of {config.min_response_tokens} tokens within "
            f"{config.max_length}: lower min_response_tokens or raise max_length of the evaluator nll"
        )
    logger.info("nll on %d samples of split %s (%d passed over: response too short, or prompt too long)", len(ids), split, left_out)
    return ids, encoded


def sample_nll(
    model: Any, encoded: Sequence[Encoded], device: Any, *, row_tokens: int | None = None, rank: int = 0, world_size: int = 1
) -> np.ndarray:
    """Return each sample's mean NLL per response token in nats, `(n,) float64`, on every rank.

    Samples are packed into rows as in training, so nothing is padded, and logits are computed where a label asks for them only.
    """
    import torch

    lengths = np.array([len(sample) for sample in encoded])
    row_tokens = max(row_tokens or ROW_TOKENS.get(torch.device(device).type, 512), int(lengths.max()))
    sums = torch.zeros(len(encoded), dtype=torch.float64, device=device)
    for part in assign(range(len(encoded)), lengths, row_tokens, world_size)[rank]:
        batch = collate(encoded, part)
        owner = torch.tensor(batch.sample_indices, device=device)[torch.from_numpy(_owners(batch)).to(device)]
        sums.index_add_(0, owner, token_nll(model, batch, device).double())
    if world_size > 1:
        torch.distributed.all_reduce(sums)
    return sums.cpu().numpy() / np.array([sample.response_tokens for sample in encoded])


def token_nll(model: Any, batch: Batch, device: Any) -> Any:
    """Return the NLL of each labelled token of a packed row, in order, as a float32 tensor."""
    import torch

    labels = torch.from_numpy(batch.labels[0]).to(device)
    places = torch.nonzero(labels[1:] != NO_LABEL).flatten()
    with torch.no_grad():
        # An empty row asks for one place all the same: with ZeRO stage 3, every rank must go through every layer.
        asked = places if len(places) else torch.zeros(1, dtype=torch.int64, device=device)
        logits = model(**model_inputs(batch, model, device), use_cache=False, logits_to_keep=asked).logits[0, : len(places)]
        pieces = zip(logits.split(LOGIT_ROWS), labels[places + 1].split(LOGIT_ROWS), strict=True)
        found = [torch.nn.functional.cross_entropy(logit.float(), label, reduction="none") for logit, label in pieces]
    return torch.cat(found)


def _scored_part(sample: Encoded, config: NllConfig) -> Encoded | None:
    """Return what is scored of a sample, or None if its response is too short or its prompt leaves too little room for it."""
    if sample.response_tokens < config.min_response_tokens:
        return None
    cut = sample if config.max_response_tokens is None else cut_response(sample, config.max_response_tokens)
    fitted = fit(cut, config.max_length)
    enough = min(config.min_response_tokens, cut.response_tokens)
    return fitted if fitted is not None and fitted.response_tokens >= enough else None


def _owners(batch: Batch) -> np.ndarray:
    """Return for each labelled token which of the row's samples it belongs to, `(tokens,) int64`."""
    return batch.segment[0][batch.labels[0] != NO_LABEL].astype(np.int64)
