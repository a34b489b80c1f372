"""The certificate on real sealed grids: every cell of every strategy passes, and each planted fault is caught by the property it breaks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from diversity.artifact import ArtifactError, Storage
from diversity.audit.certificate import Verdict
from diversity.audit.promises import FAIL, NOT_APPLICABLE, PASS, PROMISES
from diversity.cell import TYPINGS, GridConfig
from diversity.config import ConfigError
from diversity.selection.strategies import STRATEGIES, SelectionConfig
from ray_jobs.tools.certify import certify, main
from ray_jobs.tools.sealed import find
from tests.ray_jobs import faults
from tests.ray_jobs.faults import Copy
from tests.ray_jobs.grids import LEVELS, Ground, build, remanifest, rewrite, seal_ground

FAULTY = GridConfig(strategies=["response-micro", "random"], sizes=[60], levels=LEVELS, controls=["none", "source-quota", "tokens"])


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return seal_ground(Storage(str(tmp_path_factory.mktemp("ground"))))


def verdicts_of(ground: Ground, name: str, from_text: bool = False) -> list[Verdict]:
    return certify(find([f"{ground.storage.uri}/experiments/{name}"]), from_text=from_text)


def failed(verdicts: list[Verdict]) -> set[tuple[str, str]]:
    return {(one.subject, one.property) for one in verdicts if one.outcome == FAIL}


def test_every_strategy_passes_every_property_from_its_text_too(ground: Ground) -> None:
    grid = GridConfig(strategies=[*TYPINGS, "response-micro@word", *STRATEGIES], sizes=[12, 60], levels=LEVELS, full_corpus=True)
    paths = build(ground, SelectionConfig(), grid, "all")
    targets = [found["target"] for path in paths.values() if "target" in (found := ground.storage.at(path).manifest)]
    assert {target["covered"] == target["k_realised"] for target in targets} == {True, False}, "all types fit some sizes and not others"
    verdicts = verdicts_of(ground, "all", from_text=True)
    assert [one for one in verdicts if one.outcome == FAIL] == []
    for name in paths:
        outcomes = {one.property: one.outcome for one in verdicts if one.subject == name}
        assert set(outcomes) >= set(PROMISES)
        always = {"size", "unique", "corpus", "text", "chosen_for", "manifest", "seed"}
        typed = {"level", "coverage", "pool", "nested"} if name.partition("_")[0] in (*TYPINGS, "response-micro@word") else set()
        text = {"from-text"} if "micro" in name.partition("_")[0] else set()
        assert {p for p, outcome in outcomes.items() if outcome == PASS} == always | typed | text
    of_typings = {(one.subject, one.property) for one in verdicts if one.subject.startswith("typing ")}
    assert {
        ("typing response-micro@word", "from-text"),
        ("typing instruction-micro", "order"),
        ("typing response-meso", "df"),
    } <= of_typings


@pytest.mark.parametrize(
    "selection",
    [
        {"closure": "loose", "rho": 3, "kmin_from": "largest"},
        {"algorithm": "static", "rho": 3, "objective": "concave", "outliers": "nearest"},
        {"type_order": "random", "rho": 3},
    ],
    ids=str,
)
def test_controls_and_settings_pass(ground: Ground, selection: dict) -> None:
    strategies = ["response-micro", "instruction-meso", "response-macro", "random"]
    controls = ["none", "length-quota", "source-quota", "tokens"]
    name = "-".join(map(str, selection.values()))
    build(ground, SelectionConfig(**selection), GridConfig(strategies=strategies, sizes=[30, 60], levels=LEVELS, controls=controls), name)
    verdicts = verdicts_of(ground, name)
    assert [one for one in verdicts if one.outcome == FAIL] == []
    controlled = {one.subject: one.outcome for one in verdicts if one.property == "control"}
    assert all(
        outcome == (PASS if subject[-1] in "as" and "_s0_" in subject else NOT_APPLICABLE) for subject, outcome in controlled.items()
    )


def test_the_literal_reading_passes_where_it_is_feasible(ground: Ground) -> None:
    build(ground, SelectionConfig(algorithm="unique", rho=1), GridConfig(strategies=["response-micro"], sizes=[15], levels=[1]), "unique")
    assert failed(verdicts_of(ground, "unique")) == set()


def test_a_length_window_holds_the_responses_of_its_corpus(tmp_path: Path) -> None:
    typings = ["response-micro", "instruction-micro"]
    grid = GridConfig(strategies=["random"], sizes=[30], controls=["length-window"])
    both = []
    for window, fails in (((1, 500), set()), ((5, 9), {("random_n30_s0_length-window", "control")})):
        ground = seal_ground(Storage(f"{tmp_path}/{window[0]}"), typings, window)
        build(ground, SelectionConfig(), grid)
        assert failed(verdicts_of(ground, "e")) == fails
        both += find([f"{ground.storage.uri}/experiments/e"])
    together = certify(both + both)
    assert failed(together) == {("random_n30_s0_length-window [2]", "control")}
    assert {one.subject for one in together if one.subject.startswith("corpus")} == {"corpus [1]", "corpus [2]"}
    assert len(together) == 2 * len(certify(both[:1]))


def test_a_profile_of_another_corpus_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ground = seal_ground(Storage(str(tmp_path)), ["response-micro", "instruction-micro"])
    build(ground, SelectionConfig(), GridConfig(strategies=["random"], sizes=[30]))
    rewrite(ground.storage, "profile/p0", lambda table: table.slice(1))
    assert main([f"{tmp_path}/experiments/e"]) == 1
    assert "has other rows than" in capsys.readouterr().err


def test_picks_are_certified_without_their_texts(tmp_path: Path) -> None:
    ground = seal_ground(Storage(str(tmp_path)), ["response-micro", "instruction-micro"])
    paths = build(
        ground, SelectionConfig(materialise=False), GridConfig(strategies=["response-micro", "random"], sizes=[60], levels=LEVELS)
    )
    verdicts = verdicts_of(ground, "e")
    assert failed(verdicts) == set()
    assert {one.outcome for one in verdicts if one.property == "text" and one.subject in paths} == {NOT_APPLICABLE}
    rewrite(ground.storage, paths[faults.HIGH], lambda table: table.set_column(1, "row", pa.array(table.column("row").to_numpy()[::-1])))
    assert failed(verdicts_of(ground, "e")) == {(faults.HIGH, "corpus")}


def test_the_mean_score_is_recounted(tmp_path: Path) -> None:
    ground = seal_ground(Storage(str(tmp_path)), ["response-micro", "instruction-micro"])
    scores = pa.array([None if row % 5 == 0 else row / 7 for row in range(len(ground.table))], pa.float64())
    rewrite(ground.storage, "corpus/c", lambda table: table.set_column(table.column_names.index("score"), "score", scores))
    (path,) = build(ground, SelectionConfig(), GridConfig(strategies=["random"], sizes=[30])).values()
    said = ground.storage.at(path).manifest["score"]
    assert failed(verdicts_of(ground, "e")) == set() and 0 < said["without"] < 30
    for score in ({**said, "mean": said["mean"] + 1}, {**said, "mean": None}, {**said, "without": said["without"] + 1}, {}, None):
        remanifest(ground.storage, path, lambda manifest, score=score: manifest.update(score=score))
        assert failed(verdicts_of(ground, "e")) == {("random_n30_s0", "manifest")}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("sound")
    made = seal_ground(Storage(str(folder)), ["response-micro", "instruction-micro"])
    paths = build(made, SelectionConfig(rho=3), FAULTY)
    assert failed(verdicts_of(made, "e", from_text=True)) == set()
    return folder, paths


@pytest.fixture
def copy(sound: tuple[Path, dict[str, str]], tmp_path: Path) -> Copy:
    shutil.copytree(sound[0], tmp_path / "copy")
    return Copy(Storage(str(tmp_path / "copy")), sound[1])


@pytest.mark.parametrize(
    ("spoil", "subject", "caught"),
    [
        (faults.drop, faults.LOW, {"size", "seed"}),
        (faults.repeat, faults.HIGH, {"unique", "seed"}),
        (faults.outside, faults.LOW, {"pool", "coverage", "seed"}),
        (faults.altered, faults.HIGH, {"text"}),
        (faults.forged, faults.HIGH, {"text"}),
        (faults.foreign, faults.HIGH, {"corpus", "text", "pool", "seed"}),
        (faults.same_coverage, faults.HIGH, {"seed"}),
        (faults.wrong_k, faults.HIGH, {"coverage", "seed"}),
        (faults.uncovered, faults.HIGH, {"coverage", "seed"}),
        (faults.levels_swapped, faults.LOW, {"pool", "coverage", "seed"}),
        (faults.levels_swapped, faults.HIGH, {"coverage", "seed"}),
        (faults.covered_misstated, faults.HIGH, {"coverage", "seed"}),
        (faults.covered_less, faults.HIGH, {"seed"}),
        (faults.bound_below, faults.HIGH, {"coverage", "seed"}),
        (faults.bound_above, faults.HIGH, {"coverage", "seed"}),
        (faults.random_misstated, faults.HIGH, {"seed"}),
        (faults.reason_changed, faults.HIGH, {"chosen_for", "seed"}),
        (faults.quota_missed, faults.QUOTA, {"control", "seed"}),
        (faults.budget_missed, faults.BUDGET, {"control", "seed"}),
        (faults.figures_wrong, faults.HIGH, {"manifest"}),
        (faults.pool_misstated, faults.QUOTA, {"manifest"}),
        (faults.score_made_up, faults.HIGH, {"manifest"}),
        (faults.positions_repeated, faults.HIGH, {"nested"}),
        (faults.positions_repeated, "typing response-micro", {"order"}),
        (faults.order_changed, "typing response-micro", {"order"}),
        (faults.type_lost, "typing response-micro", {"from-text"}),
        (faults.df_wrong, "typing instruction-micro", {"df"}),
        (faults.corpus_changed, "corpus", {"text"}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_planted_fault_is_caught_by_the_property_that_it_breaks(copy: Copy, spoil: Callable, subject: str, caught: set[str]) -> None:
    spoil(copy)
    verdicts = certify(find([f"{copy.storage.uri}/experiments/e"]), from_text=spoil in (faults.type_lost, faults.df_wrong))
    properties = {name for of, name in failed(verdicts) if of == subject}
    assert caught <= properties
    if caught in ({"text"}, {"seed"}, {"manifest"}) and subject != "corpus":
        assert failed(verdicts) == {(subject, name) for name in caught}


def test_the_command_line_says_what_fails_and_exits_with_1(copy: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    index, folder = f"{copy.storage.uri}/experiments/e/index.json", f"{copy.storage.uri}/{copy.paths[faults.HIGH]}"
    assert main([index]) == 0
    assert "0 FAIL" in capsys.readouterr().out.splitlines()[-1]
    faults.altered(copy)
    assert main([index, "--cells", "random_*"]) == 0
    capsys.readouterr()
    assert main([folder]) == 1
    assert f"{faults.HIGH}: text: FAIL: 1 samples whose text is not the corpus'" in capsys.readouterr().out
    assert main([index, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [one["property"] for one in found if one["outcome"] == "FAIL"] == ["text"]


def test_a_target_that_is_none_is_refused_in_one_line(copy: Copy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="names no cell"):
        find([f"{copy.storage.uri}/experiments/e"], ["nothing*"])
    with pytest.raises(ConfigError, match="neither a CONFIG.yaml"):
        find([str(tmp_path)])
    with pytest.raises(ArtifactError, match="not sealed"):
        find([f"{copy.storage.uri}/datasets/none"])
    with pytest.raises(ConfigError, match="no CONFIG.yaml before it"):
        find(["grid.sizes=[60]"])
    remanifest(copy.storage, copy.paths[faults.LOW], lambda manifest: manifest.pop("made_from"))
    assert main([f"{copy.storage.uri}/{copy.paths[faults.LOW]}"]) == 1
    assert "--config" in capsys.readouterr().err
