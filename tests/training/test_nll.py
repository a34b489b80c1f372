"""Scores equal those of one sample at a time, and every run is scored on the same samples."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from diversity.config import ConfigError, parse
from diversity.samples import sample_id
from training.chat import NO_LABEL, ChatEncoder, Encoded
from training.evaluators import SCORES_SCHEMA, EvaluationConfig, EvaluatorConfig, evaluate, evaluate_samples
from training.evaluators.nll import NllConfig, NothingToScore, chosen, sample_nll

WORDS = ["the", "of", "set", "returns", "number", "value", "list", "when", "string", "given", "file", "class", "from", "name", "is", "a"]


def heldout_table(n: int = 20) -> pa.Table:
    """Return held-out samples of both splits with answers of many lengths, some of two turns."""
    random = np.random.default_rng(0)

    def text(words: int) -> str:
        return " ".join(random.choice(WORDS, words))

    rows = []
    for number in range(n):
        messages = [
            {"role": "user", "content": text(random.integers(2, 12))},
            {"role": "assistant", "content": text(random.integers(4, 60) if number % 4 > 1 else 12)},
        ]
        if number % 5 == 0:
            messages += [{"role": "user", "content": "and?"}, {"role": "assistant", "content": text(8)}]
        rows.append({"sample_id": sample_id(messages), "messages": messages, "split": ("in", "out")[number % 2]})
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["sample_id"]))


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return heldout_table()


@pytest.fixture(scope="module")
def encoder(tokenizer: Any) -> ChatEncoder:
    return ChatEncoder(tokenizer)


@pytest.fixture(scope="module")
def naive(table: pa.Table, encoder: ChatEncoder, tiny_model: Any) -> dict[bytes, float]:
    """Return the naive figure of every sample by its tokens."""
    encoded = encoder.encode_all(table["messages"].to_pylist())
    return {sample.input_ids.tobytes(): naive_nll(tiny_model, sample) for sample in encoded}


def naive_nll(model: Any, sample: Encoded) -> float:
    """Return the mean NLL of one sample, read alone, token by token."""
    import torch

    with torch.no_grad():
        logits = model(torch.from_numpy(sample.input_ids.astype(np.int64))[None]).logits[0].log_softmax(-1)
    losses = [-float(logits[place - 1, label]) for place, label in enumerate(sample.labels.tolist()) if label != NO_LABEL]
    assert len(losses) == sample.response_tokens
    return sum(losses) / len(losses)


@pytest.mark.parametrize("row_tokens", [None, 64])
def test_packed_scores_equal_one_sample_at_a_time(
    table: pa.Table, encoder: ChatEncoder, tiny_model: Any, naive: dict[bytes, float], row_tokens: int | None
) -> None:
    encoded = encoder.encode_all(table["messages"].to_pylist())
    packed = sample_nll(tiny_model, encoded, "cpu", row_tokens=row_tokens)
    assert np.abs(packed - [naive[sample.input_ids.tobytes()] for sample in encoded]).max() < 1e-5


def test_scores_are_macro_averages_with_their_standard_error(
    table: pa.Table, encoder: ChatEncoder, tiny_folder: Path, tiny_model: Any, naive: dict[bytes, float]
) -> None:
    config = EvaluationConfig(evaluators=["nll"])
    scores, singles = evaluate_samples(tiny_model, tiny_folder, table, config, "cpu", run="a run")
    assert (
        scores.schema == SCORES_SCHEMA and scores["split"].to_pylist() == ["in", "out"] and scores["primary"].to_pylist() == [False, True]
    )
    for row in scores.to_pylist():
        samples = [s for s in table.to_pylist() if s["split"] == row["split"]]
        encoded = [e for e in encoder.encode_all([s["messages"] for s in samples]) if e.response_tokens >= 20]
        values = [naive[sample.input_ids.tobytes()] for sample in encoded]
        assert 0 < len(values) < len(samples)
        assert row["value"] == pytest.approx(np.mean(values), abs=1e-5) and row["n"] == len(values)
        assert row["se"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)), abs=1e-5)
        assert (row["run"], row["evaluator"], row["metric"], row["higher_is_better"]) == ("a run", "nll", "nll", False)
        mine = [s["value"] for s in singles.to_pylist() if s["split"] == row["split"]]
        assert np.mean(mine) == pytest.approx(row["value"])


def test_ranks_share_the_rows_and_add_up(table: pa.Table, encoder: ChatEncoder, tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank's part is what it would add to the sum; the parts of all ranks make the whole."""
    import torch

    encoded = encoder.encode_all(table["messages"].to_pylist())[:5]
    whole = sample_nll(tiny_model, encoded, "cpu")
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums: None)
    parts = [sample_nll(tiny_model, encoded, "cpu", row_tokens=200, rank=rank, world_size=4) for rank in range(4)]
    assert np.abs(sum(parts) - whole).max() < 1e-5 and all((part > 0).sum() < len(encoded) for part in parts)


def test_every_run_scores_the_same_samples_in_any_order_of_rows(table: pa.Table, encoder: ChatEncoder) -> None:
    config = NllConfig(max_samples=3, max_response_tokens=12, max_length=60)
    ids, encoded = chosen(table, "in", encoder, config)
    backwards, again = chosen(table.take(pa.array(range(len(table)))[::-1]), "in", encoder, config)
    assert ids == backwards and len(ids) == 3 and [e.input_ids.tolist() for e in encoded] == [e.input_ids.tolist() for e in again]
    assert {e.response_tokens for e in encoded} == {12} and max(map(len, encoded)) <= 60
    more, _ = chosen(table, "in", encoder, NllConfig(max_samples=5, max_response_tokens=12, max_length=60))
    assert more[:3] == ids and len(more) == 5
    everything, all_encoded = chosen(table, "in", encoder, NllConfig())
    assert min(e.response_tokens for e in all_encoded) >= 20 and set(ids) <= set(everything) and len(everything) < len(table)


def test_what_cannot_be_scored_is_said(table: pa.Table, encoder: ChatEncoder) -> None:
    with pytest.raises(NothingToScore, match="of split out has a response of 500 tokens"):
        chosen(table, "out", encoder, NllConfig(min_response_tokens=500))


def test_nothing_is_primary_without_out_or_below_20_tokens(table: pa.Table, tiny_folder: Path, tiny_model: Any) -> None:
    short = EvaluationConfig(evaluators=[{"name": "nll", "min_response_tokens": 5, "max_samples": 3}])
    scores = evaluate(tiny_model, tiny_folder, table, short, "cpu", run="r")
    assert scores["primary"].to_pylist() == [False, False] and scores["n"].to_pylist() == [3, 3]
    inside = table.filter(pa.compute.equal(table["split"], "in"))
    scores = evaluate(tiny_model, tiny_folder, inside, EvaluationConfig(), "cpu", run="r")
    assert scores["split"].to_pylist() == ["in"] and scores["primary"].to_pylist() == [False]


def test_options_are_checked_when_the_configuration_is_read() -> None:
    config = parse(EvaluationConfig, {"heldout": None, "evaluators": ["nll"]})
    assert config.evaluators == [EvaluatorConfig(name="nll")] and config.heldout is None
    flat = parse(EvaluationConfig, {"evaluators": [{"name": "nll", "max_samples": 64}]})
    assert flat.evaluators[0].parsed() == NllConfig(max_samples=64) and parse(EvaluationConfig, flat.model_dump(by_alias=True)) == flat
    assert flat.identity() != config.identity() and config.identity() == EvaluationConfig().identity()
    assert EvaluationConfig().heldout is not None
    for evaluators, message in [
        (["nil"], "did you mean 'nll'"),
        ([{"name": "nll", "max_sample": 3}], "did you mean 'max_samples'"),
        ([{"name": "nll", "max_samples": 0}], "max_samples"),
        (["nll", {"name": "nll"}], "each evaluator once"),
        ([], "at least 1"),
    ]:
        with pytest.raises(ConfigError, match=message):
            parse(EvaluationConfig, {"evaluators": evaluators})


def test_the_configuration_needs_no_torch() -> None:
    code = "import sys; from training.evaluators import EvaluationConfig; EvaluationConfig().identity(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_real_model_finds_english_less_surprising_than_shuffled_words(smollm_folder: Path) -> None:
    """A wrong weight, a wrong order of rows or a lost digit split would show here: sense is far below ln(49152) = 10.8 nats."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm_folder, dtype=torch.float32).eval()
    answer = "The capital of France is Paris. It lies on the river Seine and has about 2 million inhabitants."
    shuffled = " ".join(np.random.default_rng(0).permutation(answer.split()).tolist())
    rows = []
    for text in (answer, shuffled):
        messages = [{"role": "user", "content": "What is the capital of France?"}, {"role": "assistant", "content": text}]
        rows.append({"sample_id": sample_id(messages), "messages": messages, "split": "in" if text is answer else "out"})
    scores = evaluate(model, smollm_folder, pa.Table.from_pylist(rows), EvaluationConfig(), "cpu", run="r")
    sense, nonsense = scores["value"].to_pylist()
    assert sense < 2 and nonsense > sense + 2 and all(math.isnan(se) for se in scores["se"].to_pylist())
