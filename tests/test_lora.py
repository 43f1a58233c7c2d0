"""Adapters: what they add, that the language model beside them stays, and that a merged model is the same one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.abstract import abstract_run
from frozen_jax.adapters import ADDED, split_added
from frozen_jax.build import build_towers
from frozen_jax.config import from_config_dict
from frozen_jax.errors import UserError
from frozen_jax.flops import count_train_step
from frozen_jax.language_model import load_lm
from frozen_jax.lora import draw_lora, merge_lora
from frozen_jax.optim import make_optimiser
from frozen_jax.quantise import dequantise_lm, quantise_lm
from frozen_jax.restore import make_model
from frozen_jax.sharding import make_mesh
from frozen_jax.state import TRAINABLE, TrainState, flatten, map_with_path, merge
from frozen_jax.steps import LossOptions, make_train_step
from frozen_jax.tasks import easy_vqa, fewshot
from frozen_jax.tasks.controls import Models
from frozen_jax.tasks.samples import Measured
from tests.models.lm_cases import FAST_COMPILE, forward, left_padded, look_up, pair
from tests.test_steps import make_batch

RANK = 2


def draw_both(params):
    """Factors that change something: both are random, as after training."""
    return move_factors(draw_lora(jax.random.key(0), params, rank=RANK))


def move_factors(params):
    rng = np.random.default_rng(0)
    return map_with_path(
        lambda path, leaf: rng.normal(0, 0.05, leaf.shape).astype(np.float32) if path.endswith("lora_up") else leaf,
        params,
    )


@pytest.mark.parametrize("case", ["gpt2", "opt_350m", "llama_wide_heads"])
@pytest.mark.parametrize("int8", [False, True])
def test_merged_and_separate_factors_compute_the_same(case, int8):
    """Fused and separate projections, several input axes, with and without biases, beside float and int8 kernels."""
    model = pair(case)
    tokens, mask = left_padded(rows=2, length=8)
    embeddings = look_up(model, tokens)
    run = jax.jit(functools.partial(forward, model.module), compiler_options=FAST_COMPILE)
    own = jax.device_get(model.params)
    own = quantise_lm(own) if int8 else own
    fresh, adapted = draw_lora(jax.random.key(0), own, rank=RANK), draw_both(own)
    plain, begun, separate, merged = (
        np.asarray(run(params, embeddings, jnp.asarray(mask)))[mask]
        for params in (own, fresh, adapted, merge_lora(jax.device_get(dequantise_lm(adapted))))
    )
    np.testing.assert_allclose(begun, plain, atol=5e-6, rtol=0)
    np.testing.assert_allclose(separate, merged, atol=3e-5, rtol=0)
    assert np.abs(separate - plain).max() > 1e-2


def test_split_and_merge_leave_what_has_no_factors():
    params = jax.device_get(pair("gpt2").params)
    own, factors = split_added(draw_both(params))
    assert {path: leaf.shape for path, leaf in flatten(own).items()} == {
        path: leaf.shape for path, leaf in flatten(params).items()
    }
    assert len(flatten(factors)) == 2 * sum("blocks/" in path and path.endswith("kernel") for path in flatten(params))
    untouched = flatten(merge_lora(params))
    assert all(untouched[path] is leaf for path, leaf in flatten(params).items())


@pytest.mark.parametrize("text_alone", [False, True])
def test_factors_train_and_the_language_model_beside_them_does_not(tiny_config, text_alone):
    """Also without any picture: adapters are then all that trains."""
    tiny_config.lm.lora_rank = RANK
    batch = make_batch()
    if text_alone:
        tiny_config.vision.name, tiny_config.vision.options = "", {}
        batch = batch._replace(images=jnp.zeros((2, 0, 1, 1, 3), jnp.uint8), tokens=jnp.abs(batch.tokens))
    config = from_config_dict(tiny_config)
    towers = build_towers(config)
    assert all(path.startswith("lm/blocks/") and "/lora_" in path for path in flatten({"lm": towers.trainable["lm"]}))
    assert not any("lora" in path for path in flatten(towers.frozen))
    optimiser = make_optimiser(config.optim, towers.rules, steps=3)
    step = jax.jit(
        make_train_step(towers.model, optimiser, accumulate=1, options=LossOptions()), compiler_options=FAST_COMPILE
    )
    state, losses = TrainState(towers.trainable, optimiser.init(towers.trainable)), []
    for _ in range(3):
        state, metrics = step(state, towers.frozen, batch, jax.random.key(0))
        losses.append(float(metrics["loss"]))
    assert losses[2] < losses[0]
    before = flatten(towers.trainable)
    assert not [path for path, leaf in flatten(state.trainable).items() if np.array_equal(leaf, before[path])]
    assert set(flatten(towers.frozen)) == {
        path for path in flatten(merge(state.trainable, towers.frozen)) if path not in before
    }


def test_an_adapted_run_is_described_and_costs_no_gradient_of_a_kernel(tiny_config):
    """Frozen kernels cost two products in a step, trained ones three; factors of rank 2 add a few per cent."""
    plain = from_config_dict(tiny_config)
    tiny_config.lm.lora_rank = RANK
    adapted = from_config_dict(tiny_config)
    mesh = make_mesh(adapted.mesh, batch_size=adapted.micro_batch_rows)
    run = abstract_run(adapted, mesh)
    assert {label for pattern, label in run.rules if pattern.endswith(ADDED)} == {TRAINABLE}
    towers = build_towers(adapted)
    assert {path: leaf.shape for path, leaf in flatten(run.state.trainable).items()} == {
        path: leaf.shape for path, leaf in flatten(towers.trainable).items()
    }
    tiny_config.lm.lora_rank, tiny_config.lm.mode = 0, "finetuned"
    trained = from_config_dict(tiny_config)
    costs = []
    for config in (plain, adapted, trained):
        described = abstract_run(config, mesh)
        costs.append(count_train_step(described.model, described.state.trainable, described.frozen, described.batch).lm)
    frozen, lora, full = (cost.flops for cost in costs)
    assert frozen < lora < full


def multiply_out(params):
    """A language model in float32 with its factors multiplied out, written once more."""
    wide = {path: np.asarray(leaf, np.float32) for path, leaf in flatten(dequantise_lm(params)).items()}
    merged = {path: leaf for path, leaf in wide.items() if "/lora_" not in path}
    for path in merged:
        place = path.removesuffix("kernel")
        if f"{place}lora_up" in wide:
            factors = zip(wide[f"{place}lora_down"], wide[f"{place}lora_up"], strict=True)
            merged[path] = merged[path] + np.stack([np.tensordot(down, up, 1) for down, up in factors])
    return merged


@pytest.mark.parametrize("weights", ["float", "int8"])
@pytest.mark.parametrize("evaluate", [easy_vqa.evaluate_scene_text, fewshot.evaluate_text])
def test_a_text_stage_saves_its_language_model_as_any_program_reads_it(
    tiny_config, tmp_path, monkeypatch, weights, evaluate
):
    """In float32, whatever it was stored and computed in."""
    tiny_config.vision.name, tiny_config.vision.options = "", {}
    tiny_config.lm.update({"lora_rank": RANK, "weights": weights, "dtype": "bfloat16"})
    config = from_config_dict(tiny_config)
    towers = build_towers(config)
    params = jax.device_get(move_factors(merge(towers.trainable, towers.frozen)))
    monkeypatch.setattr(easy_vqa, "QuestionSet", lambda config: None)
    monkeypatch.setattr(easy_vqa, "score_text_oracle", lambda model, tests: {"accuracy": 0.0})
    monkeypatch.setattr(fewshot, "evaluate", lambda config, models, directory: Measured({}, []))
    evaluate(config, Models(make_model(config, towers, params)), tmp_path)
    saved, expected = flatten(load_lm(tmp_path / "lm").params), multiply_out(params["lm"])
    assert saved.keys() == expected.keys()
    for path, leaf in saved.items():
        np.testing.assert_allclose(leaf, expected[path], rtol=1e-6, atol=1e-7, err_msg=path)


def test_adapters_of_what_trains_are_refused(tiny_config):
    tiny_config.lm.lora_rank, tiny_config.lm.mode = 4, "finetuned"
    with pytest.raises(UserError, match=r"config\.lm\.lora_rank is 4; with lm\.mode='finetuned' all weights train"):
        from_config_dict(tiny_config)
