"""What files hold, column by column, and the first sample as training sees it: `sft-diversity formats FILE… [flags]`.

    sft-diversity formats mine.jsonl
    sft-diversity formats data/ --columns '{instruction: question, response: answer}' --model /models/llama

Needs no cluster and no weights. It reads the first rows of each file (`--rows`), so that it answers at once whatever the size.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from typing import Any

from diversity.corpus.excerpts import excerpt, kind_of
from diversity.corpus.files import InputFile, find_files
from diversity.corpus.json_rows import Unreadable
from diversity.corpus.readers import WHOLE, read_rows, unread
from diversity.corpus.samples import Rejection, Sample, to_sample
from diversity.corpus.seen import Seen, commonest_first, told_unused
from diversity.corpus.sniff import sniff
from ray_jobs.job.process import cache_folder
from ray_jobs.job.runtime import tool
from ray_jobs.tools.flags import COLUMNS_HELP, by_flags, columns_of, told_by_flags
from training.chat import NO_LABEL, ChatEncoder, load_tokenizer
from training.model_source import resolve_model
from training.templates import Unrenderable

MOST_COLUMNS = 30
EXAMPLE_CHARS = 60


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(prog="sft-diversity formats", description="What files hold, and the first sample as training sees it.")
    parser.add_argument("files", nargs="+", metavar="FILE", help="files, folders, globs or URIs, as ingest reads them")
    parser.add_argument("--columns", metavar="MAPPING", help=COLUMNS_HELP)
    parser.add_argument("--rows", type=int, default=1000, help="rows of each file that are looked at; default 1000")
    parser.add_argument("--model", default="builtin:smollm2-135m", help="whose chat template renders the sample; none renders nothing")
    parser.add_argument("--template", default="auto", help="as sft.template")
    given = parser.parse_args(argv)
    if given.rows < 1:
        parser.error(f"--rows must be at least 1, not {given.rows}")
    return given


@tool("formats")
def main(argv: list[str] | None = None) -> int:
    """Print what each file holds; return 1 where a file gives no sample."""
    given = arguments(argv)
    columns = columns_of(given.columns)
    found: list[bool] = []
    with told_by_flags():
        for file in find_files(given.files):
            lines, sample = describe(file, columns, given.rows)
            print("\n".join(lines))
            if sample is not None and given.model != "none" and not any(found):
                print(rendered(sample, given.model, given.template))
            print()
            found.append(sample is not None)
    return 0 if all(found) else 1


def describe(file: InputFile, columns: Mapping[str, str] | None, most: int) -> tuple[list[str], Sample | None]:
    """Return what to print of a file's first rows, and its first sample.

    Args:
        file: from `find_files`.
        columns: a mapping as in `CorpusConfig.columns`.
        most: rows to look at.

    Raises:
        ReadError: the file can't be read.
    """
    mapped = list(columns.values()) if columns else None
    formats, reasons = Counter[str](), Counter[str]()
    kinds: dict[str, tuple[Counter[str], str]] = {}
    seen, first, rows = Seen(), None, 0
    for number, row in islice(read_rows(file, columns=mapped), most):
        rows += 1
        found: Sample | Rejection
        if isinstance(row, Unreadable):
            found = Rejection(row.reason, row.excerpt)
        else:
            _note(row, kinds)
            found = to_sample(row, default_source=file.name, columns=columns)
        if isinstance(found, Rejection):
            reasons[found.reason] += 1
            seen.refuse(file.shown, number, row, found)
        else:
            formats[found.format] += 1
            seen.unused.update(found.unused)
            first = first or found
    if rows:
        seen.unused.update({name: min(count, rows) for name, count in unread(file, WHOLE, mapped).items()})
    what = sniff(file, mapped or ()).told if file.size else "empty"
    lines = [f"{file.shown}: {what}; of the first {rows} rows {formats.total()} are samples"]
    lines.append(f"format: {', '.join(f'{name} ({count})' for name, count in formats.most_common()) or 'none that is known'}")
    lines += [f"  {line}" for line in _columns_told(kinds, seen, columns, formats.total())]
    if reasons:
        told = commonest_first(reasons)
        lines.append(f"can't be used: {'; '.join(f'{reason} ({count})' for reason, count in told[:5])}")
        lines += [f"  {by_flags(part)}" for part in seen.explained(told[0][0])]
    if seen.unused:
        lines.append(f"not carried: {told_unused(seen.unused)}; --columns maps what should be")
    return lines, first


def rendered(sample: Sample, model: str, template: str) -> str:
    """Return the sample as a model's chat template renders it, what is learnt between ⟦ and ⟧."""
    tokenizer = load_tokenizer(resolve_model(model, cache_folder(), tokenizer_only=True))
    encoder = ChatEncoder(tokenizer, template)
    tools = None if sample.tools is None else json.loads(sample.tools)
    found = encoder.sequences([sample.messages], [tools])[0]
    if isinstance(found, Unrenderable):
        return f"the first sample can't be rendered with template {encoder.template}: {found}"
    encoded = found[-1]
    pieces: list[tuple[bool, list[int]]] = []
    for token, label in zip(encoded.input_ids.tolist(), encoded.labels.tolist(), strict=True):
        learnt = label != NO_LABEL
        if not pieces or pieces[-1][0] != learnt:
            pieces.append((learnt, []))
        pieces[-1][1].append(token)
    text = "".join(f"⟦{tokenizer.decode(ids)}⟧" if learnt else tokenizer.decode(ids) for learnt, ids in pieces)
    head = f"the first sample as training sees it, template {encoder.template}, {len(encoded)} tokens, what is learnt between ⟦ and ⟧:"
    return f"{head}\n{text}"


def _note(row: Any, kinds: dict[str, tuple[Counter[str], str]]) -> None:
    """Take in the kind of value of each column of a row, and the first value that is something."""
    if not isinstance(row, Mapping):
        return
    for name, value in row.items():
        counts, example = kinds.get(str(name), (Counter[str](), ""))
        counts[kind_of(value)] += 1
        if not example and value is not None and value != "":
            example = " ".join(excerpt(value)[:EXAMPLE_CHARS].split())
        kinds[str(name)] = (counts, example)


def _columns_told(kinds: Mapping[str, tuple[Counter[str], str]], seen: Seen, columns: Mapping[str, str] | None, usable: int) -> list[str]:
    """Return a line a column: what it holds, and whether it is carried."""
    fields = {column: field for field, column in (columns or {}).items()}
    width = max((len(name) for name in kinds), default=0)
    lines = []
    for name, (counts, example) in list(kinds.items())[:MOST_COLUMNS]:
        held = ", ".join(f"{kind} ({count})" for kind, count in counts.most_common(3))
        fate = "not carried" if name in seen.unused else f"as {fields[name]}" if name in fields else "carried" if usable else "no sample"
        lines.append(f"{name:<{width}}  {fate:<12} {held}  {example}")
    if len(kinds) > MOST_COLUMNS:
        lines.append(f"and {len(kinds) - MOST_COLUMNS} more columns")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
