"""The picture generator: a transformer over patches of a noisy picture, told by the language model what to draw.

Lives here: the network alone. What it is trained towards and how pictures are drawn from it: `flow.py`; how the
learned queries go through the frozen language model: `frozen.py`.

    tokens       bos  a    red  circle  eos  q_0  q_1  …      queries behind the text
    hidden       .    .    .    .       .    h_0  h_1  …      of the frozen language model; h is the condition

    [condition tokens | patches of the noisy picture] → blocks, each steered by time and condition → clean patches

Sources: Peebles and Xie, arXiv 2212.09748 (a transformer whose norms are steered, their gates 0 at the start); Li and
He, arXiv 2511.13720 (the network names the clean picture, whatever the loss); Koh et al., arXiv 2305.17216 (queries
behind the text of a frozen language model).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from frozen_jax.models.layers import LayerNorm, Projection, attend, stack_layers

NORM_EPSILON = 1e-6

MLP_RATIO = 4

FREQUENCIES = 32
"""Sines, and as many cosines, that a time is told by."""

_POSITION_STD = 0.5
"""RMS of the initial positions, beside patches whose RMS is about 1."""


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Sizes of a generator.

    Attributes:
        image_size: side of the pictures, a multiple of the patch size.
        patch_size: side of a patch in pixels.
        width: E, of the transformer; a multiple of 4 and of the heads.
        layers: L.
        heads: N.
        queries: vectors behind the text, Q.
        embed_width: D, of the language model's embeddings, which queries stand beside.
        lm_width: D2, of the language model's hidden states.
        embedding_rms: size of the language model's embeddings, which queries begin with.
    """

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    queries: int
    embed_width: int
    lm_width: int
    embedding_rms: float

    @property
    def tokens(self) -> int:
        """M, patches of a picture."""
        return (self.image_size // self.patch_size) ** 2


def cut_into_patches(pictures: Float[Array, "B height width 3"], *, patch: int) -> Float[Array, "B M values"]:
    """Cuts pictures into patches, row by row; a patch's values are its rows, pixels and colours in this order."""
    rows, side = pictures.shape[0], pictures.shape[1] // patch
    cut = pictures.reshape(rows, side, patch, side, patch, 3).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(rows, side * side, patch * patch * 3)


def join_patches(patches: Float[Array, "B M values"], *, patch: int) -> Float[Array, "B height width 3"]:
    """Inverse of `cut_into_patches`."""
    rows, side = patches.shape[0], math.isqrt(patches.shape[1])
    cut = patches.reshape(rows, side, side, patch, patch, 3).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(rows, side * patch, side * patch, 3)


def tell_time(times: Float[Array, " B"]) -> Float[Array, "B 64"]:
    """Returns sines and cosines of times in [0, 1], from half a turn to 500 turns."""
    turns = jnp.exp(jnp.linspace(math.log(0.5), math.log(500.0), FREQUENCIES))
    angles = 2 * math.pi * times[:, None] * turns[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


def _grid_positions(config: GeneratorConfig) -> Float[np.ndarray, "M E"]:
    """Sines and cosines of row and column, a quarter of the width each."""
    side, quarter = config.image_size // config.patch_size, config.width // 4
    turns = np.exp(-np.log(side * 4.0) * np.arange(quarter) / quarter)
    angles = np.arange(side)[:, None] * turns[None, :]
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    rows, columns = np.repeat(waves, side, axis=0), np.tile(waves, (side, 1))
    return np.concatenate([rows, columns], axis=1).astype(np.float32) * (_POSITION_STD / math.sqrt(0.5))


def _steer(x: Float[Array, "B M E"], shift: Float[Array, "B E"], scale: Float[Array, "B E"]) -> Float[Array, "B M E"]:
    return x * (1 + scale[:, None, :]) + shift[:, None, :]


class GeneratorBlock(nn.Module):
    """One layer: attention over condition and patches, then an MLP, each steered and gated by time and condition."""

    config: GeneratorConfig
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "B M E"], layer: Int[Array, ""], steering: Float[Array, "B E"], deterministic: bool
    ) -> tuple[Float[Array, "B M E"], None]:
        """Returns the residual stream after this layer; see `layers.stack_layers` for the arguments."""
        config, dtype = self.config, self.dtype
        width, heads, head_width = config.width, config.heads, config.width // config.heads
        deviation = width**-0.5
        steer = nn.Dense(6 * width, dtype=dtype, kernel_init=nn.initializers.zeros_init(), name="steer")
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(steer(steering), 6, axis=-1)
        normed = LayerNorm(width, NORM_EPSILON, affine=False, dtype=dtype, name="attention_norm")(hidden)
        shape = (width, 3, heads, head_width)
        project = Projection("BSD,DCNH->BSCNH", shape, 3, True, deviation, dtype, name="qkv")
        qkv = project(_steer(normed, shift1, scale1))
        mask: Bool[Array, "B M M"] = jnp.ones((hidden.shape[0], hidden.shape[1], hidden.shape[1]), bool)
        mixed = attend(
            qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], mask=mask, scale=head_width**-0.5, dropout=lambda weights: weights
        )
        out = Projection("BSNH,NHD->BSD", (heads, head_width, width), 1, True, deviation, dtype, name="out")
        hidden = hidden + gate1[:, None, :] * out(mixed)
        normed = LayerNorm(width, NORM_EPSILON, affine=False, dtype=dtype, name="mlp_norm")(hidden)
        mlp = (width, MLP_RATIO * width)
        inner = Projection("BSD,DF->BSF", mlp, 1, True, deviation, dtype, name="up")(_steer(normed, shift2, scale2))
        down = Projection("BSF,FD->BSD", mlp[::-1], 1, True, mlp[1] ** -0.5, dtype, name="down")
        return hidden + gate2[:, None, :] * down(jax.nn.gelu(inner, approximate=True)), None


class Generator(nn.Module):
    """Names the clean picture behind a noisy one, for a condition that the language model gives.

    Attributes:
        config: sizes.
        dtype: compute dtype; parameters are float32.
        unroll: layers per step of the scan over layers.
    """

    config: GeneratorConfig
    dtype: jax.typing.DTypeLike = jnp.float32
    unroll: int = 1

    def setup(self) -> None:
        """Declares the parts."""
        config, dtype, width = self.config, self.dtype, self.config.width
        normal = nn.initializers.normal
        # The queries begin as large as words are: a frozen language model cannot adapt to vectors of another size.
        self.queries = self.param("queries", normal(config.embedding_rms), (config.queries, config.embed_width))
        self.no_text = self.param("no_text", normal(1.0), (config.queries, width))
        self.positions = self.param("positions", lambda _: jnp.asarray(_grid_positions(config)))
        self.condition_norm = LayerNorm(config.lm_width, NORM_EPSILON)
        self.condition = nn.Dense(width, dtype=dtype)
        self.patches = nn.Dense(width, dtype=dtype)
        self.time_in, self.time_out = nn.Dense(width, dtype=dtype), nn.Dense(width, dtype=dtype)
        block = stack_layers(GeneratorBlock, layers=config.layers, remat="none", unroll=self.unroll)
        self.blocks = block(config, dtype)
        self.final_norm = LayerNorm(width, NORM_EPSILON, affine=False, dtype=dtype)
        self.final_steer = nn.Dense(2 * width, dtype=dtype, kernel_init=nn.initializers.zeros_init())
        self.pixels = nn.Dense(config.patch_size**2 * 3, dtype=dtype, kernel_init=nn.initializers.zeros_init())

    def read(self, hidden: Float[Array, "B Q D2"]) -> Float[Array, "B Q E"]:
        """Maps the hidden states at the queries to condition tokens."""
        return cast(Array, self.condition(self.condition_norm(hidden))).astype(jnp.float32)

    def __call__(
        self, noisy: Float[Array, "B height width 3"], times: Float[Array, " B"], condition: Float[Array, "B Q E"]
    ) -> Float[Array, "B height width 3"]:
        """Names the clean pictures.

        Args:
            noisy: pixels from -1 to 1, mixed with noise.
            times: 0 where `noisy` is noise alone, 1 where it is the picture alone.
            condition: from `read`, or `no_text`.
        """
        config, dtype = self.config, self.dtype
        shown = self.patches(cut_into_patches(noisy, patch=config.patch_size).astype(dtype))
        shown = shown + self.positions.astype(dtype)[None]
        hidden = jnp.concatenate([condition.astype(dtype), shown], axis=1)
        time = self.time_out(jax.nn.silu(self.time_in(tell_time(times).astype(dtype))))
        steering = jax.nn.silu(time + jnp.mean(condition, axis=1).astype(dtype))
        hidden, _ = self.blocks(hidden, jnp.arange(config.layers), steering, True)
        shift, scale = jnp.split(self.final_steer(steering), 2, axis=-1)
        patches = self.pixels(_steer(self.final_norm(hidden[:, config.queries :]), shift, scale))
        return join_patches(patches.astype(jnp.float32), patch=config.patch_size)

    def draw(self, hidden: Float[Array, "B Q D2"], noisy: Float[Array, "B height width 3"]) -> Array:
        """Uses every part once; for `init`."""
        return self(noisy, jnp.zeros(noisy.shape[0]), self.read(hidden))
