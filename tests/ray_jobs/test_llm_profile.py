"""The profile stage with the llm tagger, end to end on a real Ray, against an endpoint that breaks off and comes back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from diversity.corpus.samples import SAMPLE_SCHEMA, sample_id
from ray_jobs import profile_corpus
from ray_jobs.job.experiment import load_experiment
from ray_jobs.job.runtime import Context, user_error
from tests.endpoint import Server, completion, tag_answer

N = 60


@pytest.fixture
def server() -> Iterator[Server]:
    """Return an endpoint that refuses the key after `stop_at` requests."""

    def plan(prompt: str, number: int) -> tuple[int, dict[str, str], object]:
        if sum(made.tries.values()) > made.stop_at:
            return 401, {}, b"key revoked"
        return 200, {}, completion(tag_answer("verse" if "poem" in prompt else "arithmetic") if "12" not in prompt else "No.")

    made = Server(plan)
    made.stop_at = 25
    yield made
    made.close()


def context(folder: Path, server: Server, *overrides: str) -> Context:
    settings = {
        "experiment": "e",
        "storage": str(folder / "runs"),
        "corpus": {"paths": [str(folder / "nothing.jsonl")]},
        "evaluation": {"heldout": None},
        "stages": ["ingest", "profile_corpus"],
        "grid": {"strategies": ["random"], "sizes": [10]},
        "profile": {"typings": ["instruction-meso"], "band": {"low": 1}, "tagger": {"max_share": 1, "merge": None}},
    }
    tagger = {"name": "llm", "base_url": server.url, "model": "m", "endpoint": {"concurrency": 1}}
    config = folder / "experiment.yaml"
    config.write_text(yaml.safe_dump(settings))
    given = [f"profile.tagger={yaml.safe_dump({**settings['profile']['tagger'], **tagger}, default_flow_style=True).strip()}"]
    return Context(load_experiment(config, [*given, *overrides], inside_job=False), config)


def test_a_run_that_broke_off_goes_on_and_pays_nothing_twice(
    tmp_path: Path, server: Server, ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_jobs.heldout.corpus_artifact", lambda given: given.storage.artifact("corpus", "made-by-hand"))
    rows = {}
    for i in range(N):
        asked = f"Write poem {i}" if i % 2 else f"Add {i} and {i + 1}"
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": f"It is {i}."}]
        key = sample_id(messages)
        rows[key] = {"sample_id": key, "source": "s", "instruction": asked, "response": f"It is {i}.", "messages": messages}
    given = context(tmp_path, server, "resources.data_workers=2", "profile.embedder.group=16")
    corpus = given.storage.artifact("corpus", "made-by-hand").begin()
    corpus.write(pa.Table.from_pylist([rows[key] for key in sorted(rows)], schema=SAMPLE_SCHEMA))
    corpus.seal({})

    with pytest.raises(Exception) as error:
        profile_corpus.run(given)
    told = user_error(error.value)
    assert told is not None and "HTTP 401: key revoked" in str(told)
    assert not profile_corpus.profile_artifact(given, "instruction-meso").sealed
    server.stop_at = 10_000
    again = context(tmp_path, server, "resources.data_workers=1", "profile.tagger.endpoint.concurrency=8")
    profile_corpus.run(again)
    answered = list(server.tries)[:25]
    assert all(server.tries[prompt] == 1 for prompt in answered), "what was answered before the break is not asked again"
    assert len(server.tries) == N and max(server.tries.values()) <= 2
    before = sum(server.tries.values())
    (Path(profile_corpus.profile_artifact(again, "instruction-meso").uri) / "manifest.json").unlink()
    profile_corpus.run(context(tmp_path, server))
    assert sum(server.tries.values()) == before, "a second run asks nothing"
    sealed = profile_corpus.profile_artifact(again, "instruction-meso")
    assert sealed.fingerprint == profile_corpus.profile_artifact(given, "instruction-meso").fingerprint
    assert sealed.read("types")["label"].to_pylist() == ["arithmetic", "verse"]
    manifest = sealed.manifest
    wrong = sum("12" in row["instruction"] for row in rows.values())
    assert wrong > 0 and manifest["answers"]["no json"] == wrong and manifest["answers"]["ok"] == N - wrong
    assert not manifest["stand_in"] and manifest["empty"] == wrong
    assert not list((tmp_path / "runs" / "cache" / "answers").glob("*/loose/*"))
