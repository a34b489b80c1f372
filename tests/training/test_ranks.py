"""What ranks tell each other is told by all of them, and lies where their group can carry it."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tests.training.ranks import ROOT, SFT, on_ranks
from tests.training.test_nll import heldout_table
from training.checkpoint import CheckpointError, meanwhile
from training.evaluators import EvaluationConfig, Subject, evaluate
from training.ranks import any_rank, carrier, group_backend, smallest

GENERATE: dict[str, Any] = {"name": "generate", "max_new_tokens": 4, "batch_tokens": 60}


class Kept:
    """Tables of one rank."""

    def __init__(self, tables: dict[str, pa.Table]) -> None:
        self.tables = tables

    def read(self, name: str) -> pa.Table | None:
        return self.tables.get(name)

    def write(self, name: str, table: pa.Table) -> None:
        self.tables[name] = table


def score_spread_weights(model: Path, device: str) -> dict[str, Any]:
    """Score a model whose weights are spread over the ranks: at once; then where rank 0 has kept all its answers and rank 1 only some."""
    from training.config import SftConfig
    from training.engine import build_engine, load_model

    sft = SftConfig(**{**SFT, "world_size": torch.distributed.get_world_size(), "zero": {"stage": 3}})
    engine = build_engine(load_model(model, sft, "fp32", seed=0), sft, "fp32", device)
    rank = torch.distributed.get_rank()

    def scored(kept: Kept) -> list[str]:
        subject = Subject.of(engine.module.model, model, heldout_table(14), device, rank=rank, world_size=2, kept=kept)
        with torch.no_grad():
            found = evaluate(subject, EvaluationConfig(evaluators=["nll", GENERATE]), run="r")
        return found.tables["responses"]["response"].to_pylist()

    kept = Kept({})
    whole = scored(kept)
    if rank == 1:
        some = list(kept.tables)[1:]
        kept.tables = {name: kept.tables[name] for name in some}
    before = len(kept.tables)
    return {"whole": whole, "again": scored(kept), "kept": before, "all": len(kept.tables)}


def test_ranks_that_hold_parts_of_the_weights_generate_as_often(tiny_folder: Path, tiny_model: Any) -> None:
    """One rank has something to generate and the other nothing: both must go through the layers, or one waits for ever."""
    (found,) = on_ranks(2, [{"model": tiny_folder}], call="tests.training.test_ranks:score_spread_weights")
    alone = Subject.of(tiny_model, tiny_folder, heldout_table(14), "cpu")
    wanted = evaluate(alone, EvaluationConfig(evaluators=["nll", GENERATE]), run="r").tables["responses"]["response"].to_pylist()
    assert found["again"] == found["whole"] == wanted and found["kept"] == found["all"] > 1


def ask(device: str) -> Any:
    rank = torch.distributed.get_rank()
    return any_rank([rank == 1, False, rank == 0]), any_rank([]), smallest(7 - rank), str(carrier()), wait_for_another()


def wait_for_another() -> tuple[float, str]:
    """Return how long rank 0 waited for rank 1's work, longer than a collective may take here; and what it hears when that fails."""
    group = torch.distributed.distributed_c10d._get_default_group()
    group._get_backend(torch.device("cpu")).options._timeout = timedelta(seconds=1)
    late = torch.distributed.get_rank() == 1
    started = time.monotonic()
    meanwhile(lambda: time.sleep(3) if late else None)
    waited = time.monotonic() - started
    with pytest.raises(CheckpointError) as told:
        meanwhile(lambda: [].index(late) if late else None)
    return waited, str(told.value)


def test_what_any_rank_says_all_hear() -> None:
    (found,) = on_ranks(2, [{}], call="tests.training.test_ranks:ask")
    *said, (waited, told) = found
    assert said == [[True, False, True], [], 6, "cpu"]
    assert waited > 2.9 and told.startswith("the checkpoint can't be turned into one for this number of ranks (ValueError: ")
    assert any_rank([True, False]) == [True, False] and smallest(3) == 3, "a process alone asks nobody"


def in_a_group_of_gpus_alone() -> None:
    """Have a default group that carries tensors of GPUs and none of the CPU, as NCCL's do, and ask in it."""
    import torch.testing._internal.distributed.fake_pg  # noqa: F401  # registers the backend `fake`, whose collectives do nothing
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("cuda:fake", store=FakeStore(), rank=0, world_size=2)
    torch.cuda.current_device = lambda: 0
    with pytest.raises(RuntimeError, match="[Nn]o backend type associated with device type cpu"):
        torch.distributed.all_reduce(torch.zeros(1))
    assert carrier() == torch.device("cuda", 0)
    for collective in (lambda: any_rank([True]), lambda: smallest(3)):
        with FakeTensorMode(), pytest.raises(DataDependentOutputException):  # the group took it; only the answer has no value here
            collective()
    print("asked")


def test_a_group_that_refuses_tensors_of_the_cpu_gets_none() -> None:
    """In a process of its own: a group that ends takes the groups of all other tests with it."""
    program = "from tests.training import test_ranks; test_ranks.in_a_group_of_gpus_alone()"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.strip().endswith("asked"), done.stderr


def test_both_kinds_of_tensors_have_a_backend_where_there_are_gpus() -> None:
    assert group_backend("cuda") == "cpu:gloo,cuda:nccl" and group_backend("cpu") == "gloo"
