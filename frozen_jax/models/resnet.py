"""ResNet v1.5: a vision encoder that is imported with its pretrained weights.

Lives here: the module. Names of the weights in files: `convert/resnet.py`. Next in the data flow: `prefix.py`.

Batch normalisation always uses the running statistics that came with the weights, in training too. They are leaves
`mean` and `var` beside `scale` and `bias`, hence there is no mutable state, an image's feature never depends on the
rest of the batch, and training and evaluation cannot drift apart. They are not parameters: whoever trains this encoder
must freeze them (`vision.FROZEN_STATISTICS`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from frozen_jax.models.convolution import convolve, max_pool
from frozen_jax.models.hf_config import FieldReader
from frozen_jax.models.pixels import IMAGENET_MEAN, IMAGENET_STD, PixelStatistics, VisionOutput, normalise

NORM_EPSILON = 1e-5
EXPANSION = 4
"""Output channels of a bottleneck block per channel of its 3x3 convolution."""


class NormalisedConv(nn.Module):
    """Convolution followed by batch normalisation with fixed statistics, computed as one convolution with a bias.

    Attributes:
        width: output channels.
        size: side of the kernel.
        stride: step in both directions.
        dtype: compute dtype; parameters and statistics are float32.
    """

    width: int
    size: int
    stride: int = 1
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B height width C_in"]) -> Float[Array, "B height_out width_out C_out"]:
        """Convolves and normalises a feature map."""
        shape = (self.size, self.size, x.shape[-1], self.width)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape, jnp.float32)
        scale = self.param("scale", nn.initializers.ones_init(), (self.width,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.width,), jnp.float32)
        mean = self.param("mean", nn.initializers.zeros_init(), (self.width,), jnp.float32)
        var = self.param("var", nn.initializers.ones_init(), (self.width,), jnp.float32)
        factor = scale * jax.lax.rsqrt(var + NORM_EPSILON)
        shift = (bias - mean * factor).astype(self.dtype)
        folded = (kernel * factor[None, None, None, :]).astype(self.dtype)
        return convolve(x.astype(self.dtype), folded, stride=self.stride) + shift[None, None, None, :]


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; the stride is in the 3x3 (that is the v1.5).

    Attributes:
        width: output channels.
        stride: of the block.
        transition: the shortcut is a 1x1 convolution.
        dtype: compute dtype.
    """

    width: int
    stride: int
    transition: bool
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B height width C_in"]) -> Float[Array, "B height_out width_out C_out"]:
        """Applies the block."""
        inner = self.width // EXPANSION
        branch = jax.nn.relu(NormalisedConv(inner, 1, 1, self.dtype, name="conv_1")(x))
        branch = jax.nn.relu(NormalisedConv(inner, 3, self.stride, self.dtype, name="conv_2")(branch))
        branch = NormalisedConv(self.width, 1, 1, self.dtype, name="conv_3")(branch)
        if self.transition:
            x = NormalisedConv(self.width, 1, self.stride, self.dtype, name="shortcut")(x)
        return jax.nn.relu(x + branch)


class ResNet(nn.Module):
    """ResNet v1.5 with bottleneck blocks over uint8 images; the defaults are ResNet-50.

    Attributes:
        widths: output channels of each stage; every stage but the first halves the sides.
        depths: blocks of each stage.
        stem_width: channels after the 7x7 convolution.
        dtype: compute dtype; parameters are float32.

    Source: He et al., arXiv 1512.03385, with the stride moved as in Goyal et al., arXiv 1706.02677.
    """

    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    stem_width: int = 64
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
        x = max_pool(jax.nn.relu(NormalisedConv(self.stem_width, 7, 2, self.dtype, name="stem")(x)))
        for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True), start=1):
            for index in range(1, depth + 1):
                first = index == 1
                x = Bottleneck(
                    width=width,
                    stride=2 if first and stage > 1 else 1,
                    transition=first,
                    dtype=self.dtype,
                    name=f"stage_{stage}_block_{index}",
                )(x)
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        return VisionOutput(jnp.mean(tokens, axis=1, dtype=jnp.float32), tokens)


def read_resnet_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the content of a Hugging Face config.json of `model_type` "resnet".

    Returns:
        Options of `resnet50`.

    Raises:
        UserError: a field is of the wrong type or not supported.
    """
    fields = FieldReader(config)
    fields.require("layer_type", "bottleneck", reason="only bottleneck blocks (ResNet-50, 101, 152) are built here")
    fields.require("hidden_act", "relu", reason="it must be relu")
    fields.require("num_channels", 3, reason="pictures are RGB")
    fields.require("downsample_in_first_stage", False, reason="the first stage keeps the size")
    fields.require("downsample_in_bottleneck", False, reason="the stride is in the 3x3 convolution (v1.5)")
    fields.ignore("out_features", "out_indices", "stage_names")
    # No words are predicted here; old files have every field of every model.
    fields.ignore("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id", "padding")
    fields.ignore("tie_word_embeddings")
    options = {
        "widths": _read_sizes(fields, "hidden_sizes", default=(256, 512, 1024, 2048)),
        "depths": _read_sizes(fields, "depths", default=(3, 4, 6, 3)),
        "stem_width": fields.integer("embedding_size", default=64),
    }
    fields.finish()
    return options


def _read_sizes(fields: FieldReader, name: str, *, default: tuple[int, ...]) -> tuple[int, ...]:
    value = fields.value(name)
    sizes = default if value is None else value
    if not isinstance(sizes, list | tuple) or not all(type(size) is int and size > 0 for size in sizes):
        raise fields.refuse(name, value, "it must be a list of positive whole numbers, one per stage")
    return tuple(sizes)
