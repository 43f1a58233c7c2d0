"""Heads on features: the optimum of a convex problem, and what a hidden layer adds."""

import numpy as np

from frozen_jax.heads import DECAY, fit_head


def make_features(count=300, width=4, seed=0):
    return np.random.default_rng(seed).normal(3.0, 2.0, (count, width)).astype(np.float32)


def test_a_linear_probe_is_at_its_optimum():
    """The gradient by hand, of the mean cross-entropy and the decay, is 0 there."""
    x = make_features()
    labels = (x @ np.array([1.0, -1.0, 0.5, 0.0]) + np.random.default_rng(1).normal(size=300) > 1.5).astype(int)
    targets = np.eye(2)[labels]
    head = fit_head(x, targets, exclusive=True)
    logits = head.logits(x)
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    scaled = (x - x.mean(0)) / x.std(0)
    gradient = scaled.T @ (chances - targets) / len(x) + DECAY * head.params["out"]["kernel"]
    assert np.abs(gradient).max() < 1e-4
    assert (logits.argmax(1) == labels).mean() > 0.75


def test_a_hidden_layer_reads_what_a_linear_probe_cannot():
    x = make_features(width=2) - 3
    labels = ((x[:, 0] > 0) ^ (x[:, 1] > 0)).astype(int)
    accuracy = [
        (fit_head(x, np.eye(2)[labels], exclusive=True, hidden=n).logits(x).argmax(1) == labels).mean() for n in (0, 16)
    ]
    assert accuracy[0] < 0.7 and accuracy[1] > 0.9


def test_tags_are_decided_one_by_one():
    x = make_features()
    targets = np.stack([x[:, 0] > 3, x[:, 1] > 3, np.ones(300)], axis=1)
    assert ((fit_head(x, targets, exclusive=False).logits(x) > 0) == (targets > 0)).mean() > 0.95
