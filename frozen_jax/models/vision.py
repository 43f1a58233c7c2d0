"""The vision encoders by name, with their options checked, and where an imported one's options come from.

The encoders are in `nf_resnet.py`, `resnet.py`, `vit.py` and `efficientnet.py`; what they share (`VisionOutput`, the
normalisation of pixels) in `pixels.py`; their weights' names in the files of the same names in `convert/`. Next in the
data flow: `prefix.py`. Every encoder is called as

    module(images uint8[B, height, width, 3], *, deterministic=True) -> VisionOutput(pooled, tokens)

and has `.width`, the width E of the pooled feature.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from frozen_jax.errors import UserError
from frozen_jax.models.efficientnet import EfficientNetLite
from frozen_jax.models.layers import REMAT_POLICIES
from frozen_jax.models.nf_resnet import ACTIVATIONS, STEMS, NFResNet
from frozen_jax.models.pixels import VisionOutput
from frozen_jax.models.resnet import ResNet, read_resnet_options
from frozen_jax.models.vit import ViT, ViTConfig, read_vit_options

__all__ = ["BUILDERS", "FROZEN_STATISTICS", "VisionOutput", "build_vision", "vision_config_from_hf"]

FROZEN_STATISTICS = r"(.*/)?(mean|var)"
"""Pattern, matching in full, of the paths of leaves that no training may change: the statistics of batch normalisation.

Only ResNet and EfficientNet have them; no encoder has another leaf of these names."""

MOST_BLOCKS = 10_000
"""Of all stages together; what a damaged export asks for beyond this would take minutes to name."""


def build_nf_resnet50(
    *,
    widths: tuple[int, ...] = (256, 512, 1024, 2048),
    depths: tuple[int, ...] = (3, 4, 6, 3),
    bottleneck: bool = True,
    stem: str = "resnet",
    stem_width: int = 64,
    activation: str = "relu",
    skip_gain: float = 0.0,
    pooled_shortcut: bool = False,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> NFResNet:
    """Builds an NF-ResNet; the defaults are NF-ResNet-50, 23,508,048 parameters.

    Args:
        widths: output channels of each stage.
        depths: blocks of each stage.
        bottleneck: 1x1, 3x3, 1x1 blocks instead of two 3x3.
        stem: one of `nf_resnet.STEMS`.
        stem_width: channels after the stem.
        activation: one of `nf_resnet.ACTIVATIONS`.
        skip_gain: initial gain of every residual branch.
        pooled_shortcut: average instead of dropping places where a shortcut halves the sides.
        dtype: compute dtype.

    Raises:
        UserError: a name or size that does not fit.
    """
    for option, value, choices in (("stem", stem, STEMS), ("activation", activation, ACTIVATIONS)):
        if value not in choices:
            raise UserError(f"vision.{option} = {value!r} is unknown; choose one of {', '.join(choices)}")
    _check_stages(widths, depths, stem_width, multiple=4 if bottleneck else 1)
    return NFResNet(widths, depths, bottleneck, stem, stem_width, activation, skip_gain, pooled_shortcut, dtype)


def build_nf_resnet_small(
    *,
    widths: tuple[int, ...] = (32, 64, 128),
    depths: tuple[int, ...] = (1, 1, 1),
    bottleneck: bool = False,
    stem: str = "patch",
    stem_width: int = 32,
    activation: str = "relu",
    skip_gain: float = 1.0,
    pooled_shortcut: bool = True,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> NFResNet:
    """Builds a small NF-ResNet: 309,123 parameters, 22 MFLOP forward for a picture of 64x64.

    Its branches are open from the start and its shortcuts drop nothing: it is shallow enough for both, and learns in
    hundreds of steps, not in tens of thousands.

    Args:
        widths: as in `build_nf_resnet50`, like all options.
        depths: likewise.
        bottleneck: likewise.
        stem: likewise.
        stem_width: likewise.
        activation: likewise.
        skip_gain: likewise.
        pooled_shortcut: likewise.
        dtype: likewise.

    Raises:
        UserError: a name or size that does not fit.
    """
    return build_nf_resnet50(
        widths=widths,
        depths=depths,
        bottleneck=bottleneck,
        stem=stem,
        stem_width=stem_width,
        activation=activation,
        skip_gain=skip_gain,
        pooled_shortcut=pooled_shortcut,
        dtype=dtype,
    )


def build_resnet50(
    *,
    widths: tuple[int, ...] = (256, 512, 1024, 2048),
    depths: tuple[int, ...] = (3, 4, 6, 3),
    stem_width: int = 64,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> ResNet:
    """Builds a ResNet v1.5; the defaults are ResNet-50, 23,508,032 parameters and 53,120 statistics.

    Args:
        widths: output channels of each stage.
        depths: blocks of each stage, (3, 4, 23, 3) for ResNet-101.
        stem_width: channels after the stem.
        dtype: compute dtype.

    Raises:
        UserError: a size that does not fit.
    """
    _check_stages(widths, depths, stem_width, multiple=4)
    return ResNet(widths, depths, stem_width, dtype)


def build_vit(
    *,
    family: str = "clip",
    image_size: int = 224,
    patch_size: int = 32,
    width: int = 768,
    layers: int = 12,
    heads: int = 12,
    mlp_width: int = 3072,
    activation: str = "quick_gelu",
    norm_epsilon: float = 1e-5,
    projection_width: int = 0,
    dtype: jax.typing.DTypeLike = jnp.float32,
    remat: str = "none",
    unroll: int = 1,
) -> ViT:
    """Builds a vision transformer; the defaults are CLIP ViT-B/32, 87,456,000 parameters.

    Args:
        family: `clip`, `plain` or `siglip`; see `vit.ViTConfig` for all fields up to `projection_width`.
        image_size: side of the images in pixels.
        patch_size: side of a patch in pixels.
        width: of the tokens.
        layers: L.
        heads: N.
        mlp_width: F.
        activation: its Hugging Face name.
        norm_epsilon: added to variances.
        projection_width: width of CLIP's projected feature, or 0.
        dtype: compute dtype.
        remat: what the backward pass recomputes: "none", "full" or "dots".
        unroll: layers per step of the scan over layers.

    Raises:
        UserError: a name or size that does not fit.
    """
    if remat not in ("none", *REMAT_POLICIES):
        raise UserError(f"vision.remat = {remat!r} is unknown; choose one of none, {', '.join(REMAT_POLICIES)}")
    if not 1 <= unroll <= layers:
        raise UserError(f"vision.unroll = {unroll} must lie in [1, {layers}], the number of layers")
    config = ViTConfig(
        family=family,
        image_size=image_size,
        patch_size=patch_size,
        width=width,
        layers=layers,
        heads=heads,
        mlp_width=mlp_width,
        activation=activation,
        norm_epsilon=norm_epsilon,
        projection_width=projection_width,
    )
    return ViT(config, dtype, remat, unroll)


def build_efficientnet_lite0(
    *,
    widths: tuple[int, ...] = EfficientNetLite.widths,
    depths: tuple[int, ...] = EfficientNetLite.depths,
    sizes: tuple[int, ...] = EfficientNetLite.sizes,
    strides: tuple[int, ...] = EfficientNetLite.strides,
    expansions: tuple[int, ...] = EfficientNetLite.expansions,
    stem_width: int = 32,
    head_width: int = 1280,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> EfficientNetLite:
    """Builds an EfficientNet-Lite; the defaults are Lite0, 3,371,008 parameters and 42,016 statistics.

    Args:
        widths: output channels of each stage.
        depths: blocks of each stage.
        sizes: sides of the depthwise kernels of each stage.
        strides: of each stage.
        expansions: of each stage's blocks.
        stem_width: channels after the stem.
        head_width: width of the pooled feature.
        dtype: compute dtype.

    Raises:
        UserError: a size that does not fit.
    """
    _check_stages(widths, depths, stem_width, multiple=1)
    for option, values in (("sizes", sizes), ("strides", strides), ("expansions", expansions)):
        if len(values) != len(widths) or min(*values, head_width) < 1:
            raise UserError(f"vision.{option} = {values} needs one positive number for each of {len(widths)} stages")
    return EfficientNetLite(widths, depths, sizes, strides, expansions, stem_width, head_width, dtype)


BUILDERS: Mapping[str, Callable[..., nn.Module]] = {
    "nf_resnet50": build_nf_resnet50,
    "nf_resnet_small": build_nf_resnet_small,
    "resnet50": build_resnet50,
    "vit": build_vit,
    "efficientnet_lite0": build_efficientnet_lite0,
}
"""Encoders by name; a builder's keyword arguments are the encoder's options."""

HF_FAMILIES = ("clip", "clip_vision_model", "siglip", "siglip_vision_model", "vit", "resnet")
"""What `vision_config_from_hf` reads: values of `model_type`."""


def build_vision(name: str, **options: Any) -> nn.Module:
    """Builds an encoder.

    Args:
        name: a key of `BUILDERS`.
        **options: keyword arguments of its builder.

    Raises:
        UserError: an unknown name or option, or a value of the wrong type or that does not fit.
    """
    if name not in BUILDERS:
        raise UserError(f"vision.name = {name!r} is not an encoder; choose one of {', '.join(BUILDERS)}")
    valid = inspect.signature(BUILDERS[name]).parameters
    unknown = sorted(set(options) - set(valid))
    if unknown:
        raise UserError(f"vision.{unknown[0]} is not an option of {name}; its options are {', '.join(valid)}")
    checked = {option: _check_type(option, value, valid[option].default) for option, value in options.items()}
    return BUILDERS[name](**checked)


def vision_config_from_hf(config: Mapping[str, Any], *, projected: bool = False) -> dict[str, Any]:
    """Reads a Hugging Face config.json of a CLIP or SigLIP (whole or its image tower), plain ViT or ResNet.

    Args:
        config: the content of the file.
        projected: CLIP only: the pooled feature is the one after the projection into the space shared with text.

    Returns:
        Arguments of `build_vision`, `name` among them.

    Raises:
        UserError: `model_type` is not one of ours, or a field is of the wrong type or not supported.

    Example:
        >>> vision_config_from_hf({"model_type": "resnet", "depths": [3, 4, 23, 3]})["depths"]
        (3, 4, 23, 3)
    """
    family = config.get("model_type")
    if family == "clip":
        # A whole CLIP: its image tower's fields are nested, and the projection's width counts from outside.
        tower = config.get("vision_config")
        if not isinstance(tower, Mapping):
            raise UserError("config.json of a clip model: vision_config is missing; it must describe the image tower")
        config = {**tower, "model_type": "clip_vision_model", "projection_dim": config.get("projection_dim", 512)}
    if family == "siglip":
        tower = config.get("vision_config")
        if not isinstance(tower, Mapping):
            raise UserError("config.json of a siglip model: vision_config is missing; it must describe the image tower")
        config, family = {**tower, "model_type": "siglip_vision_model"}, "siglip_vision_model"
    if family == "resnet" and not projected:
        return {"name": "resnet50", **read_resnet_options(config)}
    if family in HF_FAMILIES and family != "resnet":
        return {"name": "vit", **read_vit_options(config, projected=projected)}
    raise UserError(
        f"config.json: model_type = {family!r}{' with a projected feature' if projected else ''} is not a vision "
        f"encoder of this project; it has {', '.join(HF_FAMILIES)}, and only CLIP can project its feature"
    )


def _check_type(option: str, value: Any, default: Any) -> Any:
    """Returns an option's value, lists as tuples, if it is of the kind of its default."""
    if isinstance(default, tuple):
        if isinstance(value, list | tuple) and all(type(size) is int for size in value):
            return tuple(value)
        raise UserError(f"vision.{option} = {value!r} must be a list of whole numbers, like {default}")
    if isinstance(default, bool | int | float | str):
        accepted: tuple[type, ...] = (int, float) if isinstance(default, float) else (type(default),)
        if type(value) not in accepted:
            raise UserError(f"vision.{option} = {value!r} must be of type {accepted[-1].__name__}, like {default!r}")
        return type(default)(value)
    return value


def _check_stages(widths: tuple[int, ...], depths: tuple[int, ...], stem_width: int, *, multiple: int) -> None:
    """Refuses sizes of stages that do not fit together."""
    if not widths or len(widths) != len(depths) or min(*widths, *depths, stem_width) < 1:
        raise UserError(
            f"vision.widths = {widths} and vision.depths = {depths} need one positive number for each stage, "
            f"and vision.stem_width = {stem_width} must be positive"
        )
    if sum(depths) > MOST_BLOCKS:
        raise UserError(f"vision.depths = {depths} are {sum(depths)} blocks; there may be at most {MOST_BLOCKS}")
    if any(width % multiple for width in widths):
        raise UserError(f"vision.widths = {widths} must be multiples of 4: a bottleneck block has a quarter inside")
