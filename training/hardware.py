"""What a node can compute fast. Imports no torch unless the processor claims to have what is asked for."""

from __future__ import annotations

from pathlib import Path

CPU_FLAGS = Path("/proc/cpuinfo")


def has_amx() -> bool:
    """Return whether this node's processor has AMX tiles for bf16, with which a product in bf16 is several times as fast as in fp32.

    Without them (AVX-512 alone, or another make) bf16 costs more than it saves.
    """
    try:
        flags = next((line for line in CPU_FLAGS.read_text().splitlines() if line.startswith("flags")), "").split()
    except OSError:
        return False
    if not {"amx_tile", "amx_bf16"} <= set(flags):
        return False
    import torch

    return bool(torch.cpu._is_amx_tile_supported())
