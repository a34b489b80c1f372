"""Exports read back: by our own readers to the same ids, by `datasets` to the same messages, and by what each format's own rules say."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from diversity.artifact import Artifact, ArtifactError, Storage
from diversity.corpus.config import CorpusConfig
from diversity.corpus.inputs import read_corpus
from diversity.corpus.samples import SAMPLE_SCHEMA, compact_text, messages_of, sample_id, stored, texts
from diversity.datasets import dataset
from diversity.datasets.card import Exported
from diversity.datasets.dataset import DATASET_SCHEMA, Choice
from diversity.datasets.export import RECORD, ExportError, export, export_file, json_line
from diversity.datasets.layouts import FORMATS, beside_of

LOADED = ["hf", "trl", "trl-prompt-completion"]
TRAPS = st.sampled_from(["\0", "\u2028", "\u2029", "\x85", "\r\n", '"', "\\n", "null", "2026-01-01", "1e5", "\ufeff", "<|im_end|>", "{}"])
WORDS = st.lists(st.one_of(TRAPS, st.text(st.characters(exclude_categories=["Cs"]), max_size=8)), min_size=1, max_size=4).map("".join)
FILLED = WORDS.filter(lambda text: bool(text) and not text.isspace())


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, str]]:
    """Draw a conversation that ingest takes: one exchange, several with a system turn, or turns in any order behind one exchange."""
    exchange = [turn("user", draw(FILLED)), turn("assistant", draw(FILLED))]
    kind = draw(st.integers(0, 2))
    if kind == 0:
        return exchange
    system = [turn("system", draw(WORDS))] if draw(st.booleans()) else []
    if kind == 1:
        further = draw(st.lists(st.tuples(WORDS, WORDS), max_size=2))
        return [*system, *exchange, *(t for user, answer in further for t in (turn("user", user), turn("assistant", answer)))]
    roles = st.sampled_from(["user", "assistant", "system", "tool"])
    return [*system, *exchange, *(turn(draw(roles), draw(WORDS)) for _ in range(draw(st.integers(0, 3))))]


ARGUMENTS = st.dictionaries(WORDS, WORDS | st.integers(-5, 5) | st.none() | st.lists(WORDS, max_size=2), max_size=2)


# Texts that Python's JSON reads, or gives up on, and that no JSON spells again.
ODD_ARGUMENTS = st.sampled_from(
    ['{"x": NaN}', "-Infinity", "1e999", '"\\ud800"', "[" * 2000 + "]" * 2000, "[" * 900 + "]" * 900, "7" * 5000]
)


@st.composite
def tool_calls(draw: st.DrawFn) -> list[dict[str, Any]]:
    found = []
    for number in range(draw(st.integers(1, 2))):
        arguments = draw(ARGUMENTS)
        written = draw(st.just(json.dumps(arguments)) | ODD_ARGUMENTS)
        function = {"name": draw(FILLED), "arguments": written if draw(st.booleans()) else arguments}
        found.append({"type": "function", "function": function, **({"id": f"c{number}"} if draw(st.booleans()) else {})})
    return found


@st.composite
def rich(draw: st.DrawFn) -> tuple[list[dict[str, Any]], str | None]:
    """Draw a conversation and tools that may hold anything that a message can."""
    messages: list[dict[str, Any]] = draw(conversations())
    if draw(st.booleans()):
        caller = draw(st.sampled_from(["assistant"] * 4 + ["user", "tool", "system"]))
        call = {"role": caller, "tool_calls": draw(tool_calls()), **({"content": draw(WORDS)} if draw(st.booleans()) else {})}
        messages = [*messages, turn("user", draw(FILLED)), call, turn("tool", draw(WORDS)), turn("assistant", draw(FILLED))]
    extras = {"name": FILLED, "tool_call_id": FILLED, "reasoning_content": WORDS, "weight": st.sampled_from([1, 0.5])}
    messages = [{**one, **draw(st.fixed_dictionaries({}, optional=extras))} if draw(st.integers(0, 5)) == 0 else one for one in messages]
    tools = draw(st.none() | st.lists(st.fixed_dictionaries({"name": FILLED, "parameters": ARGUMENTS}), min_size=1, max_size=2))
    return messages, None if tools is None else compact_text(tools)


def sample(said: Any, source: str = "some source") -> dict[str, Any]:
    messages, tools = said if isinstance(said, tuple) else (said, None)
    instruction, response = texts(messages)
    found = {"sample_id": sample_id(messages, tools), "source": source, "instruction": instruction, "response": response}
    return {**found, "messages": messages, "tools": tools, "score": None, "chosen_for": 7}


def rows_of(found: list[Any]) -> list[dict[str, Any]]:
    by_id = {row["sample_id"]: row for row in map(sample, found)}
    return [by_id[key] for key in sorted(by_id)]


def sealed(storage: Storage, rows: list[dict[str, Any]], strategy: str = "response-micro", level: float | None = 0.29) -> Artifact:
    artifact = storage.artifact("datasets", f"{strategy}-{level}").begin()
    artifact.write(pa.Table.from_pylist([{**row, "messages": stored(row["messages"])} for row in rows], schema=DATASET_SCHEMA))
    cell = {"strategy": strategy, "size": len(rows), "level": level, "subset_seed": 0, "control": "none"}
    sources = {"some | source": len(rows)}
    facts = {"tokens": {"response": 12}, "coverage": {"response-micro": 0.5}, "sources": sources, "content": "c0ffee"}
    return artifact.seal({"cell": cell, "samples": len(rows), **facts})


@contextmanager
def exported(rows: list[dict[str, Any]], format: str) -> Iterator[tuple[Path, Exported]]:
    """Export a dataset of the rows, leaving out what does not fit; yield the folder and what was left out."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        (found,) = export({"some-data": sealed(Storage(folder), rows)}, format, str(out), leave_out=True)
        yield out, found


ROWS = rows_of([[turn("user", f"What is {i}?"), turn("assistant", f"It is {i}.")] for i in range(5)])
SEVERAL = [turn("system", "Be short."), *ROWS[0]["messages"], turn("user", "And?"), turn("assistant", "Nothing.")]
EXAMPLES = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def fit(row: dict[str, Any], format: str) -> str | None:
    fits = FORMATS[format].fits
    beside = beside_of(row["messages"]) | ({"tools"} if row["tools"] else set())
    return fits(tuple(t["role"] for t in row["messages"]), frozenset(beside)) if fits else None


@EXAMPLES
@given(st.lists(conversations() | rich(), min_size=1, max_size=6), st.sampled_from(sorted(FORMATS)))
def test_our_readers_find_the_same_samples(found: list[Any], format: str) -> None:
    rows = rows_of(found)
    with exported(rows, format) as (out, one):
        assert one.samples + one.left_out.total() == len(rows), "nothing is lost in silence"
        held = [row for row in rows if fit(row, format) is None]
        assume(held)
        samples, rejected, _ = read_corpus(CorpusConfig(paths=[str(out)], max_rejected=0.0))
    assert len(rejected) == 0
    assert samples["sample_id"].to_pylist() == [row["sample_id"] for row in held]
    assert samples["tools"].to_pylist() == [row["tools"] for row in held]
    assert [messages_of(messages) for messages in samples["messages"].to_pylist()] == [row["messages"] for row in held]
    assert set(samples["source"].to_pylist()) == {"some source"}


@settings(EXAMPLES, max_examples=12)
@given(st.lists(conversations() | rich(), min_size=1, max_size=20), st.sampled_from(LOADED))
def test_the_package_datasets_finds_the_same_messages(found: list[Any], format: str) -> None:
    datasets = pytest.importorskip("datasets")
    rows = rows_of(found)
    with exported(rows, format) as (out, one), tempfile.TemporaryDirectory() as cache:
        assume(one.samples)
        loaded = datasets.load_dataset(str(out), "some-data", split="train", cache_dir=cache)
        got = {row["sample_id"]: row for row in loaded}
    assert len(got) == len(loaded) == one.samples
    by_id = {row["sample_id"]: row for row in rows}
    for key, row in got.items():
        messages = messages_of(row["prompt"] + row["completion"] if format == "trl-prompt-completion" else row["messages"])
        assert messages == by_id[key]["messages"]
        assert row.get("tools") == (by_id[key]["tools"] and json.loads(by_id[key]["tools"]))
        assert row["source"] == by_id[key]["source"]
        if format == "hf":
            assert row["chosen_for"] == 7 and row["response"] == by_id[key]["response"]


def test_a_card_names_a_configuration_for_each_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    storage = Storage(str(tmp_path))
    found = {
        "response-micro@word_n5_l029_s0": sealed(storage, ROWS),
        "random_n3_s0": sealed(storage, ROWS[:3], "random", None),
    }
    export(found, "hf", f"{tmp_path}/out")
    assert sorted(datasets.get_dataset_config_names(f"{tmp_path}/out")) == sorted(found)
    for name, size in zip(found, (5, 3), strict=True):
        loaded = datasets.load_dataset(f"{tmp_path}/out", name, split="train", cache_dir=str(tmp_path / "cache"))
        assert [row["sample_id"] for row in loaded] == [row["sample_id"] for row in ROWS[:size]]
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "| random_n3_s0 | 3 | none | random |  | 0 | none |  | 12 | c0ffee |" in card
    assert "| response-micro@word_n5_l029_s0 | 5 | none | response-micro | 0.29 | 0 | none | 50.0% |" in card
    assert "| some \\| source | 3 | 5 |" in card


def by_llama_factory(folder: Path, name: str) -> list[tuple[str, list[str], list[str]]]:
    """Read a dataset as LLaMA-Factory's description says: (system, user's turns, assistant's turns) of each row."""
    info = json.loads((folder / "dataset_info.json").read_text("utf-8"))[name]
    tags, found = info["tags"], []
    assert info["formatting"] == "sharegpt"
    for line in (folder / info["file_name"]).read_bytes().split(b"\n")[:-1]:
        messages = json.loads(line)[info["columns"]["messages"]]
        system = ""
        if messages[0][tags["role_tag"]] == tags["system_tag"]:
            system, messages = messages[0][tags["content_tag"]], messages[1:]
        asked, answered = messages[0::2], messages[1::2]
        assert len(asked) == len(answered)
        assert {m[tags["role_tag"]] for m in asked} <= {tags["user_tag"], tags["observation_tag"]}
        assert {m[tags["role_tag"]] for m in answered} <= {tags["assistant_tag"], tags["function_tag"]}
        found.append((system, [m[tags["content_tag"]] for m in asked], [m[tags["content_tag"]] for m in answered]))
    return found


def test_llama_factory_reads_every_cell_by_one_description(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    found = {"a": sealed(storage, ROWS), "b": sealed(storage, rows_of([SEVERAL]), "random", None)}
    export(found, "llama-factory", f"{tmp_path}/out")
    assert by_llama_factory(tmp_path / "out", "a") == [("", [row["instruction"]], [row["response"]]) for row in ROWS]
    asked, answered = (f"{ROWS[0][side]}" for side in ("instruction", "response"))
    assert by_llama_factory(tmp_path / "out", "b") == [("Be short.", [asked, "And?"], [answered, "Nothing."])]


@EXAMPLES
@given(st.lists(conversations() | rich(), min_size=1, max_size=8))
def test_llama_factory_skips_no_row_that_we_write(found: list[Any]) -> None:
    with exported(rows_of(found), "llama-factory") as (out, one):
        assert len(by_llama_factory(out, "some-data")) == one.samples


def test_an_axolotl_snippet_names_the_file_and_its_fields(tmp_path: Path) -> None:
    export({"a@b": sealed(Storage(str(tmp_path)), ROWS)}, "axolotl", f"{tmp_path}/out")
    (entry,) = yaml.safe_load((tmp_path / "out" / "a-at-b.yaml").read_text("utf-8"))["datasets"]
    assert entry["type"] == "chat_template" and entry["ds_type"] == "json"
    row = json.loads(Path(entry["path"]).read_bytes().split(b"\n")[0])
    mapping = entry["message_property_mappings"]
    assert [turn(m[mapping["role"]], m[mapping["content"]]) for m in row[entry["field_messages"]]] == ROWS[0]["messages"]


def test_sharegpt_has_its_own_names_and_keeps_the_system_turn(tmp_path: Path) -> None:
    export({"a": sealed(Storage(str(tmp_path)), rows_of([SEVERAL]))}, "sharegpt", f"{tmp_path}/out")
    (line,) = (tmp_path / "out" / "a.jsonl").read_text("utf-8").splitlines()
    turns = json.loads(line)["conversations"]
    assert [one["from"] for one in turns] == ["system", "human", "gpt", "human", "gpt"]
    assert [one["value"] for one in turns] == [one["content"] for one in SEVERAL]


def test_what_a_format_cannot_hold_is_told_and_counted(tmp_path: Path) -> None:
    rows = rows_of([*(row["messages"] for row in ROWS), SEVERAL])
    artifact = sealed(Storage(str(tmp_path)), rows)
    with pytest.raises(ExportError, match=r"1 of 6 samples do not fit alpaca: a system turn \(1\), e.g. \w{32}; jsonl, hf.*--leave-out"):
        export({"a": artifact}, "alpaca", f"{tmp_path}/out")
    assert not (tmp_path / "out").exists(), "nothing is written when something would be lost"
    with pytest.raises(ExportError, match="1 of 6 samples do not fit alpaca"):
        export_file(artifact, f"{tmp_path}/out.jsonl", "alpaca")
    (one,) = export({"a": artifact}, "alpaca", f"{tmp_path}/out", leave_out=True)
    assert one.samples == 5 and dict(one.left_out) == {"a system turn": 1}
    record = json.loads((tmp_path / "out" / RECORD).read_text("utf-8"))
    assert record["datasets"]["a"]["left_out"] == {"a system turn": 1} and record["datasets"]["a"]["samples"] == 5
    assert "a system turn (1)" in (tmp_path / "out" / "README.md").read_text("utf-8")


@pytest.mark.parametrize("format", ["sharegpt", "llama-factory"])
@pytest.mark.parametrize("arguments", ['{"x": NaN}', "1e999", '"\\ud800"', "[" * 2000 + "]" * 2000])
def test_arguments_that_json_cannot_spell_stay_the_text_that_they_are(tmp_path: Path, format: str, arguments: str) -> None:
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": arguments}}]}
    rows = rows_of([[turn("user", "1?"), call, turn("tool", "1"), turn("assistant", "1.")]])
    assert export({"a": sealed(Storage(str(tmp_path)), rows)}, format, f"{tmp_path}/out")[0].samples == 1
    (line,) = (tmp_path / "out" / "a.jsonl").read_text("utf-8").splitlines()
    said = json.loads(line)["conversations" if format == "sharegpt" else "messages"][1]
    assert json.loads(said["value" if format == "sharegpt" else "content"]) == {"name": "f", "arguments": arguments}


@pytest.mark.parametrize("format", ["sharegpt", "llama-factory"])
@pytest.mark.parametrize("role", ["user", "tool", "system"])
def test_a_call_by_another_than_the_assistant_is_refused_where_it_would_become_the_assistants(format: str, role: str) -> None:
    call = {"role": role, "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}
    messages = [*ROWS[0]["messages"], call, turn("assistant", "Done.")]
    assert fit(sample(messages), format) == "a tool call by another than the assistant"
    assert fit(sample([*messages[:2], turn("user", "And?"), {**call, "role": "assistant"}]), format) is None


def test_a_former_export_stays_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact, out = sealed(Storage(str(tmp_path)), ROWS), tmp_path / "out"
    export({"a": artifact, "b": artifact}, "jsonl", str(out))
    (tmp_path / "elsewhere").touch()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "elsewhere")
    export_file(artifact, str(tmp_path / "link.jsonl"), "jsonl", overwrite=True)
    assert (tmp_path / "link.jsonl").is_symlink() and (tmp_path / "elsewhere").read_bytes() == (out / "a.jsonl").read_bytes()
    before = {path: path.read_bytes() for path in out.iterdir()}
    written = []

    def full(row: dict[str, Any]) -> bytes:
        written.append(row)
        if len(written) == len(ROWS) + 1:  # in the second of two datasets
            raise OSError("no space left")
        return json_line(row)

    monkeypatch.setattr("diversity.datasets.export.json_line", full)
    with pytest.raises(OSError, match="no space"):
        export({"a": artifact, "c": artifact}, "sharegpt", str(out), overwrite=True)
    written.clear()
    with pytest.raises(OSError, match="no space"):
        export_file(sealed(Storage(str(tmp_path)), ROWS * 2, "random"), str(out / "a.jsonl"), "sharegpt", overwrite=True)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    artifact, out = sealed(Storage(str(tmp_path)), ROWS), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match="is not empty"):
        export({"a": artifact}, "jsonl", str(out))
    export({"a": artifact, "b": artifact}, "jsonl", str(out), overwrite=True)
    export({"b": artifact}, "sharegpt", str(out), overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == [RECORD, "README.md", "b.jsonl", "mine.txt"], "files of the former export go"
    with pytest.raises(ExportError, match="is there already"):
        export_file(artifact, str(out / "b.jsonl"), "jsonl")


@pytest.mark.parametrize("format", ["jsonl", "hf", "trl", "alpaca"])
def test_a_dataset_of_picks_is_read_through_to_its_corpus(tmp_path: Path, format: str) -> None:
    import numpy as np

    storage = Storage(str(tmp_path))
    rows = rows_of([[turn("user", f"Is {i} even?"), turn("assistant", f"{i % 2 == 0}")] for i in range(50)])
    corpus = storage.artifact("corpus", "all").begin()
    table = pa.Table.from_pylist([{name: row.get(name) for name in SAMPLE_SCHEMA.names} for row in rows], schema=SAMPLE_SCHEMA)
    corpus.write(table.slice(0, 20))
    corpus.write(table.slice(20), "data/part-00001.parquet")
    corpus.seal({})
    chosen = np.array([3, 19, 20, 49])
    picks = storage.artifact("datasets", "picks").begin()
    dataset.write_picks(np.array([row["sample_id"] for row in rows], "S32"), {picks: Choice(chosen, np.full(4, 7, np.int32))})
    whole = sealed(storage, [rows[i] for i in chosen])
    picks.seal({**whole.manifest, "materialised": False, "made_from": {"corpus": corpus.path}})
    suffix = FORMATS[format].suffix
    for name, artifact in (("picks", picks), ("whole", whole)):
        export_file(artifact, f"{tmp_path}/{name}{suffix}", format)
    if suffix == ".parquet":
        assert pq.read_table(tmp_path / f"picks{suffix}").equals(pq.read_table(tmp_path / f"whole{suffix}"))
    else:
        assert (tmp_path / f"picks{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()


def test_more_rows_than_a_batch_and_packed_files(tmp_path: Path) -> None:
    rows = rows_of([[turn("user", f"{i}?"), turn("assistant", f"{i}")] for i in range(5000)])
    artifact = sealed(Storage(str(tmp_path)), rows)
    assert export_file(artifact, f"{tmp_path}/a.jsonl.gz", "alpaca") == (5000, {})
    lines = gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()).split(b"\n")[:-1]
    assert [json.loads(line)["sample_id"] for line in lines] == [row["sample_id"] for row in rows]


@given(st.dictionaries(WORDS, WORDS, min_size=1))
def test_a_line_is_one_line_for_everybody(row: dict[str, str]) -> None:
    line = json_line(row)
    assert json.loads(line) == row
    assert len(line.decode().splitlines()) == 1


def test_refusals(tmp_path: Path) -> None:
    artifact = sealed(Storage(str(tmp_path)), ROWS)
    with pytest.raises(ExportError, match=r"unknown format 'llamafactory': did you mean 'llama-factory'\?"):
        export({"a": artifact}, "llamafactory", f"{tmp_path}/out")
    with pytest.raises(ArtifactError, match="is not sealed"):
        export({"a": Storage(str(tmp_path)).artifact("datasets", "none")}, "jsonl", f"{tmp_path}/out")
    assert not (tmp_path / "out").exists()
