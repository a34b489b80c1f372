"""The train loop against plain PyTorch, over ranks and ZeRO stages; what it refuses; and its command line."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from diversity.config import UserError
from tests.training.chat_templates import THINKING
from tests.training.ranks import SFT, TwoRanks, alone, on_ranks, samples, train
from training.chat import ChatFormat
from training.config import SftConfig, learning_rate
from training.export import copy_tokenizer


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> None:
    alone()


def reference(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Return the losses and weights of plain PyTorch: one sample at a time, no packing, no DeepSpeed."""
    import torch
    from transformers import AutoModelForCausalLM

    from training.engine import adamw, with_adapters
    from training.packing import assign
    from training.sft import Job, prepare_data

    sft = SftConfig(**values)
    data = prepare_data(Job(folder, samples(24), sft, 0, "cpu"), 1)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    if sft.lora:
        model = with_adapters(model, sft.lora, seed=0)
    optimizer = adamw(model, sft, "cpu")
    losses = []
    for step in data.steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step.number, len(data.steps), sft)
        optimizer.zero_grad()
        total = 0.0
        for sample in step.samples:
            ids = torch.from_numpy(data.encoded[sample].input_ids.astype(np.int64))[None]
            labels = torch.from_numpy(data.encoded[sample].labels.astype(np.int64))[None]
            logits = model(input_ids=ids).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum") / step.response_tokens
            loss.backward()
            total += loss.item()
        if sft.clip:
            torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], sft.clip)
        optimizer.step()
        losses.append(total)
    many_rows = all(len(assign(step.samples, np.array([len(one) for one in data.encoded]), 64, 1)[0]) > 2 for step in data.steps)
    assert len(losses) == 5 and many_rows and losses[-1] < losses[0] - 0.01, "the reference itself must show something"
    return {"losses": losses, "weights": {name: p.detach().numpy() for name, p in model.named_parameters()}}


@pytest.fixture(scope="module")
def plain(tiny_folder: Path) -> dict[str, Any]:
    return reference(tiny_folder, SFT)


def agree(found: dict[str, Any], wanted: dict[str, Any], tolerance: float, weights: float) -> None:
    assert found["losses"] == pytest.approx(wanted["losses"], rel=tolerance)
    for name, array in wanted["weights"].items():
        key = name if name in found["weights"] else f"base_model.model.{name}"
        np.testing.assert_allclose(found["weights"][key], array, atol=weights, err_msg=name)


def test_one_rank_with_many_rows_is_plain_pytorch(tiny_folder: Path, plain: dict[str, Any]) -> None:
    agree(train(tiny_folder, SFT), plain, 3e-6, 2e-5)
    # Rows, and recomputed activations, change nothing either.
    agree(train(tiny_folder, {**SFT, "row_tokens": 512, "gradient_checkpointing": True}), plain, 3e-6, 2e-5)


@pytest.mark.parametrize(
    "change",
    [{"clip": 0.05, "schedule": "linear"}, {"clip": None, "schedule": "constant"}, {"lora": {"rank": 4, "alpha": 8}, "lr": 3e-2}],
    ids=["clipped, linear", "not clipped, constant", "adapters"],
)
def test_clipping_schedules_and_adapters_are_those_of_plain_pytorch(
    tiny_folder: Path, plain: dict[str, Any], change: dict[str, Any]
) -> None:
    wanted, found = reference(tiny_folder, {**SFT, **change}), train(tiny_folder, {**SFT, **change})
    agree(found, wanted, 3e-6, 2e-5)
    assert max(abs(a - b) for a, b in zip(wanted["losses"], plain["losses"], strict=True)) > 1e-4, "the change must matter"


def test_the_loss_is_the_same_on_one_two_and_four_ranks_and_in_all_zero_stages(
    tiny_folder: Path, plain: dict[str, Any], two_ranks: TwoRanks
) -> None:
    (four,) = on_ranks(4, [{"model": tiny_folder, "sft": {**SFT, "world_size": 4}}])
    two = two_ranks.whole
    agree(four, plain, 3e-6, 2e-5)
    agree(two[0], plain, 3e-6, 2e-5)
    for found in two[1:]:
        agree(found, plain, 3e-6, 2e-5)


def test_stage_3_never_has_the_whole_model_on_a_rank(tiny_folder: Path) -> None:
    """Loading leaves placeholders of no elements; only rank 0 reads values, and gives each rank its share."""
    from training.engine import load_model

    model = load_model(tiny_folder, SftConfig(**SFT, zero={"stage": 3}), "fp32", seed=0)  # type: ignore[arg-type]
    parameters: Any = list(model.parameters())
    assert all(p.numel() == 0 and p.ds_tensor.numel() == p.ds_numel for p in parameters), "of one rank, the share is all"
    assert sum(p.ds_numel for p in parameters) > 1e6


def test_bf16_follows_fp32(tiny_folder: Path, plain: dict[str, Any]) -> None:
    for stage in (0, 1):
        found = train(tiny_folder, {**SFT, "precision": "bf16", "zero": {"stage": stage}})
        assert found["losses"] == pytest.approx(plain["losses"], rel=5e-3)
        assert found["losses"] != plain["losses"]


def test_adapters_learn_and_nothing_else(tiny_folder: Path) -> None:
    sft = {**SFT, "lora": {"rank": 4, "alpha": 8, "dropout": 0.1}, "lr": 3e-2}
    found, again = train(tiny_folder, sft), train(tiny_folder, sft)
    assert found["losses"] == again["losses"] and found["losses"][-1] < found["losses"][0]
    assert found["losses"] != train(tiny_folder, sft, seed=1)["losses"]


def test_a_models_own_dropout_is_drawn_by_the_seed_and_resumed(gpt2_folder: Path, tmp_path: Path) -> None:
    whole = train(gpt2_folder, SFT, checkpoints=tmp_path)
    assert train(gpt2_folder, SFT)["losses"] == whole["losses"] != train(gpt2_folder, SFT, seed=1)["losses"]
    assert train(gpt2_folder, SFT, checkpoints=tmp_path)["losses"] == pytest.approx(whole["losses"], abs=1e-6), "from step 4"


def test_seeds_order_the_data(tiny_folder: Path) -> None:
    few = {**SFT, "budget": {"epochs": 0.5}}
    first, second = train(tiny_folder, few), train(tiny_folder, few, seed=1)
    assert first["losses"] != second["losses"]
    assert first["losses"] == train(tiny_folder, few)["losses"]


def test_a_loss_that_is_no_number_names_step_and_samples(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training import sft

    data = []
    prepare = sft.prepare_data
    monkeypatch.setattr(sft, "prepare_data", lambda *given: data.append(prepare(*given)) or data[0])
    with pytest.raises(sft.NonFiniteLoss) as stopped:
        train(tiny_folder, {**SFT, "lr": 1e30, "clip": None})
    step = next(number for number in itertools.count() if f"step {number} " in str(stopped.value))
    assert step >= 1 and all(data[0].sample_ids[i] in str(stopped.value) for i in data[0].steps[step].samples[:20])


def test_weights_that_are_no_numbers_are_not_exported(tiny_folder: Path) -> None:
    """One step, whose loss is finite: what it does to the weights shows in no loss."""
    from training.sft import NonFiniteLoss

    one = {**SFT, "budget": {"response_tokens": 96}, "lr": 1e39, "clip": None, "warmup": 0}
    with pytest.raises(NonFiniteLoss, match="the weights are not finite after step 0; lower sft.lr"):
        train(tiny_folder, one)


def test_what_cannot_be_trained_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    from training.sft import Job, fine_tune
    from training.zero import DoesNotFit

    with pytest.raises(UserError, match="none of 24 samples fits sft.max_length=8"):
        train(tiny_folder, {**SFT, "max_length": 8})
    with pytest.raises(UserError, match="sft.world_size=2, and there are 1 ranks"):
        train(tiny_folder, {**SFT, "world_size": 2})
    no_weights = tmp_path / "config only"
    no_weights.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (no_weights / name).write_bytes((tiny_folder / name).read_bytes())
    with pytest.raises(DoesNotFit, match="this run does not fit"):  # before any weight is looked for
        fine_tune(Job(no_weights, samples(24), SftConfig(**SFT), 0, "cpu"), memory=(1000, None))
    with pytest.raises(UserError, match="can't be opened as a causal language model"):
        fine_tune(Job(no_weights, samples(24), SftConfig(**SFT), 0, "cpu"))


def test_overlong_samples_are_counted(tiny_folder: Path) -> None:
    from training.sft import Job, prepare_data

    table, short = samples(24, longest=40), {**SFT, "max_length": 40}
    cut = prepare_data(Job(tiny_folder, table, SftConfig(**short), 0, "cpu"), 1)
    dropped = prepare_data(Job(tiny_folder, table, SftConfig(**short, overlong="drop"), 0, "cpu"), 1)
    assert cut.counts["truncated"] == dropped.counts["dropped"] > 0
    assert cut.counts["samples"] == 24 and dropped.counts["samples"] == 24 - dropped.counts["dropped"]
    assert max(len(sample) for sample in cut.encoded) == 40


def test_turns_that_are_dropped_are_counted_and_told(tiny_folder: Path, tmp_path: Path) -> None:
    """A template that drops the thinking of earlier turns makes two sequences of a sample, of which the second does not fit."""
    from training.engine import shape_of
    from training.progress import describe
    from training.sft import Job, prepare_data
    from training.zero import refuse_what_cannot_fit

    copy_tokenizer(tiny_folder, tmp_path, ChatFormat(THINKING, ()))
    thought = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}
    said = [{"role": "user", "content": "a"}, thought, {"role": "user", "content": "word " * 60}, thought]
    table, sft = pa.table({"sample_id": ["0" * 32], "messages": [said]}), SftConfig(**{**SFT, "overlong": "drop"})
    data = prepare_data(Job(tmp_path, table, sft, 0, "cpu"), 1)
    assert data.counts == {"samples": 1, "truncated": 0, "dropped": 0, "turns_dropped": 1} and len(data.encoded) == 1
    shape = shape_of(tiny_folder, sft)
    needed = refuse_what_cannot_fit(shape, sft, "fp32", device_bytes=2**40, host_bytes=None)
    assert "1 samples (0 cut, 0 dropped, 1 turns of others dropped)" in describe(data.counts, data.steps, shape, needed, 1)
    assert "1 samples (0 cut, 0 dropped), " in describe({**data.counts, "turns_dropped": 0}, data.steps, shape, needed, 1)


def test_the_command_line_tells_what_is_wrong_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from training.sft import main

    assert main([str(tmp_path / "none"), "--out", str(tmp_path / "out"), "--model", str(tmp_path)]) == 1
    assert main([str(tmp_path), "--out", str(tmp_path / "out"), "lr=-1"]) == 1
    assert main([str(tmp_path), "--out", str(tmp_path / "out"), "--seed", "-1"]) == 1
    assert main([str(tmp_path), "--out", str(tmp_path / "out"), "--seed", str(2**64)]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4 and "lr: Input should be greater than 0" in errors[1]
    assert "--seed is at least 0 and below 2**63, not -1" in errors[2] and "below 2**63" in errors[3]


def test_a_steps_time_ends_when_the_device_is_done(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is busy for 50 ms more after the optimizer was asked to step."""
    from training import sft

    monkeypatch.setattr(sft, "wait_for", lambda device: time.sleep(0.05))
    assert min(sft.fine_tune(sft.Job(tiny_folder, samples(24), SftConfig(**SFT), 0, "cpu")).rows["seconds"].to_pylist()) > 0.05


def test_a_notice_saves_a_checkpoint_at_once(tiny_folder: Path) -> None:
    """Five steps: one checkpoint where it falls due, one where a notice comes; not one after the last step."""
    from training.sft import Job, fine_tune

    saved: list[int] = []
    asked = iter([False, True, True])  # not asked after step 4, where one falls due, nor after the last
    job = Job(tiny_folder, samples(24), SftConfig(**{**SFT, "checkpoint_every": 4}), 0, "cpu")
    fine_tune(job, checkpoint=lambda engine, step, rows: saved.append(step), leaving=lambda: next(asked))
    assert saved == [2, 3, 4] and next(asked, "all asked") == "all asked"


def test_a_notice_is_taken_once_and_asked_for_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.train
    from ray.train.v2.api.preemption import PreemptionInfo

    from training import ray_signals

    infos = iter([None, PreemptionInfo(None, {"a": [0]}), PreemptionInfo(None, {"a": [0]}), PreemptionInfo(None, {"a": [0], "b": [1]})])
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: next(infos))
    monkeypatch.setattr(ray.train, "get_context", lambda: type("Context", (), {"get_world_rank": lambda self: 0})())
    often, seldom = ray_signals.Notice("cpu", ask_every_s=0), ray_signals.Notice("cpu", ask_every_s=3600)
    assert [often() for _ in range(4)] == [False, True, False, True]
    assert not seldom() and next(infos, None) is None
