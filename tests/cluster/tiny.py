"""The work that the cluster tests do: real stages over a small corpus and a 2-layer model, so that most of the time is Ray's."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path

import pyarrow.fs as pafs
import pyarrow.parquet as pq

from diversity.artifact import Storage
from ray_jobs.job.index import Index

CONFIG = "ray_jobs/configs/demo.yaml"
ALL_STAGES = "stages=[ingest, heldout, profile_corpus, build_datasets, sweep]"
DATA_STAGES = "stages=[ingest, heldout, profile_corpus, build_datasets]"
MODEL = {
    "vocab_size": 49152,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "tie_word_embeddings": True,
}


def make_model(folder: Path) -> Path:
    """Write a Llama with random weights and the real tokenizer, and return its folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from ray_jobs.job.process import cache_folder
    from training.model_source import resolve_model

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**MODEL)).save_pretrained(folder)
    for path in resolve_model("builtin:smollm2-135m", cache_folder(), tokenizer_only=True).glob("tokenizer*"):
        shutil.copy(path, folder / path.name)
    return folder


def make_corpus(folder: Path, files: int = 8, rows: int = 40) -> Path:
    """Write files of made-up instruction data, and return their folder."""
    rng = random.Random(0)
    words = [f"{a}{b}" for a in ("gar", "lum", "tor", "vek", "zin") for b in ("an", "ed", "ik", "os", "uth", "yle")]
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        lines = []
        for row in range(rows):
            answer = " ".join(rng.choices(words, [1 / (i + 2) for i in range(len(words))], k=rng.randint(3, 12)))
            lines.append(json.dumps({"instruction": f"Say {number}-{row} {rng.choice(words)}.", "response": answer}))
        (folder / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def experiment(storage: Path | str, corpus: Path, model: Path, *, steps: int = 6, world_size: int = 2) -> list[str]:
    """Return the arguments of a stage: one dialled strategy at two levels beside a random one, of which two datasets are trained on."""
    return [
        "experiment=tiny",
        f"storage={storage}",
        f"corpus.paths=[{corpus}]",
        "corpus.limit=null",
        f"model={model}",
        "profile={typings: [response-micro], embeddings: needed, band: {low: 2, high: 250, scaled: false}}",
        "grid={strategies: [response-micro, random], sizes: [24], levels: 2, train: [response-micro_n24_l000_s0, random_n24_s0]}",
        f"sft={{budget: {{response_tokens: {64 * steps}}}, response_tokens_per_step: 64, max_length: 128, lr: 0.003, "
        f"world_size: {world_size}, checkpoint_every: 2, max_failures: 3, keep: scores}}",
        "evaluation.evaluators=[{name: nll, max_samples: 4, max_response_tokens: 16}]",
    ]


def data_hash(storage: Path | str) -> str:
    """Return a digest of every dataset's content, by its name in the index: what any cluster and any fault must leave the same."""
    opened = Storage(str(storage))
    entries = Index(opened, "tiny").read()
    contents = {name: opened.at(path).manifest["content"] for name, path in entries.get("datasets", {}).items()}
    return hashlib.blake2b(json.dumps(contents, sort_keys=True).encode(), digest_size=8).hexdigest() if contents else "none"


def losses(storage: Path | str) -> dict[str, list[float]]:
    """Return the losses of every sealed run, to 5 decimals."""
    opened = Storage(str(storage))
    filesystem, root = opened.filesystem()
    found = {}
    for name, path in Index(opened, "tiny").read().get("runs", {}).items():
        files = filesystem.get_file_info(pafs.FileSelector(f"{root}/{path}", recursive=True))
        (curve,) = [file.path for file in files if file.base_name == "train.parquet"]
        rows = pq.read_table(curve, filesystem=filesystem)
        found[name] = [round(loss, 5) for loss in rows.column("loss").to_pylist()]
    return found


def checkpoints(storage: Path | str) -> list[str]:
    """Return the names of the checkpoints of runs that aren't sealed yet."""
    opened = Storage(str(storage))
    runs = [run.base_name for run in opened.list("train") if run.type == pafs.FileType.Directory]
    return [found.base_name for run in runs for found in opened.list(f"train/{run}") if found.base_name.startswith("checkpoint_")]
