"""A run that dies goes on as if it had not, and a finished model opens anywhere."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.ranks import SFT, TwoRanks, alone, samples, train
from training.config import SftConfig


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> None:
    alone()


def test_a_resumed_run_gives_the_same_curve_on_two_ranks_in_all_stages(two_ranks: TwoRanks) -> None:
    for first, second, checkpoints in zip(two_ranks.whole, two_ranks.resumed, two_ranks.checkpoints, strict=True):
        assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000002", "step-00000004"], "the one before stays"
        assert first["rows"] == second["rows"] and len(first["rows"]) == 5
        for name, array in first["weights"].items():
            np.testing.assert_array_equal(second["weights"][name], array)
    same_logits(two_ranks.hf, two_ranks.whole[3]["weights"])


def same_logits(folder: Path, weights: dict[str, Any]) -> None:
    """Check that a folder gives the logits of these weights."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = torch.arange(100, 120)[None]
    opened: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    wanted: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    wanted.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()}, strict=False)
    with torch.no_grad():
        assert torch.equal(opened(ids).logits, wanted(ids).logits)


def test_a_checkpoint_that_is_not_whole_is_never_loaded(tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / ".part-00000004").mkdir()
    (tmp_path / ".part-00000004" / "state").write_text("half")
    first = train(tiny_folder, SFT, checkpoints=tmp_path)
    assert len(first["rows"]) == 5
    broken = next((tmp_path / "step-00000004" / "state").iterdir())
    broken.write_bytes(broken.read_bytes()[:100])
    again = train(tiny_folder, SFT, checkpoints=tmp_path)
    assert again["rows"] == first["rows"] and "going on from the one before it" in caplog.text


def test_a_checkpoint_of_another_run_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    from training import checkpoint, sft

    train(tiny_folder, SFT, checkpoints=tmp_path)
    other = checkpoint.CheckpointFolder(tmp_path, "another run")
    with pytest.raises(checkpoint.CheckpointError, match="is of run run, not of another run"):
        sft.fine_tune(sft.Job(tiny_folder, samples(24), SftConfig(**SFT), 0, "cpu"), resume=other.resume)


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}])
def test_the_export_opens_with_equal_logits(tiny_folder: Path, tmp_path: Path, lora: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from training.export import export
    from training.sft import Job, fine_tune

    config = SftConfig(**SFT, lora=lora)
    trained = fine_tune(Job(tiny_folder, samples(24), config, 0, "cpu"))
    export(trained.engine, tiny_folder, tmp_path / "hf", config, chat=trained.chat)
    opened: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    ids = torch.arange(200, 230)[None]
    model: Any = trained.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(opened(ids).logits, model(ids).logits, atol=0 if lora is None else 1e-4, rtol=0)
    mask = stat.S_IMODE((tiny_folder / "config.json").stat().st_mode)
    for path in (tmp_path / "hf").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == mask, path
    for name in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (tiny_folder / name).read_bytes()
    messages = [{"role": "user", "content": "Hello?"}]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert "Hello?" in tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert not list((tmp_path / "hf").glob("adapter*"))
