"""The encoders by name, options from config.json files, errors, and the pixel normalisation."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.errors import UserError
from frozen_jax.models.pixels import normalise
from frozen_jax.models.vision import BUILDERS, FROZEN_STATISTICS, build_vision, vision_config_from_hf

TINY_VIT = {"image_size": 16, "patch_size": 8, "width": 8, "layers": 1, "heads": 2, "mlp_width": 8}
TINY = {
    "nf_resnet50": {"widths": (8, 16), "depths": (1, 1), "stem_width": 8},
    "nf_resnet_small": {},
    "resnet50": {"widths": (8, 16), "depths": (1, 1), "stem_width": 8},
    "vit": TINY_VIT,
    "efficientnet_lite0": {},
}


@pytest.mark.parametrize("name", BUILDERS)
def test_every_encoder_keeps_the_interface(name):
    module = build_vision(name, **TINY[name], dtype=jnp.bfloat16)
    images = jnp.zeros((2, 16, 16, 3), jnp.uint8)
    params = jax.eval_shape(module.init, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    output = jax.eval_shape(module.apply, params, images)
    assert output.pooled.shape == (2, module.width) and output.pooled.dtype == jnp.float32
    assert output.tokens.shape[0] == 2 and output.tokens.dtype == jnp.bfloat16
    assert hash(module) == hash(build_vision(name, **TINY[name], dtype=jnp.bfloat16))


@pytest.mark.parametrize("name", BUILDERS)
def test_frozen_statistics_match_those_of_batch_normalisation_and_nothing_else(name):
    module = build_vision(name, **TINY[name])
    params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((2, 16, 16, 3), jnp.uint8))["params"]
    paths = ["/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    matched = [path for path in paths if re.fullmatch(FROZEN_STATISTICS, path)]
    convolutions = sum(path.endswith("/kernel") for path in paths)
    assert len(matched) == (2 * convolutions if name in ("resnet50", "efficientnet_lite0") else 0)


def test_small_nf_resnet_is_as_small_as_stated():
    module = build_vision("nf_resnet_small")
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
    params = jax.eval_shape(module.init, jax.random.key(0), images)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 309_123
    images = jax.ShapeDtypeStruct((16, 64, 64, 3), jnp.uint8)
    flops = jax.jit(module.apply).lower(params, images).cost_analysis()["flops"] / 16
    assert 20e6 < flops < 25e6


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_normalise(dtype):
    images = np.zeros((1, 1, 2, 3), np.uint8)
    images[0, 0] = [[0, 51, 255], [255, 102, 0]]
    mean, std = (0.1, 0.2, 0.5), (0.2, 0.4, 0.25)
    expected = [[[[-0.5, 0.0, 2.0], [4.5, 0.5, -2.0]]]]
    result = normalise(jnp.asarray(images), mean, std, dtype)
    assert result.dtype == dtype
    np.testing.assert_allclose(result.astype(jnp.float32), expected, atol=1e-6)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("resnet18", {}, "vision.name = 'resnet18' is not an encoder; choose one of nf_resnet50, nf_resnet_small"),
        ("resnet50", {"depth": 3}, "vision.depth is not an option of resnet50; its options are widths, depths"),
        ("nf_resnet50", {"stem": "big"}, "vision.stem = 'big' is unknown; choose one of resnet, conv, patch"),
        ("nf_resnet50", {"activation": "tanh"}, "vision.activation = 'tanh' is unknown; choose one of relu, gelu"),
        ("nf_resnet50", {"widths": (8, 8)}, "vision.depths = (3, 4, 6, 3) need one positive number for each stage"),
        ("nf_resnet50", {"stem_width": 0}, "vision.stem_width = 0 must be positive"),
        ("resnet50", {"widths": (), "depths": ()}, "vision.widths = () and vision.depths = ()"),
        ("resnet50", {"widths": (8,), "depths": (10**12,)}, "are 1000000000000 blocks; there may be at most 10000"),
        ("resnet50", {"widths": (6,), "depths": (1,)}, "vision.widths = (6,) must be multiples of 4"),
        (
            "resnet50",
            {"widths": "8"},
            "vision.widths = '8' must be a list of whole numbers, like (256, 512, 1024, 2048)",
        ),
        ("resnet50", {"stem_width": True}, "vision.stem_width = True must be of type int, like 64"),
        ("nf_resnet50", {"bottleneck": 1}, "vision.bottleneck = 1 must be of type bool, like True"),
        ("vit", {"norm_epsilon": "1e-5"}, "vision.norm_epsilon = '1e-5' must be of type float, like 1e-05"),
        ("vit", {"family": "dino"}, "vision.family = 'dino' is unknown; choose one of clip, plain"),
        ("vit", {"activation": "tanh"}, "vision.activation = 'tanh' is unknown"),
        ("vit", {"patch_size": 30}, "vision.image_size = 224 is no multiple of vision.patch_size = 30"),
        ("vit", {"heads": 7}, "vision.heads = 7 must divide vision.width = 768"),
        ("vit", {"layers": 0}, "vision.unroll = 1 must lie in [1, 0]"),
        ("vit", {"width": 0}, "vision.width = 0 must be positive"),
        ("vit", {"family": "plain", "projection_width": 5}, "only the family clip has a projection"),
        ("vit", {"remat": "some"}, "vision.remat = 'some' is unknown; choose one of none, full, dots"),
        ("vit", {"unroll": 13}, "vision.unroll = 13 must lie in [1, 12]"),
    ],
)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        build_vision(name, **options)


def test_options_from_json_are_taken():
    module = build_vision("resnet50", widths=[8, 16], depths=[1, 1])
    assert (module.widths, module.depths) == ((8, 16), (1, 1))
    assert build_vision("vit", **TINY_VIT, norm_epsilon=1).config.norm_epsilon == 1.0


@pytest.mark.parametrize(
    "config, projected, message",
    [
        ({"model_type": "dinov2"}, False, "model_type = 'dinov2' is not a vision encoder of this project"),
        ({"model_type": "resnet"}, True, "model_type = 'resnet' with a projected feature"),
        ({"model_type": "vit"}, True, "a ViT of the family plain has no projection"),
        ({"model_type": "clip"}, False, "vision_config is missing"),
        ({"model_type": "resnet", "layer_type": "basic"}, False, "layer_type = 'basic' is not supported"),
        ({"model_type": "resnet", "downsample_in_bottleneck": True}, False, "downsample_in_bottleneck = True"),
        ({"model_type": "resnet", "depths": "3"}, False, "depths = '3' is not supported"),
        ({"model_type": "vit", "qkv_bias": False}, False, "qkv_bias = False is not supported"),
        ({"model_type": "vit", "hidden_act": "tanh"}, False, "hidden_act = 'tanh' is not supported"),
        ({"model_type": "clip_vision_model", "rotary": 1}, False, "rotary = 1 is not supported"),
    ],
)
def test_bad_configs_are_named(config, projected, message):
    with pytest.raises(UserError, match=re.escape(message)):
        vision_config_from_hf(config, projected=projected)


def test_whole_clip_is_read_from_its_image_tower():
    config = {"model_type": "clip", "projection_dim": 6, "text_config": {}, "vision_config": {"patch_size": 16}}
    options = vision_config_from_hf(config, projected=True)
    assert (options["name"], options["patch_size"], options["projection_width"]) == ("vit", 16, 6)
    assert vision_config_from_hf(config)["projection_width"] == 0


def test_whole_siglip_is_read_from_its_image_tower():
    options = vision_config_from_hf({"model_type": "siglip", "text_config": {}, "vision_config": {"patch_size": 16}})
    assert (options["name"], options["family"], options["patch_size"]) == ("vit", "siglip", 16)
    with pytest.raises(UserError, match="vision_config is missing"):
        vision_config_from_hf({"model_type": "siglip"})
