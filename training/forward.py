"""What differs from model to model: figures of a configuration, what a forward takes, logits at some places of a row."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

ROWS_BY = "sft_rows_by"  # set on a model by `training.probe`: bounds, mask, positions or alone


def base_of(model: Any) -> Any:
    """Return the model of transformers itself, out of its adapters if it has some."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def setting(config: Any, name: str) -> Any:
    """Return what a configuration of transformers says; None where it says nothing, a list where it has a figure for each layer."""
    try:
        return getattr(config, name, None)
    except RuntimeError:  # layers differ, and transformers names none of them
        return [getattr(layer, name, None) for layer in config.per_layer_config]


def figure(config: Any, name: str, otherwise: int) -> int:
    """Return a number of a configuration: the largest where layers differ, and another where it has none."""
    value = setting(config, name)
    values = [one for one in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(one, int)]
    return max(values, default=0) or otherwise


def position_table(model: Any) -> int | None:
    """Return how many positions a model has a table for, learnt (GPT-2, OPT) or fixed (GPT-J); None where it computes any.

    Args:
        model: a causal language model of transformers, with adapters or without; its weights may lie elsewhere.
    """
    from torch import nn

    base = base_of(model)
    most, vocabulary = figure(base.config.get_text_config(), "max_position_embeddings", 0), base.get_input_embeddings()
    learnt = [one for one in base.modules() if isinstance(one, nn.Embedding) and one is not vocabulary]
    tables = {one.num_embeddings - getattr(one, "offset", 0) for one in learnt} | {len(one) for one in base.buffers() if one.ndim == 2}
    return most if most and most in tables else None


def most_tokens(model: Any, wanted: int) -> int:
    """Return how many tokens a sample may have: as many as wanted, or those that the model has positions for."""
    return min(wanted, position_table(model) or wanted)


def rows_by(model: Any) -> str | None:
    """Return how the model is told where a packed row's samples are, as the probe found it, or None before there was a probe."""
    return getattr(base_of(model), ROWS_BY, None)


def alone(model: Any) -> bool:
    """Return whether a row must hold a single sample."""
    return rows_by(model) == "alone"


def taken(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return those of the inputs that the model's forward takes."""
    kind: Any = type(base_of(model))
    names = _arguments(kind)
    return {name: value for name, value in inputs.items() if names is None or name in names}


def logits_at(model: Any, places: Any, inputs: dict[str, Any]) -> Any:
    """Return a row's logits at some places, `(n, V)`.

    Args:
        model: a causal language model of transformers, with adapters or without.
        places: `(n,) int64`, ascending; the output layer sees these alone where the model knows of `logits_to_keep`.
        inputs: what `training.packing.model_inputs` gives.
    """
    found = model(**taken(model, {**inputs, "use_cache": False, "logits_to_keep": places})).logits[0]
    return found if len(found) == len(places) else found[places]


@cache
def _arguments(kind: Any) -> frozenset[str] | None:
    """Return the names of what a class's forward takes; None where it takes anything."""
    parameters = inspect.signature(kind.forward).parameters.values()
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters):
        return None
    return frozenset(one.name for one in parameters)
