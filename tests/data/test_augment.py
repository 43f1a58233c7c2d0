"""Augmentation: pure in (seed, epoch, sample), within its stated strengths, and off where it would lie."""

import numpy as np
import pytest
from PIL import Image

from frozen_jax.data.augment import AugmentOptions, augment, names_a_side, random_windows
from frozen_jax.data.random_ops import OPERATIONS
from frozen_jax.errors import UserError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(1, 256, (32, 20, 20, 3), dtype=np.uint8)
SAMPLES = np.arange(32)
EPOCHS = np.zeros(32, np.int64)


def run(options, *, images=IMAGES, samples=SAMPLES, epochs=EPOCHS, seed=0, may_flip=True):
    allowed = np.full(len(images), may_flip)
    return augment(images, options, seed=seed, epochs=epochs, samples=samples, may_flip=allowed)


ALL = AugmentOptions(shift=0.2, flip=True, brightness=0.3, contrast=0.3, colour=0.1)


def test_off_is_the_identity():
    np.testing.assert_array_equal(run(AugmentOptions()), IMAGES)


def test_pure_in_seed_epoch_and_sample():
    base = run(ALL)
    np.testing.assert_array_equal(base, run(ALL))
    order = RNG.permutation(32)
    np.testing.assert_array_equal(run(ALL, images=IMAGES[order], samples=SAMPLES[order]), base[order])
    for other in (run(ALL, seed=1), run(ALL, epochs=EPOCHS + 1), run(ALL, samples=SAMPLES + 32)):
        assert (other != base).any(axis=(1, 2, 3)).all()


def test_a_flip_mirrors_half_and_never_where_forbidden():
    flipped = run(AugmentOptions(flip=True))
    same = (flipped == IMAGES).all(axis=(1, 2, 3))
    mirrored = (flipped == IMAGES[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (same ^ mirrored).all() and 8 <= mirrored.sum() <= 24
    np.testing.assert_array_equal(run(AugmentOptions(flip=True), may_flip=False), IMAGES)


def test_a_shift_moves_and_fills_with_black():
    """Every picture is found again at one place within the limit; all else is black."""
    moved = run(AugmentOptions(shift=0.25))
    seen = set()
    for before, after in zip(IMAGES, moved, strict=True):
        rows, columns = np.nonzero(after.any(-1))
        top, left = rows.min(), columns.min()
        dy = top if top else rows.max() + 1 - 20
        dx = left if left else columns.max() + 1 - 20
        assert max(abs(dy), abs(dx)) <= 5
        expected = np.zeros_like(before)
        for y in range(20):
            for x in range(20):
                if 0 <= y - dy < 20 and 0 <= x - dx < 20:
                    expected[y, x] = before[y - dy, x - dx]
        np.testing.assert_array_equal(after, expected)
        seen.add((dy, dx))
    assert len(seen) > 20
    both = run(AugmentOptions(shift=0.25, flip=True))
    mirrored = both[:, :, ::-1]
    assert ((both == moved).all((1, 2, 3)) ^ (mirrored == moved).all((1, 2, 3))).all(), "shift, then mirror"


def test_brightness_and_colour_scale_channels():
    flat = np.full((32, 4, 4, 3), 100, np.uint8)
    bright = run(AugmentOptions(brightness=0.3), images=flat).astype(int)
    assert (bright == bright[:, :1, :1, :1]).all()
    assert bright.min() >= 70 and bright.max() <= 130 and bright.std() > 8
    tinted = run(AugmentOptions(colour=0.3), images=flat).astype(int)[:, 0, 0]
    assert tinted.min() >= 70 and tinted.max() <= 130 and (np.ptp(tinted, axis=1) > 0).mean() > 0.9
    both = run(AugmentOptions(brightness=0.3, colour=1e-9), images=flat)
    np.testing.assert_array_equal(both, bright)


def test_contrast_turns_about_mid_grey():
    levels = np.tile(np.array([64, 127, 192], np.uint8), (32, 2, 2, 1))
    changed = run(AugmentOptions(contrast=0.5), images=levels).astype(int)[:, 0, 0]
    assert np.abs(changed[:, 1] - 127).max() <= 1
    assert np.abs((127.5 - changed[:, 0]) - (changed[:, 2] - 127.5)).max() <= 2 and changed[:, 0].std() > 5


def test_windows():
    windows = random_windows(AugmentOptions(zoom=0.5), seed=0, epochs=EPOCHS, samples=SAMPLES)
    side = windows[:, 2:] - windows[:, :2]
    assert windows.min() >= 0 and windows.max() <= 1 and side.min() >= 0.5 and side.std() > 0.1
    np.testing.assert_allclose(side[:, 0], side[:, 1])


def test_texts_that_name_a_side():
    assert names_a_side("A dog on the LEFT.") and names_a_side("the rightmost cup")
    assert not names_a_side("a bright copyright leftover")


def test_bad_strengths():
    for bad in ({"shift": 2.0}, {"zoom": 0.0}, {"brightness": -1.0}):
        with pytest.raises(UserError, match=next(iter(bad))):
            AugmentOptions(**bad)


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_keeps_the_shape_and_changes_with_its_strength(name):
    picture = Image.fromarray(IMAGES[0] // 2 + 30)
    changed = {strength: np.asarray(OPERATIONS[name](picture, strength)) for strength in (0.0, 0.3, -0.3, 1.0)}
    assert all(pixels.shape == (20, 20, 3) and pixels.dtype == np.uint8 for pixels in changed.values())
    of_no_strength = name in ("identity", "autocontrast", "equalize")
    assert of_no_strength or not np.array_equal(changed[1.0], changed[0.3])
    if name != "identity":
        assert not np.array_equal(changed[1.0], np.asarray(picture))
    if name not in ("autocontrast", "equalize"):
        np.testing.assert_array_equal(changed[0.0], np.asarray(picture))


def test_random_operations_are_pure_and_differ_between_pictures():
    options = AugmentOptions(operations=2, magnitude=0.5)
    base = run(options)
    np.testing.assert_array_equal(base, run(options))
    order = RNG.permutation(32)
    np.testing.assert_array_equal(run(options, images=IMAGES[order], samples=SAMPLES[order]), base[order])
    assert (run(options, epochs=EPOCHS + 1) != base).any(axis=(1, 2, 3)).sum() > 25
    one = np.repeat(IMAGES[:1], 200, axis=0)
    made = run(AugmentOptions(operations=1), images=one, samples=np.arange(200), epochs=np.zeros(200, np.int64))
    kinds = len({pixels.tobytes() for pixels in made})
    assert 20 <= kinds <= 25, "14 operations, 11 of them in two directions, of which two coincide"
