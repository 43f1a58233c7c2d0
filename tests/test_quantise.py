"""int8 kernels: their rounding by hand, what it does to a real language model, and that nothing else changes."""

import dataclasses
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
    """The text model of the quickstart on what it was trained for: descriptions, questions, and its loss on answers."""
    exact = load_lm(PACKAGE / "assets" / "scene_gpt2")
    rounded = dataclasses.replace(exact, params=quantise_lm(jax.device_get(exact.params)))
    scenes, losses, distances = DescribedScenes(8, seed=2), [], []
    for index in range(8):
        scene = scenes.record(index)
        question = scene.questions[0]
        text = f" {scene.captions[0]} Question: {question.text} Answer:"
        prompt = [0, *exact.tokenizer.encode(text)]
        (answer,) = exact.tokenizer.encode(f" {question.answers[0]}")
        tokens = np.array([(prompt + 16 * [0])[:24]], np.int32)  # one length, compiled once
        before, after = (np.asarray(jax.nn.log_softmax(lm.logits(tokens)))[0] for lm in (exact, rounded))
        losses.append((-before[len(prompt) - 1, answer], -after[len(prompt) - 1, answer]))
        distances.append((np.exp(before) * (before - after)).sum(axis=-1).mean())
    loss, loss_with_int8 = np.mean(losses, axis=0)
    print(f"loss {loss:.5f} nats, with int8 {loss_with_int8:.5f}; KL at all words {np.mean(distances):.5f} nats")
    assert loss < 0.01, "a model that knows nothing has nothing to lose"
    assert abs(loss_with_int8 - loss) < 1e-3
    assert 0 < np.mean(distances) < 0.01


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
