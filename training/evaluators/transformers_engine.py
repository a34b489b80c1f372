"""Answers by transformers, with the model as it lies on the run's ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from diversity.artifact import digest
from training.evaluators.generate import BATCH_TOKENS, Answer, GenerateConfig, Prompt, answer_of
from training.forward import base_of, figure
from training.ranks import smallest

if TYPE_CHECKING:
    from training.evaluators import Subject


def kv_bytes(config: Any, itemsize: int) -> int:
    """Return the bytes of keys and values that a token leaves behind in all layers of a model.

    Args:
        config: of the model, as transformers has it.
        itemsize: bytes of a number.
    """
    text = config.get_text_config()
    heads = figure(text, "num_attention_heads", 1)
    width = figure(text, "head_dim", text.hidden_size // heads)
    return 2 * int(text.num_hidden_layers) * figure(text, "num_key_value_heads", heads) * width * itemsize


def affordable_tokens(usual: int, free: int, per_token: int) -> int:
    """Return the tokens of a batch: as many as usual, or fewer where keys and values would fill over half of the free memory.

    Fewer are a power of two, so that a run that goes on after a kill mostly finds its batches again.
    """
    most = max(1, free // (2 * max(per_token, 1)))
    return usual if usual <= most else 1 << (most.bit_length() - 1)


@contextmanager
def _without_its_own_settings(model: Any) -> Iterator[None]:
    """Have a model without what its folder says of generation (penalties, forced tokens, draws), which would fill in what is not asked."""
    from transformers import GenerationConfig

    base = base_of(model)
    own, base.generation_config = base.generation_config, GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own


class TransformersEngine:
    """The model as it lies on the ranks; a batch's prompts are padded on their left, so that all answers begin at one place."""

    def __init__(self, subject: Subject, config: GenerateConfig) -> None:
        self.subject, self.config = subject, config
        self.batch_tokens = self._batch_tokens()
        self.together = subject.world_size > 1 and any(hasattr(weight, "ds_id") for weight in subject.model.parameters())

    def __call__(self, batch: Sequence[Prompt], name: str) -> list[Answer]:
        """Return each prompt's answer."""
        import torch
        from transformers import GenerationConfig

        config, longest, ends = self.config, max(len(prompt.ids) for prompt in batch), list(self.subject.encoder.ends)
        ids, mask = np.full((len(batch), longest), ends[0], np.int64), np.zeros((len(batch), longest), np.int64)
        for row, prompt in enumerate(batch):
            ids[row, longest - len(prompt.ids) :], mask[row, longest - len(prompt.ids) :] = prompt.ids, 1
        drawing = {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p, "top_k": 0} if config.temperature else {}
        settings = GenerationConfig(
            max_new_tokens=config.max_new_tokens,
            eos_token_id=ends,
            pad_token_id=ends[0],
            use_cache=True,
            **(drawing or {"do_sample": False}),
        )
        torch.manual_seed(int(digest([config.seed, name])[:15], 16))
        with torch.no_grad(), _without_its_own_settings(self.subject.model):
            out = self.subject.model.generate(
                input_ids=torch.from_numpy(ids).to(self.subject.device),
                attention_mask=torch.from_numpy(mask).to(self.subject.device),
                generation_config=settings,
                synced_gpus=self.together,
            )
        return [answer_of(row, ends) for row in out[:, longest:].cpu().numpy()]

    def _batch_tokens(self) -> int:
        """Return the tokens of a batch if the configuration doesn't say it, the same on all ranks."""
        import torch

        device = torch.device(self.subject.device)
        usual = BATCH_TOKENS["transformers"].get(device.type, BATCH_TOKENS["transformers"]["cpu"])
        if self.config.batch_tokens or device.type != "cuda":
            return usual
        torch.cuda.empty_cache()
        free = smallest(torch.cuda.mem_get_info(device)[0])
        itemsize = 2 if torch.is_autocast_enabled(device.type) else self.subject.model.dtype.itemsize
        return affordable_tokens(usual, free, kv_bytes(self.subject.model.config, itemsize))

    def close(self) -> None:
        """Nothing is held beside the model."""
