"""The nearest of many vectors: exactly, by one matrix product on the device, or about, by lists of like vectors.

The approximate search is faiss's inverted file (the extra `retrieve`). Galleries of pictures are in `gallery.py`.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float32, Int

from frozen_jax.errors import UserError

APPROXIMATE_FROM = 200_000
"""Vectors from which on a search is approximate where faiss is installed; below, the exact one is fast enough."""

PROBED = 32
"""Lists that an approximate search looks into."""

_BLOCK = 1024


class Found(NamedTuple):
    """The nearest vectors of each query, the best first.

    Attributes:
        scores: inner products.
        rows: of the vectors.
    """

    scores: Float32[np.ndarray, "Q k"]
    rows: Int[np.ndarray, "Q k"]


def has_faiss() -> bool:
    """Whether the extra `retrieve` is installed."""
    return importlib.util.find_spec("faiss") is not None


class ExactSearch:
    """Every vector is compared; the vectors lie on the device."""

    def __init__(self, vectors: Float32[np.ndarray, "N W"]):
        # Padded to few sizes, so that a gallery that grows does not compile anew each time.
        self._count = len(vectors)
        size = -(-self._count // _BLOCK) * _BLOCK
        self._vectors = jnp.asarray(np.pad(vectors, ((0, size - self._count), (0, 0))))

    def search(self, queries: Float32[np.ndarray, "Q W"], *, k: int) -> Found:
        """Returns the k vectors of largest inner product, or all if there are fewer."""
        scores, rows = _search(self._vectors, np.asarray(queries, np.float32), self._count, k=min(k, self._count))
        return Found(np.asarray(scores), np.asarray(rows))


@functools.partial(jax.jit, static_argnames=("k",))
def _search(
    vectors: Float32[Array, "N W"], queries: Float32[Array, "Q W"], count: int | Array, *, k: int
) -> tuple[Float32[Array, "Q k"], Int[Array, "Q k"]]:
    scores = jnp.einsum("QW,NW->QN", queries, vectors, precision=lax.Precision.HIGHEST)
    present = jnp.arange(len(vectors))[None, :] < count
    best, rows = lax.top_k(jnp.where(present, scores, -jnp.inf), k)
    return best, rows


class ApproximateSearch:
    """Vectors are sorted into lists around centres; a query looks into the lists of the nearest centres alone."""

    def __init__(self, vectors: Float32[np.ndarray, "N W"], *, seed: int = 0):
        """Finds 4 sqrt(N) centres and sorts the vectors: seconds for 100,000.

        Raises:
            UserError: faiss is not installed.
        """
        if not has_faiss():
            raise UserError("approximate search needs faiss; install frozen_jax[retrieve], or search exactly")
        import faiss

        count, width = vectors.shape
        lists = max(1, min(int(4 * math.sqrt(count)), count // 39))  # faiss wants 39 vectors to a centre
        self._index: Any = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
        self._index.cp.seed = seed + 1234
        self._index.cp.max_points_per_centroid = 64  # no more of them make better centres, only later ones
        self._index.train(vectors)
        self._index.add(vectors)
        self._index.nprobe = PROBED

    def search(self, queries: Float32[np.ndarray, "Q W"], *, k: int) -> Found:
        """Returns k vectors of large inner product; a row is -1 where the lists held too few."""
        scores, rows = self._index.search(np.ascontiguousarray(queries, np.float32), k)
        return Found(scores, rows)


def open_search(vectors: Float32[np.ndarray, "N W"]) -> ExactSearch | ApproximateSearch:
    """Returns the exact search, or the approximate one from `APPROXIMATE_FROM` vectors on where faiss is there."""
    if len(vectors) < APPROXIMATE_FROM or not has_faiss():
        return ExactSearch(vectors)
    return ApproximateSearch(vectors)


def measure_recall(
    vectors: Float32[np.ndarray, "N W"], search: ApproximateSearch, queries: Float32[np.ndarray, "Q W"], *, k: int = 10
) -> float:
    """Returns the share of the exact k nearest that the approximate search finds, in [0, 1]."""
    exact, near = ExactSearch(vectors).search(queries, k=k), search.search(queries, k=k)
    pairs = zip(exact.rows, near.rows, strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in pairs]))
