"""Say why a sample is in a dataset or is not: `sft-diversity explain DATASET --sample ID [--json]`.

DATASET is the folder of a dataset, or an experiment's index.json or CONFIG.yaml with `--cell NAME`. ID may be cut short. For typed
strategies: the types that the sample brings (label, df, peel position, whether kept), the one it was chosen for, and what it competed with;
for a sample that was not chosen, which types keep it out of the pool or at which candidate each of its types stopped. Needs no cluster.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from diversity.audit.explanation import Choosing, Explanation, Rival, explain_order, explain_typed
from diversity.audit.ground import Types, id_strings
from diversity.cell import FULL, Cell
from diversity.config import ConfigError, load
from diversity.keys import content_priorities, priorities, sample_keys
from diversity.selection.controls import make_control
from diversity.selection.cover import greedily_covered
from diversity.selection.peel import TypedInputs
from diversity.selection.strategies import STRATEGIES, SelectionConfig
from ray_jobs.job.runtime import tool
from ray_jobs.tasks import building
from ray_jobs.tasks.building import Sources
from ray_jobs.tasks.corpus_rows import CorpusRows
from ray_jobs.tools.sealed import CONFIG_HELP, SealedDataset, find, sources_of

EXCERPT = 88


def explain(one: SealedDataset, sample: str, show: int = 5) -> dict[str, Any]:
    """Return why a sample is in a dataset or is not: the `Explanation` as a dict, with the texts of the samples that it names.

    Args:
        one: the dataset.
        sample: a sample_id, or the beginning of one.
        show: how many candidates of a type are listed.

    Raises:
        ConfigError: the corpus has no such sample, or several.
    """
    sources = sources_of([one])
    column = sources.corpus.read(columns=["sample_id"]).column("sample_id")
    ids = id_strings(column)
    row = _row(ids, sample)
    table = one.artifact.read(columns=["sample_id", "chosen_for"])
    rows = np.searchsorted(ids, id_strings(table.column("sample_id")))
    chosen_for = table.column("chosen_for").to_numpy()
    priority = priorities(sample_keys(column), one.cell.subset_seed, "sample")
    if one.cell.typing:
        found = explain_typed(_choosing(one, sources, priority, rows, chosen_for), row, show)
    else:
        found = _untyped(one.cell, sources, priority, row, row in set(rows.tolist()))
    side = (one.cell.typing or "response").partition("-")[0]
    corpus = CorpusRows.of(sources.corpus)
    rivals = {label: [_named(corpus, ids, side, rival) for rival in few] for label, few in found.rivals.items()}
    about = {"dataset": one.artifact.uri, "cell": one.cell.name, **_text(corpus, ids, side, row)}
    return {**about, **{**asdict(found), "rivals": rivals}}


def print_explanation(found: dict[str, Any]) -> None:
    """Print what `explain` found, for a person."""
    print(f"sample {found['sample_id']} of {found['source']}: {found['excerpt']}")
    print(f"{'in' if found['chosen'] else 'NOT in'} {found['cell']} ({found['dataset']})\n")
    print("\n".join(found["because"]), end="\n\n")
    if found["types"]:
        print(
            f"{'type':24} {'df':>6} {'position':>8}  kept  {'in pool':>7} {'in dataset':>10} {'chosen for':>10} {'place':>6} {'reached':>7}"
        )
    for one in found["types"]:
        figures = (
            f"{one['candidates']:7} {one['in_dataset']:10} {one['chosen_for_it']:10} {one['place'] or '-':>6} {one['reached'] or '-':>7}"
        )
        print(f"{_short(repr(one['label']), 24):24} {one['df']:6} {one['position']:8}  {'yes ' if one['kept'] else 'no  '}  {figures}")
    for label, rivals in found["rivals"].items():
        print(f"\ncandidates of {label!r}, in the seeded order:")
        for rival in rivals:
            fate = f"chosen for {rival['chosen_for']!r}" if rival["chosen"] else "not chosen"
            print(f"{rival['place']:6}. {rival['sample_id'][:12]} {fate:24} {rival['source']}: {rival['excerpt']}")


def _row(ids: np.ndarray, sample: str) -> int:
    given = sample.encode()
    first = int(np.searchsorted(ids, given))
    matching = int(np.searchsorted(ids, given + b"g")) - first  # g comes after every hexadecimal digit
    if matching > 1:
        raise ConfigError(f"{matching} samples begin with {sample!r}, e.g. {ids[first].decode()} and {ids[first + 1].decode()}")
    if matching < 1:
        raise ConfigError(f"sample {sample!r} is not in the corpus: held out, outside a length window, rejected, or no sample_id at all")
    return first


def _choosing(one: SealedDataset, sources: Sources, priority: np.ndarray, rows: np.ndarray, chosen_for: np.ndarray) -> Choosing:
    """Return how a typed dataset was chosen, out of its sealed profile and peel; what greedy coverage took is found once more."""
    samples, typing = building.load_samples(sources), building.load_typing(sources, one.cell.strategy)
    target, incidence = one.artifact.manifest["target"], typing.incidence
    peel = sources.peels[typing.name].read().sort_by("type")
    births = sources.peels[typing.name].read("births").column("birth").to_numpy()
    typed = TypedInputs(incidence, content_priorities(typing.content), peel.column("position").to_numpy(), births)
    control = make_control(one.cell.control, samples.tokens, samples.source, len(samples.source_names), samples.scores)
    quota = control.quota(one.cell.size, np.flatnonzero((births >= 1) & (births <= target["k_min"])))
    return Choosing(
        cell=one.cell,
        types=Types(incidence.indptr, incidence.indices, incidence.n_types),
        labels=typing.label,
        df=peel.column("df").to_numpy(),
        position=typed.position,
        births=births,
        priority=priority,
        target=target,
        rows=rows,
        chosen_for=chosen_for,
        passes_over=_passes_over(one.cell, sources.selection),
        greedy=greedily_covered(typed, target["k_realised"], quota, control, samples.keys, one.cell.subset_seed),
    )


def _passes_over(cell: Cell, selection: SelectionConfig) -> str:
    """Return why the next candidate in the seeded order may be passed over under these settings, or ""."""
    if cell.control.endswith("-quota"):
        return f"the control {cell.control} takes from the bin with most of its quota left, and from none that is full"
    if cell.control == "tokens":
        return "the token budget had no room for it, or the last pick was swapped to leave the smallest gap"
    if selection.objective == "concave":
        return "objective concave takes the candidate with the largest gain over all types"
    return ""


def _untyped(cell: Cell, sources: Sources, priority: np.ndarray, row: int, chosen: bool) -> Explanation:
    """Return why a sample is in a dataset of a strategy without types, or is not."""
    if cell.strategy == FULL:
        return Explanation(row, chosen, "", ["The dataset is the whole corpus: it is everything there is."])
    if cell.strategy == "random":
        return explain_order(cell, np.argsort(priority, kind="stable"), row, chosen, f"in the seeded order (seed {cell.subset_seed})")
    if cell.strategy == "longest":
        tokens = sources.profiles["response-micro"].read(columns=["tokens"]).column("tokens").to_numpy()
        by = f"by length, longest first (it has {tokens[row]} response tokens)"
        return explain_order(cell, np.lexsort((priority, -tokens.astype(np.int64))), row, chosen, by)
    rule = (sys.modules[load(STRATEGIES[cell.strategy].function).__module__].__doc__ or "").strip().splitlines()[0]
    return Explanation(row, chosen, "", [f"The strategy {cell.strategy} goes by no types of its own. {rule}"])


def _text(corpus: CorpusRows, ids: np.ndarray, side: str, row: int) -> dict[str, str]:
    found = corpus.read(row, row + 1, ["source", side]).to_pylist()[0]
    return {"sample_id": ids[row].decode(), "source": found["source"], "excerpt": _short(" ".join(found[side].split()), EXCERPT)}


def _named(corpus: CorpusRows, ids: np.ndarray, side: str, rival: Rival) -> dict[str, Any]:
    return {**asdict(rival), **_text(corpus, ids, side, rival.row)}


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


@tool("explain")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool."""
    parser = argparse.ArgumentParser(prog="sft-diversity explain", description="Say why a sample is in a dataset or is not.")
    parser.add_argument(
        "targets", nargs="+", metavar="DATASET", help="a dataset's folder, an index.json, or a CONFIG.yaml with key=value …"
    )
    parser.add_argument("--sample", required=True, metavar="ID", help="sample_id, or the beginning of one")
    parser.add_argument("--cell", metavar="NAME", help="which dataset of an experiment")
    parser.add_argument("--config", nargs="+", default=[], metavar="CONFIG.yaml", help=CONFIG_HELP)
    parser.add_argument("--show", type=int, default=5, metavar="N", help="candidates of a type that are listed")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    given = parser.parse_intermixed_args(argv)
    datasets = find(given.targets, [given.cell] if given.cell else [], given.config)
    if len(datasets) != 1:
        raise ConfigError(f"{len(datasets)} datasets are named; choose one with --cell, e.g. --cell {datasets[0].cell.name}")
    found = explain(datasets[0], given.sample, given.show)
    if given.json:
        print(json.dumps(found, ensure_ascii=False, indent=1))
    else:
        print_explanation(found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
