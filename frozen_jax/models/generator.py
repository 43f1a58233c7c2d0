"""The picture generator: a U-Net of convolutions that names the clean picture behind a noisy one, told what to draw.

Lives here: the network alone. What it is trained towards and how pictures are drawn from it: `flow.py`; how the
learned queries go through the frozen language model: `frozen.py`.

    tokens       bos  a    red  circle  eos  q_0  q_1  …      queries behind the text
    hidden       .    .    .    .       .    h_0  h_1  …      of the frozen language model; h is the condition

    noisy picture → grid 0 ───────────────────── + → block → clean picture
                      └→ grid 1 → block ──── + → block ┘
                           └→ grid 2 → blocks ┘                 each block steered by time and condition

Each grid has half the places of the one before in either direction. The coarsest one, on which a convolution reaches
across the picture, decides where a thing is; the finest one draws its outline.

Sources: Ronneberger et al., arXiv 1505.04597 (U-Net); Dhariwal and Nichol, arXiv 2105.05233 (blocks whose norms are
steered); Hoogeboom et al., arXiv 2301.11093 (grids joined by addition, the work done on the coarse ones); Li and He,
arXiv 2511.13720 (the network names the clean picture, whatever the loss); Koh et al., arXiv 2305.17216 (queries behind
the text of a frozen language model).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from frozen_jax.generator_settings import GROUP
from frozen_jax.models.convolution import cut_patches
from frozen_jax.models.layers import LayerNorm

NORM_EPSILON = 1e-6

MIDDLE = 2
"""Blocks on the coarsest grid."""

FREQUENCIES = 32
"""Sines, and as many cosines, that a time is told by."""

SLOWEST, FASTEST = 0.5, 16.0
"""Turns of them between noise and picture. Faster ones would tell each time as a thing of its own."""


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """Sizes of a generator.

    Attributes:
        image_size: side of the pictures; the patches of the coarsest grid fill it.
        patch_size: pixels along a side of a place of the finest grid; twice as many of each next one.
        channels: C of each grid, the finest first; multiples of `GROUP`.
        width: E, of what steers the blocks.
        queries: vectors behind the text, Q.
        embed_width: D, of the language model's embeddings, which queries stand beside.
        lm_width: D2, of the language model's hidden states.
        embedding_rms: size of the language model's embeddings, which queries begin with.
    """

    image_size: int
    patch_size: int
    channels: tuple[int, ...]
    width: int
    queries: int
    embed_width: int
    lm_width: int
    embedding_rms: float


def join_patches(patches: Float[Array, "B rows columns C_patch"], size: int) -> Float[Array, "B height width C"]:
    """Inverse of `convolution.cut_patches`."""
    batch, height, width, values = patches.shape
    grid = patches.reshape(batch, height, width, size, size, values // size**2).swapaxes(2, 3)
    return grid.reshape(batch, height * size, width * size, values // size**2)


def tell_time(times: Float[Array, " B"]) -> Float[Array, "B 64"]:
    """Returns sines and cosines of times in [0, 1]."""
    turns = jnp.exp(jnp.linspace(math.log(SLOWEST), math.log(FASTEST), FREQUENCIES))
    angles = 2 * math.pi * times[:, None] * turns[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


class GeneratorBlock(nn.Module):
    """Two convolutions of 3 x 3 beside a shortcut; between them time and condition scale and shift each channel.

    Attributes:
        channels: C.
        dtype: compute dtype.
    """

    channels: int
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, grid: Float[Array, "B side side C"], steering: Float[Array, "B E"]
    ) -> Float[Array, "B side side C"]:
        """Returns the grid with the block's contribution added, which is 0 at the start."""
        channels, dtype = self.channels, self.dtype
        weak = nn.initializers.variance_scaling(0.3, "fan_in", "normal")
        steer = nn.Dense(2 * channels, dtype=dtype, kernel_init=weak, name="steer")
        scale, shift = jnp.split(steer(steering)[:, None, None, :], 2, axis=-1)
        inner = nn.Conv(channels, (3, 3), dtype=dtype, name="first")(jax.nn.silu(_normalise(grid, dtype)))
        inner = jax.nn.silu(_normalise(inner, dtype) * (1 + scale) + shift)
        zeros = nn.initializers.zeros_init()
        return grid + nn.Conv(channels, (3, 3), dtype=dtype, kernel_init=zeros, name="second")(inner)


def _normalise(grid: Float[Array, "B side side C"], dtype: jax.typing.DTypeLike) -> Float[Array, "B side side C"]:
    """Gives each group of channels of a picture mean 0 and variance 1, with float32 statistics."""
    rows, side, _, channels = grid.shape
    groups = grid.astype(jnp.float32).reshape(rows, side * side, channels // GROUP, GROUP)
    centred = groups - jnp.mean(groups, axis=(1, 3), keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=(1, 3), keepdims=True) + NORM_EPSILON)
    return normed.reshape(grid.shape).astype(dtype)


class Generator(nn.Module):
    """Names the clean picture behind a noisy one, for a condition that the language model gives.

    Attributes:
        config: sizes.
        dtype: compute dtype; parameters are float32.
    """

    config: GeneratorConfig
    dtype: jax.typing.DTypeLike = jnp.float32

    def setup(self) -> None:
        """Declares the parts; numbers are those of grids."""
        config, dtype, width = self.config, self.dtype, self.config.width
        normal, channels = nn.initializers.normal, config.channels
        # The queries begin as large as words are: a frozen language model cannot adapt to vectors of another size.
        self.queries = self.param("queries", normal(config.embedding_rms), (config.queries, config.embed_width))
        self.no_text = self.param("no_text", normal(1.0), (config.queries, width))
        self.condition_norm = LayerNorm(config.lm_width, NORM_EPSILON)
        self.condition = nn.Dense(width, dtype=dtype)
        self.text = nn.Dense(width, dtype=dtype)
        self.time_in, self.time_out = nn.Dense(width, dtype=dtype), nn.Dense(width, dtype=dtype)
        self.patches = nn.Dense(channels[0], dtype=dtype)
        # None on the finest grid, where a block costs most and noise is all there is to see.
        self.down = [GeneratorBlock(count, dtype) for count in channels[1:-1]]
        self.merge = [nn.Dense(count, dtype=dtype) for count in channels[1:]]
        self.middle = [GeneratorBlock(channels[-1], dtype) for _ in range(MIDDLE)]
        self.split = [nn.Dense(4 * count, dtype=dtype) for count in channels[:-1]]
        self.up = [GeneratorBlock(count, dtype) for count in channels[:-1]]
        self.pixels = nn.Dense(config.patch_size**2 * 3, dtype=dtype, kernel_init=nn.initializers.zeros_init())

    def read(self, hidden: Float[Array, "B Q D2"]) -> Float[Array, "B Q E"]:
        """Maps the hidden states at the queries to the condition."""
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
        dtype, patch = self.dtype, self.config.patch_size
        time = self.time_out(jax.nn.silu(self.time_in(tell_time(times).astype(dtype))))
        # Each query tells its own part of the text, so that they are not averaged.
        steering = jax.nn.silu(time + self.text(condition.astype(dtype).reshape(len(condition), -1)))
        grid = self.patches(cut_patches(noisy.astype(dtype), patch))
        kept = []
        for number, merge in enumerate(self.merge):
            if number:
                grid = self.down[number - 1](grid, steering)
            kept.append(grid)
            grid = merge(cut_patches(grid, 2))
        for block in self.middle:
            grid = block(grid, steering)
        for held, split, block in zip(kept[::-1], self.split[::-1], self.up[::-1], strict=True):
            grid = block(held + join_patches(split(grid), 2), steering)
        return join_patches(self.pixels(grid), patch).astype(jnp.float32)

    def draw(self, hidden: Float[Array, "B Q D2"], noisy: Float[Array, "B height width 3"]) -> Array:
        """Uses every part once; for `init`."""
        return self(noisy, jnp.zeros(noisy.shape[0]), self.read(hidden))
