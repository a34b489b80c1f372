"""Keys and priorities: every tie and every random order comes from the content of an id, never from where a row stands.

A sample's key is the first 64 bits of its `sample_id`, which is a hash of its messages. A priority is a stated mix of that
key with one keyed blake2b of (tag, seed), so that 100 million of them cost a few vector operations. For one (seed, tag) the
mix is a bijection: different keys never get the same priority. Lower priority comes first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from diversity.config import UserError

_HEX_DIGITS = 32


class IdCollision(UserError, ValueError):
    """Two samples share a key, so that ties between them could not be told apart."""


def sample_keys(sample_ids: pa.Array | pa.ChunkedArray | Iterable[str]) -> np.ndarray:
    """Return the first 16 hexadecimal digits of every sample_id as `(n,) uint64`.

    Raises:
        ValueError: an id is not 32 hexadecimal digits.
        IdCollision: two ids are equal, or differ in their last 64 bits only.
    """
    digits = _hex_bytes(sample_ids)
    nibbles = np.full(256, 255, dtype=np.uint8)
    for value, digit in enumerate("0123456789abcdef"):
        nibbles[ord(digit)] = value
    values = nibbles[digits]
    if len(digits) and values.max() > 15:
        row = int(np.flatnonzero(values.max(axis=1) > 15)[0])
        raise ValueError(f"sample_id {bytes(digits[row]).decode('ascii', 'replace')!r} is not {_HEX_DIGITS} hexadecimal digits")
    packed = np.ascontiguousarray(values[:, 0:16:2] << 4 | values[:, 1:16:2])
    keys = packed.view(">u8").reshape(-1).astype(np.uint64)
    _refuse_collisions(keys, digits)
    return keys


def priorities(keys: np.ndarray, seed: int, tag: str) -> np.ndarray:
    """Return `(n,) uint64` priorities of sample keys: `mix(mix(key ^ a) ^ b)`, lower first.

    `a` and `b` are the two big-endian halves of blake2b-128(tag, key = seed as 8 bytes); `mix` is the finaliser of splitmix64.

    Args:
        keys: `(n,) uint64` from `sample_keys`.
        seed: 0 to 2**64 - 1.
        tag: what the order is for, so that orders for different purposes are independent.
    """
    digest = hashlib.blake2b(tag.encode(), digest_size=16, key=seed.to_bytes(8, "big")).digest()
    mixed = np.asarray(keys, dtype=np.uint64)
    for half in (digest[:8], digest[8:]):
        mixed = _mix(mixed ^ np.uint64(int.from_bytes(half, "big")))
    return mixed


def content_priorities(contents: Iterable[bytes], tag: str = "peel") -> np.ndarray:
    """Return `(M,) uint64`: blake2b-64 of every type's content under a constant key, for ties that no subset seed may touch.

    Args:
        contents: token bytes, tag text, or the smallest sample_id of a topic, in UTF-8.
        tag: at most 16 ASCII characters.
    """
    person = tag.encode()
    digests = b"".join(hashlib.blake2b(c, digest_size=8, key=bytes(8), person=person).digest() for c in contents)
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def order(priority: np.ndarray) -> np.ndarray:
    """Return the positions in ascending priority as `(n,) int64`; equal priorities stay in the order given."""
    return np.argsort(priority, kind="stable")


def _mix(z: np.ndarray) -> np.ndarray:
    """Return the splitmix64 finaliser of `(n,) uint64`: a bijection in which every input bit reaches every output bit."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _hex_bytes(sample_ids: Any) -> np.ndarray:
    """Return the ids as `(n, 32) uint8` of ASCII codes, read from Arrow's buffer where there is one."""
    if isinstance(sample_ids, pa.ChunkedArray):
        sample_ids = sample_ids.combine_chunks()
    array = sample_ids if isinstance(sample_ids, pa.Array) else pa.array(list(sample_ids), pa.string())
    if array.null_count:
        raise ValueError("a sample_id is null")
    if not len(array):
        return np.zeros((0, _HEX_DIGITS), dtype=np.uint8)
    array = array.cast(pa.large_string())
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    lengths = np.diff(offsets)
    if (lengths != _HEX_DIGITS).any():
        row = int(np.flatnonzero(lengths != _HEX_DIGITS)[0])
        raise ValueError(f"sample_id {array[row].as_py()!r} is not {_HEX_DIGITS} hexadecimal digits")
    text = np.frombuffer(array.buffers()[2], dtype=np.uint8)
    return text[offsets[0] : offsets[-1]].reshape(-1, _HEX_DIGITS)


def _refuse_collisions(keys: np.ndarray, digits: np.ndarray) -> None:
    if len(keys) < 2 or (keys[1:] > keys[:-1]).all():
        return
    by_key = np.argsort(keys, kind="stable")
    twins = np.flatnonzero(keys[by_key[1:]] == keys[by_key[:-1]])
    if len(twins):
        first, second = (bytes(digits[by_key[twins[0] + step]]).decode("ascii") for step in (0, 1))
        raise IdCollision(f"sample_ids {first} and {second} share their first 16 digits: remove one of the two samples")
