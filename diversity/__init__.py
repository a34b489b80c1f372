"""Measure the diversity of instruction data and choose datasets by it: numpy, pyarrow and numba, no Ray, no torch.

Data passes the rooms in this order: `corpus` → `typings` → `selection` → `datasets` → `audit`, `metrics`; `effects` turns scores into
statements, and `llm` asks language models. On top stand what all rooms share (`artifact`, which stands on `filesystems` and `publishing`;
`config`, `cell`, `keys`) and `notebook`, the dial in one process, which is the file to open first.
"""
