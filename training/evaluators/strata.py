"""Kinds of tokens: by document frequency in the corpus, and by seen or unseen in the dataset that a run was trained on.

Choosing samples for the types they cover lowers the NLL of rare tokens by itself, whatever else it does. Figures by kind of token tell
"knows the token" from "answers better". The bands hold the same tokens for every run; seen and unseen do not: a dataset that covers
more has rarer tokens among those seen and the rarest alone among those unseen, so both figures can rise where no token got worse.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from training.chat import NO_LABEL, ChatEncoder, conversations, fit
from training.templates import Unrenderable

HIGH, MID, LOW = 0, 2, 4  # plus 1 where the token is unseen, plus 1 for all, so that code 0 is no stratum
N_CODES = 7
METRICS: dict[str, list[int]] = {
    "nll_high": [1 + HIGH, 2 + HIGH],
    "nll_mid": [1 + MID, 2 + MID],
    "nll_low": [1 + LOW, 2 + LOW],
    "nll_seen": [1 + HIGH, 1 + MID, 1 + LOW],
    "nll_unseen": [2 + HIGH, 2 + MID, 2 + LOW],
    "nll_mid_seen": [1 + MID],
    "nll_mid_unseen": [2 + MID],
}
"""The codes of the tokens that each metric is over. Mid tokens are those of the band, the types that strategies cover."""


@dataclass(frozen=True)
class TokenStrata:
    """The code of every token id, `(ids,) int8`; 0 are special tokens, those that end a turn above all, which are no types."""

    codes: np.ndarray

    @classmethod
    def of(cls, df: np.ndarray, low: int, high: int, seen: np.ndarray, special: Iterable[int]) -> TokenStrata:
        """Return the strata of a vocabulary.

        Args:
            df: `(ids,)` document frequency of each token in the corpus; 0 where it does not occur, which counts as low.
            low: lowest document frequency of the band.
            high: highest one.
            seen: `(ids,)` bool, whether the token occurs in a response of the dataset.
            special: ids of the special tokens.
        """
        bands = np.where(df > high, HIGH, np.where(df >= low, MID, LOW))
        codes = (1 + bands + ~seen).astype(np.int8)
        codes[list(special)] = 0
        return cls(codes)


@dataclass(frozen=True)
class TrainedOn:
    """What a run was trained on, and the corpus that it was chosen from.

    Attributes:
        samples: the dataset, its columns `messages` and, where there is one, `tools`.
        vocabulary: `content` and `df` of every token of the corpus's responses, ascending by the model's token id.
        low: lowest document frequency of the band.
        high: highest one.
        max_length: tokens of a sample that training saw.
        overlong: what became of longer ones.
    """

    samples: pa.Table
    vocabulary: pa.Table
    low: int
    high: int
    max_length: int
    overlong: Literal["truncate", "drop"] = "truncate"

    def strata(self, encoder: ChatEncoder) -> TokenStrata:
        """Return the strata of the model's tokens."""
        contents = encoder.contents()
        special = encoder.special_ids
        size = max(len(contents), *(number + 1 for number in special))
        return TokenStrata.of(token_df(self.vocabulary, contents, size), self.low, self.high, self._seen(encoder, size), special)

    def _seen(self, encoder: ChatEncoder, size: int) -> np.ndarray:
        """Return `(size,)` bool: whether training had the token as a label."""
        seen = np.zeros(size, bool)
        for start in range(0, len(self.samples), 4096):
            for sequences in encoder.sequences(*conversations(self.samples.slice(start, 4096))):
                for whole in [] if isinstance(sequences, Unrenderable) else sequences:
                    sample = fit(whole, self.max_length, self.overlong)
                    if sample is None:
                        continue
                    seen[sample.labels[sample.labels != NO_LABEL]] = True
        return seen


def token_df(vocabulary: pa.Table, contents: Sequence[bytes], size: int) -> np.ndarray:
    """Return `(size,) int64`: the document frequency of each token id.

    Args:
        vocabulary: `content` and `df`, ascending by token id, without the ids themselves.
        contents: of each token id.
        size: of the result, at least `len(contents)`.

    Raises:
        ValueError: the vocabulary is another tokenizer's.
    """
    df = np.zeros(size, np.int64)
    ids = iter(range(len(contents)))
    for content, count in zip(vocabulary["content"].to_pylist(), vocabulary["df"].to_pylist(), strict=True):
        place = next((i for i in ids if contents[i] == content), None)  # both ascend by id
        if place is None:
            raise ValueError(f"the vocabulary has {content!r}, which the model's tokenizer does not have at that place")
        df[place] = count
    return df
