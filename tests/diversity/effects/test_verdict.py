"""What may be said of an experiment's effects."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.effects import EFFECTS_SCHEMA, effects_table, verdict
from diversity.effects.slopes import slope_rows
from tests.diversity.effects.results import LEVELS, noisy, picked, result, table


def test_a_known_effect_is_stated_with_its_interval():
    rows = noisy({"response-micro": -1, "response-meso": 0}, np.random.default_rng(28))
    found = {s.subject: s for s in verdict(effects_table(table(rows)))}
    micro, meso = found["response-micro, 1,000 samples"], found["response-meso, 1,000 samples"]
    assert micro.claim == "better" and "improves nll on out" in micro.text and "holds without level 0" in micro.text
    assert meso.claim == "none shown" and f"An effect larger than {meso.excluded:.2f}"[:-1] in meso.text
    turned = {s.subject: s for s in verdict(effects_table(table([{**r, "higher_is_better": True} for r in rows])))}
    assert turned["response-micro, 1,000 samples"].claim == "worse"


def test_an_effect_of_level_0_alone_is_called_that():
    generator = np.random.default_rng(29)
    rows = [result("response-micro", x, (3 if x == 0 else 2) + generator.normal(0, 0.05), seed=s) for x in LEVELS for s in range(3)]
    found = verdict(effects_table(table(rows)))[0]
    assert found.claim == "better" and "rest on level 0" in found.text


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 7), st.integers(1, 3), st.sampled_from([0.0, 0.2, 1.0]), st.integers(1, 4))
def test_the_verdict_never_claims_more_than_the_interval(seed, levels, seeds, effect, arms):
    generator = np.random.default_rng(seed)
    rows = [
        result(f"response-micro@{arm}", i / (levels - 1), 2 - effect * i / (levels - 1) + generator.normal(0, 0.2), seed=s)
        for arm in range(arms)
        for i in range(levels)
        for s in range(seeds)
    ]
    slopes = slope_rows(rows, generator)
    effects = pa.Table.from_pylist([{n: r.get(n) for n in EFFECTS_SCHEMA.names} for r in slopes], schema=EFFECTS_SCHEMA)
    statements = {s.subject: s for s in verdict(effects)}
    assert len(statements) == arms
    for row in picked(effects, predictor="level", subset="all", method="ols"):
        statement = statements[f"{row['strategy']}, 1,000 samples"]
        zero_out = row["low"] > 0 or row["high"] < 0
        if statement.claim in ("better", "worse"):
            assert zero_out and row["p_holm"] < 0.05 and row["p_permutation"] < 0.05
            assert (statement.claim == "better") == (row["high"] < 0)
        else:
            assert "improves" not in statement.text and "worsens" not in statement.text
            shown = float(statement.text.split("An effect larger than ")[1].split(" is excluded")[0])
            assert shown >= max(abs(row["low"]), abs(row["high"])) - 1e-9  # never excludes what the interval holds


def test_under_no_effect_few_verdicts_claim_one():
    generator = np.random.default_rng(30)
    wrong = 0
    for _ in range(60):
        rows = noisy(dict.fromkeys(("a-micro", "b-micro", "c-micro", "d-micro"), 0), generator, seeds=1)
        effects = pa.Table.from_pylist(
            [{n: r.get(n) for n in EFFECTS_SCHEMA.names} for r in slope_rows(rows, generator)], schema=EFFECTS_SCHEMA
        )
        wrong += any(s.claim in ("better", "worse") for s in verdict(effects))
    assert wrong <= 8  # 3 expected of 60; more than 8 once in 200


def test_no_primary_score_no_verdict():
    rows = noisy({"response-micro": -1}, np.random.default_rng(31))
    assert verdict(effects_table(table([{**r, "primary": False} for r in rows]))) == []
    two = verdict(effects_table(table([result("response-micro", x, x) for x in (0, 1)])))
    assert two[0].claim == "not known" and "a slope needs 3 different values" in two[0].text
