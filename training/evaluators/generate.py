"""What a run answers, and diagnostics of the answers: distinct n-grams, repetition, length, whether they end.

Asked are the prompts of held-out samples, and those that `evaluation.heldout.prompts` adds, which have no reference.

No judge: none of these figures says that an answer is good, and none is primary. What is asked (`prompts`) and how answers are counted
(`figures`) know nothing of the engine between them: transformers, with the model as it lies on the run's ranks, or vLLM. Batches that are
answered are kept aside until the scores are sealed, so that a killed run goes on from there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from pydantic import Field

from diversity.artifact import digest
from diversity.config import Config, ConfigError, Seed, lookup, near_matches
from diversity.corpus.heldout import PROMPTS
from diversity.keys import order, priorities, sample_keys
from training.chat import ChatEncoder, conversations
from training.evaluators import SampleTable, Score, Subject, group_numbers, mean_and_error
from training.forward import most_tokens
from training.ranks import any_rank
from training.templates import Unrenderable

logger = logging.getLogger(__name__)

ENGINES = {
    "transformers": "training.evaluators.transformers_engine:TransformersEngine",
    "vllm": "training.evaluators.vllm_engine:VllmEngine",
}
BATCH_TOKENS = {"transformers": {"cpu": 4096, "cuda": 65536}, "vllm": {"cpu": 16384, "cuda": 262144}}
PARTS_SCHEMA = pa.schema([("sample_id", pa.string()), ("tokens", pa.list_(pa.int32())), ("finished", pa.bool_())])
RESPONSES_SCHEMA = pa.schema(
    [
        ("run", pa.string()),
        ("split", pa.string()),
        ("sample_id", pa.string()),
        ("group", pa.int32()),
        ("response", pa.string()),
        ("tokens", pa.int32()),
        ("finished", pa.bool_()),
    ]
)
REPEATED_N = 4
JUDGING = "judging"  # the split of prompts whose answers are judged


class GenerateConfig(Config):
    """Which prompts are answered, and how.

    Attributes:
        splits: of the held-out samples, `prompts` for those without a reference; null takes all.
        max_samples: prompts of a split at most, the same ones for every run; null takes all.
        max_prompt_tokens: longer prompts are left out, and those that leave an answer fewer positions than `max_new_tokens` where the
            model has a table of positions.
        max_new_tokens: answers end here at the latest.
        temperature: 0 takes the likeliest token.
        top_p: with a temperature, the share of probability that is drawn from.
        seed: with a temperature, of the draws.
        batch_tokens: prompt and answer tokens of a batch, padding included, and what a kill can lose; null takes 4096 on a CPU and
            65536 on a GPU (fewer where their keys and values would fill over half of its free memory), and four times as many for vLLM,
            which fills up its own batches as answers end.
        engine: `transformers` answers with the model as it lies on the run's ranks. `vllm` opens the saved model on every rank's device
            beside it, for many answers on GPUs; the model must fit on one device.
        vllm: further arguments of `vllm.LLM`, e.g. `{enforce_eager: true}`.
    """

    splits: list[str] | None = None
    max_samples: int | None = Field(default=128, ge=1)
    max_prompt_tokens: int = Field(default=1024, ge=8)
    max_new_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: Seed = 0
    batch_tokens: int | None = Field(default=None, ge=1)
    engine: Literal["transformers", "vllm"] = "transformers"
    vllm: dict[str, Any] = Field(default_factory=dict)

    @property
    def from_folder(self) -> bool:
        """Return whether the saved model is needed."""
        return self.engine == "vllm"


@dataclass(frozen=True)
class Prompt:
    """What is asked: a held-out sample up to its last answer, or a prompt without a reference.

    Attributes:
        sample_id: of the sample.
        group: number of its prompt group.
        ids: `(L,) int32`, up to where the answer begins.
    """

    sample_id: str
    group: int
    ids: np.ndarray


@dataclass(frozen=True)
class Answer:
    """What came: token ids without the one that ends the turn, and whether that one came."""

    ids: np.ndarray
    finished: bool


def prompts(samples: pa.Table, encoder: ChatEncoder, config: GenerateConfig, *, answered: bool = True) -> list[Prompt]:
    """Return the prompts of a split that every run is asked, in the order of a keyed hash.

    Args:
        samples: `sample_id`, `messages`, and `group` where there are any.
        encoder: the run's tokenizer and template.
        config: which of them.
        answered: whether the samples hold answers, the last of which is left out with what follows it.
    """
    places = order(priorities(sample_keys(samples["sample_id"]), 0, "evaluate"))
    wanted, groups = config.max_samples or len(places), group_numbers(samples)
    found: list[Prompt] = []
    passed_over = 0
    for place in places.tolist():
        row = samples.slice(place, 1)
        [messages], [tools] = conversations(row)
        ids: np.ndarray | None
        try:
            ids = encoder.prompt(asked(messages) if answered else messages, tools)
        except Unrenderable:  # as in `nll`, which leaves the same samples out
            ids = None
        if ids is None or len(ids) > config.max_prompt_tokens:
            passed_over += 1
            continue
        found.append(Prompt(row["sample_id"][0].as_py(), int(groups[place]), ids))
        if len(found) == wanted:
            break
    why = f"passed over: longer than {config.max_prompt_tokens} tokens, or refused by the chat template"
    logger.info("generate: %d prompts to ask (%d %s)", len(found), passed_over, why)
    return found


def asked(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a conversation up to its last answer: what an engine that takes messages is asked."""
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    return list(messages[:last])


def answer_of(generated: Sequence[int], end: Sequence[int]) -> Answer:
    """Return the answer in what an engine generated after a prompt: up to the first token that ends a turn."""
    ids = np.asarray(generated, np.int32)
    stops = np.flatnonzero(np.isin(ids, np.asarray(end, np.int32)))
    return Answer(ids[: stops[0]] if len(stops) else ids, bool(len(stops)))


def evaluate(subject: Subject, config: GenerateConfig) -> Iterator[Score | SampleTable]:
    """Yield for each split the figures of the model's answers, then the answers.

    Raises:
        ConfigError: `splits` names one that there is not, or the model has too few positions for an answer.
    """
    config = _within_positions(subject.model, config)
    splits = {**subject.splits, **({PROMPTS: subject.prompts} if subject.prompts is not None else {})}
    judged = {JUDGING: subject.judging} if subject.judging is not None else {}
    if unknown := set(config.splits or ()) - set(splits):
        raise ConfigError(f"generate.splits: no split {sorted(unknown)[0]!r}{near_matches(sorted(unknown)[0], splits)}")
    with closing(open_engine(subject, config)) as engine:
        for split in [*(config.splits or splits), *judged]:
            every = config.model_copy(update={"max_samples": None}) if split in judged else config
            samples = (splits | judged)[split]
            asking = prompts(samples, subject.encoder, every, answered=split not in (PROMPTS, JUDGING))
            if split in judged and len(asking) < len(samples):
                logger.warning(
                    "generate: %d prompts to judge have more than %d tokens and stay unanswered",
                    len(samples) - len(asking),
                    config.max_prompt_tokens,
                )
            if not asking:
                logger.warning("generate: no prompt of split %s has at most %d tokens", split, config.max_prompt_tokens)
                continue
            answers = answer_all(subject, split, asking, config, engine)
            yield from figures(split, np.array([prompt.group for prompt in asking], np.int32), answers)
            rows = [
                {
                    "split": split,
                    "sample_id": prompt.sample_id,
                    "group": prompt.group,
                    "response": subject.tokenizer.decode(answer.ids.tolist(), skip_special_tokens=True),
                    "tokens": len(answer.ids),
                    "finished": answer.finished,
                }
                for prompt, answer in zip(asking, answers, strict=True)
            ]
            yield SampleTable("responses", pa.Table.from_pylist(rows, schema=RESPONSES_SCHEMA))


def _within_positions(model: Any, config: GenerateConfig) -> GenerateConfig:
    room = most_tokens(model, config.max_prompt_tokens + config.max_new_tokens) - config.max_new_tokens
    if room < 1:
        raise ConfigError(
            f"generate.max_new_tokens={config.max_new_tokens}: the model has positions for {room + config.max_new_tokens} tokens"
        )
    return config.model_copy(update={"max_prompt_tokens": room})


def figures(split: str, groups: np.ndarray, answers: Sequence[Answer]) -> Iterator[Score]:
    """Yield the figures of a split's answers.

    `distinct_n` is the share of distinct n-grams of tokens among all n-grams of all answers; it falls with the number of answers, so it
    compares runs on the same prompts only. `repetition` is the mean over answers of the share of 4-grams that came before in the answer.

    Args:
        split: which samples were asked.
        groups: `(n,)` numbers of prompt groups.
        answers: `n`, in the order of the groups.
    """
    n = len(answers)
    for size in (1, 2, 3):
        value, se = distinct([answer.ids for answer in answers], groups, size)
        if not np.isnan(value):
            yield Score(split, f"distinct_{size}", value, se, n, higher_is_better=True)
    long = np.array([len(answer.ids) >= REPEATED_N for answer in answers])
    if long.any():
        repeated = [1 - len(set(grams)) / len(grams) for answer in answers if (grams := ngrams(answer.ids, REPEATED_N))]
        mean, se = mean_and_error(np.array(repeated), groups[long])
        yield Score(split, "repetition", mean, se, len(repeated), higher_is_better=False)
    for metric, values in (("length", [len(answer.ids) for answer in answers]), ("finished", [answer.finished for answer in answers])):
        mean, se = mean_and_error(np.array(values, np.float64), groups)
        yield Score(split, metric, mean, se, n, higher_is_better=True)


def ngrams(ids: np.ndarray, size: int) -> list[bytes]:
    """Return an answer's n-grams in order."""
    data = np.ascontiguousarray(ids, np.int32).tobytes()
    return [data[4 * i : 4 * (i + size)] for i in range(len(ids) - size + 1)]


def distinct(answers: Sequence[np.ndarray], groups: np.ndarray, size: int) -> tuple[float, float]:
    """Return the share of distinct n-grams over all answers, and its standard error by leaving out each prompt group in turn.

    Without a group, those distinct n-grams are gone that no other group has, so that every leave-one-out figure is exact.
    """
    holders: dict[bytes, int] = {}  # the one group that has the n-gram, or -1 where several have it
    totals: dict[int, int] = {}
    for ids, group in zip(answers, groups.tolist(), strict=True):
        found = ngrams(ids, size)
        totals[group] = totals.get(group, 0) + len(found)
        for gram in found:
            if holders.setdefault(gram, group) != group:
                holders[gram] = -1
    total = sum(totals.values())
    if not total:
        return float("nan"), float("nan")
    own = dict.fromkeys(totals, 0)
    for group in holders.values():
        if group >= 0:
            own[group] += 1
    left = np.array([(len(holders) - own[g]) / (total - count) for g, count in totals.items() if count < total])
    g = len(left)
    se = float(np.sqrt((g - 1) / g * ((left - left.mean()) ** 2).sum())) if g > 1 else float("nan")
    return len(holders) / total, se


class Engine(Protocol):
    """What answers prompts, on one rank.

    Attributes:
        together: all ranks must answer as often, since each holds a part of the weights.
        batch_tokens: prompt and answer tokens of a batch where the configuration doesn't say it.
    """

    together: bool
    batch_tokens: int

    def __call__(self, batch: Sequence[Prompt], name: str) -> list[Answer]:
        """Return each prompt's answer; the name is the batch's own among all of a split."""

    def close(self) -> None:
        """Give back what the engine holds beside the subject's model."""


def open_engine(subject: Subject, config: GenerateConfig) -> Engine:
    """Return the configuration's engine for a subject."""
    engine: Engine = lookup(ENGINES, config.engine, "engine")(subject, config)
    return engine


def answer_all(subject: Subject, split: str, asking: Sequence[Prompt], config: GenerateConfig, engine: Engine) -> list[Answer]:
    """Return every prompt's answer, on every rank; batches that are kept from before are not generated again.

    Where weights are spread over ranks, all of them must generate as often. So all say first in which turns they will, and a rank that
    needs nothing in such a turn joins in with a batch of its own.
    """
    import torch

    parts = batches([len(prompt.ids) for prompt in asking], config, engine.batch_tokens)
    turns = -(-len(parts) // subject.world_size)
    numbers = list(range(len(parts)))[subject.rank :: subject.world_size]
    mine = [[asking[place] for place in parts[number]] for number in numbers]
    names = [f"{split}-{digest([config.model_dump(mode='json'), [prompt.sample_id for prompt in batch]])}" for batch in mine]
    kept = [_kept(subject, name) for name in names]
    wanted = [answers is None for answers in kept] + [False] * (turns - len(mine))
    together = any_rank(wanted) if engine.together else wanted
    found: dict[int, Answer] = {}
    for turn in range(turns):
        own = turn < len(mine)
        batch = mine[turn] if own else [asking[place] for place in parts[-1]]
        generated = engine(batch, f"{split}-{numbers[turn] if own else turn}") if together[turn] else []
        if not own:
            continue
        answers = kept[turn]
        if answers is None:
            answers = generated
            _keep(subject, names[turn], batch, answers)
        found |= dict(zip(parts[numbers[turn]], answers, strict=True))
        logger.info("generate: %d of %d prompts of split %s answered by this rank", len(found), len(asking), split)
    if subject.world_size > 1:
        everyone: list[Any] = [None] * subject.world_size
        torch.distributed.all_gather_object(everyone, found)
        found = {place: answer for part in everyone for place, answer in part.items()}
    return [found[place] for place in range(len(asking))]


def batches(lengths: Sequence[int], config: GenerateConfig, usual: int = BATCH_TOKENS["transformers"]["cpu"]) -> list[list[int]]:
    """Return batches of prompts of like length, longest first, each within the batch's tokens (or a single prompt)."""
    budget = config.batch_tokens or usual
    found: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        longest = lengths[found[-1][0]] if found else 0
        if found and (len(found[-1]) + 1) * (longest + config.max_new_tokens) <= budget:
            found[-1].append(place)
        else:
            found.append([place])
    return found


def _kept(subject: Subject, name: str) -> list[Answer] | None:
    table = subject.kept.read(name) if subject.kept else None
    if table is None:
        return None
    return [Answer(np.array(row["tokens"], np.int32), row["finished"]) for row in table.to_pylist()]


def _keep(subject: Subject, name: str, batch: Sequence[Prompt], answers: Sequence[Answer]) -> None:
    if subject.kept:
        rows = [
            {"sample_id": prompt.sample_id, "tokens": answer.ids.tolist(), "finished": answer.finished}
            for prompt, answer in zip(batch, answers, strict=True)
        ]
        subject.kept.write(name, pa.Table.from_pylist(rows, schema=PARTS_SCHEMA))
