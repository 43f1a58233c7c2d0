"""Reading compiled programs: loops counted as often as they turn, products in all their disguises, collectives once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from frozen_jax.flops import count_train_step
from frozen_jax.hlo import Program
from frozen_jax.state import merge
from frozen_jax.steps import loss_fn
from tests.models.lm_cases import FAST_COMPILE
from tests.test_flops import GPT2, LLAMA, NF_RESNET, VIT, build, make_batch


@pytest.mark.parametrize(
    ("architecture", "vision", "remat"), [({**GPT2, "n_layer": 5}, NF_RESNET, "none"), (LLAMA, VIT, "full")]
)
def test_a_compiled_step_with_loops_has_the_operations_that_were_counted(architecture, vision, remat):
    """To the operation without recomputation; with it, up to the language model's forward pass once more."""
    model, params = build(architecture, vision, size=32, remat=remat)
    frozen, batch = {"lm": params.pop("lm")}, make_batch(4, size=32)

    def loss(trainable, frozen, batch):
        return loss_fn(merge(trainable, frozen), model, batch).loss_sum

    lowered = jax.jit(jax.grad(loss), compiler_options=FAST_COMPILE).lower(params, frozen, batch)
    compiled = lowered.compile()
    counted = count_train_step(model, params, frozen, batch)
    ratio = Program(compiled.as_text()).flops() / (4 * counted.flops_per_example)
    if remat == "none":
        assert ratio == pytest.approx(1.0, abs=1e-3)
    else:
        assert 1.1 < ratio < 1 + 0.5 * counted.lm.flops / (4 * counted.flops_per_example)
    # What the compiler itself says has each loop's body once.
    assert compiled.cost_analysis()["flops"] < 0.9 * Program(compiled.as_text()).flops()


LOOP = """
%body.1 (p.1: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p.1 = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)S(1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %two.1 = s32[]{:T(128)} constant(2)
  %next.1 = s32[]{:T(128)} add(%i.1, %two.1)
  %x.1 = f32[8,16]{1,0:T(8,128)} get-tuple-element(%p.1), index=1
  %d.1 = f32[8,16]{1,0:T(8,128)} convolution(%x.1, %k.1), dim_labels=bf_io->bf
  ROOT %r.1 = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) tuple(%next.1, %d.1)
}

%condition.1 (p.2: (s32[], f32[8,16])) -> pred[] {
  %limit.1 = s32[]{:T(128)} constant(7)
  %p.2 = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)S(1)}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%i.2, %limit.1), direction=LT
}

ENTRY %main.1 (x.2: f32[8,16]) -> f32[8,16] {
  %k.1 = f32[16,16]{1,0:T(8,128)} parameter(0)
  %start.1 = (f32[4]{0}, f32[32]{0}) all-gather-start(%k.1), channel_id=3, replica_groups=[1,8]<=[8]
  %done.1 = f32[32]{0} all-gather-done(%start.1)
  ROOT %while.1 = (s32[]{:T(128)}, f32[8,16]{1,0}) while(%t.1), condition=%condition.1, body=%body.1
}
"""


def test_turns_are_read_from_condition_and_stride_and_both_halves_of_a_collective_are_one():
    program = Program(LOOP)
    assert program.flops() == 4 * 2 * 8 * 16 * 16  # 0, 2, 4, 6
    assert program.collectives() == {"all-gather": {"count": 1, "runs": 1, "bytes": 128}}


@pytest.mark.parametrize(
    ("line", "flops"),
    [
        # 3x3 over 4x4 with padding: (2 + 3 + 3 + 2)^2 taps, 3 channels in and 8 out.
        ("f32[1,4,4,8]{3,2,1,0} convolution(%a, %b), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f", 4800),
        # Four products of [5, 6] with [6, 7], as one over an image with gaps in which each meets its partner.
        ("f32[4,5,7]{2,1,0} convolution(%c, %d), window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0io->0bf", 1680),
    ],
)
def test_only_taps_on_the_image_count(line, flops):
    text = f"""ENTRY %main.1 (x: f32[1]) -> f32[1] {{
  %a = f32[1,4,4,3]{{3,2,1,0}} parameter(0)
  %b = f32[3,3,3,8]{{3,2,1,0}} parameter(1)
  %c = f32[4,5,6]{{2,1,0}} parameter(2)
  %d = f32[4,6,7]{{2,1,0}} parameter(3)
  ROOT %r = {line}
}}"""
    assert Program(text).flops() == flops


def test_collectives_of_a_sharded_product():
    """The summed axis is cut over 8 devices: each adds its part, and one all-reduce of f32[4, 4] joins them."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    cut = [NamedSharding(mesh, spec) for spec in (PartitionSpec(None, "data"), PartitionSpec("data", None))]
    product = jax.jit(jnp.dot, in_shardings=cut, out_shardings=NamedSharding(mesh, PartitionSpec()))
    text = product.lower(np.ones((4, 16), np.float32), np.ones((16, 4), np.float32)).compile().as_text()
    assert Program(text).collectives() == {"all-reduce": {"count": 1, "runs": 1, "bytes": 64}}
    assert Program(text).flops() == 2 * 4 * 4 * 2


def test_a_collective_in_a_loop_is_one_that_runs_every_turn():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    cut = NamedSharding(mesh, PartitionSpec(None, "data"))

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))
    def loop(x, kernels):
        def turn(x, kernel):
            x = jax.lax.with_sharding_constraint(x, cut)
            kernel = jax.lax.with_sharding_constraint(kernel, NamedSharding(mesh, PartitionSpec("data", None)))
            return jnp.tanh(jax.lax.with_sharding_constraint(x @ kernel, NamedSharding(mesh, PartitionSpec()))), None

        return jax.lax.scan(turn, x, kernels)[0]

    text = loop.lower(np.ones((4, 16), np.float32), np.ones((6, 16, 16), np.float32)).compile().as_text()
    found = Program(text).collectives()["all-reduce"]
    assert (found["count"], found["runs"]) == (1, 6)
