"""The analytic count against compiled programs and against arithmetic by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from frozen_jax.batch import Batch
from frozen_jax.chips import CHIPS
from frozen_jax.flops import (
    OPTIMISER_BYTES,
    Costs,
    StepCosts,
    count_answer,
    count_costs,
    count_decode_token,
    count_train_step,
)
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.models.lm import build_lm, lm_config_from_hf
from frozen_jax.models.prefix import Prefix
from frozen_jax.models.published import PUBLISHED
from frozen_jax.models.vision import build_vision
from frozen_jax.state import merge
from frozen_jax.steps import loss_fn
from tests.models.lm_cases import FAST_COMPILE

Abstract = jax.ShapeDtypeStruct
GPT2 = {"model_type": "gpt2", "vocab_size": 1000, "n_positions": 64, "n_embd": 256, "n_layer": 2, "n_head": 4}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
NF_RESNET = ("nf_resnet_small", {"widths": (64, 128), "depths": (1, 1)})
VIT = ("vit", {"image_size": 32, "patch_size": 8, "width": 128, "layers": 2, "heads": 4, "mlp_width": 512, "unroll": 2})
H100 = dataclasses.replace(CHIPS["h100"], flops_per_s=798e12, hbm_bytes_per_s=3.0e12)
"""What large products and copies were measured to reach on one; the maker's peaks are never reached."""


def build(architecture, vision, *, size, dtype=jnp.float32, unroll=1, remat="none"):
    config, (name, options) = lm_config_from_hf(architecture), vision
    lm, encoder = build_lm(config, dtype=dtype, unroll=unroll, remat=remat), build_vision(name, dtype=dtype, **options)
    model = FrozenModel(lm, encoder, Prefix(length=2, width=config.embed_width, embedding_rms=0.1, dtype=dtype))
    params = jax.eval_shape(lambda k: {**model.init_lm(k), **model.init_vision(k, image_size=size)}, jax.random.key(0))
    params["lm"] = jax.tree.map(lambda leaf: Abstract(leaf.shape, dtype), params["lm"])
    return model, params


def make_batch(rows, *, size):
    return Batch(
        Abstract((rows, 1, size, size, 3), jnp.uint8),
        Abstract((rows, 34), jnp.int32),
        Abstract((rows, 34), jnp.float32),
        Abstract((rows,), jnp.int32),
    )


@pytest.mark.parametrize(
    ("architecture", "vision", "trained"),
    [
        (GPT2, NF_RESNET, ("vision", "prefix")),
        (GPT2, NF_RESNET, ("vision", "prefix", "lm")),
        (LLAMA, VIT, ("prefix",)),
    ],
)
def test_the_compiled_step_needs_what_was_counted(architecture, vision, trained):
    """Unrolled, because a compiled loop's body is counted once. The rest of up to 3 % are the pointwise operations."""
    model, params = build(architecture, vision, size=32, unroll=2)
    trainable = {tower: params[tower] for tower in trained}
    frozen = {tower: leaves for tower, leaves in params.items() if tower not in trained}
    batch = make_batch(4, size=32)
    counted = count_train_step(model, trainable, frozen, batch).flops_per_example

    def loss(trainable, frozen, batch):
        return loss_fn(merge(trainable, frozen), model, batch).loss_sum

    jitted = jax.jit(jax.grad(loss), compiler_options=FAST_COMPILE)
    compiled = jitted.lower(trainable, frozen, batch).compile().cost_analysis()["flops"] / 4
    assert 1.0 < compiled / counted < 1.03
    if "lm" not in trained:  # the check can fail: a language model that trains costs more
        full = count_train_step(model, params, {}, batch).flops_per_example
        assert full / counted > 1.2


@functools.cache
def paper_step(name, *, lm_trains=False):
    model, params = build(PUBLISHED[name], ("nf_resnet50", {}), size=224, dtype=jnp.bfloat16)
    lm = {"lm": params.pop("lm")}
    trainable, frozen = ({**params, **lm}, {}) if lm_trains else (params, lm)
    return count_train_step(model, trainable, frozen, make_batch(128, size=224))


@pytest.mark.parametrize(
    ("name", "flops", "rates"),
    [
        ("gpt2", 40e9, {"h100": 12.8e3, "v5e": 3.4e3, "v6e": 7.9e3}),
        ("facebook/opt-6.7b", 927e9, {"h100": 820, "v5e": 200, "v6e": 870}),
    ],
)
def test_published_models_cost_what_arithmetic_by_hand_says(name, flops, rates):
    """NF-ResNet-50 at 224 pixels, 2 slots, 32 caption tokens.

    On a v6e a small language model is bound by memory too. There two estimates differ more: this one has logits and
    attention scores in float32, as they are.
    """
    step = paper_step(name)
    assert step.flops_per_example == pytest.approx(flops, rel=0.01)
    for chip, rate in rates.items():
        roofline = step.examples_per_s(H100 if chip == "h100" else CHIPS[chip])
        assert roofline == pytest.approx(rate, rel=0.1 if chip == "v6e" else 0.05), chip


def test_fine_tuning_costs_more():
    assert paper_step("gpt2", lm_trains=True).flops_per_example == pytest.approx(48e9, rel=0.01)


def test_the_encoder_is_bound_by_memory():
    """NF-ResNet-50: 23.5 GFLOP with its backward pass, about 170 MB an image by hand."""
    vision = paper_step("gpt2").vision
    assert vision.flops / 128 == pytest.approx(23.5e9, rel=0.01)
    assert vision.bytes / 128 == pytest.approx(170e6, rel=0.03)


@pytest.mark.parametrize(("name", "rate"), [("gpt2", 12.1e3), ("gpt2-xl", 961), ("facebook/opt-6.7b", 225)])
def test_single_stream_decoding_reads_the_weights_once_a_token(name, rate):
    config = lm_config_from_hf(PUBLISHED[name])
    model = FrozenModel(build_lm(config, dtype=jnp.bfloat16))
    params = jax.tree.map(
        lambda leaf: Abstract(leaf.shape, jnp.bfloat16), jax.eval_shape(model.init_lm, jax.random.key(0))
    )
    costs = count_decode_token(model, params, rows=1, length=64)
    assert 1 / costs.seconds(H100) == pytest.approx(rate, rel=0.02)


def test_a_product_costs_once_more_for_each_operand_that_trains():
    a, b = Abstract((8, 16), jnp.float32), Abstract((16, 4), jnp.float32)
    once = 2.0 * 8 * 16 * 4
    assert count_costs(jnp.dot, {}, a, b, first=1).flops == once
    assert count_costs(jnp.dot, a, b).flops == 2 * once
    assert count_costs(lambda pair: jnp.dot(*pair), (a, b)).flops == 3 * once
    # Read both and write the result; then, with its gradient, read that and the other and write one's own.
    assert count_costs(jnp.dot, {}, a, b, first=1).bytes == 4 * (128 + 64 + 32)
    assert count_costs(jnp.dot, a, b).bytes == 4 * (2 * (128 + 64 + 32))


def test_nothing_flows_through_a_stopped_or_integer_path():
    x, kernel = Abstract((4, 4), jnp.float32), Abstract((4, 4), jnp.float32)

    def rounded(x, kernel):
        return x.astype(jnp.int32).astype(jnp.float32) @ kernel

    assert count_costs(rounded, x, kernel).flops == 2.0 * 4 * 4 * 4


def test_a_loop_counts_each_turn_and_a_gradient_enters_once():
    """The carry starts without a gradient; the trained bias gives it one, from the second turn on counted for all."""
    bias, carry = Abstract((4, 4), jnp.float32), Abstract((4, 4), jnp.float32)
    kernels = Abstract((5, 4, 4), jnp.float32)

    def loop(bias, carry, kernels):
        return lax.scan(lambda c, kernel: (c @ kernel + bias, None), carry, kernels)[0]

    assert count_costs(loop, {}, bias, carry, kernels, first=1).flops == 5 * 2.0 * 64
    assert count_costs(loop, bias, carry, kernels).flops == 2 * 5 * 2.0 * 64


def test_a_convolution_is_counted_without_its_padding():
    """3x3 over 4x4 with padding 1: each axis has 2 + 3 + 3 + 2 taps on the image."""
    image, kernel = Abstract((1, 4, 4, 3), jnp.float32), Abstract((3, 3, 3, 8), jnp.float32)
    numbers = ("NHWC", "HWIO", "NHWC")

    def convolve(image, kernel):
        return lax.conv_general_dilated(image, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=numbers)

    assert count_costs(convolve, {}, image, kernel, first=1).flops == 2 * 3 * 8 * 10 * 10


def test_a_narrow_kernel_is_read_narrow():
    x, kernel = Abstract((8, 16), jnp.bfloat16), Abstract((16, 4), jnp.int8)
    costs = count_costs(lambda x, kernel: x @ kernel.astype(jnp.bfloat16), {}, x, kernel, first=1)
    assert costs.bytes == 2 * 128 + 64 + 2 * 32


def test_the_optimiser_reads_and_writes_what_trains():
    model, params = build(GPT2, NF_RESNET, size=32)
    batch = make_batch(4, size=32)
    lm = {"lm": params.pop("lm")}
    counts = [
        count_costs(lambda t, f, images: model.embed_images(merge(t, f), images), params, lm, batch.images),
        count_train_step(model, params, lm, batch).vision,
    ]
    seen = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert counts[1].bytes - counts[0].bytes == OPTIMISER_BYTES * seen


def test_the_phases_run_one_after_the_other():
    chip = CHIPS["v5e"]
    step = StepCosts(vision=Costs(0.0, 819e9), lm=Costs(197e12, 1.0), examples=10)
    assert step.examples_per_s(chip) == pytest.approx(5)
    assert step.examples_per_s(chip, devices=8) == pytest.approx(40)


def test_an_answer_is_its_pictures_its_prompt_and_its_new_words():
    """GPT-2 by hand: 12 D^2 products a layer and position, attention over what stands before, words at one position."""
    model, params = build(GPT2, NF_RESNET, size=32)
    width, layers, vocab = 256, 2, 1000

    def read(queries, keys):
        return 2 * layers * (12 * width**2 * queries + 2 * width * queries * keys) + 2 * width * vocab

    count = functools.partial(count_answer, model, params, image_size=32)
    assert count(pictures=0, positions=10, new_tokens=1) == read(10, 10)
    assert count(pictures=0, positions=10, new_tokens=4) == read(10, 10) + 3 * read(1, 12)
    one = count(pictures=1, positions=10, new_tokens=1) - read(10, 10)
    assert count(pictures=2.5, positions=10, new_tokens=1) == pytest.approx(read(10, 10) + 2.5 * one)
