"""A run that dies goes on as if it had not, and a finished model opens anywhere."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.ranks import on_ranks, samples, train
from training.config import SftConfig

SFT: dict[str, Any] = {
    "budget": {"response_tokens": 360},
    "response_tokens_per_step": 60,
    "max_length": 64,
    "lr": 3e-3,
    "checkpoint_every": 2,
}


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    """Have torch.distributed for this process alone."""
    from training.engine import prepare_process, process_group

    prepare_process("cpu", 1)
    with process_group("cpu"):
        yield


def test_a_resumed_run_gives_the_same_curve_on_two_ranks_in_all_stages(tiny_folder: Path, tmp_path: Path) -> None:
    zeros = [{"stage": stage} for stage in range(4)]
    sfts = [{**SFT, "world_size": 2, "zero": zero} for zero in zeros]
    # The first pass leaves a checkpoint at step 4 of 6; the second begins with it.
    jobs = [{"model": tiny_folder, "sft": sft, "checkpoints": tmp_path / str(i)} for i, sft in enumerate(sfts)]
    jobs[3]["out"] = tmp_path / "hf"
    whole, resumed = on_ranks(2, jobs), on_ranks(2, jobs)
    for i, (first, second) in enumerate(zip(whole, resumed, strict=True)):
        assert [path.name for path in (tmp_path / str(i)).iterdir()] == ["step-00000004"]
        assert first["rows"] == second["rows"] and len(first["rows"]) == 6
        for name, array in first["weights"].items():
            np.testing.assert_array_equal(second["weights"][name], array)
    same_logits(tmp_path / "hf", whole[3]["weights"])


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


def test_a_checkpoint_that_is_not_whole_is_never_loaded(tiny_folder: Path, tmp_path: Path) -> None:
    from training import checkpoint

    (tmp_path / ".part-00000004").mkdir()
    (tmp_path / ".part-00000004" / "state").write_text("half")
    first = train(tiny_folder, SFT, checkpoints=tmp_path)
    assert len(first["rows"]) == 6
    broken = next((tmp_path / "step-00000004" / "state").iterdir())
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(checkpoint.CheckpointError, match="remove it to start again"):
        train(tiny_folder, SFT, checkpoints=tmp_path)


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

    from training.checkpoint import export
    from training.sft import Job, fine_tune

    config = SftConfig(**SFT, lora=lora)
    trained = fine_tune(Job(tiny_folder, samples(24), config, 0, "cpu"))
    export(trained.engine, tiny_folder, tmp_path / "hf", config, chat_template=trained.chat_template)
    opened: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    ids = torch.arange(200, 230)[None]
    model: Any = trained.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(opened(ids).logits, model(ids).logits, atol=0 if lora is None else 1e-5, rtol=0)
    mask = stat.S_IMODE((tiny_folder / "config.json").stat().st_mode)
    for path in (tmp_path / "hf").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == mask, path
    for name in ("tokenizer.json", "generation_config.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (tiny_folder / name).read_bytes()
    messages = [{"role": "user", "content": "Hello?"}]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert "Hello?" in tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert not list((tmp_path / "hf").glob("adapter*"))
