"""The digest is its definition, on any sharding, and sees the damage that a plain sum or product would miss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from frozen_jax.digests import digest_arrays


def digest_by_definition(array: np.ndarray) -> str:
    words = array.reshape(-1).view({1: np.uint8, 2: np.uint16, 4: np.uint32}[array.dtype.itemsize]).tolist()
    total = 0
    for place, word in enumerate(words):
        mixed = word ^ (place * 0x9E3779B1 % 2**32)
        mixed = (mixed ^ (mixed >> 16)) * 0x85EBCA6B % 2**32
        mixed = (mixed ^ (mixed >> 13)) * 0xC2B2AE35 % 2**32
        total += mixed ^ (mixed >> 16)
    return f"{total % 2**32:08x}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool", "int32"])
@pytest.mark.parametrize("shape", [(), (1,), (8, 3), (40_000,), (8, 5, 2), (2, 1, 1)])
def test_digest_is_its_definition(shape, dtype):
    array = (jax.random.normal(jax.random.key(1), shape) * 9).astype(dtype)
    assert digest_arrays({"a": array}) == {"a": digest_by_definition(np.asarray(array))}


@pytest.mark.parametrize(
    "spec", [P("x"), P(None, "y"), P("y", "x"), P(None, None, "x"), P(("x", "y")), P("x", None, "y")]
)
def test_digest_does_not_depend_on_the_sharding(spec):
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    array = jax.random.normal(jax.random.key(2), (8, 12, 4))
    sharded = jax.device_put(array, NamedSharding(mesh, spec))
    assert digest_arrays({"a": sharded}) == digest_arrays({"a": array})


def test_digest_sees_swaps_signs_and_zeroed_pages():
    array = np.ones(4096, np.float32)
    array[7] = 2.0
    seen = {digest_arrays({"a": jnp.asarray(array)})["a"]}
    for change in ([(7, 1.0), (8, 2.0)], [(0, -1.0), (1, -1.0)], [(slice(0, 1024), 0.0)], [(4095, 1.0000001)]):
        other = array.copy()
        for place, value in change:
            other[place] = value
        seen.add(digest_arrays({"a": jnp.asarray(other)})["a"])
    assert len(seen) == 5
