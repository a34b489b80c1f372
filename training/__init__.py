"""How one dataset becomes one model and its scores: torch, transformers and DeepSpeed, no Ray but in the two files whose names say so.

A sealed dataset and a model folder come in, a model folder in Hugging Face's format and a table of scores go out. `sft.py` is the train
loop and the file to open first; `chat.py` says what a sample looks like to the model; `evaluators/` scores.
"""
