"""What the command line says when something is wrong: one line that says what to do, and an exit code that is not 0."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from ray_jobs import __main__ as program
from ray_jobs.job.experiment import STAGES, USUAL_STAGES
from ray_jobs.job.runtime import JOB_VARIABLE, main
from tests.ray_jobs.heads import heard

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "ray_jobs" / "configs" / "paper.yaml"
DEMO = ROOT / "ray_jobs" / "configs" / "demo.yaml"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Return the config of a small experiment on a corpus of twenty samples."""
    data = tmp_path / "data.jsonl"
    rows = [{"instruction": f"Name the number {i}.", "response": f"It is {i}."} for i in range(20)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    path = tmp_path / "small.yaml"
    values = {
        "experiment": "small",
        "storage": str(tmp_path / "runs"),
        "corpus": {"paths": [str(data)]},
        "evaluation": {"heldout": None},
        "stages": [stage for stage in USUAL_STAGES if stage != "heldout"],
        "grid": {"strategies": ["response-micro"], "sizes": [5], "levels": 3},
    }
    path.write_text(yaml.safe_dump(values), "utf-8")
    return path


@pytest.fixture(autouse=True)
def outside_a_job(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run as a person does, not as a job; and see that nothing here waits for a cluster: a refusal needs none, nor does a plan."""
    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    before = ray.is_initialized()
    yield
    started = ray.is_initialized() and not before
    if started:
        ray.shutdown()
    assert not started


def refused(capsys: pytest.CaptureFixture[str], stage: str, *arguments: object) -> str:
    """Run a stage that must fail; return the one line that it says on stderr, less the log's lines."""
    code = main(stage, [str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert code == 1
    assert "Traceback" not in printed.err
    last = printed.err.rstrip("\n").splitlines()[-1]
    assert last.startswith(f"{stage}: ")
    return last


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("experimnt=x", ["experimnt: unknown key", "did you mean 'experiment'?"]),
        ("profile.band.hihg=500", ["profile.band.hihg: unknown key", "did you mean 'high'?"]),
        ("resources.max_gpu=4", ["resources.max_gpu: unknown key", "'max_gpus'"]),
        ("stages=[ingst]", ["unknown stage 'ingst'", "did you mean 'ingest'?"]),
        ("grid.strategies=[respones-micro]", ["unknown strategy 'respones-micro'", "did you mean 'response-micro'"]),
        ("grid.controls=[length_window]", ["unknown control 'length_window'", "did you mean 'length-window'"]),
        ("profile.typings=[response-mikro]", ["unknown typing 'response-mikro'", "did you mean 'response-micro'"]),
        ("grid.levels=1", ["grid.levels", "at least 2"]),
        ("grid.levels=[0.5, 1.5]", ["grid.levels", "from 0 to 1"]),
        ("grid.sizes=[0]", ["grid.sizes", "at least 1"]),
        ("grid.sizes=many", ["grid.sizes", "'many'"]),
        ("grid.sizes", ["'grid.sizes' is no override", "key=value"]),
        ("=5", ["'=5' is no override"]),
        ("grid.sizes=[1", ["grid.sizes: '[1' is no YAML value"]),
        ("stages=[ingest, heldout]", ["evaluation.heldout is null", "leave the stage heldout out"]),
        ("experiment=../up", ["experiment", "'../up'"]),
    ],
)
def test_a_config_that_cannot_be_used(capsys: pytest.CaptureFixture[str], config: Path, override: str, says: list[str]) -> None:
    line = refused(capsys, "pipeline", config, override)
    for part in says:
        assert part in line
    assert not (config.parent / "runs").exists(), "nothing may be written for a config that can't be used"


def test_every_fault_is_told_at_once(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    line = refused(capsys, "pipeline", config, "grid.sizes=[0]", "experimnt=x")
    assert "grid.sizes" in line and "experimnt" in line


def test_a_config_file_that_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    assert f"there is no config file {missing}" in refused(capsys, "ingest", missing)
    broken = tmp_path / "broken.yaml"
    broken.write_text("experiment: [\n", "utf-8")
    assert f"{broken} is no YAML" in refused(capsys, "ingest", broken)
    listed = tmp_path / "listed.yaml"
    listed.write_text("- experiment\n", "utf-8")
    assert "holds list, not a mapping" in refused(capsys, "ingest", listed)
    assert "no config file" in refused(capsys, "ingest", tmp_path), "a folder is no config file"


def test_a_corpus_is_asked_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = refused(capsys, "pipeline", PAPER, f"storage={tmp_path}/runs")
    assert "corpus.paths is empty" in line and "corpus.paths='[" in line


def test_a_corpus_that_is_not_there(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    line = refused(capsys, "ingest", config, f"corpus.paths=[{config.parent}/nothing.jsonl]")
    assert f"{config.parent}/nothing.jsonl" in line


@pytest.mark.parametrize("storage", ["FILE/runs", "nosuch://bucket/runs"])
def test_a_storage_that_cannot_be_written(capsys: pytest.CaptureFixture[str], config: Path, storage: str) -> None:
    """A path below a file, since permissions don't stop a superuser; and a scheme that nothing opens."""
    uri = storage.replace("FILE", str(config))
    line = refused(capsys, "pipeline", config, f"storage={uri}")
    assert f"storage '{uri}' can't be" in line


@pytest.mark.parametrize(
    ("override", "shows"),
    [
        ("storage=runs", "storage=$PWD/runs"),
        ("corpus.paths=[data.jsonl]", 'corpus.paths="[$PWD/data.jsonl]"'),
        ("evaluation.heldout={in: null, out: {paths: [out.jsonl]}}", 'evaluation.heldout.out.paths="[$PWD/out.jsonl]"'),
        ("evaluation.heldout={prompts: {paths: [asked.jsonl]}}", 'evaluation.heldout.prompts.paths="[$PWD/asked.jsonl]"'),
        ("model=./model", "model=$PWD/model"),
        ("profile.tagger={name: llm, model: m, vllm: {source: ./m}}", "profile.tagger.vllm.source=$PWD/m"),
        ("regenerate={model: m, serve: {source: ./m}}", "regenerate.serve.source=$PWD/m"),
        ("judging={judges: [{name: j, model: m, serve: {source: ./m}}]}", "judging.judges.j.serve.source=$PWD/m"),
        (
            "judging={answerers: [{name: a, endpoint: {model: m, serve: {source: ./m}}}]}",
            "judging.answerers.a.endpoint.serve.source=$PWD/m",
        ),
    ],
)
def test_a_relative_path_inside_a_job(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, config: Path, override: str, shows: str
) -> None:
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    line = refused(capsys, "pipeline", config, override)
    assert "is relative" in line and shows in line


@pytest.mark.parametrize(
    ("stage", "heldout", "parent"),
    [
        ("heldout", True, "ingest"),
        ("profile_corpus", False, "ingest"),
        ("profile_corpus", True, "heldout"),
        ("build_datasets", False, "profile_corpus"),
        ("sweep", False, "build_datasets"),
        ("analyze", False, "build_datasets"),
    ],
)
def test_a_parent_that_is_not_sealed(capsys: pytest.CaptureFixture[str], config: Path, stage: str, heldout: bool, parent: str) -> None:
    """The message is the command to give, overrides included: with them it names other artifacts."""
    overrides = [f"storage={config.parent}/other runs", *(["evaluation.heldout={in: {fraction: 0.1}, out: null}"] if heldout else [])]
    line = refused(capsys, stage, config, *overrides)
    assert "sealed" in line and "make" in line
    acceptable = {"analyze": ("build_datasets", "sweep", "profile_corpus", "ingest")}.get(stage, (parent, "ingest"))
    assert any(f"python -m ray_jobs.{name} {config}" in line for name in acceptable)
    assert f"'storage={config.parent}/other runs'" in line


def test_a_dry_run_prints_the_plan_and_does_nothing(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    assert main("pipeline", [str(config), "--dry-run", "grid.levels=4"]) == 0
    printed = capsys.readouterr().out
    resolved = yaml.safe_load(printed.split("\n\n")[0])
    assert resolved["experiment"] == "small" and resolved["grid"]["levels"] == 4
    assert "4 cells: response-micro_n5_l000_s0 … response-micro_n5_l100_s0" in printed
    for stage in USUAL_STAGES:
        assert (f"\n{stage}\n" in printed) == (stage != "heldout")
    assert not (config.parent / "runs").exists()


def test_a_plan_of_judging_is_printed_before_there_is_anything(capsys: pytest.CaptureFixture[str], config: Path) -> None:
    (config.parent / "prompts.jsonl").write_text('{"prompt": "Why?"}\n', "utf-8")
    judging = {
        "prompts": {"p": {"paths": [str(config.parent / "prompts.jsonl")], "column": "prompt"}},
        "baseline": {"strategy": "random", "seeds": [0]},
        "judges": [{"name": "j", "model": "m", "base_url": "http://127.0.0.1:1/v1"}],
    }
    stages = "stages=[ingest, profile_corpus, build_datasets, sweep, answer, judge, analyze]"
    given = [str(config), "--dry-run", stages, "grid.strategies=[response-micro, random]", f"judging={json.dumps(judging)}"]
    evaluation = "evaluation={heldout: {in: {fraction: 0.1}, out: null}, evaluators: [nll, generate]}"
    assert main("pipeline", [*given, stages.replace("ingest, ", "ingest, heldout, "), evaluation]) == 0
    assert "the prompts are not sealed yet: python -m ray_jobs.answer" in capsys.readouterr().out


def test_the_demos_dry_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main("pipeline", [str(DEMO), f"storage={tmp_path}/runs", "--dry-run"]) == 0
    assert "43 cells" in capsys.readouterr().out


def test_the_console_script_names_near_commands(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sft-diversity", "ingst"])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 2
    assert "unknown command 'ingst': did you mean 'ingest'?" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["-m", "ray_jobs.pipeline"], ["-m", "ray_jobs", "pipeline"]])
def test_a_real_process_ends_with_one_line(config: Path, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *arguments, str(config), "profile.band.hihg=500"],
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "pipeline: profile.band.hihg: unknown key: did you mean 'high'?\n"


def test_help_lists_every_command_with_a_line_and_an_example(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sft-diversity", "--help"])
    with pytest.raises(SystemExit) as ended:
        program.main()
    told = capsys.readouterr().out
    tools = {path.stem for path in (ROOT / "ray_jobs" / "tools").glob("*.py") if "argparse" in path.read_text()}
    assert ended.value.code == 0 and program.EXAMPLE in told
    assert set(program.STAGES) == {"pipeline", *STAGES} and set(program.TOOLS) == tools
    assert all(any(line.startswith(f"  {name} ") for line in told.splitlines()) for name in program.COMMANDS)


def test_an_interrupted_stage_says_what_is_sealed(config: Path) -> None:
    """SIGINT while files are read: one line, no traceback, and the exit code of an interrupted program."""
    command = [sys.executable, "-m", "ray_jobs", "ingest", str(config)]
    given: dict[str, Any] = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=heard, **given) as running:
        assert running.stderr is not None
        told = ""
        while "inputs in" not in told:
            told += running.stderr.readline() or pytest.fail(told)
        running.send_signal(signal.SIGINT)
        _, told = running.communicate(timeout=120)
    assert running.returncode == 130, told
    assert "Traceback" not in told, told
    assert told.splitlines()[-1] == "ingest: interrupted; nothing is sealed yet, and the same command goes on"
