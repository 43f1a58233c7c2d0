"""The reader: a small network that learns, from real pictures, to name what is in one; it judges pictures that were
drawn. Used by `generate.py`.

It knows nothing of the generator: an NF-ResNet from scratch, with one linear head for each place of the tags. Its
pooled features are those of the Fréchet distance.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float32, Int, UInt8

from frozen_jax.data.order import Position, stream_indices
from frozen_jax.models.nf_resnet import NFResNet
from frozen_jax.models.vision import VisionOutput, build_vision

WIDTHS = (16, 32, 64)

BATCH_SIZE = 64

LEARNING_RATE = 4e-3


class Reading(NamedTuple):
    """What the reader makes of pictures.

    Attributes:
        tags: names, by picture and place.
        features: pooled.
    """

    tags: list[tuple[str, ...]]
    features: Float32[np.ndarray, "R E"]


class Reader(NamedTuple):
    """A trained reader.

    Attributes:
        names: of each place, in the order of its head's outputs.
        params: {"vision": …, "heads": [kernel, …]}.
    """

    names: tuple[tuple[str, ...], ...]
    params: dict[str, Any]

    def read(self, pictures: UInt8[np.ndarray, "R height width 3"], *, batch_size: int = 256) -> Reading:
        """Names what is in pictures."""
        tags: list[tuple[str, ...]] = []
        features = []
        for start in range(0, len(pictures), batch_size):
            shown = pictures[start : start + batch_size]
            filled = np.concatenate([shown, np.repeat(shown[:1], batch_size - len(shown), axis=0)])
            pooled, scores = jax.device_get(_look(self.params, filled))
            features.append(pooled[: len(shown)])
            best = [np.argmax(score[: len(shown)], axis=1) for score in scores]
            tags += [
                tuple(names[i] for names, i in zip(self.names, row, strict=True)) for row in zip(*best, strict=True)
            ]
        return Reading(tags, np.concatenate(features))


@functools.cache
def _encoder() -> NFResNet:
    encoder = build_vision("nf_resnet_small", widths=WIDTHS, stem_width=16, skip_gain=5.0)
    assert isinstance(encoder, NFResNet)
    return encoder


def _forward(
    params: dict[str, Any], pictures: UInt8[Array | np.ndarray, "B height width 3"]
) -> tuple[Array, list[Array]]:
    pooled = cast(VisionOutput, _encoder().apply({"params": params["vision"]}, pictures)).pooled
    # Without its mean: the pooled values are all positive, and their common part says nothing of a picture.
    centred = pooled - jnp.mean(pooled, axis=-1, keepdims=True)
    return pooled, [centred @ kernel for kernel in params["heads"]]


_look = jax.jit(_forward)


def train_reader(
    pictures: UInt8[np.ndarray, "R height width 3"], tags: Sequence[tuple[str, ...]], *, steps: int, seed: int
) -> Reader:
    """Trains a reader on real pictures: Adam, a cosine to 0, cross entropy summed over the places.

    Args:
        pictures: real ones.
        tags: of each picture, equally many.
        steps: of `BATCH_SIZE` pictures.
        seed: of weights and order; the same call gives the same reader.
    """
    names = tuple(tuple(sorted(set(place))) for place in zip(*tags, strict=True))
    labels = np.array([[place.index(tag) for place, tag in zip(names, row, strict=True)] for row in tags], np.int32)
    encoder = _encoder()
    key = jax.random.key(seed)
    draw = jax.jit(lambda key: encoder.init(key, jnp.zeros((1, *pictures.shape[1:]), jnp.uint8))["params"])
    heads = [
        jax.random.normal(jax.random.fold_in(key, place), (encoder.width, len(known))) * encoder.width**-0.5
        for place, known in enumerate(names)
    ]
    params = {"vision": draw(key), "heads": heads}
    optimiser = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))

    def loss(params: dict[str, Any], shown: Array, wanted: Int[Array, "B places"]) -> Array:
        scores = _forward(params, shown)[1]
        losses = [
            optax.softmax_cross_entropy_with_integer_labels(score, wanted[:, place]).mean()
            for place, score in enumerate(scores)
        ]
        return jnp.sum(jnp.stack(losses))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, shown: Array, wanted: Array) -> tuple[Any, Any]:
        updates, state = optimiser.update(jax.grad(loss)(params, shown, wanted), state, params)
        return optax.apply_updates(params, updates), state

    state, position = optimiser.init(params), Position(0, 0)
    for _ in range(steps):
        rows, _ = stream_indices(seed, position, BATCH_SIZE, len(pictures), shuffle=True)
        params, state = step(params, state, pictures[rows], labels[rows])
        position = position.advance(BATCH_SIZE, size=len(pictures))
    return Reader(names, params)
