from __future__ import annotations

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from frozen_jax.errors import UserError
from frozen_jax.models.layers import contract, count_parameters
from frozen_jax.models.lm import build_lm, init_cache, lm_config_from_hf
from frozen_jax.models.published import PUBLISHED
from tests.models.lm_cases import CASES, FAST_COMPILE, GPT2, LLAMA, forward, left_padded, look_up, pair

COUNTS = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "facebook/opt-125m": 125_239_296,
    "facebook/opt-350m": 331_196_416,
    "facebook/opt-1.3b": 1_315_758_080,
    "facebook/opt-2.7b": 2_651_596_800,
    "facebook/opt-6.7b": 6_658_473_984,
    "facebook/opt-13b": 12_853_473_280,
    "facebook/opt-30b": 29_974_540_288,
    "facebook/opt-66b": 65_719_701_504,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "HuggingFaceTB/SmolLM3-3B": 3_075_098_624,
    "TinyLlama/TinyLlama_v1.1": 1_100_048_384,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Meta-Llama-3-70B": 70_553_706_496,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "Qwen/Qwen2-0.5B": 494_032_768,
    "Qwen/Qwen2-7B": 7_615_616_512,
}
"""Parameters of published models, a tied head counted once."""


def test_every_published_shape_is_counted() -> None:
    assert set(COUNTS) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_size_has_the_published_count(name: str) -> None:
    raw, count = PUBLISHED[name], COUNTS[name]
    module = build_lm(lm_config_from_hf(raw))
    tree = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2), jnp.int32))["params"]
    assert count_parameters(tree) == count
    with torch.device("meta"):
        reference = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**raw))
    assert reference.num_parameters() == count


@pytest.mark.parametrize("case", CASES)
def test_config_survives_export(case: str) -> None:
    config = lm_config_from_hf(CASES[case])
    assert lm_config_from_hf(config.to_hf()) == config
    # transformers accepts what is exported, and writes back what means the same.
    again = transformers.AutoConfig.for_model(**config.to_hf()).to_diff_dict()
    assert lm_config_from_hf(again) == config


@pytest.mark.parametrize("model_type", ["t5", None, 3])
def test_unknown_family_is_named(model_type: object) -> None:
    with pytest.raises(UserError, match="model_type = .*gpt2, llama, mistral, opt, qwen2, smollm3"):
        lm_config_from_hf({"model_type": model_type})
    with pytest.raises(UserError, match="model_type"):
        lm_config_from_hf({})


def test_several_unknown_fields_are_all_named() -> None:
    with pytest.raises(UserError, match=r"alibi \(and zeta\) = 1"):
        lm_config_from_hf({**GPT2, "zeta": 2, "alibi": 1})


@pytest.mark.parametrize(
    ("options", "message"),
    [({"remat": "all"}, "remat = 'all'"), ({"unroll": 0}, "unroll = 0"), ({"unroll": 3}, r"\[1, 2\]")],
)
def test_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_lm(lm_config_from_hf(GPT2), **options)


def logits_and_gradient(case: str, module: Any) -> tuple[jax.Array, jax.Array]:
    model = pair(case)
    tokens, mask = left_padded(rows=2, length=8)

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def run(embeddings: jax.Array) -> tuple[jax.Array, jax.Array]:
        def loss(embeddings: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = forward(module, model.params, embeddings, jnp.asarray(mask))
            return jnp.square(logits).mean(), logits

        gradient, logits = jax.grad(loss, has_aux=True)(embeddings)
        return logits, gradient

    return run(look_up(model, tokens))


@pytest.mark.parametrize("case", ["gpt2_by_layer", "smollm3"])
def test_how_the_stack_is_run_changes_nothing(case: str) -> None:
    model = pair(case)
    plain = logits_and_gradient(case, model.module)
    for options in ({"remat": "full"}, {"remat": "dots"}, {"unroll": 2}):
        for ours, expected in zip(logits_and_gradient(case, build_lm(model.config, **options)), plain, strict=True):
            np.testing.assert_allclose(ours, expected, atol=1e-6, rtol=0, err_msg=str(options))


def test_remat_recomputes() -> None:
    """What "full" keeps for the backward pass is one residual stream per layer; "none" keeps much more."""
    model = pair("gpt2")

    def kept(remat: str) -> int:
        module = build_lm(model.config, remat=remat)
        embeddings = jax.ShapeDtypeStruct((2, 16, 32), jnp.float32)
        mask = jnp.ones((2, 16), bool)
        _, pullback = jax.eval_shape(lambda e: jax.vjp(lambda e: forward(module, model.params, e, mask), e), embeddings)
        return sum(leaf.size for leaf in jax.tree.leaves(pullback))

    assert kept("full") < kept("dots") < kept("none")


def step_hlo(unroll: int) -> str:
    """Returns the compiled code of one cached decoding step."""
    config = lm_config_from_hf(LLAMA)
    module = build_lm(config, unroll=unroll)
    params = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2), jnp.int32))["params"]
    cache = jax.eval_shape(lambda: init_cache(config, batch=2, length=6, dtype=jnp.float32))

    def step(params, embeddings, cache, index):
        return module.apply(
            {"params": params},
            embeddings,
            positions=jnp.full((2, 1), index),
            mask=jnp.ones((2, 1, 6), bool),
            cache=cache,
            cache_index=index,
            method="stack",
        )

    embeddings = jax.ShapeDtypeStruct((2, 1, config.width), jnp.float32)
    index = jax.ShapeDtypeStruct((), jnp.int32)
    lowered = jax.jit(step, donate_argnums=2).lower(params, embeddings, cache, index)
    return lowered.compile().as_text()


def test_unrolled_stack_has_no_loop_and_copies_no_weights() -> None:
    rolled, unrolled = step_hlo(1), step_hlo(2)
    assert "while" in rolled
    assert "while" not in unrolled
    # Copies of attention's [4, 8, 32], down to [2, 8, 32], and of the MLP's kernels would double what a step reads;
    # activations are [2, 1, 32].
    copied = re.findall(r"f32\[([\d,]+)\]\S* copy\(", unrolled)
    assert not [shape for shape in copied if math.prod(map(int, shape.split(","))) >= 2 * 8 * 32]
    # The cache is updated where it is: the results alias the arguments.
    assert unrolled.split("\n")[0].count("may-alias") == 2


def test_contraction_is_the_einsum() -> None:
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 3, 4, 5)).astype(np.float32), rng.normal(size=(4, 5, 6)).astype(np.float32)
    expected = np.einsum("BSNH,NHD->BSD", x, kernel)
    np.testing.assert_allclose(contract("BSNH,NHD->BSD", jnp.asarray(x), jnp.asarray(kernel)), expected, atol=1e-5)


@pytest.mark.parametrize("case", ["gpt2", "opt", "llama"])
def test_bfloat16_computation_keeps_f32_logits_and_is_close(case: str) -> None:
    model = pair(case)
    tokens, mask = left_padded(rows=2, length=8)
    module = build_lm(model.config, dtype=jnp.bfloat16)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params)

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def run(tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        embeddings = module.apply({"params": params}, tokens, method="embed")
        return embeddings, forward(module, params, embeddings, jnp.asarray(mask))

    embeddings, logits = run(tokens)
    assert (embeddings.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
    positions = torch.tensor(np.maximum(mask.cumsum(axis=1) - 1, 0))
    with torch.no_grad():
        exact = model.torch_model(
            torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long(), position_ids=positions
        ).logits.numpy()
    error = np.abs(np.asarray(logits) - exact)[mask]
    assert 1e-4 < error.mean() < 0.05
