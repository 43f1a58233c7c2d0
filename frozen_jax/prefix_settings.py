"""The section `prefix` of the config: how an encoder's features become vectors. Part of `config.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

PrefixKind = Literal["linear", "mlp", "transformer", "attention_pool", "patches"]

PLACES: tuple[PrefixKind, ...] = ("attention_pool", "patches")
"""Kinds that are made of a vector for each place of the picture, not of the pooled feature."""

DESIGN = ("kind", "hidden", "layers", "heads")
"""Settings that say how a prefix other than the linear one is made."""


@dataclass(frozen=True)
class PrefixSettings:
    """Features to P vectors of the language model's width.

    Attributes:
        length: P, vectors per image (the paper tried 1, 2 and 4; 2 was best); with `patches` the number of places.
        kind: `linear`: the paper's; `mlp`: with a hidden layer; `transformer`: learned queries behind the mapped
            feature (ClipCap); `attention_pool`: learned queries look at the places of the picture (Flamingo's
            resampler); `patches`: each place is a vector by itself (LiMBeR).
        hidden: width of the hidden layer, or of the queries; `transformer` and `attention_pool` need a multiple of
            `heads`.
        layers: of `transformer` and `attention_pool`.
        heads: of their attention.
        layer_norm: normalise each vector and scale it to the size of the language model's own embeddings.
        feature_norm: normalise the features first; for imported encoders, whose features have no known size.
        dropout: rate on the features, in [0, 1).
        scale: size of the vectors at the start, relative to the language model's own embeddings (root mean squares);
            with `layer_norm` also what a gain of 1 stands for.
    """

    length: int = 2
    kind: PrefixKind = "linear"
    hidden: int = 512
    layers: int = 2
    heads: int = 8
    layer_norm: bool = False
    feature_norm: bool = False
    dropout: float = 0.0
    scale: float = 1.0


def list_unused(settings: PrefixSettings) -> tuple[str, ...]:
    """Returns the settings that make no difference: those of other designs, and a scale of 1."""
    design = DESIGN if settings.kind == "linear" else ()
    return (*design, "scale") if settings.scale == 1 else design


def check_prefix(
    settings: PrefixSettings, require: Callable[[bool, str, Any, str], None], *, cached: str, retrieval: float
) -> None:
    """Checks the section; `require(holds, name, value, rule)` refuses.

    Args:
        settings: the section.
        require: see above.
        cached: `vision.feature_cache`.
        retrieval: `retrieval.weight`.
    """
    for name in ("length", "hidden", "layers", "heads"):
        value = getattr(settings, name)
        require(value >= 1, f"prefix.{name}", value, "it must be at least 1")
    require(0 <= settings.dropout < 1, "prefix.dropout", settings.dropout, "it must be at least 0 and less than 1")
    rule = "it is a size relative to that of words and must be positive"
    require(settings.scale > 0, "prefix.scale", settings.scale, rule)
    if settings.kind in ("transformer", "attention_pool"):
        rule = f"it must be a multiple of prefix.heads={settings.heads}"
        require(settings.hidden % settings.heads == 0, "prefix.hidden", settings.hidden, rule)
    if settings.kind in PLACES:
        rule = "it is made of the places of a picture, of which cached features know nothing; leave "
        require(not cached, "prefix.kind", settings.kind, f"{rule}vision.feature_cache empty or take another kind")
        rule = "it has no pooled feature, by which pictures are found; set retrieval.weight=0 or take another kind"
        require(not retrieval, "prefix.kind", settings.kind, rule)
