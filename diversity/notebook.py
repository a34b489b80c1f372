"""The dial in one process, for a notebook: an Arrow table or DataFrame in, a dataset out. No Ray, no storage.

    from diversity.notebook import choose, profile
    chosen = choose(frame, size=1000, strategy="response-micro@word", level=1)

    profiled = profile(frame, "response-micro@word")                    # types once, then as many datasets as one likes
    chosen = {level: profiled.choose(1000, level) for level in (0, 0.5, 1)}

It uses the same functions as the jobs and gives the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from diversity.cell import SIDES, Cell, GridConfig, is_typing, typing_parts
from diversity.config import ConfigError, parse
from diversity.corpus.samples import Rejection, Sample, samples_table, to_sample
from diversity.datasets.dataset import DATASET_SCHEMA
from diversity.keys import sample_keys
from diversity.selection.peel import TypedInputs
from diversity.selection.strategies import Inputs, SelectionConfig, prune_typing, select
from diversity.typings.embedders import EmbedderConfig, embed
from diversity.typings.encoders import load_encoder
from diversity.typings.incidence import Incidence
from diversity.typings.taggers import TaggerConfig
from diversity.typings.tags import tags
from diversity.typings.tokens import BandConfig, micro
from diversity.typings.topics import TopicsConfig, topics
from diversity.typings.typed import Typed


def read(rows: Any, source: str = "notebook") -> pa.Table:
    """Return rows of any known format as samples, each once, sorted by sample_id.

    Args:
        rows: an Arrow table, a pandas DataFrame, or a list of dicts (Alpaca, ShareGPT, messages, prompt/completion).
        source: of rows without a `source`.

    Raises:
        ConfigError: a row can't be used; the message says which and why. Jobs count such rows and go on; here nothing is dropped unseen.
    """
    if isinstance(rows, pa.Table):
        rows = rows.to_pylist()
    elif hasattr(rows, "to_dict"):
        rows = rows.to_dict("records")
    samples: dict[str, Sample] = {}
    for number, row in enumerate(rows):
        found = to_sample(row, default_source=source)
        if isinstance(found, Rejection):
            raise ConfigError(f"row {number}: {found.reason}: {found.excerpt}")
        samples.setdefault(found.sample_id, found)
    return samples_table([samples[key] for key in sorted(samples)])


def typed(table: pa.Table, typing: str, *, model: Path | None = None, band: BandConfig | None = None) -> Typed:
    """Return a typing of samples sorted by sample_id, with the default embedder, topics and tagger.

    Args:
        table: sample columns.
        typing: one of the six, or a micro one with `@word` or `@<tiktoken encoding>`.
        model: folder with tokenizer.json, which micro typings without a unit go by.
        band: which document frequencies count; by default 10 to 500 in 117,000 samples, scaled to this table.
    """
    side, granularity, _ = typing_parts(typing)
    if granularity == "micro":
        return micro(table, typing, folder=model, band=band or BandConfig(scaled=True))
    if granularity == "macro":
        return topics(table, embed(table.column(side).to_pylist(), EmbedderConfig()), typing, TopicsConfig())
    return tags(table, typing, TaggerConfig(), EmbedderConfig())


@dataclass
class Profiled:
    """Samples with their types, from which datasets are chosen.

    Attributes:
        table: sample columns, sorted by sample_id.
        strategy: a typing, `random` or `longest`.
        types: the types of each sample, for a typing.
        tokens: response tokens of each sample `(n,) int32`, for `longest`.
    """

    table: pa.Table
    strategy: str
    types: Typed | None = None
    tokens: np.ndarray | None = None
    _pruned: dict[SelectionConfig, TypedInputs] = field(default_factory=dict, repr=False)

    def choose(self, size: int, level: float | Fraction | str = 1, *, seed: int = 0, selection: SelectionConfig | None = None) -> pa.Table:
        """Return a dataset of exactly `size` samples: sample columns and `chosen_for`, sorted by sample_id.

        Args:
            size: samples.
            level: nominal diversity in [0, 1]; without meaning for strategies that have no dial.
            seed: subset seed.
            selection: how the dial turns.

        Raises:
            UserError: the size, level or seed can't be had; the message says what can.
        """
        if size < 1:
            raise ConfigError(f"size {size}: a dataset has 1 sample or more")
        if not 0 <= seed < 2**63:
            raise ConfigError(f"seed {seed}: a subset seed is from 0 to 2**63 - 1")
        selection = selection or SelectionConfig()
        levels = [level] if self.types else [1]
        grid = parse(GridConfig, {"strategies": [self.strategy], "sizes": [size], "levels": levels, "subset_seeds": [seed]})
        keys = sample_keys(self.table.column("sample_id"))
        none = np.zeros(len(self.table), np.int32)
        inputs = Inputs(
            sample_keys=keys,
            tokens=dict.fromkeys(SIDES, none if self.tokens is None else self.tokens),
            source=none,
            source_names=["notebook"],
            typed={self.strategy: self._types(keys, selection)} if self.types else {},
            grid=grid,
        )
        picks = select(inputs, Cell(self.strategy, size, grid.fractions[0] if self.types else None, seed), selection)
        reasons = pa.array(picks.chosen_for, pa.int32())
        return self.table.take(pa.array(picks.rows)).append_column(DATASET_SCHEMA.field("chosen_for"), reasons)

    def _types(self, keys: np.ndarray, selection: SelectionConfig) -> TypedInputs:
        """Return the typing pruned, once for each way of pruning."""
        if selection not in self._pruned:
            assert self.types is not None
            incidence = Incidence.from_lists(self.types.data.column("types"), self.types.types.num_rows)
            contents = self.types.types.column("content").to_pylist()
            self._pruned[selection] = prune_typing(self.types.typing, incidence, contents, keys, selection)
        return self._pruned[selection]


def profile(rows: Any, strategy: str = "response-micro@word", *, model: Path | None = None, band: BandConfig | None = None) -> Profiled:
    """Return rows with the types that a strategy goes by.

    Args:
        rows: see `read`.
        strategy: a typing, or `random` or `longest`.
        model: see `typed`; `longest` goes by its tokens, too.
        band: see `typed`.

    Raises:
        ConfigError: `longest` without a model, or a row that can't be used.
    """
    table = read(rows)
    if is_typing(strategy):
        return Profiled(table, strategy, types=typed(table, strategy, model=model, band=band))
    if strategy != "longest":
        return Profiled(table, strategy)
    if model is None:
        raise ConfigError("longest goes by the model's tokens: give model=, a folder with its tokenizer.json")
    _, offsets = load_encoder("", model).encode(table.column("response").to_pylist())
    return Profiled(table, strategy, tokens=np.diff(offsets).astype(np.int32))


def choose(
    rows: Any,
    size: int,
    strategy: str = "response-micro@word",
    level: float | Fraction | str = 1,
    *,
    seed: int = 0,
    model: Path | None = None,
    selection: SelectionConfig | None = None,
) -> pa.Table:
    """Return one dataset out of rows: `profile(rows, strategy, model=model).choose(size, level, seed=seed, selection=selection)`."""
    return profile(rows, strategy, model=model).choose(size, level, seed=seed, selection=selection)
