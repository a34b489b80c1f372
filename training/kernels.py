"""Fused kernels for norms, rotary embeddings and SwiGLU on a GPU, and which parts of a block are computed again to save memory.

The kernels are liger-kernel's, in Triton. What they replace computes the same in several passes over memory: between matrix products a
block spends most of its time there.
"""

from __future__ import annotations

import functools
import sys
import types
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

# Models whose norm is x / rms(x) * weight, whose rotary embedding turns the two halves of a head, and whose MLP is down(silu(gate) * up).
FUSED_MODELS = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3"})
ROTATED_ON = {"cuda"}  # kinds of devices whose tensors the fused rotary embedding takes
PRODUCTS = ("mm", "addmm", "bmm", "matmul", "linear", "_scaled_dot_product", "_flash_attention_forward", "_varlen_attn")


def use_fused_kernels(model: Any) -> int:
    """Have a model of a known kind compute by fused kernels, and return how many of its modules do; others stay as they are.

    Args:
        model: of transformers, before adapters are put around its layers.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if base.config.get_text_config().model_type not in FUSED_MODELS:
        return 0
    changed = 0
    for module in base.modules():
        name = type(module).__name__
        if name.endswith("RMSNorm"):
            module.forward = types.MethodType(_norm, module)
        elif name.endswith("MLP") and getattr(module.config, "hidden_act", None) in ("silu", "swish"):
            module.forward = types.MethodType(_swiglu, module)
        elif name.endswith("Attention"):
            _rotate_fused(sys.modules[type(module).__module__])
        else:
            continue
        changed += 1
    return changed


def _norm(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """Return x / rms(x) * weight, the root mean square in fp32."""
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    normed: torch.Tensor = LigerRMSNormFunction.apply(hidden_states, self.weight, self.variance_epsilon, 0.0, "llama", False)
    return normed


def _swiglu(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Return down(silu(gate(x)) * up(x))."""
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    product: torch.Tensor = self.down_proj(LigerSiLUMulFunction.apply(self.gate_proj(x), self.up_proj(x)))
    return product


def _rotate_fused(module: Any) -> None:
    """Put the fused rotary embedding into a model's module, where its attention looks for it; for tensors of a GPU only."""
    plain = module.apply_rotary_pos_emb
    if getattr(plain, "fused", False):
        return

    @functools.wraps(plain)
    def rotated(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1) -> Any:
        if q.device.type not in ROTATED_ON or unsqueeze_dim != 1:
            return plain(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
        from liger_kernel.ops.rope import LigerRopeFunction

        return LigerRopeFunction.apply(q, k, cos, sin, None, unsqueeze_dim)

    rotated.fused = True  # type: ignore[attr-defined]
    module.apply_rotary_pos_emb = rotated


def cheap_parts_again() -> Any:
    """Return the contexts in which a block keeps what matrix products and attention give, and computes the rest again."""
    return create_selective_checkpoint_contexts(_policy)


def _policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    name = op.name().partition("::")[2].partition(".")[0]
    keep = name.startswith(PRODUCTS)
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
