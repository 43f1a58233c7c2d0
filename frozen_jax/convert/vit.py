"""The table of a vision transformer's weights: Hugging Face's names of CLIP's and SigLIP's image towers and of the
plain ViT, and the names of our own exports, which are the same for CLIP's and the plain one.

What a table is: `tables.py`; the module: `models/vit.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from frozen_jax.convert.resnet import KernelRule
from frozen_jax.convert.tables import LAYER, Rule, Table, linear_rules
from frozen_jax.models.vit import ViTConfig

_CLIP_NAMES = {
    "patches": "embeddings.patch_embedding",
    "class_token": "embeddings.class_embedding",
    "positions": "embeddings.position_embedding.weight",
    "embed_norm": "pre_layrnorm",
    "final_norm": "post_layernorm",
    "attention_norm": f"encoder.layers.{LAYER}.layer_norm1",
    "query": f"encoder.layers.{LAYER}.self_attn.q_proj",
    "key": f"encoder.layers.{LAYER}.self_attn.k_proj",
    "value": f"encoder.layers.{LAYER}.self_attn.v_proj",
    "out": f"encoder.layers.{LAYER}.self_attn.out_proj",
    "mlp_norm": f"encoder.layers.{LAYER}.layer_norm2",
    "up": f"encoder.layers.{LAYER}.mlp.fc1",
    "down": f"encoder.layers.{LAYER}.mlp.fc2",
}

_PLAIN_NAMES = {
    "patches": "embeddings.patch_embeddings.projection",
    "class_token": "embeddings.cls_token",
    "positions": "embeddings.position_embeddings",
    "final_norm": "layernorm",
    "attention_norm": f"encoder.layer.{LAYER}.layernorm_before",
    "query": f"encoder.layer.{LAYER}.attention.attention.query",
    "key": f"encoder.layer.{LAYER}.attention.attention.key",
    "value": f"encoder.layer.{LAYER}.attention.attention.value",
    "out": f"encoder.layer.{LAYER}.attention.output.dense",
    "mlp_norm": f"encoder.layer.{LAYER}.layernorm_after",
    "up": f"encoder.layer.{LAYER}.intermediate.dense",
    "down": f"encoder.layer.{LAYER}.output.dense",
}

_EXPORT_NAMES = {
    **{name: name for name in ("patches", "class_token", "positions", "embed_norm", "final_norm")},
    **{
        name: f"blocks.{LAYER}.{name}"
        for name in ("attention_norm", "query", "key", "value", "out", "mlp_norm", "up", "down")
    },
}

# What files hold beside the image tower: position numbers, the text tower, projections, heads for other tasks.
_CLIP_OTHERS = r"embeddings\.position_ids|text_model\..*|text_projection\.weight|visual_projection\.weight|logit_scale"
_SIGLIP_OTHERS = r"embeddings\.position_ids|text_model\..*|logit_scale|logit_bias"
_PLAIN_OTHERS = r"pooler\.dense\.(weight|bias)|classifier\.(weight|bias)"


def vit_table(config: ViTConfig, *, exported: bool = False) -> Table:
    """Returns the table for one config; what a file holds for other uses (text tower, classifier) is left out.

    Args:
        config: of the encoder.
        exported: the names in `assets/pytorch/modeling_frozen.py` in place of Hugging Face's.
    """
    clip, siglip, plain = (config.family == family for family in ("clip", "siglip", "plain"))
    names = _EXPORT_NAMES if exported else _PLAIN_NAMES if plain else _CLIP_NAMES
    rules = [*_embedding_rules(config, names, lead=plain and not exported), *_block_rules(config, names)]
    if siglip:
        rules += _pool_rules(config)
    for norm in ("embed_norm", "final_norm") if clip else ("final_norm",):
        rules.extend(_norm_rules(norm, names[norm], config.width))
    if config.projection_width:
        shape = (config.width, config.projection_width)
        name = "projection.weight" if exported else "visual_projection.weight"
        rules.append(Rule("projection/kernel", name, shape, shape[::-1], transposed=True))
    if exported:
        return Table(tuple(rules), config.layers, prefixes=("",), unprefixed=(), buffers="", tied=None)
    return Table(
        rules=tuple(rules),
        layers=config.layers,
        prefixes=("vit.",) if plain else ("vision_model.",),
        unprefixed=("visual_projection.weight",),
        buffers=_CLIP_OTHERS if clip else _SIGLIP_OTHERS if siglip else _PLAIN_OTHERS,
        tied=None,
    )


def _embedding_rules(config: ViTConfig, names: Mapping[str, str], *, lead: bool) -> list[Rule]:
    """Rules of what stands before the layers; with `lead` some tensors have leading axes of one."""
    width, patch = config.width, config.patch_size
    positions = (config.tokens, width)
    rules = [
        KernelRule(
            "patches/kernel", f"{names['patches']}.weight", (patch * patch * 3, width), (width, 3, patch, patch)
        ),
        Rule("positions", names["positions"], positions, (1, *positions) if lead else positions),
    ]
    if config.family != "siglip":
        rules.append(Rule("class_token", names["class_token"], (width,), (1, 1, width) if lead else (width,)))
    if config.family != "clip":
        rules.append(Rule("patches/bias", f"{names['patches']}.bias", (width,), (width,)))
    return rules


def _pool_rules(config: ViTConfig) -> list[Rule]:
    """Rules of SigLIP's pooling; torch keeps its query, key and value in one matrix."""
    width, heads = config.width, (config.heads, config.head_width)
    return [
        Rule("pool/probe", "head.probe", (width,), (1, 1, width)),
        Rule(
            "pool/qkv/kernel", "head.attention.in_proj_weight", (width, 3, *heads), (3 * width, width), transposed=True
        ),
        Rule("pool/qkv/bias", "head.attention.in_proj_bias", (3, *heads), (3 * width,)),
        *linear_rules("pool/out", "head.attention.out_proj", heads, (width,), bias=True),
        *linear_rules("pool/up", "head.mlp.fc1", (width,), (config.mlp_width,), bias=True),
        *linear_rules("pool/down", "head.mlp.fc2", (config.mlp_width,), (width,), bias=True),
        *_norm_rules("pool/norm", "head.layernorm", width),
    ]


def _block_rules(config: ViTConfig, names: Mapping[str, str]) -> list[Rule]:
    width, heads = config.width, (config.heads, config.head_width)
    maps: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
        "query": ((width,), heads),
        "key": ((width,), heads),
        "value": ((width,), heads),
        "out": (heads, (width,)),
        "up": ((width,), (config.mlp_width,)),
        "down": ((config.mlp_width,), (width,)),
    }
    rules = []
    for part, (into, outof) in maps.items():
        inner, outer = math.prod(into), math.prod(outof)
        kernel = Rule(
            f"blocks/{part}/kernel", f"{names[part]}.weight", (*into, *outof), (outer, inner), transposed=True
        )
        rules += [kernel, Rule(f"blocks/{part}/bias", f"{names[part]}.bias", outof, (outer,))]
    for part in ("attention_norm", "mlp_norm"):
        rules.extend(_norm_rules(f"blocks/{part}", names[part], width))
    return rules


def _norm_rules(path: str, name: str, width: int) -> list[Rule]:
    leaves = (("scale", "weight"), ("bias", "bias"))
    return [Rule(f"{path}/{ours}", f"{name}.{theirs}", (width,), (width,)) for ours, theirs in leaves]
