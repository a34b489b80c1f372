"""How the posterior metrics of datasets go with the scores of the runs trained on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from diversity.effects.correlation import Correlation, Kind, association
from diversity.effects.schema import MIN_DATASETS, SCORE, Row, grouped, head_of
from diversity.effects.units import datasets, runs_of

KINDS: tuple[Kind, ...] = ("pearson", "spearman")
LENGTH = ("mean_length", "per-sample")
Measured = dict[tuple[str, str, str], dict[str, float]]


def correlation_rows(scored: Sequence[Row], metrics: pa.Table, generator: np.random.Generator, bootstraps: int) -> list[Row]:
    """Return the correlations of posterior metrics with scores over datasets, whose runs are averaged.

    The score is turned so that more is better. Every metric comes plain and with the mean length of its side held fixed. Where there are
    several sizes there is also a row over all of them with the size held fixed, since size moves both. Datasets are drawn anew within their
    strategy and control, which were chosen and not drawn. All scores of the same runs share their resamples.

    Args:
        scored: rows of RESULTS_SCHEMA with a value.
        metrics: METRICS_SCHEMA with a column `cell`.
        generator: of the resamples.
        bootstraps: resamples of datasets.
    """
    measured: Measured = {}
    for row in metrics.select(["side", "metric", "variant", "cell", "value"]).to_pylist():
        measured.setdefault((row["side"], row["metric"], row["variant"]), {})[row["cell"]] = row["value"]
    alike: dict[tuple[str, ...], list[tuple[Row, list[Row]]]] = {}
    for key, group in grouped(scored, SCORE):
        units = sorted(datasets(group), key=lambda unit: unit["runs"])
        alike.setdefault(tuple(run for unit in units for run in unit["runs"]), []).append((head_of(key, group, "correlation"), units))
    rows: list[Row] = []
    for scores in alike.values():
        sizes = sorted({row["size"] for row in scores[0][1]})
        for size in [*sizes, None] if len(sizes) > 1 else sizes:
            within = [({**head, "size": size}, [unit for unit in units if size in (None, unit["size"])]) for head, units in scores]
            for keys in _same_cells(within[0][1], measured):
                rows += _correlations(within, keys, measured, generator, bootstraps)
    return rows


def _same_cells(units: Sequence[Row], measured: Measured) -> list[list[tuple[str, str, str]]]:
    """Return the metrics in groups that were measured on the same of these datasets: each group shares its resamples."""
    groups: dict[bytes, list[tuple[str, str, str]]] = {}
    for key, values in measured.items():
        there = np.array([np.isfinite(_value(values, unit)) for unit in units], bool)
        groups.setdefault(there.tobytes(), []).append(key)
    return list(groups.values())


def _correlations(
    scores: Sequence[tuple[Row, list[Row]]],
    keys: Sequence[tuple[str, str, str]],
    measured: Measured,
    generator: np.random.Generator,
    bootstraps: int,
) -> list[Row]:
    """Return the rows of some metrics with all scores, over the datasets that the metrics were measured on."""
    there = [i for i, unit in enumerate(scores[0][1]) if np.isfinite(_value(measured[keys[0]], unit))]
    units = [scores[0][1][i] for i in there]
    sides = [side for side in dict.fromkeys(key[0] for key in keys) if _measured_all(measured.get((side, *LENGTH)), units)]
    sizes = np.array([unit["size"] for unit in units])
    more = max(0, len(np.unique(sizes)) - 1)
    needed = {given: MIN_DATASETS + more + bool(given) for given in ("", "mean_length")}  # what is held fixed takes points, too
    told = {"n": len(units), "runs": runs_of(units)}
    rows = [
        {**head, **_named(key), "given": given, "method": kind, **told, "note": _too_few(needed[given], len(units))}
        for head, _ in scores
        for key in keys
        for given in _held(key, sides)
        for kind in KINDS
        if len(units) < needed[given]
    ]
    if len(units) < MIN_DATASETS + more:
        return rows
    data = [[measured[key][unit["cell"]] for unit in units] for key in keys]
    data += [[(1 if head["higher_is_better"] else -1) * found[i]["value"] for i in there] for head, found in scores]
    data += [(sizes == size).astype(float).tolist() for size in np.unique(sizes)[1:]]
    data += [[measured[(side, *LENGTH)][unit["cell"]] for unit in units] for side in sides]
    strata = np.unique([f"{unit['strategy']} {unit['control']}" for unit in units], return_inverse=True)[1]
    first = len(keys) + len(scores)
    size_columns = list(range(first, len(data) - len(sides)))
    for kind in KINDS:
        together = association(np.array(data), kind, bootstraps, generator, strata)
        for side in dict.fromkeys(key[0] for key in keys):
            mine = [i for i, key in enumerate(keys) if key[0] == side]
            for given in ("", "mean_length") if side in sides else ("",):
                if len(units) < needed[given]:
                    continue
                fixed = size_columns + ([len(data) - len(sides) + sides.index(side)] if given else [])
                found = together.between(mine, range(len(keys), first), fixed)
                for i, of_metric in zip(mine, found, strict=True):
                    if given in _held(keys[i], sides):
                        named = {**_named(keys[i]), "given": given, "method": kind, **told}
                        rows += [{**head, **named, **_columns(c)} for (head, _), c in zip(scores, of_metric, strict=True)]
    return rows


def _too_few(needed: int, there: int) -> str:
    return f"a correlation needs {needed} datasets, there are {there}"


def _value(values: Mapping[str, float], row: Row) -> float:
    value = values.get(row["cell"])
    return float("nan") if value is None else value


def _measured_all(values: Mapping[str, float] | None, runs: Sequence[Row]) -> bool:
    return values is not None and all(np.isfinite(_value(values, row)) for row in runs)


def _held(key: tuple[str, str, str], sides: Sequence[str]) -> tuple[str, ...]:
    """Return what is held fixed in the rows of a metric: nothing, and the length of its side where it is another thing than that."""
    return ("", "mean_length") if key[0] in sides and key[1] != LENGTH[0] else ("",)


def _named(key: tuple[str, str, str]) -> Row:
    return {"side": key[0], "predictor": key[1], "variant": key[2]}


def _columns(found: Correlation) -> Row:
    return {"estimate": found.estimate, "low": found.low, "high": found.high}
