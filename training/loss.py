"""The negative log-likelihood of response tokens in packed rows: the one loss of training and of evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.packing import Row


def token_nll(model: nn.Module, row: Row, device: torch.device) -> Tensor:
    """Return the NLL in nats of each target of a row, `(r,) float32`, with its graph.

    No sample sees another: positions start anew with every sample, from which transformers makes a block-diagonal causal mask, and
    FlashAttention's varlen kernel gets the borders. Logits are computed at the r places only, not at all l.
    """
    ids = torch.from_numpy(row.ids).to(device, non_blocking=True)[None]
    where = torch.from_numpy(row.where).to(device, non_blocking=True)
    targets = torch.from_numpy(row.targets).to(device, non_blocking=True)
    output = model(input_ids=ids, logits_to_keep=where, use_cache=False, **attention_inputs(model, row.positions, device))
    return nn.functional.cross_entropy(output.logits[0].float(), targets, reduction="none")


def attention_inputs(model: nn.Module, positions: np.ndarray, device: torch.device) -> dict[str, Any]:
    """Return what keeps the samples of a row apart: position ids, and for FlashAttention the borders as it wants them."""
    inputs: dict[str, Any] = {"position_ids": torch.from_numpy(positions).to(device, non_blocking=True)[None]}
    config = getattr(model, "config", None) or getattr(model, "module", model).config
    if "flash" in str(getattr(config, "_attn_implementation", "")):
        starts = np.append(np.flatnonzero(positions == 0), len(positions)).astype(np.int32)
        borders = torch.from_numpy(starts).to(device)
        longest = int(np.diff(starts).max())
        inputs |= {"cu_seq_lens_q": borders, "cu_seq_lens_k": borders, "max_length_q": longest, "max_length_k": longest}
    return inputs


def attention_implementation(device: str) -> str:
    """Return transformers' name of the attention: FlashAttention where it is installed and a GPU is there, else SDPA with a mask."""
    if device != "cuda":
        return "sdpa"
    from transformers.utils import is_flash_attn_2_available

    return "flash_attention_2" if is_flash_attn_2_available() else "sdpa"
