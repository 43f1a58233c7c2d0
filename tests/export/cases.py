"""Small random models of every language model family and encoder, and a workdir that holds one as a trained run."""

from __future__ import annotations

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from frozen_jax.api import Model
from frozen_jax.build import build_towers
from frozen_jax.config import default_config, from_config_dict, to_dict
from frozen_jax.data.images import ImageOptions
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.models.lm import build_lm, lm_config_from_hf
from frozen_jax.models.prefix import Prefix
from frozen_jax.models.vision import build_vision
from frozen_jax.restore import open_checkpoints
from frozen_jax.sharding import make_mesh
from frozen_jax.state import flatten, unflatten
from frozen_jax.tokenizer import Tokenizer
from frozen_jax.train import Progress, init_state, place_towers
from frozen_jax.workdir import write_json_atomic
from tests.models.lm_cases import GPT2, LLAMA, OPT

SIDE = 16
WORDS = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0}
LMS = {
    "gpt2": {**GPT2, **WORDS},
    "opt": {**OPT, **WORDS, "do_layer_norm_before": False, "word_embed_proj_dim": 16},  # as OPT-350m
    "llama": {**LLAMA, **WORDS},
}
VIT = {"image_size": SIDE, "patch_size": 8, "width": 8, "layers": 1, "heads": 2, "mlp_width": 12}
ENCODERS = {
    "nf_resnet": ("nf_resnet50", {"widths": (8, 16), "depths": (1, 2), "stem": "resnet", "stem_width": 4}),
    "nf_resnet_small": (
        "nf_resnet_small",
        {"widths": (8, 12), "depths": (1, 1), "stem_width": 4, "activation": "gelu"},
    ),
    "resnet": ("resnet50", {"widths": (8, 16), "depths": (2, 1), "stem_width": 4}),
    "clip": ("vit", {"image_size": SIDE, "patch_size": 8, "width": 8, "layers": 2, "heads": 2, "mlp_width": 12}),
    "clip_projected": (
        "vit",
        {
            "image_size": SIDE,
            "patch_size": 8,
            "width": 8,
            "layers": 1,
            "heads": 2,
            "mlp_width": 12,
            "projection_width": 6,
        },
    ),
    "plain": (
        "vit",
        {
            "family": "plain",
            "image_size": SIDE,
            "patch_size": 8,
            "width": 8,
            "layers": 1,
            "heads": 1,
            "mlp_width": 12,
            "activation": "gelu",
        },
    ),
}


def draw(shapes):
    """Random parameters that no test can mistake for each other, of a size that keeps logits of order one."""

    def fill(path, leaf):
        rng = np.random.default_rng(zlib.crc32(path.encode()))
        if path.endswith("var"):
            return rng.uniform(0.5, 2, leaf.shape).astype(np.float32)
        if leaf.ndim < 2 or path.endswith(("scale", "bias", "gain")):
            center = 1.0 if path.endswith(("scale", "gain")) else 0.0
            return np.asarray(center + 0.2 * rng.normal(size=leaf.shape), np.float32)
        inputs = np.prod(leaf.shape[:-1]) if path.startswith(("vision", "generator")) else leaf.shape[-1]
        return (rng.normal(size=leaf.shape) * inputs**-0.5).astype(np.float32)

    return unflatten({path: fill(path, leaf) for path, leaf in flatten(shapes).items()})


@functools.cache
def build_network(lm, encoder):
    config = lm_config_from_hf(LMS[lm])
    name, options = ENCODERS[encoder]
    prefix = Prefix(
        length=2,
        width=config.embed_width,
        embedding_rms=0.31,
        layer_norm=encoder != "resnet",
        feature_norm=encoder != "nf_resnet",
        kind="mlp" if encoder == "plain" else "linear",
        hidden=10,
    )
    return FrozenModel(build_lm(config), build_vision(name, **options), prefix)


def build_model(lm, encoder, tokenizer_directory):
    network = build_network(lm, encoder)
    shapes = jax.eval_shape(
        lambda key: {**network.init_vision(key, image_size=SIDE), **network.init_lm(key)}, jax.random.key(0)
    )
    images = ImageOptions(size=SIDE)
    params = jax.tree.map(jnp.asarray, draw(shapes))
    return Model(network, params, Tokenizer.from_directory(tokenizer_directory), images, bos=True)


def save_run(config, directory, *, fill=False):
    """Writes the workdir of a run that has one checkpoint, without training; returns the resolved config.

    With `fill` what trains is random throughout (`draw`): a generator that begins as nothing then draws something.
    """
    config = from_config_dict(config)
    towers = build_towers(config)
    if fill:
        towers = towers._replace(trainable=jax.tree.map(jnp.asarray, draw(towers.trainable)))
    state = init_state(config, towers, place_towers(config, towers, make_mesh(config.mesh, batch_size=8)))
    directory.mkdir()
    write_json_atomic(directory / "config.json", to_dict(config))
    checkpoints = open_checkpoints(config, towers, directory)
    checkpoints.save(1, state, position=Progress(step=1, best_step=1, best_loss=1.0)._asdict(), best=True)
    checkpoints.close()
    return config


def describe(tiny_lm):
    """Returns the settings of a run with a CLIP tower."""
    config = default_config()
    config.lm.path = str(tiny_lm)
    config.vision.name, config.vision.options = ENCODERS["clip_projected"]
    config.prefix.layer_norm = config.prefix.feature_norm = config.data.bos = True
    config.data.train = config.data.validation = "fake:8"
    config.data.image.size = SIDE
    config.train.batch_size = 8
    return config


def same(one, other):
    """Whether two trees hold the same numbers under the same names."""
    a, b = flatten(one), flatten(other)
    return a.keys() == b.keys() and all(np.array_equal(np.asarray(a[path]), np.asarray(b[path])) for path in a)
