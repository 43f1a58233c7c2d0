"""A generator's parameters and their names in `assets/pytorch/modeling_generator.py`, both ways."""

from __future__ import annotations

import re

from frozen_jax.convert.tables import Rule, Table, linear_rules, norm_rules
from frozen_jax.models.generator import FREQUENCIES, MIDDLE, GeneratorConfig


def generator_table(config: GeneratorConfig) -> Table:
    """Returns the table of a generator's weights; a convolution is stored as a linear map of 3 x 3 places."""
    width, channels, last = (config.width,), config.channels, len(config.channels) - 1
    patch = (config.patch_size**2 * 3,)
    maps: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
        "condition": ((config.lm_width,), width),
        "text": ((config.queries * config.width,), width),
        "time_in": ((2 * FREQUENCIES,), width),
        "time_out": (width, width),
        "patches": (patch, channels[:1]),
        "pixels": (channels[:1], patch),
    }
    blocks = {("down", number): channels[number + 1] for number in range(last - 1)}
    blocks |= {("middle", number): channels[last] for number in range(MIDDLE)}
    for number in range(last):
        fine, coarse = channels[number], channels[number + 1]
        maps[f"merge_{number}"] = ((4 * fine,), (coarse,))
        maps[f"split_{number}"] = ((coarse,), (4 * fine,))
        blocks["up", number] = fine
    for (place, number), count in blocks.items():
        maps[f"{place}_{number}/steer"] = (width, (2 * count,))
        maps |= {f"{place}_{number}/{name}": ((3, 3, count), (count,)) for name in ("first", "second")}
    alone = {"queries": (config.queries, config.embed_width), "no_text": (config.queries, config.width)}
    rules = [Rule(name, name, shape, shape) for name, shape in alone.items()]
    rules += norm_rules("condition_norm", "condition_norm", config.lm_width)
    for path, (inputs, outputs) in maps.items():
        name = re.sub(r"_(\d+)", r".\1", path).replace("/", ".")  # down_0/first of ours is down.0.first in PyTorch
        rules += linear_rules(path, name, inputs, outputs, bias=True)
    return Table(tuple(rules), layers=0, prefixes=("",), unprefixed=(), buffers="", tied=None)
