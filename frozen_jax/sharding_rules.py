"""Which dimension of each parameter is cut along which mesh axis: one table per tower, by parameter path.

A rule is (regex, PartitionSpec); the whole path has to match, the first match wins, there is no catch-all
(`state.match_rules`). What happens where an axis does not divide a dimension is in `sharding.py`, which comes next.

    tensor   splits the work: heads, MLP width and vocabulary of the language model (each device computes its share)
    fsdp     splits the storage: one more dimension of every large array, gathered where it is used

Dimensions, in the letters of `batch.py`; the leading L of stacked layers is never cut, because a loop walks along it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from jax.sharding import PartitionSpec

from frozen_jax.adapters import ADDED
from frozen_jax.models.bert import BERT
from frozen_jax.models.efficientnet import EfficientNetLite
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.models.gpt2 import GPT2
from frozen_jax.models.llama import Llama
from frozen_jax.models.nf_resnet import NFResNet
from frozen_jax.models.opt import OPT
from frozen_jax.models.resnet import ResNet
from frozen_jax.models.vit import ViT
from frozen_jax.state import Params, flatten

P = PartitionSpec

ShardingRules = tuple[tuple[str, PartitionSpec], ...]

_MLP_DOWN = (r"lm/blocks/down/kernel", P(None, "tensor", "fsdp"))  # L F D
_ATTENTION_OUT = (r"lm/blocks/out/kernel", P(None, "tensor", None, "fsdp"))  # L N H D
_SEPARATE_QKV = (r"lm/blocks/(query|key|value)/kernel", P(None, "fsdp", "tensor", None))  # L D N H

LM_RULES: Mapping[type, ShardingRules] = {
    GPT2: (
        (r"lm/embed/embedding", P("tensor", "fsdp")),  # V D
        (r"lm/positions/embedding", P(None, "fsdp")),
        (r"lm/blocks/qkv/kernel", P(None, "fsdp", None, "tensor", None)),  # L D 3 N H
        _ATTENTION_OUT,
        (r"lm/blocks/up/kernel", P(None, "fsdp", "tensor")),  # L D F
        _MLP_DOWN,
    ),
    OPT: (
        (r"lm/embed/embedding", P("tensor", "fsdp")),
        (r"lm/(positions/embedding|project_(in|out)/kernel)", P(None, "fsdp")),
        _SEPARATE_QKV,
        _ATTENTION_OUT,
        (r"lm/blocks/up/kernel", P(None, "fsdp", "tensor")),
        _MLP_DOWN,
    ),
    BERT: (
        (r"lm/embed/embedding", P("tensor", "fsdp")),
        (r"lm/(positions|types)/embedding", P(None, "fsdp")),
        _SEPARATE_QKV,
        _ATTENTION_OUT,
        (r"lm/blocks/up/kernel", P(None, "fsdp", "tensor")),
        _MLP_DOWN,
    ),
    Llama: (
        (r"lm/(embed|head)/embedding", P("tensor", "fsdp")),
        _SEPARATE_QKV,
        _ATTENTION_OUT,
        (r"lm/blocks/(gate|up)/kernel", P(None, "fsdp", "tensor")),
        _MLP_DOWN,
    ),
}
"""Language models by the class of their module."""

_CONVOLUTIONS: ShardingRules = ((r"vision/.*/?kernel", P(None, None, None, "fsdp")),)  # height width in out

VISION_RULES: Mapping[type, ShardingRules] = {
    NFResNet: _CONVOLUTIONS,
    ResNet: _CONVOLUTIONS,
    EfficientNetLite: _CONVOLUTIONS,
    ViT: (
        (r"vision/blocks/(query|key|value|up|down)/kernel", P(None, "fsdp")),  # L E …, L F E
        (r"vision/blocks/out/kernel", P(None, None, None, "fsdp")),  # L N H E
        (r"vision/(patches|projection|pool/(qkv|out|up|down))/kernel", P("fsdp")),
        (r"vision/positions", P(None, "fsdp")),
        (r"vision/(class_token|pool/probe)", P()),
    ),
}
"""Encoders by the class of their module. `tensor` cuts none of them: there it spreads pictures (`sharding.py`)."""

_PROJECTION: ShardingRules = ((r"prefix/projection/kernel", P("fsdp")),)  # E (P D)

_QUERIES: ShardingRules = (
    *_PROJECTION,
    (r"prefix/(mapped|block_\d+/(query|key|value|up|down))/kernel", P("fsdp")),  # E W, W N H, W F
    (r"prefix/block_\d+/out/kernel", P(None, None, "fsdp")),  # N H W
    (r"prefix/queries", P()),
)

PREFIX_RULES: Mapping[str, ShardingRules] = {
    "linear": _PROJECTION,
    "patches": _PROJECTION,
    "mlp": (*_PROJECTION, (r"prefix/hidden/kernel", P("fsdp"))),
    "transformer": _QUERIES,
    "attention_pool": _QUERIES,
}
"""Prefixes by their kind."""

FUSION_RULES: ShardingRules = ((r"fusion/[a-z]+/kernel", P()),)  # a few hundred numbers wide

GENERATOR_RULES: ShardingRules = (
    (r"generator/(down|middle|up)_\d+/(first|second)/kernel", P(None, None, None, "fsdp")),  # height width in out
    (r"generator/(down|middle|up)_\d+/steer/kernel", P("fsdp")),
    (r"generator/(condition|text|time_in|time_out|patches|merge_\d+|split_\d+|pixels)/kernel", P("fsdp")),
    (r"generator/(queries|no_text)", P()),
)

RETRIEVAL_RULES: ShardingRules = (
    (r"retrieval/(text|image)/kernel", P("fsdp")),  # D W, E W
    (r"retrieval/token", P()),
)

WHOLE = r"(.*/)?(bias|scale|gain|skip_gain|mean|var)"
"""Vectors and numbers: less than 1 % of any model's bytes, whole on every device."""


def list_sharding_rules(model: FrozenModel, params: Params) -> ShardingRules:
    """Returns the rules of these towers.

    Args:
        model: the modules, which choose the tables.
        params: the whole tree; only its paths are read.
    """
    rules = list(LM_RULES[type(model.lm)])
    if any(re.fullmatch(ADDED, path) for path in flatten(params["lm"])):
        rules.append((f"lm/{ADDED}", P()))  # a few per cent of the kernels
    if model.vision is not None:
        rules += VISION_RULES[type(model.vision)]
    if model.prefix is not None:
        rules += PREFIX_RULES[model.prefix.kind]
    if model.fusion is not None:
        rules += FUSION_RULES
    if model.retrieval is not None:
        rules += RETRIEVAL_RULES
    if model.generator is not None:
        rules += GENERATOR_RULES
    for tower in params:
        # A model without a single bias or norm has none of these, and a rule must match something.
        if any(re.fullmatch(f"{tower}/{WHOLE}", path) for path in flatten({tower: params[tower]})):
            rules.append((f"{tower}/{WHOLE}", P()))
    return tuple(rules)
