"""EfficientNet-Lite: a small vision encoder that is imported with its pretrained weights, 3.4 million of them.

Lives here: the module. Names of the weights in files: `convert/efficientnet.py`. Next in the data flow: `prefix.py`.
Batch normalisation uses its stored statistics always, as in `resnet.py`.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, UInt8

from frozen_jax.models.pixels import LITE_MEAN, LITE_STD, PixelStatistics, VisionOutput, normalise

NORM_EPSILON = 1e-3


class PaddedConv(nn.Module):
    """Convolution with TensorFlow's padding, followed by batch normalisation with fixed statistics, as one.

    Attributes:
        width: output channels.
        size: side of the kernel.
        stride: step in both directions.
        depthwise: each channel has a kernel of its own; `width` is then that of the input.
        dtype: compute dtype; parameters and statistics are float32.
    """

    width: int
    size: int
    stride: int = 1
    depthwise: bool = False
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B height width C_in"]) -> Float[Array, "B height_out width_out C_out"]:
        """Convolves and normalises a feature map; its sides are divided by the stride and rounded up."""
        shape = (self.size, self.size, 1 if self.depthwise else x.shape[-1], self.width)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape, jnp.float32)
        scale = self.param("scale", nn.initializers.ones_init(), (self.width,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.width,), jnp.float32)
        mean = self.param("mean", nn.initializers.zeros_init(), (self.width,), jnp.float32)
        var = self.param("var", nn.initializers.ones_init(), (self.width,), jnp.float32)
        factor = scale * lax.rsqrt(var + NORM_EPSILON)
        y = lax.conv_general_dilated(
            x.astype(self.dtype),
            (kernel * factor[None, None, None, :]).astype(self.dtype),
            (self.stride, self.stride),
            "SAME",  # an even side gets its odd place of padding at the end
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.width if self.depthwise else 1,
        )
        return y + (bias - mean * factor).astype(self.dtype)[None, None, None, :]


class InvertedResidual(nn.Module):
    """1x1 convolution to more channels, depthwise convolution, 1x1 convolution back, beside the identity where it fits.

    Attributes:
        width: output channels.
        expansion: channels inside, for each channel of the input; with 1 the first convolution is left out.
        size: side of the depthwise kernel.
        stride: of the block.
        dtype: compute dtype.
    """

    width: int
    expansion: int
    size: int
    stride: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B height width C_in"]) -> Float[Array, "B height_out width_out C_out"]:
        """Applies the block."""
        inner = x.shape[-1] * self.expansion
        branch = x
        if self.expansion > 1:
            branch = jax.nn.relu6(PaddedConv(inner, 1, dtype=self.dtype, name="expand")(branch))
        depthwise = PaddedConv(inner, self.size, self.stride, depthwise=True, dtype=self.dtype, name="depthwise")
        branch = PaddedConv(self.width, 1, dtype=self.dtype, name="project")(jax.nn.relu6(depthwise(branch)))
        return x + branch if self.stride == 1 and x.shape[-1] == self.width else branch


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite over uint8 images; the defaults are EfficientNet-Lite0.

    Attributes:
        widths: output channels of each stage.
        depths: blocks of each stage.
        sizes: sides of the depthwise kernels of each stage.
        strides: of the first block of each stage.
        expansions: of the blocks of each stage.
        stem_width: channels after the first convolution, which halves the sides.
        head_width: channels of the last convolution, width of the pooled feature.
        dtype: compute dtype; parameters are float32.

    Source: Tan and Le, arXiv 1905.11946, without squeeze and excitation and with ReLU6, as Google's Lite variant.
    """

    widths: tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)
    depths: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    sizes: tuple[int, ...] = (3, 3, 5, 3, 5, 5, 3)
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    expansions: tuple[int, ...] = (1, 6, 6, 6, 6, 6, 6)
    stem_width: int = 32
    head_width: int = 1280
    dtype: jax.typing.DTypeLike = jnp.float32

    @property
    def pixel_statistics(self) -> PixelStatistics:
        """By which pixels are normalised."""
        return LITE_MEAN, LITE_STD

    @property
    def width(self) -> int:
        """E of the pooled feature."""
        return self.head_width

    def plan(self) -> list[tuple[int, int, int, int]]:
        """Returns (width, expansion, size, stride) of each block, in order."""
        stages = zip(self.widths, self.depths, self.sizes, self.strides, self.expansions, strict=True)
        return [
            (width, expansion, size, stride if index == 0 else 1)
            for width, depth, size, stride, expansion in stages
            for index in range(depth)
        ]

    @nn.compact
    def __call__(self, images: UInt8[Array, "B height width 3"], *, deterministic: bool = True) -> VisionOutput:
        """Encodes images; `pooled` is the mean of `tokens` over the places of the last feature map.

        Args:
            images: RGB, 0..255; taken to (images - 127) / 128.
            deterministic: no effect, there is no dropout here; taken so that all encoders are called alike.
        """
        x = normalise(images, *self.pixel_statistics, self.dtype)
        x = jax.nn.relu6(PaddedConv(self.stem_width, 3, 2, dtype=self.dtype, name="stem")(x))
        for number, (width, expansion, size, stride) in enumerate(self.plan(), start=1):
            x = InvertedResidual(width, expansion, size, stride, self.dtype, name=f"block_{number}")(x)
        x = jax.nn.relu6(PaddedConv(self.head_width, 1, dtype=self.dtype, name="head")(x))
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        return VisionOutput(jnp.mean(tokens, axis=1, dtype=jnp.float32), tokens)
