"""A notebook chooses without Ray, and what it chooses is what was asked for."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from tokenizers import Tokenizer

from diversity.config import ConfigError, UserError
from diversity.notebook import choose, profile, read, typed
from diversity.selection.strategies import SelectionConfig
from diversity.typings.tokens import BandConfig

RNG = np.random.default_rng(0)
WORDS = np.array([f"word{i}" for i in range(9000)])
WEIGHTS = 1 / np.arange(1, 9001)
ROWS = [
    {"instruction": f"say {i}", "response": " ".join(RNG.choice(WORDS, size=RNG.integers(3, 30), p=WEIGHTS / WEIGHTS.sum()))}
    for i in range(3000)
]


def words_of(table: pa.Table) -> set[str]:
    return {word for text in table.column("response").to_pylist() for word in text.split()}


def test_levels_cover_more_and_more_words_at_one_size() -> None:
    tables = [choose(ROWS, 200, level=level) for level in (0, "1/2", 1)]
    assert [len(table) for table in tables] == [200, 200, 200]
    assert [len(set(table.column("sample_id").to_pylist())) for table in tables] == [200] * 3
    kinds = set(typed(read(ROWS), "response-micro@word").types.column("label").to_pylist())
    covered = [len(words_of(table) & kinds) for table in tables]
    assert covered[0] < covered[1] < covered[2] <= len(kinds)


def test_a_frame_a_table_and_a_list_give_the_same_dataset() -> None:
    expected = choose(ROWS, 100)
    assert choose(pd.DataFrame(ROWS[::-1]), 100).equals(expected)
    assert choose(pa.Table.from_pylist(ROWS), 100).equals(expected)


def test_seeds_change_the_samples_and_few_of_the_words() -> None:
    first, second = choose(ROWS, 300, seed=0, level=0.5), choose(ROWS, 300, seed=1, level=0.5)
    assert not first.equals(second)
    kinds = set(typed(read(ROWS), "response-micro@word").types.column("label").to_pylist())
    common, either = words_of(first) & words_of(second) & kinds, (words_of(first) | words_of(second)) & kinds
    assert len(common) > 0.8 * len(either)


def test_typed_once_gives_what_typing_each_time_gives() -> None:
    profiled = profile(ROWS, "response-micro@word")
    for level, selection in itertools.product((0, 0.5), (SelectionConfig(), SelectionConfig(rho=2))):
        assert profiled.choose(150, level, selection=selection).equals(choose(ROWS, 150, level=level, selection=selection))


def test_longest_counts_the_models_tokens(tokenizer_folder: Path) -> None:
    chosen = choose(ROWS, 100, "longest", model=tokenizer_folder)
    tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    lengths = {row["response"]: len(tokenizer.encode(row["response"], add_special_tokens=False)) for row in ROWS}
    kept = [lengths[text] for text in chosen.column("response").to_pylist()]
    assert min(kept) >= sorted(lengths.values())[-100]
    with pytest.raises(ConfigError, match="give model="):
        choose(ROWS, 100, "longest")


def test_what_cannot_be_had_is_said() -> None:
    with pytest.raises(ConfigError, match="row 1"):
        read([ROWS[0], {"instruction": "x", "response": " "}])
    with pytest.raises(UserError, match="largest"):
        choose(ROWS, 100_000)
    assert BandConfig(scaled=True).limits(3000)[0] == 3


@pytest.mark.parametrize(
    ("level", "says"), [(2, "from 0 to 1"), ("abc", "Invalid literal for Fraction"), ("1/0", "denominator"), (float("nan"), "Fraction")]
)
def test_a_level_that_is_none_is_told_in_a_line(level: float | str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"^levels: .*{says}"):
        choose(ROWS[:100], 10, level=level)


@pytest.mark.parametrize("n", [50, 300])
def test_small_tables_have_every_level(n: int) -> None:
    for level in (0, 0.5, 1):
        assert len(choose(ROWS[:n], n // 3, level=level)) == n // 3
    kinds = set(typed(read(ROWS[:n]), "response-micro@word").types.column("label").to_pylist())
    covered = [len(words_of(choose(ROWS[:n], n // 3, level=level)) & kinds) for level in (0, 1)]
    at_random = np.mean([len(words_of(choose(ROWS[:n], n // 3, "random", seed=seed)) & kinds) for seed in range(5)])
    assert covered[0] < at_random < covered[1] <= len(kinds)


def test_a_size_below_one_or_a_seed_below_zero_is_refused_in_a_line() -> None:
    with pytest.raises(ConfigError, match=r"^size 0: a dataset has 1 sample or more$"):
        choose([{"instruction": f"a {i}", "output": "b c"} for i in range(30)], size=0, strategy="random")
    with pytest.raises(ConfigError, match=r"^seed -1: a subset seed is from 0"):
        choose([{"instruction": f"a {i}", "output": "b c"} for i in range(30)], size=1, strategy="random", seed=-1)
