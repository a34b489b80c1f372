"""AlpacaEval's files, out and in: what it counts by row stays in its rows, and what is no such file is told in a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from diversity.judging import exchange
from diversity.judging.answer_sets import answer_row, answers_table, references
from diversity.judging.prompt_sets import PromptSetConfig, read_prompt_sets
from diversity.judging.verdicts import VERDICTS_SCHEMA
from ray_jobs.tools import judgments


def annotations(preferences: list[Any], **more: Any) -> list[dict[str, Any]]:
    sides = {"generator_1": "g1", "generator_2": "g2", "annotator": "j"}
    return [
        {"instruction": f"q{i}", "output_1": "a" * (i + 3), "output_2": "b" * (2 * i + 1), **sides, "preference": one, **more}
        for i, one in enumerate(preferences)
    ]


def test_an_export_has_the_order_of_the_set(real_data: Path, tmp_path: Path) -> None:
    """AlpacaEval's length-controlled rates go by row: exported and read again, they are those of the file itself."""
    source = real_data / "judging"
    rows = json.loads((source / "length_bias.json").read_text())
    texts = [f"Instruction {row['i']} of alpaca" for row in rows]
    (tmp_path / "alpaca.json").write_text(
        json.dumps([{"instruction": text, "output": "a" * row["len_1"], "generator": "g1"} for text, row in zip(texts, rows, strict=True)])
    )
    prompts, _ = read_prompt_sets({"alpaca": PromptSetConfig(paths=[str(tmp_path / "alpaca.json")])})
    ids = dict(zip(prompts["prompt"].to_pylist(), prompts["prompt_id"].to_pylist(), strict=True))
    of = {ids[text]: row for text, row in zip(texts, rows, strict=True)}
    mine = answers_table([answer_row(name, "b" * row["len_2"]) for name, row in of.items()])
    head = {"set": "alpaca", "group": 0, "order": 0, "repeat": 0, "outcome": "ok"}
    verdicts = pa.Table.from_pylist(
        [{**head, "prompt_id": name, "score": row["preference"] - 1} for name, row in of.items()], schema=VERDICTS_SCHEMA
    )
    named = {"generator": "g2", "against": "g1", "annotator": "j"}
    found = exchange.alpaca_annotations(prompts, mine, references(prompts), verdicts, **named)
    assert [row["instruction"] for row in found] == texts
    exchange.write_lines(tmp_path / "annotations.json", found, lines=False)
    wanted = json.loads((source / "oracle.json").read_text())["length_bias"]["length_controlled_v1"]["length_controlled_winrate"]
    told = [line for line in judgments.imported(tmp_path / "annotations.json", source / "df_gamed.csv") if "length_controlled_v1" in line]
    assert told[0].split()[-1] == f"{wanted:.2f}"


@pytest.mark.parametrize("preferences", [[None] * 6, [1, 2, None, 1, None, None], [1.5]])
def test_few_preferences_leave_rates_undefined(tmp_path: Path, preferences: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "annotations.json").write_text(json.dumps(annotations(preferences)))
    assert judgments.main(["--import", str(tmp_path / "annotations.json")]) == 0
    assert "length_controlled_minimal: not defined, length_controlled_minimal needs 5 rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (annotations(["1", "2"]), "row 0: its preference is '1', and not null, 0"),
        (annotations([0, 1.0, float("nan"), 0.2]), "row 3: its preference is 0.2, and not null, 0"),
        (annotations([1, True]), "row 1: its preference is True"),
        (annotations([1, 2], instruction=None), "row 0: its instruction is no text"),
        (annotations([1, 2], output_2=["x"]), "row 0: its output_2 is no text"),
        (annotations([1, 2], output_2="\ud800"), "row 0: its output_2 holds half of a surrogate pair"),
        (annotations([1, 2], generator_2="\ud800"), "row 0: its generator_2 holds half of a surrogate pair"),
    ],
)
def test_what_is_no_annotation_is_told(tmp_path: Path, rows: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "annotations.json").write_text(json.dumps(rows))
    assert judgments.main(["--import", str(tmp_path / "annotations.json")]) == 1
    assert message in capsys.readouterr().err


def test_what_is_no_table_of_gamed_baselines_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "annotations.json").write_text(json.dumps(annotations([1, 2, 1, 1, 2, 1])))
    (tmp_path / "g.csv").write_text("a,b\n1,2\n")
    for name in ("g.csv", "nothing.csv"):
        assert judgments.main(["--import", str(tmp_path / "annotations.json"), "--gamed", str(tmp_path / name)]) == 1
        assert f"{name} is no df_gamed.csv of AlpacaEval" in capsys.readouterr().err
