"""What a GPU is asked to do, told by tensors of a shape and a device and no values: waits of the host, and activations that are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from training import attention
from training.attention import use_packed_attention
from training.chat import NO_LABEL, Encoded
from training.config import SftConfig
from training.engine import RowLoss
from training.evaluators.nll import token_nll
from training.kernels import cheap_parts_again
from training.packing import collate, learnt, model_inputs
from training.zero import ModelShape, block_bytes

WAITS = ("_local_scalar_dense", "nonzero", "item", "is_nonzero")  # operations for whose result the host must wait


@dataclass
class Asked(TorchDispatchMode):
    """Counts the operations that a device is asked for."""

    calls: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.name().partition("::")[2].partition(".")[0]] += 1
        return func(*args, **(kwargs or {}))

    def __hash__(self) -> int:
        return id(self)


def llama(hidden: int, intermediate: int, heads: int, keys: int, layers: int, dtype: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": hidden, "intermediate_size": intermediate, "num_attention_heads": heads, "num_key_value_heads": keys}
    config = LlamaConfig(vocab_size=64, num_hidden_layers=layers, tie_word_embeddings=False, **sizes)  # type: ignore[arg-type]
    return LlamaForCausalLM._from_config(config, dtype=dtype)


def row(lengths: list[int]) -> Any:
    ids = [np.arange(length, dtype=np.int32) % 60 for length in lengths]
    labels = [np.where(np.arange(len(one)) < 3, NO_LABEL, one).astype(np.int32) for one in ids]
    encoded = [Encoded(one, label, len(one) - 3) for one, label in zip(ids, labels, strict=True)]
    return collate(encoded, tuple(range(len(encoded))))


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have tensors without values, and the CPU take the way that a GPU takes: this build of PyTorch may know no GPU."""
    monkeypatch.setattr(attention, "_flash_varlen", lambda: None)
    monkeypatch.setattr(attention, "VARLEN_DEVICES", {"cpu"})
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("what", ["training", "scoring"])
def test_the_host_waits_for_nothing_in_a_row(dtype: Any, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_gpu(monkeypatch):
        model = llama(32, 64, 4, 2, 2, dtype)
        use_packed_attention(model)
        batch = row([12, 30, 7])
        with Asked() as asked:
            if what == "training":
                RowLoss(model)(**learnt(batch, "cpu"), **model_inputs(batch, model, "cpu")).backward()
            else:
                token_nll(model, batch, "cpu")
    assert {name: asked.calls[name] for name in WAITS if asked.calls[name]} == {}
    assert asked.calls["_varlen_attn"] == (2 if dtype == torch.bfloat16 else 0), "one call of the kernel a layer"


def kept_bytes(model: Any, batch: Any, **options: Any) -> int:
    """Return the bytes that the layers of a model keep for the backward pass, weights left out."""
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            found[storage._cdata] = storage.nbytes()
            held.append(tensor)
        return tensor

    held: list[Any] = []  # alive, so that no storage's address is used twice
    inputs = model_inputs(batch, model, "cpu")
    if options:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False, **options})
        model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.get_decoder()(use_cache=False, **inputs)
    return sum(found.values())


@pytest.mark.parametrize(("hidden", "intermediate", "heads", "keys"), [(4096, 11008, 32, 32), (1024, 2816, 16, 4)])
def test_activations_of_a_block_are_those_of_the_estimate(
    hidden: int, intermediate: int, heads: int, keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The difference between three blocks and one, a token and block: 187 KB for the shape of Llama-2-7B."""
    with fake_gpu(monkeypatch):
        batch = row([300, 212])
        found = []
        for layers in (1, 3):
            model = llama(hidden, intermediate, heads, keys, layers, torch.bfloat16)
            use_packed_attention(model)
            found.append(kept_bytes(model, batch))
    width = hidden // heads
    shape = ModelShape(1, 1, 3, hidden, intermediate, 64, attention_width=hidden, key_width=keys * width)
    kept, working = block_bytes(shape, SftConfig(zero={"stage": 1}), "bf16")  # type: ignore[arg-type]
    assert working == 0 and kept == pytest.approx((found[1] - found[0]) / 2 / 512, rel=0.02)
    if hidden == 4096:
        assert kept == pytest.approx(187_000, rel=0.01)


def test_selective_recomputing_keeps_what_products_and_attention_give(tiny_model: Any) -> None:
    """Gradients are those without it, and no product is computed twice."""
    import copy

    from training.kernels import _policy

    ids = torch.arange(40)[None] % 50
    gradients, products = [], []
    for options in (None, {}, {"context_fn": cheap_parts_again}):
        model = copy.deepcopy(tiny_model).train()
        if options is not None:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False, **options})
        with Asked() as asked:
            model(input_ids=ids, use_cache=False).logits.square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
        products.append(sum(asked.calls[name] for name in ("mm", "addmm", "bmm")))
    for other in gradients[1:]:
        for found, wanted in zip(other, gradients[0], strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)
    assert products[2] == products[0] < products[1]
    names = {"aten::mm": "MUST_SAVE", "torch_attn::_varlen_attn": "MUST_SAVE", "aten::mul.Tensor": "PREFER_RECOMPUTE"}
    assert {op: _policy(None, SimpleNamespace(name=lambda op=op: op)).name for op in names} == names
