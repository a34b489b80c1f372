"""Picking without a config: the rows are the library's own, the second pick begins with the first one's profile, errors are one line."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from diversity.artifact import Storage
from diversity.cell import Cell
from diversity.notebook import profile
from diversity.typings.tokens import BandConfig
from ray_jobs.tools.pick import arguments, compose, gained, main

ROWS = 1500
BAND = BandConfig(low=3, high=50)  # of so few samples


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of samples whose answers share words unevenly, some with a system turn."""
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(600)]
    lines = []
    for i in range(ROWS):
        answer = " ".join(generator.choices(words, weights=[1 / (j + 1) for j in range(600)], k=generator.randrange(2, 14)))
        messages = [{"role": "user", "content": f"Say {i} words like {generator.choice(words)}."}, {"role": "assistant", "content": answer}]
        if i % 20 == 0:
            messages.insert(0, {"role": "system", "content": "Be brief."})
        lines.append(json.dumps({"messages": messages, "source": "abc"[i % 3]}))
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    path.write_text("\n".join(lines), "utf-8")
    return path


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


def run(*given: object) -> int:
    return main([str(one) for one in given])


def ids(path: Path) -> list[str]:
    return [json.loads(line)["sample_id"] for line in path.read_bytes().split(b"\n")[:-1]]


def profiles(storage: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in (storage / "profile").glob("*/manifest.json")}


@pytest.mark.usefixtures("ray_local")
def test_a_pick_is_what_the_library_chooses_and_the_next_begins_with_its_profile(
    data: Path, storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--strategy", "response-micro@word", "--storage", storage]
    assert run(data, "--size", 300, *given, "--level", "1/2", "--seed", 3, "--out", tmp_path / "picked.jsonl") == 0
    library = profile([json.loads(line) for line in data.read_text("utf-8").split("\n")], "response-micro@word", band=BAND)
    expected = library.choose(300, "1/2", seed=3)
    assert ids(tmp_path / "picked.jsonl") == expected["sample_id"].to_pylist()
    printed = capsys.readouterr().out
    for part in (
        "response     ngram_ratio_1",
        "coverage of response-micro@word",
        "types kept",
        "types covered",
        "The pick covers ",
        "source  corpus",
        "sealed: ",
    ):
        assert part in printed
    assert printed.split("\n")[0].split() == ["side", "metric", "variant", "random", "pick"]
    assert "embedding_distance" not in printed, "a strategy of tokens needs no embeddings"

    made = profiles(storage)
    assert len(made) == 3, "the words of the answers, and both sides' tokens, which lengths are counted in"
    assert run(data, "--size", 250, *given, "--out", tmp_path / "again.parquet") == 0
    assert profiles(storage) == made
    again = library.choose(250, 1)
    assert pq.read_table(tmp_path / "again.parquet")["sample_id"].to_pylist() == again["sample_id"].to_pylist()

    out = tmp_path / "alpaca"
    assert run(data, "--size", 250, *given, "--out", out, "--format", "alpaca") == 1
    assert "do not fit alpaca: a system turn" in capsys.readouterr().err and not out.exists()
    assert run(data, "--size", 250, *given, "--out", out, "--format", "alpaca", "--leave-out") == 0
    left_out = sum("system" in {turn["role"] for turn in messages} for messages in again["messages"].to_pylist())
    assert f"{left_out} left out: a system turn" in capsys.readouterr().out
    assert len(ids(out / "response-micro-at-word_n250_l100_s0.jsonl")) == 250 - left_out


@pytest.mark.usefixtures("ray_local")
def test_sizes_that_cannot_be_had(data: Path, storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(data, "--size", ROWS + 1, "--strategy", "random", "--storage", storage) == 1
    assert (
        capsys.readouterr().err.splitlines()[-1]
        == f"pick: --size {ROWS + 1}: the data has {ROWS} usable samples; the largest size is {ROWS}"
    )
    given = ["--strategy", "response-micro@word", "--storage", storage]
    assert run(data, "--tokens", 1, *given) == 1
    refused = re.search(r"--tokens 1: the data's mean response is longer; the least is (\d+) response", capsys.readouterr().err)
    assert refused and run(data, "--tokens", refused[1], *given) == 0
    for size in (ROWS - 1, ROWS + 1):
        assert run(data, "--size", size, *given) == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pick: ")]
        assert f"response-micro@word_n{size}" in line
    largest = re.search(r"the largest (\d+) .* with rho 1 the largest is (\d+)", line)
    assert largest, line
    assert run(data, "--size", largest[1], *given) == 0
    assert run(data, "--size", largest[2], *given, "--rho", 1) == 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--size", 5, "--strategy", "respones-micro"], "--strategy: unknown strategy 'respones-micro': did you mean 'response-micro'"),
        (["--size", 5, "--level", "1.5"], "--level 1.5: a level is a fraction from 0 to 1, e.g. 0.5 or 1/3"),
        (["--size", 5, "--level", "high"], "--level high: a level is a fraction from 0 to 1"),
        (["--size", 5, "--strategy", "random", "--level", "1"], "--level: strategy random has no dial; instruction-macro, "),
        (["--size", 0], "--size '0': give a number from 1 on, e.g. 10000, 20k or 2M"),
        (["--size", "0%"], "--size '0%': a share of the corpus is above 0% and at most 100%"),
        (["--size", "many"], "--size 'many': give a number from 1 on"),
        (["--tokens", "2M", "--control", "length-quota"], "--tokens: a number of tokens is itself the control `tokens`"),
        (["--size", 5, "--control", "lenght-quota"], "unknown control 'lenght-quota': did you mean 'length-quota'"),
        (["--size", 5, "--format", "alpca", "--out", "x"], "--format: unknown format 'alpca': did you mean 'alpaca'?"),
        (["--size", 5, "--format", "alpaca"], "--format: say where to with --out"),
        (["--size", 5, "--out", "picked"], "a file ends in .jsonl or .parquet; for a folder say --format"),
        (["--size", 5, "--out", "a.parquet", "--format", "alpaca"], "alpaca is written as .jsonl"),
        (["--size", 5, "--out", "taken.jsonl"], "taken.jsonl is there already: give another name, or --overwrite"),
        (["--size", 5, "--seed", -1], "--seed: Input should be greater than or equal to 0 (got -1)"),
        (["--size", 5, "--seed", 2**63], "--seed: Input should be less than 9223372036854775808"),
        (["--size", 5, "--rho", "inf"], "--rho: Input should be a finite number (got inf)"),
        (["--size", 5, "--max-rejected", "nan"], "--max-rejected: Input should be "),
        (["--size", 5, "--columns", "{a"], "--columns '{a' is no mapping: write it as '{instruction: question, response: answer}'"),
    ],
)
def test_refused_before_any_work(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, given: list[object], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.jsonl").write_text("")
    assert run(data, *given, "--storage", tmp_path / "runs") == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line[:1].isdigit()]
    assert line.startswith("pick: ") and says in line
    assert not (tmp_path / "runs").exists()


def test_the_band_goes_by_the_data(data: Path) -> None:
    given = [str(data), "--size", "5"]
    for samples, limits in ((117_000, (10, 500)), (234_000, (20, 1000)), (11_700, (3, 50)), (100, (3, 50))):
        assert compose(arguments(given)).profile.band.limits(samples) == limits
    assert compose(arguments([*given, "--band", "2", "30"])).profile.band.limits(100) == (2, 30)


def manifests(pick: tuple, random: tuple, **more: object) -> tuple[dict, dict]:
    """Return the manifests of a pick and of random from (coverage, tokens, samples)."""
    one, other = (
        {"coverage": {"response-micro": coverage}, "tokens": {"response": tokens}, "samples": samples}
        for coverage, tokens, samples in (pick, random)
    )
    return {**one, **more}, other


def test_it_ends_with_what_was_gained_over_random() -> None:
    cell = Cell("response-micro", 100, Fraction(1))
    said = gained(cell, *manifests((0.982, 21_200, 100), (0.596, 6_800, 100)))
    assert said.split("\n") == [
        "The pick covers 98.2% of response-micro, random of the same size 59.6%; its responses have 212 tokens where random's have 68 "
        "(3.1 times as long); so it holds 21,200 response tokens and random 6,800.",
        "Longer responses alone change what a model learns: --control length-quota --rho 3 holds the lengths, "
        "--control tokens the amount of text.",
    ]
    assert "\n" not in gained(replace(cell, control="tokens"), *manifests((0.9, 21_200, 100), (0.5, 6_800, 100)))
    low = gained(replace(cell, level=Fraction(0)), *manifests((0.1, 50, 10), (0.5, 60, 10), target={"k_realised": 7, "M": 50}))
    assert low.endswith("At this level it keeps 7 of 50 types; --level 1 keeps all.")
    assert "obeys no control that holds length" in gained(Cell("longest", 10, None), *manifests((0.6, 90, 10), (0.5, 60, 10)))


def test_only_what_the_strategy_needs_is_made(data: Path, tmp_path: Path) -> None:
    micro = {"response-micro", "instruction-micro"}
    for strategy, typings, sides in (
        ("response-micro", micro, []),
        ("random", micro, []),
        ("token_entropy", micro, []),
        ("instag", {*micro, "instruction-meso"}, []),
        ("instruction-macro", {*micro, "instruction-macro"}, ["instruction"]),
        ("k_center", micro, ["response"]),
    ):
        experiment = compose(arguments([str(data), "--size", "5", "--strategy", strategy, "--storage", str(tmp_path)]))
        assert set(experiment.typings) == typings and experiment.embedded_sides == sides
        assert [cell.strategy for cell in experiment.cells] == list(dict.fromkeys([strategy, "random"]))
    assert Storage(str(tmp_path)).uri == experiment.storage
