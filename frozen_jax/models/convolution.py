"""Convolution and pooling for the convolutional encoders, in the forms that XLA runs fast on every device.

No parameters live here; `nf_resnet.py` and `resnet.py` hold theirs and call these functions.

Two forms matter on a CPU, where XLA's own gradients are slow: a convolution of 1x1, or of patches, as a matrix product
with its gradient written out, and max-pooling as the maximum of slices (11 times as fast). See `docs/performance.md`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from frozen_jax.errors import UserError


def convolve(
    x: Float[Array, "B height width C_in"], kernel: Float[Array, "size size C_in C_out"], *, stride: int = 1
) -> Float[Array, "B height_out width_out C_out"]:
    """Convolves with zero padding of (size - 1) / 2 on each side, as torch's networks do.

    A kernel as large as its stride takes no padding: it cuts the image into patches.

    Raises:
        UserError: the image cannot be cut into whole patches.
    """
    size = kernel.shape[0]
    if size == stride:
        return mix_channels(cut_patches(x, size), kernel.reshape(-1, kernel.shape[-1]))
    if size == 1:
        return mix_channels(x[:, ::stride, ::stride], kernel[0, 0])
    padding = (size - 1) // 2
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@jax.custom_vjp
def mix_channels(
    x: Float[Array, "B height width C_in"], kernel: Float[Array, "C_in C_out"]
) -> Float[Array, "B height width C_out"]:
    """Multiplies the channels of every place with a matrix: a convolution of 1x1."""
    return lax.dot_general(x, kernel, (((3,), (0,)), ((), ())))


def _mix_channels_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return mix_channels(x, kernel), (x, kernel)


def _mix_channels_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = kept
    over_places = (((0, 1, 2), (0, 1, 2)), ((), ()))
    # With the narrow side first, and no transposed copy of a feature map, which XLA makes for the gradient that JAX
    # derives: half the time on a CPU. What is transposed here is as small as the kernel, and the barrier keeps XLA from
    # exchanging the sides again to save that.
    if kernel.shape[0] <= kernel.shape[1]:
        of_kernel = lax.dot_general(x, gradient, over_places)
    else:
        of_kernel = lax.optimization_barrier(lax.dot_general(gradient, x, over_places)).T
    return lax.dot_general(gradient, kernel, (((3,), (1,)), ((), ()))), of_kernel


mix_channels.defvjp(_mix_channels_forward, _mix_channels_backward)


def cut_patches(x: Float[Array, "B height width C"], size: int) -> Float[Array, "B rows columns C_patch"]:
    """Cuts an image into size x size patches and lays each one out as one vector: row, column, channel.

    Raises:
        UserError: a side is not a multiple of `size`.
    """
    batch, height, width, channels = x.shape
    if height % size or width % size:
        raise UserError(
            f"images of {height}x{width} cannot be cut into patches of {size}x{size} pixels; "
            f"use an image size that is a multiple of {size}"
        )
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.swapaxes(2, 3).reshape(batch, height // size, width // size, size * size * channels)


def halve(x: Float[Array, "B height width C"]) -> Float[Array, "B height_out width_out C"]:
    """Averages over 2x2 places with stride 2; at an odd edge over those that exist."""
    for axis in (1, 2):
        if x.shape[axis] % 2:  # not by jnp.pad: its gradient also touches the examples' axis, which devices share
            x = jnp.concatenate([x, lax.slice_in_dim(x, -1, None, axis=axis)], axis=axis)
    batch, height, width, channels = x.shape
    return jnp.mean(x.reshape(batch, height // 2, 2, width // 2, 2, channels), axis=(2, 4))


def max_pool(x: Float[Array, "B height width C"]) -> Float[Array, "B height_out width_out C"]:
    """Takes the maximum over 3x3 places with stride 2 and one place of padding, first of rows, then of columns."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    for axis in (1, 2):
        count = (x.shape[axis] - 3) // 2 + 1
        slices = [lax.slice_in_dim(x, start, start + 2 * count - 1, 2, axis) for start in range(3)]
        x = functools.reduce(jnp.maximum, slices)
    return x
