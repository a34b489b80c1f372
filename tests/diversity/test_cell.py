"""Cells: exact fractions, names for people, and a grid that refuses what makes no sense."""

from __future__ import annotations

from fractions import Fraction

import pytest

from diversity.cell import FULL, TYPINGS, Cell, GridConfig, expand, is_typing, trained, typing_parts
from diversity.config import ConfigError, parse

DIALS = {"random": False, "longest": False, "deita": True}


def test_seven_levels_are_sixths_and_their_labels_the_papers() -> None:
    cells = expand(GridConfig(strategies=["response-micro"], sizes=[10000], levels=7), DIALS)
    assert [cell.level for cell in cells] == [Fraction(j, 6) for j in range(7)]
    assert [cell.name.split("_")[2] for cell in cells] == ["l000", "l016", "l033", "l050", "l066", "l083", "l100"]


def test_names() -> None:
    assert Cell("response-micro", 10000, Fraction(1, 2)).name == "response-micro_n10000_l050_s0"
    assert Cell("random", 10, None, 3, "tokens").name == "random_n10_s3_tokens"


def test_written_fractions_are_exact() -> None:
    grid = parse(GridConfig, {"levels": [0, 0.1, "1/3", 1], "strategies": ["response-meso"]})
    assert grid.fractions == [0, Fraction(1, 10), Fraction(1, 3), 1]


def test_the_full_grid_of_the_paper_has_126_cells() -> None:
    cells = expand(GridConfig(strategies=list(TYPINGS), sizes=[10000, 20000, 30000]), DIALS)
    assert len(cells) == 126 == len({cell.name for cell in cells})


def test_a_strategy_without_a_dial_is_one_cell_per_size_and_seed() -> None:
    cells = expand(GridConfig(strategies=["random"], sizes=[5, 6], subset_seeds=[0, 1]), DIALS)
    assert [cell.name for cell in cells] == ["random_n5_s0", "random_n5_s1", "random_n6_s0", "random_n6_s1"]
    assert cells[0].describe()["level"] is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"levels": 1}, "at least 2"),
        ({"levels": [1.5]}, "from 0 to 1"),
        ({"levels": ["1/0"]}, "levels: a fraction has a denominator other than 0"),
        ({"train": []}, "train: List should have at least 1 item"),
        ({"sizes": [0]}, "at least 1"),
        ({"controls": ["lenght-quota"]}, "did you mean 'length-quota'"),
        ({"length_window": [300, 200]}, "a length window"),
        ({"subset_seeds": [-1]}, "subset_seeds.0: Input should be greater than or equal to 0"),
        ({"subset_seeds": [0, 2**63]}, "subset_seeds.1: Input should be less than"),
        ({"level": 7}, "level: unknown key: did you mean 'levels'"),
    ],
)
def test_bad_grids_say_what_is_allowed(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(GridConfig, values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strategies": ["respons-micro"]}, "did you mean .*response-micro"),
        ({"strategies": ["response-macro@word"]}, "unknown strategy"),
        ({"strategies": ["response-micro"], "levels": ["1/2", 0.501]}, "two cells are named"),
        ({"strategies": ["response-micro"], "level_seeds": "own", "subset_seeds": [2**63 - 1]}, "seeds of 2.*63 or more"),
    ],
)
def test_senseless_cells_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expand(parse(GridConfig, values), DIALS)


def test_training_patterns() -> None:
    cells = expand(GridConfig(strategies=["response-micro", "random"], sizes=[10], levels=3), DIALS)
    assert trained(cells, None) == cells
    assert [cell.name for cell in trained(cells, ["random*", "*_l050_*"])] == ["response-micro_n10_l050_s0", "random_n10_s0"]
    with pytest.raises(ConfigError, match="names no cell"):
        trained(cells, ["response-micro_n10_l051_s0"])


def test_typings() -> None:
    assert typing_parts("response-micro@o200k_base") == ("response", "micro", "o200k_base")
    assert is_typing("instruction-macro") and not is_typing("instruction-macro@x") and not is_typing("response-micro@")


def test_the_whole_corpus_is_one_cell_on_request_whatever_the_axes() -> None:
    axes = {"strategies": ["random"], "sizes": [10, 20], "subset_seeds": [0, 1], "controls": ["none", "tokens"]}
    cells = expand(parse(GridConfig, {**axes, "full_corpus": True}), {"random": False})
    assert [cell for cell in cells if cell.strategy == FULL] == [Cell(FULL, 0, None)] and cells[-1].name == "full-corpus_nall_s0"
    assert cells[:-1] == expand(parse(GridConfig, axes), {"random": False})
    assert trained(cells, ["full-*"]) == [cells[-1]]
