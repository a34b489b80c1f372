"""Every causal decoder that transformers can build small: how the probe trains it, whether the export opens with its logits.

    python -m benchmarks.architectures                   # all of them, each in a process of its own with a time limit
    python -m benchmarks.architectures llama qwen3_next  # these

A tiny random model of an architecture's default configuration is saved as a folder, probed as before any training (`training.probe`),
then checked again by what the probe must have got right: the loss of packed rows is the sum of the samples' own losses by transformers'
plain forward, to 1e-3 a token; and the export opens again with equal logits. Weights are random: this says nothing of quality.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LIMIT_S = 120
FORKING = multiprocessing.get_context("fork")
# What makes a configuration small, by the names that configurations have for it; only names that a configuration has are set.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim", "feed_forward_size"), 96),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers", "encoder_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads", "decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "n_kv_heads"), 2),
    **dict.fromkeys(("vocab_size",), 256),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_groups"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"), 128),
    "head_dim": 16,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "first_k_dense_replace": 1,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_ssm": 128,
    "mamba_d_state": 8,
    "state_size": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 256,
    "sliding_window": 32,
}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# What the rules above make inconsistent.
OWN: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "bamba": {"attn_layer_indices": [1], "mamba_n_groups": 1},
    "falcon_h1": {"mamba_n_groups": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2, "mamba_n_groups": 1},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "falcon": {"alibi": True, "new_decoder_architecture": False},
}


def names() -> list[str]:
    """Return the model types that transformers has a causal language model for."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(name: str) -> Any:
    """Return an architecture's default configuration, made small."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(name)
    text = config.get_text_config(decoder=True)
    if not any(value is text for value in vars(config).values()):  # of an encoder and a decoder it is a copy
        text = config
    kind = type(text)
    known = [key for key in SMALL if _settable(kind, key) and getattr(text, key, None) is not None]
    values = {key: SMALL[key] for key in known} | TOKENS
    if "kv_lora_rank" in known:  # latent attention has keys for every head
        values["num_key_value_heads"] = values["num_attention_heads"]
    values |= OWN.get(name, {})
    for key in ("layer_types", "mlp_layer_types"):
        kinds = getattr(text, key, None)
        if kinds and key not in values and _settable(kind, key):
            kept = list(dict.fromkeys(kinds))  # one of each kind
            values[key] = (kept * 4)[: max(4, len(kept))]
    layers = max((len(value) for key, value in values.items() if key.endswith("layer_types")), default=4)
    values |= {key: layers for key in ("num_hidden_layers", "n_layer", "num_layers") if key in values and key not in OWN.get(name, {})}
    made = kind(**{key: value for key, value in values.items() if _settable(kind, key)})
    if text is config:
        return made
    for key, value in vars(config).items():
        if value is text:
            setattr(config, key, made)
    return config


def _settable(kind: Any, key: str) -> bool:
    """Return whether a configuration's figure is its own, and not made from others."""
    return not any(isinstance(getattr(kind, name, None), property) for name in (key, kind.attribute_map.get(key, key)))


def tiny_model(name: str) -> Any:
    """Return a small random model in evaluation mode.

    Raises:
        ValueError: it is not small.
    """
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(tiny_config(name), dtype=torch.float32).eval()
    size = sum(parameter.numel() for parameter in model.parameters())
    if size > 30_000_000:
        raise ValueError(f"{size:,} parameters is not small")
    with torch.no_grad():
        for parameter in model.parameters():  # defaults of 0.02 and zeros hide what leaks
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.15)
    return model


def try_one(name: str) -> dict[str, Any]:
    """Return what becomes of one architecture, in this process."""
    import torch

    torch.set_num_threads(1)
    try:
        model = tiny_model(name)
    except Exception as error:  # not ours: transformers' defaults can't be made small so simply
        return {"name": name, "verdict": "not built", "note": _line(error)}
    try:
        with tempfile.TemporaryDirectory() as place:
            return {"name": name, **judged(model, Path(place))}
    except Exception as error:
        return {"name": name, "verdict": "CRASHED", "note": _line(error)}


def judged(model: Any, place: Path) -> dict[str, Any]:
    """Return the verdict on a model: built anew from its own folder, as training does."""
    import torch

    from diversity.config import UserError
    from training.config import SftConfig
    from training.engine import load_model, shape_of
    from training.export import dry_export, lasting, write_model
    from training.probe import settle

    try:
        model.save_pretrained(place / "source")
        sft = SftConfig(max_length=64)
        shape_of(place / "source", sft)
        loaded = load_model(place / "source", sft, "fp32", seed=0)
        verdict = settle(loaded, torch.device("cpu"))
        dry_export(loaded, place / "source", sft)
    except UserError as error:
        return {"verdict": "refused", "note": _line(error)}
    found = {"verdict": verdict.rows, "attention": verdict.attention, "note": "; ".join(verdict.why)}
    found["loss"] = _loss_error(loaded, place / "source", verdict)
    try:
        state = {name: tensor.detach() for name, tensor in lasting(loaded)}
        write_model(place / "source", state, place / "hf", sft)
        found["export"] = _export_error(loaded, place / "hf")
    except UserError as error:
        found["export"] = _line(error)
    return found


def _loss_error(model: Any, folder: Path, verdict: Any) -> float:
    """Return the largest difference a token between the loss of rows as trained and the plain loss of each sample alone."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    from training.chat import Encoded
    from training.engine import RowLoss
    from training.packing import assign, collate, learnt, model_inputs

    rng = np.random.default_rng(1)
    samples = []
    for length in (40, 23, 9, 31):
        ids = rng.integers(3, 200, length).astype(np.int32)
        labels = np.concatenate([[-100], ids[1:]]).astype(np.int32)
        samples.append(Encoded(ids, labels, length - 1))
    plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    module = RowLoss(model.eval())
    module.pieces &= verdict.plain_head
    worst = 0.0
    lengths = np.array([len(one) for one in samples])
    for part in assign(range(len(samples)), lengths, 1 if verdict.rows == "alone" else 128, 1)[0]:
        batch = collate(samples, part)
        inputs = {**learnt(batch, "cpu"), **model_inputs(batch, model, "cpu")}
        with torch.no_grad():
            found = module(**inputs).item()
            wanted = sum(_alone(plain, samples[i]) for i in part)
        worst = max(worst, abs(found - wanted) / batch.response_tokens)
    return worst


def _alone(model: Any, sample: Any) -> float:
    import torch

    ids = torch.from_numpy(sample.input_ids.astype("int64"))[None]
    return float(torch.nn.functional.cross_entropy(model(input_ids=ids).logits[0, :-1].float(), ids[0, 1:], reduction="sum"))


def _export_error(model: Any, folder: Path) -> float:
    import torch
    from transformers import AutoModelForCausalLM

    opened: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.arange(3, 30)[None]
    own = opened.config._attn_implementation
    if own:
        model.set_attn_implementation(own)
    with torch.no_grad():
        return float((opened(input_ids=ids).logits - model(input_ids=ids).logits).abs().max())


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def in_a_process(name: str) -> dict[str, Any]:
    """Return what becomes of one architecture, in a process of its own that is ended after `LIMIT_S`."""
    here, there = FORKING.Pipe(duplex=False)
    process = FORKING.Process(target=_tell, args=(name, there), daemon=True)
    process.start()
    there.close()
    try:
        found: dict[str, Any] = here.recv() if here.poll(LIMIT_S) else {"name": name, "verdict": "time", "note": f"more than {LIMIT_S} s"}
    except EOFError:
        process.join()
        found = {"name": name, "verdict": "CRASHED", "note": f"exit {process.exitcode}"}
    process.kill()
    process.join()
    return found


def _tell(name: str, pipe: Any) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # warnings of transformers
    pipe.send(try_one(name))


def _load_once() -> None:
    """Import what every process needs, before they are forked."""
    import transformers

    import training.export
    import training.probe  # noqa: F401

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformers.AutoModelForCausalLM  # noqa: B018


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.architectures", description=__doc__)
    parser.add_argument("names", nargs="*", help="model types of transformers; all by default")
    given = parser.parse_args(argv)
    os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
    _load_once()
    counts: Counter[str] = Counter()
    print(f"{'architecture':26} {'rows':10} {'attention':9} {'loss':>8} {'export':>8}  why")
    for name in given.names or names():
        found = in_a_process(name)
        counts[found["verdict"]] += 1
        loss, export = (
            f"{one:.1e}" if isinstance(one, float) else str(one)[:60] for one in (found.get("loss", ""), found.get("export", ""))
        )
        head = f"{name:26} {found['verdict']:10} {found.get('attention', ''):9} {loss:>8} {export:>8}"
        print(f"{head}  {found.get('note', '')[:150]}", flush=True)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
