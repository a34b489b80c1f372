"""What faiss is used for: cosine neighbours and spherical k-means over unit vectors, the same at every run.

faiss and BLAS work with one thread here: with more, sums are cut elsewhere, and a last bit is enough to change topics.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

EXACT_BELOW = 20_000
LISTS, PROBES = 512, 12
BLOCK = 65_536  # rows that are assigned to centroids together
PRODUCT = 8192  # rows of one product: with 2,000 centroids 64 MB


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold faiss, BLAS and numba to one thread, and give them back as they were."""
    import faiss
    import numba
    from threadpoolctl import threadpool_limits

    before, numba_before = faiss.omp_get_max_threads(), numba.get_num_threads()
    faiss.omp_set_num_threads(1)
    numba.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        faiss.omp_set_num_threads(before)
        numba.set_num_threads(numba_before)


def cosine_neighbours(vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (neighbours (n, k) int64, cosine distances (n, k) float32), each row's own index first, at distance 0.

    Exact below 20,000 rows; above, in the 12 nearest of 512 lists (recall .91 on real instructions). A row whose lists
    hold fewer than k rows is padded with itself.

    Args:
        vectors: (n, d) float32 unit vectors.
        k: neighbours of a row, itself included.
    """
    import faiss

    n, d = vectors.shape
    k = min(k, n)
    vectors = np.ascontiguousarray(vectors, np.float32)
    if n < EXACT_BELOW:
        exact = faiss.IndexFlatIP(d)
        exact.add(vectors)
        similar, found = exact.search(vectors, k)
    else:
        similar, found = _search_lists(vectors, k)
    return _self_first(found, np.maximum(0, 1 - similar))


def _search_lists(vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (similarities, neighbours), each (n, k), nearest first, by one matrix product of a list and all rows that look into it.

    A row at a time, as an index is searched by default, reads the lists once for each row and takes five times as long.
    """
    import faiss
    from faiss.contrib.big_batch_search import BigBatchSearcher, BlockComputer

    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(vectors.shape[1]), vectors.shape[1], LISTS, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.nprobe = PROBES
    index.add(vectors)
    # What `big_batch_search` puts together, without a line of its own on the screen for each list.
    searcher, products = BigBatchSearcher(index, vectors, k), BlockComputer(index)
    searcher.decode_func, searcher.by_residual = products.decode_func, products.by_residual  # type: ignore[attr-defined]
    searcher.coarse_quantization()
    searcher.reorder_assign()
    for bucket in range(LISTS):
        rows, asked, listed, held = searcher.prepare_bucket(bucket)
        similar, places = products.block_search(asked, held, listed, k)
        searcher.add_results_to_heap(rows, similar, listed, places)
    searcher.rh.finalize()
    return searcher.rh.D, searcher.rh.I


def _self_first(found: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the same neighbours with the row itself in front: among equal vectors it may be anywhere, or missing."""
    n, k = found.shape
    rows = np.arange(n)
    missing = found < 0
    found = np.where(missing, rows[:, None], found)
    distances = np.where(missing, 0, distances)
    own = found == rows[:, None]
    place = np.where(own.any(axis=1), own.argmax(axis=1), k - 1)
    columns = np.arange(k)[None, :]
    order = np.where(columns == 0, place[:, None], columns - (columns <= place[:, None]))
    found, distances = np.take_along_axis(found, order, 1), np.take_along_axis(distances, order, 1)
    found[:, 0], distances[:, 0] = rows, 0
    return found, distances.astype(np.float32)


def k_means(vectors: np.ndarray, clusters: int, *, seed: int, iterations: int = 20, device: str = "cpu") -> np.ndarray:
    """Return (clusters, d) float32 unit centroids of spherical k-means.

    Args:
        vectors: (n, d) float32 unit vectors; all of them are used.
        clusters: number of centroids, at most n.
        seed: of the start.
        iterations: passes.
        device: `cpu`, or `cuda` for the first GPU that this process may use (faiss-gpu). It is not looked for: what is there may be
            somebody else's, and the last bits differ.
    """
    import faiss

    trainer = faiss.Kmeans(
        vectors.shape[1],
        clusters,
        niter=iterations,
        spherical=True,
        seed=seed + 1,
        max_points_per_centroid=len(vectors),
        min_points_per_centroid=1,
        gpu=1 if device == "cuda" else False,
    )
    trainer.train(np.ascontiguousarray(vectors, np.float32))
    return np.asarray(trainer.centroids, np.float32)


def nearest_centroid(vectors: np.ndarray, centroids: np.ndarray, device: str = "cpu") -> tuple[np.ndarray, np.ndarray]:
    """Return (index (n,) int32, cosine (n,) float32) of each row's most similar centroid; the lowest index wins a tie.

    Args:
        vectors: (n, d) float32 unit vectors.
        centroids: (k, d) float32 unit vectors.
        device: as for `k_means`.
    """
    if device == "cuda":
        import faiss

        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, faiss.IndexFlatIP(centroids.shape[1]))
        index.add(np.ascontiguousarray(centroids, np.float32))
        similar, found = index.search(np.ascontiguousarray(vectors, np.float32), 1)
        return found[:, 0].astype(np.int32), similar[:, 0]
    nearest = np.empty(len(vectors), np.int32)
    cosine = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), PRODUCT):
        similar = vectors[start : start + PRODUCT] @ centroids.T
        nearest[start : start + PRODUCT] = similar.argmax(axis=1)
        cosine[start : start + PRODUCT] = similar.max(axis=1)
    return nearest, cosine


def mean_vectors(vectors: np.ndarray, labels: np.ndarray, clusters: int) -> np.ndarray:
    """Return (clusters, d) float32 unit means of the rows of each label; rows labelled -1 count for none."""
    kept = np.flatnonzero(labels >= 0)
    order = kept[np.argsort(labels[kept], kind="stable")]
    starts = np.searchsorted(labels[order], np.arange(clusters))
    sums = np.add.reduceat(vectors[order].astype(np.float64), starts, axis=0)
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    return (sums / np.where(norms > 0, norms, 1)).astype(np.float32)
