"""EfficientNet-Lite against the same network written in torch, and its table."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from frozen_jax.convert.efficientnet import efficientnet_table
from frozen_jax.convert.tables import export_tensors, import_tensors
from frozen_jax.errors import UserError
from frozen_jax.models.vision import build_vision

TINY = {
    "widths": (4, 6, 6),
    "depths": (1, 2, 1),
    "sizes": (3, 5, 3),
    "strides": (1, 2, 2),
    "expansions": (1, 3, 2),
    "stem_width": 4,
    "head_width": 10,
}


def draw(module):
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 20, 20, 3), jnp.uint8))["params"]
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return rng.normal(0, 1.5 * np.prod(leaf.shape[:3]) ** -0.5, leaf.shape).astype(np.float32)
        low, high = (0.5, 2.0) if name in ("scale", "var") else (-0.5, 0.5)
        return rng.uniform(low, high, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def run_in_torch(state, module, images):
    """The network by its tensors' names: TensorFlow's padding, statistics, ReLU6."""

    def convolve(x, convolution, norm, stride=1, *, depthwise=False, linear=False):
        weight = state[f"{convolution}.weight"]
        pads = []
        for side in (x.shape[3], x.shape[2]):
            total = max((math.ceil(side / stride) - 1) * stride + weight.shape[-1] - side, 0)
            pads += [total // 2, total - total // 2]
        x = functional.conv2d(functional.pad(x, pads), weight, stride=stride, groups=len(weight) if depthwise else 1)
        names = ("running_mean", "running_var", "weight", "bias")
        x = functional.batch_norm(x, *(state[f"{norm}.{name}"] for name in names), eps=1e-3)
        return x if linear else torch.clamp(x, 0, 6)

    x = (torch.tensor(images).permute(0, 3, 1, 2).double() - 127) / 128
    x = convolve(x, "_conv_stem", "_bn0", 2)
    for number, (width, expansion, _, stride) in enumerate(module.plan()):
        name = f"_blocks.{number}"
        branch = convolve(x, f"{name}._expand_conv", f"{name}._bn0") if expansion > 1 else x
        branch = convolve(branch, f"{name}._depthwise_conv", f"{name}._bn1", stride, depthwise=True)
        branch = convolve(branch, f"{name}._project_conv", f"{name}._bn2", linear=True)
        x = x + branch if stride == 1 and x.shape[1] == width else branch
    return convolve(x, "_conv_head", "_bn1")


@pytest.mark.parametrize("side", [20, 23])
def test_features_equal_torch(side):
    module = build_vision("efficientnet_lite0", **TINY)
    params = draw(module)
    state = {name: torch.tensor(x).double() for name, x in export_tensors(efficientnet_table(module), params).items()}
    images = np.random.default_rng(1).integers(0, 256, (2, side, side, 3), np.uint8)
    expected = run_in_torch(state, module, images)
    output = jax.jit(module.apply)({"params": params}, images)
    assert expected.std() > 0.1 and (expected == 6).any()
    np.testing.assert_allclose(output.tokens, expected.flatten(2).transpose(1, 2), atol=1e-4)
    np.testing.assert_allclose(output.pooled, expected.mean((2, 3)), atol=1e-4)


def test_the_table_is_a_bijection_with_the_published_names_and_shapes():
    module = build_vision("efficientnet_lite0")
    shapes = {rule.name: rule.torch_shape for rule in efficientnet_table(module).rules}
    assert len(shapes) == len(efficientnet_table(module).rules) == 296 - 49 - 2  # counters of batches, classifier
    assert shapes["_blocks.3._depthwise_conv.weight"] == (144, 1, 5, 5)
    assert shapes["_blocks.15._project_conv.weight"] == (320, 1152, 1, 1)
    assert shapes["_conv_head.weight"] == (1280, 320, 1, 1) and "_blocks.0._expand_conv.weight" not in shapes
    assert sum(math.prod(s) for name, s in shapes.items() if "running" not in name) == 3_371_008
    small = build_vision("efficientnet_lite0", **TINY)
    params = draw(small)
    tensors = export_tensors(efficientnet_table(small), params)
    counted = {**tensors, "_bn0.num_batches_tracked": np.array(1), "_fc.weight": np.zeros((2, 10), np.float32)}
    back = import_tensors(efficientnet_table(small), counted, dtype=np.float32)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_stages_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"vision\.strides = \(1,\) needs one positive number for each of 3 stages"):
        build_vision("efficientnet_lite0", **{**TINY, "strides": (1,)})
