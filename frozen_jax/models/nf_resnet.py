"""Normaliser-free residual networks (NF-ResNet): the vision encoder that is trained from scratch.

NF-ResNet-50 and small relatives of it are one module with different settings; `vision.py` names them. Importing
weights is not offered: there is no common published checkpoint. Next in the data flow: `prefix.py`.

How the signal keeps its size without normalising activations. Every convolution has standardised weights, every
activation is scaled by gamma to unit variance, so a branch f(x) at initialisation gives out the variance it is given:

    x_{l+1} = x_l + alpha * f(x_l / beta_l)        beta_l^2 = Var(x_l), known beforehand:
                                                    Var(x_{l+1}) = Var(x_l) + alpha^2, and 1 + alpha^2 after the first
                                                    block of a stage, whose shortcut is a convolution of x_l / beta_l
"""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from frozen_jax.models.convolution import convolve, halve, max_pool
from frozen_jax.models.pixels import IMAGENET_MEAN, IMAGENET_STD, PixelStatistics, VisionOutput, normalise

ALPHA = 0.2
"""Weight of a residual branch: the square is the variance that each block adds."""

VARIANCE_FLOOR = 1e-4
"""Least value of fan-in times variance of a filter, so that a constant filter is not blown up."""


GAMMAS = {"relu": math.sqrt(2.0 / (1.0 - 1.0 / math.pi)), "gelu": 1.7015043497085571}
"""What gives an activation variance 1 for a standard normal input."""


def _scaled_relu(x: jax.Array) -> jax.Array:
    return jax.nn.relu(x) * GAMMAS["relu"]


def _scaled_gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x) * GAMMAS["gelu"]


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": _scaled_relu,
    "gelu": _scaled_gelu,
}
"""Activations times gamma: a standard normal input leaves them with variance 1."""

STEMS = {"resnet": (7, 2), "conv": (3, 2), "patch": (4, 4)}
"""Kernel side and stride of the first convolution; `resnet` has a max-pooling of stride 2 behind it."""


def standardise(
    kernel: Float[Array, "rows columns C_in C_out"], gain: Float[Array, " C_out"]
) -> Float[Array, "rows columns C_in C_out"]:
    """Scaled weight standardisation: each filter has mean 0 and variance gain^2 / fan-in.

    It depends on parameters alone, so it is computed once per step however many images there are, and in float32.

    Source: Brock, De and Smith, arXiv 2101.08692 (scaled weight standardisation).
    """
    fan_in = math.prod(kernel.shape[:3])
    centred = kernel - jnp.mean(kernel, axis=(0, 1, 2), keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=(0, 1, 2))
    scale = gain * jax.lax.rsqrt(jnp.maximum(variance * fan_in, VARIANCE_FLOOR))
    return centred * scale[None, None, None, :]


class StandardisedConv(nn.Module):
    """Convolution with standardised weights, a learnable gain per filter and a bias.

    Attributes:
        width: output channels.
        size: side of the kernel.
        stride: step in both directions.
        dtype: compute dtype; parameters are float32.
    """

    width: int
    size: int
    stride: int = 1
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B height width C_in"], factor: Float[Array, ""] | float = 1.0
    ) -> Float[Array, "B height_out width_out C_out"]:
        """Convolves a feature map and multiplies the result by `factor`, for which the weights are multiplied."""
        shape = (self.size, self.size, x.shape[-1], self.width)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
        gain = self.param("gain", nn.initializers.ones_init(), (self.width,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.width,), jnp.float32)
        weight = standardise(kernel, gain * factor).astype(self.dtype)
        bias = (bias * factor).astype(self.dtype)
        return convolve(x.astype(self.dtype), weight, stride=self.stride) + bias[None, None, None, :]


class Block(nn.Module):
    """One residual block; a transition block (the first of its stage) also has a convolution in its shortcut.

    Attributes:
        width: output channels.
        stride: of the block.
        bottleneck: 1x1, 3x3, 1x1 with a quarter of the channels inside; otherwise two 3x3.
        transition: the shortcut is a 1x1 convolution of the scaled input.
        beta: predicted standard deviation of the input.
        activation: key of `ACTIVATIONS`.
        skip_gain: initial gain of the branch.
        pooled_shortcut: see `NFResNet`.
        dtype: compute dtype.
    """

    width: int
    stride: int
    bottleneck: bool
    transition: bool
    beta: float
    activation: str
    skip_gain: float
    pooled_shortcut: bool
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B height width C_in"]) -> Float[Array, "B height_out width_out C_out"]:
        """Adds the residual branch to the shortcut."""
        activate = ACTIVATIONS[self.activation]
        if self.bottleneck:
            inner = self.width // 4
            plan = [(inner, 1, 1), (inner, 3, self.stride), (self.width, 1, 1)]
        else:
            plan = [(self.width, 3, self.stride), (self.width, 3, 1)]
        skip_gain = self.param("skip_gain", nn.initializers.constant(self.skip_gain), (), jnp.float32)
        branch = scaled = activate(x) * (1.0 / self.beta)
        for index, (width, size, stride) in enumerate(plan, start=1):
            if index > 1:
                branch = activate(branch)
            # The last one's weights take the branch's gain: neither it nor its gradient then passes over a feature map.
            factor = ALPHA * skip_gain if index == len(plan) else 1.0
            branch = StandardisedConv(width, size, stride, self.dtype, name=f"conv_{index}")(branch, factor)
        if self.transition:
            stride = self.stride
            if stride == 2 and self.pooled_shortcut:
                scaled, stride = halve(scaled), 1
            x = StandardisedConv(self.width, 1, stride, self.dtype, name="shortcut")(scaled)
        return x + branch


class NFResNet(nn.Module):
    """NF-ResNet over uint8 images; the defaults are NF-ResNet-50.

    Attributes:
        widths: output channels of each stage; every stage but the first halves the sides.
        depths: blocks of each stage.
        bottleneck: bottleneck blocks (ResNet-50) or pairs of 3x3 convolutions (ResNet-18).
        stem: `resnet` (7x7 of stride 2, then 3x3 max-pooling of stride 2), `conv` (3x3 of stride 2) or `patch`
            (4x4 patches, one matrix product: the fast one on a CPU; sides must be multiples of 4).
        stem_width: channels after the stem.
        activation: key of `ACTIVATIONS`.
        skip_gain: initial gain of every residual branch. At 0 (SkipInit) the network starts as its shortcuts and
            deepens as it learns, which is safe at 50 layers and slow to begin; 1 opens all branches from the start.
        pooled_shortcut: where a block halves the sides, average 2x2 places before the 1x1 convolution of the shortcut
            instead of dropping three of them. With closed branches and dropped places the network sees only one
            patch in 16 after two such blocks.
        dtype: compute dtype; parameters and the standardisation of weights are float32.

    Source: Brock, De and Smith, "Characterizing signal propagation to close the performance gap in unnormalized
    ResNets", arXiv 2101.08692; scalar gain per branch from De and Smith, arXiv 2002.10444 (SkipInit); pooled shortcut
    as in Brock et al., arXiv 2102.06171.
    """

    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    bottleneck: bool = True
    stem: str = "resnet"
    stem_width: int = 64
    activation: str = "relu"
    skip_gain: float = 0.0
    pooled_shortcut: bool = False
    dtype: jax.typing.DTypeLike = jnp.float32

    @property
    def pixel_statistics(self) -> PixelStatistics:
        """By which pixels are normalised."""
        return IMAGENET_MEAN, IMAGENET_STD

    @property
    def width(self) -> int:
        """E, channels of the output."""
        return self.widths[-1]

    @nn.compact
    def __call__(self, images: UInt8[Array, "B height width 3"], *, deterministic: bool = True) -> VisionOutput:
        """Encodes images; `pooled` is the mean of `tokens` over the places of the last feature map.

        Args:
            images: RGB, 0..255; normalised with ImageNet's mean and standard deviation.
            deterministic: no effect, there is no dropout here; taken so that all encoders are called alike.
        """
        x = normalise(images, *self.pixel_statistics, self.dtype)
        size, stride = STEMS[self.stem]
        x = StandardisedConv(self.stem_width, size, stride, self.dtype, name="stem")(x)
        if self.stem == "resnet":
            x = max_pool(x)
        variance = 1.0
        for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True), start=1):
            for index in range(1, depth + 1):
                first = index == 1
                x = Block(
                    width=width,
                    stride=2 if first and stage > 1 else 1,
                    bottleneck=self.bottleneck,
                    transition=first,
                    beta=math.sqrt(variance),
                    activation=self.activation,
                    skip_gain=self.skip_gain,
                    pooled_shortcut=self.pooled_shortcut,
                    dtype=self.dtype,
                    name=f"stage_{stage}_block_{index}",
                )(x)
                variance = ALPHA**2 + (1.0 if first else variance)
        x = ACTIVATIONS[self.activation](x)
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        return VisionOutput(jnp.mean(tokens, axis=1, dtype=jnp.float32), tokens)
