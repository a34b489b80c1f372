"""Memory that a run takes is what the estimate says, stage by stage; and it is given back before a model is scored."""

from __future__ import annotations

import copy
import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.ranks import ROOT, SFT, alone, samples
from training.config import SftConfig
from training.memory import SetAside, let_optimizer_go

# Freed memory goes back at once, so that what is resident is what is held.
PLAIN_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> None:
    alone()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc to know the most that was resident")
def test_resident_bytes_a_parameter_are_those_of_the_estimate() -> None:
    """At one rank a parameter takes 18 to 30 bytes, by stage; the table of the ZeRO paper says 16 to 18."""
    command = [sys.executable, "-m", "tests.training.memory", "0", "1", "2", "3"]
    environment = {**os.environ, **PLAIN_MALLOC, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [row["stage"] for row in rows] == [0, 1, 2, 3]
    for row in rows:
        assert row["estimate"] == pytest.approx(row["measured"], rel=0.2), row
        assert row["measured"] > 17 * row["parameters"], row


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_optimizer_goes_and_the_model_stays(tiny_folder: Path, stage: int) -> None:
    from training.sft import Job, fine_tune

    sft = {**SFT, "budget": {"response_tokens": 96}, "zero": {"stage": stage}, "precision": "bf16" if stage else "fp32"}
    trained = fine_tune(Job(tiny_folder, samples(24), SftConfig(**sft), 0, "cpu"))
    model: Any = trained.model.eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits.clone()
        freed = let_optimizer_go(trained.engine)
        count = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
        assert freed >= (12 if stage else 8) * count, "moments, and the fp32 copy beyond stage 0"
        assert torch.equal(model(input_ids=ids).logits, before) and model.generate(ids, max_new_tokens=2).shape == (1, 22)
        assert let_optimizer_go(trained.engine) == 0


@pytest.mark.parametrize("stage", [None, 1, 3])
def test_a_model_is_set_aside_and_comes_back(tiny_folder: Path, tiny_model: Any, stage: int | None) -> None:
    from training.engine import build_engine, load_model

    if stage is None:
        model = copy.deepcopy(tiny_model)
    else:
        sft = SftConfig(**{**SFT, "zero": {"stage": stage}})
        model = build_engine(load_model(tiny_folder, sft, "bf16", seed=0), sft, "bf16", "cpu").module.model.eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits.clone()
        aside = SetAside(model)
        held = [getattr(p, "ds_tensor", p).untyped_storage().nbytes() for p in model.parameters()]
        assert sum(held) == 0, "nothing is left on the device"
        aside.back()
        assert torch.equal(model(input_ids=ids).logits, before)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc, whose heap it is about")
def test_what_was_freed_goes_back_to_the_system() -> None:
    """In a process of its own, whose heap holds nothing else: blocks too small for mappings of their own, and one that outlives them."""
    script = """
import psutil, torch
from training.memory import give_back_heap
held = lambda: psutil.Process().memory_info().rss // 2**20
torch.empty(30 * 2**20, dtype=torch.uint8).fill_(1)  # after such a one, glibc puts all smaller blocks into its heap
before = held()
blocks = [torch.ones(2**20) for _ in range(101)]
last = blocks.pop()
del blocks
kept = held() - before
give_back_heap()
print(kept, held() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    kept, left = map(int, done.stdout.split()[-2:])
    assert kept > 300 and left < 50, "of 400 MB"
