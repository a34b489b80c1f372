"""Samples become full rows without padding: what is learnt in which step, in which row, on which rank, from a seed alone.

The order of samples is one endless stream of seeded permutations of the dataset. A step learns exactly `per_step` response tokens of
the stream, so that a budget in response tokens fixes the number of steps; a sample that lies across the border of two steps takes part
in both, each time with its own share of labels (causal attention makes the first share independent of what follows).
Everything here is a pure function of (sample ids, lengths, seed, step): a resumed run goes on with exactly the same data.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from diversity.keys import order, priorities, sample_keys
from training.chat import Tokenised, Tokens


class Share(NamedTuple):
    """The response tokens number first to last - 1 of a sample, to be learnt in one step."""

    sample: int
    first: int
    last: int


class Row(NamedTuple):
    """Samples one behind the other, as they pass through the model at once.

    Attributes:
        ids: input tokens, `(l,) int64`.
        positions: position of each token in its own sample, `(l,) int64`: it starts at 0 with every sample.
        where: places of the row whose prediction counts, `(r,) int64`.
        targets: the tokens to be predicted there, `(r,) int64`.
        owner: which share each target belongs to, as an index into the row's shares, `(r,) int64`.
        counts: False for a row that a rank computes only because the others have one more.
    """

    ids: np.ndarray
    positions: np.ndarray
    where: np.ndarray
    targets: np.ndarray
    owner: np.ndarray
    counts: bool = True


@dataclass(frozen=True)
class Stream:
    """The order in which a run learns response tokens.

    Attributes:
        sample_ids: of the dataset's samples.
        lengths: response tokens of each, `(n,) int64`, at least 1.
        total: response tokens of the whole run.
        per_step: response tokens of a step; the last step may hold fewer.
        seed: of the permutations; every epoch has its own.
    """

    sample_ids: Sequence[str]
    lengths: np.ndarray
    total: int
    per_step: int
    seed: int
    _keys: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_keys", sample_keys(self.sample_ids))
        object.__setattr__(self, "_epoch", lru_cache(maxsize=2)(self._permuted))

    @property
    def steps(self) -> int:
        """Return the number of optimizer steps."""
        return -(-self.total // self.per_step)

    @property
    def per_epoch(self) -> int:
        """Return the response tokens of one pass over the dataset."""
        return int(self.lengths.sum())

    def size(self, step: int) -> int:
        """Return the response tokens of a step."""
        return min(self.per_step, self.total - step * self.per_step)

    def shares(self, step: int) -> list[Share]:
        """Return what a step learns, in the order of the stream; a sample that the step meets in two epochs is there twice.

        Args:
            step: 0 to steps - 1.
        """
        position, end = step * self.per_step, step * self.per_step + self.size(step)
        found: list[Share] = []
        while position < end:
            epoch, offset = divmod(position, self.per_epoch)
            shuffled, ends = self._epoch(epoch)  # type: ignore[attr-defined]
            place = int(np.searchsorted(ends, offset, side="right"))
            sample, begin = int(shuffled[place]), int(ends[place]) - int(self.lengths[shuffled[place]])
            last = min(int(ends[place]), offset + end - position)
            found.append(Share(sample, offset - begin, last - begin))
            position += last - offset
        return found

    def _permuted(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return an epoch's order of samples, and where each one's response tokens end in it."""
        shuffled = order(priorities(self._keys, self.seed, f"epoch {epoch}"))
        return shuffled, np.cumsum(self.lengths[shuffled])


def input_length(tokens: Tokens, share: Share) -> int:
    """Return how many tokens of a sample the model must read to predict a share: all before the share's last token."""
    return int(np.flatnonzero(tokens.learnt)[share.last - 1])


def pack(lengths: Sequence[int], *, capacity: int, world_size: int) -> list[list[list[int]]]:
    """Return which items go into which row: `rows[micro step][rank]` is a list of indices, ascending.

    Longest first, each into the emptiest row (LPT), with the fewest rows that this fits into; rows of one micro step have similar
    lengths, so that no rank waits long. A row may be empty where there are fewer items than rows.

    Args:
        lengths: tokens of each item, each at most capacity.
        capacity: tokens of a row at most.
        world_size: ranks; the number of rows is a multiple of it.
    """
    if max(lengths) > capacity:
        raise ValueError(f"an item of {max(lengths)} tokens does not fit rows of {capacity}")
    longest_first = sorted(range(len(lengths)), key=lambda item: (-lengths[item], item))
    micro_steps = -(-sum(lengths) // (capacity * world_size))
    while (rows := _fill(lengths, longest_first, micro_steps * world_size, capacity)) is None:
        micro_steps += 1
    rows.sort(key=lambda row: (-sum(lengths[item] for item in row), row))
    return [rows[i : i + world_size] for i in range(0, len(rows), world_size)]


def _fill(lengths: Sequence[int], longest_first: Sequence[int], count: int, capacity: int) -> list[list[int]] | None:
    """Return the rows, or None where an item does not fit the emptiest one."""
    emptiest = [(0, number) for number in range(count)]
    rows: list[list[int]] = [[] for _ in range(count)]
    for item in longest_first:
        load, number = heapq.heappop(emptiest)
        if load + lengths[item] > capacity:
            return None
        rows[number].append(item)
        heapq.heappush(emptiest, (load + lengths[item], number))
    return [sorted(row) for row in rows]


def lay_out(tokenised: Tokenised, shares: Sequence[Share], *, counts: bool = True) -> Row:
    """Return the row of some shares."""
    parts: list[tuple[np.ndarray, ...]] = []
    start = 0
    for number, share in enumerate(shares):
        tokens = tokenised.tokens[share.sample]
        learnt = np.flatnonzero(tokens.learnt)[share.first : share.last]
        length = int(learnt[-1])
        where = start + learnt - 1
        parts.append((tokens.ids[:length], np.arange(length), where, tokens.ids[learnt], np.full(len(learnt), number)))
        start += length
    columns = [np.concatenate(column).astype(np.int64) for column in zip(*parts, strict=True)]
    return Row(*columns, counts)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Batch:
    """All rows of a step, of which each rank builds its own.

    Attributes:
        shares: what the step learns.
        rows: `rows[micro step][rank]`, indices into shares; an empty one is computed with the first share and counts nothing.
    """

    tokenised: Tokenised
    shares: list[Share]
    rows: list[list[list[int]]]

    @classmethod
    def of(cls, tokenised: Tokenised, shares: list[Share], *, capacity: int, world_size: int) -> Batch:
        """Return the shares packed into rows."""
        lengths = [input_length(tokenised.tokens[share.sample], share) for share in shares]
        return cls(tokenised, shares, pack(lengths, capacity=capacity, world_size=world_size))

    def of_rank(self, rank: int) -> list[Row]:
        """Return a rank's rows, one for each micro step."""
        chosen = [ranks[rank] for ranks in self.rows]
        return [
            lay_out(self.tokenised, [self.shares[item] for item in items] or self.shares[:1], counts=bool(items)) for items in chosen
        ]

    def sample_ids(self, number: int) -> list[str]:
        """Return the ids of the samples in a row, rows counted through all micro steps and ranks."""
        flat = [items for ranks in self.rows for items in ranks]
        return [self.tokenised.sample_ids[self.shares[item].sample] for item in flat[number]]

    @property
    def tokens(self) -> int:
        """Return the tokens that pass through the model in this step, on all ranks."""
        return sum(input_length(self.tokenised.tokens[share.sample], share) for share in self.shares)
