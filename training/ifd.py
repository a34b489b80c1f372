"""Instruction-following difficulty: how much an instruction helps a model with its response.

IFD = L(response | instruction) / L(response), mean losses per response token (Li et al., arXiv 2308.12032). Above 1, the instruction does
not help at all. The instruction is taken out by an empty user's turn in its place, so that both see one template.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from diversity.config import Config


class ScorerConfig(Config):
    """What scores samples.

    Attributes:
        name: `ifd`, by the experiment's model.
        max_tokens: of a sample; longer ones get no score.
        min_score: samples whose score is lower, or that have none, are left out of everything from the profile on; null keeps all.
    """

    name: Literal["ifd"] = "ifd"
    max_tokens: int = Field(default=1024, ge=16)
    min_score: float | None = None


def difficulties(
    folder: Path,
    conversations: Sequence[Sequence[dict[str, Any]]],
    tools: Sequence[Any] | None = None,
    *,
    device: str = "cpu",
    most: int = 1024,
) -> np.ndarray:
    """Return `(n,)`: the IFD of each conversation's assistant turns; NaN where one has no response within `most` tokens.

    Conversations that the model's chat template can't say have NaN, too.

    Args:
        folder: the model, a Hugging Face folder.
        conversations: messages.
        tools: what each conversation's model is given, None where nothing.
        device: `cpu` or `cuda`.
        most: tokens of a conversation; longer ones are left out, and those that the model has no positions for.

    Raises:
        Unsupported: the model can't score packed samples, nor samples alone.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from training.chat import ChatEncoder, load_tokenizer
    from training.evaluators.nll import sample_nll
    from training.forward import most_tokens
    from training.probe import settle
    from training.templates import Unrenderable

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    model = model.to(torch.device(device)).eval()
    settle(model, torch.device(device))
    most = most_tokens(model, most)
    encoder = ChatEncoder(load_tokenizer(folder), "auto")
    silent = [[{"role": "user", "content": ""}, *(m for m in messages if m["role"] == "assistant")] for messages in conversations]
    found = np.full(len(conversations), np.nan)
    both = zip(encoder.sequences(list(conversations), tools), encoder.sequences(silent), strict=True)
    pairs = [tuple(None if isinstance(one, Unrenderable) else one[-1] for one in pair) for pair in both]
    places = [place for place, pair in enumerate(pairs) if all(one and one.response_tokens and len(one) <= most for one in pair)]
    if places:
        with torch.no_grad():
            losses = [
                sample_nll(model, [one for one in (pairs[place][side] for place in places) if one], torch.device(device)).means
                for side in (0, 1)
            ]
        found[places] = losses[0] / losses[1]
    return found
