"""The paper's published points as tables of facts: digitised from its figures (arXiv 2505.24768), +-0.15 points of score.

`marker` tells what a point is worth: `visible` was read off; `solved` was hidden behind another marker and computed from the
published slope or the drawn line, so it can't confirm that slope; `hidden` could not be had (score null). The series at other base
models and with the word tokenizer do not state their size; 10,000 is inferred from the figure.
"""

from __future__ import annotations

from importlib import resources

import pyarrow as pa
import pyarrow.csv as pacsv

MODEL = "Llama-2-7B"
LEVEL_LABELS = (0, 16, 33, 50, 66, 83, 100)


def paper_points() -> pa.Table:
    """Return the digitised scores: model, strategy, size, control, level_percent, score, marker, mean_length (tokens a response).

    `control` is `length-window` for the paper's length control, the nearest of ours to its responses of about 500 tokens.
    """
    return _facts("paper_points.csv")


def paper_slopes() -> pa.Table:
    """Return the published table of slopes: strategy, size, slope_per_100_points (score points x 100 for one per cent of level)."""
    return _facts("paper_slopes.csv")


def paper_correlations() -> pa.Table:
    """Return the published correlations of posterior metrics with the score: side, metric, correlation."""
    return _facts("paper_correlations.csv")


def _facts(name: str) -> pa.Table:
    with resources.files("diversity.effects").joinpath("data", name).open("rb") as stream:
        return pacsv.read_csv(stream, convert_options=pacsv.ConvertOptions(strings_can_be_null=False))
