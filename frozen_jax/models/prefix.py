"""The prefix: an image's features become P vectors of the language model's embedding width.

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

from frozen_jax.models.layers import LayerNorm, attend
from frozen_jax.prefix_settings import PLACES, PrefixKind

NORM_EPSILON = 1e-5

GELU_RMS = 0.65
"""Of gelu(x) where x is normally distributed with variance 1."""


def _normalise_vectors(x: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
    """Mean 0 and variance 1 along the last axis, in float32."""
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + NORM_EPSILON)


class Block(nn.Module):
    """A layer of attention and an MLP, each behind a norm and beside the identity.

    Attributes:
        width: of the vectors.
        heads: N.
        dtype: compute dtype.
    """

    width: int
    heads: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(
        self, states: Float[Array, "B Q W"], places: Float[Array, "B M W"] | None = None
    ) -> Float[Array, "B Q W"]:
        """Lets each vector look at all of them, and at the places of a picture where given."""
        shape = (self.heads, self.width // self.heads)
        normed = self._norm("norm", states)
        seen = normed if places is None else jnp.concatenate([self._norm("places_norm", places), normed], axis=1)
        query = nn.DenseGeneral(shape, dtype=self.dtype, name="query")(normed)
        key, value = (nn.DenseGeneral(shape, dtype=self.dtype, name=name)(seen) for name in ("key", "value"))
        everything = jnp.ones((*states.shape[:2], seen.shape[1]), bool)
        mixed = attend(query, key, value, mask=everything, scale=shape[1] ** -0.5, dropout=lambda weights: weights)
        states = states + nn.DenseGeneral(self.width, axis=(-2, -1), dtype=self.dtype, name="out")(mixed)
        inner = nn.Dense(2 * self.width, dtype=self.dtype, name="up")(self._norm("mlp_norm", states))
        return states + nn.Dense(self.width, dtype=self.dtype, name="down")(jax.nn.gelu(inner))

    def _norm(self, name: str, x: Float[Array, "B S W"]) -> Float[Array, "B S W"]:
        return LayerNorm(self.width, NORM_EPSILON, dtype=self.dtype, name=name)(x)


class Prefix(nn.Module):
    """Features → dropout → (LayerNorm) → one of the designs below → P vectors → (LayerNorm, scaled).

        linear          A pooled                                       the paper's; arXiv 2106.13884
        mlp             A gelu(H pooled)                               ClipCap's, arXiv 2111.09734
        transformer     A of P learned queries, which look at P vectors of the pooled feature     likewise
        attention_pool  A of P learned queries, which look at the places of the picture           arXiv 2204.14198
        patches         A of each place                                LiMBeR, arXiv 2209.15162

    With `layer_norm` the size of the vectors is
    `embedding_rms * gain`, where `gain` is one learnable number that starts at 1: as a factor it moves at the learning
    rate relative to the embeddings' size, whatever that is (0.02 in one model, 0.14 in another), while a fixed scale
    could not follow a model that wants its images louder than its words, and a gain per channel adds nothing that the
    linear layer does not already have.

    Attributes:
        length: P, vectors per image.
        width: D, the language model's embedding width.
        embedding_rms: RMS of the language model's word embeddings, e.g. 0.14, times `prefix.scale`; positive.
        layer_norm: normalise each vector, then scale it.
        feature_norm: normalise the features first, with learnable scale and bias; for imported encoders, whose
            features have no known size.
        feature_rms: size that the features have when they are not normalised here; it sets the initial weights.
            An NF-ResNet that has just been drawn gives about 0.85.
        dropout: rate on the features, in [0, 1).
        dtype: compute dtype; parameters are float32.
        kind: the design.
        hidden: W, width of the hidden layer or of the queries.
        layers: of attention.
        heads: N of the attention; they divide W.
    """

    length: int
    width: int
    embedding_rms: float
    layer_norm: bool = False
    feature_norm: bool = False
    feature_rms: float = 1.0
    dropout: float = 0.0
    dtype: jax.typing.DTypeLike = jnp.float32
    kind: PrefixKind = "linear"
    hidden: int = 512
    layers: int = 2
    heads: int = 8

    @property
    def reads_places(self) -> bool:
        """Whether the features are those of the places of a picture, not the pooled one."""
        return self.kind in PLACES

    @nn.compact
    def __call__(self, features: Float[Array, "B *M E"], *, deterministic: bool = True) -> Float[Array, "B P D"]:
        """Makes the vectors that stand for an image in the token sequence.

        Args:
            features: one per image, or with `reads_places` one per place of each.
            deterministic: no dropout; otherwise the random stream `dropout` is needed.
        """
        x: jax.Array = nn.Dropout(self.dropout)(features, deterministic=deterministic)
        if self.feature_norm:
            x = nn.LayerNorm(epsilon=NORM_EPSILON, dtype=jnp.float32, name="feature_norm")(x)
        size = 1.0 if self.feature_norm else self.feature_rms
        if self.kind == "mlp":
            x, size = jax.nn.gelu(self._map("hidden", x, self.hidden, size=size)), GELU_RMS
        elif self.kind in ("transformer", "attention_pool"):
            x, size = self._query(x, size=size), 1.0
        # LayerNorm behind it makes the scale of the weights free, so take 1.
        target = 1.0 if self.layer_norm else self.embedding_rms
        each = self.width if self.kind not in ("linear", "mlp") else self.length * self.width
        x = self._map("projection", x, each, size=size, target=target)
        x = x.reshape(x.shape[0], self.length, self.width)
        if self.layer_norm:
            gain = self.param("gain", nn.initializers.ones_init(), (), jnp.float32)
            x = _normalise_vectors(x) * (self.embedding_rms * gain)
        return x.astype(self.dtype)

    def _map(
        self, name: str, x: Float[Array, "*rows E"], width: int, *, size: float, target: float = 1.0
    ) -> Float[Array, "*rows F"]:
        """A linear map whose result has the RMS `target` where that of x is `size`: variance sums over the inputs."""
        deviation = target / (size * math.sqrt(x.shape[-1]))
        return nn.Dense(width, dtype=self.dtype, kernel_init=nn.initializers.normal(deviation), name=name)(x)

    def _query(self, x: Float[Array, "B *M E"], *, size: float) -> Float[Array, "B P W"]:
        """What P learned queries know when they have looked at the features; of size 1."""
        queries = self.param("queries", nn.initializers.normal(1.0), (self.length, self.hidden), jnp.float32)
        rows = x.shape[0]  # not len(x): a program for any number of pictures has no number here
        states = jnp.broadcast_to(queries.astype(self.dtype)[None], (rows, *queries.shape))
        mapped = self._map("mapped", x, self.hidden * (1 if self.reads_places else self.length), size=size)
        mapped = mapped.reshape(rows, -1, self.hidden)
        if not self.reads_places:  # there everybody looks at everybody
            states = jnp.concatenate([mapped, states], axis=1)
        for number in range(self.layers):
            block = Block(self.hidden, self.heads, self.dtype, name=f"block_{number}")
            states = block(states, mapped if self.reads_places else None)
        return LayerNorm(self.hidden, NORM_EPSILON, dtype=self.dtype, name="norm")(states[:, -self.length :])
