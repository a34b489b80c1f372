"""What a run gives back of its memory once it is trained: all that the optimizer holds, and the model itself while another engine runs."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from typing import Any

import torch

HOLDERS = ("deepspeed.runtime", "deepspeed.ops", "torch.optim", "collections")  # whose objects are looked into


def let_optimizer_go(engine: Any) -> int:
    """Free moments, fp32 copies, gradients and buffers of a DeepSpeed engine, and return how many bytes; the model stays as it is.

    After this the engine can't be stepped or saved. A tensor is freed by its storage, whoever else holds it, unless a weight lies in it.
    """
    kept = {storage.data_ptr() for storage in _weights(engine.module)}
    for parameter in engine.module.parameters():
        if parameter.grad is not None:
            parameter.grad = None
    freed: dict[int, int] = {}
    for tensor in _tensors(engine.optimizer, set()):
        storage = tensor.untyped_storage()
        if storage.data_ptr() in kept or not storage.nbytes():
            continue
        freed[storage.data_ptr()] = storage.nbytes()
        if storage.resizable():
            storage.resize_(0)
        else:  # read from a checkpoint: its bytes go with the last tensor that holds them
            tensor.data = tensor.new_empty(0)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    give_back_heap()
    return sum(freed.values())


def give_back_heap() -> None:
    """Give what was freed back to the system. Glibc keeps it otherwise: 4 GB after the training of a 135M model on a CPU."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


class SetAside:
    """A model whose weights lie in CPU memory for a while, so that its device is free for another engine."""

    def __init__(self, model: Any) -> None:
        """Move them there."""
        self._moved: list[tuple[Any, torch.Tensor]] = []
        for storage in _weights(model):
            if storage.nbytes():
                bits = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
                self._moved.append((storage, bits.to("cpu", copy=True)))
                storage.resize_(0)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def back(self) -> None:
        """Put them back where they were."""
        for storage, bits in self._moved:
            storage.resize_(len(bits))
            torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage).copy_(bits)
        self._moved.clear()


def _weights(model: Any) -> list[Any]:
    """Return the storages that hold a model's weights, each once; with ZeRO stage 3, this rank's parts."""
    found: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        for held in (tensor.data, getattr(tensor, "ds_tensor", None)):
            if isinstance(held, torch.Tensor):
                storage = held.untyped_storage()
                found[storage.data_ptr()] = storage
    return list(found.values())


def _tensors(held: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    """Yield the tensors that an optimizer of DeepSpeed or PyTorch holds, however deep."""
    if id(held) in seen:
        return
    seen.add(id(held))
    if isinstance(held, torch.Tensor):
        yield held
        if held.is_leaf and held.grad is not None:
            yield held.grad
    elif isinstance(held, dict):
        for key, value in held.items():
            yield from _tensors(key, seen)
            yield from _tensors(value, seen)
    elif isinstance(held, list | tuple | set):
        for value in held:
            yield from _tensors(value, seen)
    elif type(held).__module__.startswith(HOLDERS) and hasattr(held, "__dict__"):
        for value in vars(held).values():
            yield from _tensors(value, seen)
