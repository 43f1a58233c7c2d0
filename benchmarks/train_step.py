"""Images per second of a training step, NF-ResNet-50 through a frozen LM: `python benchmarks/train_step.py`.

    PYTHONPATH=. python benchmarks/train_step.py --lm=gpt2 --batch=8 --peer=torch --json=train_step.json

With `--peer=torch` the same step in PyTorch takes turns with ours: NF-ResNet-50 written in torch, transformers' model
with `requires_grad` off, logits only where there is loss, fused AdamW; eager on a CPU, `torch.compile` on a GPU, all in
the same dtype. Both begin with the same weights, and their first losses must agree. `ratio` is ours / peer in images
per CPU-second, or per second on an accelerator: larger is better for us.

With `--flops` nothing is timed: operations of the compiled step per image, against the analytic count, and of a frozen
against a fully trained step. With `--compile_only` the times of tracing, compiling and the first step alone, which
`--compilation_cache=DIR` repeats from a persistent cache when run a second time.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import common
from frozen_jax.batch import Batch
from frozen_jax.chips import find_chip
from frozen_jax.config import OptimSettings
from frozen_jax.flops import count_train_step
from frozen_jax.hlo import Program
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.optim import list_label_rules, make_optimiser
from frozen_jax.startup import use_compilation_cache
from frozen_jax.state import Params, TrainState, match_rules, split
from frozen_jax.steps import LossOptions, make_train_step


def build_step(model: FrozenModel, shapes: Params, *, lm_trains: bool = False) -> tuple[Any, Any, Callable[..., Any]]:
    """Returns the jitted step, `init` of its optimiser, and what splits parameters into trainable and frozen."""
    rules = list_label_rules(shapes, lm_trains=lm_trains)
    optimiser = make_optimiser(OptimSettings(), rules, steps=1000)
    step = make_train_step(model, optimiser, accumulate=1, options=LossOptions())
    labels = match_rules(shapes, rules, what="freezing")
    return jax.jit(step, donate_argnums=0), optimiser.init, lambda params: split(params, labels)


def compile_step(model: FrozenModel, shapes: Params, batch: Batch, *, lm_trains: bool = False) -> Any:
    """Compiles a step from shapes alone; nothing is allocated."""
    step, init, divide = build_step(model, shapes, lm_trains=lm_trains)
    trainable, frozen = divide(shapes)
    state = TrainState(trainable, jax.eval_shape(init, trainable))
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch)
    return step.lower(state, frozen, abstract, jax.eval_shape(jax.random.key, 0)).compile()


def count_operations(options: argparse.Namespace) -> dict[str, Any]:
    """Operations per image: counted from the towers, and in the compiled programs, frozen and fully trained."""
    model = common.make_model(options)
    shapes = common.describe_params(model, image_size=options.image_size, dtype=options.dtype)
    batch = common.draw_batch(options, model.lm.config.vocab_size)
    analytic = {}
    for name, lm_trains in (("frozen", False), ("full", True)):
        trainable, frozen = build_step(model, shapes, lm_trains=lm_trains)[2](shapes)
        analytic[name] = count_train_step(model, trainable, frozen, batch).flops_per_example
    rows = {
        "analytic_gflop_per_image": analytic["frozen"] / 1e9,
        "analytic_gflop_per_image_full_training": analytic["full"] / 1e9,
        "analytic_frozen_to_full": analytic["frozen"] / analytic["full"],
    }
    if not options.analytic_only:
        compiled = {
            name: Program(compile_step(model, shapes, batch, lm_trains=lm_trains).as_text()).flops() / options.batch
            for name, lm_trains in (("frozen", False), ("full", True))
        }
        rows |= {
            "compiled_gflop_per_image": compiled["frozen"] / 1e9,
            "compiled_gflop_per_image_full_training": compiled["full"] / 1e9,
            "compiled_to_analytic": compiled["frozen"] / analytic["frozen"],
            "compiled_frozen_to_full": compiled["frozen"] / compiled["full"],
        }
    return rows


def time_steps(options: argparse.Namespace) -> dict[str, Any]:
    """Times our step and the peer's."""
    model = common.make_model(options)
    shapes = common.describe_params(model, image_size=options.image_size, dtype=options.dtype)
    params = common.draw_params(shapes)
    host_batch = common.draw_batch(options, model.lm.config.vocab_size)
    batch = jax.tree.map(jax.device_put, host_batch)
    variants: dict[str, Callable[[], Any]] = {}
    if options.peer:
        peer = make_peer(options, model, params, host_batch)
        variants["peer"] = functools.partial(peer, options.steps)

    step, init, divide = build_step(model, shapes)
    trainable, frozen = divide(params)
    state = TrainState(trainable, jax.jit(init)(trainable))
    key = jax.random.key(0)
    start, cpu_start = time.perf_counter(), time.process_time()
    compiled = step.lower(state, frozen, batch, key).compile()
    compile_s, compile_cpu_s = time.perf_counter() - start, time.process_time() - cpu_start

    def run_ours() -> float:
        nonlocal state
        for _ in range(options.steps):
            state, metrics = compiled(state, frozen, batch, key)
        return float(metrics["loss"])

    state, metrics = compiled(state, frozen, batch, key)
    first_loss = float(metrics["loss"])
    first_step_s, first_step_cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
    rows = {
        "compile_s": compile_s,
        "compile_cpu_s": compile_cpu_s,
        "to_first_step_s": first_step_s,
        "to_first_step_cpu_s": first_step_cpu_s,
        "first_loss": first_loss,
    }
    if options.compile_only:
        return rows
    if options.peer:
        rows["peer_first_loss"] = peer_loss = peer(1)
        tolerance = 1e-4 if options.dtype == "float32" else 2e-2
        if not np.isclose(first_loss, peer_loss, rtol=tolerance):
            raise SystemExit(f"not the same computation: our first loss is {first_loss}, the peer's {peer_loss}")
    medians = common.measure({"ours": run_ours, **variants}, rounds=options.rounds)
    images = options.batch * options.steps
    rate = images / medians["ours"]
    rows |= {"step_s": medians["ours"] / options.steps, "images_per_s": rate}
    if options.peer:
        rows |= {"peer_images_per_s": images / medians["peer"], "ratio": medians["peer"] / medians["ours"]}
    costs = count_train_step(model, trainable, frozen, host_batch)
    rows["gflop_per_s"] = costs.flops_per_example * rate / 1e9
    chip = find_chip(jax.devices()[0].device_kind)
    if chip is not None:
        roofline = costs.examples_per_s(chip)
        rows |= {
            "mfu": costs.flops_per_example * rate / chip.device_flops_per_s,
            "roofline_images_per_s": roofline,
            "fraction_of_roofline": rate / roofline,
        }
    return rows


def make_peer(options: argparse.Namespace, model: FrozenModel, params: Params, batch: Batch) -> Callable[[int], float]:
    """Builds what takes a number of steps in torch; it returns the loss before its last update."""
    import torch

    from benchmarks import torch_peer

    device = "cpu" if common.on_cpu() else "cuda"
    torch.set_num_threads(options.cores)
    dtype = getattr(torch, options.dtype)
    vision = torch_peer.TorchNFResNet(params["vision"], model.vision, dtype)
    lm = torch_peer.torch_lm(model.lm.config, params["lm"], dtype=dtype)
    peer = torch_peer.TorchFrozen(vision, params["prefix"]["projection"], lm, slots=options.slots).to(device)
    trainable = [parameter for parameter in peer.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trainable, lr=3e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    if device == "cuda":
        peer.to(memory_format=torch.channels_last)
    loss_of = torch.compile(peer) if device == "cuda" else peer
    images = torch.tensor(batch.images[:, 0], device=device)
    words = torch.tensor(batch.tokens[:, options.slots :], device=device).long()

    def run(steps: int) -> float:
        for _ in range(steps):
            optimiser.zero_grad(set_to_none=True)
            loss = loss_of(images, words)
            loss.backward()
            optimiser.step()
        return float(loss.detach())

    return run


def main() -> None:
    """Reads the flags, measures, reports."""
    parser = common.make_parser(__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image_size", type=int, default=224, help="side in pixels")
    parser.add_argument("--steps", type=int, default=1, help="between two readings of the clock; 10 or more on a GPU")
    parser.add_argument("--peer", choices=["torch"])
    parser.add_argument("--flops", action="store_true")
    parser.add_argument("--analytic_only", action="store_true", help="with --flops: compile nothing")
    parser.add_argument("--compile_only", action="store_true")
    parser.add_argument("--compilation_cache", type=Path, metavar="DIR")
    options = parser.parse_args()
    common.prepare(options)
    if options.compilation_cache is not None:
        use_compilation_cache(options.compilation_cache)
        options.compilation_cache = str(options.compilation_cache)
    rows = count_operations(options) if options.flops else time_steps(options)
    common.report(options, common.describe_machine(options, peer=bool(options.peer)), rows)


if __name__ == "__main__":
    main()
