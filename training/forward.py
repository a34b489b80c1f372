"""A model's logits at some places of a row, for models that take less than Llama does."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

ROWS_BY = "sft_rows_by"  # set on a model by `training.probe`: bounds, mask, positions or alone


def base_of(model: Any) -> Any:
    """Return the model of transformers itself, out of its adapters if it has some."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


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
