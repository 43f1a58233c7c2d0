"""Every family and variant against transformers, and against itself with a cache and without padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from frozen_jax.models.lm import init_cache
from frozen_jax.models.masks import cache_mask, causal_mask, positions_from_mask
from tests.models.lm_cases import CASES, Pair, forward, left_padded, pair

TOLERANCE = 1e-5


def torch_logits_and_gradient(
    model: Pair, tokens: np.ndarray, mask: np.ndarray, cotangent: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    embeddings = model.torch_model.get_input_embeddings()(torch.tensor(tokens).long()).detach().requires_grad_()
    positions = torch.tensor(np.maximum(mask.cumsum(axis=1) - 1, 0))
    logits = model.torch_model(
        inputs_embeds=embeddings, attention_mask=torch.tensor(mask).long(), position_ids=positions
    ).logits
    (logits * torch.tensor(cotangent)).sum().backward()
    return logits.detach().numpy(), embeddings.grad.numpy()


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradient_equal_torch(case: str) -> None:
    model = pair(case)
    tokens, mask = left_padded()
    cotangent = np.random.default_rng(1).normal(size=(*tokens.shape, model.config.vocab_size)).astype(np.float32)
    cotangent *= mask[:, :, None] / tokens.size
    expected, expected_gradient = torch_logits_and_gradient(model, tokens, mask, cotangent)

    @jax.jit
    def run(params, embeddings):
        def weighted(embeddings):
            logits = forward(model.module, params, embeddings, jnp.asarray(mask))
            return (logits * cotangent).sum(), logits

        gradient, logits = jax.grad(weighted, has_aux=True)(embeddings)
        return logits, gradient

    embeddings = model.module.apply({"params": model.params}, jnp.asarray(tokens), method="embed")
    logits, gradient = run(model.params, embeddings)
    assert expected[mask].std() > 0.3, "logits near zero would pass any absolute tolerance"
    assert np.abs(expected_gradient[mask]).max() > 1e-3
    np.testing.assert_allclose(np.asarray(logits)[mask], expected[mask], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(np.asarray(gradient), expected_gradient, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_cached_decode_of_left_padded_rows_equals_full_forward_of_single_rows(case: str) -> None:
    """One comparison proves two equalities: with a cache = without, and padded in a batch = alone."""
    model = pair(case)
    tokens, mask = left_padded()
    prompt, length = 16, tokens.shape[1]
    variables = {"params": model.params}
    embeddings = model.module.apply(variables, jnp.asarray(tokens), method="embed")
    positions = positions_from_mask(jnp.asarray(mask))
    cache = init_cache(model.config, batch=len(tokens), length=length + 3, dtype=jnp.float32)
    # Entries behind the end of the text are never to be seen: poison them.
    cache = jax.tree.map(lambda x: x + 1e4, cache)
    filled = jnp.pad(jnp.asarray(mask), ((0, 0), (0, 3)))

    @jax.jit
    def prefill(cache):
        return model.module.apply(
            variables,
            embeddings[:, :prompt],
            positions=positions[:, :prompt],
            mask=jnp.pad(causal_mask(jnp.asarray(mask[:, :prompt])), ((0, 0), (0, 0), (0, length + 3 - prompt))),
            cache=cache,
            cache_index=0,
            method="stack",
        )

    @jax.jit
    def step(cache, index):
        return model.module.apply(
            variables,
            jax.lax.dynamic_slice_in_dim(embeddings, index, 1, axis=1),
            positions=jax.lax.dynamic_slice_in_dim(positions, index, 1, axis=1),
            mask=cache_mask(filled, cache_index=index, queries=1),
            cache=cache,
            cache_index=index,
            method="stack",
        )

    hidden, cache = prefill(cache)
    pieces = [hidden]
    for index in range(prompt, length):
        hidden, cache = step(cache, jnp.int32(index))
        pieces.append(hidden)
    logits = model.module.apply(variables, jnp.concatenate(pieces, axis=1), method="logits")

    alone = jax.jit(lambda embeddings, mask: forward(model.module, model.params, embeddings, mask))
    for row in range(len(tokens)):
        # Padding on the right keeps one shape for all rows; what stands behind a text cannot change it.
        count = int(mask[row].sum())
        single = jnp.zeros_like(embeddings[:1]).at[0, :count].set(embeddings[row, length - count :])
        expected = alone(single, (jnp.arange(length) < count)[None, :])[0, :count]
        np.testing.assert_allclose(logits[row, length - count :], expected, atol=TOLERANCE, rtol=0)
