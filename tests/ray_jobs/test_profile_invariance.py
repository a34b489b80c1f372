"""The token profile is the same for any workers and parts, with a worker killed in the middle, and for any unit that counts tokens."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from diversity.artifact import Artifact
from diversity.config import ConfigError
from diversity.corpus.samples import SAMPLE_SCHEMA, sample_id
from diversity.typings.tokens import BandConfig, micro
from ray_jobs import profile_corpus
from ray_jobs.job.experiment import load_experiment
from ray_jobs.job.process import cache_folder
from ray_jobs.job.runtime import Context
from training.model_source import resolve_model

BAND = BandConfig(low=3, high=400)
TYPINGS = ["response-micro", "response-micro@word"]


@pytest.fixture(scope="module")
def table() -> pa.Table:
    rng = random.Random(0)
    words = [f"{a}{b}" for a in ("tar", "bel", "mor", "kin", "ola") for b in ("dane", "wick", "mont", "grove", "ünï")]
    rows = {}
    for i in range(500):
        messages = [
            {"role": "user", "content": f"About {rng.choice(words)} {i}"},
            {"role": "assistant", "content": " ".join(rng.choices(words, k=rng.randrange(1, 40)))},
        ]
        sides = {"instruction": messages[0]["content"], "response": messages[1]["content"]}
        rows[sample_id(messages)] = {"sample_id": sample_id(messages), "source": "s", "messages": messages, **sides}
    return pa.Table.from_pylist([rows[key] for key in sorted(rows)], schema=SAMPLE_SCHEMA)


def given(folder: Path, table: pa.Table, parts: int, typings: list[str], *overrides: str) -> Context:
    """Return an experiment over the samples, whose corpus lies in so many parts."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "e.yaml"
    settings = {
        "experiment": "e",
        "storage": str(folder / "runs"),
        "corpus": {"paths": [str(folder / "none.jsonl")]},
        "stages": ["ingest", "profile_corpus"],
        "evaluation": {"heldout": None},
        "grid": {"strategies": ["random"], "sizes": [5]},
        "profile": {"typings": typings, "embeddings": "needed", "band": BAND.model_dump()},
    }
    config.write_text(yaml.safe_dump(settings))
    context = Context(load_experiment(config, list(overrides), inside_job=False), config)
    corpus = context.storage.artifact("corpus", "by-hand").begin()
    cuts = np.linspace(0, len(table), parts + 1).astype(int)
    for number, (start, stop) in enumerate(zip(cuts[:-1], cuts[1:], strict=True)):
        corpus.write(table.slice(start, stop - start), f"data/part-{number:05d}.parquet")
    corpus.seal({})
    context.corpus = corpus
    return context


def profiled(folder: Path, table: pa.Table, parts: int, typings: list[str], *overrides: str) -> dict[str, Artifact]:
    """Return the sealed typings of the samples."""
    context = given(folder, table, parts, typings, *overrides)
    profile_corpus.run(context)
    return {typing: profile_corpus.profile_artifact(context, typing) for typing in typings}


def content(artifact: Artifact) -> dict[str, pa.Table]:
    return {folder: artifact.read(folder).combine_chunks() for folder in ("data", "types", "vocabulary")}


@pytest.fixture(scope="module")
def expected(table: pa.Table, tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> dict[str, dict[str, pa.Table]]:
    """Return what one worker makes of one part."""
    made = profiled(tmp_path_factory.mktemp("one"), table, 1, TYPINGS, "resources.data_workers=1")
    return {typing: content(artifact) for typing, artifact in made.items()}


def same(found: dict[str, Artifact], expected: dict[str, dict[str, pa.Table]]) -> bool:
    return all(content(found[typing])[folder].equals(rows) for typing, tables in expected.items() for folder, rows in tables.items())


def test_two_workers_fifty_parts_and_a_killed_worker_give_the_same_content(
    expected: dict[str, dict[str, pa.Table]], table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = tmp_path / "killed"

    @dataclass(frozen=True)
    class Deadly:
        """Ends its own process the way the kernel does when memory runs out, once."""

        artifact: Artifact
        flag: str

        def open(self, tools: Any, first: pa.Table) -> Callable[[int, pa.Table], None]:
            del tools, first
            return self._work

        def _work(self, span: int, rows: pa.Table) -> None:
            del rows
            if span == 9 and not os.path.exists(self.flag):
                with open(self.flag, "w") as stream:
                    stream.write(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)

    real = profile_corpus._works
    monkeypatch.setattr(profile_corpus, "_span_rows", lambda context, n: 25)
    monkeypatch.setattr(
        profile_corpus,
        "_works",
        lambda context, missing: {**real(context, missing), "deadly": Deadly(next(iter(missing.values())), str(killed))},
    )
    found = profiled(tmp_path, table, 50, TYPINGS, "resources.data_workers=2")
    assert killed.exists() and same(found, expected)


def test_another_tokenizers_folder_is_a_unit(table: pa.Table, tmp_path: Path, ray_local: None) -> None:
    """Here the model's own tokenizer without its last merges: other tokens, so other types."""
    own = resolve_model("builtin:smollm2-135m", cache_folder(), tokenizer_only=True)
    folder = tmp_path / "small"
    folder.mkdir()
    spec = json.loads((own / "tokenizer.json").read_text())
    spec["model"]["merges"] = spec["model"]["merges"][:2000]
    merged = {"".join(pair if isinstance(pair, list) else pair.split(" ")) for pair in spec["model"]["merges"]}
    special = {token["content"] for token in spec["added_tokens"]}
    names = [name for name in sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].get) if len(name) == 1 or name in merged | special]
    spec["model"]["vocab"] = {name: number for number, name in enumerate(names)}
    spec["added_tokens"] = [{**token, "id": spec["model"]["vocab"][token["content"]]} for token in spec["added_tokens"]]
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    for name in ("config.json", "tokenizer_config.json"):
        if (own / name).exists():
            shutil.copy(own / name, folder / name)
    typing = "response-micro@small"
    tokenizers = f"profile.tokenizers={{small: '{folder}'}}"
    found = profiled(tmp_path / "a", table, 2, [typing], tokenizers)[typing]
    alone = micro(table, "response-micro", folder=folder, band=BAND)
    assert content(found)["data"].equals(alone.data.combine_chunks())
    assert found.manifest["typing"] == typing
    own_types = micro(table, "response-micro", folder=own, band=BAND).types
    assert content(found)["types"]["label"].to_pylist() != own_types["label"].to_pylist()
    moved = shutil.copytree(folder, tmp_path / "moved")
    again = given(tmp_path / "b", table, 1, [typing], tokenizers.replace(str(folder), str(moved)))
    assert profile_corpus.profile_artifact(again, typing).fingerprint == found.fingerprint
    with pytest.raises(ConfigError, match="unknown unit 'smal': did you mean 'small'"):
        given(tmp_path / "c", table, 1, ["response-micro@smal"], tokenizers)
    with pytest.raises(ConfigError, match="'word' can't be a unit"):
        given(tmp_path / "c", table, 1, [typing], f"profile.tokenizers={{word: '{folder}'}}")


@pytest.mark.parametrize("name", ["cl100k_base", "o200k_base"])
def test_tiktokens_own_encodings_by_name(name: str, table: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(ranks_folder()))
    import tiktoken

    typing = f"response-micro@{name}"
    found = micro(table, typing, band=BAND)
    encoding = tiktoken.get_encoding(name)
    df: dict[int, int] = {}
    for text in table["response"].to_pylist():
        for token in set(encoding.encode(text, disallowed_special=())):
            df[token] = df.get(token, 0) + 1
    kept = {token: count for token, count in df.items() if 3 <= count <= 400}
    assert dict(zip(found.types["token_id"].to_pylist(), found.types["df"].to_pylist(), strict=True)) == kept
    assert found.types["content"].to_pylist() == [encoding.decode_single_token_bytes(token) for token in sorted(kept)]


def ranks_folder() -> Path:
    """Return the folder of tiktoken's rank files: TIKTOKEN_CACHE_DIR, or those that llama-index-core ships."""
    if os.environ.get("TIKTOKEN_CACHE_DIR"):
        return Path(os.environ["TIKTOKEN_CACHE_DIR"])
    spec = importlib.util.find_spec("llama_index")
    for place in spec.submodule_search_locations if spec and spec.submodule_search_locations else []:
        folder = Path(place) / "core/_static/tiktoken_cache"
        if folder.is_dir():
            return folder
    pytest.skip("needs TIKTOKEN_CACHE_DIR, or llama-index-core, whose wheel ships the rank files")
