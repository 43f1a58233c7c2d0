"""One vector from a picture and a text, and the class it stands for: G = Fusion(H, F).

H are the states of the frozen text side (a BERT's, or a language model's), F is what the vision encoder says. Every
kind makes W numbers of them, which one head reads, so that kinds compare. Next: `frozen.py`, which feeds it.

    text              W h                         without the picture
    image             V f                         without the text
    concat            A [W h, V f]
    gated             z * tanh W h + (1 - z) * tanh V f,  z = sigmoid Z [W h, V f]      Arevalo et al., arXiv 1702.01992
    bilinear          A (W h * V f)                                                    Kim et al., arXiv 1610.04325
    cross_attention   each word looks at the places of the picture; the mean of what the words then know
                                                                                       Vaswani et al., arXiv 1706.03762
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from frozen_jax.models.layers import DType, LayerNorm, attend

KINDS = ("concat", "gated", "bilinear", "cross_attention", "text", "image")

NORM_EPSILON = 1e-6


class Fusion(nn.Module):
    """Fuses the two sides and names the class; everything here trains.

    Attributes:
        kind: one of `KINDS`.
        classes: C, or what they are called in order.
        width: W, of both sides and of their fusion; a multiple of the heads.
        heads: of the cross-attention.
        dropout: rate on the fused vector, in [0, 1).
        dtype: compute dtype.
    """

    kind: str
    classes: tuple[str, ...]
    width: int
    heads: int = 4
    dropout: float = 0.0
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self,
        states: Float[Array, "B S D"],
        present: Bool[Array, "B S"],
        pooled: Float[Array, "B E"],
        places: Float[Array, "B M E2"],
        *,
        deterministic: bool = True,
    ) -> tuple[Float32[Array, "B W"], Float32[Array, "B C"]]:
        """Returns the fused vector, of mean 0 and variance 1, and a logit for each class.

        Args:
            states: of the text side.
            present: true where there is a word.
            pooled: one vector of the picture.
            places: one vector for each place of it; read by `cross_attention` alone.
            deterministic: without dropout.
        """
        shared = present[:, :, None].astype(jnp.float32)
        text = jnp.sum(states.astype(jnp.float32) * shared, axis=1) / jnp.maximum(jnp.sum(shared, axis=1), 1.0)
        if self.kind == "text":
            fused = self._map("text", text)
        elif self.kind == "image":
            fused = self._map("image", pooled)
        elif self.kind == "cross_attention":
            fused = self._attend(states, shared, places)
        else:
            fused = self._join(self._map("text", text), self._map("image", pooled))
        norm = LayerNorm(self.width, NORM_EPSILON, name="fused_norm")
        fused = norm(jax.nn.gelu(fused)[:, None])[:, 0]
        kept = nn.Dropout(self.dropout)(fused, deterministic=deterministic)
        logits = nn.Dense(len(self.classes), dtype=jnp.float32, name="classes")(kept)
        return fused, logits

    def _join(self, text: Float[Array, "B W"], image: Float[Array, "B W"]) -> Float[Array, "B W"]:
        both = jnp.concatenate([text, image], axis=-1)
        if self.kind == "gated":
            gate = jax.nn.sigmoid(nn.Dense(self.width, dtype=self.dtype, name="gate")(both))
            return gate * jnp.tanh(text) + (1 - gate) * jnp.tanh(image)
        return nn.Dense(self.width, dtype=self.dtype, name="join")(text * image if self.kind == "bilinear" else both)

    def _attend(
        self, states: Float[Array, "B S D"], shared: Float[Array, "B S 1"], places: Float[Array, "B M E2"]
    ) -> Float[Array, "B W"]:
        heads = (self.heads, self.width // self.heads)
        words, seen = self._map("text", states), self._map("image", places)
        query = nn.DenseGeneral(heads, dtype=self.dtype, name="query")(words)
        key, value = (nn.DenseGeneral(heads, dtype=self.dtype, name=name)(seen) for name in ("key", "value"))
        everything = jnp.ones((*words.shape[:2], seen.shape[1]), bool)
        mixed = attend(query, key, value, mask=everything, scale=heads[1] ** -0.5, dropout=lambda weights: weights)
        looked = nn.DenseGeneral(self.width, axis=(-2, -1), dtype=self.dtype, name="out")(mixed)
        known = jax.nn.gelu(nn.Dense(self.width, dtype=self.dtype, name="join")(words + looked))
        return jnp.sum(known * shared, axis=1) / jnp.maximum(jnp.sum(shared, axis=1), 1.0)

    def _map(self, side: str, vectors: Float[Array, "*rows E"]) -> Float[Array, "*rows W"]:
        """Brings a side to the common width; its vectors have no known size, so they are normalised first."""
        rows = vectors.reshape(vectors.shape[0], -1, vectors.shape[-1])
        normed = LayerNorm(vectors.shape[-1], NORM_EPSILON, name=f"{side}_norm")(rows)
        mapped = nn.Dense(self.width, dtype=self.dtype, name=side)(normed)
        return mapped.reshape(*vectors.shape[:-1], self.width)
