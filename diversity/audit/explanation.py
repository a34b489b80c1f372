"""Why a sample is in a dataset, or is not: its types, the type it was chosen for, and the candidates that it competed with.

A typed strategy takes, for the type whose turn it is, the candidate that comes first in the seeded order and is not taken yet. So a chosen
sample is explained by the candidates of its type that stand before it, and one that was not chosen by the place at which each of its types
stopped. Where the kept types, taken rarest first, don't all fit the size, greedy coverage takes the sample that adds most types out of a
window of the pool instead, for the rarest type that it adds, and candidates of that type are passed over; turns only fill what is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diversity.audit.ground import Types
from diversity.cell import Cell

_GREEDY = (
    "taken rarest first, the kept types did not all fit the size, "
    "so greedy coverage took the sample that added most types out of a window of the pool"
)


@dataclass(frozen=True)
class Choosing:
    """How a typed dataset was chosen, over the rows of its corpus.

    Attributes:
        cell: what was asked for.
        types: of each sample.
        labels, df, position: of each type; position 1 was given up last.
        births: the k at which each sample enters the pool, 0 for never.
        priority: of each sample, lower first.
        target: k_realised, k_min, M and covered of the manifest.
        rows, chosen_for: of the dataset, ascending rows.
        passes_over: why a candidate that comes first may be passed over under these settings; "" where only greedy coverage does.
        greedy: rows that greedy coverage took; none where rarest first fitted.
    """

    cell: Cell
    types: Types
    labels: Sequence[str]
    df: np.ndarray
    position: np.ndarray
    births: np.ndarray
    priority: np.ndarray
    target: Mapping[str, Any]
    rows: np.ndarray
    chosen_for: np.ndarray
    passes_over: str = ""
    greedy: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True)
class Rival:
    """A candidate of a type: its corpus row, its place among the type's candidates (from 1), and the type it was chosen for, if it was."""

    row: int
    place: int
    chosen: bool
    chosen_for: str


@dataclass(frozen=True)
class BroughtType:
    """One type of a sample.

    Attributes:
        type, label, df, position: as the peel has them.
        kept: whether it is one of K_k.
        candidates: samples of the pool that have it.
        in_dataset: samples of the dataset that have it.
        chosen_for_it: samples that were chosen for it.
        place: of the sample among the candidates in the seeded order, from 1; 0 where it is no candidate.
        reached: place of the last candidate that was chosen for it; 0 where none was.
    """

    type: int
    label: str
    df: int
    position: int
    kept: bool
    candidates: int
    in_dataset: int
    chosen_for_it: int
    place: int
    reached: int


@dataclass(frozen=True)
class Explanation:
    """Why a sample is in a dataset or is not.

    Attributes:
        row: corpus row of the sample.
        chosen: whether it is in the dataset.
        chosen_for: label of the type it was chosen for, "" for none.
        because: sentences.
        types: what it brings, kept ones first, rarest first.
        rivals: by a type's label, the first candidates of the type in the seeded order, and the sample itself.
    """

    row: int
    chosen: bool
    chosen_for: str
    because: list[str]
    types: list[BroughtType] = field(default_factory=list)
    rivals: dict[str, list[Rival]] = field(default_factory=dict)


def explain_typed(choosing: Choosing, row: int, show: int = 5) -> Explanation:
    """Return why a sample of the corpus is in a typed dataset, or is not.

    Args:
        choosing: how the dataset was chosen.
        row: of the sample in the corpus.
        show: how many candidates of a type are listed.
    """
    asked = _Asked(choosing)
    own = choosing.types.values[choosing.types.bounds[row] : choosing.types.bounds[row + 1]].tolist()
    brought = sorted((asked.brought(t, row) for t in own), key=lambda one: (not one.kept, one.candidates, one.type))
    if row in asked.reason:
        t = asked.reason[row]
        return Explanation(
            row, True, choosing.labels[t], _why_chosen(asked, t, row), brought, {choosing.labels[t]: asked.rivals(t, row, show)}
        )
    if not own:
        because = ["It has no type of this typing, so it is in no pool."]
    elif not 1 <= choosing.births[row] <= asked.k:
        because = _why_outside(asked, brought, int(choosing.births[row]))
    else:
        kept = [one for one in brought if one.kept]
        rivals = {one.label: asked.rivals(one.type, row, show) for one in kept[:show]}
        return Explanation(row, False, "", _why_lost(asked, kept), brought, rivals)
    return Explanation(row, False, "", because, brought)


def explain_order(cell: Cell, order: np.ndarray, row: int, chosen: bool, by: str) -> Explanation:
    """Return why a sample is in a dataset that takes samples in one order, or is not.

    Args:
        cell: what was asked for.
        order: all rows, first taken first.
        row: of the sample.
        chosen: whether it is in the dataset.
        by: what the order goes by.
    """
    place = int(np.flatnonzero(order == row)[0]) + 1
    limit = {"none": f"the first {cell.size} are taken", "length-window": f"the first {cell.size} are taken"}
    says = limit.get(cell.control, f"the first that the control {cell.control} has room for are taken")
    return Explanation(row, chosen, "", [f"It stands at place {place} of {len(order)} {by}; {says}."])


class _Asked:
    """What is asked of one `Choosing` again and again."""

    def __init__(self, choosing: Choosing) -> None:
        self.choosing = choosing
        self.k = choosing.target["k_realised"]
        self.reason = dict(zip(choosing.rows.tolist(), choosing.chosen_for.tolist(), strict=True))
        self.greedy = set(choosing.greedy.tolist()) & self.reason.keys()
        self._pool = (choosing.births >= 1) & (choosing.births <= self.k)
        self._places: dict[int, np.ndarray] = {}

    def candidates(self, t: int) -> np.ndarray:
        """Return the rows of the pool that have a type, in the seeded order."""
        if t not in self._places:
            types = self.choosing.types
            rows = np.searchsorted(types.bounds, np.flatnonzero(types.values == t), side="right") - 1
            rows = rows[self._pool[rows]]
            self._places[t] = rows[np.argsort(self.choosing.priority[rows], kind="stable")]
        return self._places[t]

    def brought(self, t: int, row: int) -> BroughtType:
        """Return what is to be said about one type of a sample."""
        choosing, candidates = self.choosing, self.candidates(t)
        for_it = np.array([self.reason.get(int(r)) == t for r in candidates], bool)
        place = np.flatnonzero(candidates == row)
        return BroughtType(
            type=t,
            label=choosing.labels[t],
            df=int(choosing.df[t]),
            position=int(choosing.position[t]),
            kept=bool(choosing.position[t] <= self.k),
            candidates=len(candidates),
            in_dataset=sum(int(r) in self.reason for r in candidates),
            chosen_for_it=int(for_it.sum()),
            place=int(place[0]) + 1 if len(place) else 0,
            reached=int(np.flatnonzero(for_it)[-1]) + 1 if for_it.any() else 0,
        )

    def rivals(self, t: int, row: int, show: int) -> list[Rival]:
        """Return the first candidates of a type, and the sample itself where it stands further behind."""
        candidates = self.candidates(t)
        places = sorted({*range(min(show, len(candidates))), *np.flatnonzero(candidates == row).tolist()})
        return [self._rival(int(candidates[place]), place + 1) for place in places]

    def _rival(self, row: int, place: int) -> Rival:
        reason = self.reason.get(row)
        return Rival(row, place, reason is not None, "" if reason is None else self.choosing.labels[reason])


def _why_chosen(asked: _Asked, t: int, row: int) -> list[str]:
    """Return the sentences on a sample that was chosen for a type."""
    candidates = asked.candidates(t)
    place = int(np.flatnonzero(candidates == row)[0])
    passed = sum(int(r) not in asked.reason for r in candidates[:place])
    label = asked.choosing.labels[t]
    said = [
        f"It was chosen for the type {label!r}, which {len(candidates)} samples of the pool have; "
        f"in the seeded order of these it stands at place {place + 1}."
    ]
    if row in asked.greedy:
        said.append(f"It was the one of its window: {_GREEDY}.")
    elif not passed:
        before = {0: "It is the first of them", 1: "The one before it is in the dataset too"}
        said.append(before.get(place, f"The {place} before it are in the dataset too") + ": it was the next when the type's turn came.")
    else:
        said.append(f"{passed} of the {place} before it are not in the dataset: {asked.choosing.passes_over}.")
    return said


def _why_outside(asked: _Asked, brought: Sequence[BroughtType], birth: int) -> list[str]:
    """Return the sentences on a sample outside the pool."""
    target = asked.choosing.target
    given_up = [one for one in brought if not one.kept]
    names = ", ".join(f"{one.label!r} (position {one.position})" for one in sorted(given_up, key=lambda one: -one.position)[:5])
    span = target["M"] - target["k_min"]
    level = max(0.0, (birth - target["k_min"]) / span) if span else 0.0
    more = f" and {len(given_up) - 5} more" if len(given_up) > 5 else ""
    if given_up:
        why = f"{len(given_up)} of its {len(brought)} types are not among the k = {asked.k} kept ones: {names}{more}"
    else:
        why = "under `unique` the pool is what is left of the samples when one after the other is removed, and it was removed before"
    return [
        f"It is outside the pool: {why}.",
        f"It enters the pool at k = {birth}; that is from about level {level:.2f} on.",
    ]


def _why_lost(asked: _Asked, kept: Sequence[BroughtType]) -> list[str]:
    """Return the sentences on a sample of the pool that was not taken."""
    behind = [one for one in kept if one.place > one.reached]
    missing = [one for one in kept if not one.in_dataset]
    covered, k = asked.choosing.target["covered"], asked.k
    here = f"It is in the pool, and {len(kept) - len(missing)} of its {len(kept)} kept types are covered"
    filled = len(asked.reason) > len(asked.greedy)
    if covered < k or not filled:
        said = [f"{here}. The size holds {covered} of the k = {k} kept types: {_GREEDY}, and this sample was in no window the one."]
        if filled:
            said.append(f"What room was left was filled without it: {asked.choosing.passes_over}.")
        if missing:
            names = ", ".join(repr(one.label) for one in missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            said.append(f"No chosen sample has {names}.")
        return said
    said = [
        f"{here}; when the size was reached, the turn had come to it for none of them: "
        f"{len(behind)} stopped at a candidate before it in the seeded order."
    ]
    if len(behind) < len(kept):
        why = "; or ".join(filter(None, (_GREEDY if asked.greedy else "", asked.choosing.passes_over)))
        said.append(f"For {len(kept) - len(behind)} a later candidate was chosen: {why}.")
    return said
