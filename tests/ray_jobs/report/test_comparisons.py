"""Win rates in the results: every run against the random runs of its size and control, from sealed figures of single samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from diversity.artifact import Storage
from diversity.effects import RESULTS_SCHEMA
from diversity.effects.scores import SAMPLE_SCORES_SCHEMA
from ray_jobs.report.comparisons import with_comparisons
from training.evaluators import EvaluatorConfig

RATES = [EvaluatorConfig(name="likelihood_win_rate")]


@pytest.fixture
def sealed(tmp_path: Path) -> tuple[Storage, dict[str, Any], pa.Table, dict[str, np.ndarray]]:
    """Seal scores of two strategies and two random seeds at two sizes; one arm under a control that has no random run."""
    storage, entries, rows, nlls = Storage(str(tmp_path)), {"scores": {}}, [], {}
    random = np.random.default_rng(0)
    for strategy, size, seed, control in [
        ("response-micro", 10, 0, "none"),
        ("random", 10, 0, "none"),
        ("random", 10, 1, "none"),
        ("random", 20, 0, "none"),
        ("response-micro", 10, 0, "tokens"),
    ]:
        cell = f"{strategy}_n{size}_s{seed}_{control}"
        artifact = storage.artifact("scores", cell).begin()
        samples = []
        for split in ("in", "out"):
            values = random.choice([1.0, 1.5, 2.0], 12)
            nlls[f"{cell}/{split}"] = values
            for i, value in enumerate(values):
                name = {"run": cell, "evaluator": "nll", "split": split, "metric": "nll", "sample_id": f"{split}{i}"}
                samples.append({**name, "group": i, "tokens": 20 + i, "value": value})
            facts = {"cell": cell, "strategy": strategy, "size": size, "subset_seed": seed, "control": control, "training_seed": 0}
            figures = {"value": values.mean(), "se": 0.1, "n": 12, "higher_is_better": False, "primary": split == "out"}
            rows.append({**facts, "run": cell, "evaluator": "nll", "split": split, "metric": "nll", **figures})
        artifact.write(pa.Table.from_pylist(samples, schema=SAMPLE_SCORES_SCHEMA), "samples/part-00000.parquet")
        artifact.write(pa.table({"value": [0.0]}))
        artifact.seal({})
        entries["scores"][f"{cell}_t0"] = artifact.path
    rows.append({"cell": "longest_n10_s0", "strategy": "longest", "size": 10, "control": "none"})  # a cell without a score
    return storage, entries, pa.Table.from_pylist([{n: r.get(n) for n in RESULTS_SCHEMA.names} for r in rows], schema=RESULTS_SCHEMA), nlls


def test_every_run_meets_the_random_runs_of_its_arm_and_never_itself(sealed: Any) -> None:
    storage, entries, results, nlls = sealed
    found = with_comparisons(storage, entries, results, RATES)
    assert found.schema == RESULTS_SCHEMA
    rows = found.to_pylist()
    assert [row for row in rows if row["evaluator"] != "likelihood_win_rate"] == results.to_pylist()
    plain = {(row["cell"], row["split"]): row for row in rows if row["metric"] == "win_rate"}

    def literal(mine: str, others: list[str], split: str) -> float:
        return float(
            np.mean([np.mean([(m < o) + (m == o) / 2 for m, o in zip(nlls[f"{mine}/{split}"], nlls[f"{x}/{split}"])]) for x in others])
        )

    randoms = ["random_n10_s0_none", "random_n10_s1_none"]
    assert {cell for cell, _ in plain} == {"response-micro_n10_s0_none", *randoms}  # no opponent: size 20 and control tokens
    for (cell, split), row in plain.items():
        assert row["value"] == pytest.approx(literal(cell, [name for name in randoms if name != cell], split))
        assert row["higher_is_better"] and not row["primary"] and row["n"] == 12 and row["training_seed"] == 0
    assert plain[randoms[0], "in"]["value"] + plain[randoms[1], "in"]["value"] == pytest.approx(1)
    assert {row["metric"] for row in rows if row["evaluator"] == "likelihood_win_rate"} == {"win_rate"}
    where = [row["cell"] for row in rows]
    assert all(where.index(cell) + where.count(cell) - 1 == len(where) - 1 - where[::-1].index(cell) for cell in set(where))  # together


def test_without_comparisons_results_stay_as_they_are(sealed: Any) -> None:
    storage, entries, results, _ = sealed
    assert with_comparisons(storage, entries, results, []) is results
    against = [EvaluatorConfig(name="likelihood_win_rate", options={"against": "longest"})]
    assert with_comparisons(storage, entries, results, against).to_pylist() == results.to_pylist()


def test_scores_of_an_earlier_version_are_left_out(sealed: Any) -> None:
    storage, entries, results, _ = sealed
    old = storage.artifact("scores", "old").begin()
    old.write(pa.table({"evaluator": ["nll"], "metric": ["nll"], "value": [1.0]}), "samples/part-00000.parquet")
    entries["scores"]["response-micro_n10_s0_none_t0"] = old.seal({}).path
    rows = with_comparisons(storage, entries, results, RATES).to_pylist()
    assert {row["strategy"] for row in rows if row["evaluator"] == "likelihood_win_rate"} == {"random"}
