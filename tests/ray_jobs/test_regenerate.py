"""Every instruction answered anew, against a real HTTP server of the test's own that breaks off and comes back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from diversity.config import UserError
from diversity.corpus.samples import SAMPLE_SCHEMA, Sample, messages_of, sample_id, samples_table, texts
from diversity.llm.reading import EndpointError
from ray_jobs import heldout, regenerate
from ray_jobs.job.experiment import load_experiment
from ray_jobs.job.runtime import Context, main
from tests.endpoint import Server, completion

N = 60


def sample(i: int) -> Sample:
    messages: list[dict[str, Any]] = [{"role": "user", "content": f"Say {i} in words."}, {"role": "assistant", "content": f"old {i}"}]
    if i % 10 == 0:
        messages += [{"role": "user", "content": "And again."}, {"role": "assistant", "content": f"old {i} again"}]
        messages.append({"role": "user", "content": "Thanks."})
    instruction, response = texts(messages)
    return Sample(sample_id(messages), "made", instruction, response, messages, "messages")


@pytest.fixture
def server() -> Iterator[Server]:
    """Return an endpoint that refuses number 7, cuts number 8, says nothing to 9, and says that the key is bad after `stop_at` requests."""

    def plan(prompt: str, number: int) -> tuple[int, dict[str, str], object]:
        if sum(made.tries.values()) > made.stop_at:
            return 401, {}, b"key revoked"
        found = re.fullmatch(r"Say (\d+) in words\.", prompt)
        which = int(found[1]) if found else -1
        said = {7: (400, {}, b"content filter"), 8: (200, {}, completion("It goes on", "length")), 9: (200, {}, completion("  \n"))}
        return said.get(which, (200, {}, completion(f"new answer to {prompt!r}, in whole sentences")))

    made = Server(plan)
    made.stop_at = 10_000
    yield made
    made.close()


def context(folder: Path, server: Server, *overrides: str) -> Context:
    settings = {
        "experiment": "e",
        "storage": str(folder / "runs"),
        "corpus": {"paths": [str(folder / "nothing.jsonl")]},
        "stages": ["ingest", "regenerate", "heldout"],
        "evaluation": {"heldout": {"in": {"fraction": 0.1}}},
        "grid": {"strategies": ["random"], "sizes": [10]},
        "regenerate": {
            "model": "big",
            "base_url": server.url,
            "system": "Be brief.",
            "temperature": 0.7,
            "extra": {"seed": 1},
            "ifd_samples": 0,
            "endpoint": {"concurrency": 4, "backoff_s": 0.01},
        },
    }
    config = folder / "experiment.yaml"
    config.write_text(yaml.safe_dump(settings))
    return Context(load_experiment(config, list(overrides), inside_job=False), config)


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pa.Table:
    """Seal a corpus by hand where the experiment would have ingested one."""
    from diversity.artifact import Storage

    artifact = Storage(str(tmp_path / "runs")).artifact("corpus", "made-by-hand")
    monkeypatch.setattr(regenerate, "ingested_artifact", lambda given: artifact)
    table = samples_table(sorted((sample(i) for i in range(N)), key=lambda one: one.sample_id))
    target = artifact.begin()
    target.write(table)
    target.seal({"group_by": "prompt", "samples": N, "sources": {"made": N}})
    return table


def test_every_response_is_new_and_what_is_lost_is_counted(tmp_path: Path, server: Server, corpus: pa.Table, ray_local: None) -> None:
    given = context(tmp_path, server)
    regenerate.run(given)
    made = regenerate.source_corpus(given)
    rows, manifest = made.read().to_pylist(), made.manifest
    assert manifest["reasons"] == {"refused": 1, "cut": 1, "empty": 1} and manifest["samples"] == len(rows) == N - 3
    assert made.read().schema == SAMPLE_SCHEMA and [row["sample_id"] for row in rows] == sorted(row["sample_id"] for row in rows)
    for row in rows:
        messages = messages_of(row["messages"])
        assert sample_id(messages) == row["sample_id"] and texts(messages) == (row["instruction"], row["response"])
        assert messages[-1]["content"].startswith("new answer to") and all("Thanks" not in message["content"] for message in messages)
        assert sum(message["role"] == "assistant" for message in messages) == (2 if "again" in row["instruction"] else 1)
    before = made.read("before").to_pylist()
    assert {row["old_sample_id"] for row in before} < set(corpus["sample_id"].to_pylist())
    was = {row["sample_id"]: messages_of(row["messages"]) for row in corpus.to_pylist()}
    for row, conversation in zip(before, regenerate.was_and_is(made.read(), made.read("before"))[0], strict=True):
        old = was[row["old_sample_id"]]
        assert conversation == old[: len(conversation)], "of several turns, only the last assistant's is another one"
    assert [row["sample_id"] for row in before] == [row["sample_id"] for row in rows] and all(
        "old" in row["old_response"] for row in before
    )
    assert {row["reason"].split(":")[0] for row in made.read("rejected").to_pylist()} == {
        "the model's endpoint refused",
        "the answer came to its most tokens",
        "the answer is empty",
    }
    body = server.bodies[0]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."} and body["temperature"] == 0.7 and body["seed"] == 1
    assert manifest["model"]["parameters"]["temperature"] == 0.7 and manifest["model"]["system"] == "Be brief."
    lengths = {row["metric"]: row for row in manifest["before_and_after"]}["mean_length, per-sample"]
    assert lengths["before"] < lengths["after"]
    heldout.run(given)
    assert given.index.get("corpus").manifest["ingested"] == made.path and given.index.get("corpus").manifest["samples"] < N - 3
    assert given.index.get("regenerated") == made


def test_a_run_that_breaks_off_goes_on_and_pays_nothing_twice(tmp_path: Path, server: Server, corpus: pa.Table) -> None:
    server.stop_at = 25
    with pytest.raises(EndpointError, match="key revoked"):
        regenerate.run(context(tmp_path, server, "regenerate.endpoint.concurrency=1"))
    server.stop_at = 10_000
    assert main("regenerate", [str(tmp_path / "experiment.yaml"), "regenerate.budget={requests: 20}"]) == 3
    assert sum(server.tries.values()) == 26, "the requests of the first run are booked, so the budget of 20 is spent"
    regenerate.run(context(tmp_path, server))
    asked = Counter(str(body["messages"]) for body in server.bodies)
    assert sorted(asked.values()) == [1] * (N - 1) + [2], "only what got no answer is asked again"
    assert regenerate.source_corpus(context(tmp_path, server)).sealed
    assert not list((tmp_path / "runs/cache/answers").glob("*/loose/*"))


def test_what_is_asked_again_makes_another_corpus(tmp_path: Path, server: Server, corpus: pa.Table) -> None:
    first = context(tmp_path, server)
    regenerate.run(first)
    asked = len(server.bodies)
    again = context(tmp_path, server, "regenerate.endpoint.ask_again=[refused, cut]")
    assert "2 to pay" in " ".join(regenerate.plan(again)) and not regenerate.source_corpus(again).sealed
    regenerate.run(again)
    assert len(server.bodies) == asked + 2
    regenerate.run(context(tmp_path, server, "regenerate.endpoint.ask_again=[refused, cut]"))
    assert len(server.bodies) == asked + 2 and regenerate.source_corpus(again).manifest["samples"] == N - 3


def test_too_many_lost_is_an_error(tmp_path: Path, server: Server, corpus: pa.Table) -> None:
    with pytest.raises(UserError, match=r"3 of 60 instructions came to nothing .*max_lost is 0.01"):
        regenerate.run(context(tmp_path, server, "regenerate.max_lost=0.01"))


def test_the_corpus_is_another_one_for_another_model_and_not_for_another_address(tmp_path: Path, server: Server, corpus: pa.Table) -> None:
    name = regenerate.source_corpus(context(tmp_path, server)).fingerprint
    elsewhere = context(tmp_path, server, "regenerate.base_url=http://other:1/v1", "regenerate.endpoint.concurrency=1")
    assert regenerate.source_corpus(elsewhere).fingerprint == name
    for change in ("regenerate.model=small", "regenerate.temperature=0", "regenerate.system=null"):
        assert regenerate.source_corpus(context(tmp_path, server, change)).fingerprint != name
