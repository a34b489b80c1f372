"""How the posterior metrics of datasets go with the scores of the runs trained on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from diversity.effects.correlation import Correlation, Kind, association
from diversity.effects.schema import MIN_RUNS, SCORE, Row, grouped, head_of, single_runs

KINDS: tuple[Kind, ...] = ("pearson", "spearman")
LENGTH = ("mean_length", "per-sample")
Measured = dict[tuple[str, str, str], dict[str, float]]


def correlation_rows(scored: Sequence[Row], metrics: pa.Table, generator: np.random.Generator, bootstraps: int) -> list[Row]:
    """Return the correlations of posterior metrics with scores over runs; a run that several cells share counts once.

    The score is turned so that more is better. Every metric comes plain and with the mean length of its side held fixed. Where there are
    several sizes there is also a row over all of them with the size held fixed, since size moves both. All scores of the same runs share
    their resamples.

    Args:
        scored: rows of RESULTS_SCHEMA with a value.
        metrics: METRICS_SCHEMA with a column `cell`.
        generator: of the resamples.
        bootstraps: resamples of runs.
    """
    measured: Measured = {}
    for row in metrics.select(["side", "metric", "variant", "cell", "value"]).to_pylist():
        measured.setdefault((row["side"], row["metric"], row["variant"]), {})[row["cell"]] = row["value"]
    alike: dict[tuple[str, ...], list[tuple[Row, list[Row]]]] = {}
    for key, group in grouped(scored, SCORE):
        runs = sorted(single_runs(group), key=lambda row: row["run"])
        alike.setdefault(tuple(row["run"] for row in runs), []).append((head_of(key, group, "correlation"), runs))
    rows: list[Row] = []
    for scores in alike.values():
        sizes = sorted({row["size"] for row in scores[0][1]})
        for size in [*sizes, None] if len(sizes) > 1 else sizes:
            within = [({**head, "size": size}, [row for row in runs if size in (None, row["size"])]) for head, runs in scores]
            for keys in _same_cells(within[0][1], measured):
                rows += _correlations(within, keys, measured, generator, bootstraps)
    return rows


def _same_cells(runs: Sequence[Row], measured: Measured) -> list[list[tuple[str, str, str]]]:
    """Return the metrics in groups that were measured on the same of these runs: each group shares its resamples."""
    groups: dict[bytes, list[tuple[str, str, str]]] = {}
    for key, values in measured.items():
        there = np.array([np.isfinite(_value(values, row)) for row in runs], bool)
        groups.setdefault(there.tobytes(), []).append(key)
    return list(groups.values())


def _correlations(
    scores: Sequence[tuple[Row, list[Row]]],
    keys: Sequence[tuple[str, str, str]],
    measured: Measured,
    generator: np.random.Generator,
    bootstraps: int,
) -> list[Row]:
    """Return the rows of some metrics with all scores, over the runs that the metrics were measured on."""
    there = [i for i, row in enumerate(scores[0][1]) if np.isfinite(_value(measured[keys[0]], row))]
    runs = [scores[0][1][i] for i in there]
    sides = [side for side in dict.fromkeys(key[0] for key in keys) if _measured_all(measured.get((side, *LENGTH)), runs)]
    if len(there) < MIN_RUNS:
        note = f"a correlation needs {MIN_RUNS} runs, there are {len(there)}"
        pairs = [(key, given) for key in keys for given in _held(key, sides)]
        told = {"n": len(there), "note": note}
        return [
            {**head, **_named(key), "given": given, "method": kind, **told} for head, _ in scores for key, given in pairs for kind in KINDS
        ]
    sizes = np.array([row["size"] for row in runs])
    data = [[measured[key][row["cell"]] for row in runs] for key in keys]
    data += [[(1 if head["higher_is_better"] else -1) * found[i]["value"] for i in there] for head, found in scores]
    data += [(sizes == size).astype(float).tolist() for size in np.unique(sizes)[1:]]
    data += [[measured[(side, *LENGTH)][row["cell"]] for row in runs] for side in sides]
    first = len(keys) + len(scores)
    size_columns = list(range(first, len(data) - len(sides)))
    rows = []
    for kind in KINDS:
        together = association(np.array(data), kind, bootstraps, generator)
        for side in dict.fromkeys(key[0] for key in keys):
            mine = [i for i, key in enumerate(keys) if key[0] == side]
            for given in ("", "mean_length") if side in sides else ("",):
                fixed = size_columns + ([len(data) - len(sides) + sides.index(side)] if given else [])
                found = together.between(mine, range(len(keys), first), fixed)
                for i, of_metric in zip(mine, found, strict=True):
                    if given in _held(keys[i], sides):
                        named = {**_named(keys[i]), "given": given, "method": kind}
                        rows += [{**head, **named, **_columns(c)} for (head, _), c in zip(scores, of_metric, strict=True)]
    return rows


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
    return {"estimate": found.estimate, "low": found.low, "high": found.high, "n": found.n}
