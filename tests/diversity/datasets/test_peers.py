"""Exports in the hands of those they are made for: LLaMA-Factory's own converter, TRL's own rendering.

`pip install sft-diversity[peers]` brings TRL. LLaMA-Factory pins other versions of packages that we need: `pip install --no-deps
llamafactory` puts its reader of data sets beside ours.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest

from diversity.artifact import Artifact, Storage
from diversity.corpus.samples import compact_text, sample_id, stored, texts
from diversity.datasets.dataset import DATASET_SCHEMA
from diversity.datasets.export import export
from tests.diversity.corpus.layouts import CALLED, FUNCTION, PLAIN, SYSTEM, THOUGHT, TOOL, TURNS

datasets = pytest.importorskip("datasets")
SAID = [(PLAIN, None), (SYSTEM, None), (TURNS, None), (CALLED, [TOOL]), (FUNCTION, [TOOL])]


def sealed(folder: Path, said: list[tuple[Any, Any]]) -> tuple[Artifact, list[tuple[Any, Any]]]:
    """Return a sealed dataset of conversations, and them in its order."""
    rows = {}
    for messages, tools in said:
        text = None if tools is None else compact_text(tools)
        sides = dict(zip(("instruction", "response"), texts(messages), strict=True))
        key = sample_id(messages, text)
        rows[key] = (
            {"sample_id": key, "source": "s", **sides, "messages": stored(messages), "tools": text, "chosen_for": -1},
            messages,
            tools,
        )
    artifact = Storage(str(folder)).artifact("datasets", "one").begin()
    artifact.write(pa.Table.from_pylist([rows[key][0] for key in sorted(rows)], schema=DATASET_SCHEMA))
    cell = {"strategy": "random", "size": len(rows), "level": None, "subset_seed": 0, "control": "none"}
    return artifact.seal({"cell": cell, "samples": len(rows)}), [rows[key][1:] for key in sorted(rows)]


@pytest.fixture
def llama_factory() -> Iterator[tuple[Any, Any]]:
    """Return (parser, converter) of LLaMA-Factory without the models and media that its package loads with them."""
    spec = importlib.util.find_spec("llamafactory")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("needs LLaMA-Factory: pip install --no-deps llamafactory")
    bare = ModuleType("llamafactory.data")
    bare.__path__ = [str(Path(next(iter(spec.submodule_search_locations))) / "data")]
    before = set(sys.modules)
    sys.modules["llamafactory.data"] = bare
    try:
        yield importlib.import_module("llamafactory.data.parser"), importlib.import_module("llamafactory.data.converter")
    except ImportError as error:
        pytest.skip(f"this LLaMA-Factory does not load here: {error}")
    finally:
        for name in set(sys.modules) - before:
            if name.startswith("llamafactory"):
                del sys.modules[name]


def test_llama_factory_reads_every_row_as_it_was(tmp_path: Path, llama_factory: tuple[Any, Any]) -> None:
    parser, converter = llama_factory
    artifact, said = sealed(tmp_path, SAID)
    export({"some-data": artifact}, "llama-factory", f"{tmp_path}/out")
    (attr,) = parser.get_dataset_list(["some-data"], f"{tmp_path}/out")
    file = f"{tmp_path}/out/{attr.dataset_name}"
    loaded = datasets.load_dataset("json", data_files=file, split="train", cache_dir=str(tmp_path / "cache"))
    convert = converter.get_dataset_converter(attr.formatting, attr, None)
    roles = {"user": "user", "assistant": "assistant", "tool": "observation"}
    for row, (messages, tools) in zip(loaded, said, strict=True):
        found = convert(row)
        turns = [*found["_prompt"], *found["_response"]]
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        messages = messages[1:] if system else messages
        assert found["_system"] == system and len(turns) == len(messages), "LLaMA-Factory skips what it can't read"
        for turn, message in zip(turns, messages, strict=True):
            if "tool_calls" in message:
                assert turn["role"] == "function" and json.loads(turn["content"]) == {"name": "search", "arguments": {"q": "Vienna"}}
            else:
                assert turn == {"role": roles[message["role"]], "content": message["content"]}
        assert (json.loads(found["_tools"]) if found["_tools"] else None) == tools


def test_trl_renders_every_row_as_the_tokenizer_does(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl.data_utils")
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_words(), eos_token="</s>")
    tokenizer.chat_template = (
        "{% if tools %}[{% for tool in tools %}{{ tool | tojson }}{% endfor %}]{% endif %}{% for m in messages %}<{{ m.role }}>"
        "{% if m.reasoning_content is defined %}({{ m.reasoning_content }}){% endif %}"
        "{% if m.content is defined %}{{ m.content }}{% endif %}{% if 'tool_calls' in m %}"
        "{% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}{% endif %}"
        "{% if 'tool_call_id' in m %}#{{ m.tool_call_id }}{% endif %}{% endfor %}"
    )
    artifact, said = sealed(tmp_path, [*SAID, (THOUGHT, None)])
    export({"some-data": artifact}, "trl", f"{tmp_path}/out")
    loaded = datasets.load_dataset(f"{tmp_path}/out", "some-data", split="train", cache_dir=str(tmp_path / "cache"))
    for row, (messages, tools) in zip(loaded, said, strict=True):
        assert trl.is_conversational(row)
        rendered = trl.apply_chat_template({"messages": row["messages"]}, tokenizer, tools=row["tools"])["text"]
        assert rendered == tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)


def _words() -> Any:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({"</s>": 0, "[UNK]": 1}, unk_token="[UNK]"))
