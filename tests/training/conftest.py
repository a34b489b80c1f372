"""What the tests of training share: the real model's folder, made once for a machine, and a small model with the real tokenizer."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.training.ranks import TwoRanks, train_on_two_ranks

CACHE = Path.home() / ".cache" / "sft-diversity"


@pytest.fixture(scope="session")
def smollm_folder() -> Path:
    """Return SmolLM2-135M as a Hugging Face folder."""
    from training.model_source import resolve_model

    return resolve_model("builtin:smollm2-135m", CACHE)


@pytest.fixture(scope="session")
def tokenizer(smollm_folder: Path) -> Any:
    """Return SmolLM2's tokenizer."""
    from training.chat import load_tokenizer

    return load_tokenizer(smollm_folder)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, smollm_folder: Path) -> Path:
    """Return a randomly initialised 2-layer Llama with the real tokenizer, as a Hugging Face folder."""
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "model"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(smollm_folder / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """Return a small random GPT-2 with the real tokenizer: it has dropout of its own, and a table of 64 positions."""
    import shutil

    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("gpt2") / "model"
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=49152, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(tiny_folder / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def two_ranks(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TwoRanks:
    """Return what two ranks train, once for all processes of this session."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "two_ranks"
    with FileLock(f"{folder}.lock"):
        kept = folder / "found.pickle"
        if not kept.exists():
            kept.parent.mkdir()
            kept.write_bytes(pickle.dumps(train_on_two_ranks(tiny_folder, folder)))
        return pickle.loads(kept.read_bytes())


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> Any:
    """Return the small model in fp32, in evaluation mode. Whoever trains it makes a copy."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
