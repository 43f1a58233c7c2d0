"""The nearest vectors: exactly, against a full sort; and about, against the exact ones."""

import numpy as np
import pytest

from frozen_jax import nearest
from frozen_jax.errors import UserError
from frozen_jax.nearest import ApproximateSearch, ExactSearch, measure_recall, open_search


def make_vectors(count, *, width=16, clusters=20, seed=0):
    """Unit vectors in clumps, as those of pictures are."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(clusters, width))
    vectors = centres[random.integers(clusters, size=count)] + 0.3 * random.normal(size=(count, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_the_exact_search_is_a_full_sort():
    vectors, queries = make_vectors(1500), make_vectors(5, seed=1)
    found = ExactSearch(vectors).search(queries, k=7)
    scores = queries @ vectors.T
    np.testing.assert_array_equal(found.rows, np.argsort(-scores, axis=1, kind="stable")[:, :7])
    np.testing.assert_allclose(found.scores, -np.sort(-scores, axis=1)[:, :7], rtol=1e-5)


def test_padding_is_never_found_and_growth_compiles_nothing():
    vectors = -np.ones((3, 4), np.float32)  # every inner product is less than that of padding
    found = ExactSearch(vectors).search(np.ones((1, 4), np.float32), k=10)
    assert sorted(found.rows[0].tolist()) == [0, 1, 2] and (found.scores == -4).all()
    sizes = nearest._search._cache_size()
    ExactSearch(-np.ones((900, 4), np.float32)).search(np.ones((1, 4), np.float32), k=3)
    assert nearest._search._cache_size() == sizes


def test_the_approximate_search_finds_nearly_all():
    pytest.importorskip("faiss")
    vectors, queries = make_vectors(4000), make_vectors(50, seed=1)
    search = ApproximateSearch(vectors)
    assert measure_recall(vectors, search, queries) > 0.9
    search._index.nprobe = 1  # one list of a hundred
    assert measure_recall(vectors, search, queries) < 0.9


def test_a_large_gallery_is_searched_approximately_where_faiss_is_there(monkeypatch):
    vectors = make_vectors(1100)
    assert isinstance(open_search(vectors), ExactSearch)
    monkeypatch.setattr(nearest, "APPROXIMATE_FROM", 1000)
    if nearest.has_faiss():
        assert isinstance(open_search(vectors), ApproximateSearch)
    monkeypatch.setattr(nearest, "has_faiss", lambda: False)
    assert isinstance(open_search(vectors), ExactSearch)
    with pytest.raises(UserError, match=r"frozen_jax\[retrieve\]"):
        ApproximateSearch(vectors)
