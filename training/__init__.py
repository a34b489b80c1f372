"""How one dataset becomes one model and its scores: torch, transformers and DeepSpeed, no Ray but in one file."""
