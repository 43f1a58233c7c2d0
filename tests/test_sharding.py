"""The mesh, the rules and their coverage at full size; equal numbers on every mesh; collectives counted in the HLO."""

import collections
import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from frozen_jax.abstract import abstract_run
from frozen_jax.batch import PAD, SLOT, Batch
from frozen_jax.build import build_towers
from frozen_jax.config import MeshSettings, default_config, from_config_dict
from frozen_jax.errors import UserError
from frozen_jax.sharding import (
    bytes_per_device,
    choose_sizes,
    fit_spec,
    make_abstract_mesh,
    make_mesh,
    put_batch,
    put_params,
    shardings_of,
)
from frozen_jax.state import flatten
from frozen_jax.steps import LossOptions
from frozen_jax.train import compile_train_step, init_state, place_towers

MESHES = {
    "1x1x1": MeshSettings(1, 1, 1),
    "8x1x1": MeshSettings(8, 1, 1),
    "4x2x1": MeshSettings(4, 2, 1),
    "4x2x1, frozen cut": MeshSettings(4, 2, 1, "sharded"),
    "2x2x2, frozen cut": MeshSettings(2, 2, 2, "sharded"),
    "1x1x8": MeshSettings(1, 1, 8),
}
ARCHITECTURES = {
    "gpt2": {"model_type": "gpt2"},
    "gpt2-xl": {"model_type": "gpt2", "n_embd": 1600, "n_layer": 48, "n_head": 25},
    "opt-125m": {"model_type": "opt", "hidden_size": 768, "ffn_dim": 3072, "num_attention_heads": 12},
    "opt-350m": {
        "model_type": "opt",
        "hidden_size": 1024,
        "word_embed_proj_dim": 512,
        "ffn_dim": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "do_layer_norm_before": False,
    },
    "opt-6.7b": {
        "model_type": "opt",
        "hidden_size": 4096,
        "ffn_dim": 16384,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
    },
    "smollm2-360m": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "num_hidden_layers": 32,
        "tie_word_embeddings": True,
    },
    "tinyllama": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "num_hidden_layers": 22,
        "tie_word_embeddings": False,
    },
}
ENCODERS = {
    "nf_resnet50": {},
    "resnet50": {},
    "vit": {},
    "vit-projected": {"family": "clip", "projection_width": 512},
    "vit-plain": {"family": "plain"},
    "vit-siglip": {"family": "siglip"},
    "efficientnet_lite0": {},
}


def describe(architecture, encoder="nf_resnet50", *, mesh, devices=8, **settings):
    """A run at full size, abstractly, its language model sharded as if it were frozen."""
    config = default_config()
    config.lm.architecture, config.lm.mode = architecture, "scratch"
    config.vision.name, config.vision.options = encoder.split("-")[0], ENCODERS[encoder]
    config.data.train, config.train.batch_size = "fake:8", 64
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = mesh
    config.mesh.update(settings)
    config = from_config_dict(config)
    return abstract_run(config, make_abstract_mesh(config.mesh, devices=devices, batch_size=64), platform="tpu")


def test_the_rest_of_the_devices_goes_to_the_axis_that_asks():
    assert choose_sizes(MeshSettings(), devices=8) == (8, 1, 1)
    assert choose_sizes(MeshSettings(data=2, fsdp=-1, tensor=2), devices=256) == (2, 64, 2)
    assert choose_sizes(MeshSettings(data=1), devices=8) == (1, 1, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": 16}, r"mesh\.data is 16, .*there are 8; .*-1 for one axis"),
        ({"data": 4, "tensor": 4}, r"mesh\.data is 4, and data 4 x fsdp 1 x tensor 4 is 16 devices"),
        ({"fsdp": 3}, r"mesh\.data is -1, .*fsdp 3 x tensor 1 = 3 does not divide 8; .* 1, 2, 4, 8$"),
        ({"data": 1, "fsdp": 4}, r"batch of 6 .* 4 devices .*multiple of 4, or .* 1, 2, 3, 6$"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_with_what_would(settings, message):
    with pytest.raises(UserError, match=message):
        make_mesh(MeshSettings(**settings), batch_size=6)


def test_tensor_has_to_divide_heads_and_alternatives_are_named():
    with pytest.raises(UserError, match=r"mesh\.tensor is 8, .* 12 heads .* one of 1, 2, 3, 4, 6, 12, "):
        describe(ARCHITECTURES["gpt2"], mesh=(1, 1, 8))


@pytest.mark.parametrize(
    ("spec", "shape", "sizes", "stacked", "want"),
    [
        (P("tensor", "fsdp"), (50257, 768), (1, 8, 1), False, P(None, "fsdp")),
        (P("tensor", "fsdp"), (50257, 768), (1, 2, 4), False, P(None, "fsdp")),
        (P("tensor", "fsdp"), (50272, 768), (1, 2, 4), False, P("tensor", "fsdp")),
        (P(None, "fsdp"), (1024, 36), (1, 8, 1), False, P("fsdp", None)),
        (P(None, "fsdp"), (8, 36), (1, 8, 1), True, P(None, None)),
        (P(None, "fsdp"), (1024, 36), (8, 1, 1), False, P(None, None)),
    ],
)
def test_what_does_not_divide_moves_or_stays_whole(spec, shape, sizes, stacked, want):
    sizes = dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
    assert fit_spec(spec, shape, sizes, stacked=stacked) == want


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rules_cover_every_language_model_and_leave_little_whole(name):
    run = describe(ARCHITECTURES[name], mesh=(1, 8, 1))
    assert share_kept_whole(run, "lm") <= 0.02


@pytest.mark.parametrize("encoder", ENCODERS)
def test_rules_cover_every_encoder_and_leave_little_whole(encoder):
    run = describe(ARCHITECTURES["gpt2"], encoder, mesh=(1, 8, 1))
    assert share_kept_whole(run, "vision") <= 0.02
    assert share_kept_whole(run, "prefix") <= 0.02


def share_kept_whole(run, tower):
    leaves = flatten(run.state.trainable)
    sizes = {path: leaf.size for path, leaf in leaves.items() if path.startswith(f"{tower}/")}
    whole = [path for path in sizes if "fsdp" not in leaves[path].sharding.spec]
    return sum(sizes[path] for path in whole) / sum(sizes.values())


def test_the_optimiser_lies_as_its_parameters_do():
    run = describe(ARCHITECTURES["gpt2"], mesh=(1, 8, 1))
    params = flatten(run.state.trainable)
    moments = collections.Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(run.state.opt_state):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        owner = re.search(r"/(mu|nu)/(.*)", name)
        if owner:
            assert leaf.sharding == params[owner[2]].sharding and leaf.shape == params[owner[2]].shape
            moments[owner[1]] += 1
        else:
            assert leaf.ndim == 0 and leaf.sharding.spec == P()
    assert moments == {"mu": len(params), "nu": len(params)}
    on_device = sum(map(bytes_per_device, jax.tree.leaves(run.state)))
    assert on_device < 1.02 * 3 * 4 * sum(leaf.size for leaf in params.values()) / 8


def frozen_describe(architecture, tmp_path, **settings):
    import json

    (tmp_path / "config.json").write_text(json.dumps(architecture))
    config = default_config()
    config.lm.path, config.vision.name, config.data.train = str(tmp_path), "nf_resnet50", "fake:8"
    config.train.batch_size = 64
    config.mesh.update({"fsdp": -1, "data": 1, **settings})
    config = from_config_dict(config)
    return abstract_run(config, make_abstract_mesh(config.mesh, devices=8, batch_size=64), platform="tpu")


@pytest.mark.parametrize(
    ("name", "choice", "cut"),
    [("gpt2", "auto", False), ("opt-6.7b", "auto", True), ("gpt2", "sharded", True), ("opt-6.7b", "replicated", False)],
)
def test_a_frozen_lm_is_cut_where_it_is_large(name, choice, cut, tmp_path):
    run = frozen_describe(ARCHITECTURES[name], tmp_path, frozen=choice)
    assert run.placement.frozen_is_cut == cut
    leaves = jax.tree.leaves(run.frozen)
    assert all(leaf.dtype == "bfloat16" for leaf in leaves)
    share = sum(map(bytes_per_device, leaves)) / sum(leaf.size * 2 for leaf in leaves)
    assert share < 0.13 if cut else share == 1


# --- equal numbers -------------------------------------------------------------------------------------------------

ROWS, STEPS = 16, 20


@pytest.fixture(scope="module")
def eight_heads(tmp_path_factory):
    """A config through a random GPT-2 whose sizes eight divides, except for the vocabulary."""
    from frozen_jax.language_model import save_lm
    from frozen_jax.models.frozen import FrozenModel
    from frozen_jax.models.lm import build_lm, lm_config_from_hf
    from frozen_jax.tokenizer import train_bpe

    architecture = {"model_type": "gpt2", "vocab_size": 301, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 8}
    lm = lm_config_from_hf({**architecture, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0})
    directory = tmp_path_factory.mktemp("lm")
    tokenizer = train_bpe(["a red patch"], vocab_size=300, special_tokens=["<|endoftext|>"])
    save_lm(directory, lm, FrozenModel(build_lm(lm)).init_lm(jax.random.key(3))["lm"], tokenizer)
    config = default_config()
    config.lm.path = str(directory)
    config.vision.name = "nf_resnet_small"
    config.vision.options = {"widths": (16,), "depths": (1,), "stem_width": 16}
    config.data.train, config.data.image.size, config.data.max_tokens = "fake:8", 16, 12
    config.train.batch_size, config.train.steps = ROWS, STEPS
    config.optim.clip_norm = 1.0
    return from_config_dict(config)


def make_batches():
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        lengths = rng.integers(1, 9, ROWS)
        tokens, mask = np.full((ROWS, 12), PAD, np.int32), np.zeros((ROWS, 12), np.float32)
        tokens[:, 0], tokens[:, 1:3] = 0, SLOT
        for row, length in enumerate(lengths):
            tokens[row, 3 : 3 + length] = rng.integers(1, 300, length)
            mask[row, 3 : 3 + length] = 1
        images = rng.integers(0, 256, (ROWS, 1, 16, 16, 3), np.uint8)
        yield Batch(images, tokens, mask, np.arange(ROWS, dtype=np.int32))


@pytest.fixture(scope="module")
def trained(eight_heads):
    """Trains on a mesh, once in this module."""
    return functools.cache(lambda name: train_on(dataclasses.replace(eight_heads, mesh=MESHES[name])))


def train_on(config):
    """Returns the losses of all steps, the first step's gradient, the final parameters, and the compiled step's HLO."""
    towers = build_towers(config)
    mesh = make_mesh(config.mesh, batch_size=ROWS)
    placement = place_towers(config, towers, mesh)
    frozen_params, state = put_params(towers.frozen, placement.frozen), init_state(config, towers, placement)
    wanted = shardings_of(state)
    step = compile_train_step(towers.model, config.optim, towers.rules, LossOptions(), STEPS, placement)
    losses, gradient, compiled = [], {}, None
    for number, batch in enumerate(make_batches()):
        arguments = (state, frozen_params, put_batch(batch, mesh), jax.random.key(number))
        if compiled is None:
            compiled = step.lower(*arguments).compile()
        state, metrics = compiled(*arguments)
        losses.append([float(metrics["loss"]), float(metrics["grad_norm"])])
        if number == 0:  # Adam's first moment after one step is (1 - beta1) times the gradient, clipped
            moments = flatten(jax.device_get(find_first_moment(state.opt_state)))
            gradient = {path: leaf / (1 - config.optim.beta1) for path, leaf in moments.items()}
    assert shardings_of(state) == wanted
    return np.array(losses), gradient, flatten(jax.device_get(state.trainable)), compiled.as_text()


def find_first_moment(opt_state):
    inner = opt_state.inner_states["trainable"].inner_state
    return next(part.mu for part in jax.tree.leaves(inner, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(part, "mu"))


@pytest.mark.parametrize("name", list(MESHES)[1:])
def test_every_mesh_trains_like_one_device(trained, name):
    losses, gradient, params, _ = trained(name)
    want_losses, want_gradient, want_params, _ = trained("1x1x1")
    assert losses[-1, 0] < losses[0, 0]
    np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
    for path, want in want_gradient.items():
        np.testing.assert_allclose(gradient[path], want, atol=1e-5 * np.abs(want).max(), rtol=1e-5, err_msg=path)
    for path, want in want_params.items():
        np.testing.assert_allclose(params[path], want, atol=1e-5, rtol=1e-5, err_msg=path)


COLLECTIVE = re.compile(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\(")


def count_collectives(hlo):
    """Counts the collectives of an optimised module by kind, each channel once."""
    found = {
        (match[1], re.search(r"channel_id=(\d+)", line)[1])
        for line in hlo.splitlines()
        if (match := COLLECTIVE.search(line))
    }
    return dict(collections.Counter(kind for kind, _ in found))


GOLDEN = {
    "1x1x1": {},
    # All gradients and the sums of the loss, in one.
    "8x1x1": {"all-reduce": 1},
    # The five cut kernels are gathered once, nothing else that trains; the second all-reduce is of the parts' norms.
    "4x2x1": {"all-reduce": 2, "all-gather": 5},
    # Besides, four kernels of a layer, forward and backward, in the loop over layers; two tables.
    "4x2x1, frozen cut": {"all-reduce": 2, "all-gather": 5 + 8 + 2},
    # Two all-reduces of a layer, forward and backward; the prefix's rows; softmax, loss and accuracy over the words.
    "2x2x2, frozen cut": {"all-reduce": 2 + 4 + 4, "all-gather": 5 + 8 + 2 + 1},
    "1x1x8": {"all-reduce": 1 + 4 + 3, "all-gather": 1},
}


@pytest.mark.parametrize("name", GOLDEN)
def test_collectives_are_the_known_ones(trained, name):
    assert count_collectives(trained(name)[3]) == GOLDEN[name]
