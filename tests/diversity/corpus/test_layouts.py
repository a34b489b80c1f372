"""A table of public layouts: what is read, what is refused and why, what is carried, and the round trip through every export.

`pytest -s tests/diversity/corpus/test_layouts.py` prints it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from diversity.artifact import Artifact, Storage
from diversity.corpus.config import CorpusConfig
from diversity.corpus.inputs import read_corpus
from diversity.corpus.samples import compact_text, messages_of, sample_id
from diversity.datasets.dataset import DATASET_SCHEMA
from diversity.datasets.export import export
from diversity.datasets.layouts import FORMATS
from tests.diversity.corpus.layouts import LAYOUTS, Layout

ROWS: list[tuple[str, ...]] = []


@pytest.fixture(scope="module", autouse=True)
def table() -> Any:
    yield
    head = ("layout", "read", "kept", "refused", "not carried", *FORMATS)
    widths = [max(len(row[i]) for row in [head, *ROWS]) for i in range(len(head))]
    print("\n" + "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *ROWS]))


def sealed(storage: Storage, samples: pa.Table) -> Artifact:
    artifact = storage.artifact("datasets", "one").begin()
    artifact.write(samples.append_column("chosen_for", pa.array([-1] * len(samples), pa.int32())).cast(DATASET_SCHEMA))
    cell = {"strategy": "random", "size": len(samples), "level": None, "subset_seed": 0, "control": "none"}
    return artifact.seal({"cell": cell, "samples": len(samples)})


def round_trips(folder: Path, samples: pa.Table) -> list[str]:
    """Return for each export whether the same ids are read again, or that it refuses the sample and says why."""
    artifact, found = sealed(Storage(str(folder)), samples), []
    for format in FORMATS:
        (one,) = export({"one": artifact}, format, f"{folder}/{format}", leave_out=True)
        if one.left_out:
            assert one.left_out.total() == len(samples)
            found.append(f"({next(iter(one.left_out))})")
            continue
        again, _, counts = read_corpus(CorpusConfig(paths=[f"{folder}/{format}"], max_rejected=0.0))
        assert again["sample_id"].to_pylist() == samples["sample_id"].to_pylist(), format
        assert (
            again["messages"].to_pylist() == samples["messages"].to_pylist() and again["tools"].to_pylist() == samples["tools"].to_pylist()
        )
        assert not counts.seen.unused, f"{format} is read whole"
        found.append("same")
    return found


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_a_public_layout_is_read_as_what_it_says(tmp_path: Path, layout: Layout) -> None:
    path = tmp_path / f"file{layout.suffix}"
    layout.write(path)
    config = CorpusConfig(paths=[str(path)], columns=layout.columns, max_rejected=1.0)
    if layout.messages is None:
        with pytest.raises(Exception, match=r"1 of 1 rows can't be used") as caught:
            read_corpus(config)
        assert layout.reason in str(caught.value) and str(path) in str(caught.value)
        ROWS.append((layout.name, "1", "0", layout.reason, "", *[""] * len(FORMATS)))
        return
    samples, rejected, counts = read_corpus(config)
    tools = None if layout.tools is None else compact_text(layout.tools)
    assert [messages_of(row) for row in samples["messages"].to_pylist()] == [layout.messages] and len(rejected) == 0
    assert samples["tools"].to_pylist() == [tools]
    assert samples["sample_id"].to_pylist() == [sample_id(layout.messages, tools)]
    assert set(counts.seen.unused) == set(layout.unused)
    ROWS.append((layout.name, "1", "1", "", ", ".join(layout.unused), *round_trips(tmp_path, samples)))


def test_there_are_enough_of_them_and_no_two_alike() -> None:
    assert len(LAYOUTS) >= 40 == len({layout.name for layout in LAYOUTS[:40]})
    assert len({layout.name for layout in LAYOUTS}) == len(LAYOUTS)


def test_rows_that_differ_only_in_what_the_model_is_told_are_different_samples(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]
    rows = [
        {"conversations": turns},
        *({"system": system, "conversations": turns} for system in ("a", "b")),
        {"conversations": turns, "tools": [{"name": "f"}]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples, _, counts = read_corpus(CorpusConfig(paths=[str(path)]))
    assert len(samples) == 4 and not counts.duplicates


def test_the_formats_folder_reads_as_reported(real_data: Path) -> None:
    """Every file of inputs that people report is read whole, but preferences, which are named."""
    folder = real_data / "formats"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/formats, which is not part of the project")
    for path in sorted(folder.iterdir()):
        config = CorpusConfig(paths=[str(path)], max_rejected=0.2)
        if path.name.startswith("06"):
            with pytest.raises(Exception, match=r"preference row.*\{instruction: prompt, response: chosen\}"):
                read_corpus(config)
            continue
        samples, rejected, counts = read_corpus(config)
        assert len(samples) == counts.rows_read - len(rejected) and len(rejected) <= path.name.startswith("10b"), path.name
