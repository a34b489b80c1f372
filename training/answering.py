"""A model that is no run of a grid (base, hub, a folder) answers prompts as runs do: by the evaluator `generate` and its options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from training.evaluators import SampleTable


def answer_prompts(folder: Path, prompts: pa.Table, options: Any, *, device: str, kept: Any = None, template: str = "auto") -> pa.Table:
    """Return `RESPONSES_SCHEMA` of `generate`: a model's answers to prompts.

    Args:
        folder: the model, a Hugging Face folder.
        prompts: `sample_id`, `messages`, `group`.
        options: `GenerateConfig`.
        device: `cpu` or `cuda`.
        kept: where answered batches are kept until all are there.
        template: the chat template.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from training.chat import ChatEncoder, load_tokenizer
    from training.evaluators import Subject
    from training.evaluators.generate import RESPONSES_SCHEMA, evaluate

    tokenizer = load_tokenizer(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    model = model.to(torch.device(device)).eval()
    subject = Subject(
        model, ChatEncoder(tokenizer, template), {}, torch.device(device), tokenizer=tokenizer, kept=kept, judging=prompts, folder=folder
    )
    with torch.no_grad():
        tables = [found.table for found in evaluate(subject, options) if isinstance(found, SampleTable)]
    return pa.concat_tables(tables) if tables else RESPONSES_SCHEMA.empty_table()
