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
from hypothesis import given
from hypothesis import strategies as st

from diversity.config import ConfigError, parse
from diversity.corpus.samples import sample_id
from diversity.effects.scores import SAMPLE_SCORES_SCHEMA, SCORES_SCHEMA
from diversity.typings.tokens import BandConfig, micro
from tests.training.chat_templates import TWO_ENDS
from training.chat import NO_LABEL, ChatEncoder, Encoded
from training.evaluators import EvaluationConfig, EvaluatorConfig, Scores, Subject, evaluate, mean_and_error
from training.evaluators.nll import NllConfig, NothingToScore, chosen, sample_nll
from training.evaluators.strata import METRICS, TrainedOn

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


def scored(model: Any, folder: Path, table: pa.Table, config: EvaluationConfig | None = None, **more: Any) -> Scores:
    return evaluate(Subject.of(model, folder, table, "cpu", **more), config or EvaluationConfig(), run="a run")


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
    packed = sample_nll(tiny_model, encoded, "cpu", row_tokens=row_tokens).means
    np.testing.assert_allclose(packed, [naive[sample.input_ids.tobytes()] for sample in encoded], rtol=3e-6)


def test_scores_are_macro_averages_with_their_standard_error(
    table: pa.Table, encoder: ChatEncoder, tiny_folder: Path, tiny_model: Any, naive: dict[bytes, float]
) -> None:
    found = scored(tiny_model, tiny_folder, table, EvaluationConfig(evaluators=["nll"]))
    scores, singles = found.table, found.samples
    assert singles.schema == SAMPLE_SCORES_SCHEMA
    assert (
        scores.schema == SCORES_SCHEMA and scores["split"].to_pylist() == ["in", "out"] and scores["primary"].to_pylist() == [False, True]
    )
    for row in scores.to_pylist():
        samples = [s for s in table.to_pylist() if s["split"] == row["split"]]
        encoded = [e for e in encoder.encode_all([s["messages"] for s in samples]) if e.response_tokens >= 20]
        values = [naive[sample.input_ids.tobytes()] for sample in encoded]
        assert 0 < len(values) < len(samples)
        assert row["value"] == pytest.approx(np.mean(values), rel=3e-6) and row["n"] == len(values)
        assert row["se"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)), rel=1e-3)
        assert (row["run"], row["evaluator"], row["metric"], row["higher_is_better"]) == ("a run", "nll", "nll", False)
        mine = {s["sample_id"]: s for s in singles.to_pylist() if s["split"] == row["split"]}
        assert np.mean([s["value"] for s in mine.values()]) == pytest.approx(row["value"])
        assert {s["sample_id"] for s in samples} > set(mine) and len({s["group"] for s in mine.values()}) == len(mine)
        tokens = {s["sample_id"]: e.response_tokens for s, e in zip(samples, encoder.encode_all([s["messages"] for s in samples]))}
        assert all(
            s["tokens"] == tokens[name]
            and s["value"]
            == pytest.approx(
                naive[encoder.encode(next(r for r in samples if r["sample_id"] == name)["messages"]).input_ids.tobytes()], rel=3e-6
            )
            for name, s in mine.items()
        )


def test_errors_count_prompt_groups_and_not_samples(table: pa.Table, tiny_folder: Path, tiny_model: Any) -> None:
    """Copies of every sample under the group of the first teach nothing: mean and error stay what they were."""
    config = EvaluationConfig(evaluators=[{"name": "nll", "min_response_tokens": 5}])
    once = table.append_column("group", table["sample_id"])
    copies = once.set_column(0, "sample_id", pa.array([f"{i:016x}{i:016x}" for i in range(len(once))]))
    single = scored(tiny_model, tiny_folder, once, config).table.to_pylist()
    twice = scored(tiny_model, tiny_folder, pa.concat_tables([once, copies]), config).table.to_pylist()
    assert [row["n"] for row in twice] == [2 * row["n"] for row in single]
    for one, two in zip(single, twice, strict=True):
        assert two["value"] == pytest.approx(one["value"]) and two["se"] == pytest.approx(one["se"])
    bare = scored(tiny_model, tiny_folder, table, config).table.to_pylist()
    assert [(row["value"], row["se"]) for row in bare] == [(row["value"], row["se"]) for row in single]


@given(
    values=st.lists(st.floats(-3, 3), min_size=2, max_size=30),
    groups=st.data(),
)
def test_the_error_by_groups_is_the_literal_one(values: list[float], groups: Any) -> None:
    numbers = groups.draw(st.lists(st.integers(0, 5), min_size=len(values), max_size=len(values)))
    mean, se = mean_and_error(np.array(values), np.array(numbers))
    sums = {g: sum(v - mean for v, own in zip(values, numbers) if own == g) for g in set(numbers)}
    assert mean == pytest.approx(np.mean(values))
    if len(sums) == 1:
        assert math.isnan(se)
    else:
        literal = math.sqrt(len(sums) / (len(sums) - 1) * sum(s * s for s in sums.values())) / len(values)
        assert se == pytest.approx(literal, abs=1e-12)
    if len(set(numbers)) == len(values):
        assert se == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)), abs=1e-12)


def test_strata_are_the_naive_means_over_their_tokens(table: pa.Table, encoder: ChatEncoder, tiny_folder: Path, tiny_model: Any) -> None:
    """Every token of every response is looked up by itself: its frequency in a made-up corpus, and whether the dataset has it."""
    import torch

    responses = ["the list of the file", "the set of a class when given", "the number", "a value is the list from the string", "the 7"] * 3
    ids = [sample_id([{"role": "user", "content": str(i)}, {"role": "assistant", "content": text}]) for i, text in enumerate(responses)]
    corpus = pa.table({"sample_id": ids, "response": responses}).sort_by("sample_id")
    band = BandConfig(low=3, high=5)
    typed = micro(corpus, "response-micro", folder=tiny_folder, band=band)
    dataset = pa.table({"messages": [[{"role": "user", "content": "q"}, {"role": "assistant", "content": text}] for text in responses[:2]]})
    trained_on = TrainedOn(dataset, typed.extra["vocabulary"], 3, 5, max_length=64)
    found = scored(tiny_model, tiny_folder, table, trained_on=trained_on).table.to_pylist()

    tokens = {text: encoder.encode([{"role": "user", "content": ""}, {"role": "assistant", "content": text}]) for text in responses}
    learnt = {text: set(one.labels[one.labels != NO_LABEL].tolist()[:-1]) for text, one in tokens.items()}
    end = int(tokens["the 7"].labels[-1])
    df = lambda token: sum(token in learnt[text] for text in responses)  # noqa: E731
    seen = learnt[responses[0]] | learnt[responses[1]]
    kinds = {
        "nll_high": lambda t: df(t) > 5,
        "nll_mid": lambda t: 3 <= df(t) <= 5,
        "nll_low": lambda t: df(t) < 3,
        "nll_seen": lambda t: t in seen,
        "nll_unseen": lambda t: t not in seen,
        "nll_mid_seen": lambda t: 3 <= df(t) <= 5 and t in seen,
        "nll_mid_unseen": lambda t: 3 <= df(t) <= 5 and t not in seen,
    }
    assert set(kinds) == set(METRICS)
    for split in ("in", "out"):
        literal: dict[str, list[float]] = {kind: [] for kind in kinds}
        shares: list[float] = []
        for row in table.to_pylist():
            sample = encoder.encode(row["messages"])
            if row["split"] != split or sample.response_tokens < 20:
                continue
            with torch.no_grad():
                logits = tiny_model(torch.from_numpy(sample.input_ids.astype(np.int64))[None]).logits[0].log_softmax(-1)
            losses = [(int(t), -float(logits[i - 1, t])) for i, t in enumerate(sample.labels.tolist()) if t != NO_LABEL]
            shares.append(np.mean([token in seen for token, _ in losses if token != end]))
            for kind, holds in kinds.items():
                mine = [loss for token, loss in losses if token != end and holds(token)]
                literal[kind] += [np.mean(mine)] if mine else []
        rows = {row["metric"]: row for row in found if row["split"] == split}
        assert set(rows) == {"nll", "seen_share", *(kind for kind, values in literal.items() if values)}
        assert rows["seen_share"]["value"] == pytest.approx(np.mean(shares)) and 0 < rows["seen_share"]["value"] < 1
        assert {"nll_high", "nll_mid", "nll_low", "nll_mid_seen", "nll_mid_unseen"} < set(rows)
        for kind, values in literal.items():
            assert rows[kind]["value"] == pytest.approx(np.mean(values), rel=3e-6) and rows[kind]["n"] == len(values)
    plain = scored(tiny_model, tiny_folder, table).table.to_pylist()
    assert [row for row in found if row["metric"] == "nll"] == plain  # not a bit of the primary figure depends on strata
    off = EvaluationConfig(evaluators=[{"name": "nll", "strata": False}])
    assert scored(tiny_model, tiny_folder, table, off, trained_on=trained_on).table.to_pylist() == plain and not off.by_kind_of_token


def test_a_vocabulary_of_another_tokenizer_is_refused(tiny_folder: Path, encoder: ChatEncoder) -> None:
    dataset = pa.table({"messages": [[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]]})
    vocabulary = pa.table({"content": pa.array(["the whole sentence"], pa.binary()), "df": [3]})
    with pytest.raises(ValueError, match="the whole sentence"):
        TrainedOn(dataset, vocabulary, 1, 2, max_length=64).strata(encoder)


def test_special_tokens_are_no_types_wherever_their_ids_lie(tokenizer: Any) -> None:
    """Behind the token that ends a turn, one that opens it is learnt, too, as gpt-oss has them."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    changed = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
    changed.add_special_tokens({"additional_special_tokens": ["<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>"]})
    changed.eos_token, changed.chat_template = "<|return|>", TWO_ENDS
    encoder = ChatEncoder(changed)
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "the value"}]
    labels = encoder.encode(messages).labels
    assert labels.max() == changed.convert_tokens_to_ids("<|channel|>") > encoder.end
    vocabulary = pa.table({"content": pa.array([b"the"], pa.binary()), "df": [3]})
    codes = TrainedOn(pa.table({"messages": [messages]}), vocabulary, 1, 9, max_length=64).strata(encoder).codes
    assert len(codes) > labels.max() and not codes[sorted(encoder.special_ids)].any()
    assert codes[labels[(labels != NO_LABEL)]].tolist().count(0) == 3, "channel, message and return"


def test_what_a_model_has_no_positions_for_is_cut(gpt2_folder: Path) -> None:
    """A table of 64 positions, held-out samples of more."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(gpt2_folder)
    subject = Subject.of(model, gpt2_folder, heldout_table(), "cpu")
    lengths = [len(one) for one in subject.encoder.encode_all(heldout_table()["messages"].to_pylist())]
    assert max(lengths) > 64
    found, short = (
        evaluate(subject, EvaluationConfig(evaluators=[{"name": "nll", "max_length": most}]), run="a run") for most in (2048, 64)
    )
    assert found.table == short.table and found.samples == short.samples


def test_ranks_share_the_rows_and_add_up(table: pa.Table, encoder: ChatEncoder, tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank's part is what it would add to the sum; the parts of all ranks make the whole."""
    import torch

    encoded = encoder.encode_all(table["messages"].to_pylist())[:5]
    whole = sample_nll(tiny_model, encoded, "cpu").means
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda sums: None)
    for ranks in (4, 7):  # the last two have nothing
        parts = [sample_nll(tiny_model, encoded, "cpu", row_tokens=200, rank=rank, world_size=ranks).means for rank in range(ranks)]
        assert np.abs(sum(parts) - whole).max() < 3e-6 * whole.max() and all((part > 0).sum() < len(encoded) for part in parts)


def test_every_run_scores_the_same_samples_in_any_order_of_rows(table: pa.Table, encoder: ChatEncoder) -> None:
    config = NllConfig(max_samples=3, max_response_tokens=12, max_length=60)
    ids = lambda rows, places: rows["sample_id"].take(pa.array(places)).to_pylist()  # noqa: E731
    places, encoded = chosen(table, "in", encoder, config)
    reversed_table = table.take(pa.array(range(len(table)))[::-1])
    backwards, again = chosen(reversed_table, "in", encoder, config)
    assert ids(table, places) == ids(reversed_table, backwards) and len(places) == 3
    assert [e.input_ids.tolist() for e in encoded] == [e.input_ids.tolist() for e in again]
    assert {e.response_tokens for e in encoded} == {12} and max(map(len, encoded)) <= 60
    more, _ = chosen(table, "in", encoder, NllConfig(max_samples=5, max_response_tokens=12, max_length=60))
    assert more[:3].tolist() == places.tolist() and len(more) == 5
    everything, all_encoded = chosen(table, "in", encoder, NllConfig())
    assert min(e.response_tokens for e in all_encoded) >= 20 and set(places) <= set(everything) and len(everything) < len(table)


def test_what_cannot_be_scored_is_said(table: pa.Table, encoder: ChatEncoder) -> None:
    with pytest.raises(NothingToScore, match="of split out has a response of 500 tokens"):
        chosen(table, "out", encoder, NllConfig(min_response_tokens=500))


def test_nothing_is_primary_without_out_or_below_20_tokens(table: pa.Table, tiny_folder: Path, tiny_model: Any) -> None:
    short = EvaluationConfig(evaluators=[{"name": "nll", "min_response_tokens": 5, "max_samples": 3}])
    scores = scored(tiny_model, tiny_folder, table, short).table
    assert scores["primary"].to_pylist() == [False, False] and scores["n"].to_pylist() == [3, 3]
    inside = table.filter(pa.compute.equal(table["split"], "in"))
    scores = scored(tiny_model, tiny_folder, inside).table
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
    scores = scored(model, smollm_folder, pa.Table.from_pylist(rows)).table
    sense, nonsense = scores["value"].to_pylist()
    assert sense < 2 and nonsense > sense + 2 and all(math.isnan(se) for se in scores["se"].to_pylist())
