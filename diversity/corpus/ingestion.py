"""Raw rows become a corpus: samples in the order of their ids, each once, with every row accounted for.

An id is a uniform hash, so its first bits sort samples into buckets of even size whatever they are. Each step here works on one batch or
one run of buckets, and what comes out doesn't depend on how rows were grouped before: `ingest` runs the steps one after another in this
process, `ray_jobs.ingest` runs the same steps in parallel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from diversity.config import UserError
from diversity.corpus.excerpts import excerpt
from diversity.corpus.json_rows import Row, Unreadable
from diversity.corpus.samples import SAMPLE_SCHEMA, Rejection, Sample, samples_table, to_sample
from diversity.corpus.seen import Seen, commonest_first
from diversity.keys import priorities, sample_keys

STAGED_SCHEMA = SAMPLE_SCHEMA.append(pa.field("file_digest", pa.string())).append(pa.field("row", pa.int64()))
REJECTED_SCHEMA = pa.schema([("file", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("excerpt", pa.string())])

BATCH_CHARS = 16 << 20
BATCH_ROWS = 20_000
PART_BYTES = 128 << 20
LARGEST_BUCKETS = 4096
TEXT_PER_BYTE = {"packed": 8, "columnar": 6, "plain": 2}  # generous: Arrow bytes of a corpus for each byte of its files
MOST_LISTED = 1000


class TooManyRejected(UserError):
    """More rows can't be used than `corpus.max_rejected` allows."""


@dataclass(frozen=True)
class Batch:
    """Some rows of one file: `samples` in `STAGED_SCHEMA`, `rejected` in `REJECTED_SCHEMA`, and how often each format came."""

    samples: pa.Table
    rejected: pa.Table
    formats: Counter[str]
    seen: Seen = field(default_factory=Seen)


@dataclass
class Counts:
    """What became of the rows. Always `rows_read = samples + duplicates + rejected + removed + below_score + beyond_limit`.

    `contamination` has the figures of the check against evaluation prompts, where there was one; `removed` what it took out.
    """

    rows_read: int = 0
    samples: int = 0
    beyond_limit: int = 0
    removed: int = 0
    below_score: int = 0
    contamination: dict[str, Any] | None = None
    rejected: Counter[str] = field(default_factory=Counter)
    duplicates: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    formats: dict[str, Counter[str]] = field(default_factory=dict)
    seen: Seen = field(default_factory=Seen)

    def add_batch(self, file: str, batch_rows: int, reasons: Mapping[str, int], formats: Mapping[str, int], seen: Seen) -> None:
        """Count the rows of one batch."""
        self.seen.add(seen)
        self.rows_read += batch_rows
        self.rejected.update(reasons)
        self.formats.setdefault(file, Counter()).update(formats)

    def manifest(self) -> dict[str, Any]:
        """Return the counts as the manifest has them; of very many sources only the largest are listed."""
        listed = dict(self.sources.most_common(MOST_LISTED))
        return {
            "rows_read": self.rows_read,
            "samples": self.samples,
            "duplicates": sum(self.duplicates.values()),
            "rejected": sum(self.rejected.values()),
            "removed": self.removed,
            "below_score": self.below_score,
            "beyond_limit": self.beyond_limit,
            "reasons": dict(self.rejected.most_common()),
            "sources": dict(sorted(listed.items())),
            "sources_in_all": len(self.sources),
            "duplicates_by_source": dict(self.duplicates.most_common(MOST_LISTED)),
            "unused": dict(commonest_first(self.seen.unused)),
            "formats": {file: dict(sorted(formats.items())) for file, formats in sorted(self.formats.items())[:MOST_LISTED]},
            **({"contamination": self.contamination} if self.contamination is not None else {}),
        }

    def check(self, max_rejected: float, rows: str = "rows") -> None:
        """Check that enough rows can be used; `rows` are called so in the error.

        Raises:
            TooManyRejected: with the three commonest reasons, an example and what would help; or no row could be used at all.
        """
        rejected = sum(self.rejected.values())
        if not self.rows_read:
            raise TooManyRejected("no rows to use in corpus.paths: the files hold none")
        if rejected > max_rejected * self.rows_read or rejected == self.rows_read:
            ranked = commonest_first(self.rejected)
            commonest = "; ".join(f"{reason} ({count})" for reason, count in ranked[:3])
            allowed = f", more than corpus.max_rejected = {max_rejected:g} allows" if max_rejected < 1 else ""
            told = [f"{rejected} of {self.rows_read} {rows} can't be used{allowed}: {commonest}", *self.seen.explained(ranked[0][0])]
            raise TooManyRejected("; ".join(told))

    def check_scores(self, least: float | None) -> None:
        """Check that a lowest score leaves something.

        Raises:
            TooManyRejected: it does not.
        """
        if least is not None and not self.samples:
            raise TooManyRejected(
                f"no sample has a score of {least:g} or more ({self.below_score} have less, or none): name the column with corpus.columns"
            )


def batches(rows: Iterable[Row], *, file: str, source: str, digest: str, columns: Mapping[str, str] | None = None) -> Iterator[Batch]:
    """Yield a file's rows as samples and rejections, in batches of at most about 16 million characters.

    Args:
        rows: from a reader.
        file: the file for people, in rejections.
        source: the source of rows that name none.
        digest: the file's content digest, which together with the row decides between duplicates.
        columns: `CorpusConfig.columns`.
    """
    samples: list[Sample] = []
    numbers: list[int] = []
    rejected: list[tuple[str, int, str, str]] = []
    seen, chars = Seen(), 0
    for row, value in rows:
        found: Sample | Rejection
        if isinstance(value, Unreadable):
            found = Rejection(value.reason, excerpt(value.excerpt))
        else:
            found = to_sample(value, default_source=source, columns=columns)
        if isinstance(found, Rejection):
            rejected.append((file, row, found.reason, found.excerpt))
            seen.refuse(file, row, value, found)
        else:
            samples.append(found)
            numbers.append(row)
            if found.unused:
                seen.unused.update(found.unused)
            chars += 2 * (len(found.instruction) + len(found.response))
        if chars >= BATCH_CHARS or len(samples) + len(rejected) >= BATCH_ROWS:
            yield _batch(samples, numbers, digest, rejected, seen)
            samples, numbers, rejected, seen, chars = [], [], [], Seen(), 0
    yield _batch(samples, numbers, digest, rejected, seen)


def _batch(samples: list[Sample], numbers: list[int], digest: str, rejected: list[tuple[str, int, str, str]], seen: Seen) -> Batch:
    table = samples_table(samples)
    table = table.append_column(STAGED_SCHEMA.field("file_digest"), pa.array([digest] * len(samples), pa.string()))
    table = table.append_column(STAGED_SCHEMA.field("row"), pa.array(numbers, pa.int64()))
    columns = list(zip(*rejected, strict=True)) or [(), (), (), ()]
    refused = pa.Table.from_arrays(
        [pa.array(column, kind.type) for column, kind in zip(columns, REJECTED_SCHEMA, strict=True)], schema=REJECTED_SCHEMA
    )
    return Batch(table, refused, Counter(sample.format for sample in samples), seen)


def bucket_count(sizes: Iterable[tuple[str, int]], part_bytes: int = PART_BYTES) -> int:
    """Return how many buckets keep each well below a part: a power of two that depends on the input's bytes alone.

    Args:
        sizes: (kind of file: "packed", "columnar" or "plain", bytes) of every input file.
        part_bytes: the aim for a part.
    """
    expected = sum(TEXT_PER_BYTE[kind] * size for kind, size in sizes)
    wanted = max(1, -(-4 * expected // part_bytes)) if expected > part_bytes // 2 else 1
    return min(1 << (wanted - 1).bit_length(), LARGEST_BUCKETS)


def split_by_bucket(samples: pa.Table, n_buckets: int) -> dict[int, pa.Table]:
    """Return the samples by bucket: the number that the first 16 bits of an id give, scaled to `n_buckets`, a power of two."""
    if not len(samples):
        return {}
    if n_buckets == 1:
        return {0: samples}
    digits = samples["sample_id"].combine_chunks()
    heads = [int(head, 16) for head in pc.utf8_slice_codeunits(digits, 0, 4).to_pylist()]
    bucket = np.asarray(heads, dtype=np.int64) * n_buckets >> 16
    order = np.argsort(bucket, kind="stable")
    present, starts = np.unique(bucket[order], return_index=True)
    stops = [*starts[1:], len(order)]
    return {int(b): samples.take(pa.array(order[start:stop])) for b, start, stop in zip(present, starts, stops, strict=True)}


def part_ranges(bucket_bytes: Sequence[int], part_bytes: int = PART_BYTES) -> list[range]:
    """Return runs of neighbouring buckets of at most `part_bytes` together (a bucket above that stands alone)."""
    runs: list[range] = []
    start = gathered = 0
    for bucket, size in enumerate(bucket_bytes):
        if bucket > start and gathered + size > part_bytes:
            runs.append(range(start, bucket))
            start, gathered = bucket, 0
        gathered += size
    runs.append(range(start, len(bucket_bytes)))
    return runs


def merge(staged: Sequence[pa.Table]) -> tuple[pa.Table, Counter[str]]:
    """Return the samples in the order of their ids, each once, and how many duplicates each source lost.

    Of duplicates the one with the smallest (source, digest of its file, row) stays.
    """
    table = pa.concat_tables(staged) if staged else STAGED_SCHEMA.empty_table()
    keys = [(name, "ascending") for name in ("sample_id", "source", "file_digest", "row")]
    order = pc.sort_indices(table.select([name for name, _ in keys]), sort_keys=keys)
    ids = table["sample_id"].take(order).combine_chunks()
    first = np.ones(len(ids), dtype=bool)
    if len(ids) > 1:
        first[1:] = pc.not_equal(ids.slice(1), ids.slice(0, len(ids) - 1)).to_numpy(zero_copy_only=False)
    lost = table["source"].take(order.filter(pa.array(~first)))
    kept = table.select(SAMPLE_SCHEMA.names).take(order.filter(pa.array(first)))
    return kept.combine_chunks(), counted(lost)


def counted(values: pa.ChunkedArray | pa.Array) -> Counter[str]:
    """Return how often each value occurs."""
    return Counter({item["values"]: item["counts"] for item in pc.value_counts(values).to_pylist()})


def limit_order(sample_ids: pa.ChunkedArray) -> np.ndarray:
    """Return the `(n,) uint64` order in which `corpus.limit` takes samples, lowest first: a keyed hash, no two equal."""
    return priorities(sample_keys(sample_ids), 0, "limit")


def limit_threshold(lowest: Iterable[np.ndarray], limit: int) -> int | None:
    """Return the largest place in `limit_order` that is still taken, or None if there are fewer samples than `limit`.

    Args:
        lowest: of every part its places, or as many of its lowest as the limit.
        limit: number of samples wanted.
    """
    places = np.concatenate([np.asarray(part, dtype=np.uint64) for part in lowest])
    return int(np.partition(places, limit - 1)[limit - 1]) if len(places) >= limit else None


def above_score(samples: pa.Table, least: float | None) -> pa.Table:
    """Return the samples with a score of at least that."""
    if least is None:
        return samples
    return samples.filter(pc.fill_null(pc.greater_equal(samples["score"], least), False))


def within_limit(samples: pa.Table, threshold: int | None) -> pa.Table:
    """Return the samples whose place is not above the threshold."""
    if threshold is None:
        return samples
    return samples.filter(pa.array(limit_order(samples["sample_id"]) <= np.uint64(threshold)))


class ContentHash:
    """blake2b-128 of the sample ids and sources of a corpus, in the order of the ids; parts and files leave no trace in it."""

    def __init__(self) -> None:
        self._state = blake2b(digest_size=16)

    def update(self, samples: pa.Table) -> None:
        """Take in the next samples."""
        if len(samples):
            lines = pc.binary_join_element_wise(samples["sample_id"], samples["source"], "\n", "\t")
            for chunk in lines.chunks:
                self._state.update("".join(chunk.to_pylist()).encode())

    def hexdigest(self) -> str:
        """Return the hash of what was taken in so far."""
        return self._state.hexdigest()


def content_hash(samples: pa.Table) -> str:
    """Return the content hash of a whole corpus."""
    state = ContentHash()
    state.update(samples)
    return state.hexdigest()
