"""Adapters and learned prompts: the language model at the start, unchanged at the end; what they are refused for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.abstract import abstract_run
from frozen_jax.adaptation_settings import AdaptationSettings, describe_added
from frozen_jax.adapters import adapt_lm, count_prompt, split_added, widen_lm
from frozen_jax.batch import PAD, PROMPT, SLOT, Batch, open_row, validate
from frozen_jax.build import build_towers
from frozen_jax.config import from_config_dict, identify
from frozen_jax.data.sequences import packed_row
from frozen_jax.data.text import Piece, RowLayout, text_row
from frozen_jax.errors import UserError
from frozen_jax.language_model import fingerprint_params
from frozen_jax.optim import make_optimiser
from frozen_jax.prompt import Image
from frozen_jax.restore import make_model
from frozen_jax.sharding import make_mesh
from frozen_jax.state import TrainState, flatten, map_with_path, merge
from frozen_jax.steps import LossOptions, make_train_step
from tests.models.lm_cases import FAST_COMPILE, forward, left_padded, look_up, pair

BOTH = AdaptationSettings(adapter_width=3, prompt_length=2)


@pytest.mark.parametrize("case", ["gpt2", "opt_350m", "llama_wide_heads"])
def test_new_adapters_change_nothing_and_later_act_behind_attention_and_mlp(case):
    model = pair(case)
    tokens, mask = left_padded(rows=2, length=8)
    embeddings = look_up(model, tokens)
    run = jax.jit(functools.partial(forward, model.module), compiler_options=FAST_COMPILE)
    settings = AdaptationSettings(adapter_width=3)
    fresh = jax.device_get(adapt_lm(jax.random.key(0), model.params, lora_rank=0, settings=settings))
    added = {path for path in flatten(fresh) if path not in flatten(model.params)}
    assert added == {f"blocks/{part}/adapter_{way}" for part in ("out", "down") for way in ("down", "up")}
    plain, begun = (np.asarray(run(params, embeddings, jnp.asarray(mask)))[mask] for params in (model.params, fresh))
    np.testing.assert_array_equal(begun, plain)

    def random_like(leaf):
        return np.random.default_rng(0).normal(0, 0.1, leaf.shape).astype(np.float32)

    for part in ("out", "down"):
        path = f"blocks/{part}/adapter_up"
        moved = map_with_path(lambda name, leaf, path=path: random_like(leaf) if name == path else leaf, fresh)
        assert np.abs(np.asarray(run(moved, embeddings, jnp.asarray(mask)))[mask] - plain).max() > 1e-3, part


def test_an_adapter_by_hand():
    """y + relu(y @ down) @ up, behind the bias."""
    from frozen_jax.models.layers import Projection

    rng = np.random.default_rng(0)
    kernel, bias, down, up = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 3), (3,), (3, 2), (2, 3)))
    x = rng.normal(size=(1, 5, 4)).astype(np.float32)
    y = x @ kernel + bias
    module = Projection("BSF,FD->BSD", (4, 3), 1, True, 0.02)
    params = jax.tree.map(jnp.asarray, {"kernel": kernel, "bias": bias, "adapter_down": down, "adapter_up": up})
    made = module.apply({"params": params}, jnp.asarray(x))
    np.testing.assert_allclose(made, y + np.maximum(y @ down, 0) @ up, rtol=1e-5, atol=1e-5)


def test_rows_begin_with_the_prompt_behind_bos():
    layout = RowLayout(max_tokens=10, prefix_length=2, bos_id=0, eos_id=1, prompt_length=2)
    tokens, mask = text_row([Piece([7, 8])], layout=layout)
    assert tokens.tolist() == [0, PROMPT, PROMPT - 1, SLOT, SLOT, 7, 8, 1, PAD, PAD]
    assert mask.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 0, 0]
    packed = packed_row([Piece([7]), Piece([8])], layout=RowLayout(20, 1, None, None, prompt_length=2))
    assert packed.tokens[:8].tolist() == [PROMPT, PROMPT - 1, SLOT, 7, PROMPT, PROMPT - 1, SLOT, 8]
    assert open_row(None, prompt_length=0) == ()
    with pytest.raises(UserError, match=r"text: 3 positions cannot hold 3 of bos and prompt"):
        text_row([Piece([7])], layout=RowLayout(3, 2, 0, 1, prompt_length=2))
    batch = Batch(np.zeros((1, 1, 4, 4, 3), np.uint8), tokens[None], mask[None], np.zeros(1, np.int32))
    validate(batch, prefix_length=2, vocab_size=9, prompt_length=2)
    with pytest.raises(UserError, match=rf"token id {PROMPT - 1} outside"):
        validate(batch, prefix_length=2, vocab_size=9, prompt_length=1)


def test_what_is_added_trains_the_language_model_beside_it_does_not_and_answers_use_it(tiny_config):
    """By the hash of the language model; the prompt's vectors are words' at first, and part of every question."""
    tiny_config.adaptation.adapter_width, tiny_config.adaptation.prompt_length = 3, 2
    tiny_config.data.bos = True
    config = from_config_dict(tiny_config)
    towers = build_towers(config)
    assert set(flatten(towers.trainable["lm"])) == {
        *(f"blocks/{part}/adapter_{way}" for part in ("out", "down") for way in ("down", "up")),
        "prompt/vectors",
    }
    table = np.asarray(towers.frozen["lm"]["embed"]["embedding"])
    vectors = np.asarray(towers.trainable["lm"]["prompt"]["vectors"])
    assert all((np.abs(table - vector).max(axis=1) == 0).any() for vector in vectors)
    described = abstract_run(config, make_mesh(config.mesh, batch_size=config.micro_batch_rows))
    assert {path: leaf.shape for path, leaf in flatten(described.state.trainable).items()} == {
        path: leaf.shape for path, leaf in flatten(towers.trainable).items()
    }
    layout = RowLayout(max_tokens=9, prefix_length=2, bos_id=0, eos_id=0, prompt_length=2)
    rows = [text_row([Piece([5, word])], layout=layout) for word in (7, 9)]
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 16, 16, 3), np.uint8)
    tokens, mask = map(np.stack, zip(*rows, strict=True))
    batch = Batch(*map(jnp.asarray, (images, tokens, mask, np.arange(2, dtype=np.int32))))
    optimiser = make_optimiser(config.optim, towers.rules, steps=3)
    step = jax.jit(
        make_train_step(towers.model, optimiser, accumulate=1, options=LossOptions()), compiler_options=FAST_COMPILE
    )
    before, state, losses = fingerprint_params(towers.frozen["lm"]), None, []
    state = TrainState(towers.trainable, optimiser.init(towers.trainable))
    for _ in range(3):
        state, metrics = step(state, towers.frozen, batch, jax.random.key(0))
        losses.append(float(metrics["loss"]))
    assert losses[2] < losses[0]
    start = flatten(towers.trainable)
    assert not [path for path, leaf in flatten(state.trainable).items() if np.array_equal(leaf, start[path])]
    params = merge(state.trainable, towers.frozen)
    own, added = split_added(params["lm"])
    assert fingerprint_params(own) == before and set(added) == {"blocks", "prompt"} and count_prompt(params) == 2
    with pytest.raises(UserError, match=r"this run has config\.adaptation"):
        widen_lm(params["lm"])

    model = make_model(config, towers, params)
    asked = [(Image(0), " red"), (Image(1), " red")]
    prefixes = model.embed_image(list(images[:, 0]))
    with_it = model.score(asked, [" dot", " spot"], normalise=True, prefixes=prefixes)
    prompt = {"vectors": params["lm"]["prompt"]["vectors"][::-1]}
    other = make_model(config, towers, {**params, "lm": {**params["lm"], "prompt": prompt}})
    assert np.abs(with_it - other.score(asked, [" dot", " spot"], normalise=True, prefixes=prefixes)).max() > 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adaptation.adapter_width": -1}, r"config\.adaptation\.adapter_width is -1; it must not be negative"),
        ({"adaptation.prompt_length": 2, "lm.mode": "finetuned"}, r"prompt_length is 2; with lm\.mode='finetuned' all"),
        ({"adaptation.adapter_width": 2, "evaluate.task": "scene_text"}, r"the task 'scene_text' saves the language"),
        ({"adaptation.prompt_length": 2, "fusion.kind": "concat"}, r"prompt_length is 2; the fusion reads texts"),
        ({"adaptation.prompt_length": 38}, r"config\.data\.max_tokens is 40; the image slots and marks take 40"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tiny_config, settings, message):
    for name, value in settings.items():
        section, key = name.split(".")
        tiny_config[section][key] = value
    with pytest.raises(UserError, match=message):
        from_config_dict(tiny_config)


def test_a_run_without_it_is_the_run_it_was(tiny_config):
    plain = from_config_dict(tiny_config)
    assert "adaptation" not in identify(plain)
    tiny_config.adaptation.adapter_width = 2
    assert identify(from_config_dict(tiny_config))["adaptation"] == {"adapter_width": 2, "prompt_length": 0}
    assert describe_added(BOTH, lora_rank=0) == ", adapters of width 3, a prompt of 2 vectors"
