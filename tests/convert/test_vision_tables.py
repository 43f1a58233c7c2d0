"""The tables of ResNet and ViT: bijections, published names, what is left out, errors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import ViTConfig, ViTModel

from frozen_jax.convert.resnet import resnet_table
from frozen_jax.convert.tables import export_tensors, import_tensors
from frozen_jax.convert.vit import vit_table
from frozen_jax.errors import UserError
from frozen_jax.models.vision import build_vision, vision_config_from_hf

VIT = {"image_size": 16, "patch_size": 8, "width": 8, "layers": 2, "heads": 2, "mlp_width": 12}
RESNET = {"widths": (8, 16), "depths": (2, 1), "stem_width": 4}
CASES = {
    "torchvision": ("resnet50", RESNET),
    "transformers": ("resnet50", RESNET),
    "clip": ("vit", VIT),
    "clip_projected": ("vit", {**VIT, "projection_width": 6}),
    "plain": ("vit", {**VIT, "family": "plain"}),
    "siglip": ("vit", {**VIT, "family": "siglip"}),
}


def build_case(kind):
    name, options = CASES[kind]
    module = build_vision(name, **options)
    table = resnet_table(module, layout=kind) if name == "resnet50" else vit_table(module.config)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3), jnp.uint8))["params"]
    rng = np.random.default_rng(0)
    return table, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("kind", CASES)
def test_round_trip_is_the_identity_and_covers_every_parameter(kind):
    table, params = build_case(kind)
    tensors = export_tensors(table, params)
    back = import_tensors(table, tensors, dtype=np.float32)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)
    again = export_tensors(table, back)
    assert again.keys() == tensors.keys()
    assert all(np.array_equal(again[name], tensors[name]) for name in tensors)
    assert sum(tensor.size for tensor in tensors.values()) == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_resnet50_has_the_published_names():
    """torchvision's state dict of ResNet-50: 320 entries, of which 53 count batches and 2 are the classifier's."""
    table = resnet_table(build_vision("resnet50"))
    shapes = {rule.name: rule.torch_shape for rule in table.rules}
    assert len(shapes) == len(table.rules) == 320 - 53 - 2
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["bn1.running_var"] == (64,)
    assert shapes["layer1.0.conv2.weight"] == (64, 64, 3, 3)
    assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert shapes["layer3.5.bn3.bias"] == (1024,)
    assert shapes["layer4.0.downsample.1.running_mean"] == (2048,)
    assert "layer4.1.downsample.0.weight" not in shapes


def test_both_resnet_layouts_are_the_same_model():
    ours, params = build_case("torchvision")
    theirs, _ = build_case("transformers")

    def rename(name):
        name = name.removeprefix("resnet.").replace("embedder.embedder.convolution", "conv1")
        name = name.replace("embedder.embedder.normalization", "bn1")
        name = re.sub(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.", lambda m: f"layer{int(m[1]) + 1}.{m[2]}.", name)
        name = re.sub(r"layer\.(\d)\.convolution", lambda m: f"conv{int(m[1]) + 1}", name)
        name = re.sub(r"layer\.(\d)\.normalization", lambda m: f"bn{int(m[1]) + 1}", name)
        return name.replace("shortcut.convolution", "downsample.0").replace("shortcut.normalization", "downsample.1")

    expected = export_tensors(ours, params)
    renamed = {rename(name): tensor for name, tensor in export_tensors(theirs, params).items()}
    assert renamed.keys() == expected.keys()
    assert all(np.array_equal(renamed[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "kind, others",
    [
        ("torchvision", ["fc.weight", "fc.bias", "bn1.num_batches_tracked", "layer1.0.bn2.num_batches_tracked"]),
        ("transformers", ["classifier.1.weight", "resnet.embedder.embedder.normalization.num_batches_tracked"]),
        ("clip", ["vision_model.embeddings.position_ids", "text_model.final_layer_norm.bias", "logit_scale"]),
        ("clip", ["visual_projection.weight", "text_projection.weight"]),
        ("plain", ["vit.pooler.dense.weight", "classifier.bias"]),
    ],
)
def test_what_serves_other_purposes_is_left_out(kind, others):
    table, params = build_case(kind)
    tensors = export_tensors(table, params)
    extra = {name: np.zeros(3, np.float32) for name in others}
    jax.tree.map(np.testing.assert_array_equal, import_tensors(table, {**tensors, **extra}, dtype=np.float32), params)


@pytest.mark.parametrize("kind", CASES)
def test_missing_unexpected_and_wrongly_shaped_tensors_are_named(kind):
    table, params = build_case(kind)
    tensors = export_tensors(table, params)
    name = next(iter(tensors))
    plain = table.strip(name)
    with pytest.raises(UserError, match=re.escape(plain)):
        import_tensors(table, {k: v for k, v in tensors.items() if k != name}, dtype=np.float32)
    with pytest.raises(UserError, match="stranger"):
        import_tensors(table, {**tensors, "stranger": np.zeros(2, np.float32)}, dtype=np.float32)
    with pytest.raises(UserError, match=re.escape(name)):
        import_tensors(table, {**tensors, name: np.zeros((2, 2), np.float32)}, dtype=np.float32)


def test_unknown_layout_is_named():
    with pytest.raises(UserError, match="layout 'keras' is unknown; choose one of torchvision, transformers"):
        resnet_table(build_vision("resnet50", **RESNET), layout="keras")


def test_exported_vit_is_read_by_transformers(tmp_path):
    config = ViTConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    module = build_vision(**vision_config_from_hf(config.to_dict()))
    table, params = build_case("plain")
    config.save_pretrained(tmp_path)
    save_file(export_tensors(table, params), tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, report = ViTModel.from_pretrained(tmp_path, add_pooling_layer=False, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    with torch.no_grad():
        theirs = model(torch.tensor(images.transpose(0, 3, 1, 2) / 127.5 - 1).float()).last_hidden_state.numpy()
    ours = jax.jit(module.apply)({"params": params}, jnp.asarray(images)).tokens
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
