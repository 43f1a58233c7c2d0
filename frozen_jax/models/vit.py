"""Vision transformers: CLIP's and SigLIP's image towers and the plain ViT, imported with their pretrained weights.

Lives here: the config and the module. Names of the weights in files: `convert/vit.py`. The parts are those of the
language models (`layers.py`). Next in the data flow: `prefix.py`.

                clip                                            plain                       siglip
    patches     linear, no bias                                 linear with bias            linear with bias
    before      class token, LayerNorm                          class token                 nothing
    tokens      as the last layer leaves them                   LayerNorm                   LayerNorm
    pooled      LayerNorm of the class token, then perhaps      class token of `tokens`     a learnt probe attends to
                the projection into the space shared with text                              `tokens`, then an MLP
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from frozen_jax.errors import UserError
from frozen_jax.models.convolution import cut_patches
from frozen_jax.models.hf_config import FieldReader
from frozen_jax.models.layers import ACTIVATIONS, LayerNorm, Projection, attend, stack_layers
from frozen_jax.models.pixels import (
    CLIP_MEAN,
    CLIP_STD,
    HALF_MEAN,
    HALF_STD,
    PixelStatistics,
    VisionOutput,
    normalise,
)

FAMILIES = ("clip", "plain", "siglip")

INIT_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Hyperparameters of a vision transformer; the defaults are CLIP ViT-B/32's.

    Attributes:
        family: one of `FAMILIES`.
        image_size: side of the square images, a multiple of the patch size.
        patch_size: side of a patch in pixels.
        width: of the tokens; a multiple of the heads.
        layers: L.
        heads: N.
        mlp_width: F.
        activation: key of `layers.ACTIVATIONS`.
        norm_epsilon: added to variances.
        projection_width: width of CLIP's projected pooled feature; 0: the pooled feature before that projection.
    """

    family: str = "clip"
    image_size: int = 224
    patch_size: int = 32
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    activation: str = "quick_gelu"
    norm_epsilon: float = 1e-5
    projection_width: int = 0

    def __post_init__(self) -> None:
        """Checks what a config can get wrong.

        Raises:
            UserError: fields that do not fit together.
        """
        sizes = ("image_size", "patch_size", "width", "layers", "heads", "mlp_width")
        for field in sizes:
            if getattr(self, field) < 1:
                raise UserError(f"vision.{field} = {getattr(self, field)} must be positive")
        for field, value, choices in (("family", self.family, FAMILIES), ("activation", self.activation, ACTIVATIONS)):
            if value not in choices:
                raise UserError(f"vision.{field} = {value!r} is unknown; choose one of {', '.join(choices)}")
        if self.image_size % self.patch_size:
            raise UserError(
                f"vision.image_size = {self.image_size} is no multiple of vision.patch_size = {self.patch_size}; "
                "patches must fill the image"
            )
        if self.width % self.heads:
            raise UserError(f"vision.heads = {self.heads} must divide vision.width = {self.width}")
        if self.projection_width < 0 or (self.projection_width and self.family != "clip"):
            raise UserError(
                f"vision.projection_width = {self.projection_width}: only the family clip has a projection; use 0"
            )

    @property
    def head_width(self) -> int:
        """H."""
        return self.width // self.heads

    @property
    def tokens(self) -> int:
        """M, patches and, but for siglip, the class token."""
        return (self.image_size // self.patch_size) ** 2 + (self.family != "siglip")


class ViTBlock(nn.Module):
    """One layer: attention and MLP, each on a normalised copy of the residual stream."""

    config: ViTConfig
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "B M E"], layer: Int[Array, ""], mask: Bool[Array, "B M M"], deterministic: bool
    ) -> tuple[Float[Array, "B M E"], None]:
        """Returns the residual stream after this layer; see `layers.stack_layers` for the arguments."""
        config, dtype = self.config, self.dtype
        shape = (config.width, config.heads, config.head_width)
        normed = LayerNorm(config.width, config.norm_epsilon, dtype=dtype, name="attention_norm")(hidden)
        query, key, value = (
            Projection("BSD,DNH->BSNH", shape, 2, True, INIT_STD, dtype, name=name)(normed)
            for name in ("query", "key", "value")
        )
        mixed = attend(query, key, value, mask=mask, scale=config.head_width**-0.5, dropout=lambda weights: weights)
        out = Projection("BSNH,NHD->BSD", (*shape[1:], config.width), 1, True, INIT_STD, dtype, name="out")
        hidden = hidden + out(mixed)
        normed = LayerNorm(config.width, config.norm_epsilon, dtype=dtype, name="mlp_norm")(hidden)
        mlp_shape = (config.width, config.mlp_width)
        inner = Projection("BSD,DF->BSF", mlp_shape, 1, True, INIT_STD, dtype, name="up")(normed)
        inner = ACTIVATIONS[config.activation](inner)
        return hidden + Projection("BSF,FD->BSD", mlp_shape[::-1], 1, True, INIT_STD, dtype, name="down")(inner), None


class AttentionPool(nn.Module):
    """SigLIP's pooling: one learnt probe attends to all tokens, and an MLP follows."""

    config: ViTConfig
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[Array, "B M E"]) -> Float[Array, "B 1 E"]:
        """Returns the pooled feature."""
        config, dtype = self.config, self.dtype
        width, heads, head_width = config.width, config.heads, config.head_width
        probe = self.param("probe", nn.initializers.normal(INIT_STD), (width,), jnp.float32).astype(dtype)
        first = jnp.broadcast_to(probe[None, None, :], (tokens.shape[0], 1, width))
        project = Projection("BSD,DCNH->BSCNH", (width, 3, heads, head_width), 3, True, INIT_STD, dtype, name="qkv")
        projected = project(jnp.concatenate([first, tokens], axis=1))
        query, key, value = projected[:, :1, 0], projected[:, 1:, 1], projected[:, 1:, 2]
        everything = jnp.ones((tokens.shape[0], 1, tokens.shape[1]), bool)
        mixed = attend(query, key, value, mask=everything, scale=head_width**-0.5, dropout=lambda weights: weights)
        pooled = Projection("BSNH,NHD->BSD", (heads, head_width, width), 1, True, INIT_STD, dtype, name="out")(mixed)
        normed = LayerNorm(width, config.norm_epsilon, dtype=dtype, name="norm")(pooled)
        shape = (width, config.mlp_width)
        inner = Projection("BSD,DF->BSF", shape, 1, True, INIT_STD, dtype, name="up")(normed)
        inner = ACTIVATIONS[config.activation](inner)
        return pooled + Projection("BSF,FD->BSD", shape[::-1], 1, True, INIT_STD, dtype, name="down")(inner)


class ViT(nn.Module):
    """Vision transformer over uint8 images.

    Attributes:
        config: hyperparameters.
        dtype: compute dtype; parameters are float32.
        remat: "none", "full" or "dots", see `layers.stack_layers`.
        unroll: layers per step of the scan.

    Source: Dosovitskiy et al., arXiv 2010.11929 (ViT); Radford et al., arXiv 2103.00020 (CLIP); Zhai et al., arXiv
    2303.15343 (SigLIP).
    """

    config: ViTConfig
    dtype: jax.typing.DTypeLike = jnp.float32
    remat: str = "none"
    unroll: int = 1

    @property
    def pixel_statistics(self) -> PixelStatistics:
        """By which pixels are normalised: CLIP's own, or to -1..1."""
        return (CLIP_MEAN, CLIP_STD) if self.config.family == "clip" else (HALF_MEAN, HALF_STD)

    @property
    def width(self) -> int:
        """E of the pooled feature."""
        return self.config.projection_width or self.config.width

    @nn.compact
    def __call__(self, images: UInt8[Array, "B height width 3"], *, deterministic: bool = True) -> VisionOutput:
        """Encodes images; `tokens` has the class token first, then the patches, row by row.

        Args:
            images: RGB, 0..255, of `image_size`; normalised with CLIP's constants, or to -1..1 for the others.
            deterministic: no effect, there is no dropout here; taken so that all encoders are called alike.

        Raises:
            UserError: images of another size, for which there are no position embeddings.
        """
        config, dtype = self.config, self.dtype
        clip = config.family == "clip"
        if images.shape[1:3] != (config.image_size, config.image_size):
            raise UserError(
                f"images are {images.shape[1]}x{images.shape[2]}, this ViT has positions for "
                f"{config.image_size}x{config.image_size} only; set the data's image size to {config.image_size}"
            )
        pixels = normalise(images, *self.pixel_statistics, dtype)
        batch = images.shape[0]
        patches = cut_patches(pixels, config.patch_size).reshape(batch, -1, config.patch_size**2 * 3)
        embed = Projection(
            "BSD,DE->BSE", (patches.shape[-1], config.width), 1, not clip, INIT_STD, dtype, name="patches"
        )
        normal = nn.initializers.normal(INIT_STD)
        hidden = embed(patches)
        if config.family != "siglip":
            class_token = self.param("class_token", normal, (config.width,), jnp.float32).astype(dtype)
            first = jnp.broadcast_to(class_token[None, None, :], (batch, 1, config.width))
            hidden = jnp.concatenate([first, hidden], axis=1)
        positions = self.param("positions", normal, (config.tokens, config.width), jnp.float32).astype(dtype)
        hidden = hidden + positions[None, :, :]
        if clip:
            hidden = LayerNorm(config.width, config.norm_epsilon, dtype=dtype, name="embed_norm")(hidden)
        blocks = stack_layers(ViTBlock, layers=config.layers, remat=self.remat, unroll=self.unroll)
        everything = jnp.ones((batch, config.tokens, config.tokens), bool)
        layers = jnp.arange(config.layers, dtype=jnp.int32)
        hidden, _ = blocks(config, dtype, name="blocks")(hidden, layers, everything, deterministic)
        final_norm = LayerNorm(config.width, config.norm_epsilon, dtype=dtype, name="final_norm")
        if not clip:
            hidden = final_norm(hidden)
            siglip = config.family == "siglip"
            pooled = AttentionPool(config, dtype, name="pool")(hidden) if siglip else hidden
            return VisionOutput(pooled[:, 0].astype(jnp.float32), hidden)
        pooled = final_norm(hidden[:, :1])
        if config.projection_width:
            shape = (config.width, config.projection_width)
            pooled = Projection("BSD,DE->BSE", shape, 1, False, INIT_STD, dtype, name="projection")(pooled)
        return VisionOutput(pooled[:, 0].astype(jnp.float32), hidden)


def read_vit_options(config: Mapping[str, Any], *, projected: bool) -> dict[str, Any]:
    """Reads the content of a Hugging Face config.json of a plain ViT or of the image tower of a CLIP or SigLIP.

    Args:
        config: the fields.
        projected: CLIP only: the pooled feature goes through the projection into the space shared with text.

    Returns:
        Options of `vit`: the fields of a `ViTConfig`.

    Raises:
        UserError: a field is of the wrong type or not supported.
    """
    fields = FieldReader(config)
    family = {"vit": "plain", "siglip_vision_model": "siglip"}.get(fields.family, "clip")
    clip = family == "clip"
    fields.require("vision_use_head", True, reason="its pooled feature comes from that head")
    fields.require("num_channels", 3, reason="pictures are RGB")
    fields.require("qkv_bias", True, reason="attention without biases is not built here")
    # Dropout acts in training only, and imported encoders are trained without; the pooler and the decoder are heads.
    fields.ignore("attention_dropout", "dropout", "attention_probs_dropout_prob", "hidden_dropout_prob")
    fields.ignore("initializer_factor", "initializer_range", "encoder_stride", "pooler_act", "pooler_output_size")
    # No words are predicted here; old files have every field of every model.
    fields.ignore("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id", "padding")
    fields.ignore("tie_word_embeddings")
    if not clip and projected:
        raise UserError(f"a ViT of the family {family} has no projection; only CLIP's pooled feature can be projected")
    projection_width = fields.integer("projection_dim", default=512) if clip else 0
    activation, epsilon = {
        "clip": ("quick_gelu", 1e-5),
        "plain": ("gelu", 1e-12),
        "siglip": ("gelu_pytorch_tanh", 1e-6),
    }[family]
    options = {
        "family": family,
        "image_size": fields.integer("image_size", default=224),
        "patch_size": fields.integer("patch_size", default=32 if clip else 16),
        "width": fields.integer("hidden_size", default=768),
        "layers": fields.integer("num_hidden_layers", default=12),
        "heads": fields.integer("num_attention_heads", default=12),
        "mlp_width": fields.integer("intermediate_size", default=3072),
        "activation": fields.choice("hidden_act", ACTIVATIONS, default=activation),
        "norm_epsilon": fields.number("layer_norm_eps", default=epsilon),
        "projection_width": projection_width if projected else 0,
    }
    fields.finish()
    return options
