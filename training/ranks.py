"""What the ranks of a run tell each other, on whatever their process group can carry. Imports no torch by itself.

A group of NCCL alone takes no tensor of the CPU, and one of gloo alone none of a GPU. `group_backend` asks for both where there are
GPUs; the functions here also work where somebody else began the group. Each is a collective: every rank calls it, as often as the others.
"""

from __future__ import annotations

from typing import Any


def group_backend(device: str) -> str:
    """Return the backend of a run's process group: tensors of the CPU by gloo, those of GPUs by NCCL."""
    return "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"


def carrier() -> Any:
    """Return the device whose small tensors the default process group carries: the CPU where it can, else this rank's GPU."""
    import torch

    group: Any = torch.distributed.distributed_c10d._get_default_group()
    kinds = {device.type for device in group._device_types}
    if not kinds or "cpu" in kinds:
        return torch.device("cpu")
    kind = sorted(kinds)[0]
    return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)


def any_rank(mine: list[bool]) -> list[bool]:
    """Return for each of some questions whether any rank says yes; every rank asks as many."""
    import torch

    if not mine or _alone():
        return mine
    said = torch.tensor(mine, dtype=torch.int32).to(carrier())
    torch.distributed.all_reduce(said, op=torch.distributed.ReduceOp.MAX)
    return [bool(value) for value in said.tolist()]


def smallest(mine: int) -> int:
    """Return the least of all ranks' numbers, so that what follows from it is the same on all."""
    import torch

    if _alone():
        return mine
    said = torch.tensor([mine], dtype=torch.int64).to(carrier())
    torch.distributed.all_reduce(said, op=torch.distributed.ReduceOp.MIN)
    return int(said.item())


def _alone() -> bool:
    import torch

    return not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1
