"""A run goes on where another number of ranks stopped, through DeepSpeed's universal checkpoint, when it is told to."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.training.ranks import SFT, TwoRanks, alone, on_ranks, train
from training.checkpoint import CheckpointError


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> None:
    alone()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_one_rank_goes_on_where_two_stopped(tiny_folder: Path, two_ranks: TwoRanks, tmp_path: Path, stage: int) -> None:
    sft, whole = {**SFT, "zero": {"stage": stage}}, two_ranks.whole[stage]
    checkpoints = Path(shutil.copytree(two_ranks.checkpoints[stage], tmp_path / "checkpoints"))
    found = train(tiny_folder, sft, other_world=checkpoints)
    assert found["losses"][:4] == whole["losses"][:4], "these steps are not taken again"
    assert found["losses"] == pytest.approx(whole["losses"], rel=3e-6)
    for name, array in whole["weights"].items():
        assert found["weights"][name] == pytest.approx(array, abs=2e-5), name
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000002", "step-00000004"], "the universal form is gone again"


def test_two_ranks_go_on_where_one_stopped(tiny_folder: Path, tmp_path: Path) -> None:
    one = train(tiny_folder, {**SFT, "zero": {"stage": 2}}, checkpoints=tmp_path)
    (found,) = on_ranks(2, [{"model": tiny_folder, "sft": {**SFT, "world_size": 2, "zero": {"stage": 2}}, "other_world": tmp_path}])
    assert found["losses"] == pytest.approx(one["losses"], rel=3e-6)


def test_without_being_told_it_is_refused(tiny_folder: Path, two_ranks: TwoRanks, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is of 2 ranks, and there are 1"):
        train(tiny_folder, SFT, checkpoints=two_ranks.checkpoints[0])
    with pytest.raises(CheckpointError, match="holds no checkpoint to go on from"):
        train(tiny_folder, SFT, other_world=tmp_path)
