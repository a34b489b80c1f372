"""Keys and priorities: content only, vectorised, collision-free."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.keys import IdCollision, content_priorities, order, priorities, sample_keys

IDS = [hashlib.blake2b(str(i).encode(), digest_size=16).hexdigest() for i in range(200)]


def test_a_key_is_the_first_sixteen_digits():
    assert [int(key) for key in sample_keys(IDS)] == [int(one[:16], 16) for one in IDS]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_arrow_columns_chunks_and_slices_give_the_same_keys(kind):
    column = pa.chunked_array([pa.array(IDS[:70], kind), pa.array([], kind), pa.array(IDS[70:], kind)])
    assert (sample_keys(column) == sample_keys(IDS)).all()
    assert (sample_keys(pa.array(IDS, kind)[13:57]) == sample_keys(IDS[13:57])).all()
    assert len(sample_keys(pa.array([], kind))) == 0


@pytest.mark.parametrize("bad", ["", "abc", "g" * 32, "A" * 32, "0" * 31 + "é"])
def test_what_is_no_id_is_refused(bad):
    with pytest.raises(ValueError, match="hexadecimal|digits"):
        sample_keys([*IDS, bad])


def test_null_ids_are_refused():
    with pytest.raises(ValueError, match="null"):
        sample_keys(pa.array([IDS[0], None]))


@pytest.mark.parametrize("twin", [IDS[7], IDS[7][:16] + "0" * 16])
def test_id_collisions_are_an_error(twin):
    with pytest.raises(IdCollision, match=IDS[7]):
        sample_keys([*IDS, twin])


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1), st.sampled_from(["sample", "cover", "peel"]))
def test_priorities_are_as_stated(seed, tag):
    def mix(z):
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    digest = hashlib.blake2b(tag.encode(), digest_size=16, key=seed.to_bytes(8, "big")).digest()
    a, b = (int.from_bytes(half, "big") for half in (digest[:8], digest[8:]))
    keys = sample_keys(IDS[:5])
    assert [int(p) for p in priorities(keys, seed, tag)] == [mix(mix(int(key) ^ a) ^ b) for key in keys]


def test_priorities_of_different_seeds_and_tags_are_unrelated():
    keys = np.arange(4000, dtype=np.uint64)  # not even hashed: the mix must scatter them by itself
    orders = [order(priorities(keys, seed, tag)) for seed, tag in [(0, "sample"), (1, "sample"), (2**63, "sample"), (0, "cover")]]
    for one in orders:
        assert len(np.unique(one)) == len(keys)
        assert abs(np.corrcoef(one, np.arange(len(keys)))[0, 1]) < 0.06
    for i, j in [(0, 1), (0, 2), (0, 3), (1, 2)]:
        assert abs(np.corrcoef(np.argsort(orders[i]), np.argsort(orders[j]))[0, 1]) < 0.06


def test_content_priorities_depend_on_content_alone():
    contents = [b"", b"\x00", "Ä".encode(), b" the"]
    assert (content_priorities(contents[::-1])[::-1] == content_priorities(contents)).all()
    expected = hashlib.blake2b(b" the", digest_size=8, key=bytes(8), person=b"peel").digest()
    assert int(content_priorities(contents)[3]) == int.from_bytes(expected, "big")
    assert len(content_priorities([])) == 0
