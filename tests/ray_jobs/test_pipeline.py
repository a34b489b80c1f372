"""From a file to sealed datasets: what is sealed is skipped, a killed run is resumed with the same content, an edited file is new work."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diversity.artifact import Storage
from diversity.corpus.samples import SAMPLE_SCHEMA
from diversity.datasets import dataset
from diversity.selection.strategies import STRATEGIES
from ray_jobs.build_datasets import dataset_artifact
from ray_jobs.job.experiment import load_experiment
from ray_jobs.job.runtime import Context, main
from ray_jobs.tools import certify
from training.sft import read_samples

ROOT = Path(__file__).resolve().parents[2]
STAGES = "stages=[ingest,heldout,profile_corpus,build_datasets]"
WORD_CELLS = ("response-micro@word_n60_l000_s0", "response-micro@word_n60_l100_s0", "random_n60_s0")
SUBJECTS = {
    "planets": ["orbit", "moon", "gravity", "ring", "telescope", "crater", "comet", "star", "atmosphere", "dust"],
    "bread": ["flour", "yeast", "oven", "dough", "crust", "salt", "knead", "butter", "loaf", "rise"],
    "law": ["court", "judge", "appeal", "contract", "witness", "verdict", "statute", "clause", "tort", "plea"],
    "music": ["violin", "tempo", "chord", "melody", "drum", "rhythm", "scale", "opera", "tenor", "bass"],
}


def write_corpus(path: Path, n: int = 900) -> None:
    """Write rows about a few subjects, with a long tail of names, so that topics, tags and tokens all have something to find."""
    rng = np.random.default_rng(0)
    names = np.array([f"{a}{b}" for a in ("Tar", "Bel", "Mor", "Kin", "Vas", "Ola") for b in ("dane", "wick", "mont", "grove", "lund")])
    with path.open("w") as out:
        for i in range(n):
            subject = list(SUBJECTS)[i % len(SUBJECTS)]
            words = rng.choice(SUBJECTS[subject], size=rng.integers(4, 12))
            name = names[min(len(names) - 1, rng.geometric(0.12))]
            instruction = f"What does {name} number {i} know about {subject} and the {words[0]}?"
            response = f"{name} knows the {' and the '.join(words)} of {subject}, {i % 97} in all."
            out.write(json.dumps({"instruction": instruction, "response": response, "source": subject}) + "\n")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    write_corpus(folder / "rows.jsonl")
    path = folder / "small.yaml"
    path.write_text(
        f"""
experiment: small
storage: {folder}/runs
{STAGES.replace("=", ": ")}
corpus: {{paths: ["{folder}/rows.jsonl"]}}
resources: {{data_workers: 1}}
profile: {{band: {{low: 5, high: 400, scaled: false}}, topics: {{min_topics: 2}}}}
grid:
  strategies: [instruction-macro, instruction-meso, instruction-micro, response-macro, response-meso, response-micro,
               response-micro@word, random, longest]
  sizes: [60]
  levels: 2
  subset_seeds: [0]
"""
    )
    return path


def entries(storage: Path) -> dict:
    return json.loads((storage / "experiments/small/index.json").read_text())["artifacts"]


def contents(storage: Path) -> dict[str, tuple]:
    """Return what every dataset holds, by cell."""
    found = {}
    for cell, path in entries(storage)["datasets"].items():
        artifact = Storage(str(storage)).at(path)
        table = artifact.read(columns=["sample_id", "chosen_for"])
        found[cell] = (table.column("sample_id").to_pylist(), table.column("chosen_for").to_pylist(), artifact.manifest["coverage"])
    return found


@pytest.fixture(scope="module")
def whole(config: Path, ray_local: None) -> Path:
    """Run the stages once, undisturbed, and return the storage."""
    assert main("pipeline", [str(config)]) == 0
    return config.parent / "runs"


def test_every_dataset_has_its_exact_size_and_coverage(whole: Path) -> None:
    datasets = entries(whole)["datasets"]
    assert len(datasets) == 7 * 2 + 2
    for cell, path in datasets.items():
        manifest = Storage(str(whole)).at(path).manifest
        assert manifest["samples"] == 60 and manifest["cell"]["size"] == 60
        if "target" in manifest:
            typing, target = manifest["cell"]["strategy"], manifest["target"]
            assert manifest["coverage"][typing] == pytest.approx(target["covered"] / target["M"]), cell
            assert target["covered"] <= target["bound"] <= target["k_realised"] <= target["M"], cell
    assert set(entries(whole)["metrics"]) == set(datasets)


def test_levels_keep_more_types(whole: Path) -> None:
    storage, found = Storage(str(whole)), contents(whole)
    peel = storage.at(entries(whole)["peel"]["response-micro"]).read()
    assert sorted(peel.column("position").to_pylist()) == list(range(1, len(peel) + 1))
    for strategy in ("response-micro", "instruction-meso"):
        ks = [
            storage.at(entries(whole)["datasets"][f"{strategy}_n60_l{label}_s0"]).manifest["target"]["k_realised"]
            for label in ("000", "100")
        ]
        assert ks[0] < ks[1]
    assert found["random_n60_s0"] != found["longest_n60_s0"]


def test_a_length_window_is_a_corpus_of_its_own(whole: Path, config: Path) -> None:
    """Its datasets hold nothing outside the window, its frequencies are its own, and the cells beside it stay as they were."""
    arguments = [
        str(config),
        "experiment=windowed",
        "grid.strategies=[response-micro@word,random]",
        "grid.controls=[none,length-window]",
        "profile.typings=[response-micro@word]",
        "profile.band={low: 600, high: 50000, scaled: true}",  # of 117,000, so about 5 to 400 of these
    ]
    assert main("pipeline", arguments) == 0
    storage = Storage(str(whole))
    index = json.loads((whole / "experiments/windowed/index.json").read_text())["artifacts"]
    datasets, before = index["datasets"], entries(whole)["datasets"]
    assert set(datasets) == {f"{cell}{control}" for cell in WORD_CELLS for control in ("", "_length-window")}
    profile = storage.at(index["profile"]["response-micro~length-window"]).read()
    tokens = dict(zip(profile.column("sample_id").to_pylist(), profile.column("tokens").to_pylist(), strict=True))
    low, high = min(tokens.values()), max(tokens.values())
    everywhere = storage.at(index["profile"]["response-micro"]).read(columns=["tokens"]).column("tokens").to_pylist()
    assert high <= 2 * low and len(tokens) == sum(low <= length <= high for length in everywhere) < len(everywhere)
    for cell, path in datasets.items():
        if cell.endswith("_length-window"):
            assert set(storage.at(path).read(columns=["sample_id"]).column("sample_id").to_pylist()) <= set(tokens)
    frequencies = [
        dict(storage.at(index["profile"][f"response-micro@word{suffix}"]).read("types", ["label", "df"]).to_pandas().values)
        for suffix in ("", "~length-window")
    ]
    shared = set(frequencies[0]) & set(frequencies[1])
    assert shared and all(frequencies[1][word] <= frequencies[0][word] for word in shared) and frequencies[0] != frequencies[1]
    plain = storage.at(datasets["random_n60_s0"]).manifest["content"]
    assert plain == storage.at(before["random_n60_s0"]).manifest["content"]
    assert certify.main(arguments) == 0


def test_picks_alone_are_read_through_to_the_corpus(whole: Path, config: Path) -> None:
    """Other sizes than elsewhere here, since materialise is no part of a dataset's name."""
    lean = [str(config), "experiment=lean", "selection.materialise=false", "grid.strategies=[response-meso,random]", "grid.sizes=[50]"]
    assert main("pipeline", lean) == 0
    index = json.loads((whole / "experiments/lean/index.json").read_text())["artifacts"]
    corpus = Storage(str(whole)).at(index["corpus"]).read()
    for path in index["datasets"].values():
        artifact = Storage(str(whole)).at(path)
        picks, rows = artifact.read(), dataset.read(artifact)
        assert picks.column_names == ["sample_id", "row", "chosen_for"]
        assert rows.drop_columns("chosen_for").equals(corpus.take(picks.column("row")).cast(SAMPLE_SCHEMA))
        assert rows.column("chosen_for").equals(picks.column("chosen_for"))
        assert read_samples(whole / path).equals(rows.select(["sample_id", "messages", "tools"]))
    assert set(index["metrics"]) == set(index["datasets"])
    assert certify.main(lean) == 0


def test_every_dataset_is_certified_by_its_configuration(whole: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert certify.main([str(config), "--from-text"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("16 datasets: ")


def test_the_same_command_again_makes_nothing(whole: Path, config: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in whole.rglob("*.parquet")}
    assert main("pipeline", [str(config)]) == 0
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*.parquet")} == files


def test_a_strategy_whose_picks_change_gets_other_datasets(whole: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def names() -> dict[str, str]:
        context = Context(load_experiment(config, [], inside_job=False), config)
        return {cell.name: dataset_artifact(context, cell).fingerprint for cell in context.experiment.cells}

    before = names()
    monkeypatch.setitem(STRATEGIES, "longest", replace(STRATEGIES["longest"], version=2))
    assert {cell for cell, name in names().items() if name != before[cell]} == {"longest_n60_s0"}


def test_an_edited_file_gives_new_artifacts(whole: Path, config: Path, tmp_path: Path) -> None:
    edited = tmp_path / "rows.jsonl"
    lines = (config.parent / "rows.jsonl").read_text().splitlines(keepends=True)
    edited.write_text("".join(lines[1:]))
    before = entries(whole)["corpus"]
    arguments = [str(config), "experiment=edited", f"corpus.paths=['{edited}']", "stages=[ingest,heldout]"]
    assert main("pipeline", arguments) == 0
    after = json.loads((whole / "experiments/edited/index.json").read_text())["artifacts"]["corpus"]
    assert after != before
