"""What a run learns from: a dataset's rows, encoded with the model's template, cut or dropped to fit, and dealt out to steps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from diversity.artifact import MANIFEST, Storage
from diversity.config import UserError
from diversity.corpus.samples import messages_of, sample_id
from diversity.datasets import dataset
from diversity.keys import sample_keys
from training.chat import ChatEncoder, ChatFormat, Encoded, conversations, fit, learnt_ends, load_tokenizer
from training.config import SftConfig
from training.packing import ONE_SAMPLE, Step, assign, plan_steps
from training.templates import Unrenderable

COLUMNS = ("sample_id", "messages", "tools")  # of a sample, what training sees
TEXTS = frozenset({"role", "content", "name", "tool_call_id", "reasoning_content"})  # of a turn


@dataclass(frozen=True)
class Job:
    """One fine-tuning.

    Attributes:
        model: a Hugging Face folder on this node.
        samples: a dataset's rows; `sample_id`, `messages` and, where there is one, `tools` are read, sorted by sample_id.
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
    """What a run learns from: encoded samples that fit, every step's batch, and the prompts' format; the same on all ranks.

    A sample is one sequence, or several where its chat template shows turns in another way once the conversation has gone on. Counted are
    samples, how many of them are cut, how many more are dropped, and sequences that are dropped of samples that are not.
    """

    encoded: list[Encoded]
    sample_ids: list[str]
    steps: list[Step]
    counts: dict[str, int]
    chat: ChatFormat

    def refuse_ids_from(self, vocabulary: int) -> None:
        """Refuse samples with token ids that the model has no embedding for.

        Raises:
            UserError: there are some.
        """
        largest = max(int(one.input_ids.max()) for one in self.encoded)
        if largest >= vocabulary:
            raise UserError(
                f"the tokenizer gives id {largest}, and the model's vocabulary has {vocabulary} tokens: they don't belong together"
            )

    def refuse_longer_than(self, positions: int | None) -> None:
        """Refuse samples with more tokens than the model has positions for.

        Raises:
            UserError: there are some.
        """
        longest = max(len(one) for one in self.encoded)
        if positions is not None and longest > positions:
            raise UserError(
                f"the longest sample has {longest} tokens, and the model has positions for {positions}: set sft.max_length={positions}"
            )

    def one_sample_a_row(self, world_size: int) -> Data:
        """Return the same steps with rows of one sample, for models whose packed samples would see each other."""
        lengths = np.array([len(one) for one in self.encoded])
        steps = [replace(step, ranks=assign(step.samples, lengths, ONE_SAMPLE, world_size)) for step in self.steps]
        return replace(self, steps=steps)


def prepare_data(job: Job, world_size: int) -> Data:
    """Return the encoded samples and the plan of all steps.

    Raises:
        UserError: no sample fits, or the chat template can't say some of them.
    """
    sft = job.sft
    encoder = ChatEncoder(load_tokenizer(job.model), sft.template)
    ids, owner, whole = _sequences(encoder, job.samples)
    fitted = [fit(one, sft.max_length, sft.overlong) for one in whole]
    kept = [i for i, one in enumerate(fitted) if one is not None]
    if not kept:
        raise UserError(f"none of {len(job.samples)} samples fits sft.max_length={sft.max_length}")
    encoded = [one for one in fitted if one is not None]
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
        keys=_keys([ids[i] for i in kept]),
    )
    used = {owner[i] for i in kept}
    counts = {
        "samples": len(used),
        "truncated": len({owner[i] for i in kept if len(fitted[i] or ()) < len(whole[i])}),
        "dropped": len(job.samples) - len(used),
        "turns_dropped": sum(one is None and name in used for one, name in zip(fitted, owner, strict=True)),
    }
    chat = ChatFormat(encoder.chat_template, learnt_ends(encoder, whole))
    return Data(encoded, [owner[i] for i in kept], steps, counts, chat)


def _sequences(encoder: ChatEncoder, samples: pa.Table) -> tuple[list[str], list[str], list[Encoded]]:
    """Return the sequences' own ids, the ids of their samples, and the sequences.

    Raises:
        UserError: the chat template can't say some samples.
    """
    names = samples["sample_id"].to_pylist()
    found = encoder.sequences(*conversations(samples))
    refused = [(name, one) for name, one in zip(names, found, strict=True) if isinstance(one, Unrenderable)]
    if refused:
        name, reason = refused[0]
        raise UserError(
            f"{len(refused)} of {len(names)} samples can't be trained on with this model's chat format; sample {name}: {reason}. "
            "Leave such samples out of the corpus, or set sft.template"
        )
    ids, owner, whole = [], [], []
    for name, sequences in zip(names, found, strict=True):
        if isinstance(sequences, Unrenderable):
            continue
        for turn, one in enumerate(reversed(sequences)):  # 0 is the whole conversation, which has the sample's own place in the order
            ids.append(blake2b(f"{name}/{turn}".encode(), digest_size=16).hexdigest() if turn else name)
            owner.append(name)
            whole.append(one)
    return ids, owner, whole


def _keys(ids: list[str]) -> np.ndarray:
    try:
        return sample_keys(ids)
    except ValueError as error:
        raise UserError(f"{error}: leave the column sample_id out, and the ids are made from the messages") from None


def read_samples(path: Path) -> pa.Table:
    """Return a dataset's rows from a sealed folder (of texts or of picks alone), a folder of parquet files, or one file, by sample_id.

    Files without a column `sample_id` get one, made from the messages.

    Raises:
        UserError: there is nothing of the kind, or a file can't be read.
    """
    if (path / MANIFEST).is_file() and path.parent.name == "datasets":
        table = dataset.read(Storage(str(path.resolve().parents[1])).artifact("datasets", path.resolve().name))
        return table.select([name for name in COLUMNS if name in table.column_names])
    folder = path / "data" if (path / "data").is_dir() else path
    files = sorted(folder.glob("*.parquet")) if folder.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise UserError(f"{path} is neither a parquet file nor a folder that holds some: give a dataset of build_datasets")
    table = pa.concat_tables([_read_file(file) for file in files], promote_options="default")
    if not len(table):
        raise UserError(f"{path} holds no sample")
    return table.sort_by("sample_id")


def _read_file(file: Path) -> pa.Table:
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} can't be read as parquet: {' '.join(str(error).split())[:200]}") from None
    if "messages" not in table.column_names:
        raise UserError(f"{file} has no column messages")
    _refuse_odd_columns(file, table)
    try:
        if "sample_id" in table.column_names:
            table = table.set_column(table.column_names.index("sample_id"), "sample_id", table["sample_id"].cast(pa.string()))
        else:
            tools = table["tools"].to_pylist() if "tools" in table.column_names else [None] * len(table)
            ids = [sample_id(messages_of(messages), some) for messages, some in zip(table["messages"].to_pylist(), tools, strict=True)]
            table = table.append_column("sample_id", pa.array(ids, pa.string()))
    except pa.ArrowException:
        raise UserError(f"{file}: the column sample_id holds {table.schema.field('sample_id').type}, not text: leave it out") from None
    return table.select([name for name in COLUMNS if name in table.column_names])


def _refuse_odd_columns(file: Path, table: pa.Table) -> None:
    """Refuse messages and tools that are not spelled as a dataset's."""
    kind = table.schema.field("messages").type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_struct(kind.value_type):
        raise UserError(f"{file}: the column messages holds {kind}, not lists of turns with role and content")
    odd = [f"{field.name} of its messages holds {field.type}" for field in kind.value_type if field.name in TEXTS and not _text(field.type)]
    if "tools" in table.column_names and not _text(table.schema.field("tools").type):
        odd.append(f"the column tools holds {table.schema.field('tools').type}")
    if odd:
        raise UserError(f"{file}: {odd[0]}, not text")
    if table["messages"].null_count:
        raise UserError(f"{file}: {table['messages'].null_count} rows have no messages")
    if nulls := pc.list_flatten(table["messages"]).null_count:
        raise UserError(f"{file}: {nulls} turns are null")
    try:
        conversations(table)
    except (UserError, ValueError, TypeError) as error:  # tool calls that are no JSON text, a weight that is no number
        raise UserError(f"{file}: a conversation can't be read: {' '.join(str(error).split())[:200]}") from None


def _text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind)
