"""What a step must cost: operations and memory traffic counted from the program itself, and the roofline they give.

The count is analytic. The *forward* program is traced (never compiled or run) and every matrix product and convolution
in it is counted; the backward pass is not traced but derived: a product costs once more for each operand that a
gradient flows to. So a frozen kernel adds nothing, and whatever a compiled step needs beyond this count is waste.

    product          operands that train         cost, in forward products
    frozen layer     its input                   2      (1 while no image stands before it)
    attention        queries, keys / values      3
    trained layer    its input, its kernel       3      (2 for the first: images have no gradient)

Everything between products is taken to be fused into them. A product reads its operands and writes its result; a
gradient reads the result's gradient and the other operand, and once more what it has to pass on its way (the input of
the activation or norm before it), and is written; where two branches meet, the shorter one is read again, both ways.
Used by `tools/compile_check.py` and for MFU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from frozen_jax.batch import Batch
from frozen_jax.chips import Chip
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.models.lm import init_cache
from frozen_jax.state import Params, merge
from frozen_jax.steps import LossOptions, choose_loss

OPTIMISER_BYTES = 32
"""Per trained parameter and step: parameter and both moments read and written, gradient written and read, float32."""

_MOVED = ("broadcast_in_dim", "convert_element_type", "reshape", "sharding_constraint", "squeeze", "transpose")
"""Operations after which the bytes to be read are those of what they were made from."""

_LINEAR = (*_MOVED, "add", "add_any", "concatenate", "gather", "neg", "pad", "reduce_sum", "reverse", "slice", "sub")
"""Operations whose gradient needs nothing but the gradient of their result."""

_LINEAR_IN_ONE = ("div", "dynamic_slice", "dynamic_update_slice", "mul", "select_n", "split")
"""Likewise, while a gradient flows to one operand alone."""


class Costs(NamedTuple):
    """Operations (a multiplication and an addition are two) and bytes to and from memory."""

    flops: float = 0.0
    bytes: float = 0.0

    def plus(self, other: Costs, times: int = 1) -> Costs:
        """Returns self + times * other."""
        return Costs(self.flops + times * other.flops, self.bytes + times * other.bytes)

    def seconds(self, chip: Chip) -> float:
        """Least time on one device: the operations at peak or the bytes at full bandwidth, whichever is longer."""
        return max(self.flops / chip.device_flops_per_s, self.bytes / chip.device_bytes_per_s)


class StepCosts(NamedTuple):
    """Costs of one training step over all devices.

    Attributes:
        vision: encoder and prefix, forward and backward, with their optimiser.
        lm: everything else.
        examples: in the step.
    """

    vision: Costs
    lm: Costs
    examples: int

    @property
    def flops_per_example(self) -> float:
        """Operations that one example needs."""
        return (self.vision.flops + self.lm.flops) / self.examples

    def examples_per_s(self, chip: Chip, *, devices: int = 1) -> float:
        """Two-phase roofline: vision, then language model, each at its own limit, evenly over the devices.

        It knows nothing of communication, of launches and of what is not fused: no step can be faster.
        """
        return devices * self.examples / (self.vision.seconds(chip) + self.lm.seconds(chip))


def count_train_step(model: FrozenModel, trainable: Params, frozen: Params, batch: Batch) -> StepCosts:
    """Counts a training step, from arrays or `jax.ShapeDtypeStruct`s.

    Args:
        model: the towers.
        trainable: parameters that train.
        frozen: the others.
        batch: of the size that is meant; kernels are read once for all of it.
    """

    def loss(trainable: Params, frozen: Params, batch: Batch) -> Any:
        options = LossOptions(retrieval_weight=float(model.retrieval is not None))
        return choose_loss(model)(merge(trainable, frozen), model, batch, options=options)

    def encode(trainable: Params, frozen: Params, images: Any) -> Any:
        return model.embed_images(merge(trainable, frozen), images)

    whole, vision = count_costs(loss, trainable, frozen, batch), Costs()
    if batch.images.shape[1] and model.prefix is not None:
        vision = count_costs(encode, trainable, frozen, batch.images)
    lm_trains = trainable.get("lm", {})
    seen = {tower: leaves for tower, leaves in trainable.items() if tower != "lm"}
    return StepCosts(
        vision=vision.plus(Costs(bytes=OPTIMISER_BYTES * _count(seen))),
        lm=whole.plus(vision, -1).plus(Costs(bytes=OPTIMISER_BYTES * _count(lm_trains))),
        examples=batch.sample_ids.shape[0],
    )


def count_decode_token(model: FrozenModel, params: Params, *, rows: int, length: int) -> Costs:
    """Counts the decoding of one more token in each row: all kernels and the cache are read once.

    Args:
        model: the towers.
        params: with "lm".
        rows: decoded together.
        length: positions in the cache.
    """
    config, dtype = model.lm.config, model.lm.dtype
    cache = jax.eval_shape(lambda: init_cache(config, batch=rows, length=length, dtype=dtype))

    def feed(params: Params, cache: Any, words: Any) -> Any:
        hidden, cache = model.lm.apply(
            {"params": params["lm"]},
            model.embed(params, words, None),
            positions=jnp.zeros((rows, 1), jnp.int32),
            mask=jnp.ones((rows, 1, length), bool),
            cache=cache,
            cache_index=jnp.int32(0),
            method="stack",
        )
        return model.logits(params, hidden)

    return count_costs(feed, {}, params, cache, jax.ShapeDtypeStruct((rows, 1), jnp.int32), first=1)


def count_answer(
    model: FrozenModel, params: Params, *, pictures: int | float, image_size: int, positions: int, new_tokens: int
) -> float:
    """Counts the operations of answering one prompt by itself: nothing is shared with others, nothing is padding.

    Args:
        model: the towers.
        params: theirs.
        pictures: in the prompt, each encoded once; a mean over prompts need not be whole.
        image_size: their height and width.
        positions: of the prompt, at least 1; words are scored at its last one alone.
        new_tokens: after it; the last of them is never fed.
    """

    def encode(params: Params, images: Any) -> Any:
        return model.embed_images(params, images)

    def read(params: Params, words: Any) -> Any:
        hidden = model.run_lm(params, model.embed(params, words, None), jnp.ones(words.shape, jnp.int32))
        return model.logits(params, hidden[:, -1:])

    flops = count_costs(read, {}, params, jax.ShapeDtypeStruct((1, positions), jnp.int32), first=1).flops
    if pictures:
        image = jax.ShapeDtypeStruct((1, 1, image_size, image_size, 3), jnp.uint8)
        flops += pictures * count_costs(encode, {}, params, image, first=1).flops
    if new_tokens > 1:
        length = positions + new_tokens // 2  # of the cache, on average
        flops += (new_tokens - 1) * count_decode_token(model, params, rows=1, length=length).flops
    return flops


def count_costs(function: Callable[..., Any], trainable: Any, *others: Any, first: int = 0) -> Costs:
    """Counts `function(trainable, *others)` and its gradient with respect to `trainable`.

    Args:
        function: traced, not run.
        trainable: arguments that a gradient is taken for.
        *others: arguments without.
        first: arguments that the function does not take.
    """
    arguments = (trainable, *others)
    closed = jax.make_jaxpr(function)(*arguments[first:])
    count = len(jax.tree.leaves(trainable))
    values = [_Value(index < count, 0, _size(var.aval)) for index, var in enumerate(closed.jaxpr.invars)]
    return _walk(closed.jaxpr, values)[1]


class _Value(NamedTuple):
    """What is known of a value in the program.

    Attributes:
        trains: a gradient flows to it.
        depth: products before it, on the longest way.
        bytes: to read it.
        bent: something not linear stands between it and the product before, so its gradient needs what went in there.
    """

    trains: bool
    depth: int
    bytes: float
    bent: bool = False


_CONSTANT = _Value(False, 0, 0.0)


def _walk(jaxpr: Jaxpr, arguments: Sequence[_Value]) -> tuple[list[_Value], Costs]:
    """Returns what is known of the results, and the costs of everything inside."""
    known: dict[Any, _Value] = dict(zip(jaxpr.invars, arguments, strict=True))
    total = Costs()

    def look(atom: Any) -> _Value:
        return known.get(atom, _Value(False, 0, _size(atom.aval))) if not isinstance(atom, Literal) else _CONSTANT

    for equation in jaxpr.eqns:
        given = [look(atom) for atom in equation.invars]
        name = equation.primitive.name
        if name in ("dot_general", "conv_general_dilated"):
            results, costs = _product(equation, given)
        elif name == "scan":
            results, costs = _loop(equation, given)
        elif inner := _inner(equation):
            walked = [_walk(body, given[len(given) - len(body.invars) :]) for body in inner]
            results, costs = max(walked, key=lambda pair: pair[1].flops)
        else:
            results, costs = _pointwise(equation, given)
        total = total.plus(costs)
        known.update(zip(equation.outvars, results, strict=True))
    return [look(atom) for atom in jaxpr.outvars], total


def _product(equation: Any, given: Sequence[_Value]) -> tuple[list[_Value], Costs]:
    left, right = (atom.aval for atom in equation.invars)
    out = equation.outvars[0].aval
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        flops = 2.0 * out.size * math.prod(left.shape[axis] for axis in contracted)
    else:
        flops = _convolution_flops(equation.params, left.shape, right.shape, out.shape)
    costs = Costs(flops, given[0].bytes + given[1].bytes + _size(out))
    for own, other, aval in ((given[0], given[1], left), (given[1], given[0], right)):
        if own.trains:
            passed = _size(aval) if own.bent and own.depth else 0.0
            costs = costs.plus(Costs(flops, _size(out) + other.bytes + _size(aval) + passed))
    trains = given[0].trains or given[1].trains
    return [_Value(trains, 1 + max(given[0].depth, given[1].depth), _size(out))], costs


def _convolution_flops(params: Any, image: Sequence[int], kernel: Sequence[int], out: Sequence[int]) -> float:
    """Counts taps on the image alone; those on padding are no work."""
    numbers = params["dimension_numbers"]
    taps = 1
    for axis, (stride, (before, _)) in enumerate(zip(params["window_strides"], params["padding"], strict=True)):
        size, width = image[numbers.lhs_spec[2 + axis]], kernel[numbers.rhs_spec[2 + axis]]
        places = np.arange(out[numbers.out_spec[2 + axis]])[:, None] * stride + np.arange(width)[None, :] - before
        taps *= int(((places >= 0) & (places < size)).sum())
    channels = kernel[numbers.rhs_spec[0]] * kernel[numbers.rhs_spec[1]]
    return float(2 * out[numbers.out_spec[0]] * channels * taps)


def _loop(equation: Any, given: Sequence[_Value]) -> tuple[list[_Value], Costs]:
    body, steps = equation.params["jaxpr"].jaxpr, equation.params["length"]
    # Inputs are constants, then what is carried, then what is cut: the latter have one axis less inside. How JAX names
    # these numbers differs from release to release.
    carries = sum(out.aval.ndim == inner.aval.ndim for out, inner in zip(equation.outvars, body.outvars, strict=True))
    whole = sum(out.aval.ndim == inner.aval.ndim for out, inner in zip(equation.invars, body.invars, strict=True))
    consts = whole - carries
    sliced = [one._replace(bytes=one.bytes / steps) for one in given[consts + carries :]]
    carry = list(given[consts : consts + carries])
    while True:  # a gradient that enters in one turn is there in all that follow
        results, costs = _walk(body, [*given[:consts], *carry, *sliced])
        grown = [a._replace(trains=a.trains or b.trains) for a, b in zip(carry, results[:carries], strict=True)]
        if grown == carry:
            break
        carry = grown
    stacked = [one._replace(bytes=one.bytes * steps) for one in results[carries:]]
    return [*results[:carries], *stacked], Costs().plus(costs, steps)


def _inner(equation: Any) -> list[Jaxpr]:
    """Returns the programs that an operation calls, of which it runs one (`cond`), or all of them once."""
    found = []
    for value in equation.params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, ClosedJaxpr | Jaxpr):
                found.append(one.jaxpr if isinstance(one, ClosedJaxpr) else one)
    return [body for body in found if len(body.outvars) == len(equation.outvars)]


def _pointwise(equation: Any, given: Sequence[_Value]) -> tuple[list[_Value], Costs]:
    name, trains = equation.primitive.name, any(one.trains for one in given)
    depth = max((one.depth for one in given), default=0)
    linear = name in _LINEAR or (name in _LINEAR_IN_ONE and sum(one.trains for one in given) == 1)
    bent = trains and (not linear or any(one.bent for one in given))
    results = []
    for var in equation.outvars:
        size = min(_size(var.aval), given[0].bytes) if name in _MOVED else _size(var.aval)
        results.append(_Value(trains and jnp.issubdtype(var.aval.dtype, jnp.floating), depth, size, bent))
    costs = Costs()
    if name in ("add", "add_any") and given[0].depth != given[1].depth:
        shorter = min(given, key=lambda one: one.depth)
        costs = Costs(bytes=(2.0 if shorter.trains else 1.0) * shorter.bytes)
    return results, costs


def _size(aval: Any) -> float:
    return float(math.prod(aval.shape)) * getattr(aval.dtype, "itemsize", 0)


def _count(params: Params) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
