"""Negative log-likelihood of held-out responses: how surprised a model is by what it should have answered."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from diversity.config import Config, UserError
from diversity.keys import order, priorities, sample_keys
from training.chat import NO_LABEL, ChatEncoder, Encoded, conversations, cut_response, fit
from training.evaluators import SampleFigures, Score, Subject, group_numbers, mean_and_error
from training.evaluators.strata import METRICS, N_CODES, TokenStrata
from training.forward import alone, logits_at, most_tokens
from training.packing import ONE_SAMPLE, Batch, assign, collate, learnt, model_inputs
from training.templates import Unrenderable

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
        max_length: tokens of a sample; what is longer is cut at its response's end, as is what the model has no positions for.
        row_tokens: tokens of a packed row; null takes 512 on a CPU and 8192 on a GPU. It changes no score.
        strata: whether the NLL follows by kind of token, too: by band of document frequency in the corpus, and by seen or unseen in
            the dataset that the run was trained on.
    """

    max_samples: int | None = Field(default=None, ge=1)
    max_response_tokens: int | None = Field(default=None, ge=1)
    min_response_tokens: int = Field(default=PRIMARY_MIN_TOKENS, ge=1)
    max_length: int = Field(default=2048, ge=8)
    row_tokens: int | None = Field(default=None, ge=1)
    strata: bool = True


def evaluate(subject: Subject, config: NllConfig) -> Iterator[Score]:
    """Yield for each split the NLL per response token in nats, macro-averaged: the mean over samples of each sample's mean.

    The standard error is that of a mean over prompt groups. The score on `out` is the primary one: on `in`, a model is rewarded for
    likeness to the corpus. Where it is known what the model was trained on, the same follows by kind of token (`strata.METRICS`): each
    macro-averaged over the samples that have such tokens. `seen_share` is the share of a response's tokens that the dataset has.
    """
    strata = subject.trained_on.strata(subject.encoder) if subject.trained_on and config.strata else None
    config = config.model_copy(update={"max_length": most_tokens(subject.model, config.max_length)})
    for split, samples in subject.splits.items():
        places, encoded = chosen(samples, split, subject.encoder, config)
        found = sample_nll(
            subject.model,
            encoded,
            subject.device,
            row_tokens=config.row_tokens,
            rank=subject.rank,
            world_size=subject.world_size,
            strata=strata,
        )
        groups = group_numbers(samples)[places]
        ids = samples["sample_id"].take(pa.array(places)).to_pylist()
        single = SampleFigures(ids, groups, np.array([sample.response_tokens for sample in encoded], np.int32), found.means)
        mean, se = mean_and_error(found.means, groups)
        primary = split == PRIMARY_SPLIT and config.min_response_tokens >= PRIMARY_MIN_TOKENS
        yield Score(split, "nll", mean, se, len(ids), higher_is_better=False, primary=primary, samples=single)
        for metric, codes in METRICS.items() if strata else ():
            counts = found.counts[:, codes].sum(1)
            have = counts > 0
            if have.any():
                mean, se = mean_and_error(found.sums[have][:, codes].sum(1) / counts[have], groups[have])
                yield Score(split, metric, mean, se, int(have.sum()), higher_is_better=False)
        if strata and (texts := found.counts[:, 1:].sum(1) > 0).any():
            share = found.counts[texts][:, METRICS["nll_seen"]].sum(1) / found.counts[texts, 1:].sum(1)
            mean, se = mean_and_error(share, groups[texts])
            yield Score(split, "seen_share", mean, se, int(texts.sum()), higher_is_better=True)


def chosen(samples: pa.Table, split: str, encoder: ChatEncoder, config: NllConfig) -> tuple[np.ndarray, list[Encoded]]:
    """Return places (rows of the table) and tokens of the samples that every run scores: so many as are wanted, by a keyed hash.

    Which they are depends on the samples, the tokenizer and the config, never on the run.

    Raises:
        NothingToScore: no response is long enough.
    """
    places = order(priorities(sample_keys(samples["sample_id"]), 0, "evaluate"))
    wanted = config.max_samples or len(places)
    found: list[int] = []
    encoded: list[Encoded] = []
    left_out = 0
    for start in range(0, len(places), 256):  # 64 samples of a large split cost no more than they must
        some = places[start : start + 256]
        for place, whole in zip(some.tolist(), encoder.sequences(*conversations(samples.take(pa.array(some)))), strict=True):
            sample = None if isinstance(whole, Unrenderable) else _scored_part(whole[-1], config)
            if sample is None:
                left_out += 1
            elif len(found) < wanted:
                found.append(place)
                encoded.append(sample)
        if len(found) == wanted:
            break
    if not found:
        raise NothingToScore(
            f"none of {len(places)} held-out samples of split {split} has a response of {config.min_response_tokens} tokens within "
            f"{config.max_length}: lower min_response_tokens or raise max_length of the evaluator nll"
        )
    why = "passed over: response too short, prompt too long, or refused by the chat template"
    logger.info("nll on %d samples of split %s (%d %s)", len(found), split, left_out, why)
    return np.array(found, np.int64), encoded


@dataclass(frozen=True)
class SampleNll:
    """The NLL of samples: each sample's mean per response token `(n,)`, and by stratum its sums and token counts `(n, codes)`."""

    means: np.ndarray
    sums: np.ndarray
    counts: np.ndarray


def sample_nll(
    model: Any,
    encoded: Sequence[Encoded],
    device: Any,
    *,
    row_tokens: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    strata: TokenStrata | None = None,
) -> SampleNll:
    """Return each sample's NLL in nats, float64, on every rank; without strata there is one code, 0.

    Samples are packed into rows as in training, so nothing is padded, and logits are computed where a label asks for them only.
    """
    import torch

    lengths = np.array([len(sample) for sample in encoded])
    row_tokens = ONE_SAMPLE if alone(model) else max(row_tokens or ROW_TOKENS.get(torch.device(device).type, 512), int(lengths.max()))
    codes = strata.codes if strata else None
    sums = torch.zeros(len(encoded), 1 + (N_CODES if strata else 1), dtype=torch.float64, device=device)  # the first column: all tokens
    for part in assign(range(len(encoded)), lengths, row_tokens, world_size)[rank]:
        batch = collate(encoded, part)
        owner = torch.tensor(batch.sample_indices, dtype=torch.int64, device=device)[torch.from_numpy(_owners(batch)).to(device)]
        found = token_nll(model, batch, device).double()
        sums[:, 0].index_add_(0, owner, found)
        labels = batch.labels[0][batch.labels[0] != NO_LABEL]
        code = torch.from_numpy(codes[labels].astype(np.int64) if codes is not None else np.zeros(len(labels), np.int64)).to(device)
        sums.view(-1).index_add_(0, owner * sums.shape[1] + 1 + code, found)
    if world_size > 1:
        torch.distributed.all_reduce(sums)
    totals = sums.cpu().numpy()
    return SampleNll(totals[:, 0] / np.array([sample.response_tokens for sample in encoded]), totals[:, 1:], _counts(encoded, codes))


def _counts(encoded: Sequence[Encoded], codes: np.ndarray | None) -> np.ndarray:
    """Return each sample's labelled tokens by stratum, `(n, codes) int64`."""
    if codes is None:
        return np.array([[sample.response_tokens] for sample in encoded], np.int64)
    return np.stack([np.bincount(codes[sample.labels[sample.labels != NO_LABEL]], minlength=N_CODES) for sample in encoded])


def token_nll(model: Any, batch: Batch, device: Any) -> Any:
    """Return the NLL of each labelled token of a packed row, in order, as a float32 tensor."""
    import torch

    found = learnt(batch, device)
    places, targets = found["predicting"], found["targets"]
    with torch.no_grad():
        # An empty row asks for one place all the same: with ZeRO stage 3, every rank must go through every layer.
        asked = places if len(places) else torch.zeros(1, dtype=torch.int64, device=device)
        logits = logits_at(model, asked, model_inputs(batch, model, device))[: len(places)]
        pieces = zip(logits.split(LOGIT_ROWS), targets.split(LOGIT_ROWS), strict=True)
        losses = [torch.nn.functional.cross_entropy(logit.float(), label, reduction="none") for logit, label in pieces]
    return torch.cat(losses)


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
