"""Files of every kind, whole and hostile: every row is yielded once with its number, and what can't be read names its file."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import diversity.corpus.json_rows as json_rows
import diversity.corpus.readers as readers
from diversity.corpus.files import InputFile, ReadError, content_digest, find_files
from diversity.corpus.hub import dataset_files
from diversity.corpus.json_rows import Unreadable, document_rows
from diversity.corpus.readers import WHOLE, read_rows, spans, table_rows, unread

ROWS: list[dict[str, Any]] = [
    {"instruction": "plain", "output": "one"},
    {"instruction": "U+2028 \u2028 and \u0085 and \r inside", "output": "\x00 NUL"},
    {"instruction": "emoji \U0001f600", "output": "中文"},
]
PACKERS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


def put(folder: Path, name: str, data: bytes) -> InputFile:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return InputFile("", str(path), len(data))


def lines(rows: list[Any], newline: str = "\n") -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + newline for row in rows).encode()


def values(file: InputFile) -> list[Any]:
    return [value for _, value in read_rows(file)]


def reasons(file: InputFile) -> list[tuple[int, str]]:
    return [(row, value.reason) for row, value in read_rows(file) if isinstance(value, Unreadable)]


@pytest.mark.parametrize("packed", PACKERS)
def test_every_text_format_packed_or_not(tmp_path: Path, packed: str) -> None:
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, ["instruction", "output"])
    writer.writeheader()
    writer.writerows(ROWS)
    contents = {
        "a.jsonl": lines(ROWS),
        "b.ndjson": b"\xef\xbb\xbf" + lines(ROWS, "\r\n"),
        "c.json": json.dumps(ROWS, indent=2).encode(),
        "d.json": lines(ROWS),
        "e.json": b"\xef\xbb\xbf" + "\n".join(json.dumps(row, indent=1) for row in ROWS).encode(),
        "f.csv": table.getvalue().encode(),
        "g.csv": b"\xef\xbb\xbf" + table.getvalue().encode(),
    }
    for name, content in contents.items():
        file = put(tmp_path, name + packed, PACKERS[packed](content))
        assert list(read_rows(file)) == list(enumerate(ROWS)), name


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather", "stream.arrow"])
def test_every_table_format(tmp_path: Path, name: str) -> None:
    table = pa.table(
        {
            "messages": pa.array([[{"role": "user", "content": "a"}], None, []]),
            "source": pa.array(["x", None, "z"]).dictionary_encode(),
            "instruction": pa.array(["p", "q\x00", "r"], pa.large_string()),
        }
    )
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(table, path, row_group_size=2)
    elif name.startswith("stream"):
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    else:
        feather.write_feather(table, path)
    assert list(read_rows(InputFile("", str(path), path.stat().st_size))) == list(enumerate(table.to_pylist()))


def test_lines_that_are_bad_leave_the_others(tmp_path: Path) -> None:
    good = b'{"instruction": "a", "output": "b"}\n'
    file = put(tmp_path, "a.jsonl", good + b"\n  \r\n{broken\n" + b'{"instruction": "\xff"}\n' + bytes(range(256)) * 3 + b"\n" + good[:-1])
    found = list(read_rows(file))
    # Blank lines are no rows but keep their numbers, so that row + 1 is the line that an editor shows.
    assert [row for row, value in found if isinstance(value, dict)] == [0, found[-1][0]]
    assert reasons(file)[:2] == [(3, "invalid JSON"), (4, "invalid UTF-8")]
    assert len(reasons(file)) >= 4


def test_a_row_of_5_mb_and_one_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = {"instruction": "x" * 5_000_000, "output": "y"}
    assert values(put(tmp_path, "a.jsonl", lines([big, ROWS[0]]))) == [big, ROWS[0]]
    assert values(put(tmp_path, "a.json", json.dumps([big, ROWS[0]]).encode())) == [big, ROWS[0]]
    assert values(put(tmp_path, "a.csv", b'instruction,output\n"' + b"x\n" * 2_500_000 + b'",y\n'))[0]["output"] == "y"
    monkeypatch.setattr(readers, "MAX_ROW_BYTES", 1000)
    file = put(tmp_path, "b.jsonl", lines([big, ROWS[0]]))
    assert [row for row, _ in reasons(file)] == [0] and values(file)[1] == ROWS[0]


def test_csv_cells_are_strings_as_written(tmp_path: Path) -> None:
    text = 'instruction,output\nnull,1e5\n true ,"a\r\nb"\n"say ""hi""", \nonly one\n\na,b,c\n"x"y,z\n'
    found = list(read_rows(put(tmp_path, "a.csv", text.encode() + b"\xff,b\n" + b'"never closed,\nb\n')))
    assert [value for _, value in found[:4]] == [
        {"instruction": "null", "output": "1e5"},
        {"instruction": " true ", "output": "a\r\nb"},
        {"instruction": 'say "hi"', "output": " "},
        {"instruction": "only one"},
    ]
    assert [(row, value.reason) for row, value in found[4:]] == [
        (4, "more cells than columns"),
        (5, "invalid CSV"),
        (6, "invalid UTF-8"),
        (7, "invalid CSV"),
    ]
    assert values(put(tmp_path, "b.tsv", b"instruction\toutput\na,b\tc\n")) == [{"instruction": "a,b", "output": "c"}]


def test_lines_that_a_stray_quote_takes_in_are_counted_and_so_are_repeated_columns(tmp_path: Path) -> None:
    rows = [f"q{i},a{i}" for i in range(1000)]
    for end in (None, 600):
        rows[100] = '"q100,a100'
        if end:
            rows[end] = f'q{end},"a{end}'
        found = list(read_rows(put(tmp_path, "a.csv", "\n".join(["instruction,output", *rows]).encode())))
        bad = [row for row, value in found if isinstance(value, Unreadable)]
        assert [row for row, _ in found] == list(range(1000)) and bad == list(range(100, (end or 999) + 1))
    for header in (b'"in"x,output\na,b\n', b'instruction,"output\na,b\n'):
        with pytest.raises(ReadError, match=r"b\.csv: can't be read"):
            values(put(tmp_path, "b.csv", header))
    assert values(put(tmp_path, "c.csv", b"prompt,response,response,,\na,b,c,d,e\n")) == [
        {"prompt": "a", "response": "b", "response.1": "c", "": "d", ".1": "e"}
    ]


def test_a_cell_that_cant_be_decoded_changes_no_other_row_and_none_where_nobody_reads_it(tmp_path: Path) -> None:
    calls = [[{"name": "f", "arguments": {"q": "v", "unit": None}}], [{"name": "f", "arguments": {"q": None, "unit": "m"}}]]
    raw = pa.array([b"fine", b"\xff\xfe"], pa.binary())
    bad = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    year_12000 = pa.array([0, 316_537_897_600], pa.timestamp("s"))
    table = pa.table({"prompt": ["a", "b"], "messages": calls, "seen": year_12000, "source": ["fine", "y"]})
    broken = table.set_column(3, "source", bad)
    whole, beside = list(table_rows(table)), list(table_rows(broken))
    assert whole[0] == beside[0] == (0, {**whole[0][1], "messages": [{"name": "f", "arguments": {"q": "v"}}]})
    assert whole[1][1]["prompt"] == "b" and whole[1][1]["messages"] == [{"name": "f", "arguments": {"unit": "m"}}]
    assert beside[1][1].reason == "invalid UTF-8"
    assert next(iter(table_rows(table.slice(1), mapped=["seen"])))[1].reason == "cell that Python can't hold"


def test_parquet_strings_that_are_no_unicode_reject_their_rows_alone(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"\xff\xfe", b"\xed\xa0\x80"], pa.binary())
    bad = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    pq.write_table(pa.table({"instruction": bad, "output": ["a", "b", "c"]}), tmp_path / "a.parquet")
    file = InputFile("", str(tmp_path / "a.parquet"), 1)
    assert values(file)[0] == {"instruction": "fine", "output": "a"}
    assert reasons(file) == [(1, "invalid UTF-8"), (2, "invalid UTF-8")]


def test_parquet_reads_only_columns_that_matter(tmp_path: Path) -> None:
    pq.write_table(pa.table({"instruction": ["a"], "output": ["o"], "image": [b"x"], "q": ["b"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"question": ["a"], "answer": ["b"]}), tmp_path / "b.parquet")
    first, second = (InputFile("", str(tmp_path / name), 1) for name in ("a.parquet", "b.parquet"))
    assert values(first) == [{"instruction": "a", "output": "o"}]
    assert [value for _, value in read_rows(first, columns=["q"])] == [{"instruction": "a", "output": "o", "q": "b"}]
    assert values(second) == [{"question": "a", "answer": "b"}]
    pq.write_table(pa.table({"id": ["1"], "system_prompt": ["s"], "question": ["q"], "response": ["r"]}), tmp_path / "c.parquet")
    third = InputFile("", str(tmp_path / "c.parquet"), 1)
    assert set(values(third)[0]) == {"id", "system_prompt", "question", "response"}, "known columns that make no format show the others"
    assert set(next(read_rows(third, columns=["question", "response"]))[1]) == {"system_prompt", "question", "response"}
    pq.write_table(
        pa.table({"instruction": ["a"] * 5, "output": ["b"] * 5, "meta": [{"x": 1, "y": 2}] * 5}), tmp_path / "d.parquet", row_group_size=3
    )
    assert unread(InputFile("", str(tmp_path / "d.parquet"), 1), WHOLE, None) == {"meta": 5}


def test_broken_files_are_named(tmp_path: Path) -> None:
    data = lines(ROWS * 2000)
    broken = {f"a.jsonl{packed}": packer(data)[:-20] for packed, packer in PACKERS.items() if packed}
    broken |= {
        "c.parquet": b"PAR1 and then nothing",
        "d.arrow": b"ARROW1\x00\x00 and then nothing",
        "e.json": b'[{"a": 1}, {"a": ',
        "f.json": b'[{"a": 1} {"a": 2}]',
        "g.json": b'[{"a": 1}, nonsense, {"a": 2}]' + b" " * 100,
        "h.json": b'[{"a": 1}',
        "i.json": b'[{"a": 1}] [2]',
        "j.json": b"[" * 100_000,
    }
    for name, content in broken.items():
        file = put(tmp_path, name, content)
        with pytest.raises(ReadError) as caught:
            spans(file)
            values(file)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value), name
    gone = put(tmp_path, "gone.jsonl", b"{}\n")
    Path(gone.path).unlink()
    with pytest.raises(ReadError, match=r"gone\.jsonl: is not there"):
        values(gone)


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(JSON_VALUES, max_size=6), st.integers(1, 40), st.sampled_from([None, 0, 3]), st.booleans())
def test_a_json_array_in_windows_of_any_size_equals_json_loads(rows: list[Any], window: int, indent: int | None, ascii_: bool) -> None:
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "CHUNK_CHARS", window)
        found = [value for _, value in document_rows(io.BytesIO(text.encode("utf-8")))]
    assert found == rows and list(map(type, found)) == list(map(type, rows))


def test_what_no_window_can_hold_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ReadError, match="4300 digits"):
        values(put(tmp_path, "a.json", b'[{"instruction": ' + b"9" * 5000 + b"}]"))
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 1 << 20)
    with pytest.raises(ReadError, match="longer than 1 MiB; write such data as JSON lines"):
        values(put(tmp_path, "b.json", json.dumps({"version": "1", "data": [{"instruction": "x" * 100, "output": "y"}] * 20_000}).encode()))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80), st.integers(1, 20))
def test_garbage_documents_end_in_rows_or_in_an_error(data: bytes, window: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "CHUNK_CHARS", window)
        with contextlib.suppress(ReadError):
            list(document_rows(io.BytesIO(data)))


def test_invalid_utf8_inside_a_json_array_rejects_its_row_alone(tmp_path: Path) -> None:
    file = put(tmp_path, "a.json", b'[{"a": "\xff"}, {"a": "\\ud800"}, {"a": "b"}]')
    assert reasons(file) == [(0, "invalid UTF-8")] and values(file)[1:] == [{"a": "\ud800"}, {"a": "b"}]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([b"", b"{}", b'{"a": "bb"}', b"  ", b"\xff", b'["' + b"d" * 30 + b'"]']), max_size=30), st.integers(1, 60))
def test_parts_of_a_jsonl_file_add_up_to_the_whole(tmp_path_factory: pytest.TempPathFactory, content: list[bytes], size: int) -> None:
    file = put(tmp_path_factory.mktemp("parts"), "a.jsonl", b"\n".join(content))
    parts = spans(file, size)
    assert [row for span in parts for row in read_rows(file, span)] == list(read_rows(file))
    assert len(parts) <= max(1, len(content))


def test_parts_of_a_parquet_file_add_up_to_the_whole(tmp_path: Path) -> None:
    pq.write_table(pa.table({"instruction": [str(i) for i in range(1000)]}), tmp_path / "a.parquet", row_group_size=64)
    file = InputFile("", str(tmp_path / "a.parquet"), 1)
    parts = spans(file, 1000)
    assert len(parts) > 3
    assert [row for span in parts for row in read_rows(file, span)] == list(read_rows(file))


def test_folders_globs_and_files_are_found_once_and_sorted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in (
        "b/x.jsonl",
        "a/y.parquet",
        "a/deep/z.csv.gz",
        "a/.hidden.jsonl",
        "a/_SUCCESS",
        "a/state.json",
        "a/readme.txt",
        "a/deep/w[1].json",
    ):
        put(tmp_path, name, b"")

    def found(*patterns: str) -> list[str]:
        return [str(Path(file.path).relative_to(tmp_path)) for file in find_files([str(tmp_path / pattern) for pattern in patterns])]

    everything = ["a/deep/w[1].json", "a/deep/z.csv.gz", "a/y.parquet", "b/x.jsonl"]
    assert found("") == found("a", "b", "b/x.jsonl") == found("**") == everything
    assert "readme.txt" in caplog.text
    assert found("*/*.jsonl") == ["b/x.jsonl"]
    assert found("**/*.gz") == ["a/deep/z.csv.gz"]
    assert found("a/*.[a-p]*") == ["a/y.parquet"]
    assert found("a/deep/w[1].json") == ["a/deep/w[1].json"]  # a name that is there is no pattern
    assert found("?/x.*", "[!b]/y.*") == ["a/y.parquet", "b/x.jsonl"]


def test_paths_that_name_nothing(tmp_path: Path) -> None:
    put(tmp_path, "a.txt", b"")
    wrong = {"missing.jsonl": "no such file", "a.txt": "unknown kind", "*.jsonl": "nothing to read", "": "nothing to read"}
    for path, told in wrong.items():
        with pytest.raises(ReadError, match=told):
            find_files([str(tmp_path / path)])
    with pytest.raises(ReadError, match=r"corpus\.paths is empty"):
        find_files([])
    with pytest.raises(ReadError, match="nosuchscheme"):
        find_files(["nosuchscheme://x/y.jsonl"])


def test_uris_are_read_like_paths(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/corpus/a.jsonl", lines(ROWS))
    memory.pipe("/corpus/b.json.gz", gzip.compress(json.dumps(ROWS).encode()))
    memory.pipe("/corpus/c.json.zst", PACKERS[".zst"](json.dumps(ROWS).encode()))
    files = find_files(["memory://corpus/*.json*"])
    assert [file.shown for file in files] == ["memory://corpus/a.jsonl", "memory://corpus/b.json.gz", "memory://corpus/c.json.zst"]
    assert all(list(read_rows(file)) == list(enumerate(ROWS)) for file in files)
    local = put(tmp_path, "a.jsonl", lines(ROWS))
    assert content_digest(files[0]) == content_digest(local) == content_digest(find_files([f"file://{local.path}"])[0])
    assert list(read_rows(find_files([f"file://{local.path}"])[0])) == list(enumerate(ROWS))


def test_a_digest_follows_the_bytes_and_not_the_name_or_time(tmp_path: Path) -> None:
    first, second = put(tmp_path, "a.jsonl", b"{}\n"), put(tmp_path, "b.jsonl", b"{}\n")
    cache = tmp_path / "cache" / "digests.json"
    before = content_digest(first, cache)
    assert before == content_digest(second, cache) == content_digest(first, cache)
    put(tmp_path, "a.jsonl", b'{"a": 1}\n')
    assert content_digest(first, cache) != before


class Hub:
    """What the hub's client answers for a dataset with two splits."""

    def dataset_info(self, name: str, files_metadata: bool) -> Any:
        if name != "owner/name":
            raise OSError("404 Client Error\nRepository Not Found")
        names = [
            "README.md",
            "data/train-00001-of-00002.parquet",
            "data/train-00000-of-00002.parquet",
            "data/test.jsonl",
            "dataset_infos.json",
        ]
        siblings = [SimpleNamespace(rfilename=path, size=5) for path in names]
        return SimpleNamespace(sha="abc123", siblings=siblings)


def test_a_hub_dataset_is_its_files_at_a_commit() -> None:
    train = dataset_files("hf://owner/name:train", Hub())
    assert [path for _, path, _, _ in train] == [f"datasets/owner/name@abc123/data/train-0000{i}-of-00002.parquet" for i in (0, 1)]
    assert len(dataset_files("hf://owner/name", Hub())) == 3
    file = InputFile(*train[0])
    assert file.shown == "hf://datasets/owner/name@abc123/data/train-00000-of-00002.parquet"
    assert content_digest(file) != content_digest(InputFile(*train[1]))
    for uri, told in (
        ("hf://owner/name:dev", "no data file of a split 'dev'"),
        ("hf://a/b", "404 Client Error Repository"),
        ("hf://x", "give a"),
    ):
        with pytest.raises(ReadError, match=told):
            dataset_files(uri, Hub())


def saved(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    """Write a folder as `datasets.save_to_disk` does: data that its state names, and a cache that it doesn't."""
    table = pa.Table.from_pylist(rows)
    for file in (f"{name}/data-00000-of-00001.arrow", f"{name}/cache-1f2e.arrow"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        with pa.OSFile(str(folder / file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    put(folder, f"{name}/state.json", json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}).encode())
    put(folder, f"{name}/dataset_info.json", b"{}")


def names(found: list[InputFile], folder: Path) -> list[str]:
    return [str(Path(file.path).relative_to(folder)) for file in found]


def test_of_a_saved_folder_only_what_its_state_names_is_data_and_splits_are_chosen(tmp_path: Path) -> None:
    saved(tmp_path, "one", ROWS)
    (file,) = find_files([str(tmp_path / "one")])
    assert values(file) == ROWS
    for split in ("train", "test"):
        saved(tmp_path / "dict", split, ROWS)
    put(tmp_path / "dict", "dataset_dict.json", b'{"splits": ["train", "test"]}')
    folder = str(tmp_path / "dict")
    with pytest.raises(ReadError, match=r"several splits, test \(1 file\), train \(1 file\): choose with '.*dict\[train\]'"):
        find_files([folder])
    assert names(find_files([f"{folder}[train]"]), tmp_path) == ["dict/train/data-00000-of-00001.arrow"]
    assert len(find_files([f"{folder}[train+test]"])) == 2
    with pytest.raises(ReadError, match=r"holds no split 'tset': did you mean 'test'\?"):
        find_files([f"{folder}[tset]"])
    for name in ("data/train-00000-of-00001.parquet", "data/dev.jsonl", "data/extra.jsonl"):
        put(tmp_path / "hub", name, b"{}\n")
    assert names(find_files([f"{tmp_path}/hub[validation]"]), tmp_path / "hub") == ["data/dev.jsonl"]
    assert names(find_files([f"{tmp_path}/hub[extra]"]), tmp_path / "hub") == ["data/extra.jsonl"]


@pytest.mark.parametrize("listed", [["*.parquet"], ["**/*.parquet"], ["train-0.parquet", "train-1.parquet", "test-0.parquet"]])
def test_splits_that_a_glob_or_a_list_of_files_mixes_are_named_with_what_to_write(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, listed: list[str]
) -> None:
    for name in ("train-0", "train-1", "test-0"):
        put(tmp_path, f"data/{name}.parquet", b"PAR1")
    assert len(find_files([f"{tmp_path}/data/{name}" for name in listed])) == 3
    assert f"several splits are read as one, test (1 file), train (2 files): {'' if '*' in listed[0] else 'the files of '}" in caplog.text
    (proposed,) = re.findall(r"write '(.*)'", caplog.text)
    caplog.clear()
    assert names(find_files([proposed]), tmp_path) == ["data/train-0.parquet", "data/train-1.parquet"]
    put(tmp_path, "other/test.parquet", b"PAR1")
    find_files([f"{tmp_path}/data/train-*.parquet", f"{tmp_path}/other/test.parquet", f"{tmp_path}/data[train+test]"])
    assert not caplog.text, "two sets of data, and splits that are asked for by name"


def test_a_path_that_is_there_is_taken_as_it_is_written(tmp_path: Path) -> None:
    put(tmp_path / "[D]", "a.jsonl", lines(ROWS))
    put(tmp_path / "D", "b.jsonl", lines(ROWS))
    assert names(find_files([f"{tmp_path}/[D]"]), tmp_path) == ["[D]/a.jsonl"]
    assert names(find_files([f"{tmp_path}/[D]/*.jsonl"]), tmp_path) == ["[D]/a.jsonl"]
    assert names(find_files([f"{tmp_path}/[A-Z]/*.jsonl"]), tmp_path) == ["D/b.jsonl"]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow"])
def test_a_file_without_a_byte_holds_no_rows_and_is_named(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, f"empty{suffix}", b"")
    (file,) = find_files([str(tmp_path)])
    assert values(file) == [] and len(spans(file)) == 1 and f"empty{suffix}" in caplog.text


def test_several_lists_of_rows_in_one_file_are_no_corpus(tmp_path: Path) -> None:
    for order in (("train", "test"), ("test", "train")):
        for indent in (None, 1):
            file = put(tmp_path, "a.json", json.dumps(dict.fromkeys(order, ROWS), indent=indent).encode())
            with pytest.raises(ReadError, match="several lists of rows"):
                values(file)
    assert values(put(tmp_path, "b.json", json.dumps({"data": ROWS, "license": "x", "count": 3}).encode())) == ROWS


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.fixed_dictionaries({"instruction": st.text(), "output": st.text()}), min_size=1, max_size=5), st.sampled_from([None, 0, 3])
)
def test_however_json_is_laid_out_it_holds_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], indent: int | None
) -> None:
    folder = tmp_path_factory.mktemp("layouts")
    layouts = {
        "array": json.dumps(rows, indent=indent),
        "objects": "\n".join(json.dumps(row, indent=indent) for row in rows),
        "wrapped": json.dumps({"data": rows}, indent=indent),
        "behind": json.dumps({"version": 1, "data": rows}, indent=indent),
        "columns": json.dumps({name: [row[name] for row in rows] for name in rows[0]}, indent=indent),
    }
    for name, text in layouts.items():
        for suffix in (".json", ".jsonl"):
            for encoding in ("utf-8", "utf-16", "utf-8-sig"):
                assert values(put(folder, f"{name}{suffix}", text.encode(encoding, "surrogatepass"))) == rows, (name, suffix, encoding)
