"""Explanations on a real sealed grid, for every sample of the corpus: what is said follows from METHOD's definitions, recounted here."""

from __future__ import annotations

import dataclasses
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from diversity.artifact import Storage
from diversity.audit.explanation import Choosing, explain_typed
from diversity.audit.ground import Types
from diversity.cell import Cell, GridConfig
from diversity.config import ConfigError
from diversity.datasets.dataset import id_array
from diversity.keys import priorities, sample_keys
from diversity.selection.strategies import SelectionConfig
from ray_jobs.tools.explain import _choosing, explain, main
from ray_jobs.tools.sealed import SealedDataset, find, sources_of
from tests.ray_jobs.grids import LEVELS, build, seal_ground

GRID = GridConfig(
    strategies=["response-micro", "instruction-meso", "random", "longest", "k_center"], sizes=[5, 6, 60], levels=LEVELS, full_corpus=True
)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SealedDataset]:
    ground = seal_ground(Storage(str(tmp_path_factory.mktemp("ground"))), ["response-micro", "instruction-micro", "instruction-meso"])
    build(ground, SelectionConfig(), GRID)
    return {one.cell.name: one for one in find([f"{ground.storage.uri}/experiments/e"])}


def choosing(one: SealedDataset) -> tuple[Choosing, np.ndarray]:
    """Return how a dataset was chosen, and the ids of its corpus."""
    sources = sources_of([one])
    column = sources.corpus.read(columns=["sample_id"]).column("sample_id")
    table, ids = one.artifact.read(), id_array(column)
    rows = np.searchsorted(ids, id_array(table.column("sample_id")))
    priority = priorities(sample_keys(column), one.cell.subset_seed, "sample")
    return _choosing(one, sources, priority, rows, table.column("chosen_for").to_numpy()), ids


@pytest.mark.parametrize(
    ("name", "by_greedy"),
    [
        ("response-micro_n60_l000_s0", "none"),
        ("response-micro_n60_l033_s0", "none"),
        ("instruction-meso_n60_l100_s0", "none"),
        ("response-micro_n6_l100_s0", "all"),  # its kept types don't fit 6 samples
        ("instruction-meso_n5_l033_s0", "all"),  # rarest first they don't fit 5, by greedy coverage they do
        ("instruction-meso_n6_l033_s0", "some"),
    ],
)
def test_what_is_said_of_every_sample_is_so(datasets: dict[str, SealedDataset], name: str, by_greedy: str) -> None:
    given, _ = choosing(datasets[name])
    k = given.target["k_realised"]
    sets = [set(given.types.values[a:b].tolist()) for a, b in zip(given.types.bounds[:-1], given.types.bounds[1:], strict=True)]
    kept = {t for t in range(given.types.n_types) if given.position[t] <= k}
    pool = {i for i, types in enumerate(sets) if types and types <= kept}
    chosen = dict(zip(given.rows.tolist(), given.chosen_for.tolist(), strict=True))
    greedy, turns = by_greedy != "none", by_greedy != "all"
    assert set(given.greedy.tolist()) <= chosen.keys() and (len(given.greedy) > 0, len(given.greedy) < len(chosen)) == (greedy, turns)
    assert given.target["covered"] == k or not turns, "without a control, turns come once all is covered"
    covered = set().union(*(sets[row] for row in chosen))
    seen, passed = set(), 0
    for row, types in enumerate(sets):
        found = explain_typed(given, row)
        assert found.chosen == (row in chosen) and {one.type for one in found.types} == types
        for one in found.types:
            candidates = sorted((i for i in pool if one.type in sets[i]), key=lambda i: given.priority[i])
            assert (one.kept, one.df) == (one.type in kept, sum(one.type in other for other in sets))
            assert (one.candidates, one.in_dataset) == (len(candidates), len(set(candidates) & set(chosen)))
            assert one.place == (candidates.index(row) + 1 if row in pool else 0)
            taken = [i for i in candidates if chosen.get(i) == one.type]
            assert one.chosen_for_it == len(taken) and one.reached == (candidates.index(taken[-1]) + 1 if taken else 0)
            if row in pool and row not in chosen and not greedy:
                assert one.place > one.reached  # the default objective takes the next candidate of a type, so none before it is passed over
        said = " ".join(found.because)
        kind = (
            ("chosen for the type",)
            if row in chosen
            else ("no type",)
            if not types
            else ("turn" if turns else "window",)
            if row in pool
            else ("outside the pool",)
        )
        assert kind[0] in said
        seen.add(kind)
        if row in chosen:
            assert found.chosen_for == given.labels[chosen[row]] and "are not in the dataset" not in said
            assert ("greedy coverage took" in said, "when the type's turn came" in said) == (row in given.greedy, row not in given.greedy)
            passed += row in given.greedy
            assert [rival.chosen for rival in found.rivals[found.chosen_for] if rival.row == row] == [True]
        if row in pool and row not in chosen:
            assert f"{len(types & covered)} of its {len(types)} kept types are covered" in said
            assert ("No chosen sample has" in said) == bool(types - covered)
            assert ("when the size was reached, the turn" in said) == turns
        for rivals in found.rivals.values():
            assert all(rival.chosen == (rival.row in chosen) for rival in rivals)
    assert len(seen) >= 3 - greedy and bool(passed) == greedy


def test_a_sample_that_left_the_pool_of_unique_is_told_so(tmp_path: Path) -> None:
    ground = seal_ground(Storage(str(tmp_path)), ["response-micro", "instruction-micro"])
    build(ground, SelectionConfig(algorithm="unique", rho=1), GridConfig(strategies=["response-micro"], sizes=[8], levels=[Fraction(1, 2)]))
    (one,) = find([f"{tmp_path}/experiments/e"])
    given, said = choosing(one)[0], []
    for row in range(len(ground.table)):
        found = explain_typed(given, row)
        if found.because[0].startswith("It is outside the pool") and all(brought.kept for brought in found.types):
            said.append(found.because[0])
    assert set(said) == {
        "It is outside the pool: under `unique` the pool is what is left of the samples when one after the other is removed, "
        "and it was removed before."
    }


def test_what_keeps_a_sample_out_and_what_was_passed_over() -> None:
    types = Types(np.array([0, 1, 2, 4]), np.array([0, 1, 0, 2]), 3)
    given = Choosing(
        cell=Cell("response-micro", 1, Fraction(1)),
        types=types,
        labels=["a", "b", "c"],
        df=np.array([2, 1, 1]),
        position=np.array([1, 2, 3]),
        births=np.array([1, 2, 3]),
        priority=np.arange(3),
        target={"k_realised": 1, "k_min": 1, "M": 3, "covered": 1},
        rows=np.array([0]),
        chosen_for=np.array([0]),
    )
    assert "from about level 0.50 on" in explain_typed(given, 1).because[1]
    assert "from about level 1.00 on" in explain_typed(given, 2).because[1]
    wider = dataclasses.replace(given, target={"k_realised": 3, "k_min": 3, "M": 3, "covered": 1})
    by_greedy = dataclasses.replace(wider, greedy=np.array([0]))
    assert "0 of its 1 kept types are covered. The size holds 1 of the k = 3 kept types" in explain_typed(by_greedy, 1).because[0]
    assert explain_typed(by_greedy, 1).because[1] == "No chosen sample has 'b'."
    assert "greedy coverage took" in explain_typed(by_greedy, 0).because[1], "though it is the first: there were no turns"
    assert "It is the first of them" in explain_typed(wider, 0).because[1]
    later = dataclasses.replace(wider, rows=np.array([2]), chosen_for=np.array([0]), passes_over="the budget")
    assert explain_typed(later, 2).because[1] == "1 of the 1 before it are not in the dataset: the budget."
    assert "filled without it: the budget." in explain_typed(later, 0).because[1]
    greedy = dataclasses.replace(later, passes_over="", greedy=np.array([2]))
    assert "greedy coverage took" in explain_typed(greedy, 2).because[1] and "greedy coverage took" in explain_typed(greedy, 0).because[0]


def test_strategies_without_types_are_explained_by_their_order(datasets: dict[str, SealedDataset]) -> None:
    for name in ("random_n60_s0", "longest_n60_s0"):
        ids = id_array(sources_of([datasets[name]]).corpus.read(columns=["sample_id"]).column("sample_id"))
        places = {}
        for sample in ids.astype(str).tolist()[::5]:
            found = explain(datasets[name], sample)
            places[int(found["because"][0].partition("place ")[2].split()[0])] = found["chosen"]
        assert all(chosen == (place <= 60) for place, chosen in places.items())
    found = explain(datasets["k_center_n60_s0"], sample)
    assert "k_center" in found["because"][0]
    found = explain(datasets["full-corpus_nall_s0"], sample)
    assert found["chosen"] and "everything there is" in found["because"][0]


def test_the_command_line(datasets: dict[str, SealedDataset], capsys: pytest.CaptureFixture[str]) -> None:
    one = datasets["response-micro_n60_l033_s0"]
    given, ids = choosing(one)
    sample = ids[given.rows[0]].decode()
    assert main([one.artifact.uri, "--sample", sample[:12]]) == 0
    printed = capsys.readouterr().out
    assert f"sample {sample}" in printed and f"in {one.cell.name}" in printed and "candidates of" in printed
    index = f"{one.storage.uri}/experiments/e/index.json"
    assert main([index, "--cell", one.cell.name, "--sample", sample, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["chosen"] and found["chosen_for"] == given.labels[given.chosen_for[0]]
    rival = found["rivals"][found["chosen_for"]][0]
    assert rival["source"] in ("books", "forum", "wiki") and rival["excerpt"] and len(rival["sample_id"]) == 32
    for arguments, says in (
        ([index, "--sample", sample], "choose one with --cell"),
        ([one.artifact.uri, "--sample", "f" * 32], "not in the corpus"),
        ([one.artifact.uri, "--sample", ""], "samples begin with"),
        ([one.artifact.uri, "--sample", "zebra"], "not in the corpus"),
    ):
        assert main(arguments) == 1
        assert says in capsys.readouterr().err
    with pytest.raises(ConfigError, match="not in the corpus"):
        explain(one, "0123456789" * 3)
