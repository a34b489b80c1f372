"""The certificate: whether sealed datasets are what their cells ask for, found out again from sealed files by an auditor of its own.

Nothing of the selection is called here; what a selection gives when it is run again is handed in (`Again`). Each property of each subject
gets a verdict: pass, FAIL, or not applicable with the reason. `python -m ray_jobs certify` reads the files and prints the verdicts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from diversity.audit.ground import Ground, Types, digests
from diversity.audit.promises import FAIL, PASS, PROMISES, Again, Asked, Case
from diversity.audit.recount import TextTypes, frequency_faults, order_fault, text_faults

FROM_TEXT = "from-text"


@dataclass(frozen=True)
class Verdict:
    """What was found about one property of one subject: a dataset by its cell's name, a typing, or the corpus."""

    subject: str
    property: str
    outcome: str
    detail: str


def certify_corpus(ids: np.ndarray, parts: Iterable[pa.Table]) -> tuple[np.ndarray, list[Verdict]]:
    """Return (`(n, 2) uint64` digests of the samples, verdicts on the corpus).

    Args:
        ids: `(n,) S32` of all samples.
        parts: the corpus' tables, one after the other, so that one of them is in memory at a time.
    """
    found, sound = zip(*(digests(part) for part in parts), strict=True)
    ascending = bool((ids[:-1] < ids[1:]).all())
    wrong = int((~np.concatenate(sound)).sum())
    verdicts = [
        _verdict("corpus", "ids", [] if ascending else ["ids do not ascend, or some are there twice"], f"{len(ids)} ids ascend, each once"),
        _verdict(
            "corpus",
            "text",
            [f"{wrong} samples are not the hash of their messages"] if wrong else [],
            "each id is the hash of its messages",
        ),
    ]
    return np.concatenate(found), verdicts


def certify_typing(typing: str, types: Types, table: pa.Table, band: tuple[int, int] | None) -> list[Verdict]:
    """Return the verdict on a sealed typing's own figures; see `frequency_faults`."""
    said = f"{types.n_types} types, {len(types.values)} incidences" + (f", df {band[0]} to {band[1]}" if band else "")
    return [_verdict(f"typing {typing}", "df", frequency_faults(types, table, band), said)]


def certify_order(
    typing: str, types: Types, contents: Sequence[bytes], peel: pa.Table, births: np.ndarray, algorithm: str, closure: str
) -> list[Verdict]:
    """Return the verdicts on a sealed order of types.

    Args:
        typing: its name.
        types: sealed types of each sample.
        contents: of the sealed types.
        peel: type, content, position, df.
        births: the k at which each sample enters the pool, as they are sealed.
        algorithm: `peel`, `static`, or the name of another one, whose steps are not replayed.
        closure: `strict` or `loose`.
    """
    rows = peel.sort_by("type")
    position = rows.column("position").to_numpy()
    faults = []
    if rows.column("content").to_pylist() != list(contents):
        faults.append("it lists other types than the profile")
    elif fault := order_fault(types, contents, position, algorithm):
        faults.append(fault)
    replayed = algorithm in ("peel", "static")
    said = f"{len(position)} types, {'each step replayed' if replayed else f'a permutation ({algorithm} is not replayed)'}"
    verdicts = [_verdict(f"typing {typing}", "order", faults, said)]
    if algorithm != "unique":  # there pools are what is left of samples, and follow from no order of types
        off = int((types.births(position, closure) != births).sum()) if not faults else len(births)
        said = f"{len(births)} samples enter their pool where their types say"
        verdicts.append(_verdict(f"typing {typing}", "births", [f"{off} samples enter at another k"] if off else [], said))
    return verdicts


def certify_text(
    typing: str, found: TextTypes, sealed: Types, units: Sequence[Any], df: np.ndarray, tokens: np.ndarray, band: tuple[int, int]
) -> list[Verdict]:
    """Return the verdict on a micro typing counted again from the text; see `text_faults`."""
    said = f"{int(found.tokens.sum())} tokens give the same {len(found.units)} types with df {band[0]} to {band[1]}, sample by sample"
    return [_verdict(f"typing {typing}", FROM_TEXT, text_faults(found, sealed, units, df, tokens), said)]


class Auditor:
    """Gives verdicts on datasets of one ground, one after the other, and at the end on how their kept types lie in one another."""

    def __init__(self, ground: Ground, *, from_text: bool = False) -> None:
        """Remember what datasets are held against, and whether types were counted again from the text."""
        self.ground = ground
        self._promises = {name: holds for name, holds in PROMISES.items() if from_text or name != FROM_TEXT}
        self._covered: dict[str, list[tuple[Asked, int, np.ndarray]]] = {}

    def dataset(self, asked: Asked, table: pa.Table, manifest: Mapping[str, Any], again: Again) -> list[Verdict]:
        """Return the verdicts on one dataset, all but that on nesting.

        Args:
            asked: what it was asked to be.
            table: its rows as they were read back.
            manifest: as it was read back.
            again: what the selection gives when it is run now.
        """
        case = Case(asked, table, manifest, self.ground, again)
        if asked.cell.typing is not None:
            covered = self.ground.types[asked.cell.strategy].covered(case.known)
            self._covered.setdefault(asked.cell.strategy, []).append((asked, case.target["k_realised"], covered))
        return [Verdict(asked.cell.name, name, *holds(case)) for name, holds in self._promises.items()]

    def nested(self) -> list[Verdict]:
        """Return the verdict on nesting of every typed dataset seen: K_1 within K_2 …, so that what one covers the next one keeps."""
        verdicts = []
        for typing, seen in self._covered.items():
            position = self.ground.positions[typing]
            whole = np.array_equal(np.sort(position), np.arange(1, len(position) + 1))
            by_k = sorted(seen, key=lambda one: one[1])
            chain = len({k for _, k, _ in by_k})
            for place, (asked, k, _) in enumerate(by_k):
                faults = [] if whole else ["positions of types are no permutation"]
                other, _, below = by_k[max(0, place - 1)]
                if asked.closure == "strict" and (lost := int((below & (position > k)).sum())):
                    faults.append(f"{lost} types of {other.cell.name}, which keeps no more, are not kept")
                faults += [f"k {k} is below that of {lower.cell.name}" for lower, more, _ in by_k if more > k and _is_lower(lower, asked)]
                verdicts.append(_verdict(asked.cell.name, "nested", faults, f"K_{k} in a chain of {chain} different k of {typing}"))
        return verdicts


def _is_lower(one: Asked, other: Asked) -> bool:
    """Return whether one is a lower level of the same dial."""
    a, b = one.cell, other.cell
    return (a.size, a.control) == (b.size, b.control) and a.level is not None and b.level is not None and a.level < b.level


def _verdict(subject: str, name: str, faults: Sequence[str], said: str) -> Verdict:
    return Verdict(subject, name, FAIL if faults else PASS, "; ".join(faults) or said)
