"""Devices: the mesh, and where batches and parameters lie on it. Next: `train.py`.

One axis, `data`: every device holds all parameters and a share of the batch's examples, and the compiler adds one
reduction of the gradient. `jax.jit` gets every output's sharding stated (`train.py`); left to guess, it may choose
another than the inputs'.
"""

from __future__ import annotations

from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from frozen_jax.batch import Batch
from frozen_jax.config import MeshSettings
from frozen_jax.errors import UserError

Tree = TypeVar("Tree")


def make_mesh(settings: MeshSettings, *, batch_size: int) -> Mesh:
    """Arranges the devices along the axis `data`.

    Args:
        settings: devices to use; -1 is all of them.
        batch_size: examples of one micro-batch over all devices.

    Raises:
        UserError: more devices than there are, or a batch that they cannot share equally.
    """
    there = jax.device_count()
    wanted = there if settings.data == -1 else settings.data
    if wanted > there or (wanted < there and jax.process_count() > 1):
        raise UserError(f"config.mesh.data is {wanted}, but there are {there} devices; use {there}, or -1 for all")
    if batch_size % wanted:
        raise UserError(
            f"a batch of {batch_size} examples cannot be shared by {wanted} devices in equal parts; make "
            f"config.train.batch_size (divided by config.optim.accumulate) a multiple of {wanted}"
        )
    return jax.make_mesh((wanted,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:wanted])


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds all of it."""
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
    """Cut along the first axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Puts this host's rows on its devices; the result stands for the global batch."""
    sharding = by_example(mesh)
    put: Batch = jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, np.asarray(rows)), batch)
    return put


def put_replicated(tree: Tree, mesh: Mesh) -> Tree:
    """Copies every leaf to all devices."""
    copied: Tree = jax.device_put(tree, replicated(mesh))
    return copied
