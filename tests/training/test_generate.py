"""Batched answers equal those of one prompt at a time, a killed run goes on, and the figures are the literal counts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.artifact import Storage
from diversity.config import ConfigError
from diversity.corpus.samples import sample_id
from tests.training.test_nll import heldout_table
from training.chat import ChatEncoder
from training.evaluators import EvaluationConfig, Subject, evaluate
from training.evaluators import generate as module
from training.evaluators.generate import (
    Answer,
    GenerateConfig,
    answer_of,
    asked,
    batches,
    distinct,
    figures,
    open_engine,
    prompts,
)
from training.evaluators.transformers_engine import TransformersEngine, affordable_tokens, kv_bytes

NEW = 6


@pytest.fixture(scope="module")
def subject(tiny_model: Any, tiny_folder: Path) -> Subject:
    return Subject.of(tiny_model, tiny_folder, heldout_table(14), "cpu")


def with_kept(subject: Subject, kept: Any) -> Subject:
    return Subject(subject.model, subject.encoder, subject.splits, "cpu", tokenizer=subject.tokenizer, kept=kept)


def config(**options: Any) -> EvaluationConfig:
    return EvaluationConfig(evaluators=[{"name": "generate", "max_new_tokens": NEW, **options}])


def naive(model: Any, prompt: np.ndarray, end: int) -> list[int]:
    """Return the greedy answer of one prompt, read anew for every token, without padding or cache."""
    import torch

    ids = prompt.tolist()
    for _ in range(NEW):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == end:
            return ids[len(prompt) : -1]
    return ids[len(prompt) :]


@pytest.mark.parametrize("batch_tokens", [None, 60])
def test_batched_answers_equal_one_prompt_at_a_time(subject: Subject, batch_tokens: int | None) -> None:
    found = evaluate(subject, config(batch_tokens=batch_tokens), run="a run")
    rows = found.tables["responses"].to_pylist()
    assert len(rows) == 14 and {row["run"] for row in rows} == {"a run"} and set(found.table["evaluator"].to_pylist()) == {"generate"}
    for row in rows:
        samples = subject.splits[row["split"]].to_pylist()
        messages = next(s["messages"] for s in samples if s["sample_id"] == row["sample_id"])
        literal = naive(subject.model, subject.encoder.prompt(messages[:-1]), subject.encoder.end)
        assert row["tokens"] == len(literal) and row["response"] == subject.tokenizer.decode(literal, skip_special_tokens=True)
        assert row["finished"] == (len(literal) < NEW)
    values = {(row["split"], row["metric"]): row for row in found.table.to_pylist()}
    for split in ("in", "out"):
        mine = [row["tokens"] for row in rows if row["split"] == split]
        assert values[split, "length"]["value"] == pytest.approx(np.mean(mine)) and values[split, "length"]["n"] == len(mine)
        assert not values[split, "length"]["primary"]


def test_what_a_folder_says_of_generation_does_not_count(subject: Subject, tiny_folder: Path) -> None:
    """A model that would never say what it likes best, and draws: its answers are those of one that says nothing of it."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    options = GenerateConfig(max_new_tokens=NEW)
    asking = prompts(subject.splits["in"], subject.encoder, options)
    answers = open_engine(subject, options)(asking, "a")
    liked = sorted({int(one) for answer in answers for one in answer.ids})
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype="auto").eval()
    model.generation_config = own = GenerationConfig(eos_token_id=2, suppress_tokens=liked, repetition_penalty=9.0, do_sample=True, top_k=3)
    found = open_engine(replace(subject, model=model), options)(asking, "a")
    assert [one.ids.tolist() for one in found] == [one.ids.tolist() for one in answers] and model.generation_config is own


def test_an_answer_ends_at_every_token_that_ends_a_turn(subject: Subject, tokenizer: Any) -> None:
    options = GenerateConfig(max_new_tokens=NEW)
    asking = prompts(subject.splits["in"], subject.encoder, options)
    free = open_engine(subject, options)(asking, "a")
    encoder = ChatEncoder(tokenizer)
    encoder.ends = (*subject.encoder.ends, int(free[0].ids[2]))  # as if a call ended so
    found = open_engine(replace(subject, encoder=encoder), options)(asking, "a")
    assert found[0].finished and found[0].ids.tolist() == free[0].ids[: free[0].ids.tolist().index(encoder.ends[1])].tolist()


def test_prompts_leave_an_answer_its_positions(gpt2_folder: Path) -> None:
    """A table of 64 positions: what would go beyond it is not asked."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(gpt2_folder)
    narrow = Subject.of(model, gpt2_folder, heldout_table(), "cpu")
    lengths = [len(one.ids) for table in narrow.splits.values() for one in prompts(table, narrow.encoder, GenerateConfig(max_samples=None))]
    most = 64 - max(lengths) + 1
    rows = evaluate(narrow, config(max_new_tokens=most), run="r").tables["responses"]
    assert 0 < len(rows) == sum(length + most <= 64 for length in lengths) < len(lengths)
    with pytest.raises(ConfigError, match="max_new_tokens=64: the model has positions for 64 tokens"):
        evaluate(narrow, config(max_new_tokens=64), run="r")


def test_a_killed_run_goes_on_with_what_it_kept(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="what is kept lies beside Ray Train's checkpoints")
    from training.run_files import Kept

    kept = Kept(Storage(str(tmp_path)), "train/run/kept")
    options, calls, generate = config(batch_tokens=60), [], TransformersEngine.__call__
    whole = evaluate(subject, options, run="r")

    def dies(*arguments: Any) -> Any:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(arguments)
        return generate(*arguments)

    monkeypatch.setattr(TransformersEngine, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate(with_kept(subject, kept), options, run="r")
    assert len(list((tmp_path / "train/run/kept").glob("*.parquet"))) == 3
    done, calls[:] = len(calls), []
    monkeypatch.setattr(TransformersEngine, "__call__", lambda *arguments: (calls.append(arguments), generate(*arguments))[1])
    again = evaluate(with_kept(subject, kept), options, run="r")
    total = sum(
        len(batches([len(p.ids) for p in prompts(t, subject.encoder, options.evaluators[0].parsed())], options.evaluators[0].parsed()))
        for t in subject.splits.values()
    )
    assert again.table == whole.table and again.tables == whole.tables and len(calls) == total - done > 0
    calls.clear()
    evaluate(with_kept(subject, kept), config(batch_tokens=60, max_new_tokens=2), run="r")
    assert len(calls) >= total - 2  # other options keep nothing in common


def test_ranks_share_the_batches(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of three ranks generates its own batches only; together they have every answer of one rank alone, in its order."""
    import torch

    options = GenerateConfig(max_new_tokens=NEW, batch_tokens=60)
    asking = prompts(subject.splits["in"], subject.encoder, options)
    parts: list[dict[int, Answer]] = []

    def gather(everyone: list[Any], mine: dict[int, Answer]) -> None:
        parts.append(mine)
        everyone[:] = [dict(enumerate([Answer(np.zeros(0, np.int32), True)] * len(asking))), mine, {}]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    for rank in range(3):
        share = Subject(subject.model, subject.encoder, subject.splits, "cpu", rank, 3, tokenizer=subject.tokenizer)
        assert len(module.answer_all(share, "in", asking, options, open_engine(share, options))) == len(asking)
    alone = module.answer_all(subject, "in", asking, options, open_engine(subject, options))
    assert sorted(place for part in parts for place in part) == list(range(len(asking))) and all(parts)
    joined = {place: answer for part in parts for place, answer in part.items()}
    assert [joined[i].ids.tolist() for i in range(len(asking))] == [answer.ids.tolist() for answer in alone]


def test_keys_and_values_are_counted_as_the_cache_holds_them(tiny_model: Any) -> None:
    import torch

    with torch.no_grad():
        cache = tiny_model(torch.arange(3, 20)[None], use_cache=True).past_key_values
    held = sum(one.nbytes for layer in cache.layers for one in (layer.keys, layer.values))
    assert held == 17 * kv_bytes(tiny_model.config, 4) and kv_bytes(tiny_model.config, 2) == kv_bytes(tiny_model.config, 4) // 2


@given(st.integers(1, 2**18), st.integers(0, 2**40), st.integers(0, 2**22))
def test_a_batch_never_fills_over_half_of_the_free_memory_and_is_as_large_as_can_be(usual: int, free: int, per_token: int) -> None:
    found = affordable_tokens(usual, free, per_token)
    assert 1 <= found <= usual
    assert found == 1 or 2 * found * per_token <= free
    if found < usual:
        assert found & (found - 1) == 0 and 2 * (2 * found) * max(per_token, 1) > free, "the next power of two would be too much"


def test_draws_repeat_with_their_seed(subject: Subject) -> None:
    answers = [
        evaluate(subject, config(temperature=1.0, top_p=0.9, seed=seed), run="r").tables["responses"]["response"].to_pylist()
        for seed in (0, 0, 1)
    ]
    assert answers[0] == answers[1] != answers[2]


def test_every_run_is_asked_the_same_whatever_the_order_of_rows(subject: Subject, caplog: pytest.LogCaptureFixture) -> None:
    table, few = subject.splits["in"], GenerateConfig(max_samples=3)
    found = prompts(table, subject.encoder, few)
    backwards = prompts(table.take(pa.array(range(len(table)))[::-1]), subject.encoder, few)
    assert [p.sample_id for p in found] == [p.sample_id for p in backwards] and len(found) == 3
    lengths = sorted(len(p.ids) for p in prompts(table, subject.encoder, GenerateConfig()))
    with caplog.at_level("INFO"):
        short = prompts(table, subject.encoder, GenerateConfig(max_prompt_tokens=lengths[2]))
    assert sorted(len(p.ids) for p in short) == [n for n in lengths if n <= lengths[2]]
    assert f"{len(short)} prompts to ask ({len(lengths) - len(short)} passed over" in caplog.text
    with pytest.raises(ConfigError, match="no split 'outt': did you mean 'out'"):
        evaluate(subject, config(splits=["outt"]), run="r")


def test_prompts_without_a_reference_are_asked_whole_and_nothing_else_scores_them(tiny_model: Any, tiny_folder: Path) -> None:
    asking = [[{"role": "user", "content": "why?"}], [{"role": r, "content": r} for r in ("user", "assistant", "user")]]
    rows = [{"sample_id": sample_id(messages), "messages": messages, "split": "prompts"} for messages in asking]
    table = pa.concat_tables([heldout_table(6), pa.Table.from_pylist(rows)])
    given = Subject.of(tiny_model, tiny_folder, table, "cpu")
    both = EvaluationConfig(evaluators=["nll", {"name": "generate", "max_new_tokens": NEW}])
    found = evaluate(given, both, run="r")
    assert {row["split"] for row in found.table.to_pylist() if row["evaluator"] == "nll"} == {"in", "out"}
    answers = {row["sample_id"]: row for row in found.tables["responses"].to_pylist() if row["split"] == "prompts"}
    assert answers.keys() == {row["sample_id"] for row in rows}
    for row in rows:
        literal = naive(given.model, given.encoder.prompt(row["messages"]), given.encoder.end)
        assert answers[row["sample_id"]]["response"] == given.tokenizer.decode(literal, skip_special_tokens=True)
    alone = evaluate(given, config(splits=["prompts"]), run="r")
    assert set(alone.table["split"].to_pylist()) == {"prompts"} and len(alone.tables["responses"]) == 2


def test_what_is_asked_ends_where_the_answer_begins(encoder: ChatEncoder) -> None:
    messages = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))]
    assert asked(messages) == messages[:3]
    whole = encoder.encode(messages).input_ids.tolist()
    prompt = encoder.prompt(asked(messages)).tolist()
    assert whole[: len(prompt)] == prompt and len(whole) == len(prompt) + 2 and whole[-1] == encoder.end  # "d" is one token


@pytest.fixture(scope="module")
def encoder(tokenizer: Any) -> ChatEncoder:
    return ChatEncoder(tokenizer)


def test_an_answer_ends_at_the_first_token_that_ends_a_turn() -> None:
    assert answer_of([5, 6, 2, 7, 2], [2]).ids.tolist() == [5, 6] and answer_of([5, 6, 2, 7], [2]).finished
    assert answer_of([5, 6], [2, 3]).ids.tolist() == [5, 6] and not answer_of([5, 6], [2]).finished
    assert answer_of([3], [2, 3]).ids.tolist() == [] and answer_of([], [2]).ids.dtype == np.int32


def test_batches_hold_every_prompt_once_within_their_tokens() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 300).tolist()
    options = GenerateConfig(max_new_tokens=20, batch_tokens=1000)
    found = batches(lengths, options)
    assert sorted(place for batch in found for place in batch) == list(range(300))
    assert all(len(batch) * (max(lengths[p] for p in batch) + 20) <= 1000 for batch in found)
    assert len(batches([900, 900], GenerateConfig(max_new_tokens=200, batch_tokens=1000))) == 2  # a single prompt may exceed them


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.lists(st.integers(0, 3), max_size=7), min_size=1, max_size=7),
    groups=st.lists(st.integers(0, 3), min_size=7, max_size=7),
    size=st.integers(1, 3),
)
def test_distinct_is_the_literal_share_and_its_error_the_literal_jackknife(rows: list[list[int]], groups: list[int], size: int) -> None:
    groups = groups[: len(rows)]

    def share(kept: list[list[int]]) -> float:
        grams = [tuple(row[i : i + size]) for row in kept for i in range(len(row) - size + 1)]
        return len(set(grams)) / len(grams) if grams else float("nan")

    value, se = distinct([np.array(row, np.int32) for row in rows], np.array(groups), size)
    assert value == pytest.approx(share(rows), nan_ok=True)
    left = [share([row for row, g in zip(rows, groups) if g != out]) for out in sorted(set(groups))]
    left = [x for x in left if not math.isnan(x)]
    if len(left) > 1 and not math.isnan(value):
        literal = math.sqrt((len(left) - 1) / len(left) * sum((x - np.mean(left)) ** 2 for x in left))
        assert se == pytest.approx(literal, abs=1e-12)
    else:
        assert math.isnan(se)


def test_figures_of_hand_made_answers() -> None:
    answers = [
        Answer(np.array(ids, np.int32), done) for ids, done in [([1, 2, 3, 4, 1, 2, 3, 4], True), ([5, 6, 7, 8, 9], False), ([], True)]
    ]
    rows = {score.metric: score for score in figures("out", np.arange(3), answers)}
    assert rows["distinct_1"].value == 9 / 13 and rows["distinct_2"].value == 8 / 11
    assert rows["repetition"].value == pytest.approx((1 / 5 + 0) / 2) and rows["repetition"].n == 2
    assert rows["length"].value == pytest.approx(13 / 3) and rows["finished"].value == pytest.approx(2 / 3)
    assert not rows["repetition"].higher_is_better and rows["distinct_1"].higher_is_better
