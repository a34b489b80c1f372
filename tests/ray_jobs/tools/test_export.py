"""What a person may point the export at, and what it says when there is nothing."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from diversity.artifact import Artifact, ArtifactError, Storage
from diversity.cell import Cell
from diversity.corpus.samples import sample_id
from diversity.datasets.dataset import DATASET_SCHEMA
from diversity.datasets.export import RECORD
from ray_jobs.build_datasets import dataset_artifact
from ray_jobs.job.experiment import load_experiment
from ray_jobs.job.index import Index
from ray_jobs.job.runtime import Context
from ray_jobs.tools.export import find_datasets, main

CELLS = [Cell("response-micro", 3, Fraction(j, 6)) for j in range(7)] + [Cell("random", 3, None)]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Return a storage with an experiment `small` of eight datasets."""
    storage = Storage(str(tmp_path / "runs"))
    artifacts = {cell.name: sealed_dataset(storage.artifact("datasets", f"{i:032x}"), cell, i) for i, cell in enumerate(CELLS)}
    Index(storage, "small").add_many("datasets", artifacts)
    return tmp_path / "runs"


def sealed_dataset(artifact: Artifact, cell: Cell, number: int) -> Artifact:
    """Seal three samples as a cell's dataset."""
    rows = []
    for i in range(3):
        messages = [{"role": "user", "content": f"Question {number} {i}?"}, {"role": "assistant", "content": "Yes."}]
        facts = {"sample_id": sample_id(messages), "source": "s", "instruction": messages[0]["content"], "response": "Yes."}
        rows.append({**facts, "messages": messages, "chosen_for": -1})
    begun = artifact.begin()
    begun.write(pa.Table.from_pylist(rows, schema=DATASET_SCHEMA))
    return begun.seal({"cell": cell.describe(), "samples": 3})


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {RECORD, "README.md"}


def test_a_dataset_is_exported_under_its_cell_s_name(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, cell in enumerate(CELLS):
        folder = runs / "datasets" / f"{number:032x}"
        for what in (folder, f"{folder}/", folder / "manifest.json"):
            assert main([str(what), "--format", "alpaca", "--out", f"{tmp_path}/out", "--overwrite"]) == 0
            assert files(tmp_path / "out") == {f"{cell.name}.jsonl"}, "a level read from a manifest spells the same name"
    assert f"{tmp_path}/out: 3 samples of 1 dataset as alpaca" in capsys.readouterr().out


def test_an_experiment_exports_all_its_cells(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = runs / "experiments" / "small"
    monkeypatch.chdir(tmp_path)
    for number, what in enumerate(([experiment], [experiment / "index.json"], ["runs/experiments/small"])):
        assert main([*map(str, what), "--format", "llama-factory", "--out", f"out{number}"]) == 0
        assert files(tmp_path / f"out{number}") == {"dataset_info.json", *(f"{cell.name}.jsonl" for cell in CELLS)}
        assert set(json.loads((tmp_path / f"out{number}" / "dataset_info.json").read_text())) == {cell.name for cell in CELLS}
    assert main([str(experiment), "--format", "sharegpt", "--out", "some", "--cells", "random*", "--cells", "*_l05?_*"]) == 0
    assert files(tmp_path / "some") == {"random_n3_s0.jsonl", "response-micro_n3_l050_s0.jsonl"}


def test_a_configuration_exports_the_datasets_of_its_own_settings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}')
    config = tmp_path / "small.yaml"
    grid = {"strategies": ["response-micro", "random"], "sizes": [3], "levels": 3}
    settings = {"experiment": "small", "storage": f"{tmp_path}/runs", "corpus": {"paths": [str(tmp_path / "rows.jsonl")]}, "grid": grid}
    config.write_text(yaml.safe_dump(settings), "utf-8")
    context = Context(load_experiment(config, [], inside_job=False), config)
    cells = context.experiment.cells
    index_all = {cell.name: sealed_dataset(dataset_artifact(context, cell), cell, number) for number, cell in enumerate(cells)}
    context.index.add_many("datasets", index_all)
    assert find_datasets(str(config)) == {name: index_all[name] for name in sorted(index_all)}
    assert list(find_datasets(str(config), ["grid.strategies=[random]"])) == ["random_n3_s0"], "the index has others, too"
    with pytest.raises(ArtifactError, match=r"no datasets of these settings yet: .*build_datasets .*selection\.rho=3"):
        find_datasets(str(config), ["selection.rho=3", "grid.strategies=[response-micro]"])
    assert find_datasets(str(config), ["grid.levels=2", "grid.sizes=[3, 4]"]) and "4 of 6 datasets are sealed" not in caplog.text
    assert "3 of 6 datasets are sealed" in caplog.text


def test_what_is_none_is_told_in_one_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.yaml").write_text("{experiment: other, storage: runs, corpus: {paths: [builtin:python-docs]}}")
    Storage(str(runs)).artifact("corpus", "c").begin().seal({})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("")
    for given, says in (
        ([runs], "is no sealed dataset and no experiment: it holds neither manifest.json nor index.json"),
        ([runs / "datasets" / "0"], "is no sealed dataset and no experiment"),
        ([runs / "corpus" / "c"], "is no dataset but of kind 'corpus'"),
        (
            [tmp_path / "empty.yaml", f"storage={runs}"],
            "has no datasets of these settings yet: make them with: python -m ray_jobs.build_datasets",
        ),
        ([tmp_path / "none.yaml"], "there is no config file"),
        ([runs / "experiments" / "small", "storage=x"], "'storage=x': only a CONFIG.yaml takes overrides"),
        ([runs / "experiments" / "small", "--cells", "longest*"], "--cells 'longest*' names none of 8 cells, e.g. random_n3_s0"),
        ([runs / "experiments" / "small", "--format", "llama"], "unknown format 'llama'"),
        ([runs / "experiments" / "small", "--out", tmp_path / "full"], "full is not empty: give another folder, or --overwrite"),
    ):
        assert main([*map(str, given[:1]), "--format", "jsonl", "--out", f"{tmp_path}/out", *map(str, given[1:])]) == 1
        printed = capsys.readouterr()
        assert printed.err.startswith("export: ") and says in printed.err and printed.err.count("\n") == 1, printed.err
    assert not (tmp_path / "out").exists()
