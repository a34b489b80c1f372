"""The certificate on real sealed grids: every cell of every strategy passes, and each planted fault is caught by the property it breaks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from diversity.artifact import ArtifactError, Storage
from diversity.cell import TYPINGS, GridConfig
from diversity.certificate import Verdict
from diversity.config import ConfigError
from diversity.dataset import content_hash, id_array
from diversity.promises import FAIL, NOT_APPLICABLE, PASS, PROMISES
from diversity.strategies import STRATEGIES, SelectionConfig
from ray_jobs.certify import certify, main
from ray_jobs.sealed import find
from tests.ray_jobs.grids import LEVELS, Ground, build, remanifest, rewrite, seal_ground

LOW, HIGH = "response-micro_n60_l000_s0", "response-micro_n60_l100_s0"
QUOTA, BUDGET = "random_n60_s0_source-quota", "response-micro_n60_l000_s0_tokens"
FAULTY = GridConfig(strategies=["response-micro", "random"], sizes=[60], levels=LEVELS, controls=["none", "source-quota", "tokens"])


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return seal_ground(Storage(str(tmp_path_factory.mktemp("ground"))))


def verdicts_of(ground: Ground, name: str, from_text: bool = False) -> list[Verdict]:
    return certify(find([f"{ground.storage.uri}/experiments/{name}"]), from_text=from_text)


def failed(verdicts: list[Verdict]) -> set[tuple[str, str]]:
    return {(one.subject, one.property) for one in verdicts if one.outcome == FAIL}


def test_every_strategy_passes_every_property_from_its_text_too(ground: Ground) -> None:
    grid = GridConfig(strategies=[*TYPINGS, "response-micro@word", *STRATEGIES], sizes=[40, 60], levels=LEVELS)
    paths = build(ground, SelectionConfig(), grid, "all")
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
    for window, fails in (((1, 500), set()), ((5, 9), {("random_n30_s0_length-window", "control")})):
        ground = seal_ground(Storage(f"{tmp_path}/{window[0]}"), typings, window)
        build(ground, SelectionConfig(), grid)
        assert failed(verdicts_of(ground, "e")) == fails


@dataclass(frozen=True)
class Copy:
    """A copy of a sound grid, to be spoilt."""

    storage: Storage
    paths: dict[str, str]

    def swap(self, name: str, change: Callable[[pa.Table], pa.Table], *, recount: bool = True) -> None:
        """Change a dataset's rows; with `recount` its manifest says what the new rows hold, as a careful forger's would."""
        rewrite(self.storage, self.paths[name], change)
        if recount:
            table = self.storage.at(self.paths[name]).read()
            rows = np.isin(self.ids, id_array(table.column("sample_id")))
            remanifest(self.storage, self.paths[name], lambda manifest: manifest.update(self.figures(manifest, table, rows)))

    @property
    def ids(self) -> np.ndarray:
        return id_array(self.corpus.column("sample_id"))

    @property
    def corpus(self) -> pa.Table:
        return self.storage.at("corpus/c").read()

    def figures(self, manifest: dict, table: pa.Table, rows: np.ndarray) -> dict:
        made = manifest["made_from"]["profiles"]
        profiles = {typing: self.storage.at(path) for typing, path in made.items()}
        sides = ("instruction", "response")
        tokens = {side: int(profiles[f"{side}-micro"].read().column("tokens").to_numpy()[rows].sum()) for side in sides}
        coverage = {}
        for typing, profile in profiles.items():
            types = profile.read().column("types").filter(pa.array(rows)).to_pylist()
            coverage[typing] = len(set().union(*types)) / profile.read("types").num_rows
        names = table.column("source").to_pylist()
        counted = {"sources": {name: names.count(name) for name in set(names)}, "samples": len(table)}
        return {**counted, "tokens": tokens, "coverage": coverage, "content": content_hash(id_array(table.column("sample_id")))}

    def types(self, name: str = "response-micro") -> list[set[int]]:
        path = self.storage.at(self.paths[LOW]).manifest["made_from"]["profiles"][name]
        return [set(types) for types in self.storage.at(path).read().column("types").to_pylist()]

    def kept(self, name: str) -> set[int]:
        manifest = self.storage.at(self.paths[name]).manifest
        peel = self.storage.at(manifest["made_from"]["peels"]["response-micro"]).read().sort_by("type")
        return set(np.flatnonzero(peel.column("position").to_numpy() <= manifest["target"]["k_realised"]).tolist())

    def replace(self, name: str, right: Callable[[int, int, list[int]], bool]) -> Callable[[pa.Table], pa.Table]:
        """Return a change that puts a corpus row for the first dataset row for which `right(leaving, coming, the rows)` says so."""
        table = self.storage.at(self.paths[name]).read()
        rows = np.flatnonzero(np.isin(self.ids, id_array(table.column("sample_id")))).tolist()
        for place, leaving in enumerate(rows):
            for coming in range(len(self.ids)):
                if coming not in rows and right(leaving, coming, [row for row in rows if row != leaving]):
                    types, kept = self.types(), self.kept(name) if "micro" in name else set()
                    reason = min(types[coming] & kept, default=-1)
                    new = self.corpus.slice(coming, 1).append_column("chosen_for", pa.array([reason], pa.int32()))
                    rest = pa.concat_tables([table.slice(0, place), table.slice(place + 1)])
                    return lambda _: pa.concat_tables([rest, new.cast(rest.schema)]).sort_by("sample_id")
        raise AssertionError("no such pair of samples")


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


def drop(copy: Copy) -> None:
    copy.swap(LOW, lambda table: table.slice(1))


def repeat(copy: Copy) -> None:
    copy.swap(HIGH, lambda table: pa.concat_tables([table.slice(0, 1), table.slice(0, 1), table.slice(2)]), recount=False)


def outside(copy: Copy) -> None:
    types, kept = copy.types(), copy.kept(LOW)
    copy.swap(LOW, copy.replace(LOW, lambda leaving, coming, rest: bool(types[coming] & kept) and not types[coming] <= kept))


def altered(copy: Copy) -> None:
    def change(table: pa.Table) -> pa.Table:
        texts = table.column("response").to_pylist()
        texts[3] += "."
        return table.set_column(table.column_names.index("response"), "response", pa.array(texts, pa.large_string()))

    copy.swap(HIGH, change)


def forged(copy: Copy) -> None:
    """Change a text in response and messages, and leave the id."""

    def change(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[3]["response"] += "."
        rows[3]["messages"][-1]["content"] += "."
        return pa.Table.from_pylist(rows, schema=table.schema)

    copy.swap(HIGH, change)


def foreign(copy: Copy) -> None:
    def change(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[0]["sample_id"] = "0" * 32
        return pa.Table.from_pylist(rows, schema=table.schema)

    copy.swap(HIGH, change, recount=False)


def same_coverage(copy: Copy) -> None:
    """Swap a sample for another of the pool, coverage and manifest kept right."""
    types, kept = copy.types(), copy.kept(HIGH)

    def right(leaving: int, coming: int, rest: list[int]) -> bool:
        return bool(types[coming]) and types[coming] <= kept and set().union(*(types[row] for row in rest), types[coming]) == kept

    copy.swap(HIGH, copy.replace(HIGH, right))


def wrong_k(copy: Copy) -> None:
    remanifest(copy.storage, copy.paths[HIGH], lambda manifest: manifest["target"].update(k_realised=manifest["target"]["k_realised"] - 1))


def uncovered(copy: Copy) -> None:
    """Swap all samples that have the rarest type for others of the pool."""
    types, kept = copy.types(), copy.kept(HIGH)
    table = copy.storage.at(copy.paths[HIGH]).read()
    rows = np.flatnonzero(np.isin(copy.ids, id_array(table.column("sample_id")))).tolist()
    rarest = min(kept, key=lambda t: (sum(t in types[row] for row in rows), t))
    leaving = [row for row in rows if rarest in types[row]]
    coming = [row for row in range(len(types)) if row not in rows and types[row] and types[row] <= kept - {rarest}][: len(leaving)]
    new = copy.corpus.take(coming).append_column("chosen_for", pa.array([min(types[row]) for row in coming], pa.int32()))
    rest = table.filter(pa.array([row not in leaving for row in rows]))
    copy.swap(HIGH, lambda _: pa.concat_tables([rest, new.cast(rest.schema)]).sort_by("sample_id"))


def levels_swapped(copy: Copy) -> None:
    low, high = (copy.storage.at(copy.paths[name]).read() for name in (LOW, HIGH))
    copy.swap(LOW, lambda _: high)
    copy.swap(HIGH, lambda _: low)


def reason_changed(copy: Copy) -> None:
    def change(table: pa.Table) -> pa.Table:
        reasons = table.column("chosen_for").to_numpy().copy()
        reasons[0] = -1
        return table.set_column(table.column_names.index("chosen_for"), "chosen_for", pa.array(reasons))

    copy.swap(HIGH, change)


def quota_missed(copy: Copy) -> None:
    sources = copy.corpus.column("source").to_pylist()
    copy.swap(QUOTA, copy.replace(QUOTA, lambda leaving, coming, rest: sources[leaving] != sources[coming]))


def budget_missed(copy: Copy) -> None:
    copy.swap(BUDGET, lambda table: table.slice(0, len(table) - 20))


def figures_wrong(copy: Copy) -> None:
    remanifest(copy.storage, copy.paths[HIGH], lambda manifest: manifest["coverage"].update({"instruction-micro": 1.0}))


def positions_repeated(copy: Copy) -> None:
    def change(table: pa.Table) -> pa.Table:
        position = table.column("position").to_numpy().copy()
        position[position == position.max()] -= 1
        return table.set_column(table.column_names.index("position"), "position", pa.array(position))

    rewrite(copy.storage, copy.storage.at(copy.paths[LOW]).manifest["made_from"]["peels"]["response-micro"], change)


def order_changed(copy: Copy) -> None:
    def change(table: pa.Table) -> pa.Table:
        position = table.column("position").to_numpy().copy()
        first, second = np.flatnonzero(position == len(position)), np.flatnonzero(position == len(position) - 1)
        position[first], position[second] = len(position) - 1, len(position)
        return table.set_column(table.column_names.index("position"), "position", pa.array(position))

    rewrite(copy.storage, copy.storage.at(copy.paths[LOW]).manifest["made_from"]["peels"]["response-micro"], change)


def type_lost(copy: Copy) -> None:
    """Take a type from one sample of the sealed profile, and its df with it: only the text knows better."""
    path = copy.storage.at(copy.paths[LOW]).manifest["made_from"]["profiles"]["response-micro"]
    lost = []

    def change(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        taken = next(row for row in rows if len(row["types"]) > 2)
        lost.append(taken["types"].pop())
        return pa.Table.from_pylist(rows, schema=table.schema)

    def less(table: pa.Table) -> pa.Table:
        df = table.column("df").to_numpy().copy()
        df[lost[0]] -= 1
        return table.set_column(table.column_names.index("df"), "df", pa.array(df))

    rewrite(copy.storage, path, change)
    rewrite(copy.storage, path, less, "types")


def df_wrong(copy: Copy) -> None:
    def change(table: pa.Table) -> pa.Table:
        return table.set_column(table.column_names.index("df"), "df", pa.array(table.column("df").to_numpy() + 1))

    rewrite(copy.storage, copy.storage.at(copy.paths[LOW]).manifest["made_from"]["profiles"]["instruction-micro"], change, "types")


def corpus_changed(copy: Copy) -> None:
    def change(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[0]["response"] += "."
        return pa.Table.from_pylist(rows, schema=table.schema)

    rewrite(copy.storage, "corpus/c", change)


@pytest.mark.parametrize(
    ("spoil", "subject", "caught"),
    [
        (drop, LOW, {"size", "seed"}),
        (repeat, HIGH, {"unique", "seed"}),
        (outside, LOW, {"pool", "coverage", "seed"}),
        (altered, HIGH, {"text"}),
        (forged, HIGH, {"text"}),
        (foreign, HIGH, {"corpus", "text", "pool", "seed"}),
        (same_coverage, HIGH, {"seed"}),
        (wrong_k, HIGH, {"coverage", "seed"}),
        (uncovered, HIGH, {"coverage", "seed"}),
        (levels_swapped, HIGH, {"nested", "coverage", "seed"}),
        (reason_changed, HIGH, {"chosen_for", "seed"}),
        (quota_missed, QUOTA, {"control", "seed"}),
        (budget_missed, BUDGET, {"control", "seed"}),
        (figures_wrong, HIGH, {"manifest"}),
        (positions_repeated, HIGH, {"nested"}),
        (positions_repeated, "typing response-micro", {"order"}),
        (order_changed, "typing response-micro", {"order"}),
        (type_lost, "typing response-micro", {"from-text"}),
        (df_wrong, "typing instruction-micro", {"df"}),
        (corpus_changed, "corpus", {"text"}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_planted_fault_is_caught_by_the_property_that_it_breaks(copy: Copy, spoil: Callable, subject: str, caught: set[str]) -> None:
    spoil(copy)
    verdicts = certify(find([f"{copy.storage.uri}/experiments/e"]), from_text=spoil in (type_lost, df_wrong))
    properties = {name for of, name in failed(verdicts) if of == subject}
    assert caught <= properties
    if caught in ({"text"}, {"seed"}, {"manifest"}) and subject != "corpus":
        assert failed(verdicts) == {(subject, name) for name in caught}


def test_the_command_line_says_what_fails_and_exits_with_1(copy: Copy, capsys: pytest.CaptureFixture[str]) -> None:
    index, folder = f"{copy.storage.uri}/experiments/e/index.json", f"{copy.storage.uri}/{copy.paths[HIGH]}"
    assert main([index]) == 0
    assert "0 FAIL" in capsys.readouterr().out.splitlines()[-1]
    altered(copy)
    assert main([index, "--cells", "random_*"]) == 0
    capsys.readouterr()
    assert main([folder]) == 1
    assert f"{HIGH}: text: FAIL: 1 samples whose text is not the corpus'" in capsys.readouterr().out
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
    remanifest(copy.storage, copy.paths[LOW], lambda manifest: manifest.pop("made_from"))
    assert main([f"{copy.storage.uri}/{copy.paths[LOW]}"]) == 1
    assert "--config" in capsys.readouterr().err
