"""What every dataset promises, one function a promise: set arithmetic in plain numpy over sealed files, nothing of the selection's code."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from diversity.audit.ground import TEXTS, Ground, canonical, digests, id_strings
from diversity.cell import Cell

PASS, FAIL, NOT_APPLICABLE = "pass", "FAIL", "not applicable"
OCTILES = 8

Finding = tuple[str, str]  # outcome, detail


@dataclass(frozen=True)
class Asked:
    """What a dataset was asked to be.

    Attributes:
        cell: its cell.
        closure: of its typing's pools.
        rho: how many times the budget the pool of level 0 holds.
        largest: the size whose level 0 counts: the largest of the grid under `kmin_from: largest`, else the cell's own.
        looks_at: typings that an untyped strategy may choose samples for types of.
        quota_from: (typing, its k_min) that the quotas of bins come from, where the control has any.
    """

    cell: Cell
    closure: str = "strict"
    rho: Fraction = Fraction(3, 2)
    largest: int = 0
    looks_at: tuple[str, ...] = ()
    quota_from: tuple[str, int] | None = None


@dataclass(frozen=True)
class Again:
    """What the selection gave when it was run again: sample ids, ascending, the type each was chosen for, the target; or why it refused."""

    ids: np.ndarray
    chosen_for: np.ndarray
    target: Mapping[str, float] | None
    refused: str = ""


@dataclass(frozen=True)
class Case:
    """One dataset on the table: its rows, its manifest, what was asked, and what it is held against."""

    asked: Asked
    table: pa.Table
    manifest: Mapping[str, Any]
    ground: Ground
    again: Again

    @property
    def cell(self) -> Cell:
        """Return the cell."""
        return self.asked.cell

    @cached_property
    def ids(self) -> np.ndarray:
        """Return the sample ids as they stand."""
        return id_strings(self.table.column("sample_id"))

    @cached_property
    def rows(self) -> np.ndarray:
        """Return the corpus row of each sample, -1 for one that is not in the corpus."""
        places = np.minimum(np.searchsorted(self.ground.ids, self.ids), len(self.ground.ids) - 1)
        return np.where(self.ground.ids[places] == self.ids, places, -1)

    @cached_property
    def known(self) -> np.ndarray:
        """Return the corpus rows of those samples that are in the corpus."""
        return self.rows[self.rows >= 0]

    @property
    def target(self) -> Mapping[str, Any]:
        """Return the manifest's target; a missing entry reads as 0."""
        return Counter(self.manifest.get("target") or {})

    @cached_property
    def position(self) -> np.ndarray:
        """Return the positions of the types of the cell's typing."""
        return self.ground.positions[self.cell.strategy]

    @cached_property
    def kept(self) -> np.ndarray:
        """Return the mask of K_k of the manifest's k."""
        return self.position <= self.target["k_realised"]

    @property
    def births(self) -> np.ndarray:
        """Return the k at which each sample of the corpus enters the pool of the cell's typing."""
        return self.ground.births[self.cell.strategy]

    @property
    def in_pool(self) -> np.ndarray:
        """Return the mask of the pool over the corpus."""
        return (self.births >= 1) & (self.births <= self.target["k_realised"])

    def budget(self, size: int) -> int:
        """Return what a dataset of that size holds: samples, or response tokens under the control `tokens`."""
        lengths = self.ground.tokens["response"]
        return size * int(lengths.sum()) // len(lengths) if self.cell.control == "tokens" else size


def _size(case: Case) -> Finding:
    have, stated = len(case.table), case.manifest.get("samples")
    if case.cell.control == "tokens":
        return found(0 < have == stated, f"{have} samples, as the manifest says; the size is counted in tokens, see control")
    wanted = case.cell.size or len(case.ground.tokens["response"])  # 0 is the whole corpus
    return found(have == wanted, f"{have} samples of {wanted}")


def _unique(case: Case) -> Finding:
    repeated = len(case.ids) - len(np.unique(case.ids))
    ascending = bool((case.ids[:-1] <= case.ids[1:]).all())
    return found(not repeated and ascending, f"{repeated} ids twice" + ("" if ascending else ", and ids do not ascend"))


def _corpus(case: Case) -> Finding:
    foreign = case.ids[case.rows < 0]
    if "row" in case.table.column_names and (case.table.column("row").to_numpy() != case.rows).any():
        return FAIL, "a pick names another row of the corpus than that of its id"
    return found(not len(foreign), f"{len(foreign)} samples that the corpus does not have{_example(foreign)}")


def _text(case: Case) -> Finding:
    if not set(TEXTS) <= set(case.table.column_names):
        return NOT_APPLICABLE, "the dataset holds picks only; training reads the corpus' own text"
    hashed, sound = digests(case.table)
    known = case.rows >= 0
    same = (hashed == case.ground.digests[case.rows]).all(axis=1)
    wrong = case.ids[(known & ~same) | ~sound]
    return found(
        not len(wrong), f"{len(wrong)} samples whose text is not the corpus', or not the one that their id is the hash of{_example(wrong)}"
    )


def _chosen_for(case: Case) -> Finding:
    """Check that each sample has the type that it is said to be chosen for; under a typed strategy there is one, and it is kept."""
    reasons = case.table.column("chosen_for").to_numpy()
    has = np.zeros(len(reasons), bool) if case.cell.typing else reasons == -1
    for typing in (case.cell.strategy,) if case.cell.typing else case.asked.looks_at:
        types = case.ground.types[typing]
        owners, values = types.pairs(case.known)
        real = (case.rows >= 0) & (reasons >= 0) & (reasons < types.n_types)
        has |= real & np.isin(case.rows * types.n_types + reasons, owners * types.n_types + values)
    if case.cell.typing:
        has[has] = case.kept[reasons[has]]
    wrong = case.ids[~has]
    return found(not len(wrong), f"{len(wrong)} samples chosen for a type that they do not have or that is not kept{_example(wrong)}")


def _manifest(case: Case) -> Finding:
    """Recount every figure of the manifest from the rows."""
    rows, ground = case.known, case.ground
    figures: dict[str, Any] = {
        "cell": case.cell.describe(),
        "samples": len(case.ids),
        "tokens": {side: int(tokens[rows].sum(dtype=np.int64)) for side, tokens in ground.tokens.items()},
        "sources": dict(Counter(ground.sources[rows].tolist())),
        "content": hashlib.blake2b(canonical(sorted(case.ids.astype(str).tolist())), digest_size=16).hexdigest(),
        "pool_size": int(case.in_pool.sum()) if case.cell.typing else len(ground.ids),
    }
    wrong = [name for name, value in figures.items() if case.manifest.get(name) != value]
    if not _same_score(case.manifest.get("score"), ground.scores, rows):
        wrong.append("score")
    stated = case.manifest.get("coverage", {})
    wrong += [
        f"coverage of {typing}"
        for typing, types in ground.types.items()
        if not math.isclose(stated.get(typing, -1), types.covered(rows).mean(), abs_tol=1e-12)
    ]
    return found(not wrong, f"other than recounted: {', '.join(wrong) or 'nothing'}")


def _same_score(stated: Mapping[str, Any] | None, scores: np.ndarray | None, rows: np.ndarray) -> bool:
    """Return whether the mean of the known scores and the number of samples without one are as stated; nothing is, where none has one."""
    if scores is None or stated is None:
        return scores is None and stated is None
    known = scores[rows][~np.isnan(scores[rows])]
    if stated.get("without") != len(rows) - len(known):
        return False
    mean = stated.get("mean")
    return mean is not None and math.isclose(mean, known.mean(), rel_tol=1e-9, abs_tol=1e-12) if len(known) else mean is None


def _level(case: Case) -> Finding:
    """Check that k is the dial's place between two ends of which the lower has room for the size."""
    if case.cell.typing is None or case.cell.level is None:
        return NOT_APPLICABLE, f"strategy {case.cell.strategy} keeps no types"
    target, n_types = case.target, case.ground.types[case.cell.strategy].n_types
    requested = round(target["k_min"] + case.cell.level * (n_types - target["k_min"]))
    weights = case.ground.tokens["response"] if case.cell.control == "tokens" else np.ones(len(case.births), np.int64)
    room = int(weights[(case.births >= 1) & (case.births <= target["k_min"])].sum())
    needed = math.ceil(case.asked.rho * case.budget(max(case.asked.largest, case.cell.size)))
    says = f"k {target['k_realised']} of M {target['M']}, asked for {target['k_requested']} from {target['k_min']} on"
    ordered = 1 <= target["k_min"] <= target["k_realised"] <= target["k_requested"] <= n_types == target["M"]
    return found(
        ordered and requested == target["k_requested"] and room >= needed,
        f"{says}; counted: {requested} asked for, M {n_types}; the pool of k_min has {room}, at least {needed} is asked",
    )


def _coverage(case: Case) -> Finding:
    if case.cell.typing is None:
        return NOT_APPLICABLE, f"strategy {case.cell.strategy} promises no coverage"
    return _against_target(case, case.ground.types[case.cell.strategy].covered(case.known))


def _from_text(case: Case) -> Finding:
    if case.cell.typing is None:
        return NOT_APPLICABLE, f"strategy {case.cell.strategy} promises no coverage"
    types = case.ground.text_types.get(case.cell.strategy)
    if types is None:
        return NOT_APPLICABLE, "only types that are tokens or words can be counted again from the text; topics and tags are sealed"
    if types.n_types != len(case.position):
        return FAIL, f"the text has {types.n_types} types in the band, the pruning {len(case.position)}"
    return _against_target(case, types.covered(case.known))


def _against_target(case: Case, mask: np.ndarray) -> Finding:
    """Hold the types that are covered against the kept ones, the number that the target states, its bound, and what random covers."""
    target, k = case.target, case.target["k_realised"]
    covered, foreign = int((case.kept & mask).sum()), int((mask & ~case.kept).sum())
    bound, at_random = target["bound"], target["random"]
    said = f"{covered} of k {k} kept types are covered ({_share(covered, k)}), {target['covered']} are stated; "
    said += f"at most {bound} can be ({_share(covered, bound)}); random covers {at_random:g} ({_share(covered, at_random)}); "
    said += f"{foreign} others are covered" + (" (loose: others may be)" if case.asked.closure == "loose" else "")
    sound = 1 <= covered == target["covered"] <= bound <= k and 0 < at_random <= bound
    return found(sound and (not foreign or case.asked.closure == "loose"), said)


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "of nothing"


def _pool(case: Case) -> Finding:
    if case.cell.typing is None:
        return NOT_APPLICABLE, f"strategy {case.cell.strategy} has no pool but the corpus"
    outside = case.ids[(case.rows < 0) | ~case.in_pool[case.rows]]
    return found(not len(outside), f"{len(outside)} samples outside the pool of {int(case.in_pool.sum())}{_example(outside)}")


def _control(case: Case) -> Finding:
    control, ground = case.cell.control, case.ground
    lengths = ground.tokens["response"]
    if control == "none":
        return NOT_APPLICABLE, "control none holds nothing fixed beside the size"
    if control == "length-window":
        low, high = ground.window or (1, 0)
        outside = int(((lengths[case.known] < low) | (lengths[case.known] > high)).sum())
        return found(not outside and ground.window is not None, f"{outside} responses outside {low} to {high} tokens")
    if control == "tokens":
        longest = int(lengths[case.in_pool if case.cell.typing else slice(None)].max())
        gap = case.budget(case.cell.size) - int(lengths[case.known].sum(dtype=np.int64))
        return found(
            0 <= gap < longest, f"{gap} tokens short of the budget {case.budget(case.cell.size)}; the longest response has {longest}"
        )
    if case.asked.quota_from is None:
        return FAIL, "it is not known which pool the quotas come from"
    typing, k_min = case.asked.quota_from
    births = ground.births[typing]
    if control == "score-quota" and ground.scores is None:
        return FAIL, "no sample has a score"
    bins = _bins(ground, control)
    n_bins = int(bins.max()) + 1
    quota = _largest_remainders(case.cell.size, np.bincount(bins[(births >= 1) & (births <= k_min)], minlength=n_bins).tolist())
    have = np.bincount(bins[case.known], minlength=n_bins).tolist()
    off = sum(abs(a - b) for a, b in zip(have, quota, strict=True)) // 2
    return found(have == quota, f"{off} samples in the wrong of {n_bins} bins; quotas from the pool of {typing} at k {k_min}")


def _bins(ground: Ground, control: str) -> np.ndarray:
    """Return the bin of each sample: octile of length or of score (those without one apart, last), or source."""
    if control == "length-quota":
        return _length_bins(ground.tokens["response"])
    if control == "source-quota" or ground.scores is None:
        return np.unique(ground.sources, return_inverse=True)[1]
    bins, has = np.full(len(ground.scores), OCTILES), ~np.isnan(ground.scores)
    if has.any():
        bins[has] = _length_bins(ground.scores[has])
    return bins


def _seed(case: Case) -> Finding:
    again = case.again
    if again.refused:
        return FAIL, f"the selection refuses it: {again.refused}"
    same = len(np.intersect1d(again.ids, case.ids))
    reasons = dict(zip(again.ids.tolist(), again.chosen_for.tolist(), strict=True))
    stated = zip(case.ids.tolist(), case.table.column("chosen_for").to_pylist(), strict=True)
    other = sum(reasons.get(sample) not in (None, reason) for sample, reason in stated)
    target = dict(again.target or {}) == dict(case.manifest.get("target") or {})
    said = f"{same} of {len(again.ids)} ids again with seed {case.cell.subset_seed}, {other} of them for another type"
    return found(np.array_equal(again.ids, case.ids) and not other and target, said + ("" if target else "; another target"))


PROMISES: dict[str, Callable[[Case], Finding]] = {
    "size": _size,
    "unique": _unique,
    "corpus": _corpus,
    "text": _text,
    "chosen_for": _chosen_for,
    "manifest": _manifest,
    "level": _level,
    "coverage": _coverage,
    "pool": _pool,
    "control": _control,
    "seed": _seed,
    "from-text": _from_text,
}


def found(sound: bool, detail: str) -> Finding:
    """Return a finding of a promise that holds, or of one that doesn't."""
    return (PASS if sound else FAIL), detail


def _example(ids: Sequence[bytes] | np.ndarray) -> str:
    return f", e.g. {ids[0].decode()}" if len(ids) else ""


def _length_bins(lengths: np.ndarray) -> np.ndarray:
    """Return the octile of each length: bin b begins at the length that stands at place n b / 8 of all sorted ones."""
    ordered = np.sort(lengths)
    return sum((lengths >= ordered[len(lengths) * j // OCTILES]).astype(np.int64) for j in range(1, OCTILES))


def _largest_remainders(total: int, shares: list[int]) -> list[int]:
    exact = [Fraction(total * share, sum(shares)) for share in shares]
    parts = [math.floor(value) for value in exact]
    by_rest = sorted(range(len(parts)), key=lambda b: (parts[b] - exact[b], b))
    for b in by_rest[: total - sum(parts)]:
        parts[b] += 1
    return parts
