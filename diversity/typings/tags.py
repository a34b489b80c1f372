"""Meso typing: raw tags → normalised tags, step by step, with what each step did.

The steps themselves are in `diversity/typings/tag_steps.py`; what each did to how many tags goes to the manifest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from diversity.artifact import Storage
from diversity.cell import typing_parts
from diversity.typings.embedders import EmbedderConfig, embed
from diversity.typings.tag_steps import EXAMPLES, Embed, by_association, by_frequency, by_leader, by_rules, by_rules_mined, by_share
from diversity.typings.tagged import Tagged, coded
from diversity.typings.taggers import TaggerConfig, load_tagger, scaled
from diversity.typings.tokens import distinct_rows
from diversity.typings.typed import DATA_SCHEMA, NoTypesError, Typed, list_array, types_table

log = logging.getLogger(__name__)

RECIPE = 2  # counted up when a model's same answers, or the same raw tags, become other types
RAW_SCHEMA = pa.schema([("sample_id", pa.string()), ("tags", pa.list_(pa.string()))])


class TagCounter:
    """A block of samples → their raw tags (RAW_SCHEMA)."""

    def __init__(self, config: TaggerConfig, side: str, storage: Storage | None = None) -> None:
        """Load the tagger."""
        self._side = side
        self._tagger = load_tagger(config, side, storage)

    @property
    def outcomes(self) -> dict[str, int]:
        """Return what the last block's tags were like, counted, for a tagger that tells; else nothing."""
        return dict(getattr(self._tagger, "outcomes", {}))

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the samples' raw tags, ranked."""
        found = self._tagger(table[self._side].to_pylist())
        columns = [table["sample_id"], pa.array(found, pa.list_(pa.string()))]
        return pa.Table.from_arrays(columns, names=RAW_SCHEMA.names).cast(RAW_SCHEMA)


def tags(
    table: pa.Table,
    typing: str,
    config: TaggerConfig | None = None,
    embedder: EmbedderConfig | None = None,
    storage: Storage | None = None,
) -> Typed:
    """Return a meso typing of a table of samples, in this process.

    Args:
        table: sample columns, sorted by sample_id.
        typing: `instruction-meso` or `response-meso`.
        config: tagger and normalisation.
        embedder: of the tags, for the semantic merge.
        storage: where a language model's answers are kept.
    """
    config = config or TaggerConfig()
    counter = TagCounter(config, typing_parts(typing)[0], storage)
    raw = counter(table)
    return normalise(raw, typing, config, partial(embed, config=embedder), counter.outcomes)


def normalise(raw: pa.Table, typing: str, config: TaggerConfig, embed_texts: Embed, outcomes: Mapping[str, int] | None = None) -> Typed:
    """Return the meso typing of samples with raw tags.

    Args:
        raw: RAW_SCHEMA rows sorted by sample_id.
        typing: `instruction-meso` or `response-meso`.
        config: thresholds.
        embed_texts: unit vectors of tags.
        outcomes: counts of what the tagger met, for the manifest.

    Raises:
        TaggerError: too many answers of a language model are of no use.
        NoTypesError: no tag is left.
    """
    check_outcomes(config, outcomes or {})
    found = coded(raw["tags"])
    least = config.threshold(found.n)
    steps: list[dict[str, Any]] = []
    plan: list[tuple[str, Callable[[Tagged], list[str | None]]]] = [
        ("frequency", partial(by_frequency, least=least, backoff=config.name == "keyphrase")),
        ("rules", by_rules),
        ("common", partial(by_share, most=config.max_share * found.n)),
    ]
    if config.merge is not None:
        plan.append(("semantic", partial(by_leader, least_cosine=config.merge, embed_texts=embed_texts)))
    if config.rules is not None:
        plan.append(("association", partial(by_rules_mined, config=config.rules, steps=steps)))
    elif config.mutual is not None:
        plan.append(("association", partial(by_association, least=least, ratio=config.mutual, steps=steps)))
    for name, step in plan:
        new = step(found)
        after = found.renamed(new)
        steps.append(_told(name, found, new, after))
        found = after
    capped = found.capped(config.max_tags)
    new = [name if df else None for name, df in zip(found.names, capped.df(), strict=True)]
    steps.append(_told("cap", found, new, found := capped.renamed(new)))
    if not found.names:
        raise NoTypesError(f"{typing}: {_why_none(steps, found.n, least, config)}")
    manifest = {"tagger": config.name, "stand_in": config.name == "keyphrase", "alpha": least, "steps": steps}
    if outcomes:
        manifest["answers"] = {"model": config.model, **dict(sorted(outcomes.items()))}
    result = _typed(typing, raw["sample_id"], found, manifest)
    log.info("%s: %d tags, %.1f a sample; %s", typing, len(found.names), len(found.codes) / max(1, found.n), _line(steps))
    return result


def _why_none(steps: Sequence[Mapping[str, Any]], n: int, least: int, config: TaggerConfig) -> str:
    """Return which step left no tag, and what to change."""
    step = next(step for step in steps if step.get("after") == 0)
    if not step["before"]:
        return f"the tagger {config.name} gave no sample a tag"
    if step["step"] == "frequency":
        advice = "lower profile.tagger.alpha" if least > scaled(1, n) else "no profile.tagger.alpha asks for fewer; take more samples"
        return f"no tag occurs in {least} samples of {n:,}: {advice}"
    if step["step"] == "common":
        return f"every tag that is left occurs in more than {config.max_share:g} of {n:,} samples: raise profile.tagger.max_share"
    return f"the step {step['step']} left no tag: {'; '.join(step['examples'])}"


def check_outcomes(config: TaggerConfig, outcomes: Mapping[str, int]) -> None:
    """Raise TaggerError where more than `max_wrong` of a language model's answers are of no use."""
    from diversity.typings.taggers.llm import WRONG, too_many_wrong

    wrong = {name: outcomes[name] for name in WRONG if outcomes.get(name)}
    if sum(wrong.values()) > config.llm.max_wrong * outcomes.get("samples", 0):
        detail = ", ".join(f"{count} {name}" for name, count in sorted(wrong.items(), key=lambda item: -item[1]))
        raise too_many_wrong(sum(wrong.values()), outcomes["samples"], config.llm.max_wrong, detail)


def _told(name: str, before: Tagged, new: Sequence[str | None], after: Tagged) -> dict[str, Any]:
    """Return what the manifest says about a step: tags before and after, and its commonest changes."""
    df = before.df()
    changed = sorted((i for i, to in enumerate(new) if to != before.names[i]), key=lambda i: (-df[i], before.names[i]))
    examples = [f"{before.names[i]} ({df[i]}) → {new[i] or 'dropped'}" for i in changed[:EXAMPLES]]
    empty = int((np.diff(after.bounds) == 0).sum())
    return {
        "step": name,
        "before": len(before.names),
        "after": len(after.names),
        "a_sample": round(len(after.codes) / max(1, after.n), 2),
        "without": empty,
        "examples": examples,
    }


def _line(steps: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"{step['step']} {step['before']} → {step['after']}" for step in steps if "after" in step)


def _typed(typing: str, ids: Any, found: Tagged, manifest: dict[str, Any]) -> Typed:
    """Return the typing with tags numbered in ascending order of their UTF-8."""
    order = sorted(range(len(found.names)), key=lambda i: found.names[i].encode())
    number = np.empty(len(order), np.int32)
    number[order] = np.arange(len(order))
    bounds, types, _ = distinct_rows(number[found.codes], found.bounds, len(order))
    data = pa.Table.from_arrays([ids, list_array(types, bounds)], names=DATA_SCHEMA.names).cast(DATA_SCHEMA)
    names = [found.names[i] for i in order]
    table = types_table([name.encode() for name in names], names, found.df()[order])
    return Typed(typing, data, table, manifest)
