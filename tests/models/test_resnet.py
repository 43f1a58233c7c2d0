"""ResNet v1.5 against transformers, through the conversion table: outputs, gradients, fixed statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import ResNetConfig, ResNetModel

from frozen_jax.convert.resnet import resnet_table
from frozen_jax.convert.tables import export_tensors, import_tensors
from frozen_jax.models.vision import build_vision, vision_config_from_hf


def draw_torch_resnet():
    """A small ResNet with every weight and statistic moved away from its initial value."""
    torch.manual_seed(0)
    model = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[16, 32, 64], depths=[2, 1, 2])).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif name.endswith(("running_mean", "normalization.bias")):
                tensor.normal_(0, 0.2)
            elif name.endswith("normalization.weight"):
                tensor.uniform_(0.3, 1.0)
    return model


@pytest.fixture(scope="module")
def case():
    model = draw_torch_resnet()
    module = build_vision(**vision_config_from_hf(model.config.to_dict()))
    table = resnet_table(module, layout="transformers")
    params = import_tensors(table, {k: v.numpy() for k, v in model.state_dict().items()}, dtype=np.float32)
    images = np.random.default_rng(0).integers(0, 256, (3, 46, 37, 3), dtype=np.uint8)
    pixels = (images / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    return model, module, table, params, jnp.asarray(images), torch.tensor(pixels.transpose(0, 3, 1, 2)).float()


def assert_close(ours, theirs, *, relative):
    """Compares with the largest value of the tensor as the scale."""
    np.testing.assert_allclose(ours, theirs, atol=relative * np.abs(theirs).max(), rtol=0)


def test_output_equals_transformers(case):
    model, module, _, params, images, pixels = case
    ours = jax.jit(module.apply)({"params": params}, images)
    with torch.no_grad():
        theirs = model(pixels)
    assert_close(ours.pooled, theirs.pooler_output[:, :, 0, 0].numpy(), relative=1e-5)
    assert_close(ours.tokens, theirs.last_hidden_state.flatten(2).transpose(1, 2).numpy(), relative=1e-5)
    assert module.width == 64


def test_weight_gradients_equal_transformers(case):
    model, module, table, params, images, pixels = case
    weights = np.random.default_rng(1).normal(size=64).astype(np.float32)

    @jax.jit
    def differentiate(params):
        return jax.grad(lambda p: jnp.sum(module.apply({"params": p}, images).pooled * weights[None, :]))(params)

    ours = export_tensors(table, differentiate(params))
    model.zero_grad()
    (model(pixels).pooler_output[:, :, 0, 0] * torch.tensor(weights)[None, :]).sum().backward()
    for name, parameter in model.named_parameters():
        assert_close(ours[f"resnet.{name}"], parameter.grad.numpy(), relative=1e-4)


def test_feature_of_an_image_does_not_depend_on_the_batch(case):
    _, module, _, params, images, _ = case
    encode = jax.jit(module.apply, static_argnames="deterministic")
    alone = encode({"params": params}, images[:1], deterministic=False).pooled
    np.testing.assert_allclose(encode({"params": params}, images).pooled[:1], alone, rtol=1e-5, atol=1e-6)


def test_parameter_count_of_resnet50():
    """25,557,032 with the classifier of 2048 x 1000 + 1000, which is not part of the encoder."""
    module = build_vision("resnet50")
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3), jnp.uint8))
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    statistics = sum(leaf.size for path, leaf in leaves if path[-1].key in ("mean", "var"))
    total = sum(leaf.size for _, leaf in leaves)
    assert (total - statistics, statistics) == (25_557_032 - 2_049_000, 53_120)


def test_bfloat16_stays_close(case):
    model, module, _, params, images, _ = case
    exact = jax.jit(module.apply)({"params": params}, images).pooled
    options = vision_config_from_hf(model.config.to_dict())
    rough = jax.jit(build_vision(**options, dtype=jnp.bfloat16).apply)({"params": params}, images)
    assert rough.tokens.dtype == jnp.bfloat16 and rough.pooled.dtype == jnp.float32
    assert_close(rough.pooled, exact, relative=0.03)
