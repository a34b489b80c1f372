"""Long work that is killed again and again, and goes on: the pipeline, a run on another number of ranks, a stage that pays for verdicts.

Each is minutes of work on two cores, so that none is part of `make test`; what a single kill does is tested there.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from diversity.config import UserError
from diversity.llm.answers import Answers
from diversity.llm.asking import Asker, request_key
from diversity.llm.budget import BudgetConfig
from diversity.llm.endpoint import EndpointConfig
from ray_jobs import answer, judge, sweep
from ray_jobs.job.experiment import Experiment
from ray_jobs.job.runtime import Context, main
from ray_jobs.tasks.judged import ledger
from tests.fault_proxy import FaultProxy
from tests.ray_jobs.heads import ROOT, wait_for
from tests.ray_jobs.test_judge import context as judging
from tests.ray_jobs.test_judge import honest, judged, serve
from tests.ray_jobs.test_pipeline import config, contents, entries, whole
from tests.ray_jobs.test_sweep import context, model

__all__ = ["config", "context", "model", "serve", "whole"]  # fixtures


def kill_when(command: list[str], moment: str) -> None:
    """Start a command and SIGKILL its whole process group when its log says the words."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    child = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert child.stderr is not None
    said = any(moment in line for line in child.stderr)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    assert said, f"{command} ended before it said {moment!r}"


def test_a_run_killed_twice_is_resumed_with_the_same_content(whole: Path, config: Path, tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    arguments = [str(config), f"storage={storage}"]
    command = [sys.executable, "-m", "ray_jobs.pipeline", *arguments]
    kill_when(command, "1 of 1 spans")
    kill_when(command, "chosen: ")
    assert "datasets" not in entries(storage), "it was killed before its end"
    assert main("pipeline", arguments) == 0
    assert contents(storage) == contents(whole)


def test_a_run_goes_on_where_another_number_of_ranks_stopped(context: Context, ray_local: None) -> None:
    """Two ranks are killed after two checkpoints, the newest loses its end, and one rank, told so, ends what they began from the other."""
    import torch

    from tests.training.ranks import alone
    from training.checkpoint import STATE
    from training.sft import Job, fine_tune

    values = context.experiment.model_dump(mode="json")
    values["grid"]["train"], values["evaluation"]["evaluators"] = ["longest_n8_s0"], ["nll"]
    values["resources"] |= {"cpus_per_rank": 0.45}
    values["sft"] |= {"budget": {"response_tokens": 40 * 60}, "checkpoint_every": 5, "max_failures": 0, "zero": {"stage": 2}}

    def changed(**sft: int) -> Context:
        return Context(Experiment.model_validate({**values, "sft": {**values["sft"], **sft}}), context.config_path)

    two, one = changed(world_size=2), changed(world_size=1, resume_world_size=2)
    (begun,), (rest,) = sweep.runs(two), sweep.runs(one)
    assert rest.task.begun == begun.task.run != rest.task.run
    assert sweep.runs(changed(world_size=1))[0].task.run == rest.task.run, "the option is no part of a run's name"
    folder = Path(context.storage.uri) / "train" / begun.task.run

    def published() -> list[Any]:
        snapshot = folder / "checkpoint_manager_snapshot.json"
        return json.loads(snapshot.read_text())["checkpoint_results"] if snapshot.exists() else []

    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(sweep.run, two)
        wait_for(lambda: work.done() or len(published()) > 1, 240, "two checkpoints")
        assert not work.done(), "the run ended before its ranks were killed"
        for child in psutil.Process().children(recursive=True):
            if "TrainWorker" in " ".join(child.cmdline()):
                child.kill()
        with pytest.raises(UserError, match="1 of 1 runs failed"):
            work.result()
    before, newest = (folder / one["checkpoint_dir_name"] / STATE for one in published())  # two are kept
    cut = next(newest.glob("*optim_states.pt"))
    cut.write_bytes(cut.read_bytes()[:100])
    state = before / "mp_rank_00_model_states.pt"
    taken = torch.load(state, map_location="cpu", weights_only=False)["rows"]
    assert not begun.task.model.sealed and 0 < len(taken) < 60
    sweep.run(one)
    assert rest.task.model.sealed and rest.task.model.manifest["resume_world_size"] == 2 and not folder.exists()

    alone()
    table = rest.task.dataset.read(columns=["sample_id", "messages"])
    whole = fine_tune(Job(Path(context.experiment.model), table, one.experiment.sft, 0, "cpu")).rows
    rows = rest.task.model.read(".")
    assert rows["step"].to_pylist() == list(range(whole.num_rows)) and whole.num_rows > 20
    assert rows["seconds"].to_pylist()[: len(taken)] == [row["seconds"] for row in taken], "these steps are not taken again"
    assert rows["loss"].to_pylist() == pytest.approx(whole["loss"].to_pylist(), abs=1e-5)


KILLS, LIMIT = 20, {"requests": 900, "tokens": 3_000_000}


def test_twenty_kills_of_the_stage_change_nothing_and_pay_nothing_twice(tmp_path: Path, serve: Any) -> None:
    """SIGKILL at random moments of the stage, under faults of its endpoint, against a run that nothing disturbs.

    The verdicts are the same; what was kept when a job died is never asked again, as the server counts; and the budget holds.
    """

    def slow(prompt: str, number: int) -> tuple[int, dict[str, str], object]:
        time.sleep(0.02)
        return honest(prompt, number)

    asked: list[str] = []
    draw, faults = random.Random(3), {5: "429", 11: "500", 17: "cut", 23: "malformed", 27: "no usage"}
    proxy = FaultProxy(serve(slow).url, lambda number, body: asked.append(request_key(body)) or faults.get(number % 29))
    given = judging(tmp_path, proxy.url, budget=LIMIT, calibration={"pairs": 16})
    answer.run(given)
    jobs = multiprocessing.get_context("forkserver")  # a new process that has imported the stage, each time
    jobs.set_forkserver_preload(["ray_jobs.judge"])
    killed, kept = 0, set[str]()
    for _ in range(KILLS):
        before, more = len(asked), draw.randrange(12)
        job = jobs.Process(target=main, args=("judge", [str(given.config_path)]))
        job.start()
        while job.is_alive() and len(asked) < before + more:
            time.sleep(0.002)
        time.sleep(draw.random() * 0.02)
        job.kill()
        job.join()
        killed += job.exitcode == -signal.SIGKILL
        settled(asked)
        assert not kept & set(asked[before:]), "what was kept when the job before died is not asked again"
        kept = set(_kept(given).find(set(asked)))
    before = len(asked)
    judge.run(given)
    assert killed == KILLS and before < len(asked) and not kept & set(asked[before:])
    budget = Asker(None, EndpointConfig(), _kept(given), BudgetConfig(**LIMIT), storage=given.storage, ledger=ledger(given, "judge")).budget
    assert len(asked) == proxy.requests <= budget.requests <= LIMIT["requests"]
    assert proxy.billed_tokens <= budget.tokens <= LIMIT["tokens"]
    proxy.close()

    (tmp_path / "clean").mkdir()
    clean = judging(tmp_path / "clean", serve(honest).url, calibration={"pairs": 16})
    answer.run(clean)
    judge.run(clean)
    assert _verdicts(given) == _verdicts(clean) and judged(given)["rows"] == judged(clean)["rows"]
    print(f"{len(proxy.delivered)} verdicts paid for, {proxy.requests} requests, {budget.requests} booked, {killed} kills")


def settled(asked: list[str]) -> None:
    """Wait until what a dead process had on the wire has arrived."""
    seen = -1
    while seen != (seen := len(asked)):
        time.sleep(0.1)


def _kept(given: Context) -> Answers:
    assert given.experiment.judging is not None
    return judge.kept_answers(given, given.experiment.judging.judges[0])


def _verdicts(given: Context) -> dict[str, list[dict[str, Any]]]:
    """Return all sealed verdicts, without the usage that an endpoint may not have told."""
    folder = Path(given.storage.uri) / "verdicts"
    sealed = [one for path in folder.iterdir() if (one := given.storage.at(f"verdicts/{path.name}")).sealed]
    return {one.path: one.read().drop_columns(["prompt_tokens", "completion_tokens"]).to_pylist() for one in sealed}
