"""The retrieval head: a token `[RET]` whose state in the frozen language model is compared with a picture's feature.

    text      bos  a  red  dot  RET        RET's state  ► linear ► unit vector ┐
    picture   pooled feature               of the encoder ► linear ► unit vector ┴ cosine

`frozen.py`, the next in the data flow, runs the language model; the contrastive loss is in `steps.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

INITIAL_SCALE = math.log(1 / 0.07)
LARGEST_SCALE = math.log(100.0)
"""Logarithms of what cosines are multiplied by: at first, and at most, as in CLIP."""


class RetrievalHead(nn.Module):
    """The token's embedding, two linear maps into one space, and the temperature: all that retrieval trains.

    Attributes:
        width: of the common space.
        token_width: D, the language model's embedding width.
        embedding_rms: size of its word embeddings, which the new token's has at first.

    Source: Koh et al., arXiv 2301.13823 (a token for retrieval); Radford et al., arXiv 2103.00020 (temperature).
    """

    width: int
    token_width: int
    embedding_rms: float

    def setup(self) -> None:
        """Names the parameters."""
        drawn: Callable[..., Array] = nn.initializers.normal(self.embedding_rms)
        self.token = self.param("token", drawn, (self.token_width,), jnp.float32)
        self.log_scale = self.param("scale", nn.initializers.constant(INITIAL_SCALE), (), jnp.float32)
        self.text = nn.Dense(self.width, dtype=jnp.float32)
        self.image = nn.Dense(self.width, dtype=jnp.float32)

    def __call__(self, states: Float[Array, "B D2"], pooled: Float[Array, "B E"]) -> tuple[Array, Array, Array]:
        """Uses every parameter once, for drawing them."""
        return self.map_states(states), self.map_images(pooled), self.scale()

    def append(self, embeddings: Float[Array, "B S D"]) -> Float[Array, "B S2 D"]:
        """Puts the token behind rows that are padded on the left."""
        token = jnp.broadcast_to(self.token.astype(embeddings.dtype), (len(embeddings), 1, self.token_width))
        return jnp.concatenate([embeddings, token], axis=1)

    def map_states(self, states: Float[Array, "B D2"]) -> Float32[Array, "B W"]:
        """Returns unit vectors of the token's states."""
        return _to_unit_length(self.text(states.astype(jnp.float32)))

    def map_images(self, pooled: Float[Array, "B E"]) -> Float32[Array, "B W"]:
        """Returns unit vectors of pooled features."""
        return _to_unit_length(self.image(pooled.astype(jnp.float32)))

    def scale(self) -> Float32[Array, ""]:
        """Returns the inverse temperature."""
        return jnp.exp(_cap(self.log_scale))


@jax.custom_vjp
def _cap(log_scale: Float32[Array, ""]) -> Float32[Array, ""]:
    """Holds to at most `LARGEST_SCALE`; where the value is above, a gradient passes that lowers it.

    The gradient of a minimum is 0 there, so that a temperature that a step brought above would stay for good.
    """
    return jnp.minimum(log_scale, LARGEST_SCALE)


def _cap_forward(log_scale: Float32[Array, ""]) -> tuple[Array, Array]:
    return _cap(log_scale), log_scale > LARGEST_SCALE


def _cap_backward(is_above: Array, slope: Float32[Array, ""]) -> tuple[Array]:
    return (jnp.where(is_above, jnp.maximum(slope, 0), slope),)  # descent lowers where the slope is positive


_cap.defvjp(_cap_forward, _cap_backward)


def _to_unit_length(x: Float32[Array, "B W"]) -> Float32[Array, "B W"]:
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)
