"""A Llama-shaped GGUF file as a Hugging Face folder: weights in fp32, tokenizer, chat template, generation config.

`transformers` reads GGUF files too, but its converted tokenizer forgets that SmolLM2 splits numbers into digits, and what it loads
can't be saved. Here the tensors go from gguf's own dequantisation straight into safetensors, without torch.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from training.templates import JINJA

# What llama.cpp calls a tensor of block N -> what transformers' LlamaForCausalLM calls it.
BLOCK_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OTHER_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
CONTROL_TOKEN = 3  # GGUF's token type of tokens that no ordinary text yields


def write_folder(gguf_file: Path, folder: Path) -> None:
    """Write the model as a Hugging Face folder that `AutoModelForCausalLM` and vLLM open. The folder must be there and empty."""
    from gguf import GGUFReader

    reader = GGUFReader(gguf_file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    _write_json(folder / "config.json", model_config(fields, tied=all(t.name != "output.weight" for t in reader.tensors)))
    _write_json(folder / "generation_config.json", _generation_config(fields))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(fields))
    (folder / "tokenizer.json").write_text(tokenizer(fields).to_str(), "utf-8")
    _write_weights(reader.tensors, fields, folder / "model.safetensors")


def model_config(fields: dict[str, Any], tied: bool) -> dict[str, Any]:
    """Return config.json: the shape out of the GGUF header, and nothing about quantisation."""
    heads = fields["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "head_dim": fields["llama.embedding_length"] // heads,
        "hidden_act": "silu",
        "hidden_size": fields["llama.embedding_length"],
        "initializer_range": 0.02,
        "intermediate_size": fields["llama.feed_forward_length"],
        "max_position_embeddings": fields["llama.context_length"],
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": fields["llama.block_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "rms_norm_eps": round(float(fields["llama.attention.layer_norm_rms_epsilon"]), 9),
        "rope_theta": float(fields["llama.rope.freq_base"]),
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        "vocab_size": fields["llama.vocab_size"],
    }


def tokenizer(fields: dict[str, Any]) -> Any:
    """Return the `tokenizers.Tokenizer`: byte-level BPE that sees every digit alone, as SmolLM2 was trained."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    made.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True) if kind == CONTROL_TOKEN]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return made


def _tokenizer_config(fields: dict[str, Any]) -> dict[str, Any]:
    tokens = fields["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[fields["tokenizer.ggml.padding_token_id"]],
        "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"]],
        "model_max_length": fields["llama.context_length"],
        "chat_template": JINJA["chatml"],
    }


def _generation_config(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: fields[f"tokenizer.ggml.{key}_token_id"]
        for name, key in (("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding"))
    }


def _write_weights(tensors: Any, fields: dict[str, Any], path: Path) -> None:
    from gguf import dequantize
    from safetensors.numpy import save_file

    heads = {"attn_q": fields["llama.attention.head_count"], "attn_k": fields["llama.attention.head_count_kv"]}
    weights = {}
    for tensor in tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        name, kind = _name(tensor.name)
        weights[name] = np.ascontiguousarray(_half_rotation(values, heads[kind]) if kind in heads else values)
    save_file(weights, path, metadata={"format": "pt"})
    usual_mode(path)


def _name(gguf_name: str) -> tuple[str, str]:
    """Return (name in transformers, kind of tensor in a block or empty)."""
    if gguf_name in OTHER_TENSORS:
        return OTHER_TENSORS[gguf_name], ""
    _, block, kind, _ = gguf_name.split(".")
    return f"model.layers.{block}.{BLOCK_TENSORS[kind]}.weight", kind


def _half_rotation(values: np.ndarray, heads: int) -> np.ndarray:
    """Return query or key rows in transformers' order (first halves, then second halves) from llama.cpp's interleaved pairs."""
    half = values.shape[0] // heads // 2
    return values.reshape(heads, half, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


def usual_mode(path: Path) -> None:
    """Give a file the mode that `open` would have: safetensors writes 0600, which a cluster's other users can't read."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
