"""The loss in pieces is cross-entropy, with its gradients; no tensor is as large as the logits; models get the same loss either way."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from training.engine import RowLoss
from training.loss import has_plain_head, linear_cross_entropy, piece_tokens


def parts(n: int, width: int, vocabulary: int, dtype: Any = torch.float32, device: str = "cpu") -> tuple[list[Any], Any]:
    torch.manual_seed(n * 1000 + vocabulary)
    kind = {"dtype": dtype, "device": device}
    learnt = [torch.randn(*size, **kind).requires_grad_() for size in ((n, width), (vocabulary, width), (vocabulary,))]
    return learnt, torch.randint(0, vocabulary, (n,), device=device)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 30), st.integers(1, 9), st.integers(2, 40), st.integers(1, 12), st.booleans())
def test_it_is_cross_entropy_and_so_are_its_gradients(n: int, width: int, vocabulary: int, piece: int, biased: bool) -> None:
    (hidden, weight, bias), targets = parts(n, width, vocabulary)
    offset = bias if biased else None
    wanted = 0.3 * cross_entropy(hidden @ weight.T + (offset if biased else 0), targets, reduction="sum")
    found = 0.3 * linear_cross_entropy(hidden, weight, offset, targets, piece=piece)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    learnt = [hidden, weight, *([bias] if biased else [])]
    for gradient, expected in zip(torch.autograd.grad(found, learnt), torch.autograd.grad(wanted, learnt), strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)


class Largest(TorchDispatchMode):
    """Remembers how many elements the largest tensor had that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


def test_the_logits_are_never_whole() -> None:
    (hidden, weight, _), targets = parts(400, 8, 900)
    with Largest() as ours:
        linear_cross_entropy(hidden, weight, None, targets, piece=16).backward()
    with Largest() as plain:
        cross_entropy(hidden @ weight.T, targets, reduction="sum").backward()
    assert ours.elements == 16 * 900 and plain.elements == 400 * 900
    assert piece_tokens(128256, "cuda") * 128256 * 4 <= 2**30 and piece_tokens(10**9, "cpu") == 64


def test_a_frozen_output_layer_gets_no_gradient() -> None:
    (hidden, weight, _), targets = parts(10, 4, 20)
    weight = weight.detach()
    linear_cross_entropy(hidden, weight, None, targets).backward()
    assert hidden.grad is not None and weight.grad is None


def rows(model: Any, vocabulary: int) -> dict[str, Any]:
    ids = torch.arange(24)[None] * 7 % vocabulary
    predicting = torch.tensor([*range(4, 14), *range(17, 23)])
    return {"input_ids": ids, "predicting": predicting, "targets": ids[0, predicting + 1]}


def test_a_model_has_the_same_loss_and_gradients_either_way(tiny_model: Any) -> None:
    ours, plain = (RowLoss(copy.deepcopy(tiny_model).train()) for _ in range(2))
    assert ours.pieces
    plain.pieces = False
    losses = [loss(**rows(tiny_model, 49152)) for loss in (ours, plain)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=3e-6)
    for loss in losses:
        loss.backward()
    for (name, one), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_models_that_change_their_logits_keep_the_plain_way() -> None:
    """Gemma-2 caps its logits after the output layer: its loss in pieces would be another one."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = Gemma2ForCausalLM(Gemma2Config(vocab_size=32, head_dim=8, **sizes))
    assert not has_plain_head(model)
    given = rows(model, 32)
    found = RowLoss(model)(**given)
    logits = model(given["input_ids"]).logits[0, given["predicting"]]
    assert found.item() == pytest.approx(cross_entropy(logits, given["targets"], reduction="sum").item(), rel=3e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_in_bf16_it_follows_fp32() -> None:
    (hidden, weight, _), targets = parts(3000, 256, 32000, torch.bfloat16, "cuda")
    found = linear_cross_entropy(hidden / 16, weight, None, targets, piece=500)
    wanted = cross_entropy((hidden.float() / 16) @ weight.float().T, targets, reduction="sum")
    assert found.item() == pytest.approx(wanted.item(), rel=1e-3)
    gradients = torch.autograd.grad(found, [hidden, weight]), torch.autograd.grad(wanted, [hidden, weight])
    for gradient, expected in zip(*gradients, strict=True):
        assert (gradient - expected).float().norm() < 2e-2 * expected.float().norm()
