"""The incidence against dense matrices."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diversity.typings.incidence import Incidence, assign_nearest
from tests.diversity.naive import incidences, sets_of


def dense(incidence: Incidence) -> np.ndarray:
    matrix = np.zeros((incidence.n_samples, incidence.n_types), dtype=int)
    for i, types in enumerate(sets_of(incidence)):
        matrix[i, sorted(types)] = 1
    return matrix


@settings(deadline=None)
@given(incidences(), st.data())
def test_every_view_agrees_with_the_dense_matrix(incidence, data):
    matrix = dense(incidence)
    assert incidence.nnz == matrix.sum()
    assert (incidence.df() == matrix.sum(axis=0)).all()
    assert (incidence.lengths() == matrix.sum(axis=1)).all()
    assert (dense(incidence.transpose()) == matrix.T).all()
    incidence.transpose().validate()
    rows = np.array(data.draw(st.lists(st.integers(0, incidence.n_samples - 1), max_size=10)), dtype=np.int64)
    assert (dense(incidence.take(rows)) == matrix[rows]).all()
    assert (incidence.covered(rows) == matrix[rows].any(axis=0)).all()


@pytest.mark.parametrize("kind", [pa.list_(pa.int32()), pa.list_(pa.int64()), pa.large_list(pa.int32())])
def test_arrow_lists_chunks_and_slices(kind):
    rows = [[0, 2], [], [1], [0, 1, 2]]
    column = pa.chunked_array([pa.array(rows[:1], kind), pa.array(rows[1:], kind)])
    assert sets_of(Incidence.from_lists(column, 3)) == [set(row) for row in rows]
    assert sets_of(Incidence.from_lists(pa.array(rows, kind)[1:3], 3)) == [set(), {1}]
    assert Incidence.from_lists(pa.array([], kind), 3).n_samples == 0


@pytest.mark.parametrize(("rows", "said"), [([[0], [3]], "outside"), ([[-1]], "outside"), ([[1, 0]], "row 0"), ([[0], [1, 1]], "row 1")])
def test_broken_rows_are_refused(rows, said):
    with pytest.raises(ValueError, match=said):
        Incidence.from_lists(rows, 3)


def test_null_rows_are_refused():
    with pytest.raises(ValueError, match="null"):
        Incidence.from_lists(pa.array([[0], None], pa.list_(pa.int32())), 1)


def test_types_of_no_sample_are_removed():
    incidence, kept = Incidence.from_lists([[1], [1, 4]], 6).used()
    assert kept.tolist() == [1, 4]
    assert sets_of(incidence) == [{0}, {0, 1}]


def test_read_only_arrays_will_do():
    incidence = Incidence.from_lists([[0, 1], [1]], 2)
    for array in (incidence.indptr, incidence.indices):
        array.flags.writeable = False
    assert sets_of(incidence.transpose()) == [{0}, {0, 1}]


def test_outliers_join_the_nearest_topic_whatever_the_block():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    lists = [[i % 3] if i < 40 else [] for i in range(60)]
    incidence = Incidence.from_lists(lists, 3)
    full = assign_nearest(incidence, vectors)
    centroids = np.stack([vectors[[i for i in range(40) if i % 3 == t]].sum(axis=0) for t in range(3)])
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    assert full.indices[:40].tolist() == [i % 3 for i in range(40)]
    assert full.indices[40:].tolist() == np.argmax(vectors[40:] @ centroids.T, axis=1).tolist()
    assert (assign_nearest(incidence, vectors, block=7).indices == full.indices).all()
    with pytest.raises(ValueError, match="at most one type"):
        assign_nearest(Incidence.from_lists([[0, 1], []], 2), vectors[:2])
