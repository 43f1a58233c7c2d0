"""The loss by hand, and freezing proved: each proof also has to fail when the language model is labelled trainable."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from frozen_jax.batch import PAD, SLOT, Batch
from frozen_jax.build import build_towers
from frozen_jax.config import OptimSettings, from_config_dict
from frozen_jax.data.sequences import lay_out_batch
from frozen_jax.data.text import Piece, RowLayout
from frozen_jax.language_model import fingerprint_params
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.models.lm import build_lm, lm_config_from_hf
from frozen_jax.models.prefix import Prefix
from frozen_jax.models.vision import build_vision
from frozen_jax.optim import list_label_rules, make_optimiser
from frozen_jax.state import FROZEN, TRAINABLE, TrainState, flatten, match_rules, merge, split
from frozen_jax.steps import LossOptions, gather_predictions, loss_fn, make_train_step

TOKENS = np.array([[0, SLOT, SLOT, 5, 7, 0, PAD], [0, SLOT, SLOT, 9, 0, PAD, PAD]], np.int32)
MASK = np.array([[0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 0, 0]], np.float32)


def make_batch(size=16, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (2, 1, size, size, 3), np.uint8)
    return Batch(*map(jnp.asarray, (images, TOKENS, MASK, np.arange(2, dtype=np.int32))))


@functools.cache
def make_towers(lm_trains, width=16, layers=2):
    """Towers whose language model is trainable or not, by the rules that training uses."""
    architecture = {"model_type": "gpt2", "vocab_size": 12, "n_positions": 16, "n_embd": width, "n_layer": layers}
    lm = build_lm(lm_config_from_hf({**architecture, "n_head": 2, "initializer_range": 0.2}), unroll=layers)
    vision = build_vision("nf_resnet_small", widths=(8,), depths=(1,), stem_width=8)
    model = FrozenModel(lm, vision, Prefix(length=2, width=width, embedding_rms=0.2))
    init = jax.jit(lambda a, b: {**model.init_lm(a), **model.init_vision(b, image_size=16)})
    params = init(jax.random.key(0), jax.random.key(1))
    rules = list_label_rules(params, lm_trains=lm_trains)
    trainable, frozen = split(params, match_rules(params, rules, what="test"))
    return model, trainable, frozen, rules


def run_steps(lm_trains, count, **optim):
    model, trainable, frozen, rules = make_towers(lm_trains)
    optimiser = make_optimiser(OptimSettings(learning_rate=1e-2, **optim), rules, steps=count)
    step = jax.jit(make_train_step(model, optimiser, accumulate=1, options=LossOptions()))
    state = TrainState(trainable, optimiser.init(trainable))
    for number in range(count):
        state, metrics = step(state, frozen, make_batch(seed=number), jax.random.key(number))
    assert math.isfinite(metrics["loss"])
    return trainable, frozen, state


def test_gather_predictions_as_drawn():
    hidden = jnp.arange(7.0)[None, :, None] * jnp.ones((2, 1, 1))
    states, targets, weights = gather_predictions(hidden, make_batch(), slots=2)
    assert states.shape == (2, 5, 1)
    assert states[0, :3, 0].tolist() == [2, 3, 4] and targets[0, :3].tolist() == [5, 7, 0]
    assert states[1, :2, 0].tolist() == [2, 3] and targets[1, :2].tolist() == [9, 0]
    assert weights.tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]


@pytest.mark.parametrize("slots", [0, 1, 2])
def test_gather_predictions_keeps_every_word_of_a_full_row(slots):
    """A row without a mark before its slots and without padding behind its words: each word has its prediction."""
    tokens = np.array([[SLOT] * slots + list(range(3, 9 - slots))], np.int32)
    mask = (tokens != SLOT).astype(np.float32)
    mask[:, 0] = 0  # nothing stands before the first token
    batch = Batch(np.zeros((1, 1, 1, 1, 3), np.uint8), tokens, mask, np.zeros(1, np.int32))
    states, targets, weights = gather_predictions(jnp.arange(6.0)[None, :, None], batch, slots=slots)
    first = max(slots, 1)
    assert weights.tolist() == [[1] * (6 - first)]
    assert targets.tolist() == [tokens[0, first:].tolist()]
    assert states[0, :, 0].tolist() == list(range(first - 1, 5))


def test_loss_by_hand():
    """Log-probabilities written out from the full logits: state s predicts token s + 1, words alone count."""
    model, trainable, frozen, _ = make_towers(False)
    params, batch = merge(trainable, frozen), make_batch()
    parts = loss_fn(params, model, batch)
    prefixes = model.embed_images(params, batch.images)
    hidden = model.run_lm(params, model.embed(params, batch.tokens, prefixes), jnp.asarray(TOKENS != PAD, jnp.int32))
    logits = np.asarray(model.logits(params, hidden), np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    places = [(0, 2, 5), (0, 3, 7), (0, 4, 0), (1, 2, 9), (1, 3, 0)]
    np.testing.assert_allclose(parts.loss_sum, -sum(log_probs[place] for place in places), rtol=1e-5)
    assert parts.words == 5
    assert parts.correct_sum == sum(logits[row, column].argmax() == word for row, column, word in places)


def test_smoothing_by_hand():
    model, trainable, frozen, _ = make_towers(False)
    params, batch = merge(trainable, frozen), make_batch()
    prefixes = model.embed_images(params, batch.images)
    hidden = model.run_lm(params, model.embed(params, batch.tokens, prefixes), jnp.asarray(TOKENS != PAD, jnp.int32))
    log_probs = np.asarray(jax.nn.log_softmax(model.logits(params, hidden)), np.float64)
    want = 0.0
    for row, column, word in [(0, 2, 5), (0, 3, 7), (0, 4, 0), (1, 2, 9), (1, 3, 0)]:
        want -= 0.9 * log_probs[row, column, word] + 0.1 * log_probs[row, column].mean()
    got = loss_fn(params, model, batch, rng=jax.random.key(0), options=LossOptions(label_smoothing=0.1)).loss_sum
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_what_stands_at_padding_does_not_matter():
    model, trainable, frozen, _ = make_towers(False)
    params, batch = merge(trainable, frozen), make_batch()
    longer = batch._replace(
        tokens=jnp.pad(batch.tokens, ((0, 0), (0, 3)), constant_values=PAD),
        loss_mask=jnp.pad(batch.loss_mask, ((0, 0), (0, 3))),
    )
    np.testing.assert_allclose(
        loss_fn(params, model, longer).loss_sum, loss_fn(params, model, batch).loss_sum, rtol=1e-5
    )


def test_packed_rows_have_the_loss_and_gradient_of_single_ones():
    """Walls between the pairs and own positions: nothing of one pair reaches the other."""
    model, trainable, frozen, _ = make_towers(False)
    single = make_batch()
    pieces = [Piece([5, 7]), Piece([9])]
    layout = RowLayout(max_tokens=14, prefix_length=2, bos_id=0, eos_id=0)
    packed = lay_out_batch(np.asarray(single.images), pieces, np.arange(2), layout=layout, pack=2, paired=False)
    assert packed.tokens.shape == (1, 14) and packed.segments is not None
    joined = lay_out_batch(np.asarray(single.images), pieces, np.arange(2), layout=layout, pack=1, paired=True)

    @jax.jit
    def run(trainable, batch):
        return jax.value_and_grad(lambda t: loss_fn(merge(t, frozen), model, batch).loss_sum)(trainable)

    loss, gradient = run(trainable, single)
    packed_loss, packed_gradient = run(trainable, packed)
    np.testing.assert_allclose(packed_loss, loss, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), packed_gradient, gradient)
    assert abs(run(trainable, packed._replace(segments=None))[0] - loss) > 1e-3, "without walls"
    assert abs(run(trainable, joined)[0] - loss) > 1e-3, "two pairs in one text"


def test_the_dropout_of_a_frozen_lm_is_off():
    model, trainable, frozen, _ = make_towers(False)
    assert model.lm.config.residual_dropout > 0
    params, batch = merge(trainable, frozen), make_batch()
    losses = {
        lm_dropout: [
            float(
                loss_fn(params, model, batch, rng=jax.random.key(seed), options=LossOptions(lm_dropout=lm_dropout))[0]
            )
            for seed in (0, 1)
        ]
        for lm_dropout in (False, True)
    }
    assert losses[False][0] == losses[False][1] and losses[True][0] != losses[True][1]


def test_accumulation_equals_one_large_batch():
    model, trainable, frozen, rules = make_towers(False)
    optimiser = make_optimiser(OptimSettings(learning_rate=1e-2), rules, steps=1)
    results = []
    for accumulate in (1, 2):
        step = make_train_step(model, optimiser, accumulate=accumulate, options=LossOptions())
        state = TrainState(trainable, optimiser.init(trainable))
        results.append(jax.jit(step)(state, frozen, make_batch(), jax.random.key(0)))
    (_, one), (_, two) = results
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-5)
    np.testing.assert_allclose(one["grad_norm"], two["grad_norm"], rtol=1e-4)


def lm_is_unchanged(lm_trains):
    trainable, frozen, state = run_steps(lm_trains, 3, clip_norm=1.0, weight_decay=0.1)
    before, after = merge(trainable, frozen)["lm"], merge(state.trainable, frozen)["lm"]
    return fingerprint_params(before) == fingerprint_params(after)


def optimiser_ignores_lm(lm_trains):
    _, _, state = run_steps(lm_trains, 1)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)]
    assert any("vision" in path for path in paths)
    return not any("'lm'" in path for path in paths)


def step_costs_twice_the_forward(lm_trains):
    """Frozen: forward and gradient with respect to activations. Trainable: the weights' gradient as a third part."""
    model, trainable, frozen, rules = make_towers(lm_trains, width=192)
    optimiser = make_optimiser(OptimSettings(clip_norm=1.0), rules, steps=1)
    batch = make_batch()

    def count_flops(function, *arguments):
        return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]

    def forward(params):
        return loss_fn(params, model, batch).loss_sum

    step = make_train_step(model, optimiser, accumulate=1, options=LossOptions())
    state = TrainState(trainable, optimiser.init(trainable))
    params = merge(trainable, frozen)
    encode = count_flops(lambda p: model.embed_images(p, batch.images), params)
    whole = count_flops(step, state, frozen, batch, jax.random.key(0))
    return (whole - 3 * encode) / (count_flops(forward, params) - encode) < 2.3


@pytest.mark.parametrize("holds", [lm_is_unchanged, optimiser_ignores_lm, step_costs_twice_the_forward])
def test_freezing_holds_and_its_check_can_fail(holds):
    assert holds(False)
    assert not holds(True)


def test_every_trainable_leaf_moves():
    trainable, _, state = run_steps(False, 3)
    after = flatten(state.trainable)
    still = [path for path, leaf in flatten(trainable).items() if np.array_equal(leaf, after[path])]
    assert not still


def test_partition_keeps_the_lm_when_handed_the_whole_tree():
    """The second lock: raw gradients of a whole tree do not pass the optimiser."""
    _, trainable, frozen, rules = make_towers(False)
    params = merge(trainable, frozen)
    optimiser = make_optimiser(OptimSettings(learning_rate=1.0), rules, steps=1)
    updates, _ = optimiser.update(jax.tree.map(jnp.ones_like, params), optimiser.init(params), params)
    moved = optax.apply_updates(params, updates)
    assert fingerprint_params(moved["lm"]) == fingerprint_params(params["lm"])
    assert fingerprint_params(moved["vision"]) != fingerprint_params(params["vision"])


def test_weight_decay_leaves_gains_and_biases_alone():
    _, trainable, _, rules = make_towers(False)
    optimiser = make_optimiser(OptimSettings(learning_rate=1.0, weight_decay=0.5), rules, steps=1)
    zeros = jax.tree.map(jnp.zeros_like, trainable)
    updates = flatten(optimiser.update(zeros, optimiser.init(trainable), trainable)[0])
    for path, leaf in flatten(trainable).items():
        want = -0.5 * leaf if path.endswith("/kernel") else jnp.zeros_like(leaf)
        np.testing.assert_allclose(updates[path], want, rtol=1e-6, err_msg=path)


@pytest.mark.parametrize(("mode", "label"), [("frozen", FROZEN), ("finetuned", TRAINABLE), ("scratch", TRAINABLE)])
def test_lm_mode_decides_the_side_of_the_lm(tiny_config, mode, label):
    tiny_config.lm.mode = mode
    towers = build_towers(from_config_dict(tiny_config))
    assert ("lm" in towers.trainable) == (label == TRAINABLE)
    assert ("lm" in towers.frozen) == (label == FROZEN)


def test_scratch_draws_other_weights_than_the_file(tiny_config):
    pretrained = build_towers(from_config_dict(tiny_config)).frozen["lm"]
    tiny_config.lm.mode = "scratch"
    drawn = build_towers(from_config_dict(tiny_config)).trainable["lm"]
    assert not np.allclose(drawn["embed"]["embedding"], pretrained["embed"]["embedding"])
