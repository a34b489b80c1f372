"""Frozen configuration models whose errors name the field, the value and what is allowed.

Every part of the configuration lives beside the code that reads it and derives from `Config`; `ray_jobs/job/experiment.py` composes the
parts. This module may not know any of them.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Seed = Annotated[int, Field(ge=0, lt=2**63)]  # of keyed hashes, which take 64 bits


class Config(BaseModel):
    """A frozen part of the configuration: unknown keys are errors, values are validated when it is made, no number is infinite or NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


T = TypeVar("T", bound="Config")


class UserError(Exception):
    """What a person can mend: the command line shows its message as one line, without a traceback."""

    exit_code = 1


class ConfigError(UserError, ValueError):
    """A configuration that can't be used; the message says which field, which value, and what is allowed."""


def parse(model: type[T], values: Mapping[str, Any]) -> T:
    """Return the validated model, or raise one readable error for everything that is wrong with the values.

    Raises:
        ConfigError: one line per fault; an unknown key is answered with its near matches.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(model, fault) for fault in error.errors())) from None


def load(target: str) -> Any:
    """Return the object named `"package.module:attribute"`: how registries name what they import late."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def lookup(registry: Mapping[str, str], name: str, what: str) -> Any:
    """Return the registered object of that name.

    Raises:
        ConfigError: no such name; the message lists the near matches or else all names.
    """
    if name not in registry:
        raise ConfigError(f"unknown {what} {name!r}{near_matches(name, registry)}")
    return load(registry[name])


def near_matches(name: str, allowed: Any) -> str:
    """Return `": did you mean 'x'?"`, or all allowed names where nothing is near."""
    names = sorted(str(a) for a in allowed)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        return ": did you mean " + " or ".join(repr(n) for n in near) + "?"
    return ": allowed are " + ", ".join(names)


def _explain(model: type[BaseModel], fault: Any) -> str:
    """Return one line for one pydantic fault, with the dotted field name."""
    path = [part for part in fault["loc"] if isinstance(part, (str, int))]
    field = ".".join(str(part) for part in path)
    if fault["type"] != "extra_forbidden":
        message = fault["msg"].removeprefix("Value error, ")
        got = "" if isinstance(fault.get("input"), (Mapping, BaseModel)) else f" (got {_short(fault.get('input'))})"
        return f"{field}: {message}{got}" if field else message + got
    owner: type[BaseModel] | None = model
    for part in path[:-1]:
        owner = _submodel(owner, str(part)) if owner else None
    names = _field_names(owner) if owner else []
    return f"{field}: unknown key{near_matches(str(path[-1]), names) if names else ''}"


def _field_names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _submodel(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Return the model class of a field, looking through Optional and containers."""
    for key, field in model.model_fields.items():
        if name in (key, field.alias):
            return _first_model(field.annotation)
    return model if name.isdigit() else None


def _first_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := _first_model(arg))), None)


def _short(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
