"""Fine-tuning speed, side by side: `python -m benchmarks.sft [--corpus PATH] [--model FOLDER | --shape NAME] [--sides ours trainer trl]`.

The same model, samples (encoded once, by our template), precision, samples a step, optimizer and one epoch go through our train loop,
through `transformers.Trainer` with its usual padded collator, and through TRL's `SFTTrainer` with its packing; each in a process of its
own, one after the other, `--repeats` times in turn. Counted are useful tokens, those of samples: padding is nobody's work. Printed for
each side: seconds of all steps but the first, in which kernels are chosen and memory is found; response and all tokens a second; MFU
(operations that the samples need, `training.flops`) against the measured ceiling of a large matrix product on this machine, and against
the data sheet's where the GPU is a known one; peak memory of the process, or of the GPU where there is one; and the losses, which show
that all do the same work. Then how long our start takes, part by part. `ours-bf16` is our loop in bf16, which on a CPU pays
with AMX or AVX512_BF16 only: the first line says which this machine has. A run that can't fit is refused, as anywhere.

Without `--corpus`, samples are made up with lengths like those of a real corpus. Without `--model`, the model is a small Llama with random
weights; `--shape llama-2-7b` is one of that size, made from its config alone (a GPU of 140 GB).
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpora import print_table

# hidden, intermediate, layers, heads, heads of keys and values; the vocabulary is that of the tokenizer at hand
SHAPES = {
    "small": (256, 688, 8, 4, 4),
    "smollm2-135m": (576, 1536, 30, 9, 3),
    "llama-2-7b": (4096, 11008, 32, 32, 32),
}
NAMES = {
    "ours": "sft-diversity",
    "ours-bf16": "sft-diversity, bf16",
    "trainer": "transformers.Trainer, padded",
    "trl": "TRL SFTTrainer, packed",
}
ROW_TOKENS = {"cpu": 1024, "cuda": 16384}
DATA_SHEET = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}  # dense bf16 operations a second (SXM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="parquet with Alpaca columns; default: made-up samples")
    parser.add_argument("--n", type=int, default=160, help="samples")
    parser.add_argument("--model", help="builtin name, folder or hub id; default: random weights of --shape")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--samples-per-step", type=int, default=32)
    parser.add_argument("--micro-batch", type=int, default=8, help="samples of a padded micro-batch")
    parser.add_argument("--checkpointing", action="store_true", help="compute activations twice")
    parser.add_argument("--sides", nargs="+", choices=NAMES, default=["ours", "trainer", "trl"])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--side", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        found = {"ours": ours, "ours-bf16": ours, "trainer": trainer, "trl": trl}[given.side](given)
        Path(given.folder, "found.json").write_text(json.dumps(found))
        return
    with tempfile.TemporaryDirectory(prefix="sft-benchmark-") as folder:
        _run_all(given, Path(folder))


def _run_all(given: argparse.Namespace, folder: Path) -> None:
    import torch

    from training.hardware import bf16_unit

    prepare(given, folder)
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in given.sides}
    for _ in range(given.repeats):
        for side in given.sides:
            command = [sys.executable, "-m", "benchmarks.sft", *sys.argv[1:], "--side", side, "--folder", str(folder)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            found[side].append(json.loads((folder / "found.json").read_text()))
    encoded = load(folder)
    lengths = np.array([len(one) for one in encoded])
    ceiling = max(run["ceiling"] for runs in found.values() for run in runs)
    shape = next(iter(found.values()))[0]["shape"]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    sheet = next((limit for name, limit in DATA_SHEET.items() if name in device.split()), None)
    print(
        f"{len(encoded)} samples, {lengths.sum()} tokens, {sum(one.response_tokens for one in encoded)} of responses, lengths "
        f"{lengths.min()} to {lengths.max()}, median {int(np.median(lengths))}; {shape}; on {device}, "
        f"{bf16_unit() or 'nothing'} for bf16; limits: {ceiling / 1e12:.3f} TFLOP/s measured in a large matrix product, "
        f"{f'{sheet / 1e12:.0f} by the data sheet' if sheet else 'no data sheet known'}; "
        f"{found[given.sides[0]][0]['flops'] / 1e12:.2f} TFLOP of work"
    )
    best = {side: min(runs, key=lambda run: run["seconds"]) for side, runs in found.items()}
    rows = []
    for side, run in best.items():
        all_of_them = ", ".join(f"{one['seconds']:.1f}" for one in found[side])
        share = (run["steps"] - 1) / run["steps"]  # of the work that the seconds are of
        done = share * run["flops"] / run["seconds"]
        mfu = [f"{100 * done / limit:.1f}%" if limit else "-" for limit in (ceiling, sheet)]
        speed = [f"{share * run[kind] / run['seconds']:,.0f}" for kind in ("response_tokens", "tokens")]
        losses = f"{run['losses'][0]:.4f} to {run['losses'][-1]:.4f}"
        ratio = f"{run['seconds'] / best['ours']['seconds']:.2f}" if "ours" in best else ""
        rows.append([NAMES[side], all_of_them, *speed, *mfu, f"{run['memory'] / 2**30:.2f}", losses, run["steps"], ratio])
    header = ["side", "seconds", "response tokens/s", "all tokens/s", "MFU", "MFU, sheet", "peak GiB", "loss", "steps", "ours is faster by"]
    print_table("One epoch", header, rows)
    if "ours" in best:
        print_table("Our start, s", list(best["ours"]["setup"]), [[f"{value:.2f}" for value in best["ours"]["setup"].values()]])


def prepare(given: argparse.Namespace, folder: Path) -> None:
    """Write the model's folder and the encoded samples."""
    from training.chat import ChatEncoder, fit, load_tokenizer
    from training.model_source import resolve_model

    cache = Path(os.environ.get("SFT_DIVERSITY_CACHE") or Path.home() / ".cache" / "sft-diversity")
    source = resolve_model(given.model or "builtin:smollm2-135m", cache, tokenizer_only=given.model is None)
    place = folder / "model"
    if given.model:
        place.symlink_to(source)
    else:
        make_model(SHAPES[given.shape], place, source)
    encoder = ChatEncoder(load_tokenizer(place))
    conversations = real(given) if given.corpus else made_up(given)
    whole = encoder.encode_all(conversations)
    fitted = [one for one in (fit(one, given.max_length) for one in whole) if one is not None]
    (folder / "samples").write_bytes(pickle.dumps((conversations, fitted)))


def make_model(sizes: tuple[int, ...], place: Path, source: Path) -> None:
    """Write a Llama with random weights and the tokenizer of a source; of a large one in bf16, made where there is room and speed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    large = sizes[0] >= 2048
    torch.manual_seed(0)
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    chosen = dict(zip(names, sizes, strict=True))
    config = LlamaConfig(vocab_size=49152, max_position_embeddings=4096, tie_word_embeddings=not large, **chosen)  # type: ignore[arg-type]
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16 if large else torch.float32)
    model.save_pretrained(place)
    for path in source.glob("tokenizer*"):
        shutil.copy(path, place / path.name)


def real(given: argparse.Namespace) -> list[list[dict[str, str]]]:
    """Return conversations of a real corpus, drawn by the seed."""
    import pyarrow.parquet as pq

    table = pq.read_table(given.corpus)
    picked = table.take(np.sort(np.random.default_rng(given.seed).choice(table.num_rows, given.n, replace=False)))
    rows = picked.to_pylist()
    prompts = [row["instruction"] + ("\n\n" + row["input"] if row.get("input") else "") for row in rows]
    return [talk(prompt, row["response"]) for prompt, row in zip(prompts, rows, strict=True)]


def made_up(given: argparse.Namespace) -> list[list[dict[str, str]]]:
    """Return conversations whose lengths are skewed as those of real ones: a median of some thirty words, and a long tail."""
    random = np.random.default_rng(given.seed)
    prompts, answers = (np.clip(random.lognormal(np.log(median), 1.2, given.n), 2, 900).astype(int) for median in (25, 35))
    words = [f"word{number}" for number in range(200)]
    return [talk(" ".join(random.choice(words, p)), " ".join(random.choice(words, a))) for p, a in zip(prompts, answers, strict=True)]


def talk(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def load(folder: Path) -> list[Any]:
    """Return the encoded samples."""
    return pickle.loads((folder / "samples").read_bytes())[1]


def sft_config(given: argparse.Namespace, encoded: list[Any], device: str) -> Any:
    """Return our configuration: steps of as many response tokens as the others' steps have on average."""
    from training.config import SftConfig

    per_step = round(sum(one.response_tokens for one in encoded) / len(encoded) * given.samples_per_step)
    return SftConfig(
        budget={"epochs": 1},  # type: ignore[arg-type]
        response_tokens_per_step=per_step,
        max_length=given.max_length,
        row_tokens=max(ROW_TOKENS[device], given.max_length),
        warmup=0,
        schedule="constant",
        gradient_checkpointing=given.checkpointing,
        checkpoint_every=None,
        precision="bf16" if given.side == "ours-bf16" or device == "cuda" else "fp32",
    ).resolved(device)


def describe(given: argparse.Namespace, encoded: list[Any], device: str) -> dict[str, Any]:
    """Return what counts the same for all sides: work, the machine's ceiling, peak memory, and the model in words."""
    import torch

    from training.engine import shape_of
    from training.flops import matmul_ceiling, step_flops

    shape = shape_of(given.folder / "model", sft_config(given, encoded, device))
    response = sum(one.response_tokens for one in encoded)
    gpu = device == "cuda"
    return {
        "tokens": sum(len(one) for one in encoded),
        "response_tokens": response,
        "flops": step_flops(shape, [len(one) for one in encoded], response),
        "memory": torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "ceiling": matmul_ceiling(device, torch.bfloat16 if gpu else torch.float32),
        "shape": f"{shape.parameters / 1e6:.1f}M parameters, {'bf16' if gpu else 'fp32'}",
    }


def ours(given: argparse.Namespace) -> dict[str, Any]:
    """Run our train loop."""
    started = time.perf_counter()
    import pyarrow as pa
    import torch

    from diversity.corpus.samples import sample_id
    from training.engine import free_memory, prepare_process, process_group
    from training.sft import Job, fine_tune

    device = "cuda" if torch.cuda.is_available() else "cpu"
    prepare_process(device)
    import_s = time.perf_counter() - started
    conversations, encoded = pickle.loads((given.folder / "samples").read_bytes())
    rows = [{"sample_id": sample_id(messages), "messages": messages} for messages in conversations]
    table = pa.Table.from_pylist(sorted(rows, key=lambda row: row["sample_id"]))
    with process_group(device):
        job = Job(given.folder / "model", table, sft_config(given, encoded, device), given.seed, device)
        trained = fine_tune(job, memory=free_memory(device))
        losses = trained.rows["loss"].to_pylist()
        seconds, setup = sum(trained.rows["seconds"].to_pylist()[1:]), {"import_s": import_s, **trained.summary["setup"]}
        return {**describe(given, encoded, device), "seconds": seconds, "losses": losses, "steps": len(losses), "setup": setup}


def arguments(given: argparse.Namespace, micro_batch: int, accumulation: int) -> dict[str, Any]:
    """Return what both of the others' configurations take."""
    import torch

    gpu = torch.cuda.is_available()
    return {
        "output_dir": str(given.folder / "out"),
        "num_train_epochs": 1,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": 2e-5,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "bf16": gpu,
        "use_cpu": not gpu,
        "gradient_checkpointing": given.checkpointing,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "seed": given.seed,
    }


def open_model(given: argparse.Namespace) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    large = given.shape == "llama-2-7b" and not given.model
    return AutoModelForCausalLM.from_pretrained(given.folder / "model", dtype=torch.bfloat16 if large else torch.float32)


def finished(given: argparse.Namespace, made: Any, encoded: list[Any]) -> dict[str, Any]:
    """Train and return the figures; times by a callback, from the first step's end to the last one's."""
    import torch
    from transformers import TrainerCallback

    times: list[float] = []

    class Times(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    made.add_callback(Times())
    made.train()
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {**describe(given, encoded, device), "seconds": times[-1] - times[0], "losses": losses, "steps": len(times)}


def columns(encoded: list[Any]) -> list[dict[str, list[int]]]:
    return [{"input_ids": one.input_ids.tolist(), "labels": one.labels.tolist()} for one in encoded]


def trainer(given: argparse.Namespace) -> dict[str, Any]:
    """Run transformers.Trainer: samples in random order, each micro-batch padded to its longest."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    from training.chat import load_tokenizer

    encoded = load(given.folder)
    accumulation = max(1, given.samples_per_step // given.micro_batch)
    rows: Any = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in columns(encoded)]
    tokenizer = load_tokenizer(given.folder / "model")
    made = Trainer(
        model=open_model(given),
        args=TrainingArguments(**arguments(given, given.micro_batch, accumulation)),
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding="longest"),
    )
    return finished(given, made, encoded)


def trl(given: argparse.Namespace) -> dict[str, Any]:
    """Run TRL's SFTTrainer with best-fit packing: one row of the same length as ours for each micro-batch, as many rows a step as fit."""
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from training.chat import load_tokenizer

    encoded = load(given.folder)
    row_tokens = sft_config(given, encoded, "cuda" if torch.cuda.is_available() else "cpu").capacity
    mean = sum(len(one) for one in encoded) / len(encoded)
    accumulation = max(1, round(given.samples_per_step * mean / row_tokens))
    made = SFTTrainer(
        model=open_model(given),
        args=SFTConfig(**arguments(given, 1, accumulation), packing=True, packing_strategy="bfd", max_length=row_tokens),
        train_dataset=Dataset.from_list(columns(encoded)),
        processing_class=load_tokenizer(given.folder / "model"),
    )
    return finished(given, made, encoded)


if __name__ == "__main__":
    main()
