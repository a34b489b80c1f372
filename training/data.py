"""What a run learns from: a dataset's rows, encoded with the model's template, cut or dropped to fit, and dealt out to steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diversity.artifact import MANIFEST, Storage
from diversity.config import UserError
from diversity.datasets import dataset
from diversity.keys import sample_keys
from training.chat import ChatEncoder, Encoded, fit, load_tokenizer
from training.config import SftConfig
from training.packing import Step, plan_steps


@dataclass(frozen=True)
class Job:
    """One fine-tuning.

    Attributes:
        model: a Hugging Face folder on this node.
        samples: a dataset's rows; `sample_id` and `messages` are read, sorted by sample_id.
        sft: how.
        training_seed: seed of the data order, and of adapters and dropout where there are any.
        device: `cpu` or `cuda`.
    """

    model: Path
    samples: pa.Table
    sft: SftConfig
    training_seed: int
    device: str


@dataclass(frozen=True)
class Data:
    """What a run learns from: encoded samples that fit, and every step's batch; the same on all ranks."""

    encoded: list[Encoded]
    sample_ids: list[str]
    steps: list[Step]
    counts: dict[str, int]
    chat_template: str


def prepare_data(job: Job, world_size: int) -> Data:
    """Return the encoded samples and the plan of all steps.

    Raises:
        UserError: no sample fits.
    """
    sft = job.sft
    encoder = ChatEncoder(load_tokenizer(job.model), sft.template)
    whole = encoder.encode_all(job.samples["messages"].to_pylist())
    fitted = [fit(one, sft.max_length, sft.overlong) for one in whole]
    kept = [i for i, one in enumerate(fitted) if one is not None]
    if not kept:
        raise UserError(f"none of {len(whole)} samples fits sft.max_length={sft.max_length}")
    encoded = [one for one in fitted if one is not None]
    cut = sum(len(fitted[i] or ()) < len(whole[i]) for i in kept)
    ids = job.samples["sample_id"].to_pylist()
    steps = plan_steps(
        np.array([len(one) for one in encoded]),
        np.array([one.response_tokens for one in encoded]),
        budget_tokens=sft.budget.response_tokens,
        epochs=sft.budget.epochs,
        tokens_per_step=sft.response_tokens_per_step,
        max_length=sft.max_length,
        row_tokens=sft.capacity,
        seed=job.training_seed,
        world_size=world_size,
        keys=sample_keys([ids[i] for i in kept]),
    )
    counts = {"samples": len(encoded), "truncated": cut, "dropped": len(whole) - len(kept)}
    return Data(encoded, [ids[i] for i in kept], steps, counts, encoder.chat_template)


def read_samples(path: Path) -> pa.Table:
    """Return a dataset's rows from a sealed folder (of texts or of picks alone), a folder of parquet files, or one file, by sample_id.

    Raises:
        UserError: there is nothing of the kind.
    """
    if (path / MANIFEST).is_file() and path.parent.name == "datasets":
        return dataset.read(Storage(str(path.resolve().parents[1])).artifact("datasets", path.resolve().name), ["sample_id", "messages"])
    folder = path / "data" if (path / "data").is_dir() else path
    files = sorted(folder.glob("*.parquet")) if folder.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise UserError(f"{path} is neither a parquet file nor a folder that holds some: give a dataset of build_datasets")
    tables = [pq.read_table(file) for file in files]
    if missing := {"sample_id", "messages"} - set(tables[0].column_names):
        raise UserError(f"{files[0]} has no column {' and '.join(sorted(missing))}")
    return pa.concat_tables([table.select(["sample_id", "messages"]) for table in tables]).sort_by("sample_id")
