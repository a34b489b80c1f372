"""Every causal decoder that transformers can build small: how the probe trains it, whether the export opens with its logits.

    python -m benchmarks.architectures                     # all of them, each in a process of its own with a time limit
    python -m benchmarks.architectures llama qwen3_next    # these
    python -m benchmarks.architectures --keep FOUND.jsonl  # goes on where it was stopped

A tiny random model of an architecture's default configuration is saved as a folder, probed as before any training (`training.probe`),
then checked again by what the probe must have got right: the loss of packed rows is the sum of the samples' own losses by transformers'
plain forward, to 1e-3 a token; and the export opens again with equal logits. Weights are random: this says nothing of quality.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LIMIT_S = 240
LOSS_NEAR, EXPORT_NEAR = 1e-3, 1e-4  # a token's loss, and logits
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
    "rotary_dim": 8,
    "encoder_hash_byte_group_vocab": 512,
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
    "gpt_neo": {"num_layers": 2, "num_hidden_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "deepseek_v2": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [16, 48], "axial_pos_shape": [8, 16]},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2, "num_mem_blocks": 1},
    "zaya": {"num_experts_per_tok": 1},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "falcon": {"alibi": True, "new_decoder_architecture": False},
}


def names() -> list[str]:
    """Return the model types that transformers has a causal language model for."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(name: str) -> Any:
    """Return an architecture's default configuration, made small, with what it holds of others."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(name)
    parts = {key: value for key, value in vars(config).items() if hasattr(value, "model_type")}
    if config.get_text_config(decoder=True) not in parts.values():  # what it holds beside the text
        beside = {key: _small(part, OWN.get(part.model_type, {})).to_dict() for key, part in parts.items()}
        return _small(config, {**TOKENS, **beside, **OWN.get(name, {})})
    for key, part in parts.items():
        own = {**TOKENS, **OWN.get(name, {})} if part is config.get_text_config(decoder=True) else {}
        setattr(config, key, _small(part, {**own, **OWN.get(part.model_type, {})}))
    return config


def _small(config: Any, own: dict[str, Any]) -> Any:
    """Return a configuration of the same kind by the rules of `SMALL`, with some values of its own."""
    from training.forward import setting

    kind = type(config)
    known = [key for key in SMALL if _settable(kind, key) and setting(config, key) is not None]
    values = {key: SMALL[key] for key in known} | own
    if "kv_lora_rank" in known:  # latent attention has keys for every head
        values["num_key_value_heads"] = values["num_attention_heads"]
    for key in ("layer_types", "mlp_layer_types"):
        kinds = setting(config, key)
        if kinds and key not in values and _settable(kind, key):
            kept = list(dict.fromkeys(kinds))  # one of each kind
            values[key] = (kept * 4)[: max(4, len(kept))]
    layers = max((len(value) for key, value in values.items() if key.endswith("layer_types")), default=4)
    values |= {key: layers for key in ("num_hidden_layers", "n_layer", "num_layers") if key in values and key not in own}
    return kind(**{key: value for key, value in values.items() if _settable(kind, key)})


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
    found: dict[str, Any] = {"verdict": verdict.rows, "attention": verdict.attention, "note": "; ".join(verdict.why)}
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
    return float(torch.nn.functional.cross_entropy(_logits(model, ids)[:-1], ids[0, 1:], reduction="sum"))


def _logits(model: Any, ids: Any) -> Any:
    """Return a sample's logits by transformers' plain forward, `(l, V)`."""
    from training.forward import taken

    return model(**taken(model, {"input_ids": ids, "use_cache": False})).logits[0].float()


def _export_error(model: Any, folder: Path) -> float:
    import torch
    from transformers import AutoModelForCausalLM

    opened: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.arange(3, 30)[None]
    own = opened.config._attn_implementation
    if own:
        model.set_attn_implementation(own)
    with torch.no_grad():
        return float((_logits(opened, ids) - _logits(model, ids)).abs().max())


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
    """Try one model before processes are forked, so that none of them imports again what all need."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try_one("llama")


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each architecture as it is found, then the table by verdict."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.architectures", description=__doc__)
    parser.add_argument("names", nargs="*", help="model types of transformers; all by default")
    parser.add_argument(
        "--keep", type=Path, metavar="FILE", help="JSON lines: what is in it is not tried again, what is found goes into it"
    )
    given = parser.parse_args(argv)
    os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
    kept = given.keep.read_text("utf-8").splitlines() if given.keep and given.keep.exists() else []
    before = {found["name"]: found for found in map(json.loads, kept)}
    wanted = given.names or names()
    if any(name not in before for name in wanted):
        _load_once()
    every = []
    for name in wanted:
        found = before.get(name) or in_a_process(name)
        if name not in before and given.keep:
            with given.keep.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
        every.append(found)
        print(_told(found), flush=True)
    print()
    print("\n".join(table(every)))
    return 0


def _told(found: dict[str, Any]) -> str:
    head = f"{found['name']:26} {found['verdict']:10} {found.get('attention', ''):9}"
    return f"{head} {_figure(found.get('loss')):>8} {_figure(found.get('export')):>8}  {found.get('note', '')[:150]}"


def _figure(value: Any) -> str:
    return f"{value:.1e}" if isinstance(value, float) else str(value or "")[:80]


def table(every: Sequence[dict[str, Any]]) -> list[str]:
    """Return a table in Markdown with a row for each verdict and what speaks against the ways before it, the commonest first."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for found in every:
        rows.setdefault((found["verdict"], _reason(found)), []).append(found)
    order = {name: place for place, name in enumerate(("bounds", "positions", "mask", "alone", "refused"))}
    lines = ["| rows | how many | why not a way before it | architectures |", "|---|---|---|---|"]
    for (verdict, why), some in sorted(rows.items(), key=lambda item: (order.get(item[0][0], len(order)), -len(item[1]))):
        lines.append(f"| {verdict} | {len(some)} | {why} | {', '.join(found['name'] for found in some)} |")
    figures = [[found[key] for found in every if isinstance(found.get(key), float)] for key in ("loss", "export")]
    if all(figures):
        worst = f"largest difference of a loss {max(figures[0]):.1e} a token, of an export's logits {max(figures[1]):.1e}"
        lines += ["", f"{len(every)} architectures; {worst}."]
    faulty = [found for found in every if isinstance(found.get("export"), str) or not _right(found)]
    return [*lines, *(f"WRONG: {_told(found)}" for found in faulty)]


def _right(found: dict[str, Any]) -> bool:
    """Return whether what the probe decided gave the losses of samples alone, and the export the model's logits."""
    return found["verdict"] != "CRASHED" and found.get("loss", 0.0) < LOSS_NEAR and (found.get("export") or 0.0) < EXPORT_NEAR


def _reason(found: dict[str, Any]) -> str:
    """Return what speaks against the ways before, without what is one model's own."""
    note = found.get("note", "")
    if "tokens alone don't go through" in note:
        return "wants more than tokens"
    if "not causal" in note:
        return "not causal"
    note = re.sub(r"(?:\w+: )?/\S+ can't", "can't", note)
    note = re.sub(r"mask: \w+Error: [^;]*", "mask: not taken", note)
    return note.replace("|", "/")[:140]


if __name__ == "__main__":
    raise SystemExit(main())
