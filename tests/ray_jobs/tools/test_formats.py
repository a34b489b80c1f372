"""What `formats` prints of files that people have: every column with what becomes of it, and the first sample as training sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ray_jobs.tools.formats import main

TURNS = [{"from": "Human", "value": "Hello"}, {"from": "GPT", "value": "Hi <|im_end|>"}]


def lines(path: Path, rows: list[object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_columns_and_the_first_sample_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str], tokenizer_folder: Path) -> None:
    path = lines(tmp_path / "a.jsonl", [{"system": "Be brief.", "conversations": TURNS, "id": i} for i in range(7)] + [{"x": 1}])
    assert main([path, "--model", str(tokenizer_folder), "--template", "chatml"]) == 0
    printed = capsys.readouterr().out
    for part in (
        f"{path}: JSON lines; of the first 8 rows 7 are samples",
        "format: sharegpt (7)",
        "id             not carried  number (7)  0",
        "system         carried      string (7)  Be brief.",
        "can't be used: no known columns (1)",
        "the columns are x",
        "not carried: `id` of 7 rows",
        "<|im_start|>system\nBe brief.<|im_end|>",
        "<|im_start|>assistant\n⟦Hi <|im_end|><|im_end|>⟧",
    ):
        assert part in printed, printed


@pytest.mark.parametrize(
    ("rows", "flags", "told"),
    [
        (
            [{"prompt": "a", "chosen": "b", "rejected": "c"}],
            [],
            "chosen answers: --columns '{instruction: prompt, response: chosen}'",
        ),
        ([{"question": "a", "answer": "b"}], [], "map them, e.g. --columns '{instruction: question, response: answer}'"),
        ([{"dialog": TURNS}], [], "map them, e.g. --columns '{messages: dialog}'"),
        ([{"conversations": [{"from": "asistant", "value": "a"}]}], [], "unknown role 'asistant': did you mean 'assistant'?"),
    ],
)
def test_a_file_without_a_sample_is_told_with_what_would_help(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[object], flags: list[str], told: str
) -> None:
    assert main([lines(tmp_path / "a.jsonl", rows), "--model", "none", *flags]) == 1
    assert told in capsys.readouterr().out


def test_a_mapping_is_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lines(tmp_path / "a.jsonl", [{"question": "a", "answer": "b"}])
    for mapping in ("{instruction: question, response: answer}", '{"instruction": "question", "response": "answer"}'):
        assert main([path, "--model", "none", "--columns", mapping]) == 0
    assert "question  as instruction string (1)  a" in capsys.readouterr().out
    for mapping, told in (
        ("question", "is no mapping"),
        ("{instrction: q, response: a}", "did you mean 'instruction'"),
        ("{a", "is no mapping"),
        ("[1]", "is no mapping"),
        ("{1: 2}", "is no mapping"),
    ):
        assert main([path, "--columns", mapping]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line and line.startswith("formats: --columns")
