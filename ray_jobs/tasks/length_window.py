"""The control `length-window`: a corpus derived from the experiment's own, of responses about as long as each other.

Ours: the paper compares within one length by hand. The derived corpus is an artifact of the corpus layout, with frequencies and a band of
its own; all that is made over it is made by the code that serves the experiment's own corpus, through a context that has it in its place.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from diversity.artifact import Artifact, fingerprint, package_versions
from diversity.config import ConfigError
from diversity.selection.controls import densest_window
from ray_jobs.job.runtime import Context
from ray_jobs.tasks.corpus_rows import derive_corpus

NAME = "length-window"
VERSION = 2


def over_window(context: Context, corpus: Artifact, lengths: Artifact) -> Context:
    """Return the experiment over its derived corpus: the band is scaled to it, and its artifacts have names of their own.

    Args:
        context: of the experiment over its own corpus.
        corpus: that corpus.
        lengths: its typing response-micro, which holds the response's length in the model's tokens.
    """
    experiment = context.experiment
    window = experiment.grid.length_window
    name = fingerprint(
        stage="length-window",
        version=VERSION,
        config={"window": list(window) if window else None},
        packages=package_versions("pyarrow"),
        parents=[corpus.fingerprint, lengths.fingerprint],
    )
    band = experiment.profile.band.model_copy(update={"scaled": True})
    return dataclasses.replace(
        context,
        experiment=experiment.model_copy(update={"profile": experiment.profile.model_copy(update={"band": band})}),
        corpus=context.storage.artifact("corpus", name),
        suffix=f"~{NAME}",
        _known={},
    )


def derive(context: Context, corpus: Artifact, lengths: Artifact, target: Artifact) -> None:
    """Seal the corpus of the samples whose response lies in the window; nothing to do where it is sealed.

    Raises:
        ConfigError: no response lies in the window that was asked for.
    """
    if target.sealed:
        return
    context.connect()
    tokens = lengths.read(columns=["tokens"]).column("tokens").to_numpy()
    low, high = context.experiment.grid.length_window or densest_window(tokens)
    inside = np.flatnonzero((low <= tokens) & (tokens <= high))
    if not len(inside):
        raise ConfigError(
            f"grid.length_window: no response has {low} to {high} tokens; the shortest has {tokens.min()}, the longest {tokens.max()}"
        )
    derive_corpus(corpus, inside, target, {"stage": NAME, "version": VERSION, "window": [low, high]}, context.workers)
