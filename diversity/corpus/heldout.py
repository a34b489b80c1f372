"""Held-out samples: whole groups taken out of a corpus, and a check of what would be scored against what is trained on.

Samples that share a normalised prompt (or, in a built-in corpus, a module) are one group and are held out together. Groups are taken
in the order of a keyed hash, so that the choice depends on no order of rows. A held-out sample leaks if its normalised response is the
response of a corpus sample, or if half or more of its response's 13-grams of words occur anywhere in the corpus.

Texts are compared by 64-bit hashes of their normalised form: n texts against m others meet by chance with probability n m / 2**64.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator, model_validator

from diversity.config import Config, Seed, UserError
from diversity.corpus.config import CorpusConfig
from diversity.corpus.samples import SAMPLE_SCHEMA, Sample, sample_id, samples_table, texts
from diversity.corpus.text_match import gram_hashes, mark, mark_grams, normalise, slots, table_of, text_hashes
from diversity.keys import priorities

LEAK_SHARE = 0.5
PROMPTS = "prompts"  # the split of prompts without a reference
HELDOUT_SCHEMA = SAMPLE_SCHEMA.append(pa.field("split", pa.string())).append(pa.field("group", pa.string()))


class NothingToHoldOut(UserError):
    """No group of samples is small enough for the fraction asked for."""


class InConfig(Config):
    """Samples taken out of the corpus.

    Attributes:
        fraction: share of the corpus, in (0, 1). It is met exactly where groups are single samples, and never exceeded.
        by: what is kept together: equal normalised prompts, or a `source`. `auto` is `source` for built-in corpora, else `prompt`.
        seed: which groups.
    """

    fraction: float = Field(default=0.02, gt=0, lt=1)
    by: Literal["auto", "prompt", "source"] = "auto"
    seed: Seed = 0


class OutConfig(CorpusConfig):
    """Samples of another corpus, in any format that ingest reads."""

    @field_validator("paths")
    @classmethod
    def _some(cls, paths: list[str]) -> list[str]:
        if not paths:
            raise ValueError("say which files hold the evaluation samples, or set evaluation.heldout.out to null")
        return paths

    @field_validator("contamination")
    @classmethod
    def _none(cls, given: object) -> None:
        if given is not None:
            raise ValueError("evaluation samples are checked against the corpus in any case; the corpus is, by corpus.contamination")


class PromptsConfig(Config):
    """Prompts without a reference: the evaluator `generate` asks them, and nothing else reads them. What `in` or `out` holds is left out.

    Attributes:
        paths: files with a prompt in each row, in any format that ingest reads.
        column: the column that holds it, a text or a conversation that ends with the user's turn.
    """

    paths: list[str] = Field(min_length=1)
    column: str = "prompt"


class HeldoutConfig(Config):
    """What runs are scored on: `in` comes out of the corpus, `out` from elsewhere; either may be null, but not both.

    `prompts` are asked beside them by evaluators that need no reference.
    """

    in_: InConfig | None = Field(default=InConfig(), alias="in")
    out: OutConfig | None = None
    prompts: PromptsConfig | None = None

    @model_validator(mode="after")
    def _something(self) -> HeldoutConfig:
        if self.in_ is None and self.out is None:
            raise ValueError("heldout: give in or out, or set evaluation.heldout to null")
        return self


def groups(samples: pa.Table, by: str) -> pa.Array | pa.ChunkedArray:
    """Return each sample's group: its normalised instruction, or its source."""
    return samples["source"] if by == "source" else normalise(samples["instruction"])


def early_share(config: InConfig, by: str, corpus_size: int) -> float:
    """Return which share of the groups is looked at first: about four times what is needed where groups are about one sample each.

    So a huge corpus sends little, and a small one all of its groups.
    """
    return min(4 * config.fraction + 1000 / corpus_size, 1.0) if by == "prompt" else 1.0


def candidate_groups(samples: pa.Table, config: InConfig, by: str, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return (group hashes, number of samples) of the groups of one part that are in the first share of the keyed hash's range."""
    keys, counts = np.unique(text_hashes(groups(samples, by)), return_counts=True)
    if share < 1:
        early = priorities(keys, config.seed, "heldout") < np.uint64(share * 2.0**64)
        keys, counts = keys[early], counts[early]
    return keys, counts


def choose_groups(
    parts: Iterable[tuple[np.ndarray, np.ndarray]], config: InConfig, corpus_size: int, share: float = 1.0
) -> tuple[np.ndarray, int]:
    """Return the hashes of the groups to hold out, ascending, and how many samples of the fraction they leave.

    Groups are taken in the order of a keyed hash, each that still fits. So where nothing is left, later groups change nothing.

    Args:
        parts: candidates of all parts of the corpus.
        config: the fraction.
        corpus_size: number of samples.
        share: of the groups, how many are candidates.

    Raises:
        NothingToHoldOut: every group is larger than the whole fraction.
    """
    found = list(parts)
    keys, inverse = np.unique(np.concatenate([part[0] for part in found]), return_inverse=True)
    sizes = np.zeros(len(keys), dtype=np.int64)
    np.add.at(sizes, inverse, np.concatenate([part[1] for part in found]))
    wanted = max(round(config.fraction * corpus_size), 1)
    left, chosen = wanted, []
    for place in np.argsort(priorities(keys, config.seed, "heldout"), kind="stable"):
        if sizes[place] <= left:
            chosen.append(place)
            left -= int(sizes[place])
        if not left:
            break
    if not chosen and share == 1:
        raise NothingToHoldOut(
            f"evaluation.heldout.in: {wanted} samples were to be held out, but the smallest group has {sizes.min()}: raise fraction"
        )
    return np.sort(keys[np.asarray(chosen, dtype=np.int64)]), left


def held_out(samples: pa.Table, chosen: np.ndarray, by: str) -> np.ndarray:
    """Return the `(n,) bool` mask of the samples whose group was chosen."""
    return np.isin(text_hashes(groups(samples, by)), chosen)


@dataclass(frozen=True)
class Sought:
    """Hashes of what held-out samples must not share with the corpus, each as an open-addressing table of `uint64`, 0 = empty."""

    responses: np.ndarray
    prompts: np.ndarray
    grams: np.ndarray

    @classmethod
    def of(cls, samples: pa.Table) -> Sought:
        """Return the tables for some held-out samples."""
        responses = text_hashes(normalise(samples["response"]))
        prompts = text_hashes(normalise(samples["instruction"]))
        return cls(table_of(responses), table_of(prompts), table_of(gram_hashes(samples["response"])[1]))


@dataclass(frozen=True)
class Found:
    """Which slots of the tables occur in some part of the corpus, as ascending slot numbers."""

    responses: np.ndarray
    prompts: np.ndarray
    grams: np.ndarray

    def union(self, other: Found) -> Found:
        """Return what occurs in either part."""
        names = ("responses", "prompts", "grams")
        return Found(*(np.union1d(getattr(self, name), getattr(other, name)) for name in names))


def find(samples: pa.Table, sought: Sought) -> Found:
    """Return what of the sought occurs in one part of the corpus: responses in responses, prompts in prompts, 13-grams on both sides.

    Memory is that of the part and of the tables; the part's own n-grams are never stored.
    """
    grams = np.zeros(len(sought.grams), dtype=np.bool_)
    for side in ("instruction", "response"):
        mark_grams(samples[side], sought.grams, grams)
    responses = np.zeros(len(sought.responses), dtype=np.bool_)
    mark(text_hashes(normalise(samples["response"])), sought.responses, responses)
    prompts = np.zeros(len(sought.prompts), dtype=np.bool_)
    mark(text_hashes(normalise(samples["instruction"])), sought.prompts, prompts)
    return Found(np.flatnonzero(responses), np.flatnonzero(prompts), np.flatnonzero(grams))


def leaks(samples: pa.Table, sought: Sought, found: Found) -> dict[str, np.ndarray]:
    """Return `(n,) bool` masks of held-out samples.

    `response`: the normalised response is a response of the corpus. `grams`: at least half of its 13-grams occur in the corpus (never
    where it has none). `prompt`: the normalised prompt is a prompt of the corpus. The first two are leaks.
    """
    offsets, hashes = gram_hashes(samples["response"])
    hit = np.concatenate([[0], np.cumsum(_occur(hashes, sought.grams, found.grams))])
    hits, total = hit[offsets[1:]] - hit[offsets[:-1]], np.diff(offsets)
    return {
        "response": _occur(text_hashes(normalise(samples["response"])), sought.responses, found.responses),
        "grams": (total > 0) & (hits >= LEAK_SHARE * total),
        "prompt": _occur(text_hashes(normalise(samples["instruction"])), sought.prompts, found.prompts),
    }


def without_leaks(samples: pa.Table, split: str, by: str, sought: Sought, found: Found) -> tuple[pa.Table, dict[str, Any]]:
    """Return (`HELDOUT_SCHEMA` table of the samples of a split that don't leak, counts)."""
    masks = leaks(samples, sought, found)
    leaked = masks["response"] | masks["grams"]
    table = _in_split(samples, split, by)
    counts = {
        "samples": int((~leaked).sum()),
        "leaked": int(leaked.sum()),
        "leaked_response": int(masks["response"].sum()),
        "leaked_grams": int(masks["grams"].sum()),
        "prompt_in_corpus": int((masks["prompt"] & ~leaked).sum()),
    }
    return table.filter(pa.array(~leaked)), counts


def prompt_table(config: PromptsConfig, held: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """Return (`HELDOUT_SCHEMA` table of the prompts, each once and without a response, counts).

    Args:
        config: where they are.
        held: the held-out samples, in `HELDOUT_SCHEMA`. Their prompts are asked in any case: equal ones, after normalisation, are left out,
            so that one file may give samples with references and prompts without.

    Raises:
        ReadError: a file can't be found or read.
        NoPrompt: a row without a prompt, or no prompt at all.
    """
    from diversity.corpus.prompts import NoPrompt, read_prompts

    found: dict[str, Sample] = {}
    rows = blank = 0
    for source, messages in read_prompts(config.paths, config.column, "evaluation.heldout.prompts.column"):
        rows += 1
        if messages is None:
            blank += 1
        else:
            key = sample_id(messages)
            found.setdefault(key, Sample(key, source, texts(messages)[0], "", messages, PROMPTS))
    if not found:
        raise NoPrompt(f"evaluation.heldout.prompts: none of {rows} rows holds a prompt")
    table = _in_split(samples_table(list(found.values())), PROMPTS, "prompt")
    elsewhere = pc.is_in(table["group"], groups(held, "prompt").cast(pa.string()))
    kept = table.filter(pc.invert(elsewhere))
    counts = {"samples": len(kept), "in_other_splits": len(table) - len(kept), "duplicates": rows - blank - len(table), "blank": blank}
    return kept, {"rows_read": rows, **counts}


def _in_split(samples: pa.Table, split: str, by: str) -> pa.Table:
    """Return the samples in `HELDOUT_SCHEMA`."""
    table = samples.append_column(HELDOUT_SCHEMA.field("split"), pa.array([split] * len(samples), pa.string()))
    return table.append_column(HELDOUT_SCHEMA.field("group"), groups(samples, by).cast(pa.string()))


def _occur(hashes: np.ndarray, table: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return which of the hashes are in slots that were found."""
    marked = np.zeros(len(table), dtype=np.bool_)
    marked[found] = True
    return marked[slots(hashes, table)] if len(hashes) else np.zeros(0, dtype=np.bool_)
