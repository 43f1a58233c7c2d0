"""Vision transformers against transformers, through the conversion table: outputs and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from frozen_jax.convert.tables import export_tensors, import_tensors
from frozen_jax.convert.vit import vit_table
from frozen_jax.errors import UserError
from frozen_jax.models.vision import build_vision, vision_config_from_hf

SIZES = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
CLIP_PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
PLAIN_PIXELS = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def draw_model(build, config):
    """A random model with every parameter moved, biases and norms too."""
    torch.manual_seed(0)
    model = build(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def build_clip(projected):
    config = CLIPVisionConfig(**SIZES, projection_dim=12)
    model = draw_model(CLIPVisionModelWithProjection if projected else CLIPVisionModel, config)
    return model, build_vision(**vision_config_from_hf(config.to_dict(), projected=projected)), CLIP_PIXELS


def build_plain(projected):
    config = ViTConfig(**SIZES)
    return draw_model(ViTModel, config), build_vision(**vision_config_from_hf(config.to_dict())), PLAIN_PIXELS


def build_siglip(projected):
    config = SiglipVisionConfig(**SIZES)
    return draw_model(SiglipVisionModel, config), build_vision(**vision_config_from_hf(config.to_dict())), PLAIN_PIXELS


CASES = {
    "clip": (build_clip, False),
    "clip_projected": (build_clip, True),
    "plain": (build_plain, False),
    "siglip": (build_siglip, False),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    build, projected = CASES[request.param]
    model, module, (mean, std) = build(projected)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    pixels = torch.tensor(((images / 255 - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2)).float()
    return request.param, model, module, jnp.asarray(images), pixels


def read_tensors(kind, model):
    """The model's tensors under the names of published files."""
    if kind != "plain":
        return {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return {rename_plain(name): tensor.numpy() for name, tensor in model.state_dict().items()}


def rename_plain(name):
    """The names of published plain ViTs are older than those that transformers 5 has in memory."""
    if not name.startswith("layers."):
        return name
    _, layer, rest = name.split(".", 2)
    for new, old in {
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }.items():
        if rest.startswith(new):
            rest = old + rest.removeprefix(new)
            break
    return f"encoder.layer.{layer}.{rest}"


def rename_published(kind, name):
    """The name in a published file of a parameter in memory."""
    if kind == "plain":
        return f"vit.{rename_plain(name)}"
    inside = name.startswith(("vision_model.", "visual_projection."))
    return name if inside else f"vision_model.{name}"


def run_torch(kind, model, pixels):
    output = model(pixels)
    pooled = {
        "clip": lambda: output.pooler_output,
        "clip_projected": lambda: output.image_embeds,
        "plain": lambda: output.last_hidden_state[:, 0],
        "siglip": lambda: output.pooler_output,
    }[kind]()
    return pooled, output.last_hidden_state


def test_output_and_weight_gradients_equal_transformers(case):
    kind, model, module, images, pixels = case
    table = vit_table(module.config)
    params = import_tensors(table, read_tensors(kind, model), dtype=np.float32)
    weights = np.random.default_rng(1).normal(size=module.width).astype(np.float32)

    @jax.jit
    def differentiate(params):
        def score(params):
            output = module.apply({"params": params}, images)
            return jnp.sum(output.pooled * weights[None, :]), output

        return jax.grad(score, has_aux=True)(params)

    gradient, ours = differentiate(params)
    pooled, tokens = run_torch(kind, model, pixels)
    np.testing.assert_allclose(ours.pooled, pooled.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(ours.tokens, tokens.detach().numpy(), atol=1e-5)
    (pooled * torch.tensor(weights)[None, :]).sum().backward()
    exported = export_tensors(table, gradient)
    for name, parameter in model.named_parameters():
        if name.startswith("pooler."):
            continue
        expected = parameter.grad.numpy()
        actual = exported[rename_published(kind, name)]
        np.testing.assert_allclose(actual, expected, atol=1e-5 * max(1.0, np.abs(expected).max()), err_msg=name)


def test_remat_and_unrolling_change_nothing(case):
    kind, model, module, images, _ = case
    params = import_tensors(vit_table(module.config), read_tensors(kind, model), dtype=np.float32)
    plain = jax.jit(module.apply)({"params": params}, images).pooled
    other = jax.jit(module.clone(remat="full", unroll=3).apply)({"params": params}, images).pooled
    np.testing.assert_allclose(other, plain, atol=1e-6)


@pytest.mark.parametrize("kind", ["clip", "plain"])
def test_parameter_counts_of_published_sizes(kind):
    """CLIP ViT-B/32 and ViT-B/16, against transformers' own modules without memory."""
    with torch.device("meta"):
        model = (
            CLIPVisionModel(CLIPVisionConfig()) if kind == "clip" else ViTModel(ViTConfig(), add_pooling_layer=False)
        )
    module = build_vision(**vision_config_from_hf(model.config.to_dict()))
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3), jnp.uint8))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == sum(parameter.numel() for parameter in model.parameters())
    assert count == {"clip": 87_456_000, "plain": 85_798_656}[kind]


def test_bfloat16_pools_in_float32(case):
    kind, model, module, images, _ = case
    params = import_tensors(vit_table(module.config), read_tensors(kind, model), dtype=np.float32)
    exact = jax.jit(module.apply)({"params": params}, images).pooled
    rough = jax.jit(module.clone(dtype=jnp.bfloat16).apply)({"params": params}, images)
    assert rough.pooled.dtype == jnp.float32 and rough.tokens.dtype == jnp.bfloat16
    assert np.abs(rough.pooled - exact).max() < 0.05 * np.abs(exact).max()


def test_images_of_another_size_are_refused(case):
    module = case[2]
    with pytest.raises(UserError, match=r"images are 40x32, this ViT has positions for 32x32 only; set"):
        module.init(jax.random.key(0), jnp.zeros((1, 40, 32, 3), jnp.uint8))
