"""What may be said of an experiment's effects: a test for each way in which a verdict could claim too much."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.effects import PLANNED_SCHEMA, Plan, PlanConfig, effects_table, verdict
from diversity.effects.ledger import Ledger
from diversity.effects.regression import Slope
from diversity.effects.slopes import Measured, slope_rows, with_error
from diversity.effects.tables import table_of
from diversity.effects.verdict import verdict_lines
from tests.diversity.effects.results import LEVELS, noisy, picked, result, table

THREE = (0, 0.5, 1)


def slopes_of(rows):
    return table_of(slope_rows(rows, Measured(Ledger(table(rows)), predictors=("level",))))


def slope_statement(rows, **options):
    return next(s for s in verdict(effects_table(table(rows), **options)) if s.kind == "slope")


def planned(rows, config=None, scored_before=0):
    cells = [{name: row.get(name) for name in PLANNED_SCHEMA.names} for row in rows]
    return Plan(PlanConfig.model_validate(config or {}), pa.Table.from_pylist(cells, schema=PLANNED_SCHEMA), scored_before)


def test_a_known_effect_is_stated_with_its_interval():
    rows = noisy({"response-micro": -1, "response-meso": 0}, np.random.default_rng(28), seeds=4)
    found = {s.subject: s for s in verdict(effects_table(table(rows)))}
    micro, meso = found["response-micro, 1,000 samples"], found["response-meso, 1,000 samples"]
    assert micro.claim == "better" and "improves nll on out" in micro.text and "holds without level 0" in micro.text
    assert "95% interval" in micro.text and "28 datasets" in micro.text
    assert meso.claim == "none shown" and "No linear change" in meso.text and "excluded" not in meso.text
    turned = {s.subject: s for s in verdict(effects_table(table([{**r, "higher_is_better": True} for r in rows])))}
    assert turned["response-micro, 1,000 samples"].claim == "worse"


def test_an_effect_of_level_0_alone_is_called_that():
    generator = np.random.default_rng(29)
    rows = [result("response-micro", x, (3 if x == 0 else 2) + generator.normal(0, 0.05), seed=s) for x in LEVELS for s in range(4)]
    found = slope_statement(rows)
    assert found.claim == "better" and "rest on level 0" in found.text and "do not lie on a line" in found.text


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 5), st.integers(1, 4), st.sampled_from([0.0, 0.2, 1.0]), st.integers(1, 3))
def test_the_verdict_never_claims_more_than_the_interval(seed, levels, seeds, effect, arms):
    generator = np.random.default_rng(seed)
    rows = [
        result(f"response-micro@{arm}", i / (levels - 1), 2 - effect * i / (levels - 1) + generator.normal(0, 0.2), seed=s)
        for arm in range(arms)
        for i in range(levels)
        for s in range(seeds)
    ]
    effects = slopes_of(rows)
    statements = {s.subject: s for s in verdict(effects)}
    assert len(statements) == arms
    for row in picked(effects, kind="slope", predictor="level", subset="all", method="ols"):
        statement = statements[f"{row['strategy']}, 1,000 samples"]
        if statement.claim in ("better", "worse"):
            assert (row["low"] > 0 or row["high"] < 0) and row["p_holm"] < 0.05 and row["p_permutation"] < 0.05
            assert (statement.claim == "better") == (row["high"] < 0) and seeds > 1
        else:
            assert "improves" not in statement.text and "worsens" not in statement.text


# ---- few datasets


@pytest.mark.parametrize(("levels", "seeds", "least"), [(3, 2, "0.056"), (3, 1, "0.33"), (4, 1, "0.083")])
def test_what_few_datasets_can_not_show_is_not_known(levels, seeds, least):
    """However plain the effect, no shuffle gets below 5%: that is said, and not that shuffled datasets do as well."""
    own = seeds == 1  # seeds of its own for each level, so that one seed a level is a design
    rows = [
        result("response-micro", x, 5 - x + 0.001 * i * s, seed=10 * i + s if own else s)
        for i, x in enumerate(np.linspace(0, 1, levels))
        for s in range(seeds)
    ]
    found = slope_statement(rows)
    assert found.claim == "not known" and f"{levels * seeds} datasets allow p ≥ {least} by shuffling" in found.text
    assert "do as well too often" not in found.text


def test_a_contrast_that_can_not_reach_5_percent_is_not_known():
    rows = [result("response-micro", x, 3 - x + 0.01 * s, seed=s) for x in THREE for s in range(3)]
    rows += [result("random", None, 9 + 0.01 * s, seed=s) for s in range(3)]
    found = next(s for s in verdict(effects_table(table(rows))) if s.kind == "contrast")
    assert found.claim == "not known" and "6 datasets allow p ≥ 0.1" in found.text


def test_one_subset_seed_shows_nothing_and_own_seeds_do():
    shared = [result("response-micro", x, 5 - x + 0.01 * (i % 2)) for i, x in enumerate(LEVELS)]
    own = [{**row, "subset_seed": i, "cell": f"c{i}"} for i, row in enumerate(shared)]
    assert slope_statement(shared).claim == "not known" and "one subset seed" in slope_statement(shared).text
    assert slope_statement(own).claim == "better"


def test_scores_that_are_constant_are_said_to_be():
    rows = [result("response-micro", x, 2.0, seed=s) for x in THREE for s in range(4)]
    rows += [result("random", None, 2.0, seed=s) for s in range(4)]
    for statement in verdict(effects_table(table(rows)))[:2]:
        assert statement.claim == "not known" and "are equal, 2" in statement.text


def test_few_degrees_of_freedom_are_said():
    rows = noisy({"response-micro": -1}, np.random.default_rng(3), seeds=3, sd=0.01, levels=LEVELS)
    assert "With 2 degrees of freedom" in slope_statement(rows).text


# ---- the unit


def test_training_seeds_are_no_further_datasets():
    """Three training runs of each dataset: intervals and shuffles are those of their means."""
    generator = np.random.default_rng(50)
    rows = noisy({"response-micro": -0.1}, generator, seeds=3, levels=THREE)
    many = [
        {**row, "run": f"{row['run']} {t}", "training_seed": t, "value": row["value"] + shift}
        for row in rows
        for t, shift in enumerate((-0.02, 0.0, 0.02))
    ]
    (once,), (thrice,) = (
        picked(effects_table(table(r)), kind="slope", predictor="level", subset="all", method="ols") for r in (rows, many)
    )
    for name in ("estimate", "se", "p", "p_permutation", "dof", "n"):
        assert once[name] == pytest.approx(thrice[name])
    assert (once["runs"], thrice["runs"]) == (9, 27)


def test_the_order_of_rows_and_other_arms_change_nothing():
    rows = noisy({"response-micro": -0.3, "response-meso": 0.2}, np.random.default_rng(51), seeds=4)
    rows[7]["run"], rows[7]["value"] = rows[0]["run"], rows[0]["value"]  # two subset seeds share a dataset
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    key = {"kind": "slope", "predictor": "level", "subset": "all", "method": "ols", "strategy": "response-micro"}
    found = [picked(effects_table(table(r)), **key)[0] for r in (rows, shuffled, [r for r in rows if r["strategy"] == "response-micro"])]
    for name in ("estimate", "se", "p", "p_permutation"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-12) == found[2][name]


# ---- what is missing


def test_diverged_runs_are_counted_and_nothing_is_claimed():
    """The three level-0 runs diverged: what is left is no sample of what was planned."""
    rows = noisy({"response-micro": -1}, np.random.default_rng(52), seeds=3, levels=(0, 0.25, 0.5, 1), sd=0.01)
    lost = [{**row, "value": float("inf")} if row["level"] == 0 else row for row in rows]
    found = slope_statement(lost)
    assert found.claim == "not known" and "3 of 12 planned runs diverged" in found.text and "9 of 12 planned runs" in found.text
    assert "holds without level 0" not in found.text


def test_an_interim_look_claims_nothing():
    rows = noisy({"response-micro": -1, "response-meso": 0}, np.random.default_rng(53), seeds=5, sd=0.01)
    some = [row for row in rows if row["strategy"] == "response-meso" or row["subset_seed"] < 3]
    found = {s.subject.split(",")[0]: s for s in verdict(effects_table(table(some), plan=planned(rows)))}
    assert found["response-micro"].claim == "not known" and "interim look at 21 of 35 planned runs" in found["response-micro"].text
    assert found["response-meso"].claim == "none shown"
    assert slope_statement(rows, plan=planned(rows)).claim == "better"


def lost(rows, picked, value):
    """Return the rows with another value for those that are picked; None takes them out, as if they were not trained yet."""
    return [row if not picked(row) else {**row, "value": value} for row in rows if value is not None or not picked(row)]


@pytest.fixture
def compared():
    """An arm and random datasets, both primary, with plain effects."""
    rows = noisy({"response-micro": -1}, np.random.default_rng(60), seeds=6, sd=0.01, levels=THREE)
    rows += [result("random", None, 2 + 0.01 * s, seed=s) for s in range(6)]
    primary = [{"strategy": "response-micro"}, {"strategy": "response-micro", "less": "random"}]
    return rows, planned(rows, {"primary": primary})


@pytest.mark.parametrize(("value", "told"), [(None, "an interim look at 6 of 12 planned runs"), (np.inf, "6 of 12 planned runs diverged")])
@pytest.mark.parametrize("picked", [lambda row: row["level"] == 1, lambda row: row["level"] is None], ids=["level 1", "random"])
def test_a_contrast_stays_what_the_plan_named(compared, picked, value, told):
    """Where the highest level or the other side is not there, no other level takes its place and no statement vanishes."""
    rows, plan = compared
    found = [s for s in verdict(effects_table(table(lost(rows, picked, value)), plan=plan)) if s.kind == "contrast"]
    assert [(s.subject, s.claim, s.role) for s in found] == [
        ("response-micro, 1,000 samples: level 1 less random", "not known", "confirmatory")
    ]
    assert told in found[0].text


@pytest.mark.parametrize("value", [None, np.nan])
def test_a_primary_arm_without_a_score_is_told_and_counts_as_a_test(value):
    rows = noisy({"response-micro": -1, "response-meso": -1}, np.random.default_rng(61), seeds=5)
    plan = planned(rows, {"primary": [{"strategy": "response-micro"}, {"strategy": "response-meso"}]})
    effects = effects_table(table(lost(rows, lambda row: row["strategy"] == "response-meso", value)), plan=plan)
    found = {s.subject.split(",")[0]: s for s in verdict(effects) if s.kind == "slope"}
    assert found["response-meso"].claim == "not known" and found["response-meso"].role == "confirmatory"
    assert ("35 of 35 planned runs diverged" if value else "an interim look at 0 of 35 planned runs") in found["response-meso"].text
    (row,) = picked(effects, kind="slope", strategy="response-micro", predictor="level", subset="all", method="ols")
    assert row["p_holm"] == pytest.approx(2 * row["p"])
    (best,) = [s for s in verdict(effects) if s.kind == "best"]
    assert best.text.startswith("Among the 35 of 70 planned runs that are scored, response-micro")


def test_without_a_plan_an_arm_that_diverged_is_told_too():
    rows = noisy({"response-micro": -1, "response-meso": -1}, np.random.default_rng(62), seeds=5)
    effects = effects_table(table(lost(rows, lambda row: row["strategy"] == "response-meso", np.inf)))
    assert any("35 of 35 planned runs diverged" in s.text for s in verdict(effects))


def test_other_scores_have_no_rows_of_arms_that_they_are_not_meant_for():
    rows = noisy({"response-micro": -1, "response-meso": -1}, np.random.default_rng(63))
    other = [{**row, "metric": "wins", "primary": False} for row in rows if row["strategy"] == "response-micro"]
    effects = effects_table(table(rows + other), plan=planned(rows))
    assert {row["strategy"] for row in picked(effects, kind="slope", metric="wins")} == {"response-micro"}


# ---- the plan


def test_a_named_contrast_with_anything_is_told():
    rows = noisy({"response-micro": -1}, np.random.default_rng(64), seeds=6, sd=0.01, levels=THREE)
    rows += [result("longest", None, 2 + 0.01 * s, seed=s) for s in range(4)]
    effects = effects_table(table(rows), plan=planned(rows, {"primary": [{"strategy": "response-micro", "less": "longest"}]}))
    (found,) = [s for s in verdict(effects) if s.kind == "contrast"]
    assert found.claim == "better" and found.role == "confirmatory" and "better than longest" in found.text
    assert not any(s.kind == "contrast" for s in verdict(effects_table(table(rows), plan=planned(rows))))


def test_confirmatory_and_exploratory():
    rows = noisy({"response-micro": -1, "response-meso": -1, "response-macro": 0}, np.random.default_rng(54), seeds=5, sd=0.3)
    rows += [result("random", None, 1.7 + 0.1 * s, seed=s) for s in range(5)]
    primary = [{"strategy": "response-micro"}, {"strategy": "response-micro", "less": "random"}]
    effects = effects_table(table(rows), plan=planned(rows, {"primary": primary, "margin": 0.5}))
    roles = {(s.subject, s.role) for s in verdict(effects) if s.kind != "best"}
    assert ("response-micro, 1,000 samples", "confirmatory") in roles and ("response-meso, 1,000 samples", "exploratory") in roles
    assert ("response-micro, 1,000 samples: level 1 less random", "confirmatory") in roles
    tested = [row for row in effects.to_pylist() if row["role"] == "confirmatory"]
    p = sorted(row["p"] for row in tested)
    assert len(tested) == 2 and sorted(row["p_holm"] for row in tested) == pytest.approx([2 * p[0], max(2 * p[0], p[1])])
    assert verdict(effects)[0].role == "confirmatory" and verdict_lines(verdict(effects))[0].startswith(
        "response-micro, 1,000 samples (conf"
    )
    late = effects_table(table(rows), plan=planned(rows, {"primary": primary}, scored_before=3))
    assert {row["role"] for row in late.to_pylist()} <= {None, "exploratory"}


def test_equivalence_is_by_the_margin_of_the_plan():
    rows = noisy({"response-micro": 0}, np.random.default_rng(55), seeds=6, sd=0.05)
    wide, narrow = (slope_statement(rows, plan=planned(rows, {"margin": margin})) for margin in (0.5, 0.001))
    assert wide.claim == "equivalent" and "smaller than what the plan calls a change that matters" in wide.text
    assert narrow.claim == "none shown" and "isn't shown either" in narrow.text
    (row,) = picked(
        effects_table(table(rows), plan=planned(rows, {"margin": 0.5})), kind="slope", predictor="level", subset="all", method="ols"
    )
    assert row["margin"] == 0.5 and row["p_equivalence"] < 0.05


def test_a_plan_comes_back_from_its_manifest():
    rows = noisy({"response-micro": 0}, np.random.default_rng(0), seeds=2)
    plan = planned(rows, {"primary": [{"strategy": "response-micro", "less": "random"}], "margin": 0.1}, 2)
    again = Plan.of_manifest(plan.manifest())
    assert again.config == plan.config and again.planned.equals(plan.planned) and again.scored_before == 2


# ---- what a line does not say


def test_an_inverted_u_is_not_told_as_no_effect():
    generator = np.random.default_rng(56)
    rows = [result("response-micro", x, 2 + 4 * x * (1 - x) + generator.normal(0, 0.1), seed=s) for x in THREE for s in range(6)]
    found = slope_statement(rows)
    assert found.claim == "none shown" and "do not lie on a line" in found.text and "a level between may lie beyond both" in found.text
    assert "No linear change" in found.text


def test_the_ends_are_the_means_of_levels():
    rows = noisy({"response-micro": -1}, np.random.default_rng(57), seeds=5, levels=THREE)
    (row,) = picked(effects_table(table(rows)), kind="ends")
    changes = [rows[3 * s + 2]["value"] - rows[3 * s]["value"] for s in range(5)]
    assert row["estimate"] == pytest.approx(np.mean(changes)) and row["se"] == pytest.approx(np.std(changes, ddof=1) / 5**0.5)


def test_the_headline_tells_length():
    """Total, with length held, and the difference with its interval; or by how much length rises where no arm holds it."""
    rows = noisy({"response-micro": -1}, np.random.default_rng(58), seeds=5)
    rows = [{**row, "samples": 10, "response_tokens": round(1000 * (1 + row["level"]))} for row in rows]
    assert "Length is not held fixed: responses are 2 times as long" in slope_statement(rows).text
    held = [
        {**r, "control": "length-quota", "run": r["run"] + "q", "cell": r["cell"] + "q", "value": r["value"] + 0.7 * r["level"]}
        for r in rows
    ]
    found = next(s for s in verdict(effects_table(table(rows + held))) if s.subject == "response-micro, 1,000 samples")
    assert "With length held fixed (length-quota) it changes by −0." in found.text and "that less the change in all is +0.70" in found.text


@pytest.mark.parametrize("reason", ["6 of 18 planned runs diverged", "one subset seed"])
def test_what_can_not_be_said_with_length_held_is_not_told_as_a_figure(reason):
    rows = noisy({"response-micro": -1}, np.random.default_rng(65), seeds=6, levels=THREE)
    held = [{**r, "control": "length-quota", "run": r["run"] + "q", "cell": r["cell"] + "q"} for r in rows]
    if reason == "one subset seed":
        held = [row for row in held if row["subset_seed"] == 0]
    else:
        held = lost(held, lambda row: row["subset_seed"] < 2, np.nan)
    found = next(s for s in verdict(effects_table(table(rows + held))) if s.subject == "response-micro, 1,000 samples")
    assert found.claim == "better" and "With length held fixed (length-quota) nothing can be said: " in found.text and reason in found.text
    assert "it changes by" not in found.text.partition("With length")[2]


def test_what_one_seed_says_without_level_0_is_not_that_it_holds():
    ends = noisy({"response-micro": -1}, np.random.default_rng(66), seeds=6, sd=0.01, levels=(0, 1))
    between = noisy({"response-micro": -1}, np.random.default_rng(67), seeds=1, sd=0.01, levels=(0.25, 0.5, 0.75))
    found = slope_statement(ends + between)
    assert found.claim == "better" and "Whether it holds without level 0 can't be said: all levels come of one subset seed" in found.text


def test_the_datasets_told_are_those_that_the_slope_rests_on():
    """Fifteen further seeds have level 0 alone: they have no slope."""
    rows = noisy({"response-micro": -1}, np.random.default_rng(68), seeds=3, sd=0.01, levels=THREE)
    more = [{**result("response-micro", 0, 2.0 + 0.001 * s, seed=s), "se": 5.0} for s in range(3, 18)]
    (row,) = picked(effects_table(table(rows + more)), kind="slope", predictor="level", subset="all", method="ols")
    assert (row["n"], row["runs"], row["dof"], row["se_within"]) == (9, 9, 2, None)
    assert "; 9 datasets)" in slope_statement(rows + more).text
    (ends,) = picked(effects_table(table(rows + more)), kind="ends")
    assert ends["n"] == 6


# ---- how often it is wrong


def test_under_no_effect_few_verdicts_claim_one():
    generator = np.random.default_rng(30)
    wrong = 0
    for _ in range(60):
        rows = noisy(dict.fromkeys(("a-micro", "b-micro", "c-micro"), 0), generator, seeds=3, levels=THREE)
        wrong += any(s.claim in ("better", "worse") for s in verdict(slopes_of(rows)))
    assert wrong <= 8  # 3 expected of 60; more than 8 once in 200


def test_no_primary_score_no_verdict():
    rows = noisy({"response-micro": -1}, np.random.default_rng(31))
    assert verdict(effects_table(table([{**r, "primary": False} for r in rows]))) == []
    two = verdict(effects_table(table([result("response-micro", x, x) for x in (0, 1)])))
    assert two[0].claim == "not known" and "a slope needs 3 different values" in two[0].text


# ---- prompts


def test_errors_over_prompts_are_added_to_the_slope():
    """With weights that a callback hears, its error enters the interval with its degrees of freedom."""
    rows = noisy({"response-micro": -1}, np.random.default_rng(59), seeds=5, levels=THREE)
    heard = []

    def error(head, weights):
        heard.append(weights)
        return 0.3, 100

    plain, wide = (
        picked(effects_table(table(rows), prompt_error=e), kind="slope", predictor="level", subset="all", method="ols")[0]
        for e in (None, error)
    )
    assert wide["se"] == pytest.approx(np.hypot(plain["se"], 0.3)) and wide["se_prompts"] == 0.3 and wide["dof"] > plain["dof"]
    weights = heard[0]
    assert sum(weights[row["run"]] * row["value"] for row in rows) == pytest.approx(plain["estimate"])
    slopes = [row for row in picked(effects_table(table(rows), prompt_error=error), kind="slope", method="ols") if row["dof"]]
    assert {row["predictor"] for row in slopes} == {"level", "share", "coverage"} and {row["se_prompts"] for row in slopes} == {0.3}


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 12), st.floats(0.01, 10), st.integers(1, 1000))
def test_a_further_error_never_makes_an_interval_narrower(dof, ratio, further):
    line = Slope(0.0, 1.0, dof, 20, 1.0, 0.0)
    wide = with_error(line, ratio, further)
    assert wide.interval()[1] >= line.interval()[1] and wide.se == pytest.approx(np.hypot(1, ratio))
    assert wide.dof == dof if dof < 3 else wide.dof >= min(dof, further)


@pytest.mark.parametrize("kind", ["slope", "ends", "difference", "contrast"])
def test_errors_over_prompts_are_part_of_all_that_the_verdict_tells(kind):
    """Of three seeds too: their degrees of freedom stay two."""
    rows = noisy({"response-micro": -1, "response-meso": 0}, np.random.default_rng(69), seeds=3, levels=THREE)
    rows += [result("random", None, 2 + 0.1 * s, seed=s) for s in range(3)]
    heard = []

    def error(head, weights):
        if head["kind"] == kind:
            heard.append(sum(weights[row["run"]] * row["value"] for row in rows if row["run"] in weights))
        return 0.05, 100

    options = {"kind": kind, "strategy": "response-micro", "subset": "all"}
    plain, wide = (
        [r for r in picked(effects_table(table(rows), prompt_error=e), **options) if r["predictor"] in (None, "level") and r["dof"]][0]
        for e in (None, error)
    )
    assert wide["se_prompts"] == 0.05 and wide["se"] == pytest.approx(np.hypot(plain["se"], 0.05))
    assert wide["low"] < plain["low"] and wide["high"] > plain["high"] and heard[0] == pytest.approx(wide["estimate"])


def test_a_run_that_two_arms_share_has_both_of_their_weights():
    rows = noisy({"response-micro": -1}, np.random.default_rng(70), seeds=4, levels=THREE)
    rows += [result("random", None, 0.0, seed=s, run=rows[3 * s + 2]["run"]) for s in range(2)]
    rows = [{**row, "value": next(r["value"] for r in rows if r["run"] == row["run"])} for row in rows]
    heard = []

    def error(head, weights):
        if head["kind"] == "contrast":
            heard.append(sum(weights[run] * value for run, value in {row["run"]: row["value"] for row in rows}.items() if run in weights))
        return 0.05, 100

    (row,) = picked(effects_table(table(rows), prompt_error=error), kind="contrast")
    assert heard == [pytest.approx(row["estimate"])]
