"""Compiles a run's steps for a TPU slice that is not there, on any machine: does it fit, and what will it do?

The real programs are compiled, from shapes alone (`abstract.py`), by the TPU compiler that comes with `jax[tpu]`. Used
by `tools/compile_check.py`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils, topologies
from jax.sharding import AxisType, Mesh

from frozen_jax.abstract import AbstractRun, abstract_run
from frozen_jax.chips import Slice
from frozen_jax.config import Config
from frozen_jax.decode import DecodeConfig, generate
from frozen_jax.errors import UserError
from frozen_jax.flops import StepCosts, count_train_step
from frozen_jax.hlo import Program
from frozen_jax.sharding import AXES, by_example, bytes_per_device, check_rows, choose_sizes, on_mesh, shardings_of
from frozen_jax.state import Params, merge
from frozen_jax.train import choose_loss_options, compile_train_step

_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # there is no machine of the cloud to ask about itself
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several of these at once
}
"""What the compiler needs to run without a TPU; it reads them when it is loaded, at the first `make_slice_mesh`."""

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


class Compiled(NamedTuple):
    """One program compiled for a slice, per device.

    Attributes:
        fits: in the memory that the compiler grants.
        peak_bytes: most memory in use; where it does not fit, what the compiler said it needs.
        argument_bytes: of it, parameters, state and inputs; 0 where it does not fit.
        flops: operations of matrix products and convolutions; 0 where it does not fit.
        collectives: as `hlo.Program.collectives`.
        message: the compiler's own words where it does not fit.
    """

    fits: bool
    peak_bytes: int
    argument_bytes: int = 0
    flops: float = 0.0
    collectives: dict[str, dict[str, int]] = {}  # noqa: RUF012 (never changed)
    message: str = ""


def make_slice_mesh(config: Config, target: Slice) -> Mesh:
    """Arranges the devices of a slice as the config's mesh says.

    Raises:
        UserError: no TPU compiler here, or a mesh or batch that does not fit the slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("there is no TPU compiler here; install it with: pip install 'frozen_jax[tpu]'")
    os.environ.update(_ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")
    sizes = choose_sizes(config.mesh, devices=target.devices)
    check_rows(sizes, batch_size=config.micro_batch_rows)
    name, options = target.describe()
    there = list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    used = there[: math.prod(sizes)]
    devices = mesh_utils.create_device_mesh(sizes, used, allow_split_physical_axes=True)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 3)


def compile_train(config: Config, run: AbstractRun) -> Compiled:
    """Compiles the training step of a run on a mesh of `make_slice_mesh`."""
    options = choose_loss_options(config)
    step = compile_train_step(run.model, config.optim, run.rules, options, config.train.steps, run.placement)
    return _compile(step, run.state, run.frozen, run.batch, run.rng)


def compile_decode(config: Config, run: AbstractRun) -> Compiled:
    """Compiles the decoding of `evaluate.max_new_tokens` after prompts as long as a training row.

    Pictures are encoded before and apart; of the encoder the memory of its parameters alone is counted.
    """
    model, mesh, settings = run.model, run.placement.mesh, config.evaluate
    groups = mesh.shape["data"] * mesh.shape["fsdp"]
    rows, positions = -(-settings.batch_size // groups) * groups, run.batch.tokens.shape[1]
    params = merge(run.state.trainable, run.frozen)

    def decode(lm: Params, embeddings: Any, mask: Any) -> Any:
        decoding = DecodeConfig(max_new_tokens=settings.max_new_tokens)
        return generate(model.lm, lm, embeddings, mask, config=decoding)

    def cut(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=by_example(mesh))

    width = model.lm.config.embed_width
    described = (params.pop("lm"), cut((positions, width), model.lm.dtype), cut((positions,), jnp.bool_))
    jitted = jax.jit(on_mesh(decode, mesh), in_shardings=shardings_of(described), out_shardings=by_example(mesh))
    compiled = _compile(jitted, *described)
    return compiled._replace(peak_bytes=compiled.peak_bytes + sum(map(bytes_per_device, jax.tree.leaves(params))))


def count_step(config: Config, run: AbstractRun) -> tuple[StepCosts, int]:
    """Returns the analytic costs of what the devices that share one set of rows do in a step, and how many sets there
    are. Devices along `tensor` share a set; along `data` and `fsdp` each has its own, and reads every kernel for it.
    """
    mesh = run.placement.mesh
    groups = mesh.shape["data"] * mesh.shape["fsdp"]
    parts = config.optim.accumulate * groups
    share = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((leaf.shape[0] // parts, *leaf.shape[1:]), leaf.dtype), run.batch
    )
    return count_train_step(run.model, run.state.trainable, run.frozen, share), groups


def report(config: Config, target: Slice, *, train: bool = True, decode: bool = True) -> dict[str, Any]:
    """Compiles, and compares with the analytic count and the chip; JSON types alone.

    Raises:
        UserError: as `make_slice_mesh`, or the run cannot be built.
    """
    mesh = make_slice_mesh(config, target)
    run = abstract_run(config, mesh)
    parts = {}
    if train:
        parts["train"] = compile_train(config, run)
    if decode:
        whole = dataclasses.replace(config.vision, feature_cache="")  # questions come with pictures
        parts["decode"] = compile_decode(config, abstract_run(dataclasses.replace(config, vision=whole), mesh))
    costs, groups = count_step(config, run)
    compiled = parts.get("train")
    rows = config.train.batch_size
    return {
        "slice": target.name,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "batch_size": rows,
        "fits": all(part.fits for part in parts.values()),
        "peak_bytes": max(part.peak_bytes for part in parts.values()),
        "hbm_bytes": target.chip.hbm_bytes,
        "flops_per_example": compiled.flops * mesh.size / rows if compiled and compiled.fits else None,
        "flops_per_example_analytic": costs.flops_per_example,
        "bytes_per_example_analytic": (costs.vision.bytes + costs.lm.bytes) / costs.examples,
        "collectives": compiled.collectives if compiled else {},
        "simulated_examples_per_s": groups * costs.examples_per_s(target.chip, devices=mesh.shape["tensor"]),
        **{name: part._asdict() for name, part in parts.items()},
    }


def _compile(jitted: Any, *described: Any) -> Compiled:
    lowered = jitted.trace(*described).lower(lowering_platforms=("tpu",))
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        message = " ".join(str(error).split())
        sizes = [float(size) * _UNITS[unit] for size, unit in re.findall(r"\b([\d.]+)([KMG])\b", message)]
        if "RESOURCE_EXHAUSTED" not in message or not sizes:
            raise
        # It names what is needed and what there is, in words that differ from case to case.
        return Compiled(fits=False, peak_bytes=int(max(sizes)), message=message[:500])
    memory, program = compiled.memory_analysis(), Program(compiled.as_text())
    return Compiled(
        fits=True,
        peak_bytes=memory.peak_memory_in_bytes,
        argument_bytes=memory.argument_size_in_bytes,
        flops=program.flops(),
        collectives=program.collectives(),
    )


class Change(NamedTuple):
    """Something that makes a run smaller: what to write on the command line, and the config that it gives."""

    flags: str
    config: Config


def list_changes(config: Config, target: Slice) -> list[Change]:
    """Returns what can be changed so that a run needs less memory, from what costs least to what costs most.

    None of them changes what is learnt but int8, by the rounding of the frozen weights.
    """
    changes = []
    devices = target.devices
    if devices > 1 and config.mesh.fsdp != -1:
        mesh = dataclasses.replace(config.mesh, data=1, fsdp=-1, frozen="sharded")
        flags = "--config.mesh.data=1 --config.mesh.fsdp=-1 --config.mesh.frozen=sharded"
        changes.append(Change(flags, dataclasses.replace(config, mesh=mesh)))
    for remat in ("dots", "full"):
        if config.lm.remat == "none" or (config.lm.remat == "dots" and remat == "full"):
            lm = dataclasses.replace(config.lm, remat=remat)
            changes.append(Change(f"--config.lm.remat={remat}", dataclasses.replace(config, lm=lm)))
    if config.lm.mode == "frozen" and config.lm.weights == "float":
        lm = dataclasses.replace(config.lm, weights="int8")
        changes.append(Change("--config.lm.weights=int8", dataclasses.replace(config, lm=lm)))
    accumulate = 2 * config.optim.accumulate
    while config.train.batch_size % (accumulate * devices) == 0:
        optim = dataclasses.replace(config.optim, accumulate=accumulate)
        changes.append(Change(f"--config.optim.accumulate={accumulate}", dataclasses.replace(config, optim=optim)))
        accumulate *= 2
    return changes
