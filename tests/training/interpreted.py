"""Compare a model that computes by fused kernels with the plain one, on a CPU: Triton's interpreter runs the kernels, line by line.

    TRITON_INTERPRET=1 python -m tests.training.interpreted KIND

Prints a JSON object: how many modules changed, and the largest differences of logits and gradients relative to their own size.
"""

from __future__ import annotations

import copy
import json
import sys
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl


@triton.jit
def rsqrt(x):  # noqa: ANN001, ANN201
    return 1.0 / tl.sqrt(x)


def mend_the_interpreter() -> None:
    """Give it what it lacks of compiled kernels: scalar arguments that can be cast, and the reciprocal root of CUDA's own library."""
    import liger_kernel.ops.rms_norm as norms
    from triton.runtime import interpreter

    converted = interpreter._implicit_cvt

    def with_floats(argument: Any) -> Any:
        if type(argument) is float:
            return tl.tensor(interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32), tl.float32)
        return converted(argument)

    interpreter._implicit_cvt = with_floats
    norms.rsqrt = rsqrt


def main(kind: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from training import kernels

    mend_the_interpreter()
    kernels.ROTATED_ON.add("cpu")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    plain: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=40, head_dim=8, **sizes))
    fused = copy.deepcopy(plain)
    ids = torch.arange(14)[None] * 3 % 40
    wanted = outcome(plain, ids)
    changed = kernels.use_fused_kernels(fused)
    found = outcome(fused, ids)
    worst = max(float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in zip(found, wanted, strict=True))
    print(json.dumps({"changed": changed, "worst": worst, "tensors": len(found)}))


def outcome(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """Return logits and all gradients."""
    logits = model(input_ids=ids, use_cache=False).logits
    logits.square().mean().backward()
    return [logits.detach(), *(p.grad for p in model.parameters())]


if __name__ == "__main__":
    main(sys.argv[1])
