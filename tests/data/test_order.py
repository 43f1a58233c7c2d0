"""The order is a bijection, uniform, independent between epochs and seeds, and costs nothing to enter anywhere."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frozen_jax.data.order import Position, sample_index, sample_indices, sample_rng, stream_indices, uniforms
from frozen_jax.errors import UserError


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 700), seed=st.integers(-(2**70), 2**70), epoch=st.integers(0, 2**40))
def test_every_sample_comes_once_per_epoch(size, seed, epoch):
    order = sample_indices(seed, epoch, 0, size, size)
    assert sorted(order.tolist()) == list(range(size))


@settings(max_examples=60, deadline=None)
@given(size=st.integers(2, 10**15), data=st.data())
def test_any_part_can_be_asked_for_alone(size, data):
    start = data.draw(st.integers(0, size - 1))
    count = data.draw(st.integers(1, min(9, size - start)))
    part = sample_indices(5, 3, start, count, size)
    assert part.tolist() == [sample_index(5, 3, start + i, size) for i in range(count)]
    assert part.min() >= 0 and part.max() < size and len(set(part.tolist())) == count


def test_places_are_uniform():
    """Chi-square of (place, sample) counts over 1,500 seeds; five standard deviations to either side fail."""
    for size in (2, 3, 4, 7):
        orders = np.stack([sample_indices(seed, 0, 0, size, size) for seed in range(1500)])
        counts = np.stack([np.bincount(orders[:, place], minlength=size) for place in range(size)])
        expected = 1500 / size
        chi = ((counts - expected) ** 2 / expected).sum()
        freedom = (size - 1) ** 2
        assert abs(chi - freedom) < 5 * np.sqrt(2 * freedom) + 3, (size, chi, freedom)


def test_all_permutations_of_four_are_reached():
    seen = {tuple(sample_indices(seed, 0, 0, 4, 4).tolist()) for seed in range(600)}
    assert len(seen) == 24


def test_neighbours_epochs_and_seeds_are_unrelated():
    size = 4096
    first = sample_indices(0, 0, 0, size, size)
    places = np.arange(size)
    assert abs(np.corrcoef(places, first)[0, 1]) < 0.06
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.06
    for other in (sample_indices(0, 1, 0, size, size), sample_indices(1, 0, 0, size, size)):
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.06
        assert (first == other).sum() < 12  # expected 1
    gaps = np.abs(np.diff(first))
    assert abs(gaps.mean() / (size / 3) - 1) < 0.05


def test_the_far_end_of_a_huge_epoch_is_reached_at_once():
    began = time.perf_counter()
    order = sample_indices(0, 10**6, 10**15 - 1000, 1000, 10**15)
    assert time.perf_counter() - began < 0.5
    assert len(np.unique(order)) == 1000


def test_the_stream_runs_over_epoch_ends():
    samples, epochs = stream_indices(3, Position(0, 4), 13, 5)
    assert epochs.tolist() == [0] + [1] * 5 + [2] * 5 + [3] * 2
    assert samples[0] == sample_index(3, 0, 4, 5)
    assert sorted(samples[1:6].tolist()) == list(range(5))
    assert samples[1:6].tolist() == sample_indices(3, 1, 0, 5, 5).tolist()
    assert Position(0, 4).advance(13, size=5) == Position(3, 2)
    in_order, _ = stream_indices(3, Position(0, 4), 3, 5, shuffle=False)
    assert in_order.tolist() == [4, 0, 1]


@pytest.mark.parametrize(("start", "count", "size"), [(0, 6, 5), (-1, 2, 5), (0, 0, 0)])
def test_places_outside_the_epoch_are_refused(start, count, size):
    with pytest.raises(UserError, match="epoch"):
        sample_indices(0, 0, start, count, size)


GOLDEN_ORDER = [2482, 332, 2175, 1950, 1631, 2480, 3732, 882]
GOLDEN_RNG = [474, 973, 525, 356]


def test_the_order_never_changes_between_versions():
    """A checkpoint's position means the same samples for ever: these numbers are part of the format."""
    assert sample_indices(0, 0, 0, 8, 4000).tolist() == GOLDEN_ORDER
    assert sample_rng(0, 0, 0, stream="text").integers(1000, size=4).tolist() == GOLDEN_RNG


def test_uniforms_depend_on_all_of_their_keys():
    epochs, samples = np.zeros(1000, np.int64), np.arange(1000)
    base = uniforms(0, epochs, samples, stream="a", count=3)
    assert base.shape == (1000, 3) and base.min() >= 0 and base.max() < 1
    assert abs(base.mean() - 0.5) < 0.03 and abs(base.std() - 12**-0.5) < 0.02
    others = (
        uniforms(1, epochs, samples, stream="a", count=3),
        uniforms(0, epochs + 1, samples, stream="a", count=3),
        uniforms(0, epochs, samples, stream="b", count=3),
        uniforms(0, epochs, samples + 1, stream="a", count=3),
    )
    for other in others:
        assert abs(np.corrcoef(base.ravel(), other.ravel())[0, 1]) < 0.07
    one = uniforms(0, epochs[:1], samples[7:8], stream="a", count=3)
    np.testing.assert_array_equal(one[0], base[7])


def test_a_samples_generator_is_its_own():
    draws = {
        tuple(sample_rng(seed, epoch, sample, stream=stream).integers(1 << 60, size=2).tolist())
        for seed in (0, 1)
        for epoch in (0, 1, 2)
        for sample in (0, 1, 2, 3)
        for stream in ("text", "other")
    }
    assert len(draws) == 2 * 3 * 4 * 2
    numbers = np.array([sample_rng(0, 0, i, stream="text").random() for i in range(4000)])
    assert abs(numbers.mean() - 0.5) < 0.02 and abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.06
