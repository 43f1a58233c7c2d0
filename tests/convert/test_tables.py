from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from frozen_jax.convert.lm_weights import export_lm, import_lm, lm_table
from frozen_jax.convert.tables import Rule
from frozen_jax.errors import UserError
from frozen_jax.models.lm import LMConfig, build_lm, lm_config_from_hf
from tests.models.lm_cases import CASES, GPT2, LLAMA, OPT, pair


def expected_shapes(config: LMConfig) -> dict[str, tuple[int, ...]]:
    """Returns path → shape of the parameters that the module itself declares."""
    module = build_lm(config)
    tree = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2), jnp.int32))["params"]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def random_params(config: LMConfig, dtype: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    params: dict[str, Any] = {}
    for path, shape in expected_shapes(config).items():
        *parents, last = path.split("/")
        node = params
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = rng.normal(size=shape).astype(dtype)
    return params


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """Small configs of every family, with every switch that adds, removes or reshapes a parameter."""
    family = draw(st.sampled_from(["gpt2", "opt", "llama", "mistral", "qwen2", "smollm3"]))
    kv_heads, groups, head_width, layers = (draw(st.integers(1, 3)) for _ in range(4))
    heads, width, inner = kv_heads * groups, kv_heads * groups * head_width, draw(st.integers(1, 9))
    switch = st.booleans()
    if family == "gpt2":
        return {**GPT2, "n_embd": width, "n_head": heads, "n_layer": layers, "n_inner": inner}
    if family == "opt":
        return {
            **OPT,
            "hidden_size": width,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "ffn_dim": inner,
            "word_embed_proj_dim": draw(st.integers(1, 9)),
            "do_layer_norm_before": draw(switch),
            "_remove_final_layer_norm": draw(switch),
            "enable_bias": draw(switch),
            "layer_norm_elementwise_affine": draw(switch),
        }
    raw = {
        **LLAMA,
        "model_type": family,
        "hidden_size": draw(st.integers(1, 9)),
        "head_dim": 2 * head_width,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "num_hidden_layers": layers,
        "intermediate_size": inner,
        "tie_word_embeddings": draw(switch),
    }
    if family in ("llama", "smollm3"):
        raw |= {"attention_bias": draw(switch), "mlp_bias": draw(switch)}
    return raw


@settings(max_examples=40, deadline=None, derandomize=True)
@given(raw=configs(), dtype=st.sampled_from([np.float32, ml_dtypes.bfloat16]))
def test_table_is_a_bijection(raw: dict[str, Any], dtype: Any) -> None:
    """Every parameter of the module and every tensor name occurs once, and both round trips are the identity."""
    config = lm_config_from_hf(raw)
    table = lm_table(config)
    shapes = {
        rule.path: ((config.layers, *rule.shape) if "{layer}" in rule.name else rule.shape) for rule in table.rules
    }
    assert shapes == expected_shapes(config)
    assert len(shapes) == len(table.rules)
    names = [name for rule in table.rules for name in table.names(rule)]
    assert len(set(names)) == len(names)
    assert all(table.strip(table.export_name(name)) == name for name in names)

    params = random_params(config, dtype)
    tensors = export_lm(config, params)
    assert sorted(tensors) == sorted(table.export_name(name) for name in names)
    assert all(tensor.flags.c_contiguous and tensor.dtype == dtype for tensor in tensors.values())
    back = import_lm(config, tensors, dtype=dtype)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    for ours, original in zip(jax.tree.leaves(back), jax.tree.leaves(params), strict=True):
        assert ours.tobytes() == original.tobytes() and ours.dtype == original.dtype
    again = export_lm(config, back)
    assert all(again[name].tobytes() == tensor.tobytes() for name, tensor in tensors.items())


@pytest.mark.parametrize("case", CASES)
def test_names_and_shapes_are_those_of_transformers(case: str) -> None:
    raw = CASES[case]
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**raw))
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    theirs = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}
    config = lm_config_from_hf(raw)
    assert {
        name: tensor.shape for name, tensor in export_lm(config, random_params(config, np.float32)).items()
    } == theirs


def sources(case: str) -> tuple[LMConfig, dict[str, np.ndarray]]:
    config = pair(case).config
    return config, export_lm(config, pair(case).params)


def fingerprint(params: dict[str, Any]) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params)]


@pytest.mark.parametrize(
    ("case", "prefix", "older"),
    [("gpt2", "transformer.", ""), ("opt_350m", "model.decoder.", "decoder."), ("llama_wide_heads", "model.", "")],
)
def test_older_prefixes_are_read(case: str, prefix: str, older: str) -> None:
    config, tensors = sources(case)
    renamed = {name.replace(prefix, older, 1): tensor for name, tensor in tensors.items()}
    assert set(renamed) != set(tensors)
    assert fingerprint(import_lm(config, renamed, dtype=np.float32)) == fingerprint(pair(case).params)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("gpt2", "h.1.attn.bias"),
        ("gpt2", "transformer.h.0.attn.masked_bias"),
        ("llama", "model.layers.1.self_attn.rotary_emb.inv_freq"),
    ],
)
def test_buffers_of_older_versions_are_no_weights(case: str, name: str) -> None:
    config, tensors = sources(case)
    import_lm(config, {**tensors, name: np.ones((1, 1), bool)}, dtype=np.float32)


def test_second_copy_of_tied_embeddings_must_be_equal() -> None:
    for case, embedding in (("gpt2", "transformer.wte.weight"), ("opt", "model.decoder.embed_tokens.weight")):
        config, tensors = sources(case)
        import_lm(config, {**tensors, "lm_head.weight": tensors[embedding].copy()}, dtype=np.float32)
        with pytest.raises(UserError, match=r"lm_head.weight differs .* tied"):
            import_lm(config, {**tensors, "lm_head.weight": tensors[embedding] + 1}, dtype=np.float32)


def test_missing_tensors_are_named() -> None:
    config, tensors = sources("gpt2")
    partial = {name: tensor for name, tensor in tensors.items() if ".ln_1." not in name}
    with pytest.raises(UserError, match=r"lack h.0.ln_1.bias, h.0.ln_1.weight, h.1.ln_1.bias and 1 more"):
        import_lm(config, partial, dtype=np.float32)


def test_unexpected_tensor_is_named() -> None:
    config, tensors = sources("llama")
    with pytest.raises(UserError, match=r"hold model.layers.2.mlp.up_proj.weight, which"):
        import_lm(config, {**tensors, "model.layers.2.mlp.up_proj.weight": np.zeros(1)}, dtype=np.float32)


def test_wrong_name_is_named_beside_the_missing_one() -> None:
    config, tensors = sources("opt")
    tensors["model.decoder.finale.bias"] = tensors.pop("model.decoder.final_layer_norm.bias")
    with pytest.raises(UserError, match=r"lack final_layer_norm.bias.*unknown model.decoder.finale.bias"):
        import_lm(config, tensors, dtype=np.float32)


def test_tensor_under_two_prefixes_is_refused() -> None:
    config, tensors = sources("gpt2")
    twice = {**tensors, "wte.weight": tensors["transformer.wte.weight"]}
    with pytest.raises(UserError, match=r"both transformer.wte.weight and wte.weight"):
        import_lm(config, twice, dtype=np.float32)


def test_wrong_shape_is_named() -> None:
    config, tensors = sources("gpt2")
    tensors["transformer.h.1.mlp.c_fc.weight"] = tensors["transformer.h.1.mlp.c_fc.weight"].T
    with pytest.raises(UserError, match=r"h.1.mlp.c_fc.weight has shape \(128, 32\), config.json asks for \(32, 128\)"):
        import_lm(config, tensors, dtype=np.float32)


def test_quantised_tensor_is_named() -> None:
    config, tensors = sources("llama")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int8)
    with pytest.raises(UserError, match=r"model.norm.weight is int8, must be one of float32"):
        import_lm(config, tensors, dtype=np.float32)


def test_parameters_of_another_model_are_not_exported() -> None:
    with pytest.raises(ValueError, match="do not fit the table"):
        export_lm(pair("gpt2").config, pair("opt").params)


def test_impossible_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot become"):
        Rule("a/kernel", "a.weight", (2, 3), (2, 4))
    with pytest.raises(ValueError, match="cannot become"):
        Rule("a/kernel", "a.weight", (6,), (6,), transposed=True)
