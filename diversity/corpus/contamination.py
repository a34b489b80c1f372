"""Samples of a corpus that hold an evaluation prompt: found, reported, and on request taken out.

A sample is contaminated if its normalised instruction is an evaluation prompt, or if at least a share `overlap` of the distinct 13-grams
of words of one prompt occur in it, on whichever side. A prompt of fewer than 13 words can only be met whole. Texts are compared by 64-bit
hashes, as in `diversity.corpus.heldout`; the definition is ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numba import njit
from pydantic import Field, field_validator

from diversity.config import Config
from diversity.corpus.text_match import find_slot, gram_hashes, normalise, slots, table_of, text_hashes

ROWS_AT_ONCE = 8192  # the n-grams of so many samples are held at a time
REPORT_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("source", pa.string()),
        ("exact", pa.bool_()),
        ("overlap", pa.float64()),
        ("prompt", pa.large_string()),
    ]
)


class ContaminationConfig(Config):
    """Which evaluation prompts a corpus is compared with, and what follows.

    Attributes:
        paths: files with a prompt in each row, in any format that ingest reads.
        column: the column that holds it, a text or a conversation that ends with the user's turn.
        overlap: share of a prompt's 13-grams that make a sample contaminated, in (0, 1].
        remove: whether contaminated samples are left out of the corpus; false only reports them.
    """

    paths: list[str]
    column: str = "prompt"
    overlap: float = Field(default=0.5, gt=0, le=1)
    remove: bool = False

    @field_validator("paths")
    @classmethod
    def _some(cls, paths: list[str]) -> list[str]:
        if not paths or any(path.startswith("builtin:") for path in paths):
            raise ValueError("say which files hold the evaluation prompts, or set contamination to null")
        return paths


@dataclass(frozen=True)
class Prompts:
    """Evaluation prompts, as tables that a corpus is looked up in.

    Attributes:
        texts: as written, ascending, one of those that are equal after normalisation.
        whole: open-addressing table of the hashes of the normalised prompts.
        whole_owner: prompt in each slot of it, `int32`.
        grams: open-addressing table of the hashes of their 13-grams.
        bounds: `(slots + 1,) int64`; slot s belongs to the prompts `owners[bounds[s]:bounds[s + 1]]`.
        owners: `int32`.
        sizes: `(prompts,) int32`, distinct 13-grams of each.
        overlap: as configured.
        remove: as configured.
    """

    texts: list[str]
    whole: np.ndarray
    whole_owner: np.ndarray
    grams: np.ndarray
    bounds: np.ndarray
    owners: np.ndarray
    sizes: np.ndarray
    overlap: float = 0.5
    remove: bool = False

    @classmethod
    def of(cls, texts: Iterable[str], overlap: float = 0.5, remove: bool = False) -> Prompts:
        """Return the tables of some prompts; blank ones are passed over."""
        ordered = sorted({text for text in texts if text.strip()})
        hashes = text_hashes(normalise(pa.array(ordered, pa.large_string())))
        _, first = np.unique(hashes, return_index=True)
        kept = [ordered[i] for i in np.sort(first)]
        column = pa.array(kept, pa.large_string())
        whole_hashes = text_hashes(normalise(column))
        whole = table_of(whole_hashes)
        whole_owner = np.full(len(whole), -1, np.int32)
        whole_owner[slots(whole_hashes, whole)] = np.arange(len(kept))
        offsets, found = gram_hashes(column)
        prompt = np.repeat(np.arange(len(kept), dtype=np.int64), np.diff(offsets))
        grams = table_of(found)
        pairs = np.unique(np.stack([slots(found, grams), prompt]), axis=1)
        bounds = np.searchsorted(pairs[0], np.arange(len(grams) + 1))
        sizes = np.bincount(pairs[1], minlength=len(kept)).astype(np.int32)
        return cls(kept, whole, whole_owner, grams, bounds, pairs[1].astype(np.int32), sizes, overlap, remove)

    @classmethod
    def read(cls, config: ContaminationConfig) -> Prompts:
        """Return the prompts of the configured files.

        Raises:
            ReadError: a file can't be found or read.
            NoPrompt: a row without a prompt in the column.
        """
        from diversity.corpus.prompts import read_prompts
        from diversity.corpus.samples import texts

        found = read_prompts(config.paths, config.column, "corpus.contamination.column")
        return cls.of((texts(messages)[0] for _, messages in found if messages), config.overlap, config.remove)


def screen(samples: pa.Table, prompts: Prompts) -> tuple[pa.Table, pa.Table]:
    """Return (the samples, without the contaminated ones where those are removed; `REPORT_SCHEMA` rows of the contaminated ones)."""
    pieces = [_compare(samples.slice(start, ROWS_AT_ONCE), prompts) for start in range(0, len(samples), ROWS_AT_ONCE)]
    if not pieces:
        return samples, REPORT_SCHEMA.empty_table()
    exact, overlap, prompt = (np.concatenate(column) for column in zip(*pieces, strict=True))
    hit = exact | (overlap >= prompts.overlap)
    found = samples.filter(pa.array(hit))
    columns = [
        found["sample_id"],
        found["source"],
        pa.array(exact[hit]),
        pa.array(overlap[hit]),
        pa.array([prompts.texts[i] for i in prompt[hit]], pa.large_string()),
    ]
    report = pa.Table.from_arrays(columns, names=REPORT_SCHEMA.names).cast(REPORT_SCHEMA)
    return (samples.filter(pa.array(~hit)) if prompts.remove else samples), report


def tally(report: pa.Table, prompts: Prompts) -> dict[str, Any]:
    """Return the report's figures for the manifest."""
    sources = {item["values"]: item["counts"] for item in report["source"].value_counts().to_pylist()}
    return {
        "prompts": len(prompts.texts),
        "prompts_met": len(report["prompt"].unique()),
        "samples": len(report),
        "exact": int(np.sum(report["exact"].to_numpy())),
        "overlapping": int(np.sum(report["overlap"].to_numpy() >= prompts.overlap)),
        "removed": prompts.remove,
        "sources": dict(sorted(sources.items())),
    }


def _compare(samples: pa.Table, prompts: Prompts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (instruction is a prompt; largest share of one prompt's 13-grams; that prompt) for each sample."""
    asked, answered = gram_hashes(samples["instruction"]), gram_hashes(samples["response"])
    overlap, prompt = _overlaps(*asked, *answered, prompts.grams, prompts.bounds, prompts.owners, prompts.sizes)
    hashes = text_hashes(normalise(samples["instruction"]))
    place = slots(hashes, prompts.whole)
    exact = prompts.whole[place] == hashes
    return exact, overlap, np.where(exact, prompts.whole_owner[place], prompt)


@njit(cache=True)
def _overlaps(asked, asked_grams, answered, answered_grams, table, bounds, owners, sizes):  # type: ignore[no-untyped-def]
    """Return for each sample the largest share of one prompt's distinct 13-grams that it holds, and the first such prompt (else -1)."""
    n = len(asked) - 1
    overlap = np.zeros(n, np.float64)
    prompt = np.full(n, -1, np.int32)
    seen = np.full(len(table), -1, np.int64)
    counted_for = np.full(len(sizes), -1, np.int64)
    count = np.zeros(len(sizes), np.int32)
    for i in range(n):
        for side in range(2):
            bound, grams = (asked, asked_grams) if side == 0 else (answered, answered_grams)
            for j in range(bound[i], bound[i + 1]):
                slot = find_slot(grams[j], table)
                if table[slot] != grams[j] or seen[slot] == i:
                    continue
                seen[slot] = i
                for k in range(bounds[slot], bounds[slot + 1]):
                    owner = owners[k]
                    if counted_for[owner] != i:
                        counted_for[owner] = i
                        count[owner] = 0
                    count[owner] += 1
                    share = count[owner] / sizes[owner]
                    if share > overlap[i] or (share == overlap[i] and owner < prompt[i]):
                        overlap[i], prompt[i] = share, owner
    return overlap, prompt
