"""Cross-entropy of an output layer whose logits never exist as a whole.

Of a large vocabulary the logits are the largest tensor of training: 8,192 tokens of 128,256 types are 4.2 GB in fp32, and the plain
way holds them three times. Here a piece of the tokens goes through the output layer, gives its loss and its gradients, and is gone: the
gradient with respect to a logit is softmax minus one-hot, so the forward pass can make it, and nothing is computed twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from training.zero import LOGITS_AT_ONCE

PIECE = {"cpu": 2**25, "cuda": LOGITS_AT_ONCE}  # logits held at once: 128 MB and 1 GB in fp32
# Models whose logits are their output layer's and nothing else: no cap, no scale.
PLAIN_HEADS = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2"})


def piece_tokens(vocabulary: int, device: str) -> int:
    """Return how many tokens' logits are held at once."""
    return max(64, PIECE.get(device, PIECE["cpu"]) // vocabulary)


def has_plain_head(model: Any) -> bool:
    """Return whether a model's loss can be had from its last hidden states and its output layer's weight."""
    head = model.get_output_embeddings()
    return model.config.model_type in PLAIN_HEADS and type(head) is nn.Linear


class _LinearCrossEntropy(torch.autograd.Function):
    """The sum over tokens of cross-entropy(hidden @ weight.T + bias, target)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, piece: int
    ) -> torch.Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if of_hidden else None
        grad_weight: torch.Tensor | None = None
        grad_bias = torch.zeros(bias.shape, dtype=torch.float32, device=bias.device) if bias is not None and of_bias else None
        with torch.autocast(device, enabled=False):
            matrix = weight.to(dtype)
            for start in range(0, len(targets), piece):
                part = slice(start, start + piece)
                states, wanted = hidden[part].to(dtype), targets[part, None]
                logits = (states @ matrix.T).float()
                if bias is not None:
                    logits += bias.float()
                logits -= logits.amax(-1, keepdim=True)
                loss -= logits.gather(1, wanted).sum()
                slope = logits.exp_()  # in place, and once: logsumexp would make all of it a second time
                total = slope.sum(-1, keepdim=True)
                loss += total.log().sum()
                slope /= total
                slope.scatter_add_(1, wanted, torch.full_like(total, -1.0))
                if grad_bias is not None:
                    grad_bias += slope.sum(0)
                slope = slope.to(dtype)
                if grad_hidden is not None:
                    grad_hidden[part] = slope @ matrix
                if of_weight:
                    if grad_weight is None:  # in fp32, because a sum over pieces in bf16 would lose the later ones
                        grad_weight = (slope.T @ states).float()
                    elif dtype == torch.float32:
                        grad_weight.addmm_(slope.T, states)
                    else:
                        grad_weight += slope.T @ states
        if of_weight and grad_weight is None:  # of no token
            grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        of_weight, of_bias = ctx.dtypes
        # In place: a second tensor as large as the weight would cost more than the multiplication. Nobody goes backwards twice.
        return (
            None if grad_hidden is None else grad_hidden.mul_(grads[0]),
            None if grad_weight is None else grad_weight.mul_(grads[0]).to(of_weight),
            None if grad_bias is None else grad_bias.mul_(grads[0]).to(of_bias),
            None,
            None,
        )


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, *, piece: int | None = None
) -> torch.Tensor:
    """Return the summed cross-entropy of an output layer, () float32, without its logits ever existing as a whole.

    Args:
        hidden: `(n, d)`, the states that predict.
        weight: `(V, d)` of the output layer.
        bias: `(V,)` or None.
        targets: `(n,) int64`.
        piece: tokens whose logits are held at once; None takes `piece_tokens`.
    """
    piece = piece or piece_tokens(len(weight), hidden.device.type)
    return _LinearCrossEntropy.apply(hidden, weight, bias, targets, piece)
