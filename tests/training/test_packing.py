"""Packing moves samples about and changes nothing: not what a step holds, and not one logit."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from training.chat import NO_LABEL, ChatEncoder, Encoded
from training.packing import PADDING, assign, attention_mask, collate, model_inputs, plan_steps

MAX_LENGTH = 64
data = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 34)), min_size=1, max_size=40).map(
    lambda pairs: (np.array([prompt + answer for prompt, answer in pairs]), np.array([answer for _, answer in pairs]))
)


def plan(lengths: np.ndarray, response: np.ndarray, **changed: Any) -> list[Any]:
    arguments = {"budget_tokens": None, "epochs": 2, "tokens_per_step": 50, "max_length": MAX_LENGTH, "seed": 0, "world_size": 1}
    return plan_steps(lengths, response, **(arguments | changed))


@pytest.fixture(scope="module")
def encoded(tokenizer: Any) -> list[Encoded]:
    answers = [
        "Yes.",
        "It adds two numbers and returns their sum.",
        "Nothing at all, and that is the point of it: " + "really " * 20,
        "42",
        "A set.",
    ]
    conversations = [
        [{"role": "user", "content": f"What is it, {n}?"}, {"role": "assistant", "content": answer}] for n, answer in enumerate(answers)
    ]
    conversations[1] += [{"role": "user", "content": "And then?"}, {"role": "assistant", "content": "Then it ends."}]
    return ChatEncoder(tokenizer).encode_all(conversations)


@settings(deadline=None)
@given(data, st.floats(0.1, 3), st.integers(1, 200), st.integers(1, 5), st.integers(0, 3))
def test_epochs_see_every_sample_as_often(
    sizes: tuple[np.ndarray, np.ndarray], epochs: float, per_step: int, world_size: int, seed: int
) -> None:
    lengths, response = sizes
    steps = plan(lengths, response, epochs=epochs, tokens_per_step=per_step, world_size=world_size, seed=seed)
    counts = np.bincount([s for step in steps for s in step.samples], minlength=len(lengths))
    seen = math.ceil(epochs * len(lengths) - 1e-9)
    assert counts.sum() == seen and counts.max() - counts.min() <= 1 and steps[-1].epoch == seen / len(lengths)
    assert [step.number for step in steps] == list(range(len(steps)))
    for step in steps:
        assert step.response_tokens == response[list(step.samples)].sum() and step.tokens == lengths[list(step.samples)].sum()
        assert len(step.ranks) == world_size and len({len(rank) for rank in step.ranks}) == 1 and step.ranks[0]
        rows = [row for rank in step.ranks for row in rank]
        assert sorted(s for row in rows for s in row) == sorted(step.samples)
        assert all(lengths[list(row)].sum() <= MAX_LENGTH for row in rows)


@settings(deadline=None)
@given(data, st.integers(1, 2000), st.integers(35, 200), st.integers(1, 3))
def test_a_budget_fixes_the_steps_up_to_one_sample(
    sizes: tuple[np.ndarray, np.ndarray], budget: int, per_step: int, world_size: int
) -> None:
    lengths, response = sizes
    steps = plan(lengths, response, epochs=None, budget_tokens=budget, tokens_per_step=per_step, world_size=world_size)
    ends = np.cumsum([step.response_tokens for step in steps])
    assert budget <= ends[-1] < budget + response.max()
    assert len(steps) <= -(-budget // per_step)
    if response.max() <= budget // -(-budget // per_step):
        assert len(steps) == -(-budget // per_step)
        for number, end in enumerate(ends):
            target = (number + 1) * budget / len(steps)
            assert target <= end < target + response.max()


@settings(deadline=None)
@given(data, st.integers(1, 4), st.integers(0, 2))
def test_a_step_holds_the_same_samples_on_any_number_of_ranks(sizes: tuple[np.ndarray, np.ndarray], world_size: int, seed: int) -> None:
    one, many = (plan(*sizes, seed=seed, world_size=ranks) for ranks in (1, world_size))
    assert [step.samples for step in one] == [step.samples for step in many]
    assert plan(*sizes, seed=seed, world_size=world_size) == many


def test_common_samples_come_in_one_order_and_every_pass_has_its_own() -> None:
    keys = np.arange(100, 160, dtype=np.uint64)
    lengths, response = np.full(60, 8), np.full(60, 4)

    def stream(chosen: np.ndarray, seed: int = 0) -> list[int]:
        steps = plan(lengths[chosen], response[chosen], epochs=1, keys=keys[chosen], seed=seed)
        return [int(keys[chosen][s]) for step in steps for s in step.samples]

    half = np.arange(0, 60, 2)
    inside = set(keys[half].tolist())
    assert [key for key in stream(np.arange(60)) if key in inside] == stream(half) == stream(half[::-1])
    assert stream(half) != stream(half, seed=1)
    twice = [s for step in plan(lengths, response, epochs=2) for s in step.samples]
    assert sorted(twice[:60]) == sorted(twice[60:]) and twice[:60] != twice[60:]


@settings(deadline=None)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=60), st.integers(1, 6))
def test_rows_are_as_few_as_they_can_nearly_be_and_even(lengths: list[int], world_size: int) -> None:
    """First-fit decreasing needs at most 11/9 of the optimum + 6/9, and the optimum at least total / capacity."""
    array = np.array(lengths)
    ranks = assign(range(len(lengths)), array, 100, world_size)
    filled = sum(bool(row) for rank in ranks for row in rank)
    conflicting = int((array > 50).sum())
    assert filled >= max(math.ceil(array.sum() / 100), conflicting)
    alone = assign(range(len(lengths)), array, 100, 1)[0]
    assert len(ranks[0]) == -(-len(alone) // world_size)
    loads = sorted(array[list(row)].sum() for row in alone)
    assert all(a + b > 100 for a, b in pairwise(loads[-2:]) or []) or len(loads) < 2 or loads[0] + loads[1] > 100


def test_an_empty_micro_batch_where_a_rank_has_none(encoded: list[Encoded]) -> None:
    ranks = assign([3], np.array([9, 9, 9, 9]), 64, 3)
    assert ranks == (((3,),), ((),), ((),))
    empty = collate(encoded, ())
    assert empty.tokens == empty.response_tokens == 0 and (empty.labels == NO_LABEL).all() and empty.input_ids.shape == (1, 2)


def test_bad_arguments_are_named() -> None:
    lengths, response = np.array([8, 9]), np.array([4, 4])
    for changed, message in [
        ({"budget_tokens": 8}, "exactly one"),
        ({"epochs": None}, "exactly one"),
        ({"epochs": 0.0}, "epochs is above 0"),
        ({"max_length": 8}, "sample 1 has 9 tokens"),
        ({"row_tokens": 32}, "row_tokens is at least max_length"),
    ]:
        with pytest.raises(ValueError, match=message):
            plan(lengths, response, **changed)
    with pytest.raises(ValueError, match="sample 1 has no response token"):
        plan(lengths, np.array([4, 0]))


def test_a_row_keeps_samples_apart(encoded: list[Encoded]) -> None:
    batch = collate(encoded, (2, 0, 4), pad_to=16)
    length = batch.input_ids.shape[1]
    assert length % 16 == 0 and batch.tokens == sum(len(encoded[i]) for i in (2, 0, 4)) and batch.sample_indices == (2, 0, 4)
    assert batch.response_tokens == (batch.labels != NO_LABEL).sum() == sum(encoded[i].response_tokens for i in (2, 0, 4))
    for number, index in enumerate((2, 0, 4)):
        mine = batch.segment[0] == number
        assert (batch.input_ids[0, mine] == encoded[index].input_ids).all() and (batch.labels[0, mine] == encoded[index].labels).all()
        assert batch.position_ids[0, mine].tolist() == list(range(len(encoded[index])))
        assert batch.labels[0, mine][0] == NO_LABEL
    mask = attention_mask(batch)[0, 0].numpy()
    segment = batch.segment[0]
    for row in range(length):
        assert mask[row].tolist() == [segment[column] == segment[row] and column <= row for column in range(length)]
    assert (segment[batch.tokens :] == PADDING).all()


def test_a_label_on_a_first_token_is_refused(encoded: list[Encoded]) -> None:
    wrong = Encoded(encoded[0].input_ids, encoded[0].input_ids, len(encoded[0]))
    with pytest.raises(ValueError, match="first token has a label"):
        collate([wrong], (0,))


@pytest.mark.parametrize("attention", ["sdpa", "eager", "packed"])
def test_the_logits_of_each_packed_sample_are_those_of_the_sample_alone(encoded: list[Encoded], tiny_model: Any, attention: str) -> None:
    import torch

    from training.attention import use_packed_attention

    model = copy.deepcopy(tiny_model)
    if attention == "packed":
        assert use_packed_attention(model) == "packed"
    else:
        model.set_attn_implementation(attention)
    for part, pad_to in [((0, 1, 2, 3, 4), None), ((4, 2), 128)]:
        batch = collate(encoded, part, pad_to)
        with torch.no_grad():
            packed = model(**model_inputs(batch, model, "cpu"), use_cache=False).logits[0].numpy()
            for number, index in enumerate(part):
                alone = model(torch.from_numpy(encoded[index].input_ids.astype(np.int64))[None]).logits[0].numpy()
                mine = packed[batch.segment[0] == number]
                assert np.abs(mine - alone).max() < 3e-5 * np.abs(alone).max() and np.abs(alone).max() > 0.1
        assert np.isfinite(packed).all()


def test_without_the_mask_samples_would_leak(encoded: list[Encoded], tiny_model: Any) -> None:
    """The proof above can fail: one causal mask over the whole row gives other logits."""
    import torch

    batch = collate(encoded, (2, 1))
    inputs = model_inputs(batch, tiny_model, "cpu")
    with torch.no_grad():
        apart = tiny_model(**inputs, use_cache=False).logits
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"]).tril()
        leaking = tiny_model(**inputs, use_cache=False).logits
    assert (apart - leaking).abs().max() > 1e-2


@settings(deadline=None, max_examples=5)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=6), st.integers(1, 4))
def test_the_loss_of_a_step_does_not_depend_on_its_packing(
    encoded: list[Encoded], tiny_model: Any, samples: list[int], world_size: int
) -> None:
    import torch
    from torch.nn.functional import cross_entropy

    lengths = np.array([len(e) for e in encoded])
    assume(lengths.max() <= 96)

    def loss(rows: list[tuple[int, ...]]) -> float:
        total = 0.0
        for row in rows:
            batch = collate(encoded, row)
            with torch.no_grad():
                logits = tiny_model(**model_inputs(batch, tiny_model, "cpu"), use_cache=False).logits[0, :-1]
            total += cross_entropy(logits, torch.from_numpy(batch.labels[0, 1:]), reduction="sum").item()
        return total / sum(encoded[s].response_tokens for s in samples)

    packed = loss([row for rank in assign(samples, lengths, 96, world_size) for row in rank])
    assert packed == pytest.approx(loss([(s,) for s in samples]), rel=3e-6)
