"""Ingest and heldout on a real Ray: the same bytes as in one process, for any workers, blocks and order of rows, and one-line errors."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from diversity.artifact import Artifact
from diversity.corpus.heldout import HELDOUT_SCHEMA, InConfig, Sought, candidate_groups, choose_groups, find, held_out, without_leaks
from diversity.corpus.ingestion import content_hash, part_ranges
from diversity.corpus.inputs import Inputs, read_corpus
from diversity.corpus.samples import SAMPLE_SCHEMA
from ray_jobs import heldout, ingest
from ray_jobs.job.experiment import load_experiment
from ray_jobs.job.runtime import Context, main

pytestmark = pytest.mark.usefixtures("ray_local", "cache")
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFT_DIVERSITY_CACHE", str(tmp_path / "cache"))


def rows(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return n rows, of which about a tenth are repeated with another source."""
    rng = random.Random(seed)
    made = [
        {
            "instruction": f"Say {rng.choice(WORDS)} {i}",
            "input": "",
            "output": " ".join(rng.choices(WORDS, k=rng.choice([1, 5, 30]))),
            "source": f"s{i % 5}",
        }
        for i in range(n)
    ]
    return made + [{**row, "source": "again"} for row in made[: n // 10]]


def write_jsonl(path: Path, found: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in found), "utf-8")
    return path


def context(folder: Path, paths: list[Path | str], *overrides: str) -> Context:
    config = folder / "experiment.yaml"
    config.write_text(
        yaml.safe_dump({"experiment": "e", "storage": str(folder / "runs"), "corpus": {"paths": [str(path) for path in paths]}})
    )
    return Context(load_experiment(config, ["evaluation.heldout={in: {fraction: 0.1}}", *overrides], inside_job=False), config)


def ingested(folder: Path, paths: list[Path | str], *overrides: str) -> Artifact:
    given = context(folder, paths, *overrides)
    ingest.run(given)
    return given.index.get("ingested")


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """A folder as people have them: four formats, five kinds of file, bad rows, duplicates across files."""
    folder, found = tmp_path / "messy", rows(120)
    write_jsonl(folder / "alpaca.jsonl", found[:40])
    (folder / "alpaca.jsonl").open("ab").write(b'\n{broken\n{"instruction": "\xff"}\n["a list"]\n')
    chats = [{"conversations": [{"from": "human", "value": r["instruction"]}, {"from": "gpt", "value": r["output"]}]} for r in found[30:70]]
    (folder / "chats.json.gz").write_bytes(gzip.compress(json.dumps([*chats, {"conversations": []}]).encode()))
    pq.write_table(
        pa.table({"prompt": [r["instruction"] for r in found[60:]], "completion": [r["output"] for r in found[60:]]}), folder / "p.parquet"
    )
    (folder / "cells.csv").write_text("instruction,output\nnull,1e5\n,empty\nmore,cells,here\n")
    messages = [
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    ]
    write_jsonl(folder / "deep" / "messages.ndjson", messages)
    return folder


def test_a_messy_folder_equals_reading_it_in_one_process(messy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Inputs, "n_buckets", 8)
    monkeypatch.setattr(ingest, "part_ranges", lambda sizes: part_ranges(sizes, 4000))
    given = context(tmp_path, [messy])
    ingest.run(given)
    artifact = given.index.get("ingested")
    samples, rejected, counts = read_corpus(given.experiment.corpus.model_copy(update={"max_rejected": 1.0}))
    found = artifact.read()
    assert len(artifact.parts()) > 3 and found.schema == SAMPLE_SCHEMA
    assert found.equals(samples) and artifact.manifest["content_hash"] == content_hash(samples)
    told, reread = artifact.read("rejected"), [("file", "ascending"), ("row", "ascending")]
    assert told.sort_by(reread).equals(rejected.sort_by(reread)) and len(told) == 6
    manifest = artifact.manifest
    assert {key: manifest[key] for key in counts.manifest()} == counts.manifest()
    assert manifest["rows_read"] == manifest["samples"] + manifest["duplicates"] + manifest["rejected"] + manifest["beyond_limit"]
    assert {Path(file).name: formats for file, formats in manifest["formats"].items()} == {
        "alpaca.jsonl": {"alpaca": 40},
        "chats.json.gz": {"sharegpt": 40},
        "p.parquet": {"prompt-completion": 72},
        "cells.csv": {"alpaca": 1},
        "messages.ndjson": {"messages": 1},
    }
    assert sorted(path.name for path in Path(artifact.uri).iterdir()) == ["data", "manifest.json", "rejected"]
    assert "corpus" not in given.index.read()  # that is for heldout to say


def test_any_workers_blocks_and_order_give_the_same_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rows(300)
    whole = ingested(tmp_path / "a", [write_jsonl(tmp_path / "a" / "in" / "x.jsonl", found)], "resources.data_workers=1")
    random.Random(1).shuffle(found)
    pieces = [write_jsonl(tmp_path / "b" / f"{i}" / "x.jsonl", found[i::50]) for i in range(50)]
    monkeypatch.setattr(Inputs, "n_buckets", 16)
    cut = ingested(tmp_path / "b", [*pieces], "resources.data_workers=4")
    assert cut.manifest["content_hash"] == whole.manifest["content_hash"]
    assert cut.read().equals(whole.read())
    assert whole.manifest["duplicates_by_source"] == cut.manifest["duplicates_by_source"] and whole.manifest["duplicates"] == 30


def test_a_killed_worker_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [write_jsonl(tmp_path / "a" / "in" / f"{i}.jsonl", rows(90)[i::6]) for i in range(6)]
    (tmp_path / "b").mkdir()
    whole = ingested(tmp_path / "a", [*pieces])
    killed, real = tmp_path / "killed", ingest._stage_unit

    def deadly(artifact: Artifact, unit: Any, columns: Any, n_buckets: int) -> dict[str, Any]:
        """Stage it, and once end the process before anybody hears of it, as the kernel does when memory runs out."""
        report = real(artifact, unit, columns, n_buckets)
        if unit.number == 3 and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return report

    monkeypatch.setattr(ingest, "_stage_unit", deadly)
    again = ingested(tmp_path / "b", [*pieces])
    assert killed.exists() and again.read().equals(whole.read())
    assert again.manifest["rows_read"] == whole.manifest["rows_read"] == 99


def test_the_limit_takes_what_one_process_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Inputs, "n_buckets", 4)
    path = write_jsonl(tmp_path / "x.jsonl", rows(100))
    artifact = ingested(tmp_path, [path], "corpus.limit=37", "evaluation.heldout=null", "stages=[ingest]")
    samples, _, counts = read_corpus(context(tmp_path, [path], "corpus.limit=37").experiment.corpus)
    assert artifact.read().equals(samples) and len(samples) == 37
    assert (artifact.manifest["beyond_limit"], artifact.manifest["duplicates"]) == (63, 10) == (counts.beyond_limit, 10)
    assert context(tmp_path, [path]).index.get("corpus").path == artifact.path


@pytest.mark.parametrize("limit", ["null", "80"])
def test_contaminated_samples_are_reported_or_removed_as_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(Inputs, "n_buckets", 4)
    path, prompts = write_jsonl(tmp_path / "x.jsonl", rows(100)), rows(100)[10:15]
    write_jsonl(tmp_path / "eval.jsonl", [{"prompt": row["instruction"].upper()} for row in prompts])
    clean = ingested(tmp_path, [path], f"corpus.limit={limit}")
    found = {}
    for remove in ("false", "true"):
        overrides = [f"corpus.limit={limit}", f"corpus.contamination={{paths: ['{tmp_path}/eval.jsonl'], remove: {remove}}}"]
        artifact = ingested(tmp_path, [path], *overrides)
        samples, _, counts = read_corpus(context(tmp_path, [path], *overrides).experiment.corpus)
        assert artifact.read().equals(samples)
        assert {key: artifact.manifest[key] for key in counts.manifest()} == counts.manifest()
        assert artifact.manifest["contamination"]["samples"] == len(artifact.read("contaminated")) == 5
        found[remove] = artifact
    assert len({clean.path, *(artifact.path for artifact in found.values())}) == 3
    assert found["false"].manifest["content_hash"] == clean.manifest["content_hash"] != found["true"].manifest["content_hash"]
    assert found["true"].manifest["removed"] == 5
    assert not {row["instruction"] for row in prompts} & set(found["true"].read()["instruction"].to_pylist())


def test_sealed_is_skipped_edited_is_new_and_leftovers_mix_with_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", rows(30))
    first = ingested(tmp_path, [path])
    with monkeypatch.context() as patch:
        patch.setattr(ingest, "_build", None)  # would fail if it were called
        moved = write_jsonl(tmp_path / "elsewhere" / "x.jsonl", rows(30))
        assert ingested(tmp_path, [path]).path == ingested(tmp_path, [moved]).path == first.path
    write_jsonl(path, rows(31))
    leftover = context(tmp_path, [path])
    unsealed = ingest.Ingest(leftover).artifact
    unsealed.begin().write(first.read(), "data/part-00077.parquet")  # by a job that was killed
    second = ingested(tmp_path, [path])
    assert second.path == unsealed.path != first.path and len(second.read()) == 31


def test_errors_are_one_line_and_name_the_file_and_the_reasons(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bad = write_jsonl(tmp_path / "bad.jsonl", [*rows(10), *[{"instruction": "x"}] * 4, *[{"output": 1}] * 2, []])
    packed = tmp_path / "cut.jsonl.gz"
    packed.write_bytes(gzip.compress(json.dumps(rows(1000)).encode())[:-30])
    for paths, told in (
        (
            [bad],
            "7 of 18 rows can't be used, more than corpus.max_rejected = 0.05 allows: response is missing (4); instruction is missing (2)",
        ),
        ([packed], f"{packed}: can't be read"),
        ([tmp_path / "none.jsonl"], "none.jsonl: no such file"),
        ([], "corpus.paths is empty"),
    ):
        given = context(tmp_path, paths)
        capfd.readouterr()
        assert main("ingest", [str(given.config_path)]) == 1
        printed = capfd.readouterr().err
        assert told in printed and "Traceback" not in printed, "errors of tasks travel as values"
        assert given.index.read() == {}
    lenient = ingested(tmp_path, [bad], "corpus.max_rejected=0.5")
    assert lenient.manifest["samples"] == 10
    assert main("ingest", [str(context(tmp_path, [bad]).config_path)]) == 1  # sealed, but not under this limit


def one_process(samples: pa.Table, fraction: float) -> tuple[pa.Table, pa.Table, dict[str, int]]:
    """Return (corpus, held-out samples, counts) as the functions give them without Ray."""
    config = InConfig(fraction=fraction)
    chosen, _ = choose_groups([candidate_groups(samples, config, "prompt", 1.0)], config, len(samples))
    mask = held_out(samples, chosen, "prompt")
    taken, rest = samples.filter(pa.array(mask)), samples.filter(pa.array(~mask))
    sought = Sought.of(taken)
    return rest, *without_leaks(taken, "in", "prompt", sought, find(rest, sought))


def test_heldout_equals_one_process_and_out_changes_no_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Inputs, "n_buckets", 4)
    monkeypatch.setattr(ingest, "part_ranges", lambda sizes: part_ranges(sizes, 10_000))
    path = write_jsonl(tmp_path / "x.jsonl", rows(200))
    given = context(tmp_path, [path])
    with pytest.raises(Exception, match=r"make it with: python -m ray_jobs\.ingest"):
        heldout.run(given)
    ingest.run(given)
    assert len(given.index.get("ingested").parts()) > 2
    heldout.run(given)
    everything, corpus, held = (given.index.get(kind) for kind in ("ingested", "corpus", "heldout"))
    rest, kept, counts = one_process(everything.read(), 0.1)
    assert corpus.read().equals(rest) and corpus.manifest["content_hash"] == content_hash(rest)
    assert corpus.manifest["samples"] == 180 and corpus.manifest["held_out"] == 20 and len(corpus.read("rejected")) == 0
    assert held.manifest["in"] == counts and 0 < counts["leaked"] < 20
    assert held.read().equals(kept.sort_by("sample_id")) and held.read().schema == HELDOUT_SCHEMA
    outside = write_jsonl(
        tmp_path / "out.jsonl",
        [
            {"q": "new", "r": "unheard of"},
            {"q": "leaks", "r": rest["response"][0].as_py().upper()},
            {"q": rest["instruction"][1].as_py(), "r": "fine"},
        ],
    )
    both = context(tmp_path, [path], f"evaluation.heldout.out={{paths: [{outside}], columns: {{instruction: q, response: r}}}}")
    scored = context(
        tmp_path, [path], f"evaluation.heldout.out={{paths: [{outside}], columns: {{instruction: q, response: r}}, min_score: 3}}"
    )
    assert heldout.Heldout(scored).artifact.path != heldout.Heldout(both).artifact.path, "what decides the content is in the name"
    heldout.run(both)
    assert both.index.get("corpus").path == corpus.path and both.index.get("heldout").path != held.path
    table = both.index.get("heldout").read()
    assert both.index.get("heldout").manifest["out"] == {
        "samples": 2, "leaked": 1, "leaked_response": 1, "leaked_grams": 0, "prompt_in_corpus": 1,
    }  # fmt: skip
    assert table.filter(pc.equal(table["split"], "in")).equals(held.read())
    before = Path(both.index.get("heldout").uri, "manifest.json").stat().st_mtime_ns
    heldout.run(both)
    assert Path(both.index.get("heldout").uri, "manifest.json").stat().st_mtime_ns == before
    asked = write_jsonl(tmp_path / "asked.jsonl", [{"prompt": "who?", "reference": None}, {"prompt": "NEW"}])
    more = context(tmp_path, [path], f"evaluation.heldout.prompts={{paths: [{asked}]}}")
    heldout.run(more)
    table, sealed = more.index.get("heldout").read(), more.index.get("heldout")
    assert more.index.get("corpus").path == corpus.path and sealed.path != held.path
    assert sealed.manifest["prompts"] == {"rows_read": 2, "samples": 2, "in_other_splits": 0, "duplicates": 0, "blank": 0}
    assert table.filter(pc.equal(table["split"], "in")).equals(held.read())
    assert sorted(table.filter(pc.equal(table["split"], "prompts"))["instruction"].to_pylist()) == ["NEW", "who?"]
    out = f"evaluation.heldout.out={{paths: [{outside}], columns: {{instruction: q, response: r}}}}"
    beside = context(tmp_path, [path], out, f"evaluation.heldout.prompts={{paths: [{asked}]}}")
    heldout.run(beside)
    assert beside.index.get("heldout").manifest["prompts"]["in_other_splits"] == 1, "`out` asks what is new"
    write_jsonl(path, rows(150))
    edited = context(tmp_path, [path])
    with pytest.raises(Exception, match=r"make it with: python -m ray_jobs\.ingest"):
        heldout.run(edited)
    ingest.run(edited)
    heldout.run(edited)
    assert edited.index.get("corpus").manifest["samples"] == 135


def test_plans_tell_what_is_made_and_what_is_sealed(tmp_path: Path) -> None:
    given = context(tmp_path, [write_jsonl(tmp_path / "x.jsonl", rows(30))])
    assert "1 files" in ingest.plan(given)[0] and "to be made" in ingest.plan(given)[1]
    assert "not sealed yet: python -m ray_jobs.ingest" in heldout.plan(given)[0]
    ingest.run(given)
    assert "sealed already" in ingest.plan(given)[1]
    assert all("to be made" in line for line in heldout.plan(given))


def test_the_longest_run_of_one_worker_holds_a_part_and_no_more() -> None:
    sizes = np.full(1024, 16 << 20).tolist()
    assert max(len(run) for run in part_ranges(sizes)) * (16 << 20) <= 128 << 20
