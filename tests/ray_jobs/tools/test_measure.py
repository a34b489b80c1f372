"""`python -m ray_jobs measure`: files and sealed datasets side by side as a table, JSON or parquet, and one-line errors."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from diversity.metrics import METRICS
from diversity.metrics.measuring import MEASURED_SCHEMA
from ray_jobs.tools.measure import main


def write(path: Path, n: int, words: str) -> str:
    answers = [" ".join(words.split()[: 2 + i % 7]) + f" {i}" for i in range(n)]
    path.write_text("".join(json.dumps({"prompt": f"Say {i}", "completion": answer}) + "\n" for i, answer in enumerate(answers)))
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    return [
        write(tmp_path / "one.jsonl", 30, "red green blue red green blue red"),
        write(tmp_path / "two.jsonl", 45, "each word of this one differs"),
    ]


def test_two_files_side_by_side(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*files, "--unit", "word", "--embedder", "none", "--parquet", str(tmp_path / "new" / "out.parquet")]) == 0
    printed = capsys.readouterr()
    head = printed.out.splitlines()[0].split()
    assert head[:3] == ["side", "metric", "variant"] and len(head) == 5
    assert f"{files[0]}: 30 samples" in printed.err
    table = pq.read_table(tmp_path / "new" / "out.parquet")
    assert table.schema.equals(MEASURED_SCHEMA) and set(table["dataset"].to_pylist()) == set(files)
    assert any(row["variant"].startswith("first-") for row in table.to_pylist())


def test_every_metric_with_the_models_tokens_and_vectors_as_json(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([files[0], "--all", "--side", "response", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["metric"] for row in rows} == set(METRICS) and {row["side"] for row in rows} == {"response"}
    empty = {row["metric"] for row in rows if row["value"] is None}
    assert empty == {"mtld"}  # no answer has fifty tokens


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl: no such file or folder"),
        (["FILE", "--unit", "wrod"], "unknown unit 'wrod': did you mean 'word'?"),
        (["FILE", "--metrics", "entrpy"], "unknown metric 'entrpy': did you mean 'entropy'?"),
        (["FILE", "--embedder", "none", "--metrics", "vendi"], "metric 'vendi' needs embeddings"),
        (["FILE", "--embedder", "statik"], "unknown embedder 'statik'"),
        (["FILE", "--columns", "question"], "--columns 'question' is no mapping"),
        (["FILE", "--matched", "0"], "--matched 0: give a number of tokens from 1 on"),
        (["FILE", "--embedder-model", "m"], "--embedder-model is of --embedder transformer, not of static"),
        (["FILE", "--unit", "word", "--embedder", "none", "--parquet", "/proc/x/out.parquet"], "can't write /proc/x/out.parquet: "),
    ],
)
def test_errors_are_one_line(arguments: list[str], said: str, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([files[0] if argument == "FILE" else argument for argument in arguments]) == 1
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("measure: ")]
    assert len(told) == 1 and said in told[0]
