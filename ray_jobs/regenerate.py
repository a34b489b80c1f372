"""One model answers every instruction of the corpus anew: `python -m ray_jobs.regenerate CONFIG.yaml [key=value …] [--dry-run]`.

The paper's protocol, off by default: `regenerate` in the configuration, and the stage after `ingest` in `stages`. From then on the corpus
of the experiment is the regenerated one. Every answer is kept the moment it arrives, so that a job that is killed, or whose budget ends
(exit code 3), goes on where it was and pays nothing twice.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from diversity.artifact import Artifact, digest, fingerprint
from diversity.config import UserError
from diversity.corpus.ingestion import ContentHash, counted
from diversity.corpus.regeneration import RegenerateConfig, Regenerated, add, request, tables
from diversity.corpus.samples import Message, messages_of
from diversity.keys import order, priorities, sample_keys
from diversity.llm.answers import Answers
from diversity.llm.asking import Asker, known_answers, request_key, served_models
from diversity.llm.reading import Answer
from diversity.metrics import PAPER_METRICS, measure
from diversity.typings.encoders import load_encoder
from ray_jobs.ingest import ingested_artifact
from ray_jobs.job.device import device_kind
from ray_jobs.job.process import cache_folder
from ray_jobs.job.runtime import Context, main, needed, once
from ray_jobs.tasks.corpus_rows import CorpusRows
from ray_jobs.tasks.serving import reached
from training.ifd import difficulties
from training.model_source import resolve_model

logger = logging.getLogger(__name__)

VERSION = 2
ROWS_AT_ONCE = 8192
PART_ROWS = 65_536
CHARS_A_TOKEN = 4
COMPARED = 20_000  # samples whose metrics are compared before and after, by a keyed hash of their ids


class TooManyLost(UserError):
    """More instructions than `regenerate.max_lost` allows came to nothing."""


def config_of(context: Context) -> RegenerateConfig:
    """Return `regenerate` of the configuration.

    Raises:
        ConfigError: it is null.
    """
    return needed(context.experiment.regenerate, "regenerate", "say which model answers anew")


@once
def source_corpus(context: Context) -> Artifact:
    """Return the corpus that samples are held out of: the regenerated one where there is one, else the ingested one."""
    ingested = ingested_artifact(context)
    if context.experiment.regenerate is None:
        return ingested
    name = fingerprint(stage="regenerate", version=VERSION, config=config_of(context).identity(), parents=[ingested.fingerprint])
    return context.storage.artifact("corpus", name)


def maker(context: Context) -> str:
    """Return the stage that makes that corpus."""
    return "ingest" if context.experiment.regenerate is None else "regenerate"


def plan(context: Context) -> Iterator[str]:
    """Yield how many requests are left, about how many tokens they take, and what that costs."""
    config, ingested = config_of(context), ingested_artifact(context)
    artifact = source_corpus(context)
    if artifact.sealed:
        yield f"{artifact.path}: sealed already"
        return
    if not ingested.sealed:
        yield f"answers a corpus anew that is not sealed yet: {context.command('ingest')}"
        return
    kept, requests, known, chars = _kept(context), 0, 0, 0
    for rows in _rows(ingested):
        bodies = {request_key(body): body for body in (request(config, row) for row in rows)}
        there = known_answers(kept, config.endpoint, bodies)
        requests, known = requests + len(bodies), known + len(there)
        chars += sum(len(str(body["messages"])) for key, body in bodies.items() if key not in there)
    left, tokens = requests - known, chars / CHARS_A_TOKEN
    yield f"{requests:,} requests to {config.model}, {known:,} answered already, {left:,} to pay"
    price = f", at most {config.budget.price.of(tokens, left * config.max_tokens):,.2f}" if config.budget.price else ""
    yield f"about {tokens:,.0f} tokens to read, at most {left * config.max_tokens:,} to write{price}"


def run(context: Context) -> None:
    """Seal the regenerated corpus and enter it into the index.

    Raises:
        BudgetSpent: `regenerate.budget` is spent; what was answered is kept.
        TooManyLost: too many instructions came to nothing.
    """
    ingested = context.require(ingested_artifact(context), "ingest")
    artifact = source_corpus(context)
    if artifact.sealed:
        logger.info("regenerate: %s is sealed already", artifact.path)
    else:
        for line in plan(context):
            logger.info("regenerate: %s", line)
        _seal(context, ingested, artifact, *_answered(context, ingested))
    context.index.add("regenerated", None, artifact)
    heldout = context.experiment.evaluation.heldout
    if heldout is None or heldout.in_ is None:
        context.index.add("corpus", None, artifact)


def _kept(context: Context) -> Answers:
    return Answers(context.storage, digest(["regenerate", config_of(context).parameters()]))


def _rows(corpus: Artifact) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of a corpus in their order, some at once."""
    rows = CorpusRows.of(corpus)
    for start, stop in rows.spans(ROWS_AT_ONCE):
        yield rows.read(start, stop, ["sample_id", "source", "instruction", "response", "messages", "tools", "score"]).to_pylist()


def _answered(context: Context, ingested: Artifact) -> tuple[Regenerated, dict[str, int]]:
    """Return (what became of every sample, how many answers each served model gave)."""
    config, found, served = config_of(context), Regenerated.empty(), dict[str, int]()
    total, done = len(CorpusRows.of(ingested)), 0
    with reached(context, config) as base_url:
        ledger = f"{context.experiment.experiment}-regenerate"
        asker = Asker(base_url, config.endpoint, _kept(context), config.budget, storage=context.storage, ledger=ledger)
        for rows in _rows(ingested):
            bodies = [request(config, row) for row in rows]
            keys = [request_key(body) for body in bodies]
            answers: dict[str, Answer] = asker.ask(dict(zip(keys, bodies, strict=True)))
            for number, (row, key) in enumerate(zip(rows, keys, strict=True), start=done):
                add(found, row, answers[key], number)
            for name, count in served_models(answers).items():
                served[name] = served.get(name, 0) + count
            done += len(rows)
            logger.info("regenerate: %d of %d samples answered anew, %d came to nothing", done, total, sum(found.reasons.values()))
    lost = sum(found.reasons.values())
    if lost > config.max_lost * total or not found.samples:
        told = ", ".join(f"{count} {reason}" for reason, count in found.reasons.most_common())
        raise TooManyLost(f"{lost} of {total} instructions came to nothing ({told}); regenerate.max_lost is {config.max_lost:g}")
    return found, served


def _seal(context: Context, ingested: Artifact, artifact: Artifact, found: Regenerated, served: dict[str, int]) -> None:
    """Write and seal the corpus, with what its responses were before."""
    config = config_of(context)
    samples, before, rejected, duplicates = tables(found)
    target = artifact.begin()
    content = ContentHash()
    for number, start in enumerate(range(0, len(samples), PART_ROWS)):
        part = samples.slice(start, PART_ROWS)
        target.write(part, f"data/part-{number:05d}.parquet")
        content.update(part)
    target.write(before, "before/part-00000.parquet")
    target.write(rejected, "rejected/part-00000.parquet")
    manifest = ingested.manifest
    target.seal(
        {
            "stage": "regenerate",
            "version": VERSION,
            "ingested": ingested.path,
            "group_by": manifest["group_by"],
            "model": config.identity(),
            "served": served,
            "rows_read": len(CorpusRows.of(ingested)),
            "samples": len(samples),
            "duplicates": duplicates,
            "reasons": dict(found.reasons),
            "sources": dict(counted(samples["source"])),
            "content_hash": content.hexdigest(),
            "before_and_after": compared(context, before, samples),
        }
    )
    logger.info("regenerate: %d samples, %d came to nothing, %d duplicates", len(samples), sum(found.reasons.values()), duplicates)


def compared(context: Context, before: pa.Table, samples: pa.Table) -> list[dict[str, Any]]:
    """Return rows {metric, before, after} of the responses: the paper's metrics that need no embedding, and IFD.

    Args:
        context: whose model's tokenizer counts, and whose model IFD is of.
        before: BEFORE_SCHEMA.
        samples: the regenerated ones, in the same order.
    """
    places = order(priorities(sample_keys(samples["sample_id"]), 0, "regenerate"))[:COMPARED]
    chosen = before.take(pa.array(places))
    folder = resolve_model(context.experiment.model, cache_folder(), tokenizer_only=True)
    encoder = load_encoder("", folder)
    texts = [chosen[name].to_pylist() for name in ("old_response", "response")]
    names = [name for name in PAPER_METRICS if name != "embedding_distance"]
    fewest = min(int(encoder.encode(one)[1][-1]) for one in texts)
    measured = []
    for one in texts:
        ids, offsets = encoder.encode(one)
        rows = measure("response", tokens=ids, offsets=offsets, texts=one, metrics=names, matched_tokens=fewest).to_pylist()
        measured.append({f"{row['metric']}, {row['variant']}": row["value"] for row in rows})
    found = [{"metric": name, "before": value, "after": measured[1][name]} for name, value in measured[0].items()]
    return found + _difficulty(context, samples, before, places[: config_of(context).ifd_samples])


def _difficulty(context: Context, samples: pa.Table, before: pa.Table, places: np.ndarray) -> list[dict[str, Any]]:
    """Return the row of the mean instruction-following difficulty before and after, over samples that have both."""
    if not len(places):
        return []
    context.connect()
    device = device_kind(context)
    task = ray.remote(num_cpus=1, num_gpus=int(device == "cuda"))(_difficulties)
    both_times = was_and_is(samples.take(pa.array(places)), before.take(pa.array(places)))
    values = ray.get([task.remote(context.experiment.model, conversations, device) for conversations in both_times])
    both = ~np.isnan(values[0]) & ~np.isnan(values[1])
    if not both.any():
        return []
    name = f"instruction-following difficulty, {int(both.sum())} samples"
    return [{"metric": name, "before": float(values[0][both].mean()), "after": float(values[1][both].mean())}]


def was_and_is(samples: pa.Table, before: pa.Table) -> tuple[list[list[Message]], list[list[Message]]]:
    """Return conversations as they were up to the turn that was answered anew, and as they are."""
    now = [messages_of(row) for row in samples["messages"].to_pylist()]
    old = before["old_turn"].to_pylist()
    return [[*messages[:-1], {"role": "assistant", "content": text}] for messages, text in zip(now, old, strict=True)], now


def _difficulties(model: str, conversations: Sequence[list[dict[str, Any]]], device: str) -> np.ndarray:
    return difficulties(resolve_model(model, cache_folder()), conversations, device=device)


if __name__ == "__main__":
    raise SystemExit(main("regenerate"))
