"""Faults to plant in a sealed grid, each done as carefully as a forger would, so that only one promise is broken where that can be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from diversity.artifact import Storage
from diversity.datasets.dataset import content_hash, id_array
from tests.ray_jobs.grids import remanifest, rewrite

LOW, HIGH = "response-micro_n60_l000_s0", "response-micro_n60_l100_s0"
QUOTA, BUDGET = "random_n60_s0_source-quota", "response-micro_n60_l000_s0_tokens"


@dataclass(frozen=True)
class Copy:
    """A copy of a sound grid, to be spoilt."""

    storage: Storage
    paths: dict[str, str]

    def swap(self, name: str, change: Callable[[pa.Table], pa.Table], *, recount: bool = True) -> None:
        """Change a dataset's rows; with `recount` its manifest says what the new rows hold, as a careful forger's would."""
        rewrite(self.storage, self.paths[name], change)
        if recount:
            table = self.storage.at(self.paths[name]).read()
            rows = np.isin(self.ids, id_array(table.column("sample_id")))
            remanifest(self.storage, self.paths[name], lambda manifest: manifest.update(self.figures(manifest, table, rows)))

    @property
    def ids(self) -> np.ndarray:
        return id_array(self.corpus.column("sample_id"))

    @property
    def corpus(self) -> pa.Table:
        return self.storage.at("corpus/c").read()

    def figures(self, manifest: dict, table: pa.Table, rows: np.ndarray) -> dict:
        made = manifest["made_from"]["profiles"]
        profiles = {typing: self.storage.at(path) for typing, path in made.items()}
        sides = ("instruction", "response")
        tokens = {side: int(profiles[f"{side}-micro"].read().column("tokens").to_numpy()[rows].sum()) for side in sides}
        coverage = {}
        for typing, profile in profiles.items():
            types = profile.read().column("types").filter(pa.array(rows)).to_pylist()
            coverage[typing] = len(set().union(*types)) / profile.read("types").num_rows
        names = table.column("source").to_pylist()
        counted = {"sources": {name: names.count(name) for name in set(names)}, "samples": len(table)}
        return {**counted, "tokens": tokens, "coverage": coverage, "content": content_hash(id_array(table.column("sample_id")))}

    def types(self, name: str = "response-micro") -> list[set[int]]:
        path = self.storage.at(self.paths[LOW]).manifest["made_from"]["profiles"][name]
        return [set(types) for types in self.storage.at(path).read().column("types").to_pylist()]

    def kept(self, name: str) -> set[int]:
        manifest = self.storage.at(self.paths[name]).manifest
        peel = self.storage.at(manifest["made_from"]["peels"]["response-micro"]).read().sort_by("type")
        return set(np.flatnonzero(peel.column("position").to_numpy() <= manifest["target"]["k_realised"]).tolist())

    def replace(self, name: str, right: Callable[[int, int, list[int]], bool]) -> Callable[[pa.Table], pa.Table]:
        """Return a change that puts a corpus row for the first dataset row for which `right(leaving, coming, the rows)` says so."""
        table = self.storage.at(self.paths[name]).read()
        rows = np.flatnonzero(np.isin(self.ids, id_array(table.column("sample_id")))).tolist()
        for place, leaving in enumerate(rows):
            for coming in range(len(self.ids)):
                if coming not in rows and right(leaving, coming, [row for row in rows if row != leaving]):
                    types, kept = self.types(), self.kept(name) if "micro" in name else set()
                    reason = min(types[coming] & kept, default=-1)
                    new = self.corpus.slice(coming, 1).append_column("chosen_for", pa.array([reason], pa.int32()))
                    rest = pa.concat_tables([table.slice(0, place), table.slice(place + 1)])
                    return lambda _: pa.concat_tables([rest, new.cast(rest.schema)]).sort_by("sample_id")
        raise AssertionError("no such pair of samples")


def drop(copy: Copy) -> None:
    copy.swap(LOW, lambda table: table.slice(1))


def repeat(copy: Copy) -> None:
    copy.swap(HIGH, lambda table: pa.concat_tables([table.slice(0, 1), table.slice(0, 1), table.slice(2)]), recount=False)


def outside(copy: Copy) -> None:
    types, kept = copy.types(), copy.kept(LOW)
    copy.swap(LOW, copy.replace(LOW, lambda leaving, coming, rest: bool(types[coming] & kept) and not types[coming] <= kept))


def altered(copy: Copy) -> None:
    def change(table: pa.Table) -> pa.Table:
        texts = table.column("response").to_pylist()
        texts[3] += "."
        return table.set_column(table.column_names.index("response"), "response", pa.array(texts, pa.large_string()))

    copy.swap(HIGH, change)


def forged(copy: Copy) -> None:
    """Change a text in response and messages, and leave the id."""

    def change(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[3]["response"] += "."
        rows[3]["messages"][-1]["content"] += "."
        return pa.Table.from_pylist(rows, schema=table.schema)

    copy.swap(HIGH, change)


def foreign(copy: Copy) -> None:
    def change(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[0]["sample_id"] = "0" * 32
        return pa.Table.from_pylist(rows, schema=table.schema)

    copy.swap(HIGH, change, recount=False)


def same_coverage(copy: Copy) -> None:
    """Swap a sample for another of the pool, coverage and manifest kept right."""
    types, kept = copy.types(), copy.kept(HIGH)

    def right(leaving: int, coming: int, rest: list[int]) -> bool:
        return bool(types[coming]) and types[coming] <= kept and set().union(*(types[row] for row in rest), types[coming]) == kept

    copy.swap(HIGH, copy.replace(HIGH, right))


def wrong_k(copy: Copy) -> None:
    remanifest(copy.storage, copy.paths[HIGH], lambda manifest: manifest["target"].update(k_realised=manifest["target"]["k_realised"] - 1))


def uncovered(copy: Copy) -> None:
    """Swap all samples that have the rarest type for others of the pool."""
    types, kept = copy.types(), copy.kept(HIGH)
    table = copy.storage.at(copy.paths[HIGH]).read()
    rows = np.flatnonzero(np.isin(copy.ids, id_array(table.column("sample_id")))).tolist()
    rarest = min(kept, key=lambda t: (sum(t in types[row] for row in rows), t))
    leaving = [row for row in rows if rarest in types[row]]
    coming = [row for row in range(len(types)) if row not in rows and types[row] and types[row] <= kept - {rarest}][: len(leaving)]
    new = copy.corpus.take(coming).append_column("chosen_for", pa.array([min(types[row]) for row in coming], pa.int32()))
    rest = table.filter(pa.array([row not in leaving for row in rows]))
    copy.swap(HIGH, lambda _: pa.concat_tables([rest, new.cast(rest.schema)]).sort_by("sample_id"))


def covered_less(copy: Copy) -> None:
    """The same, and the target says so: fewer types are no broken promise, but not what the seed gives."""
    uncovered(copy)
    types, kept = copy.types(), copy.kept(HIGH)
    rows = np.flatnonzero(np.isin(copy.ids, id_array(copy.storage.at(copy.paths[HIGH]).read().column("sample_id"))))
    retarget(copy, covered=len(kept & set().union(*(types[row] for row in rows))))


def retarget(copy: Copy, **figures: float) -> None:
    remanifest(copy.storage, copy.paths[HIGH], lambda manifest: manifest["target"].update(figures))


def target(copy: Copy) -> dict:
    return copy.storage.at(copy.paths[HIGH]).manifest["target"]


def covered_misstated(copy: Copy) -> None:
    retarget(copy, covered=target(copy)["covered"] - 1)


def bound_below(copy: Copy) -> None:
    retarget(copy, bound=target(copy)["covered"] - 1)


def bound_above(copy: Copy) -> None:
    retarget(copy, bound=target(copy)["k_realised"] + 1)


def random_misstated(copy: Copy) -> None:
    retarget(copy, random=target(copy)["random"] - 0.2)


def levels_swapped(copy: Copy) -> None:
    low, high = (copy.storage.at(copy.paths[name]).read() for name in (LOW, HIGH))
    copy.swap(LOW, lambda _: high)
    copy.swap(HIGH, lambda _: low)


def reason_changed(copy: Copy) -> None:
    def change(table: pa.Table) -> pa.Table:
        reasons = table.column("chosen_for").to_numpy().copy()
        reasons[0] = -1
        return table.set_column(table.column_names.index("chosen_for"), "chosen_for", pa.array(reasons))

    copy.swap(HIGH, change)


def quota_missed(copy: Copy) -> None:
    sources = copy.corpus.column("source").to_pylist()
    copy.swap(QUOTA, copy.replace(QUOTA, lambda leaving, coming, rest: sources[leaving] != sources[coming]))


def budget_missed(copy: Copy) -> None:
    copy.swap(BUDGET, lambda table: table.slice(0, len(table) - 20))


def figures_wrong(copy: Copy) -> None:
    remanifest(copy.storage, copy.paths[HIGH], lambda manifest: manifest["coverage"].update({"instruction-micro": 1.0}))


def pool_misstated(copy: Copy) -> None:
    remanifest(copy.storage, copy.paths[QUOTA], lambda manifest: manifest.update(pool_size=manifest["pool_size"] - 1))


def score_made_up(copy: Copy) -> None:
    remanifest(copy.storage, copy.paths[HIGH], lambda manifest: manifest.update(score={"mean": 5.0, "without": 0}))


def positions_repeated(copy: Copy) -> None:
    def change(table: pa.Table) -> pa.Table:
        position = table.column("position").to_numpy().copy()
        position[position == position.max()] -= 1
        return table.set_column(table.column_names.index("position"), "position", pa.array(position))

    rewrite(copy.storage, copy.storage.at(copy.paths[LOW]).manifest["made_from"]["peels"]["response-micro"], change)


def order_changed(copy: Copy) -> None:
    def change(table: pa.Table) -> pa.Table:
        position = table.column("position").to_numpy().copy()
        first, second = np.flatnonzero(position == len(position)), np.flatnonzero(position == len(position) - 1)
        position[first], position[second] = len(position) - 1, len(position)
        return table.set_column(table.column_names.index("position"), "position", pa.array(position))

    rewrite(copy.storage, copy.storage.at(copy.paths[LOW]).manifest["made_from"]["peels"]["response-micro"], change)


def type_lost(copy: Copy) -> None:
    """Take a type from one sample of the sealed profile, and its df with it: only the text knows better."""
    path = copy.storage.at(copy.paths[LOW]).manifest["made_from"]["profiles"]["response-micro"]
    lost = []

    def change(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        taken = next(row for row in rows if len(row["types"]) > 2)
        lost.append(taken["types"].pop())
        return pa.Table.from_pylist(rows, schema=table.schema)

    def less(table: pa.Table) -> pa.Table:
        df = table.column("df").to_numpy().copy()
        df[lost[0]] -= 1
        return table.set_column(table.column_names.index("df"), "df", pa.array(df))

    rewrite(copy.storage, path, change)
    rewrite(copy.storage, path, less, "types")


def df_wrong(copy: Copy) -> None:
    def change(table: pa.Table) -> pa.Table:
        return table.set_column(table.column_names.index("df"), "df", pa.array(table.column("df").to_numpy() + 1))

    rewrite(copy.storage, copy.storage.at(copy.paths[LOW]).manifest["made_from"]["profiles"]["instruction-micro"], change, "types")


def corpus_changed(copy: Copy) -> None:
    def change(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[0]["response"] += "."
        return pa.Table.from_pylist(rows, schema=table.schema)

    rewrite(copy.storage, "corpus/c", change)
