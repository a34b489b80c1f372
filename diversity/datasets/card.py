"""What lies beside exported data: a README that is also a dataset card, LLaMA-Factory's dataset_info.json, snippets for Axolotl."""

from __future__ import annotations

import json
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from diversity.cell import Cell

_USES = {
    "hf": "Every dataset is a configuration:",
    "trl": "`SFTTrainer` takes it as it is; `SFTConfig(assistant_only_loss=True)` trains on the answers alone:",
    "trl-prompt-completion": "`SFTTrainer` takes it as it is and trains on the completion alone:",
    "llama-factory": "Give `dataset_dir: {folder}` and `dataset: {first}` in LLaMA-Factory's configuration.",
    "axolotl": "Paste `{first_file}.yaml` into Axolotl's configuration; all answers are trained on (but those of weight 0), nothing else.",
    "jsonl": "One sample a line: `messages` is what to train on; `instruction` and `response` join its turns.",
    "sharegpt": "One conversation a line: `conversations` of `from` (system, human, gpt, function_call, observation) and `value`.",
    "alpaca": "One exchange a line: `instruction`, `input` (always empty) and `output`.",
}
_LOADS = '```python\nfrom datasets import load_dataset\n\nload_dataset("{folder}", "{first}", split="train")\n```'


@dataclass(frozen=True)
class Exported:
    """One dataset as it was written.

    Attributes:
        name: of the dataset.
        path: its file, relative to the folder of the export.
        samples: how many were written.
        left_out: reasons and counts of those that the format can't hold.
        dataset: path of the sealed dataset in its storage.
        manifest: of the sealed dataset.
        beside: what its samples hold beside role and content, words of `diversity.datasets.layouts`.
    """

    name: str
    path: str
    samples: int
    left_out: Counter[str]
    dataset: str
    manifest: Mapping[str, Any]
    beside: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """Return what the record of an export holds on a dataset."""
        return {
            "file": self.path,
            "samples": self.samples,
            "left_out": dict(self.left_out),
            "beside": list(self.beside),
            "dataset": self.dataset,
            "manifest": dict(self.manifest),
        }


def cell_of(manifest: Mapping[str, Any]) -> Cell:
    """Return the cell that a dataset's manifest describes; a level becomes the shortest decimal that spells it."""
    described = manifest["cell"]
    level = described["level"]
    return Cell(
        described["strategy"],
        described["size"],
        None if level is None else Fraction(str(level)),
        described["subset_seed"],
        described["control"],
    )


def dataset_info(folder: str, exported: Sequence[Exported]) -> dict[str, str]:
    """Return LLaMA-Factory's description of the files: messages by role and content, a first system turn included, and tools."""
    del folder
    described: dict[str, Any] = {
        "formatting": "sharegpt",
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
            "observation_tag": "tool",
            "function_tag": "function_call",
        },
    }
    entries = {}
    for one in exported:
        columns = {"messages": "messages", **({"tools": "tools"} if "tools" in one.beside else {})}
        entries[one.name] = {"file_name": one.path, "columns": columns, **described}
    return {"dataset_info.json": json.dumps(entries, ensure_ascii=False, indent=2) + "\n"}


def axolotl_snippet(folder: str, exported: Sequence[Exported]) -> dict[str, str]:
    """Return a piece of Axolotl's configuration for each dataset: the template is the model's own, the loss is on all answers."""
    import yaml

    snippets = {}
    for one in exported:
        entry = {
            "path": f"{folder.rstrip('/')}/{one.path}",
            "ds_type": "json",
            "type": "chat_template",
            "field_messages": "messages",
            "message_property_mappings": {"role": "role", "content": "content"},
            "roles_to_train": ["assistant"],
            "train_on_eos": "turn",
            **({"field_tools": "tools"} if "tools" in one.beside else {}),
            **({"message_field_training": "training"} if "turns of weight 0" in one.beside else {}),
        }
        stem = one.path.removesuffix(".jsonl")
        snippets[f"{stem}.yaml"] = yaml.safe_dump({"datasets": [entry]}, sort_keys=False, allow_unicode=True)
    return snippets


def card(format: str, folder: str, exported: Sequence[Exported]) -> str:
    """Return the README of an export. For parquet it is a dataset card that names a configuration for each dataset."""
    import yaml

    head = ""
    use = _USES[format]
    if exported[0].path.endswith(".parquet"):
        paths = {one.name: f"{posixpath.dirname(one.path)}/*.parquet" for one in exported}
        configs = [{"config_name": name, "data_files": [{"split": "train", "path": path}]} for name, path in paths.items()]
        matter = {"tags": ["sft-diversity"], "task_categories": ["text-generation"], "configs": configs}
        head = f"---\n{yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)}---\n\n"
        use += f"\n\n{_LOADS}"
    first = exported[0]
    use = use.replace("{folder}", folder).replace("{first}", first.name).replace("{first_file}", first.path.removesuffix(".jsonl"))
    parts = [
        "# Datasets of sft-diversity",
        "Samples chosen from one corpus to an exact size. A level is nominal diversity, from 0 (the least that the size allows) to 1; "
        "coverage is measured: the share of the corpus's types that the samples have.",
        use,
        "## Datasets",
        _datasets_table(exported),
        "## Sources",
        "Texts keep the licences of their sources, which this card does not know.",
        _sources_table(exported),
    ]
    return head + "\n\n".join(parts) + "\n"


def _datasets_table(exported: Sequence[Exported]) -> str:
    rows = []
    for one in exported:
        cell, manifest = cell_of(one.manifest), one.manifest
        coverage = manifest.get("coverage", {}).get(cell.strategy)
        rows.append(
            (
                one.name,
                f"{one.samples:,}",
                ", ".join(f"{reason} ({count:,})" for reason, count in one.left_out.most_common()) or "none",
                cell.strategy,
                "" if cell.level is None else f"{float(cell.level):.3g}",
                str(cell.subset_seed),
                cell.control,
                "" if coverage is None else f"{coverage:.1%}",
                f"{manifest.get('tokens', {}).get('response', 0):,}",
                str(manifest.get("content", "")),
            )
        )
    names = ("name", "samples", "left out", "strategy", "level", "subset seed", "control", "coverage", "response tokens", "content hash")
    return _markdown(names, rows)


def _sources_table(exported: Sequence[Exported]) -> str:
    names = sorted({source for one in exported for source in one.manifest.get("sources", {})})
    counts = {name: [one.manifest.get("sources", {}).get(name, 0) for one in exported] for name in names}
    if len(exported) == 1:
        return _markdown(("source", "samples"), [(name, f"{found[0]:,}") for name, found in counts.items()])
    return _markdown(
        ("source", "fewest in a dataset", "most"), [(name, f"{min(found):,}", f"{max(found):,}") for name, found in counts.items()]
    )


def _markdown(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *([" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
