"""`python -m frozen_jax.tools.replay --workdir=DIR --step=N`: takes one training step again, on the same batch.

It goes on from the newest checkpoint before the step, takes the steps between, and prints loss, gradient norm and the
samples of step N. Nothing is written. For the steps that `faults.jsonl` lists.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from frozen_jax.build import build_towers
from frozen_jax.data.order import Position
from frozen_jax.data.sources import open_splits
from frozen_jax.errors import UserError, exit_in_one_line
from frozen_jax.restore import open_checkpoints, open_tokenizer, read_run
from frozen_jax.run import make_pipeline
from frozen_jax.sharding import make_mesh, put_batch, put_params
from frozen_jax.train import Progress, choose_loss_options, compile_train_step, init_state, place_towers, take_up


def replay(directory: Path, step: int) -> dict[str, Any]:
    """Takes a step again.

    Args:
        directory: workdir of a run; one that was rolled back is replayed as it first went.
        step: its number, counted from 1.

    Returns:
        step, the checkpoint it went on from (0: none), sample_ids, and the metrics of the step.

    Raises:
        UserError: no run there, no such step, a checkpoint that is damaged or does not fit, or training data of another
            length.
    """
    config = read_run(directory)
    if not 1 <= step <= config.train.steps:
        raise UserError(f"--step={step}: the run has steps 1 to {config.train.steps}; give one of them")
    source, _ = open_splits(config.data, validation_examples=config.train.validation_examples)
    towers = build_towers(config, tokenizer=open_tokenizer(config, directory))
    mesh = make_mesh(config.mesh, batch_size=config.micro_batch_rows)
    placement = place_towers(config, towers, mesh)
    state, progress = init_state(config, towers, placement), Progress()
    with contextlib.closing(open_checkpoints(config, towers, directory)) as checkpoints:
        earlier = [saved for saved in checkpoints.steps() if saved < step]
        if earlier:
            state, saved = checkpoints.restore(earlier[-1], state)
            progress = take_up(saved, records=len(source), directory=directory)
    skipping = config.faults.action == "skip"
    options = choose_loss_options(config)
    take = compile_train_step(
        towers.model, config.optim, towers.rules, options, config.train.steps, placement, skipping
    )
    frozen, root = put_params(towers.frozen, placement.frozen), jax.random.key(config.seed)
    pipeline = make_pipeline(source, config, towers, mesh)
    position = Position(progress.epoch, progress.used)
    for number in range(progress.step + 1, step + 1):
        batch = pipeline.batch(position)
        position = pipeline.next_position(position)
        inputs = [put_batch(batch, mesh), jax.random.fold_in(root, number)]
        state, metrics = take(state, frozen, *inputs, *([np.float32(progress.loss_limit)] if skipping else []))
    return {
        "step": step,
        "from_checkpoint": progress.step,
        "sample_ids": np.asarray(batch.sample_ids).tolist(),
        **{name: float(value) for name, value in jax.device_get(metrics).items()},
    }


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and prints one line of JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m frozen_jax.tools.replay",
        description="Takes one training step again, on the same batch, and prints its metrics and samples.",
        epilog="example: python -m frozen_jax.tools.replay --workdir=runs/quickstart --step=120",
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", type=Path, required=True, help="of a training run")
    parser.add_argument("--step", type=int, required=True, help="counted from 1")
    options = parser.parse_args(arguments)
    with exit_in_one_line():
        found = replay(options.workdir, options.step)
    # JSON has no number for what is not finite.
    print(json.dumps({k: v if not isinstance(v, float) or math.isfinite(v) else str(v) for k, v in found.items()}))


if __name__ == "__main__":
    main()
