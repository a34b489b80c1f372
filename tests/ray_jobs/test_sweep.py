"""A real sweep of tiny runs: Ray Tune, Ray Train, DeepSpeed on gloo; and the rules about resources, weights and resuming."""

from __future__ import annotations

import importlib.util
import json
import pickle
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pyarrow as pa
import pytest

from diversity.artifact import Artifact, Storage
from diversity.cell import Cell
from diversity.config import UserError
from diversity.corpus.samples import sample_id
from diversity.datasets.dataset import content_hash, id_array
from ray_jobs import build_datasets, heldout, profile_corpus, sweep
from ray_jobs.job.experiment import Experiment, ResourcesConfig
from ray_jobs.job.runtime import Context, ResourcesNotAvailable
from ray_jobs.tasks import trials
from ray_jobs.tools import frames
from tests.ray_jobs.heads import wait_for
from training.evaluators import EvaluationConfig
from training.run_files import has_weights, remove_weights

ROOT = Path(__file__).resolve().parents[2]
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a 2-layer Llama with random weights and the real tokenizer, made in this process without DeepSpeed."""
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from ray_jobs.job.process import cache_folder
    from training.model_source import resolve_model

    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**MODEL)).save_pretrained(folder)
    source = resolve_model("builtin:smollm2-135m", cache_folder(), tokenizer_only=True)
    for path in source.glob("tokenizer*"):
        shutil.copy(path, folder / path.name)
    return folder


def samples(start: int, count: int) -> pa.Table:
    """Return samples as files of an earlier kind have them: without a column `tools`."""
    rows = []
    for i in range(start, start + count):
        messages = [
            {"role": "user", "content": f"What comes after {i}?"},
            {"role": "assistant", "content": f"After {i} comes {i + 1}, and then {i + 2}, as everybody knows who counts that far."},
        ]
        rows.append({"sample_id": sample_id(messages), "messages": messages})
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["sample_id"]))


def sealed(artifact: Artifact, table: pa.Table, **manifest: Any) -> Artifact:
    if not artifact.sealed:
        target = artifact.begin()
        target.write(table)
        target.seal(manifest)
    return artifact


@pytest.fixture
def context(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    """Return an experiment of 3 cells, of which two choose the same samples, with its parents sealed."""
    storage = Storage(str(tmp_path / "runs"))
    tables = {"random_n8_s0": samples(0, 8), "longest_n8_s0": samples(100, 8)}
    tables["random_n8_s1"] = tables["random_n8_s0"]

    def dataset(context: Context, cell: Cell) -> Artifact:
        table = tables[cell.name]
        tokens = {"instruction": 40, "response": 160}
        return sealed(storage.artifact("datasets", cell.name), table, content=content_hash(id_array(table["sample_id"])), tokens=tokens)

    def held(context: Context) -> Artifact:
        table = samples(1000, 6)
        return sealed(storage.artifact("heldout", "h"), table.append_column("split", pa.array(["in"] * 3 + ["out"] * 3)))

    def profile(context: Context, typing: str) -> Artifact:
        """Return a profile whose one token, the digit 1, occurs in so many samples that it lies above the band."""
        artifact = storage.artifact("profile", typing)
        if not artifact.sealed:
            target = artifact.begin()
            target.write(pa.table({"content": pa.array([b"1"]), "df": [7]}), "vocabulary/part-00000.parquet")
            target.seal({"band": {"low": 2, "high": 5}})
        return artifact

    monkeypatch.setattr(build_datasets, "dataset_artifact", dataset)
    monkeypatch.setattr(profile_corpus, "profile_artifact", profile)
    monkeypatch.setattr(heldout, "heldout_artifact", held)
    experiment = Experiment.model_validate(
        {
            "experiment": "tiny",
            "storage": storage.uri,
            "corpus": {"paths": ["builtin:python-docs"]},
            "model": str(model),
            "grid": {"strategies": ["random", "longest"], "sizes": [8], "subset_seeds": [0, 1], "train": ["random*", "longest_n8_s0"]},
            "sft": {
                "budget": {"response_tokens": 120},
                "response_tokens_per_step": 40,
                "max_length": 128,
                "checkpoint_every": 2,
                "max_failures": 0,
                "precision": "fp32",  # not `auto`, which asks the processor: losses are compared with those of a plain loop
            },
            "evaluation": {"evaluators": ["nll", {"name": "generate", "max_new_tokens": 4, "max_samples": 2}]},
            "resources": {"use_gpu": False, "cpus_per_rank": 0.9, "driver_cpus": 0.1},
        }
    )
    return Context(experiment, Path("tiny.yaml"))


def test_a_sweep_trains_scores_and_seals_and_goes_on_after_a_failure(
    context: Context, ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, other = sweep.runs(context)
    part = Path(lost.task.dataset.parts()[0])
    part.rename(part.with_suffix(".lost"))
    ctrl_c = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="1 of 2 runs failed; the first: .*holds no parquet file"):
        patch.setattr(sweep, "trials", SimpleNamespace(**{**vars(trials), "enter": lambda *_: None}))  # as if killed before its end
        sweep.run(context)
    assert signal.getsignal(signal.SIGINT) is ctrl_c, "Tune's handler would take an interruption for the end of all runs"
    assert other.finished and not lost.task.model.sealed
    assert list(context.index.read()["runs"]) == other.keys
    (plan,) = context.index.read()["plan"].values()
    planned = context.storage.at(plan).manifest  # sealed before the first run was trained, and not again by the second try
    assert planned["scored_before"] == 0 and len(planned["runs"]) == 3

    # The same command restores Tune's folder and does what is left.
    part.with_suffix(".lost").rename(part)
    folders = list((Path(context.storage.uri) / "tune").iterdir())
    first = other.task.model.manifest
    sweep.run(context)
    assert list((Path(context.storage.uri) / "tune").iterdir()) == folders and other.task.model.manifest == first
    every = sweep.runs(context)
    assert len(every) == 2 and all(one.finished for one in every)
    index = context.index.read()
    assert list(index["plan"].values()) == [plan] and context.storage.at(plan).manifest == planned
    assert set(index["runs"]) == set(index["scores"]) == {"random_n8_s0_t0", "random_n8_s1_t0", "longest_n8_s0_t0"}
    assert index["runs"]["random_n8_s0_t0"] == index["runs"]["random_n8_s1_t0"]
    for one in every:
        manifest = one.task.model.manifest
        rows = one.task.model.read(".")
        assert rows["step"].to_pylist() == [0, 1, 2] and manifest["steps"] == 3
        assert manifest["response_tokens"] == sum(rows["response_tokens"].to_pylist()) >= 120
        assert one.task.scores is not None
        scores = one.task.scores.read().to_pylist()
        assert {(row["split"], row["n"]) for row in scores if row["metric"] == "nll"} == {("in", 3), ("out", 3)}
        assert {row["metric"] for row in scores} >= {"nll", "nll_high", "nll_low", "nll_seen"}
        answers = one.task.scores.read("responses").to_pylist()
        assert [row["split"] for row in answers] == ["in", "in", "out", "out"] and {row["run"] for row in answers} == {one.task.run}
        assert len(one.task.scores.read("samples")) == 6 and one.task.scores.manifest["profile"] == "profile/response-micro"
        assert one.task.scores.manifest["content"] == one.task.content
        assert not has_weights(one.task.model)
        assert not context.storage.exists(f"train/{one.task.run}")

    _check_frame(context, every)
    _run_the_docs(context)

    # Sealed runs are no trials: nothing is trained again, and the plan says so.
    before = {one.task.run: one.task.model.manifest for one in every}
    sweep.run(context)
    assert {one.task.run: one.task.model.manifest for one in sweep.runs(context)} == before
    lines = list(sweep.plan(context))
    assert "2 runs, 2 sealed, 0 to do" in lines[0]
    assert "the plan is sealed: primary effects none, so that all findings are exploratory" in lines


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed, so that nothing is missing")
def test_a_run_that_would_miss_vllm_ends_before_it_trains(context: Context, ray_local: None) -> None:
    evaluation = EvaluationConfig(evaluators=["nll", {"name": "generate", "engine": "vllm"}])
    grid = context.experiment.grid.model_copy(update={"train": ["longest_n8_s0"]})
    asking = Context(context.experiment.model_copy(update={"evaluation": evaluation, "grid": grid}), Path("tiny.yaml"))
    with pytest.raises(UserError, match="1 of 1 runs failed; the first: .*needs the package vllm on the nodes that train"):
        sweep.run(asking)
    assert not any((Path(one.task.model.storage.uri) / one.task.model.path).exists() for one in sweep.runs(asking))


def test_a_run_that_can_not_fit_is_told_once_and_not_tried_again(context: Context) -> None:
    """What ranks return is no failure to Ray Train; raised, it would start them again. In Ray Train's local mode, in a new process."""
    values = context.experiment.model_dump(mode="json")
    values["sft"] |= {"max_length": 2**20, "row_tokens": 2**34}
    (one, *_) = sweep.runs(Context(Experiment.model_validate(values), context.config_path))
    program = f"""
import pickle
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from training.ray_worker import train_loop
task = pickle.loads({pickle.dumps(one.task)!r})
from training.engine import process_group
with process_group("cpu"):
    print(TorchTrainer(train_loop, train_loop_config={{"task": task}}, scaling_config=ScalingConfig(num_workers=0)).fit().return_value)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.startswith("{'error': 'this run does not fit: "), done.stderr[-2000:]
    assert "GiB are kept back" in done.stdout and not one.task.model.sealed


def test_a_killed_rank_goes_on_from_its_checkpoint_with_the_same_curve(context: Context, ray_local: None) -> None:
    from tests.training.ranks import alone
    from training.sft import Job, fine_tune

    values = context.experiment.model_dump(mode="json")
    values["grid"]["train"], values["evaluation"]["evaluators"] = ["longest_n8_s0"], ["nll"]
    values["sft"] |= {"budget": {"response_tokens": 40 * 60}, "checkpoint_every": 5, "max_failures": 2}
    changed = Context(Experiment.model_validate(values), context.config_path)
    (one,) = sweep.runs(changed)
    folder = Path(changed.storage.uri) / "train" / one.task.run
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(sweep.run, changed)
        wait_for(lambda: work.done() or any(folder.glob("checkpoint_*")), 240, "a checkpoint")
        assert not work.done(), "the run ended before its rank was killed"
        ranks = [child for child in psutil.Process().children(recursive=True) if "TrainWorker" in " ".join(child.cmdline())]
        assert len(ranks) == 1
        ranks[0].kill()
        work.result()
    assert one.task.model.sealed and not folder.exists(), "checkpoints go once the model is sealed"

    alone()
    table = one.task.dataset.read(columns=["sample_id", "messages"])
    whole = fine_tune(Job(Path(changed.experiment.model), table, changed.experiment.sft, 0, "cpu")).rows
    rows = one.task.model.read(".")
    assert rows["step"].to_pylist() == list(range(whole.num_rows)) and whole.num_rows > 20
    assert rows["loss"].to_pylist() == pytest.approx(whole["loss"].to_pylist(), rel=1e-6), "equal to what fp32 resolves"


def _run_the_docs(context: Context) -> None:
    """Run every line of the page on analysing a sweep, on this one."""
    rows = [{"cell": key, "evaluator": "nll", "metric": "nll", "value": 1.0} for key in context.index.read()["scores"]]
    results = context.storage.artifact("results", "r").begin()
    results.write(pa.Table.from_pylist(rows), "results.parquet")
    context.index.add("results", None, results.seal({}))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "analyse-results.md").read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 5
    given = {"context": context}
    for block in blocks:
        exec(re.sub(r'experiment = "[^"]+"', "experiment = context", block), given)
    assert given["best"].error is None and len(given["trials"]) == 2 and len(given["frame"]) == 3 and len(given["kinds"]) >= 3


def _check_frame(context: Context, every: list[sweep.Run]) -> None:
    """The frame has Tune's columns with Tune's values, a row for each cell, and the same scores without Tune's folder."""
    trials_frame = frames.result_grid(context).get_dataframe().set_index("config/run/run")
    frame = frames.results_frame(context)
    assert set(frame["config/run/cell"]) == set(context.index.read()["scores"]) and frame["sealed"].all() and len(frame) == 3
    assert set(trials_frame.columns) < set(frame.columns)
    for row in frame.to_dict("records"):
        trial = trials_frame.loc[row["config/run/run"]]
        for name in ("scores/nll/out/nll", "scores/nll/in/nll_high", "train_s", "steps", "last_loss", "trial_id", "time_total_s"):
            assert row[name] == trial[name], name
    folder = Path(context.storage.uri) / "tune"
    folder.rename(folder.with_name("elsewhere"))
    bare = frames.results_frame(context)
    folder.with_name("elsewhere").rename(folder)
    kept = ["config/run/cell", "config/run/strategy", "scores/nll/out/nll", "train_s", "score_s"]
    assert bare[kept].equals(frame[kept]) and "trial_id" not in bare


def demand(**changes: Any) -> trials.Demand:
    return trials.Demand(**{"ranks": 2, "cpus_per_rank": 1, "driver_cpus": 0.1, "gpu": False, **changes})


def test_concurrency_counts_drivers_too() -> None:
    assert trials.concurrent_runs(demand(), cpus=4.2, gpus=0) == 2
    assert trials.concurrent_runs(demand(), cpus=4, gpus=0) == 1
    assert trials.concurrent_runs(demand(ranks=1, cpus_per_rank=1.9), cpus=2, gpus=0) == 1
    assert trials.concurrent_runs(demand(gpu=True), cpus=100, gpus=5) == 2


def test_too_few_resources_are_told_before_anything_starts() -> None:
    with pytest.raises(UserError, match=r"a run needs 2 x 1 \+ 0.1 = 2.1 CPUs, and there are 2 CPUs: lower resources.cpus_per_rank"):
        trials.concurrent_runs(demand(), cpus=2, gpus=0)
    with pytest.raises(UserError, match="2 GPUs, and there are 64 CPUs and 1 GPUs"):
        trials.concurrent_runs(demand(gpu=True), cpus=64, gpus=1)


def test_a_rank_may_ask_for_a_gpu_and_compute_on_the_cpu(context: Context) -> None:
    sft, resources = context.experiment.sft, ResourcesConfig(use_gpu=True, device="cpu")
    asked = trials.Demand.of(sft, resources, "cpu")
    assert asked.gpu and asked.rank["GPU"] == 1 and asked.device == "cpu"
    assert trials.Demand.of(sft, ResourcesConfig(), "cuda").gpu and not trials.Demand.of(sft, ResourcesConfig(), "cpu").gpu
    rehearsed = Context(context.experiment.model_copy(update={"resources": resources}), context.config_path)
    assert sweep.device_kind(rehearsed) == "cpu" and {one.task.run for one in sweep.runs(rehearsed)} == {
        one.task.run for one in sweep.runs(context)
    }


def test_resources_that_do_not_come_are_an_error_of_their_own(ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ray_bootstrap_config.yaml").write_text(
        "available_node_types: {head: {max_workers: 0, resources: {CPU: 2}}, gpu: {max_workers: 3, resources: {CPU: 48, GPU: 4}}}"
    )
    monkeypatch.setattr(trials, "BOOTSTRAP", tmp_path / "ray_bootstrap_config.yaml")
    with pytest.raises(ResourcesNotAvailable, match="2 CPUs, 0 GPUs; at its largest it would have 3 x gpu of 48 CPUs, 4 GPUs$"):
        trials.wait_for_one(demand(cpus_per_rank=64), wait_s=0)
    monkeypatch.setattr(trials, "BOOTSTRAP", tmp_path / "none.yaml")
    with pytest.raises(ResourcesNotAvailable, match="after 0 s the cluster has 2 CPUs"):
        trials.wait_for_one(demand(cpus_per_rank=64), wait_s=0)
    trials.wait_for_one(demand(ranks=1), wait_s=0)


def test_weights_that_are_gone_need_a_word(context: Context) -> None:
    every = sweep.runs(context)
    for one in every:
        one.task.model.begin().seal({"run": one.task.run})
    with pytest.raises(UserError, match="2 sealed runs have no weights any more and scores are asked of them"):
        sweep._allow_again(every, "scores", retrain=False)
    sweep._allow_again(every, "scores", retrain=True)
    assert not any(one.task.model.sealed for one in every)


def test_the_best_runs_keep_their_weights(context: Context) -> None:
    every = sweep.runs(context)
    for one, figure in zip(every, (2.0, 3.0), strict=True):
        sealed(one.task.model, pa.table({"step": [0]}))
        context.storage.write_bytes(f"{one.task.model.path}/hf/config.json", b"{}")
        row = {"metric": "nll", "value": figure, "higher_is_better": False, "primary": True}
        assert one.task.scores is not None
        sealed(one.task.scores, pa.Table.from_pylist([{**row, "value": 99.0, "primary": False}, row]))
    one, other = every
    sweep._keep_best([one, sweep.Run(other.task, one.cells)])  # of one strategy and size
    assert has_weights(one.task.model) and not has_weights(other.task.model) and other.task.model.sealed
    both = [one, sweep.Run(other.task, one.cells)]
    sweep._allow_again(both, "best", retrain=False)
    remove_weights(one.task.model)
    with pytest.raises(UserError, match="1 sealed runs have no weights any more and weights are asked of them"):
        sweep._allow_again(both, "best", retrain=False)
    sweep._allow_again(both, "best", retrain=True)
    assert not one.task.model.sealed and other.task.model.sealed


def test_without_held_out_samples_nothing_is_scored(context: Context) -> None:
    evaluation = context.experiment.evaluation.model_copy(update={"heldout": None})
    bare = Context(context.experiment.model_copy(update={"evaluation": evaluation}), context.config_path)
    assert all(one.task.scores is None and not one.finished for one in sweep.runs(bare))


def test_tasks_are_plain(context: Context) -> None:
    described = [one.describe() for one in sweep.runs(context)]
    assert json.loads(json.dumps(described)) == described
