"""int8 kernels: their rounding by hand, what it does to a real language model, and that nothing else changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.build import PACKAGE, build_towers
from frozen_jax.config import from_config_dict
from frozen_jax.data.scene_sources import DescribedScenes
from frozen_jax.errors import UserError
from frozen_jax.language_model import fingerprint_params, load_lm
from frozen_jax.models.masks import causal_mask, positions_from_mask
from frozen_jax.optim import make_optimiser
from frozen_jax.quantise import describe_quantised, quantise_lm
from frozen_jax.state import TrainState, flatten, merge, unflatten
from frozen_jax.steps import LossOptions, make_train_step
from tests.models.lm_cases import FAST_COMPILE, forward, left_padded, look_up, pair
from tests.test_steps import make_batch


def test_rounding_by_hand():
    """Each output has its own scale, its largest weight becomes 127, and an output of zeros stays zero."""
    kernel = np.array([[[12.7, 0.5, 0.0], [-6.3, -1.0, 0.0]]], np.float32)  # L=1, two inputs, three outputs
    leaves = flatten(quantise_lm({"blocks": {"up": {"kernel": kernel, "bias": np.ones((1, 3), np.float32)}}}))
    assert leaves["blocks/up/kernel"].tolist() == [[[127, 64, 0], [-63, -127, 0]]]
    np.testing.assert_allclose(leaves["blocks/up/scale"], [[0.1, 1 / 127, 1]], rtol=1e-6)
    assert leaves["blocks/up/bias"].tolist() == [[1, 1, 1]]


def widen(params):
    """Kernels as the numbers that int8 and scale stand for."""
    leaves = flatten(params)
    for path in [path for path in leaves if path.endswith("/kernel")]:
        kernel, scale = leaves[path], leaves.pop(path.removesuffix("kernel") + "scale")
        lead = int(path.startswith("blocks/"))
        ones = (1,) * (kernel.ndim - scale.ndim)
        leaves[path] = kernel * scale.reshape(*scale.shape[:lead], *ones, *scale.shape[lead:])
    return unflatten(leaves)


def logits_and_gradient(case, params):
    model = pair(case)
    tokens, mask = left_padded(rows=2, length=8)

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def run(params, embeddings):
        def loss(embeddings):
            logits = forward(model.module, params, embeddings, jnp.asarray(mask))
            return jnp.square(logits).mean(), logits

        gradient, logits = jax.grad(loss, has_aux=True)(embeddings)
        return logits, gradient

    logits, gradient = run(params, look_up(model, tokens))
    return np.asarray(logits)[mask], np.asarray(gradient)[mask]


@pytest.mark.parametrize("case", ["gpt2", "opt_350m", "llama_wide_heads"])
def test_logits_and_input_gradient_are_those_of_the_rounded_kernels(case):
    """Fused and separate projections, several input axes, with and without biases."""
    exact = jax.device_get(pair(case).params)
    rounded = quantise_lm(exact)
    for path, leaf in flatten(widen(rounded)).items():
        kernel = flatten(exact)[path]
        assert np.abs(leaf - kernel).max() <= np.abs(kernel).max() / 254 + 1e-7, path
    for ours, expected in zip(
        logits_and_gradient(case, rounded), logits_and_gradient(case, widen(rounded)), strict=True
    ):
        np.testing.assert_allclose(ours, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("case", ["gpt2", "opt_350m", "llama"])
def test_shapes_are_described_and_kernels_take_a_byte(case):
    params = jax.device_get(pair(case).params)
    rounded, described = flatten(quantise_lm(params)), flatten(describe_quantised(params))
    assert {path: (leaf.shape, leaf.dtype) for path, leaf in rounded.items()} == {
        path: (leaf.shape, leaf.dtype) for path, leaf in described.items()
    }
    kernels = {path for path in rounded if path.endswith("/kernel")}
    assert kernels and all(rounded[path].dtype == np.int8 for path in kernels)
    assert set(rounded) - set(flatten(params)) == {path.removesuffix("kernel") + "scale" for path in kernels}


def test_a_real_language_model_loses_next_to_nothing():
    """The text model of the quickstart, on sentences of its own kind."""
    lm = load_lm(PACKAGE / "assets" / "scene_gpt2", place=lambda params: params)
    scenes = DescribedScenes(16, seed=2)
    texts = [f" {scenes.record(index).captions[0]}" for index in range(16)]
    tokens = np.array([[0, *lm.tokenizer.encode(text)][:6] for text in texts], np.int32)

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def nats(params):
        everything = jnp.ones(tokens.shape, bool)
        hidden, _ = lm.module.apply(
            {"params": params},
            lm.module.apply({"params": params}, jnp.asarray(tokens), method="embed"),
            positions=positions_from_mask(everything),
            mask=causal_mask(everything),
            method="stack",
        )
        log_probs = jax.nn.log_softmax(lm.module.apply({"params": params}, hidden, method="logits"))
        return -jnp.take_along_axis(log_probs[:, :-1], tokens[:, 1:, None], axis=2).mean()

    exact, rounded = nats(lm.params), nats(quantise_lm(lm.params))
    print(f"{exact:.4f} nats a token, {rounded:.4f} with int8")
    assert exact < 2, "a model that knows nothing has nothing to lose"
    assert 0 < abs(rounded - exact) < 0.01


def test_training_through_int8_freezes_it_and_learns(tiny_config):
    tiny_config.lm.weights = "int8"
    towers = build_towers(from_config_dict(tiny_config))
    kernels = [leaf for path, leaf in flatten(towers.frozen).items() if path.endswith("kernel")]
    assert len(kernels) == 4 and all(leaf.dtype == jnp.int8 for leaf in kernels)
    optimiser = make_optimiser(from_config_dict(tiny_config).optim, towers.rules, steps=3)
    step = jax.jit(
        make_train_step(towers.model, optimiser, accumulate=1, options=LossOptions()), compiler_options=FAST_COMPILE
    )
    before = fingerprint_params(towers.frozen)
    state, losses = TrainState(towers.trainable, optimiser.init(towers.trainable)), []
    for _ in range(3):
        state, metrics = step(state, towers.frozen, make_batch(), jax.random.key(0))
        losses.append(float(metrics["loss"]))
    assert fingerprint_params(towers.frozen) == before
    assert losses[2] < losses[0]
    still = [
        path for path, leaf in flatten(state.trainable).items() if np.array_equal(leaf, flatten(towers.trainable)[path])
    ]
    assert not still
    assert "lm" in merge(state.trainable, towers.frozen)


def test_what_trains_is_not_rounded(tiny_config):
    tiny_config.lm.weights, tiny_config.lm.mode = "int8", "finetuned"
    with pytest.raises(UserError, match=r"config\.lm\.weights is 'int8'; with lm\.mode='finetuned'"):
        from_config_dict(tiny_config)
