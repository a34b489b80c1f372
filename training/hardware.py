"""What a node can compute fast. Imports no torch unless the processor claims to have what is asked for."""

from __future__ import annotations

from pathlib import Path

CPU_FLAGS = Path("/proc/cpuinfo")


def bf16_unit() -> str:
    """Return what this node's processor multiplies bf16 with: `AMX`, `AVX512_BF16`, or "".

    With AMX a large product is several times as fast as in fp32, with AVX512_BF16 about twice. Without either (AVX-512 alone, an older
    or another make) bf16 costs more than it saves.
    """
    try:
        flags = next((line for line in CPU_FLAGS.read_text().splitlines() if line.startswith("flags")), "").split()
    except OSError:
        return ""
    if not {"amx_bf16", "avx512_bf16"} & set(flags):
        return ""
    import torch

    if {"amx_tile", "amx_bf16"} <= set(flags) and torch.cpu._is_amx_tile_supported():
        return "AMX"
    return "AVX512_BF16" if "avx512_bf16" in flags and torch.cpu._is_avx512_bf16_supported() else ""


def has_fast_bf16() -> bool:
    """Return whether training in bf16 pays on this node's processor."""
    return bool(bf16_unit())
