from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.errors import UserError
from frozen_jax.models.opt import OPTConfig
from tests.models.lm_cases import CASES, FAST_COMPILE, OPT, check_cache_and_padding, check_logits_and_gradient, pair

VARIANTS = [case for case in CASES if case.startswith("opt")]


@pytest.mark.parametrize("case", VARIANTS)
def test_equals_torch(case: str) -> None:
    check_logits_and_gradient(case)


@pytest.mark.parametrize("case", VARIANTS)
def test_cache_and_padding(case: str) -> None:
    check_cache_and_padding(case)


def test_embeddings_and_hidden_states_are_as_wide_as_the_token_table() -> None:
    """OPT-350M's layers are wider than its embeddings; whoever stands beside the embeddings need not know."""
    model = pair("opt_350m")
    assert (model.config.embed_width, model.config.width) == (16, 32)

    def run(tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        embeddings = model.module.apply({"params": model.params}, tokens, method="embed")
        mask = jnp.ones((1, 3, 3), bool)
        hidden, _ = model.module.apply(
            {"params": model.params}, embeddings, positions=tokens, mask=mask, method="stack"
        )
        return embeddings, hidden

    embeddings, hidden = jax.eval_shape(run, jax.ShapeDtypeStruct((1, 3), jnp.int32))
    assert embeddings.shape == hidden.shape == (1, 3, 16)


def test_last_position_is_in_the_table() -> None:
    """The table has two rows more than positions: the last position must not be cut off by one of them."""
    model = pair("opt")
    assert model.params["positions"]["embedding"].shape == (50, 32)

    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def at(position: jax.Array) -> jax.Array:
        hidden, _ = model.module.apply(
            {"params": model.params},
            jnp.zeros((1, 1, 32)),
            positions=position[None, None],
            mask=jnp.ones((1, 1, 1), bool),
            method="stack",
        )
        return hidden

    assert np.abs(np.asarray(at(jnp.int32(47))) - np.asarray(at(jnp.int32(46)))).max() > 0.01


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("num_attention_heads", 5, "must divide hidden_size = 32"),
        ("tie_word_embeddings", False, "embedding table"),
        ("layerdrop", 0.1, "not built here"),
        ("activation_dropout", 0.1, "not built here"),
        ("scale_embeddings", True, "as they are"),
        ("learned_embeddings", False, "learned"),
        ("activation_function", "tanh", "must be one of"),
        ("rope_theta", 1e4, "not understood"),
    ],
)
def test_unsupported_field_is_named(field: str, value: object, reason: str) -> None:
    with pytest.raises(UserError, match=rf"opt model: {field} = .*{reason}"):
        OPTConfig.from_hf({**OPT, field: value})


def test_published_config_is_read() -> None:
    """The fields that OPT-350M's own file has."""
    config = OPTConfig.from_hf(
        {
            "_name_or_path": "opt-350m",
            "_remove_final_layer_norm": False,
            "activation_dropout": 0.0,
            "activation_function": "relu",
            "architectures": ["OPTForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": 2,
            "do_layer_norm_before": False,
            "dropout": 0.1,
            "eos_token_id": 2,
            "ffn_dim": 4096,
            "hidden_size": 1024,
            "init_std": 0.02,
            "layerdrop": 0.0,
            "max_position_embeddings": 2048,
            "model_type": "opt",
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "pad_token_id": 1,
            "prefix": "</s>",
            "torch_dtype": "float16",
            "transformers_version": "4.20.0.dev0",
            "use_cache": True,
            "vocab_size": 50272,
            "word_embed_proj_dim": 512,
        }
    )
    assert config == OPTConfig(
        width=1024, heads=16, layers=24, mlp_width=4096, embed_width=512, norm_first=False, final_norm=False
    )
