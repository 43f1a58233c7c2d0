"""Encoders with published weights: loaded into a run, frozen or not, and what does not fit is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from frozen_jax.build import build_towers
from frozen_jax.config import from_config_dict
from frozen_jax.convert.resnet import resnet_table
from frozen_jax.convert.tables import export_tensors
from frozen_jax.convert.vit import vit_table
from frozen_jax.errors import UserError
from frozen_jax.models.vision import build_vision
from frozen_jax.pretrained_vision import load_vision
from frozen_jax.state import flatten

VIT = {"image_size": 16, "patch_size": 8, "width": 8, "layers": 2, "heads": 2, "mlp_width": 12}
RESNET = {"widths": (8, 16), "depths": (1, 1), "stem_width": 4}


def save(directory, name, options, *, layout="torchvision", seed=0):
    """Writes random weights under their published names; returns them as ours."""
    module = build_vision(name, **options)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3), jnp.uint8))["params"]
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    table = vit_table(module.config) if name == "vit" else resnet_table(module, layout=layout)
    save_file(export_tensors(table, params), directory / "model.safetensors")
    return params


@pytest.mark.parametrize("freeze", [True, False])
def test_a_run_takes_the_weights_and_freezes_them_on_request(tiny_config, tmp_path, freeze):
    expected = save(tmp_path, "vit", VIT)
    tiny_config.vision.name, tiny_config.vision.options = "vit", VIT
    tiny_config.vision.path, tiny_config.vision.freeze = str(tmp_path), freeze
    towers = build_towers(from_config_dict(tiny_config))
    side, other = (towers.frozen, towers.trainable) if freeze else (towers.trainable, towers.frozen)
    assert set(towers.trainable) == ({"prefix"} if freeze else {"prefix", "vision"})
    assert "vision" not in other
    for path, leaf in flatten(expected).items():
        np.testing.assert_array_equal(flatten(side["vision"])[path], leaf, err_msg=path)


@pytest.mark.parametrize("layout", ["torchvision", "transformers"])
def test_a_resnets_layout_is_recognised(tmp_path, layout):
    expected = save(tmp_path, "resnet50", RESNET, layout=layout)
    loaded = load_vision(str(tmp_path), build_vision("resnet50", **RESNET))
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def test_what_does_not_fit_is_refused(tmp_path):
    save(tmp_path, "vit", VIT)
    with pytest.raises(UserError, match=rf"vision encoder {tmp_path}: .*belong"):
        load_vision(str(tmp_path), build_vision("vit", **{**VIT, "mlp_width": 16}))
    with pytest.raises(UserError, match="'resnet50' and 'vit' alone"):
        load_vision(str(tmp_path), build_vision("nf_resnet_small"))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("vit", {"freeze": True}, r"config\.vision\.freeze is True; an encoder drawn at random would stay so"),
        ("", {"freeze": True}, r"config\.vision\.freeze is True; there is no encoder"),
        ("", {"path": "clip"}, r"config\.vision\.path is 'clip'; there is no encoder"),
    ],
)
def test_contradictions_are_refused(tiny_config, name, settings, message):
    given = tiny_config.to_dict()
    given["lm"]["mode"] = "frozen" if name else "finetuned"
    given["vision"] = {"name": name, **settings}
    with pytest.raises(UserError, match=message):
        from_config_dict(given)
