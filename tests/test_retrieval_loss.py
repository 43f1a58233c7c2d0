"""The contrastive loss by hand, and that it trains the head while the language model stays as it is."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frozen_jax.batch import PAD, SLOT, Batch
from frozen_jax.build import build_towers
from frozen_jax.config import OptimSettings, default_config, from_config_dict
from frozen_jax.errors import UserError
from frozen_jax.language_model import fingerprint_params
from frozen_jax.models.retrieval import LARGEST_SCALE, RetrievalHead
from frozen_jax.optim import make_optimiser
from frozen_jax.state import TrainState, flatten, merge
from frozen_jax.steps import LossOptions, loss_fn, make_train_step, retrieval_loss
from frozen_jax.train import choose_loss_options
from tests.models.lm_cases import FAST_COMPILE

# Rows 0 and 3 have the same caption; row 2 is a question, whose first word is given.
TOKENS = np.array(
    [
        [0, SLOT, SLOT, 5, 7, 0, PAD],
        [0, SLOT, SLOT, 9, 0, PAD, PAD],
        [0, SLOT, SLOT, 4, 9, 8, 0],
        [0, SLOT, SLOT, 5, 7, 0, PAD],
    ],
    np.int32,
)
MASK = np.array(
    [[0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1, 0]], np.float32
)


def make_batch(seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (4, 1, 16, 16, 3), np.uint8)
    return Batch(*map(jnp.asarray, (images, TOKENS, MASK, np.arange(4, dtype=np.int32))))


@pytest.fixture(scope="module")
def config(tiny_lm):
    config = default_config()
    config.lm.path = str(tiny_lm)
    config.vision.name = "nf_resnet_small"
    config.vision.options = {"widths": (8,), "depths": (1,), "stem_width": 8}
    config.data.train = config.data.validation = "fake:8"
    config.data.image.size = 16
    config.retrieval.weight, config.retrieval.width = 0.5, 4
    return config


@pytest.fixture(scope="module")
def towers(config):
    return build_towers(from_config_dict(config))


def test_the_loss_by_hand(towers):
    """Each text read without its picture, in a row of its own, unpadded; logits, targets and means in numpy. The
    question takes part where it is asked to."""
    model, params, batch = towers.model, merge(towers.trainable, towers.frozen), make_batch()
    head = jax.device_get(params["retrieval"])

    def run(params, batch):
        def read(words):
            embedded = model.embed(params, jnp.asarray([words]), None)
            row = jnp.concatenate([embedded, params["retrieval"]["token"][None, None]], axis=1)
            return model.run_lm(params, row, jnp.ones((1, len(words) + 1), jnp.int32))[0, -1]

        pooled = model.pool_images(params, batch.images)[:, 0]
        alone = loss_fn(params, model, batch)
        beside = loss_fn(params, model, batch, options=LossOptions(retrieval_weight=2.0))
        losses = [retrieval_loss(params, model, batch, pooled, asks=asks) for asks in (False, True)]
        return losses, pooled, [read(words) for words in ([0, 5, 7], [0, 9], [0, 4, 9, 8])], alone, beside

    compiled = jax.jit(run, compiler_options=FAST_COMPILE)
    (loss, with_question), pooled, states, alone, beside = jax.device_get(compiled(params, batch))
    texts = np.stack([states[place] for place in (0, 1, 2, 0)]) @ head["text"]["kernel"] + head["text"]["bias"][None]
    pictures = pooled @ head["image"]["kernel"] + head["image"]["bias"][None]
    texts, pictures = (np.asarray(x, np.float64) for x in (texts, pictures))
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    pictures /= np.linalg.norm(pictures, axis=1, keepdims=True)
    logits = texts @ pictures.T / 0.07
    targets = np.array([[0.5, 0, 0, 0.5], [0, 1, 0, 0], [0, 0, 1, 0], [0.5, 0, 0, 0.5]])

    def expect(rows):
        square, target = logits[np.ix_(rows, rows)], targets[np.ix_(rows, rows)]
        sides = (square, square.T)
        return sum(-(target * (x - np.log(np.exp(x).sum(1, keepdims=True)))).sum(1).mean() for x in sides) / 2

    np.testing.assert_allclose(loss, expect([0, 1, 3]), rtol=1e-4)
    np.testing.assert_allclose(with_question, expect([0, 1, 2, 3]), rtol=1e-4)
    # Beside the captions' loss, which it leaves as it is; micro-batches weigh by their words.
    assert alone.retrieval_sum == 0 and alone.loss_sum == beside.loss_sum
    np.testing.assert_allclose(beside.retrieval_sum, loss * beside.words, rtol=1e-5)


def test_the_temperature_comes_back_from_its_cap():
    """Above the cap the value stays at it, and only a gradient that lowers it passes; below, each does."""
    head, row = RetrievalHead(4, token_width=4, embedding_rms=1.0), jnp.ones((1, 4))
    params = head.init(jax.random.key(0), row, row)["params"]

    def measure(log_scale, sign):
        def loss(value):
            return sign * head.apply({"params": {**params, "scale": value}}, method="scale")

        return jax.value_and_grad(loss)(jnp.float32(log_scale))

    np.testing.assert_allclose(measure(LARGEST_SCALE + 1, 1.0), (100, 100), rtol=1e-5)
    np.testing.assert_allclose(measure(LARGEST_SCALE + 1, -1.0), (-100, 0), rtol=1e-5)
    for sign in (1.0, -1.0):
        np.testing.assert_allclose(measure(1.0, sign), (sign * np.e, sign * np.e), rtol=1e-5)


def test_the_step_trains_the_head_and_leaves_the_language_model(towers, config):
    options = choose_loss_options(from_config_dict(config))
    assert options.retrieval_weight == 0.5
    optimiser = make_optimiser(OptimSettings(learning_rate=1e-2, clip_norm=1.0), towers.rules, steps=3)
    step = jax.jit(
        make_train_step(towers.model, optimiser, accumulate=1, options=options), compiler_options=FAST_COMPILE
    )
    state, before = TrainState(towers.trainable, optimiser.init(towers.trainable)), flatten(towers.trainable)
    lm = fingerprint_params(towers.frozen["lm"])
    losses = []
    for number in range(6):
        state, metrics = step(state, towers.frozen, make_batch(), jax.random.key(number))
        losses.append(float(metrics["retrieval_loss"]))
    assert losses[-1] < 0.7 * losses[0]
    after = flatten(state.trainable)
    assert {path for path in after if path.startswith("retrieval/")} == {
        f"retrieval/{name}" for name in ("token", "scale", "text/kernel", "text/bias", "image/kernel", "image/bias")
    }
    assert not [path for path in after if np.array_equal(before[path], after[path])], "a leaf stood still"
    assert fingerprint_params(towers.frozen["lm"]) == lm and "lm" not in state.trainable


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("retrieval", "weight", -1.0, "must not be negative"),
        ("retrieval", "width", 0, "at least 1"),
        ("retrieval", "turns", -1, "must not be negative"),
        ("retrieval", "turns", 2, "no row asks"),
        ("data", "pair_probability", 0.5, "one picture"),
        ("train", "batch_size", 1, "has but its own"),
        ("optim", "accumulate", 128, "has but its own"),
        ("data", "caption_prompt", " a", r"data\.caption_prompt is ' a'; retrieval\.weight .* data\.caption_format"),
        ("vision", "name", "", "no pictures to find"),
    ],
)
def test_what_does_not_fit_is_refused(config, section, name, value, message):
    given = config.copy_and_resolve_references()
    if name == "name":
        given.lm.mode, given.vision.options = "finetuned", {}
    given[section][name] = value
    with pytest.raises(UserError, match=message):
        from_config_dict(given)


@pytest.mark.parametrize("section", ["retrieval", "fusion"])
def test_a_tokenizer_needs_the_token_that_ends_a_text(config, tiny_lm, tmp_path, section):
    """Without one `[RET]` would stand for a caption's last word, which a query has."""
    endless = shutil.copytree(tiny_lm, tmp_path / "lm", ignore=shutil.ignore_patterns("SHA256SUMS"))
    stated = json.loads((endless / "tokenizer_config.json").read_text())
    (endless / "tokenizer_config.json").write_text(json.dumps({**stated, "eos_token": None}))
    given = config.copy_and_resolve_references()
    given.lm.path = str(endless)
    if section == "fusion":
        given.retrieval.weight, given.fusion.kind, given.fusion.classes = 0.0, "concat", ("red", "blue")
    with pytest.raises(UserError, match=rf"config\.{section}\..* has no token that ends a text"):
        build_towers(from_config_dict(given))
