"""int8 storage of a frozen language model's kernels: half of bfloat16's memory, and nothing else changes.

Each kernel becomes whole numbers in -127..127 and one float32 scale per output, which `models/layers.Projection`
applies to the product: y = (x @ kernel) * scale. Kernels are widened where they are used, never as a whole; the
gradient with respect to x is exact for the stored kernel. Embeddings, heads, biases and norms stay as they are: a table
of words is read both ways, and a model is most sensitive there.

    kernel  bf16 [L, D, F]  →  kernel  int8 [L, D, F],  scale  f32 [L, F]
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from frozen_jax.state import Params, flatten, unflatten

LEVELS = 127
"""Largest stored number; symmetric, so that zero stays zero."""


def quantise_lm(params: Params) -> Params:
    """Returns a language model's parameters with int8 kernels, computed layer by layer on the host.

    Args:
        params: {"embed": …, "blocks": …}, on the host.
    """
    result = {}
    for path, leaf in flatten(params).items():
        if not _is_kernel(path):
            result[path] = leaf
            continue
        kernel = np.asarray(leaf)
        stacked = path.startswith("blocks/")
        layers = [_round(layer, inputs=count_inputs(path)) for layer in (kernel if stacked else kernel[None])]
        numbers, scales = (np.stack(parts) for parts in zip(*layers, strict=True))
        result[path], result[_scale_path(path)] = (numbers, scales) if stacked else (numbers[0], scales[0])
    return unflatten(result)


def dequantise_lm(params: Params) -> Params:
    """Returns a language model's parameters with float32 kernels in place of int8 ones, on the host.

    Inverse of `quantise_lm` up to its rounding; parameters without int8 kernels come back as they are.
    """
    flat = flatten(params)
    result = {}
    for path, leaf in flat.items():
        if leaf.dtype == np.int8:
            scale = np.asarray(flat[_scale_path(path)])
            lead = int(path.startswith("blocks/"))
            inputs = tuple(range(lead, lead + count_inputs(path)))
            result[path] = np.asarray(leaf, np.float32) * np.expand_dims(scale, inputs)
        elif not (path.endswith("/scale") and path.removesuffix("scale") + "kernel" in flat):
            result[path] = leaf
    return unflatten(result)


def describe_quantised(params: Params) -> Params:
    """Returns shapes and dtypes of what `quantise_lm` makes of a tree, from those of the tree."""
    result = {}
    for path, leaf in flatten(params).items():
        result[path] = jax.ShapeDtypeStruct(leaf.shape, jnp.int8 if _is_kernel(path) else leaf.dtype)
        if _is_kernel(path):
            lead = int(path.startswith("blocks/"))
            shape = leaf.shape[:lead] + leaf.shape[lead + count_inputs(path) :]
            result[_scale_path(path)] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return unflatten(result)


def _round(kernel: np.ndarray, *, inputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns whole numbers and scales of one layer's kernel, whose first `inputs` axes are summed over."""
    values: Any = kernel.astype(np.float32)
    scale = np.abs(values).max(axis=tuple(range(inputs))) / LEVELS
    scale = np.where(scale == 0, np.float32(1), scale)  # an output without any weight stays without
    return np.rint(values / scale).astype(np.int8), scale.astype(np.float32)


def _is_kernel(path: str) -> bool:
    return path.endswith("/kernel")


def _scale_path(path: str) -> str:
    return path.removesuffix("kernel") + "scale"


def count_inputs(path: str) -> int:
    """Input axes of a kernel: attention's output projection sums over heads and their width, all others over one."""
    return 2 if path.endswith("/out/kernel") else 1
