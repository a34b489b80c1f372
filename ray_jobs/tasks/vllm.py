"""Answers of a language model on this cluster's own GPUs, by Ray Data's LLM processor, which is named here alone.

It only fills the kept answers of `diversity/typings/taggers/llm.py`: prompts come from there, and the tagger reads the answers as if an
endpoint had given them. What is known already is not asked again. Needs the package vllm on the nodes with GPUs; it is imported by
them alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import ray

from diversity.config import ConfigError
from diversity.llm.answers import Answers
from diversity.llm.asking import request_key
from diversity.llm.reading import Answer
from diversity.typings.taggers import TaggerConfig
from diversity.typings.taggers.llm import answers_name, request
from ray_jobs.tasks.corpus_rows import CorpusRows
from ray_jobs.tasks.profiling import Tag

logger = logging.getLogger(__name__)

_REQUESTS = pa.schema([("key", pa.string()), ("request", pa.string())])
_KEPT_AT_ONCE = 512


def answer(rows: CorpusRows, spans: Sequence[tuple[int, int]], works: Sequence[Tag], gpus: int) -> None:
    """Have vLLM answer every request of the works whose answer is not kept yet.

    Raises:
        ConfigError: the cluster has no GPU, or the engine's arguments are none.
    """
    if not gpus:
        raise ConfigError("profile.tagger.vllm needs a GPU in the cluster; for another machine's give profile.tagger.base_url")
    from ray.data.llm import build_processor

    numbers = ray.data.from_items([{"span": span} for span in range(len(spans))], override_num_blocks=len(spans))
    for work in works:
        config = work.config
        ask = partial(open_requests, rows=rows, spans=spans, work=work)
        asked = numbers.map_batches(ask, batch_size=1, batch_format="pyarrow")
        processor = build_processor(processor_config(config), preprocess=engine_row, postprocess=answer_row)
        answers, before = Answers(work.artifact.storage, answers_name(config)), 0
        batch: Any
        for batch in processor(asked).iter_batches(batch_size=_KEPT_AT_ONCE, batch_format="pyarrow"):
            pairs = zip(batch["key"].to_pylist(), batch["answer"].to_pylist(), strict=True)
            found = {key: json.loads(record) for key, record in pairs}
            answers.add(found)
            before += len(found)
            logger.info("%s: %d answers by %s", work.side, before, config.model)


def open_requests(batch: pa.Table, rows: CorpusRows, spans: Sequence[tuple[int, int]], work: Tag) -> pa.Table:
    """Return `key` and `request` (JSON) of the spans' samples whose answer is not kept yet, each request once."""
    answers = Answers(work.artifact.storage, answers_name(work.config))
    found: dict[str, str] = {}
    for span in batch["span"].to_pylist():
        start, stop = spans[span]
        for text in rows.read(start, stop, [work.side])[work.side].to_pylist():
            body = request(text, work.side, work.config)
            found.setdefault(request_key(body), json.dumps(body))
    known = answers.find(found)
    kept = {key: body for key, body in found.items() if key not in known}
    return pa.Table.from_arrays([pa.array(list(kept), pa.string()), pa.array(list(kept.values()), pa.string())], schema=_REQUESTS)


def processor_config(config: TaggerConfig) -> Any:
    """Return the configuration of Ray Data's processor.

    Raises:
        ConfigError: Ray refuses it.
    """
    from ray.data.llm import vLLMEngineProcessorConfig

    given = config.vllm
    if given is None:
        raise ValueError("profile.tagger.vllm is null")
    try:
        return vLLMEngineProcessorConfig(
            model_source=given.source or str(config.model),
            engine_kwargs=dict(given.engine),
            batch_size=given.batch,
            concurrency=given.workers,
            placement_group_config=given.placement,
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"profile.tagger.vllm: {' '.join(str(error).split())}") from None


def engine_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return what the engine wants for a request: messages, and sampling parameters by vLLM's names."""
    body = json.loads(row["request"])
    form = body.pop("response_format", None)
    sampling = {name: value for name, value in body.items() if name not in ("model", "messages")}
    if form and form["type"] == "json_schema":
        sampling["structured_outputs"] = {"json": json.dumps(form["json_schema"]["schema"])}
    elif form:
        sampling["structured_outputs"] = {"json_object": True}
    return {"key": row["key"], "most": body["max_tokens"], "messages": body["messages"], "sampling_params": sampling}


def answer_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return `key` and `answer` (JSON) of an engine's row. The engine does not say why it ended; the number of tokens does."""
    prompt, completion = int(row["num_input_tokens"]), int(row["num_generated_tokens"])
    finish = "length" if completion >= row["most"] else "stop"
    return {"key": row["key"], "answer": json.dumps(Answer(row["generated_text"], finish, prompt, completion).record())}
