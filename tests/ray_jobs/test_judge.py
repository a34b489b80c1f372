"""Answers and verdicts as stages, against a real HTTP server of the test's own: everything is asked once, paid once, and counted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from diversity.config import ConfigError
from diversity.judging.verdicts import OUTCOMES
from diversity.llm.budget import BudgetSpent
from ray_jobs import answer, judge
from ray_jobs.job.experiment import load_experiment
from ray_jobs.job.runtime import Context, main
from ray_jobs.tasks import judged as stages
from ray_jobs.tasks.contest import Contest, Run
from ray_jobs.tools import judgments
from tests.endpoint import Server, completion

PARTS = re.compile(r"<answer_(a|b) (\w+)>\n(.*?)\n</answer_\1 \2>", re.DOTALL)
ANSWERS = {"good": "A whole answer to {}. It has three sentences. And an end that says why it is so.", "bad": "No idea about {}."}
N = 60


def worth(text: str) -> int:
    """Return how good an answer is to a judge that knows: whole sentences of `good`, in order, once, about any number."""
    order = re.fullmatch(
        r"A whole answer to \d+\. It has three sentences\. And an end that says why it is so\.(\s+This is the end of the answer\.)?", text
    )
    return 2 if order else 0


def honest(prompt: str, number: int) -> tuple[int, dict[str, str], object]:
    """Judge by what the answers say, and by which question they are to."""
    found = {side: text for side, _, text in PARTS.findall(prompt)}
    asked = re.search(r"number (\d+)", prompt)
    assert asked is not None
    points = {side: worth(text) * (f" {asked[1]}." in text or f" {asked[1]} " in text) for side, text in found.items()}
    label = "A>>B" if points["a"] > points["b"] else "B>>A" if points["b"] > points["a"] else "A=B"
    return 200, {}, completion(f"I read both.\n[[{label}]]")


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(plan: Any) -> Server:
        servers.append(Server(plan))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def context(folder: Path, url: str, *overrides: str, **judging: Any) -> Context:
    prompts = [{"uid": f"q{i}", "prompt": f"Tell me of number {i}", "category": "odd" if i % 2 else "even"} for i in range(N)]
    (folder / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    for name, text in ANSWERS.items():
        rows = [{"instruction": row["prompt"], "output": text.format(i), "generator": name} for i, row in enumerate(prompts)]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    twin = [{"instruction": row["prompt"], "output": ANSWERS["good"].format(i), "generator": "twin"} for i, row in enumerate(prompts)]
    (folder / "twin.json").write_text(json.dumps(twin))
    judges = [
        {"name": name, "model": name, "base_url": url, "both_on": 10, "endpoint": {"backoff_s": 0.01, "timeout_s": 5, "concurrency": 8}}
        for name in judging.pop("judges", ["first"])
    ]
    settings = {
        "experiment": "e",
        "storage": str(folder / "runs"),
        "corpus": {"paths": [str(folder / "nothing.jsonl")]},
        "stages": ["answer", "judge"],
        "grid": {"strategies": ["random"], "sizes": [10]},
        "judging": {
            "prompts": {"arena": {"paths": [str(folder / "question.jsonl")]}},
            "answerers": [{"name": name, "files": [str(folder / f"{name}.json")]} for name in ("good", "bad", "twin")],
            "baseline": {"answerer": "good"},
            "judges": judges,
            "calibration": {"pairs": 12},
            **judging,
        },
    }
    config = folder / "experiment.yaml"
    config.write_text(yaml.safe_dump(settings))
    return Context(load_experiment(config, list(overrides), inside_job=False), config)


def judged(given: Context) -> dict[str, Any]:
    return given.index.get("judging").manifest


def test_verdicts_are_asked_once_and_counted(tmp_path: Path, serve: Any, capsys: pytest.CaptureFixture[str]) -> None:
    server = serve(honest)
    given = context(tmp_path, server.url, judges=["first", "second"])
    answer.run(given)
    assert main("judge", [str(given.config_path), "--dry-run"]) == 0
    plan = capsys.readouterr().out
    judge.run(given)
    manifest = judged(given)
    rows = {(row["answerer"], row["judge"]): row["figures"]["arena"]["judged_win_rate"] for row in manifest["rows"]}
    assert rows["bad", "first"]["value"] == rows["bad", "mean of judges"]["value"] == 0 and rows["bad", "second"]["n"] == N
    report = manifest["reports"][0]
    assert sum(report["outcomes"].values()) == 2 * (N + 10) and set(report["outcomes"]) == set(OUTCOMES)
    assert report["outcomes"]["same"] == N + 10 and report["outcomes"]["ok"] == N + 10, "an identical answer is a tie that is not asked"
    assert rows["twin", "first"]["value"] == 0.5
    assert report["passed"] and report["accuracy"] == 1 and report["controls"]["neutral tail"]["value"] == 0.5
    assert manifest["between"][0][2]["share"] == 1 and report["orders"]["share"] == 1
    asked = len(server.bodies)
    per_judge = int(re.search(r"first: [\d,]+ verdicts are wanted.* (\d+) to pay", plan)[1])  # type: ignore[index]
    assert asked == 2 * per_judge, "the plan says what is paid"
    judge.run(context(tmp_path, server.url, judges=["first", "second"]))
    assert len(server.bodies) == asked, "a second run asks nothing"
    page = (tmp_path / "runs/experiments/e/report/judging.html").read_text()
    assert "What the judges are worth" in page and "0.0 ± 0.0%" in page
    first = [body["messages"][-1]["content"] for body in server.bodies if body["model"] == "first"]
    seen = [bool(worth(PARTS.findall(text)[0][2])) for text in first]
    assert 0.4 < sum(seen) / len(seen) < 0.7


def test_export_is_read_again(tmp_path: Path, serve: Any, capsys: pytest.CaptureFixture[str]) -> None:
    server = serve(honest)
    given = context(tmp_path, server.url)
    answer.run(given)
    judge.run(given)
    assert judgments.main([str(given.config_path), "--export", "alpaca-eval", "--to", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert judgments.main(["--import", str(tmp_path / "out/bad/first/annotations.json")]) == 0
    told = capsys.readouterr().out
    assert "bad against good" in told and re.search(r"judged_win_rate +0\.00", told) and re.search(r"n_wins_base +60\.00", told)
    outputs = json.loads((tmp_path / "out/bad/model_outputs.json").read_text())
    assert [row["output"] for row in outputs] and {row["generator"] for row in outputs} == {"bad"} and len(outputs) == N
    assert judgments.main([str(given.config_path), "--export", "arena-hard", "--to", str(tmp_path / "out")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out/model_answer/bad.jsonl").read_text().splitlines()]
    assert {line["uid"] for line in lines} == {f"q{i}" for i in range(N)}
    assert judgments.main(["--import", str(tmp_path / "good.json")]) == 1
    assert "holds no annotations" in capsys.readouterr().err


def test_a_judge_that_takes_the_first_is_found_out(tmp_path: Path, serve: Any) -> None:
    given = context(tmp_path, serve(lambda prompt, number: (200, {}, completion("[[A>B]]"))).url)
    answer.run(given)
    judge.run(given)
    report = judged(given)["reports"][0]
    assert report["position"]["value"] == 0.5 and not report["passed"] and report["orders"]["share"] == 0
    assert any("likes a place" in one for one in report["warnings"]) and any("in only 50%" in one for one in report["warnings"])


def test_the_budget_ends_a_run_with_exit_code_3_and_the_next_goes_on(
    tmp_path: Path, serve: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server = serve(honest)
    given = context(tmp_path, server.url, budget={"requests": 50})
    answer.run(given)
    assert main("judge", [str(given.config_path)]) == BudgetSpent.exit_code == 3
    assert "the budget of 50 requests is spent" in capsys.readouterr().err
    assert len(server.bodies) == 50
    more = context(tmp_path, server.url, budget={"requests": 1000})
    judge.run(more)
    assert max(server.tries.values()) == 1 and sum(judged(more)["reports"][0]["outcomes"].values()) == 2 * (N + 10)


def test_what_is_asked_again_is_judged_anew_though_it_was_sealed(tmp_path: Path, serve: Any, capsys: pytest.CaptureFixture[str]) -> None:
    broken = [True]

    def plan(prompt: str, number: int) -> tuple[int, dict[str, str], object]:
        asked = int(re.search(r"number (\d+)", prompt)[1])  # type: ignore[index]
        return (400, {}, b"content filter") if broken[0] and asked < 5 else honest(prompt, number)

    server = serve(plan)
    given = context(tmp_path, server.url, calibration={"pairs": 0})
    answer.run(given)
    judge.run(given)
    refused, asked = judged(given)["reports"][0]["outcomes"]["refused"], len(server.bodies)
    assert refused >= 5
    broken[0] = False
    again = yaml.safe_load(given.config_path.read_text())["judging"]["judges"]
    again[0]["endpoint"]["ask_again"] = ["refused"]
    words = [str(given.config_path), f"judging.judges={json.dumps(again)}"]
    assert main("judge", [*words, "--dry-run"]) == 0
    assert f"{refused} to pay" in capsys.readouterr().out
    for _ in range(2):
        assert main("judge", words) == 0
        assert len(server.bodies) == asked + refused
        assert judged(given)["reports"][0]["outcomes"]["refused"] == 0
    judge.run(context(tmp_path, server.url, calibration={"pairs": 0}))
    assert len(server.bodies) == asked + refused and judged(given)["reports"][0]["outcomes"]["refused"] == refused


def test_half_of_a_surrogate_pair_in_a_judges_answer_is_no_end(tmp_path: Path, serve: Any) -> None:
    def plan(prompt: str, number: int) -> tuple[int, dict[str, str], object]:
        said = honest(prompt, number)[2]
        return 200, {}, completion("cut emoji \ud83d " + said["choices"][0]["message"]["content"])  # type: ignore[index]

    given = context(tmp_path, serve(plan).url, calibration={"pairs": 0})
    answer.run(given)
    judge.run(given)
    assert judged(given)["reports"][0]["outcomes"]["ok"] == N + 10


@pytest.mark.parametrize("baseline", ["copy", "bad"])
def test_answerers_with_the_same_file_are_judged_as_one(
    tmp_path: Path, serve: Any, baseline: str, caplog: pytest.LogCaptureFixture
) -> None:
    names = (("good", "good"), ("copy", "good"), ("bad", "bad"))
    answerers = [{"name": name, "files": [str(tmp_path / f"{file}.json")]} for name, file in names]
    given = context(tmp_path, serve(honest).url, calibration={"pairs": 4}, baseline={"answerer": baseline}, answerers=answerers)
    answer.run(given)
    with caplog.at_level("INFO"):
        judge.run(given)
    manifest = judged(given)
    assert manifest["baselines"] == ["good" if baseline == "copy" else "bad"]
    assert {row["answerer"] for row in manifest["rows"]} == {"bad" if baseline == "copy" else "good"}
    assert "copy has the very answers of good" in caplog.text


def test_scores_against_an_earlier_baseline_are_not_read(tmp_path: Path, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(honest)
    for seed in (0, 1):
        baseline = {"strategy": "random", "size": 10, "seeds": [seed]}
        given = context(tmp_path, server.url, "grid.subset_seeds=[0,1]", calibration={"pairs": 0}, baseline=baseline)
        answer.run(given)
        answers = [stages.answerer_answers(given, one) for one in stages.judging(given).answerers[:2]]
        cells = given.experiment.trained_cells
        runs = [Run((f"{cell.name}_t0",), (cell,), one) for cell, one in zip(cells, answers, strict=True)]
        monkeypatch.setattr(judge, "contest_of", lambda context, runs=runs: Contest(context, runs))
        judge.run(given)
        assert list(judged(given)["judged"]) == [f"{cells[1 - seed].name}_t0"]
    assert len(given.index.read()["judged"]) == 2


def test_what_is_no_verdict_is_counted_by_what_it_is(tmp_path: Path, serve: Any) -> None:
    def plan(prompt: str, number: int) -> tuple[int, dict[str, str], object]:
        asked = int(re.search(r"number (\d+)", prompt)[1])  # type: ignore[index]
        said = {0: (400, {}, b"This model's maximum context length is 4096"), 1: (400, {}, b"content filter")}
        texts = {2: "Both are fine.", 3: "[[A>A]]", 4: "[[A>B]] or rather [[B>A]]"}
        if asked in said:
            return said[asked]
        return 200, {}, completion(texts[asked], "length" if asked == 2 else "stop") if asked in texts else honest(prompt, number)[2]

    given = context(tmp_path, serve(plan).url, calibration={"pairs": 0})
    answer.run(given)
    judge.run(given)
    counted = judged(given)["reports"][0]["outcomes"]
    assert all(1 <= counted[name] <= 2 for name in ("too_long", "refused", "cut", "ambiguous"))
    assert sum(counted.values()) == 2 * (N + 10)


def test_a_judge_is_not_named_like_an_evaluator(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="judging.judges: nll is an evaluator's name"):
        context(tmp_path, "http://127.0.0.1:9/v1", judges=["nll"])
