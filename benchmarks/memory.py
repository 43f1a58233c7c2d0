"""Memory of a training step, `python benchmarks/memory.py`: what the frozen model saves, and what recomputing saves.

    PYTHONPATH=. python benchmarks/memory.py --lm=gpt2 --batch=8 --json=memory.json

Compiles the step, from shapes alone, with the language model frozen, trained, and frozen with its layers recomputed in
the backward pass (`lm.remat`), and prints the bytes that the compiler reserves on one device: arguments (parameters,
optimiser state, batch) and temporaries. With `--run` the frozen step also runs once and the peak that the device or,
on a CPU, the process reports stands beside it.
"""

from __future__ import annotations

import argparse
import resource
from typing import Any

import jax

from benchmarks import common
from benchmarks.train_step import build_step, compile_step
from frozen_jax.state import TrainState


def describe(compiled: Any) -> dict[str, Any]:
    """MiB that a compiled program needs: its result lies where its donated state was."""
    found = compiled.memory_analysis()
    arguments, temporary = found.argument_size_in_bytes / 2**20, found.temp_size_in_bytes / 2**20
    return {"arguments_mib": arguments, "temporary_mib": temporary, "together_mib": arguments + temporary}


def run_once(options: argparse.Namespace, compiled: Any, model: Any, shapes: Any) -> float:
    """Runs one step and returns the peak in MiB."""
    params = common.draw_params(shapes)
    _, init, divide = build_step(model, shapes)
    trainable, frozen = divide(params)
    del params
    batch = jax.tree.map(jax.device_put, common.draw_batch(options, model.lm.config.vocab_size))
    state = TrainState(trainable, jax.jit(init)(trainable))
    del trainable
    jax.block_until_ready(compiled(state, frozen, batch, jax.random.key(0)))
    if common.on_cpu():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 2**20


def main() -> None:
    """Reads the flags, compiles, reports."""
    parser = common.make_parser(__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image_size", type=int, default=224, help="side in pixels")
    parser.add_argument("--remat", nargs="*", default=["dots", "full"], help="policies to try")
    parser.add_argument("--run", action="store_true")
    options = parser.parse_args()
    common.prepare(options)
    model = common.make_model(options)
    shapes = common.describe_params(model, image_size=options.image_size, dtype=options.dtype)
    batch = common.draw_batch(options, model.lm.config.vocab_size)
    frozen = compile_step(model, shapes, batch)
    rows: dict[str, Any] = {"frozen": describe(frozen)}
    for policy in options.remat:
        other = common.make_model(options, remat=policy)
        rows[f"frozen, remat {policy}"] = describe(compile_step(other, shapes, batch))
    rows["trained"] = describe(compile_step(model, shapes, batch, lm_trains=True))
    rows["frozen_to_trained"] = rows["frozen"]["together_mib"] / rows["trained"]["together_mib"]
    if options.run:
        rows["peak_mib"] = run_once(options, frozen, model, shapes)
    common.report(options, common.describe_machine(options, peer=False), rows)


if __name__ == "__main__":
    main()
