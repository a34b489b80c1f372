"""The dial in one process, for a notebook: an Arrow table or DataFrame in, a dataset out. No Ray, no storage.

    from diversity.notebook import choose
    chosen = choose(frame, size=1000, strategy="response-micro@word", level=1)

It uses the same functions as the jobs and gives the same rows.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from diversity.cell import SIDES, Cell, GridConfig, is_typing, typing_parts
from diversity.config import ConfigError
from diversity.dataset import DATASET_SCHEMA
from diversity.embedders import EmbedderConfig, embed
from diversity.incidence import Incidence
from diversity.keys import sample_keys
from diversity.peel import TypedInputs
from diversity.samples import Rejection, Sample, samples_table, to_sample
from diversity.strategies import Inputs, SelectionConfig, prune_typing, select
from diversity.taggers import TaggerConfig
from diversity.tags import tags
from diversity.tokens import BandConfig, micro
from diversity.topics import TopicsConfig, topics
from diversity.typed import Typed


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
    """Return a dataset of exactly `size` samples: sample columns and `chosen_for`, sorted by sample_id.

    Args:
        rows: see `read`.
        size: samples.
        strategy: a typing, or `random` or `longest`.
        level: nominal diversity in [0, 1]; without meaning for strategies that have no dial.
        seed: subset seed.
        model: see `typed`.
        selection: how the dial turns.

    Raises:
        UserError: the size or level can't be had; the message says what can.
    """
    table = read(rows)
    selection = selection or SelectionConfig()
    dialled = is_typing(strategy)
    fraction = Fraction(str(level)) if dialled else None
    keys = sample_keys(table.column("sample_id"))
    inputs = Inputs(
        sample_keys=keys,
        tokens={side: np.array([len(text) for text in table.column(side).to_pylist()], np.int32) for side in SIDES},
        source=np.zeros(len(table), np.int32),
        source_names=["notebook"],
        typed={strategy: _pruned(typed(table, strategy, model=model), keys, selection)} if dialled else {},
        grid=GridConfig(strategies=[strategy], sizes=[size], levels=[fraction if fraction is not None else Fraction(1)]),
    )
    picks = select(inputs, Cell(strategy, size, fraction, seed), selection)
    return table.take(pa.array(picks.rows)).append_column(DATASET_SCHEMA.field("chosen_for"), pa.array(picks.chosen_for, pa.int32()))


def _pruned(found: Typed, keys: np.ndarray, selection: SelectionConfig) -> TypedInputs:
    incidence = Incidence.from_lists(found.data.column("types"), found.types.num_rows)
    contents = found.types.column("content").to_pylist()
    return prune_typing(found.typing, incidence, contents, keys, selection)
