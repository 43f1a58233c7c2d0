"""`python -m frozen_jax.tools.inspect --config=FILE`: every parameter of a run, and where it lies. Loads no weights.

`--devices=256 --platform=tpu` looks at a machine that is not here; `--config.mesh.fsdp=8` and the like at another mesh.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from frozen_jax.abstract import AbstractRun, abstract_run
from frozen_jax.config import Config
from frozen_jax.config_file import read_config
from frozen_jax.errors import UserError, exit_in_one_line
from frozen_jax.run import resolve_classes
from frozen_jax.sharding import bytes_per_device, make_abstract_mesh
from frozen_jax.state import flatten
from frozen_jax.telemetry import format_bytes, format_table


def inspect_run(config: Config, *, devices: int, platform: str = "") -> str:
    """Returns the table of a run's parameters, then the sums.

    Args:
        config: the run.
        devices: how many the mesh has; they need not be here.
        platform: as for `abstract_run`.

    Raises:
        UserError: as `abstract_run`; or sizes of the mesh that do not fit the number of devices or the batch.
    """
    mesh = make_abstract_mesh(config.mesh, devices=devices, batch_size=config.micro_batch_rows)
    run = abstract_run(config, mesh, platform=platform)
    sides = {"trainable": flatten(run.state.trainable), "frozen": flatten(run.frozen)}
    rows = [
        (path, " x ".join(map(str, leaf.shape)) or "one", leaf.dtype.name, side, format_spec(leaf), _on_device([leaf]))
        for side, leaves in sides.items()
        for path, leaf in leaves.items()
    ]
    table = format_table(("parameter", "shape", "dtype", "side", "cut along", "bytes per device"), rows)
    return "\n".join([table, "", *_sums(run, sides)])


def format_spec(leaf: jax.ShapeDtypeStruct) -> str:
    """Formats along which mesh axes the dimensions of an array are cut: `-, fsdp, -, tensor`, or `whole`."""
    spec = leaf.sharding.spec
    if not any(spec):
        return "whole"
    return ", ".join(str(axis) if axis else "-" for axis in spec)


def _sums(run: AbstractRun, sides: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    mesh = run.placement.mesh
    parts = {**sides, "optimiser": jax.tree.leaves(run.state.opt_state), "batch": jax.tree.leaves(run.batch)}
    yield f"mesh       {' x '.join(f'{axis} {size}' for axis, size in mesh.shape.items())} = {mesh.size} devices"
    total = 0
    for name, leaves in parts.items():
        described = list(leaves.values() if isinstance(leaves, Mapping) else leaves)
        on_device, size = _on_device(described), _bytes(described)
        total += on_device
        yield f"{name:<9}  {format_bytes(on_device)} on each device, {format_bytes(size)} in all"
    yield f"total      {format_bytes(total)} on each device, activations and gradients not counted"
    if mesh.shape["fsdp"] > 1:
        cuttable = [*sides["trainable"].values(), *(sides["frozen"].values() if run.placement.frozen_is_cut else ())]
        whole = [leaf for leaf in cuttable if "fsdp" not in leaf.sharding.spec]
        yield f"whole      {100 * _bytes(whole) / _bytes(cuttable):.2f} % of the bytes that fsdp is to cut"
        if sides["frozen"]:
            yield f"           the frozen side is {'cut' if run.placement.frozen_is_cut else 'kept whole'} along fsdp"


def _bytes(leaves: Iterable[jax.ShapeDtypeStruct]) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _on_device(leaves: Iterable[jax.ShapeDtypeStruct]) -> int:
    return sum(map(bytes_per_device, leaves))


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and prints the table; exit status 1 with one line for what the user can mend."""
    parser = argparse.ArgumentParser(
        prog="python -m frozen_jax.tools.inspect",
        description="Shows every parameter of a run and where it lies; --config=FILE and --config.… as main has them.",
        epilog="example: python -m frozen_jax.tools.inspect --config=configs/quickstart.py --devices=8",
        allow_abbrev=False,
    )
    parser.add_argument("--devices", type=int, help="of the mesh; those here by default")
    parser.add_argument("--platform", choices=("cpu", "gpu", "tpu"), default="", help="what lm.dtype='auto' is for")
    given, rest = parser.parse_known_args(arguments)
    with exit_in_one_line():
        devices = jax.device_count() if given.devices is None else given.devices
        if devices < 1:
            raise UserError(f"--devices is {devices}; it must be at least 1")
        text = inspect_run(resolve_classes(read_config(rest)), devices=devices, platform=given.platform)
    print(text)


if __name__ == "__main__":
    main()
