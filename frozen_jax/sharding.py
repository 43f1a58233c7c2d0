"""Devices: the mesh, and where batches, parameters, optimiser state and activations lie on it. Next: `train.py`.

Three axes, their sizes from `config.mesh`:

    data     rows of the batch; every array is whole along it
    fsdp     rows of the batch, and storage: parameters and optimiser state are cut along it and gathered where used
    tensor   the language model's heads, MLP width and vocabulary; pictures, in the vision encoder

The tables of what is cut where are in `sharding_rules.py`. Every jitted step states its inputs' and outputs' shardings
from a `Placement`; left to guess, the compiler may choose others than the inputs'.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import jax
import numpy as np
import optax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from frozen_jax.batch import Batch
from frozen_jax.config import MeshSettings
from frozen_jax.errors import UserError
from frozen_jax.state import Params, TrainState, flatten, match_rules, unflatten

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")
"""The axes that rows of a batch are cut along."""

REPLICATED_BYTES = 4 * 10**9
"""A frozen tree up to this size, per device, is kept whole: a quarter of the smallest TPU's memory. It then needs no
gathering, which for weights that never change is traffic in every step."""

AnyMesh: TypeAlias = Mesh | AbstractMesh

Tree = TypeVar("Tree")
Result = TypeVar("Result")


def choose_sizes(settings: MeshSettings, *, devices: int) -> tuple[int, int, int]:
    """Resolves the sizes of the axes; at most one -1 becomes what the others leave.

    Args:
        settings: from the config.
        devices: how many there are.

    Raises:
        UserError: the sizes do not multiply to a number of devices that is there.
    """
    sizes = {axis: getattr(settings, axis) for axis in AXES}
    fixed = math.prod(size for size in sizes.values() if size != -1)
    shown = " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size != -1)
    for axis, size in sizes.items():
        if size == -1:
            if devices % fixed:
                raise UserError(
                    f"config.mesh.{axis} is -1, the rest of {devices} devices, but {shown} = {fixed} does not divide "
                    f"{devices}; let them multiply to one of {_divisors(devices)}"
                )
            sizes[axis] = devices // fixed
    if math.prod(sizes.values()) > devices:
        largest = max(sizes, key=lambda axis: sizes[axis])
        raise UserError(
            f"config.mesh.{largest} is {sizes[largest]}, and {shown} is {fixed} devices, but there are {devices}; let "
            f"them multiply to at most {devices}, or give -1 for one axis"
        )
    return sizes["data"], sizes["fsdp"], sizes["tensor"]


def make_mesh(settings: MeshSettings, *, batch_size: int) -> Mesh:
    """Arranges the devices of all processes.

    Args:
        settings: sizes of the axes; fewer devices than there are may be used, except by several processes.
        batch_size: examples of one micro-batch over all devices.

    Raises:
        UserError: sizes that do not fit the devices, or a batch that they cannot share equally.
    """
    there = jax.device_count()
    sizes = choose_sizes(settings, devices=there)
    used = math.prod(sizes)
    if used < there and jax.process_count() > 1:
        raise UserError(
            f"config.mesh uses {used} of {there} devices; with {jax.process_count()} processes it must use all of "
            "them: set config.mesh.data=-1"
        )
    check_rows(sizes, batch_size=batch_size)
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:used])


def make_abstract_mesh(settings: MeshSettings, *, devices: int, batch_size: int) -> AbstractMesh:
    """Returns the mesh of that many devices, wherever they may be: enough for shapes and bytes.

    Raises:
        UserError: as `make_mesh`.
    """
    sizes = choose_sizes(settings, devices=devices)
    check_rows(sizes, batch_size=batch_size)
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3)


def check_rows(sizes: Sequence[int], *, batch_size: int) -> None:
    """Refuses a batch that the devices cannot share equally.

    Raises:
        UserError: data x fsdp does not divide `batch_size`.
    """
    rows = sizes[0] * sizes[1]
    if batch_size % rows:
        raise UserError(
            f"a batch of {batch_size} examples cannot be shared by {rows} devices (mesh.data {sizes[0]} x mesh.fsdp "
            f"{sizes[1]}) in equal parts; make config.train.batch_size (divided by config.optim.accumulate) a multiple "
            f"of {rows}, or let the two multiply to one of {_divisors(batch_size)}"
        )


def check_tensor(lm: Any, mesh: AnyMesh) -> None:
    """Refuses an axis `tensor` that does not divide the language model's heads and MLP width.

    Fewer key/value heads than that, and a vocabulary that it does not divide, are kept whole.

    Args:
        lm: the language model's config (`models.lm.LMConfig`).
        mesh: of the run.

    Raises:
        UserError: with the sizes that would do.
    """
    size = mesh.shape["tensor"]
    common = math.gcd(lm.heads, lm.mlp_width)
    if common % size:
        raise UserError(
            f"config.mesh.tensor is {size}, which does not divide the language model's {lm.heads} heads and MLP width "
            f"{lm.mlp_width}; use one of {_divisors(common)}, and config.mesh.fsdp for the other devices"
        )


def fit_spec(spec: PartitionSpec, shape: Sequence[int], sizes: Mapping[str, int], *, stacked: bool) -> PartitionSpec:
    """Adapts a rule to a shape and a mesh: what cannot be cut there is cut elsewhere or kept whole.

    An axis of size 1 cuts nothing. `fsdp` is about storage alone, so where it does not divide its own dimension it
    moves to the largest one that it does divide and that nothing else cuts. `tensor` is about work and moves nowhere:
    an array that it does not divide is whole (a vocabulary of 50257, three key/value heads).

        spec             shape        data, fsdp, tensor    result
        tensor, fsdp     50257, 768   1, 8, 1               -, fsdp
        tensor, fsdp     50257, 768   1, 2, 4               -, fsdp
        -, fsdp          1024, 36     1, 8, 1               fsdp, -

    Args:
        spec: the rule's.
        shape: of the parameter.
        sizes: of the mesh axes.
        stacked: the first dimension counts layers and is never cut.
    """
    wanted = [*spec, *[None] * (len(shape) - len(spec))]
    cut = [
        axis if axis and sizes[axis] > 1 and size % sizes[axis] == 0 else None
        for axis, size in zip(wanted, shape, strict=True)
    ]
    if "fsdp" in wanted and "fsdp" not in cut and sizes["fsdp"] > 1:
        free = [d for d in range(int(stacked), len(shape)) if cut[d] is None and shape[d] % sizes["fsdp"] == 0]
        if free:
            cut[max(free, key=lambda d: shape[d])] = "fsdp"
    return PartitionSpec(*cut)


@dataclass(frozen=True)
class Placement:
    """Where every array of a run lies: shapes, dtypes and shardings. Hashable, so that compiled steps are shared.

    Attributes:
        mesh: the devices.
        trainable_leaves: (path, array's description) of what trains.
        frozen_leaves: likewise of what does not.
        frozen_is_cut: whether the frozen tree is cut along `fsdp`, too.
    """

    mesh: AnyMesh
    trainable_leaves: tuple[tuple[str, jax.ShapeDtypeStruct], ...]
    frozen_leaves: tuple[tuple[str, jax.ShapeDtypeStruct], ...]
    frozen_is_cut: bool

    @property
    def trainable(self) -> Params:
        """The trainable tree."""
        return unflatten(dict(self.trainable_leaves))

    @property
    def frozen(self) -> Params:
        """The frozen tree."""
        return unflatten(dict(self.frozen_leaves))

    def state(self, optimiser: optax.GradientTransformation) -> TrainState:
        """The state of training: the optimiser's arrays lie as the parameters that they belong to.

        They are found by their path, which ends with the parameter's: `…/mu/vision/stem/kernel`.
        """
        leaves = dict(self.trainable_leaves)

        def place_one(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            parts = name.split("/")
            for start in range(len(parts)):
                owner = leaves.get("/".join(parts[start:]))
                if owner is not None and owner.shape == leaf.shape:
                    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=owner.sharding)
            assert leaf.ndim == 0, f"optimiser state {name} belongs to no parameter"
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(self.mesh))

        opt_state = jax.eval_shape(optimiser.init, self.trainable)
        return TrainState(self.trainable, jax.tree_util.tree_map_with_path(place_one, opt_state))


def place(
    trainable: Params,
    frozen: Params,
    rules: Sequence[tuple[str, PartitionSpec]],
    mesh: AnyMesh,
    *,
    frozen_choice: str,
) -> Placement:
    """Decides where the parameters lie.

    Args:
        trainable: arrays or their shapes.
        frozen: likewise.
        rules: from `sharding_rules.list_sharding_rules`.
        mesh: of the run.
        frozen_choice: `config.mesh.frozen`: "sharded" cuts the frozen tree along `fsdp`, "replicated" does not, "auto"
            does where more than `REPLICATED_BYTES` would stay on each device.

    Raises:
        UserError: a parameter that no rule covers, or a rule without a parameter.
    """
    sides = {"trainable": flatten(trainable), "frozen": flatten(frozen)}
    specs = flatten(match_rules(unflatten(sides["trainable"] | sides["frozen"]), rules, what="sharding"))
    sizes = dict(mesh.shape)
    whole = sizes | {"fsdp": 1}

    def describe(leaves: Mapping[str, Any], sizes: Mapping[str, int]) -> tuple[tuple[str, jax.ShapeDtypeStruct], ...]:
        described = []
        for path, leaf in leaves.items():
            spec = fit_spec(specs[path], leaf.shape, sizes, stacked="/blocks/" in path)
            sharding = NamedSharding(mesh, spec)
            described.append((path, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)))
        return tuple(described)

    kept = describe(sides["frozen"], whole)
    cut = frozen_choice == "sharded"
    if frozen_choice == "auto":
        cut = sum(bytes_per_device(leaf) for _, leaf in kept) > REPLICATED_BYTES
    cut = cut and sizes["fsdp"] > 1
    return Placement(mesh, describe(sides["trainable"], sizes), describe(sides["frozen"], sizes) if cut else kept, cut)


def bytes_per_device(leaf: jax.ShapeDtypeStruct) -> int:
    """Returns what one device stores of an array that a `Placement` describes."""
    shape: Sequence[int] = leaf.sharding.shard_shape(leaf.shape)
    return math.prod(shape) * int(leaf.dtype.itemsize)


def shardings_of(tree: Tree) -> Tree:
    """Returns the tree of shardings of arrays or their descriptions, as `jax.jit` takes it."""
    shardings: Tree = jax.tree.map(lambda leaf: leaf.sharding, tree)
    return shardings


def replicated(mesh: AnyMesh) -> NamedSharding:
    """Every device holds all of it."""
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: AnyMesh) -> NamedSharding:
    """Cut along the first dimension, by `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


ACTIVATIONS: Mapping[str, PartitionSpec] = {
    "pictures": PartitionSpec(AXES),
    "embeddings": PartitionSpec(ROWS),
    "logits": PartitionSpec(ROWS, None, "tensor"),
}
"""The places where activations are held to a layout: pictures [B I, …] on their way into and out of the vision encoder,
embeddings [B, S, D] on their way into the language model, and logits [B, S, V].

Everything between follows from these three. Without them the compiler may move activations to where the weights' parts
are. The vocabulary of logits need not be a multiple of `tensor`: the compiler pads them."""


def on_mesh(step: Callable[..., Result], mesh: AnyMesh) -> Callable[..., Result]:
    """Returns `step`, traced with the mesh around it, as `constrain` needs it; it works wherever `jax.jit` calls it."""

    @functools.wraps(step)
    def traced(*arguments: Any) -> Result:
        with jax.sharding.use_abstract_mesh(mesh if isinstance(mesh, AbstractMesh) else mesh.abstract_mesh):
            return step(*arguments)

    return traced


def constrain(x: Shaped[Array, "*dims"], place: str) -> Shaped[Array, "*dims"]:
    """Holds an activation to the layout of its place (`ACTIVATIONS`); outside of a mesh, it stays as it is.

    Rows are cut along as many of the place's axes as divide their number.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    rows, *rest = ACTIVATIONS[place]
    axes = [axis for axis in rows if mesh.shape[axis] > 1]
    while axes and x.shape[0] % math.prod(mesh.shape[axis] for axis in axes):
        axes.pop()
    held: Array = jax.lax.with_sharding_constraint(x, PartitionSpec(tuple(axes) or None, *rest))
    return held


def gather(params: Params, *, tables: bool = False) -> Params:
    """Makes parameters whole along `fsdp` for use; outside of a mesh, they stay as they are.

    Said at the places where the compiler would otherwise move activations to the parts of weights; the layers of a
    language model need no word: there it gathers the weights, layer by layer.

    Args:
        params: of an encoder or a prefix, or tables of vectors.
        tables: the first dimension, the vocabulary, stays cut along `tensor` where that divides it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return params

    def whole(leaf: Array) -> Array:
        cut = tables and leaf.shape[0] % mesh.shape["tensor"] == 0
        gathered: Array = jax.lax.with_sharding_constraint(leaf, PartitionSpec("tensor") if cut else PartitionSpec())
        return gathered

    gathered: Params = jax.tree.map(whole, params)
    return gathered


def share_of_rows(mesh: Mesh) -> tuple[int, int]:
    """Returns (index, count): which of how many equal shares of a batch's rows this process needs.

    Each process has the rows of its own devices; along `tensor` devices have the same rows, so where that axis leads
    over several processes, these need the same share.

    Raises:
        UserError: the processes' devices cut the rows in overlapping ways.
    """
    blocks = {process: tuple(held) for process, held in _row_blocks(mesh).items()}
    shares = sorted(set(blocks.values()))
    if sum(map(len, shares)) != mesh.shape["data"] * mesh.shape["fsdp"]:
        raise UserError(
            f"config.mesh.tensor is {mesh.shape['tensor']}, which cuts across the {jax.local_device_count()} devices "
            f"of a process; use a divisor or a multiple of {jax.local_device_count()}"
        )
    return shares.index(blocks[jax.process_index()]), len(shares)


def put_batch(batch: Batch, mesh: AnyMesh) -> Batch:
    """Puts this process's share of the rows on its devices; the result stands for the global batch."""
    assert isinstance(mesh, Mesh), "an abstract mesh has no devices"
    held = _row_blocks(mesh)[jax.process_index()]
    _, shares = share_of_rows(mesh)
    sharding = by_example(mesh)

    def put(rows: np.ndarray) -> jax.Array:
        block = len(rows) // len(held)
        shape = (len(rows) * shares, *rows.shape[1:])

        def cut(index: Any) -> np.ndarray:
            start = held.index(index[0].indices(shape[0])[0] // block) * block
            return rows[start : start + block]

        return jax.make_array_from_callback(shape, sharding, cut)

    placed: Batch = jax.tree.map(lambda rows: put(np.asarray(rows)), batch)
    return placed


def _row_blocks(mesh: Mesh) -> dict[int, list[int]]:
    """Which blocks of a batch's rows the devices of each process hold, ascending."""
    held: dict[int, set[int]] = {}
    for block, devices in enumerate(mesh.devices.reshape(-1, mesh.shape["tensor"])):
        for device in devices:
            held.setdefault(device.process_index, set()).add(block)
    return {process: sorted(blocks) for process, blocks in held.items()}


def mesh_here(placement: Placement) -> Mesh:
    """Returns a mesh of this process's devices, for work that it does by itself, such as answering questions.

    It has the axes of training as far as the devices allow, and no more devices than that: `fsdp` where the frozen
    parameters are cut, else these devices, too, share the rows along `data`.
    """
    devices = jax.local_devices()
    wanted = placement.mesh.shape
    tensor = math.gcd(wanted["tensor"], len(devices))
    fsdp = math.gcd(wanted["fsdp"], len(devices) // tensor) if placement.frozen_is_cut else 1
    rows = wanted["data"] * (1 if placement.frozen_is_cut else wanted["fsdp"])
    data = math.gcd(rows, len(devices) // (tensor * fsdp))
    used = devices[: data * fsdp * tensor]
    return jax.make_mesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3, devices=used)


def find_row_sharding(params: Params) -> NamedSharding | None:
    """Returns how rows are cut over the devices that parameters lie on; None where these share none."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    if not isinstance(sharding, NamedSharding) or sharding.mesh.shape["data"] == 1:
        return None
    return NamedSharding(sharding.mesh, PartitionSpec("data"))


def put_params(tree: Tree, described: Tree) -> Tree:
    """Puts parameters on the devices as a `Placement` describes them. Every process gives the same values.

    Args:
        tree: arrays on the host or on a device.
        described: the same tree of descriptions.
    """
    placed: Tree = jax.device_put(tree, shardings_of(described))
    return placed


def _divisors(number: int) -> str:
    return ", ".join(str(part) for part in range(1, number + 1) if number % part == 0)
