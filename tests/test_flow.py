"""The flow by hand: times, velocities, a sampler that finds an oracle's picture, guidance; queries behind words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.flow import (
    TIME_MEAN,
    draw_noise,
    follow,
    guided_velocity,
    path_times,
    scale_pixels,
    spread_times,
    to_pixels,
    velocity,
    weigh,
)
from frozen_jax.models.convolution import cut_patches
from frozen_jax.models.frozen import FrozenModel, append_queries
from frozen_jax.models.generator import join_patches
from frozen_jax.models.lm import build_lm, lm_config_from_hf

LM = build_lm(lm_config_from_hf({"model_type": "gpt2", "vocab_size": 4, "n_embd": 2, "n_layer": 1, "n_head": 1}))


class Oracle(FrozenModel):
    """Names the picture that its condition holds, whatever it is shown; without a text, half of it."""

    def denoise(self, params, noisy, times, condition):
        return jnp.broadcast_to(condition[:, :, None, :1], noisy.shape)

    def no_text(self, params, rows):
        return jnp.full((rows, 4, 1), 0.25)


CONDITION = jnp.full((2, 4, 1), 0.5)


def test_queries_stand_right_behind_their_words():
    """The drawn example: a word more or less of padding moves no query."""
    words = jnp.arange(1.0, 7.0).reshape(2, 3, 1)
    mixed, segments, places = append_queries(words, jnp.array([2, 3]), jnp.array([[10.0], [20.0]]))
    assert mixed[..., 0].tolist() == [[1, 2, 10, 20, 0], [4, 5, 6, 10, 20]]
    assert segments.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]] and places.tolist() == [[2, 3], [3, 4]]


def test_patches_come_back():
    pictures = jnp.arange(2 * 4 * 4 * 3, dtype=jnp.float32).reshape(2, 4, 4, 3)
    patches = cut_patches(pictures, 2)
    assert patches.shape == (2, 2, 2, 12)
    np.testing.assert_array_equal(join_patches(patches, 2), pictures)


def test_times_are_the_quantiles_of_a_logit_normal():
    times = spread_times(jnp.arange(101) + 0.5, count=101)
    np.testing.assert_allclose(times[50], 1 / (1 + np.exp(-TIME_MEAN)), rtol=1e-5)
    assert (jnp.diff(times) > 0).all() and times[0] > 0 and times[-1] < 1
    assert (spread_times(jnp.arange(101) + 0.9, count=101) > times).all()


def test_steps_are_short_where_the_picture_is_decided():
    """Even steps, moved in logits by the mean training time: half of them lie before it."""
    times = path_times(8)
    assert times[0] == 0 and times[-1] == 1 and (np.diff(times, 2) > 0).all()
    np.testing.assert_allclose(np.log(times[4] / (1 - times[4])), TIME_MEAN, rtol=1e-5)
    np.testing.assert_allclose(np.log(times[2] / (1 - times[2])), TIME_MEAN - np.log(3), rtol=1e-5)


def test_pixels_come_back():
    pixels = jnp.arange(256, dtype=jnp.uint8).repeat(3).reshape(1, 16, 16, 3)
    np.testing.assert_array_equal(to_pixels(scale_pixels(pixels)), pixels)
    assert to_pixels(jnp.full((1, 1, 1, 3), 1.7)).max() == 255


def test_the_weight_makes_an_error_of_the_picture_one_of_the_velocity():
    times, noisy = jnp.array([0.0, 0.6]), jnp.ones((2, 1, 1, 3))
    one, other = jnp.full((2, 1, 1, 3), 0.3), jnp.full((2, 1, 1, 3), 0.7)
    error = jnp.mean(jnp.square(velocity(one, noisy, times) - velocity(other, noisy, times)), axis=(1, 2, 3))
    np.testing.assert_allclose(error, weigh(times) * 0.16, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_sampler_finds_the_picture_that_is_named(steps):
    """The paths to one picture are straight, so any number of steps ends there."""
    noise = draw_noise(jax.random.key(0), jnp.arange(2), size=4)
    made = follow(Oracle(LM), {}, noise, CONDITION, steps=steps, guidance=1.0)
    np.testing.assert_allclose(made, jnp.full((2, 4, 4, 3), 0.5), atol=1e-5)


def test_guidance_goes_beyond_the_text():
    noisy = jnp.zeros((2, 4, 4, 3))
    for guidance, named in ((0.0, 0.25), (1.0, 0.5), (2.0, 0.75), (3.0, 1.0)):
        pushed = guided_velocity(Oracle(LM), {}, noisy, jnp.float32(0.5), CONDITION, guidance=guidance)
        np.testing.assert_allclose(pushed, jnp.full(noisy.shape, named / 0.5), rtol=1e-6)


def test_a_pictures_noise_is_its_own():
    together = draw_noise(jax.random.key(3), jnp.arange(4), size=8)
    alone = draw_noise(jax.random.key(3), jnp.array([2]), size=8)
    np.testing.assert_array_equal(together[2], alone[0])
    assert abs(float(together.mean())) < 0.2 and 0.9 < float(together.std()) < 1.1
    assert not np.array_equal(together[0], together[1])
