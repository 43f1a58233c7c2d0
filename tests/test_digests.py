"""The digest is its definition, on any sharding, and sees all that may happen to the bits of an array."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xxhash
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from frozen_jax.digests import Digest, digest_arrays


def digest_by_definition(array: np.ndarray, block: tuple[int, ...]) -> str:
    """Counts the blocks as they come in row-major order."""
    corners = itertools.product(*(range(0, size, part) for size, part in zip(array.shape, block, strict=True)))
    pieces = (
        array[tuple(slice(start, start + part) for start, part in zip(corner, block, strict=True))]
        for corner in corners
    )
    total = sum(xxhash.xxh3_128_intdigest(piece.tobytes(), seed=number) for number, piece in enumerate(pieces))
    return f"{total % 2**128:032x}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool", "int32"])
@pytest.mark.parametrize("shape", [(), (1,), (8, 3), (40_000,), (0, 4)])
def test_the_digest_of_an_array_on_one_device_is_xxh3(shape, dtype):
    array = (jax.random.normal(jax.random.key(1), shape) * 9).astype(dtype)
    total = xxhash.xxh3_128_hexdigest(np.asarray(array).tobytes())
    assert digest_arrays({"a": array}) == {"a": Digest(shape, total)}


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 4), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


@pytest.mark.parametrize(
    ("spec", "block"),
    [
        (P(), (8, 12, 4)),
        (P("x"), (4, 12, 4)),
        (P(None, "y"), (8, 3, 4)),
        (P("y", "x"), (2, 6, 4)),
        (P(("x", "y")), (1, 12, 4)),
        (P("x", None, "y"), (4, 12, 1)),
    ],
)
def test_the_digest_is_its_definition_and_verified_on_any_sharding(mesh, spec, block):
    array = jax.random.normal(jax.random.key(2), (8, 12, 4))
    sharded = {"a": jax.device_put(array, NamedSharding(mesh, spec))}
    expected = Digest(block, digest_by_definition(np.asarray(array), block))
    assert digest_arrays(sharded) == {"a": expected}
    for other in (P(), P("y"), P(None, "x", "y")):
        elsewhere = {"a": jax.device_put(array, NamedSharding(mesh, other))}
        assert digest_arrays(elsewhere, blocks={"a": block}) == {"a": expected}


def test_the_digest_sees_every_bit_swaps_and_zeroed_pages(mesh):
    array = np.ones((8, 128), np.float32)
    array[3, 7] = 2.0
    halves = NamedSharding(mesh, P("x"))

    def digest(array):
        return digest_arrays({"a": jax.device_put(jnp.asarray(array), halves)})["a"].sum

    seen = {digest(array)}
    for bit in range(32):
        other = array.copy()
        other.view(np.uint32)[5, 70] ^= np.uint32(1 << bit)
        seen.add(digest(other))
    assert len(seen) == 33
    for change in ([(3, 1.0), (4, 2.0)], [(0, -1.0), (1, -1.0)], [(slice(0, 4), 0.0)], [(7, np.float32(1.0000001))]):
        other = array.copy()
        for row, value in change:
            other[row] = value
        seen.add(digest(other))
    assert len(seen) == 37
    assert digest(np.roll(array, 4, axis=0)) not in seen  # the two blocks exchanged
