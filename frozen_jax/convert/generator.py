"""A generator's parameters and their names in `assets/pytorch/modeling_generator.py`, both ways."""

from __future__ import annotations

from frozen_jax.convert.tables import LAYER, Rule, Table, linear_rules, norm_rules
from frozen_jax.models.generator import FREQUENCIES, MLP_RATIO, GeneratorConfig


def generator_table(config: GeneratorConfig) -> Table:
    """Returns the table of a generator's weights."""
    width, mlp = (config.width,), (MLP_RATIO * config.width,)
    heads = (config.heads, config.width // config.heads)
    patch = (config.patch_size**2 * 3,)
    alone = {
        "queries": (config.queries, config.embed_width),
        "no_text": (config.queries, config.width),
        "positions": (config.tokens, config.width),
    }
    maps: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
        "condition": ((config.lm_width,), width),
        "patches": (patch, width),
        "time_in": ((2 * FREQUENCIES,), width),
        "time_out": (width, width),
        "final_steer": (width, (2 * config.width,)),
        "pixels": (width, patch),
    }
    layers: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
        "steer": (width, (6 * config.width,)),
        "qkv": (width, (3, *heads)),
        "out": (heads, width),
        "up": (width, mlp),
        "down": (mlp, width),
    }
    rules = [Rule(name, name, shape, shape) for name, shape in alone.items()]
    rules += norm_rules("condition_norm", "condition_norm", config.lm_width)
    for name, (inputs, outputs) in maps.items():
        rules += linear_rules(name, name, inputs, outputs, bias=True)
    for name, (inputs, outputs) in layers.items():
        rules += linear_rules(f"blocks/{name}", f"blocks.{LAYER}.{name}", inputs, outputs, bias=True)
    return Table(tuple(rules), config.layers, prefixes=("",), unprefixed=(), buffers="", tied=None)
