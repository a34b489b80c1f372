"""Evaluation prompts in a corpus: what is found equals a search by hand, in any pieces, and every sample taken out is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.config import ConfigError, parse
from diversity.corpus import contamination
from diversity.corpus.config import CorpusConfig
from diversity.corpus.contamination import Prompts, screen, tally
from diversity.corpus.heldout import OutConfig
from diversity.corpus.inputs import read_corpus
from diversity.corpus.prompts import NoPrompt
from diversity.corpus.samples import samples_table, to_sample
from diversity.corpus.text_match import gram_texts, normalise


def table(*pairs: tuple[str, str]) -> pa.Table:
    found = [to_sample({"prompt": asked, "completion": answered}, default_source=f"s{i % 3}") for i, (asked, answered) in enumerate(pairs)]
    return samples_table(found)


def normal(text: str) -> str:
    return normalise(pa.array([text]))[0].as_py()


def grams(text: str) -> set[tuple[str, ...]]:
    words = gram_texts(pa.array([text]))[0].as_py().split()
    return {tuple(words[i : i + 13]) for i in range(len(words) - 12)}


def naive(row: dict[str, str], prompts: list[str]) -> tuple[bool, float]:
    """Return (whether the instruction is a prompt, the largest share of a prompt's n-grams in the row)."""
    held = grams(row["instruction"]) | grams(row["response"])
    shares = [len(grams(prompt) & held) / len(grams(prompt)) for prompt in prompts if grams(prompt)]
    return normal(row["instruction"]) in {normal(prompt) for prompt in prompts}, max(shares, default=0.0)


WORDS = st.lists(st.sampled_from(["a", "b", "c", "雪", "Ü", "x-y", "!"]), min_size=1, max_size=4).map(" ".join)
LONG = st.integers(0, 30).flatmap(
    lambda n: st.integers(0, 20).map(lambda first: " ".join(f"w{i % 23}" for i in range(first, first + n)) or ".")
)
TEXTS = st.one_of(WORDS, LONG)


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8),
    st.lists(TEXTS, max_size=6),
    st.sampled_from([0.1, 0.5, 1.0]),
    st.integers(1, 3),
)
def test_screening_equals_the_search_by_hand(pairs: list[tuple[str, str]], prompts: list[str], overlap: float, at_once: int) -> None:
    samples = table(*pairs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contamination, "ROWS_AT_ONCE", at_once)
        kept, report = screen(samples, Prompts.of(prompts, overlap, remove=True))
    expected = {}
    for row in samples.to_pylist():
        exact, share = naive(row, prompts)
        if exact or share >= overlap:
            expected[row["sample_id"]] = (exact, pytest.approx(share))
    assert {row["sample_id"]: (row["exact"], row["overlap"]) for row in report.to_pylist()} == expected
    assert kept["sample_id"].to_pylist() == [key for key in samples["sample_id"].to_pylist() if key not in expected]


def test_by_example() -> None:
    long = " ".join(f"word{i}" for i in range(40))
    samples = table(
        ("Name a  PRIMARY colour!", "red"),
        ("Continue", f"Sure: {long.upper()} and so on"),
        ("Continue", " ".join(long.split()[:20])),
        ("What is a primary colour?", "one of three"),
    )
    prompts = Prompts.of(["name a primary colour", "Name a primary colour.", long])
    assert prompts.texts == ["Name a primary colour.", long]  # equal ones are one prompt
    kept, report = screen(samples, prompts)
    assert kept.equals(samples)
    assert [(row["exact"], row["overlap"], row["prompt"]) for row in report.to_pylist()] == [
        (True, 0.0, "Name a primary colour."),
        (False, 1.0, long),
    ]
    assert tally(report, prompts) == {
        "prompts": 2, "prompts_met": 2, "samples": 2, "exact": 1, "overlapping": 1, "removed": False, "sources": {"s0": 1, "s1": 1},
    }  # fmt: skip
    assert len(screen(samples, Prompts.of([long], overlap=8 / 28))[1]) == 2  # 8 of its 28 n-grams


def test_a_corpus_read_in_one_process_is_screened_and_adds_up(tmp_path: Path) -> None:
    rows = [{"instruction": f"Ask {i % 30}", "output": "yes"} for i in range(60)] + [{"instruction": ""}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps({"q": f"ask: {i}?"}) + "\n" for i in (3, 5, 99)))
    check = {"paths": [str(tmp_path / "eval.jsonl")], "column": "q"}
    for remove, limit in ((False, None), (True, None), (True, 10)):
        config = CorpusConfig(paths=[str(tmp_path / "rows.jsonl")], limit=limit, contamination={**check, "remove": remove})
        samples, _, counts = read_corpus(config)
        figures = counts.manifest()
        assert figures["contamination"]["samples"] == 2 and figures["contamination"]["prompts"] == 3
        assert figures["removed"] == 2 * remove and len(samples) == figures["samples"] == (limit or 30 - 2 * remove)
        assert figures["rows_read"] == sum(figures[name] for name in ("samples", "duplicates", "rejected", "removed", "beyond_limit"))
        assert ("Ask 3" in samples["instruction"].to_pylist()) == (not remove)


def test_evaluation_files_that_hold_no_prompt_are_named(tmp_path: Path) -> None:
    path = tmp_path / "eval.jsonl"
    path.write_text('{"prompt": "fine"}\n{"question": "?"}\n')
    with pytest.raises(NoPrompt, match=r"eval\.jsonl: row 1 has no prompt in 'prompt'"):
        Prompts.read(contamination.ContaminationConfig(paths=[str(path)]))
    with pytest.raises(ConfigError, match="say which files hold the evaluation prompts"):
        parse(CorpusConfig, {"contamination": {"paths": []}})
    with pytest.raises(ConfigError, match="corpus.contamination"):
        parse(OutConfig, {"paths": ["x"], "contamination": {"paths": ["y"]}})


def test_real_prompts_in_the_real_corpus(real_data: Path) -> None:
    prompts = Prompts.read(contamination.ContaminationConfig(paths=[str(real_data / "eval_prompts.jsonl.gz")]))
    samples = read_corpus(CorpusConfig(paths=[str(real_data / "heldout.parquet")]))[0]
    kept, report = screen(samples, prompts)
    assert len(kept) == len(samples) and len(prompts.texts) == 2_383
    rows = {row["sample_id"]: row for row in report.to_pylist()}
    longest = {prompt: grams(prompt) for prompt in {row["prompt"] for row in rows.values()}}
    for row in samples.to_pylist():
        if row["sample_id"] in rows:
            told = rows[row["sample_id"]]
            held = grams(row["instruction"]) | grams(row["response"])
            assert told["exact"] == (normal(row["instruction"]) == normal(told["prompt"]))
            if told["overlap"] and not told["exact"]:
                assert told["overlap"] == pytest.approx(len(longest[told["prompt"]] & held) / len(longest[told["prompt"]]))
