"""Low-rank adapters of a language model whose own weights stay as they are: `lm.lora_rank`.

Beside each kernel of the layers stand two factors, the only part of the language model that trains; an output becomes
y = x @ kernel + (x @ lora_down) @ lora_up (`models/layers.Projection`). `lora_up` starts at zero, so that training
begins at the language model itself. No weight gradient of a kernel is ever computed.

    kernel  [L, D, F]  →  lora_down  f32 [L, D, R],  lora_up  f32 [L, R, F]

Source: Hu et al. 2021, arXiv 2106.09685, with its scale alpha equal to the rank R. Other additions: `adapters.py`.
"""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from frozen_jax.quantise import count_inputs
from frozen_jax.state import Params, flatten, unflatten

FACTORS = r"blocks/.*/lora_(down|up)"
"""Paths of the factors within a language model."""


def draw_lora(rng: Key[Array, ""], params: Params, *, rank: int) -> Params:
    """Returns a language model's parameters with factors beside the kernels of its layers.

    Args:
        rng: of the downward factors, whose entries have the deviation 1 / sqrt(inputs).
        params: {"embed": …, "blocks": …}, arrays of any dtype or int8 kernels.
        rank: R.
    """
    flat = flatten(params)
    kernels = [path for path in flat if re.fullmatch("blocks/.*/kernel", path)]
    factors = {}
    for key, path in zip(jax.random.split(rng, len(kernels)), kernels, strict=True):
        layers, *sizes = flat[path].shape
        inputs, outputs = sizes[: count_inputs(path)], sizes[count_inputs(path) :]
        place = path.removesuffix("kernel")
        down = jax.random.normal(key, (layers, *inputs, rank), jnp.float32)
        factors[f"{place}lora_down"] = down / math.sqrt(math.prod(inputs))
        factors[f"{place}lora_up"] = jnp.zeros((layers, rank, *outputs), jnp.float32)
    return unflatten(flat | factors)


def merge_lora(params: Params) -> Params:
    """Returns a language model's parameters, on the host, with its factors multiplied out into the kernels, as any
    program reads them; a language model without factors comes back as it is.

    Args:
        params: in float32.
    """
    flat = flatten(params)
    factors = {path: np.asarray(flat.pop(path)) for path in list(flat) if re.fullmatch(FACTORS, path)}
    for path in [path for path in factors if path.endswith("lora_down")]:
        place = path.removesuffix("lora_down")
        pairs = zip(factors[path], factors[f"{place}lora_up"], strict=True)
        flat[f"{place}kernel"] = flat[f"{place}kernel"] + np.stack([np.tensordot(down, up, 1) for down, up in pairs])
    return unflatten(flat)
