"""Quality and diversity together: a corpus's own score, held by quota, cut from below and shown; sizes by share or by tokens."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from diversity.artifact import Storage
from ray_jobs.tools import certify
from ray_jobs.tools.pick import arguments, compose, main
from training.ifd import ScorerConfig

ROWS = 600


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = random.Random(1)
    words = ["".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(200)]
    lines = []
    for i in range(ROWS):
        answer = " ".join(generator.choices(words, weights=[1 / (j + 1) for j in range(200)], k=generator.randrange(2, 12)))
        rating = None if i % 50 == 0 else round(generator.random(), 3)
        lines.append(json.dumps({"instruction": f"Say {i} words like {generator.choice(words)}.", "output": answer, "rating": rating}))
    path = tmp_path_factory.mktemp("data") / "rated.jsonl"
    path.write_text("\n".join(lines))
    return path


def dataset(printed: str) -> tuple[dict, str]:
    uri = next(line.removeprefix("sealed: ") for line in printed.splitlines() if line.startswith("sealed: "))
    storage, _, path = uri.rpartition("/datasets/")
    return Storage(storage).artifact("datasets", path).manifest, uri


@pytest.mark.usefixtures("ray_local")
def test_scores_are_carried_held_by_quota_and_cut(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        str(data),
        "--columns",
        "{score: rating}",
        "--strategy",
        "response-micro@word",
        "--storage",
        str(tmp_path / "runs"),
        "--rho",
        "3",
    ]
    out = tmp_path / "picked.jsonl"
    assert main([*given, "--size", "10%", "--min-score", "0.25", "--control", "score-quota", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    manifest, uri = dataset(printed)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    scores = np.array([row["score"] for row in rows])
    all_scores = np.array([row["rating"] or 0 for row in map(json.loads, data.read_text().splitlines())])
    assert len(rows) == manifest["samples"] == int((all_scores >= 0.25).sum() * 0.1) and scores.min() >= 0.25
    assert manifest["score"]["without"] == 0 and manifest["score"]["mean"] == pytest.approx(scores.mean())
    (line,) = [line for line in printed.splitlines() if line.startswith("mean score")]
    shown = [float(cell) for cell in line.split()[2:]]
    assert shown[1] == pytest.approx(scores.mean(), abs=1e-3) and abs(shown[0] - shown[1]) < 0.05, "the quota holds it near random's"
    assert certify.main([uri]) == 0, capsys.readouterr()

    assert main([*given, "--tokens", "2k", "--control", "none"]) == 0
    manifest, _ = dataset(capsys.readouterr().out)
    assert 1800 < manifest["tokens"]["response"] <= 2000 and manifest["cell"]["control"] == "tokens"
    assert manifest["score"]["without"] > 0, "without --min-score samples without a score stay"


def test_the_lowest_score_goes_to_what_gives_the_scores(data: Path) -> None:
    given = [str(data), "--size", "50", "--min-score", "0.5"]
    experiment = compose(arguments([*given, "--columns", "{score: rating}"]))
    assert experiment.corpus.min_score == 0.5 and experiment.profile.scorer is None
    experiment = compose(arguments([*given, "--scorer", "ifd"]))
    assert experiment.corpus.min_score is None and experiment.profile.scorer == ScorerConfig(min_score=0.5)


@pytest.mark.usefixtures("ray_local")
def test_scores_that_are_not_there_are_told_in_a_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = ["--storage", str(tmp_path / "runs")]
    for flags, told in (
        (["--min-score", "0.5"], "--min-score: say which column holds the score"),
        (["--min-score", "5", "--columns", "{score: rating}"], "no sample has a score of 5 or more"),
        (["--control", "score-quota", "--strategy", "response-micro@word"], "no sample has a score; map a column"),
    ):
        assert main([str(data), "--size", "50", *flags, *storage]) == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pick: ")]
        assert told in line
