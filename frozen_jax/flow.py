"""Rectified flow: straight paths from noise to pictures, learnt in training and followed when pictures are drawn.

Lives here: what the loss (`steps.picture_loss`) and the sampler share, and the sampler. The network is
`models/generator.py`; whoever only wants pictures calls `api.Model.draw`.

    z(t) = t x + (1 - t) noise          t from 0 (noise) to 1 (picture x)
    velocity = x - noise = (x - z) / (1 - t)

The network names x, and the velocity follows from it: pictures fill a small part of their space, noise fills all of it,
so that a small network can name the one and not the other.

Sources: Liu et al., arXiv 2209.03003 (rectified flow); Esser et al., arXiv 2403.03206 (logit-normal times); Li and He,
arXiv 2511.13720 (the picture named, the velocity's loss); Ho and Salimans, arXiv 2207.12598 (guidance without a
classifier).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from frozen_jax.models.frozen import FrozenModel
from frozen_jax.state import Params

TIME_MEAN, TIME_STD = -1.5, 1.2
"""Of the normal variable whose logistic function is a training time.

What a picture of one thing is to show is decided while it is still almost noise: a thing of n values stands out as soon
as t / (1 - t) exceeds about 1 / sqrt(n) of its contrast, which is at t = 0.02 to 0.1 for things of some hundred pixels.
The times of training and the steps of drawing are laid there.
"""

LEAST_REST = 0.05
"""1 - t counts as at least this in the loss, so that the loss stays finite near the picture."""


def spread_times(places: Float[Array, " B"], *, count: Float[Array, ""] | int) -> Float[Array, " B"]:
    """Returns the times of a batch: logit-normal, evenly spread over its quantiles, so that batches are alike.

    Args:
        places: among the rows that count, 0 to `count`.
        count: of these rows.
    """
    quantiles = places / count
    return jax.nn.sigmoid(TIME_MEAN + TIME_STD * jax.scipy.special.ndtri(jnp.clip(quantiles, 1e-4, 1 - 1e-4)))


def path_times(steps: int) -> Float[np.ndarray, " _"]:
    """Returns the times of a path from 0 to 1: even steps, moved in logits by `TIME_MEAN` as training times are."""
    even = np.arange(steps + 1) / steps
    odds = math.exp(TIME_MEAN)
    return (odds * even / (odds * even + 1 - even)).astype(np.float32)


def scale_pixels(images: UInt8[Array, "B height width 3"]) -> Float[Array, "B height width 3"]:
    """Pixels 0..255 to -1..1."""
    return images.astype(jnp.float32) / 127.5 - 1.0


def to_pixels(pictures: Float[Array, "B height width 3"]) -> UInt8[Array, "B height width 3"]:
    """Inverse of `scale_pixels`; values beyond the range are cut."""
    return jnp.clip(jnp.round((pictures + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


def weigh(times: Float[Array, " B"]) -> Float[Array, " B"]:
    """Returns what the squared error of a named picture counts for the squared error of the velocity."""
    return 1 / jnp.square(jnp.maximum(1 - times, LEAST_REST))


def velocity(
    clean: Float[Array, "B height width 3"], noisy: Float[Array, "B height width 3"], times: Float[Array, " B"]
) -> Float[Array, "B height width 3"]:
    """Returns the velocity of a noisy picture towards a clean one; times below 1."""
    return (clean - noisy) / (1 - times)[:, None, None, None]


def guided_velocity(
    model: FrozenModel,
    params: Params,
    noisy: Float[Array, "B height width 3"],
    time: Float[Array, ""],
    condition: Float[Array, "B Q E"],
    *,
    guidance: float,
) -> Float[Array, "B height width 3"]:
    """Returns the velocity, pushed by `guidance` from what the network names without a text to what it names with it.

    1 is the conditional velocity itself, and costs half as much.
    """
    rows = noisy.shape[0]
    times = jnp.broadcast_to(time, (rows,))
    if guidance == 1:
        return velocity(model.denoise(params, noisy, times, condition), noisy, times)
    both = jnp.concatenate([condition, model.no_text(params, rows)])
    clean = model.denoise(params, jnp.concatenate([noisy] * 2), jnp.concatenate([times] * 2), both)
    told, untold = jnp.split(clean, 2)
    return velocity(untold + guidance * (told - untold), noisy, times)


def draw_noise(rng: Key[Array, ""], numbers: Array, *, size: int) -> Float[Array, "B height width 3"]:
    """Returns the noise of the pictures of these numbers: each its own, however many are drawn together."""
    return jax.vmap(lambda number: jax.random.normal(jax.random.fold_in(rng, number), (size, size, 3)))(numbers)


def follow(
    model: FrozenModel,
    params: Params,
    noise: Float[Array, "B height width 3"],
    condition: Float[Array, "B Q E"],
    *,
    steps: int,
    guidance: float,
) -> Float[Array, "B height width 3"]:
    """Follows the flow from noise to pictures, by Heun's second-order steps and a last one of the first order.

    Args:
        model: with a generator.
        params: the whole tree.
        noise: standard normal.
        condition: from `FrozenModel.condition`.
        steps: from 0 to 1, at `path_times`; the network is run 2 steps - 1 times.
        guidance: see `guided_velocity`.

    Returns:
        Pixels, -1 to 1 but for what the network exceeds it by.
    """
    times = jnp.asarray(path_times(steps))

    def advance(number: Array, noisy: Array) -> Array:
        time, later = times[number], times[number + 1]
        first = guided_velocity(model, params, noisy, time, condition, guidance=guidance)
        ahead = noisy + (later - time) * first
        second = guided_velocity(model, params, ahead, later, condition, guidance=guidance)
        return noisy + (later - time) * (first + second) / 2

    noisy: Array = jax.lax.fori_loop(0, steps - 1, advance, noise)
    last = times[steps - 1]
    return noisy + (1 - last) * guided_velocity(model, params, noisy, last, condition, guidance=guidance)
