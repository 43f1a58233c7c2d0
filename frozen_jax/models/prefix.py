"""The prefix: one pooled image feature becomes P vectors of the language model's embedding width.

The encoders before it are in `nf_resnet.py`, `resnet.py`, `vit.py`; next in the data flow is `frozen.py`, which puts
the vectors into the slots of the token sequence.

At initialisation the vectors have the root mean square (RMS) of the language model's word embeddings. A prefix of
another size is, to a frozen language model, unlike any word: too large drowns the position embeddings, too small is
not seen; and the model cannot adapt.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

NORM_EPSILON = 1e-5


def _normalise_vectors(x: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
    """Mean 0 and variance 1 along the last axis, in float32."""
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + NORM_EPSILON)


class Prefix(nn.Module):
    """Pooled feature → dropout → (LayerNorm) → linear → P vectors → (LayerNorm, scaled).

    With `layer_norm=False` this is the paper's one linear layer. With it the size of the vectors is
    `embedding_rms * gain`, where `gain` is one learnable number that starts at 1: as a factor it moves at the learning
    rate relative to the embeddings' size, whatever that is (0.02 in one model, 0.14 in another), while a fixed scale
    could not follow a model that wants its images louder than its words, and a gain per channel adds nothing that the
    linear layer does not already have.

    Attributes:
        length: P, vectors per image.
        width: D, the language model's embedding width.
        embedding_rms: RMS of the language model's word embeddings, e.g. 0.14; positive.
        layer_norm: normalise each vector, then scale it.
        feature_norm: normalise the pooled feature first, with learnable scale and bias; for imported encoders, whose
            features have no known size.
        feature_rms: size that the pooled feature has when it is not normalised here; it sets the initial weights.
            An NF-ResNet that has just been drawn gives about 0.85.
        dropout: rate on the pooled feature, in [0, 1).
        dtype: compute dtype; parameters are float32.

    Source: Tsimpoukelli et al., arXiv 2106.13884 (the linear prefix; 2 vectors worked best).
    """

    length: int
    width: int
    embedding_rms: float
    layer_norm: bool = False
    feature_norm: bool = False
    feature_rms: float = 1.0
    dropout: float = 0.0
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, pooled: Float[Array, "B E"], *, deterministic: bool = True) -> Float[Array, "B P D"]:
        """Makes the vectors that stand for an image in the token sequence.

        Args:
            pooled: one feature per image.
            deterministic: no dropout; otherwise the random stream `dropout` is needed.
        """
        x: jax.Array = nn.Dropout(self.dropout)(pooled, deterministic=deterministic)
        if self.feature_norm:
            x = nn.LayerNorm(epsilon=NORM_EPSILON, dtype=jnp.float32, name="feature_norm")(x)
        # Variance sums over the E inputs; LayerNorm behind it makes the scale of the weights free, so take 1.
        target = 1.0 if self.layer_norm else self.embedding_rms
        size = 1.0 if self.feature_norm else self.feature_rms
        deviation = target / (size * math.sqrt(pooled.shape[-1]))
        x = nn.Dense(
            self.length * self.width,
            dtype=self.dtype,
            kernel_init=nn.initializers.normal(deviation),
            name="projection",
        )(x)
        x = x.reshape(pooled.shape[0], self.length, self.width)
        if self.layer_norm:
            gain = self.param("gain", nn.initializers.ones_init(), (), jnp.float32)
            x = _normalise_vectors(x) * (self.embedding_rms * gain)
        return x.astype(self.dtype)
