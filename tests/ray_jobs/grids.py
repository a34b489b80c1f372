"""Small experiments sealed for real, without a cluster, by the functions that the jobs call."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diversity.artifact import Storage
from diversity.cell import TYPINGS, GridConfig, expand
from diversity.corpus.samples import SAMPLE_SCHEMA, sample_id
from diversity.selection.strategies import DIALLED, SelectionConfig, needs
from diversity.typings.encoders import Encoder, load_encoder
from diversity.typings.tokens import BandConfig, micro
from diversity.typings.typed import DATA_SCHEMA, Typed, types_table
from ray_jobs.job.process import cache_folder
from ray_jobs.tasks import building
from ray_jobs.tasks.building import Sources
from training.model_source import resolve_model

MODEL = "builtin:smollm2-135m"
BAND = BandConfig(low=4, high=120)
WORDS = [f"{a}{b}" for a in ("gar", "lum", "tor", "vek", "zin", "mol") for b in ("an", "ed", "ik", "os", "uth", "yle", "ar", "im")]
SOURCES = ("books", "forum", "wiki")


@cache
def encoder() -> Encoder:
    """Return the real tokenizer, loaded once."""
    return load_encoder("", resolve_model(MODEL, cache_folder(), tokenizer_only=True))


def corpus_table(n: int = 500, seed: int = 0) -> pa.Table:
    """Return samples of Zipf words and very different lengths, some with text that spells special tokens, sorted by sample_id."""
    rng = random.Random(seed)
    weights = [1 / (rank + 3) for rank in range(len(WORDS))]
    made = {}
    for i in range(n):
        odd = rng.choice(["", "", "<|im_end|> ünï", "\ud7a3 日本", "don't  stop"])
        asked = f"Tell {i}: {' '.join(rng.choices(WORDS, weights, k=rng.randint(1, 4)))}"
        answered = f"{' '.join(rng.choices(WORDS, weights, k=rng.randint(1, 14)))} {odd}".strip()
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        row = {"source": rng.choice(SOURCES), "instruction": asked, "response": answered, "messages": messages}
        made[sample_id(messages)] = {"sample_id": sample_id(messages), **row}
    return pa.Table.from_pylist([made[key] for key in sorted(made)], schema=SAMPLE_SCHEMA)


def by_hand(table: pa.Table, typing: str, seed: int) -> Typed:
    """Return a macro or meso typing drawn at random: no or one topic, up to four tags."""
    rng = np.random.default_rng(seed)
    n_types, most = (9, 1) if typing.endswith("macro") else (40, 4)
    chances = 1 / (np.arange(n_types) + 2)
    rows = [np.unique(rng.choice(n_types, rng.integers(0, most + 1), p=chances / chances.sum())) for _ in range(len(table))]
    seen, flat = np.unique(np.concatenate(rows), return_inverse=True)
    bounds = np.cumsum([0, *map(len, rows)])
    lists = [flat[a:b].tolist() for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    data = pa.table({"sample_id": table.column("sample_id"), "types": pa.array(lists, pa.list_(pa.int32()))}, schema=DATA_SCHEMA)
    names = [f"{t:02d}" for t in range(len(seen))]
    return Typed(typing, data, types_table([name.encode() for name in names], names, np.bincount(flat)))


@dataclass(frozen=True)
class Ground:
    """What datasets are chosen from, sealed in a storage."""

    storage: Storage
    table: pa.Table
    sources: Sources


def seal_ground(
    storage: Storage, typings: Sequence[str] = (*TYPINGS, "response-micro@word"), window: tuple[int, int] | None = None
) -> Ground:
    """Seal a corpus in two parts, its typings and its embeddings."""
    table = corpus_table()
    corpus = storage.artifact("corpus", "c").begin()
    for number, start in enumerate((0, 200)):
        corpus.write(table.slice(start, 200 if number == 0 else len(table)), f"data/part-{number:05d}.parquet")
    corpus = corpus.seal({"window": list(window)} if window else {})
    profiles, embeddings = {}, {}
    for number, typing in enumerate(typings):
        found = micro(table, typing, band=BAND, encoder=encoder()) if "-micro" in typing else by_hand(table, typing, number)
        profiles[typing] = storage.artifact("profile", f"p{number}").begin()
        for name, part in found.tables.items():
            profiles[typing].write(part, f"{name}/part-00000.parquet")
        profiles[typing] = profiles[typing].seal({"corpus": "c", **found.summary()})
    for number, side in enumerate(("instruction", "response")):
        vectors = np.random.default_rng(number).normal(size=(len(table), 8))
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 8)
        embeddings[side] = storage.artifact("profile", f"e{number}").begin()
        embeddings[side].write(pa.table({"sample_id": table["sample_id"], "embedding": column}))
        embeddings[side] = embeddings[side].seal({})
    return Ground(storage, table, Sources(corpus, profiles, embeddings, MODEL, SelectionConfig(), GridConfig()))


def build(ground: Ground, selection: SelectionConfig, grid: GridConfig, name: str = "e") -> dict[str, str]:
    """Choose, write, check and seal every cell of a grid and enter it into an index; return the paths by the cells' names."""
    cells = expand(grid, DIALLED)
    dialled = dict.fromkeys(typing for cell in cells for typing in needs(cell, grid).typings)
    peels = {typing: ground.storage.artifact("peel", f"{name}{number}") for number, typing in enumerate(dialled)}
    old = ground.sources
    sources = Sources(old.corpus, old.profiles, old.embeddings, old.model, selection, grid, peels)
    samples = building.load_samples(sources)
    loaded = {typing: building.load_typing(sources, typing) for typing in sources.profiles}
    pruned = {typing: building.prune_typing(loaded[typing], samples, selection, peel) for typing, peel in peels.items()}
    datasets = {cell: ground.storage.artifact("datasets", f"{name}-{cell.name}") for cell in cells}
    for cell, artifact in datasets.items():
        typings = needs(cell, grid).typings
        picks = building.choose(sources, [cell], samples, typings, *(pruned[typing] for typing in typings))
        building.write_and_seal(sources, [cell], [artifact], samples, list(loaded), *loaded.values(), picks)
    paths = {cell.name: artifact.path for cell, artifact in datasets.items()}
    index = {
        "corpus": old.corpus.path,
        "profile": {typing: artifact.path for typing, artifact in old.profiles.items()},
        "embeddings": {side: artifact.path for side, artifact in old.embeddings.items()},
        "peel": {typing: artifact.path for typing, artifact in peels.items()},
        "datasets": paths,
    }
    ground.storage.write_bytes(f"experiments/{name}/index.json", json.dumps({"experiment": name, "artifacts": index}).encode())
    return paths


def rewrite(storage: Storage, path: str, change, folder: str = "data") -> None:  # type: ignore[no-untyped-def]
    """Change the sealed rows of an artifact behind its back: `change` takes and returns a table."""
    artifact = storage.at(path)
    table = change(artifact.read(folder))
    for number, part in enumerate(artifact.parts(folder)):
        pq.write_table(table if number == 0 else table.slice(0, 0), part)


def remanifest(storage: Storage, path: str, change) -> None:  # type: ignore[no-untyped-def]
    """Change a sealed manifest behind its back: `change` alters the dict in place."""
    manifest = storage.at(path).manifest
    change(manifest)
    storage.write_bytes(f"{path}/manifest.json", json.dumps(manifest).encode())


LEVELS = [Fraction(0), Fraction(1, 3), Fraction(1)]
