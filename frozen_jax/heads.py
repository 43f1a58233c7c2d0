"""Heads on an encoder's features: what a simple classifier reads out of them, to compare a language model with.

A linear probe, or one with a hidden layer, is fitted to all features at once by L-BFGS; the encoder stays as it is.
Used by `tasks/classify.py` and `tasks/tag.py`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Float32

from frozen_jax.state import Params

DECAY = 1e-3
"""Half of it times the squared kernels is added to the mean loss of an example."""

STEPS = 150


class Head(NamedTuple):
    """A fitted head: features less `mean` over `deviation`, then one or two layers."""

    mean: Float[np.ndarray, " E"]
    deviation: Float[np.ndarray, " E"]
    params: Params

    def logits(self, features: Float[np.ndarray, "R E"]) -> Float32[np.ndarray, "R C"]:
        """Returns the scores of classes or tags."""
        return np.asarray(_apply(self.params, jnp.asarray((features - self.mean[None]) / self.deviation[None])))


def fit_head(
    features: Float[np.ndarray, "R E"],
    targets: Float[np.ndarray, "R C"],
    *,
    exclusive: bool,
    hidden: int = 0,
    seed: int = 0,
) -> Head:
    """Fits a head.

    Args:
        features: of the training pictures; they are standardised here.
        targets: 1 where a class or tag is right, else 0.
        exclusive: one class for each picture (softmax), or any number of tags (a sigmoid for each).
        hidden: width of a hidden layer; 0 is a linear probe.
        seed: of the hidden layer's first weights.
    """
    mean, deviation = features.mean(axis=0), features.std(axis=0) + 1e-6
    width, classes = features.shape[1], targets.shape[1]
    params: Params = {"out": {"kernel": jnp.zeros((hidden or width, classes)), "bias": jnp.zeros(classes)}}
    if hidden:
        kernel = jax.random.normal(jax.random.key(seed), (width, hidden)) * np.sqrt(2 / width)
        params["in"] = {"kernel": kernel, "bias": jnp.zeros(hidden)}
    scaled = jnp.asarray((features - mean[None]) / deviation[None], jnp.float32)
    fitted = _fit(params, scaled, jnp.asarray(targets, jnp.float32), exclusive=exclusive)
    return Head(mean, deviation, jax.device_get(fitted))


def _apply(params: Params, x: Float[Array, "R E"]) -> Float[Array, "R C"]:
    if "in" in params:
        x = jax.nn.gelu(x @ params["in"]["kernel"] + params["in"]["bias"][None])
    logits: Array = x @ params["out"]["kernel"] + params["out"]["bias"][None]
    return logits


@functools.partial(jax.jit, static_argnames=("exclusive",))
def _fit(params: Params, features: Float[Array, "R E"], targets: Float[Array, "R C"], *, exclusive: bool) -> Params:
    def loss(params: Params) -> Float[Array, ""]:
        logits = _apply(params, features)
        if exclusive:
            each = optax.softmax_cross_entropy(logits, targets)
        else:
            each = optax.sigmoid_binary_cross_entropy(logits, targets).sum(axis=1)
        squares = sum(jnp.sum(jnp.square(layer["kernel"])) for layer in params.values())
        return jnp.mean(each) + DECAY / 2 * squares

    solver = optax.lbfgs()
    value_and_gradient = optax.value_and_grad_from_state(loss)

    def step(carry: tuple[Params, optax.OptState], _: None) -> tuple[tuple[Params, optax.OptState], None]:
        params, state = carry
        value, gradient = value_and_gradient(params, state=state)
        updates, state = solver.update(gradient, state, params, value=value, grad=gradient, value_fn=loss)
        return (optax.apply_updates(params, updates), state), None

    (fitted, _), _ = lax.scan(step, (params, solver.init(params)), None, length=STEPS)
    result: Params = fitted
    return result
