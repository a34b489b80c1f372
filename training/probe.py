"""Before any training, a second of work: does this model, as it is, see packed samples as it sees each alone?

Two short samples go through the model packed into one row, each by itself, and each through transformers' plain forward; the logits of all
three must agree. Of the ways to tell a model where samples begin, the first that passes is used: our attention with the samples' bounds;
transformers' own masks, made from position ids that begin anew; a mask of ours. Where packed samples leak into each other whatever they are
told (state-space and linear-attention layers), a row holds one sample. Where even that is not the plain forward, or a later token changes
an earlier one's logits, the model is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from diversity.config import UserError
from training.attention import PACKED, use_packed_attention
from training.chat import NO_LABEL, Encoded
from training.forward import ROWS_BY, base_of, logits_at, setting, taken
from training.loss import has_plain_head
from training.packing import collate, model_inputs

LENGTHS = (14, 11)  # tokens of the two samples
WINDOW = 6  # what windows are narrowed to meanwhile, so that short samples show whether they are kept
WINDOWS = ("sliding_window", "attention_chunk_size")
NEAR = 2e-3  # largest difference of two logits, in standard deviations of all logits
NEAR_HALF = 0.06  # and in half precision their mean difference


class Unsupported(UserError):
    """A model that can't be trained here; the message says why."""


@dataclass(frozen=True)
class Verdict:
    """How a model is trained.

    Attributes:
        attention: transformers' name of its attention.
        rows: how it is told where samples begin (`bounds`, `positions`, `mask`), or `alone` for rows of one sample.
        plain_head: whether its loss can be had from its last hidden states and its output layer's weight.
        why: what speaks against the ways that come before this one.
    """

    attention: str
    rows: str
    plain_head: bool
    why: tuple[str, ...] = ()

    def told(self) -> str:
        """Return what a person is told of a way that is slower than the first."""
        how = {
            "alone": "every row holds one sample, which is slower",
            "positions": f"transformers' own masks for packed rows ({self.attention}), which cost the square of a row's length",
            "mask": f"a mask over each row ({self.attention}), which costs the square of a row's length",
        }
        because = f" ({'; '.join(self.why)})" if self.why else ""
        return f"packing: {how.get(self.rows, self.rows)}{because}"


def settle(model: Any, device: Any) -> Verdict:
    """Find out how a model is trained, set it so, and return what was found. With ZeRO stage 3, all ranks call this.

    Args:
        model: a causal language model of transformers on its device, with adapters or without.
        device: where it is.

    Raises:
        Unsupported: in no way.
    """
    was_training = model.training
    first = use_packed_attention(model)
    model.eval()
    try:
        with torch.no_grad(), _narrow_windows(base_of(model)):
            return _Probe(model, device).verdict(first)
    finally:
        model.train(was_training)


class _Probe:
    """Two samples on their way through one model."""

    def __init__(self, model: Any, device: Any) -> None:
        self.model, self.base, self.device = model, base_of(model), device
        self.name = self.base.config.model_type
        self.samples = _samples(self.base.config.get_text_config())
        self.half = next(model.parameters()).dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled(
            torch.device(device).type
        )

    def verdict(self, first: str) -> Verdict:
        """Set the model to the first way that gives the plain logits, and say which one and why."""
        own = first if first != PACKED else "sdpa" if self.base._supports_sdpa else "eager"
        self.use(own, "alone")
        plain = self.plain()
        ways = [(PACKED, "bounds")] if first == PACKED else []
        ways += [(own, "positions"), (own, "mask"), (own, "alone")]
        why: list[str] = []
        for attention, rows in ways:
            self.use(attention, rows)
            fault = self.fault(rows, plain)
            if not fault:
                head = self.head_is_plain(plain)
                return Verdict(attention, rows, head, tuple(why))
            why.append(f"{rows}: {fault}")
        raise Unsupported(f"{self.name} models can't be trained here; {why[-1]}")

    def use(self, attention: str, rows: str) -> None:
        """Set attention, and how the model is told where samples begin."""
        if self.base.config._attn_implementation != attention:
            self.base.set_attn_implementation(attention)
        setattr(self.base, ROWS_BY, rows)

    def plain(self) -> list[torch.Tensor]:
        """Return the samples' logits by transformers' plain forward.

        Raises:
            Unsupported: there is none, or a later token changes them.
        """
        try:
            found = [self.logits(one.input_ids) for one in self.samples]
            last_changed = self.logits(np.append(self.samples[0].input_ids[:-1], self.samples[0].input_ids[:1]))
        except Exception as error:  # a model that wants more than tokens
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            raise Unsupported(f"{self.name} models can't be trained here: tokens alone don't go through them ({reason})") from None
        if not all(one.isfinite().all() for one in found):
            raise Unsupported(f"{self.name} models can't be trained here: this one's logits are not finite")
        if not self.agree(last_changed[:-1], found[0][:-1]):
            raise Unsupported(f"{self.name} models can't be trained here: this one is not causal, later tokens change earlier logits")
        return found

    def logits(self, ids: np.ndarray) -> torch.Tensor:
        """Return a sample's logits by the plain forward, `(l, V)`."""
        inputs = {"input_ids": torch.from_numpy(ids.astype(np.int64))[None].to(self.device), "use_cache": False}
        return self.model(**taken(self.model, inputs)).logits[0].float()

    def fault(self, rows: str, plain: list[torch.Tensor]) -> str:
        """Return what speaks against a way, or nothing."""
        try:
            apart = [self.row([number]) for number in range(len(self.samples))]
            packed = apart if rows == "alone" else list(self.row([0, 1]).split(LENGTHS))
        except Exception as error:  # whatever a model raises, it can't be told in this way
            return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        if not all(map(self.agree, apart, plain)):
            return "a sample by itself has not the logits of transformers' plain forward"
        return "" if all(map(self.agree, packed, apart)) else "a packed sample sees its neighbour"

    def row(self, part: list[int]) -> torch.Tensor:
        """Return a row's logits at all its places, as training computes them."""
        batch = collate(self.samples, part)
        places = torch.arange(batch.input_ids.shape[1], device=self.device)
        return logits_at(self.model, places, model_inputs(batch, self.model, self.device)).float()

    def head_is_plain(self, plain: list[torch.Tensor]) -> bool:
        """Return whether logits are those of the output layer on the last hidden states, where it is thought so."""
        head = self.model.get_output_embeddings()
        if not has_plain_head(self.model) or hasattr(head.weight, "ds_id"):  # a rank's part of a weight can't be looked at here
            return has_plain_head(self.model)
        inputs = model_inputs(collate(self.samples, [0]), self.model, self.device)
        return self.agree(head(self.model.get_decoder()(**inputs, use_cache=False).last_hidden_state[0]).float(), plain[0])

    def agree(self, found: torch.Tensor, wanted: torch.Tensor) -> bool:
        """Return whether logits are the same but for rounding."""
        if found.shape != wanted.shape:
            return False
        difference, scale = (found - wanted).abs(), float(wanted.std()) + 1e-12
        return bool(difference.mean() <= NEAR_HALF * scale if self.half else difference.max() <= NEAR * scale)


def _samples(config: Any) -> list[Encoded]:
    """Return two samples of tokens that the model's configuration gives no special meaning."""
    special = {str(name): value for name, value in vars(config).items() if str(name).endswith("_token_id")}
    flat = [one for some in special.values() for one in (some if isinstance(some, (list, tuple)) else [some]) if isinstance(one, int)]
    ordinary = np.setdiff1d(np.arange(min(config.vocab_size, 50_000)), flat)
    ids = np.random.default_rng(0).choice(ordinary, sum(LENGTHS)).astype(np.int32)
    made = []
    for part in np.split(ids, np.cumsum(LENGTHS)[:-1]):
        labels = part.copy()
        labels[0] = NO_LABEL
        made.append(Encoded(part, labels, len(part) - 1))
    return made


@contextlib.contextmanager
def _narrow_windows(base: Any) -> Iterator[None]:
    """Have every sliding window and chunk of attention so narrow that the samples are longer, in configurations and in layers."""
    parts = [base.config, base.config.get_text_config(), *(one for one in vars(base.config).values() if hasattr(one, "model_type"))]
    before = []
    for holder in [*{id(one): one for one in parts}.values(), *base.modules()]:
        for name in WINDOWS:
            value = setting(holder, name)
            if isinstance(value, int) and not isinstance(value, bool) and value > WINDOW:
                before.append((holder, name, value))
                setattr(holder, name, WINDOW)
    try:
        yield
    finally:
        for holder, name, value in before:
            setattr(holder, name, value)
