"""NF-ResNet against a torch model written from the papers' equations, its signal propagation, and its stability."""

import re

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from benchmarks.torch_peer import TorchNFResNet
from frozen_jax.errors import UserError
from frozen_jax.models import convolution
from frozen_jax.models.nf_resnet import Block, NFResNet, standardise
from frozen_jax.models.pixels import IMAGENET_MEAN, IMAGENET_STD
from frozen_jax.models.vision import build_vision

BASIC = {"widths": (8, 12), "depths": (1, 2), "bottleneck": False, "stem": "patch", "stem_width": 8}
BOTTLENECK = {"widths": (16, 32), "depths": (1, 2), "bottleneck": True, "stem": "resnet", "stem_width": 8}


def draw_images(count, side, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def encode(module, params, images):
    return jax.jit(module.apply)({"params": params}, images)


def init_params(module, images):
    """What `init` gives, drawn by numpy: compiling the random numbers of every kernel would take most of the time."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1].key == "kernel":
            return jnp.asarray(rng.normal(0, np.prod(leaf.shape[:3]) ** -0.5, leaf.shape), jnp.float32)
        return jnp.full(leaf.shape, {"gain": 1.0, "skip_gain": module.skip_gain, "bias": 0.0}[path[-1].key])

    return jax.tree_util.tree_map_with_path(fill, shapes)


def draw_params(module, images):
    """Parameters with every leaf moved, so that no zero or one hides a mistake."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: x + jnp.asarray(rng.normal(0.3, 0.2, x.shape), jnp.float32), init_params(module, images)
    )


@pytest.mark.parametrize(
    "options",
    [BASIC, BOTTLENECK, {**BASIC, "stem": "conv", "activation": "gelu", "pooled_shortcut": True}],
    ids=["basic", "bottleneck", "conv_gelu_pooled"],
)
def test_output_and_gradient_equal_torch(options):
    module = build_vision("nf_resnet_small", **options)
    images = draw_images(2, 20 if options["stem"] == "patch" else 21)
    params = draw_params(module, images)
    weights = np.random.default_rng(2).normal(size=module.width).astype(np.float32)

    def score(params):
        output = module.apply({"params": params}, images)
        return jnp.sum(output.pooled * weights[None, :]), output

    (_, output), gradient = jax.jit(jax.value_and_grad(score, has_aux=True))(params)
    reference = TorchNFResNet(params, module, torch.float64).double()
    tokens = reference(torch.tensor(np.array(images)))
    (tokens.mean(1) * torch.tensor(weights)[None, :]).sum().backward()
    scale = tokens.abs().max().item()
    np.testing.assert_allclose(output.tokens, tokens.detach().numpy(), atol=1e-5 * scale)
    np.testing.assert_allclose(output.pooled, tokens.mean(1).detach().numpy(), atol=1e-5 * scale)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        expected = reference.get_parameter(".".join(key.key for key in path)).grad.numpy()
        expected = expected.transpose(2, 3, 1, 0) if expected.ndim == 4 else expected
        np.testing.assert_allclose(leaf, expected, atol=3e-4 * np.abs(expected).max(), err_msg=str(path))
        assert np.abs(expected).max() > 0, path


def test_standardised_filters_have_mean_0_and_variance_gain_squared_over_fan_in():
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(3.0, 2.0, (3, 3, 5, 7)), jnp.float32)
    gain = jnp.asarray(rng.uniform(0.5, 2.0, 7), jnp.float32)
    filters = np.asarray(standardise(kernel, gain)).reshape(-1, 7)
    np.testing.assert_allclose(filters.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(filters.var(0) * 45, np.square(gain), rtol=1e-5)


def test_constant_filter_is_not_blown_up():
    assert np.abs(standardise(jnp.full((1, 1, 4, 2), 1e3), jnp.ones(2))).max() == 0


def test_variances_are_those_predicted():
    """With open branches, the residual stream of stage s, block i has variance 1 + 0.04 * i at initialisation."""
    module = NFResNet(widths=(64, 128), depths=(2, 3), stem="conv", stem_width=32, skip_gain=1.0)
    # Pixels that have variance 1 once normalised.
    pixels = np.random.default_rng(0).normal(IMAGENET_MEAN, IMAGENET_STD, (8, 32, 32, 3))
    images = jnp.asarray(np.clip(255 * pixels, 0, 255), jnp.uint8)
    params = init_params(module, images)

    @jax.jit
    def capture(params):
        return module.apply({"params": params}, images, capture_intermediates=lambda m, _: isinstance(m, Block))

    _, state = capture(params)
    for name, block in state["intermediates"].items():
        index = int(re.fullmatch(r"stage_\d_block_(\d)", name).group(1))
        # Over images, places and channels; a channel's own mean is part of the second moment.
        measured = float(jnp.mean(jnp.square(block["__call__"][0])))
        assert measured == pytest.approx(1 + 0.04 * index, rel=0.2), name


@pytest.mark.parametrize("name, skip_gain", [("nf_resnet50", 0.0), ("nf_resnet_small", 1.0)])
def test_initial_values_besides_the_kernels(name, skip_gain):
    module = build_vision(name, **BASIC)

    @jax.jit
    def init_block(key):  # drops the random numbers, which would take long to compile
        params = module.init(key, draw_images(1, 16))["params"]["stage_2_block_1"]
        return params["skip_gain"], params["conv_1"]["gain"], params["shortcut"]["bias"]

    values, gain, bias = init_block(jax.random.key(0))
    assert values == skip_gain and np.all(gain == 1.0) and np.all(bias == 0.0)


def test_a_closed_branch_has_no_say():
    module = build_vision("nf_resnet50", **BASIC)
    images = draw_images(2, 16)
    params = init_params(module, images)
    output = encode(module, params, images).pooled
    params["stage_2_block_2"]["conv_2"]["kernel"] *= -1.0
    assert np.array_equal(encode(module, params, images).pooled, output)
    params["stage_2_block_2"]["skip_gain"] += 1.0
    assert not np.array_equal(encode(module, params, images).pooled, output)


def test_weights_are_standardised_once_for_all_examples():
    module = build_vision("nf_resnet_small", **BASIC)
    images = draw_images(5, 16)
    params = init_params(module, images)

    def encode_one(image):
        return module.apply({"params": params}, image[None]).pooled[0]

    sizes = [str(v.aval.shape) for v in find_outputs(jax.make_jaxpr(jax.vmap(encode_one))(images).jaxpr, "rsqrt")]
    convolutions = [path for path, _ in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "kernel"]
    assert sorted(sizes) == ["(12,)"] * 5 + ["(8,)"] * 4
    assert len(sizes) == len(convolutions)


def find_outputs(jaxpr, primitive):
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == primitive:
            found.extend(equation.outvars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            found.extend(find_outputs(inner, primitive))
    return found


def test_parameter_count_of_nf_resnet50():
    """ResNet-50 without head, where gain and bias stand for BatchNorm's scale and bias, and 16 branch gains."""
    module = build_vision("nf_resnet50")
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3), jnp.uint8))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 23_508_032 + 16
    output = jax.eval_shape(module.apply, shapes, jnp.zeros((4, 224, 224, 3), jnp.uint8))
    assert output.pooled.shape == (4, 2048) and output.tokens.shape == (4, 49, 2048)
    assert module.width == 2048


def test_bfloat16_stays_close_and_pools_in_float32():
    images = draw_images(4, 32)
    module = build_vision("nf_resnet_small", **BASIC)
    params = draw_params(module, images)
    exact = encode(module, params, images).pooled
    rough = encode(build_vision("nf_resnet_small", **BASIC, dtype=jnp.bfloat16), params, images)
    assert rough.pooled.dtype == jnp.float32 and rough.tokens.dtype == jnp.bfloat16
    assert np.abs(rough.pooled - exact).max() < 0.03 * np.abs(exact).max()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_learns_at_the_papers_rate_without_nan(dtype):
    """Tells 4 colours apart after 60 steps of Adam at 3e-4; the benchmark of the same name runs 500 on NF-ResNet-50."""
    module = build_vision("nf_resnet_small", widths=(16, 32), depths=(1, 1), stem_width=16, dtype=dtype)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (60, 8))
    colours = np.array([[220, 40, 40], [40, 200, 60], [40, 60, 220], [230, 220, 50]])
    images = np.clip(colours[labels][:, :, None, None, :] + rng.normal(0, 40, (60, 8, 16, 16, 3)), 0, 255)
    images = jnp.asarray(images, jnp.uint8)
    head = jnp.asarray(rng.normal(0, 0.5, (32, 4)), jnp.float32)
    params = init_params(module, images[0])
    optimiser = optax.flatten(optax.adam(3e-4, b1=0.9, b2=0.95))  # one vector: compiles faster than leaf by leaf

    @jax.jit
    def train(params, state, images, labels):
        def loss_of(params):
            scores = module.apply({"params": params}, images).pooled @ head
            return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

        loss, gradient = jax.value_and_grad(loss_of)(params)
        updates, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    state, losses = optimiser.init(params), []
    for batch, answer in zip(images, labels, strict=True):
        params, state, loss = train(params, state, batch, jnp.asarray(answer))
        losses.append(float(loss))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_max_pool_is_the_textbook_one():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 6, 3)), jnp.float32)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 3, 3)), jnp.float32)

    def textbook(x):
        return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))

    assert np.array_equal(convolution.max_pool(x), textbook(x))
    ours, theirs = (
        jax.grad(lambda x, pool=pool: jnp.sum(pool(x) * weights))(x) for pool in (convolution.max_pool, textbook)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("channels", [(3, 4), (5, 2)])
@pytest.mark.parametrize("size, stride", [(1, 1), (1, 2), (2, 2), (3, 1), (3, 2), (7, 2)])
def test_convolve_and_its_gradients_equal_torch(size, stride, channels):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 10, 8, channels[0])).astype(np.float32)
    kernel = rng.normal(size=(size, size, *channels)).astype(np.float32)
    torch_x, torch_kernel = (torch.tensor(array, requires_grad=True) for array in (x, kernel))
    theirs = torch.nn.functional.conv2d(
        torch_x.permute(0, 3, 1, 2),
        torch_kernel.permute(3, 2, 0, 1),
        stride=stride,
        padding=0 if size == stride else size // 2,
    ).permute(0, 2, 3, 1)
    cotangent = rng.normal(size=tuple(theirs.shape)).astype(np.float32)
    theirs.backward(torch.tensor(cotangent))

    ours, pull_back = jax.vjp(lambda *inputs: convolution.convolve(*inputs, stride=stride), x, kernel)
    for mine, expected in zip(
        (ours, *pull_back(jnp.asarray(cotangent))), (theirs.detach(), torch_x.grad, torch_kernel.grad), strict=True
    ):
        np.testing.assert_allclose(mine, expected.numpy(), atol=1e-5 * np.abs(expected.numpy()).max())


def test_patches_that_do_not_fit_are_refused():
    module = build_vision("nf_resnet_small")
    with pytest.raises(UserError, match=r"30x30 cannot be cut into patches of 4x4.*multiple of 4"):
        module.init(jax.random.key(0), draw_images(1, 30))
