"""The training loop, read top to bottom: build, restore, step, log, evaluate, save. Next: `tasks/` for the report.

No names of data sets or models here, no device code (`sharding.py`), no gradient (`steps.py`).
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32

from frozen_jax.batch import validate
from frozen_jax.build import Towers
from frozen_jax.checkpoint import Checkpoints, DamagedError, MissingError
from frozen_jax.config import Config, OptimSettings
from frozen_jax.data.order import Position
from frozen_jax.data.pipeline import Pipeline
from frozen_jax.errors import UserError
from frozen_jax.faults import FAULTS, Health, Rollback, move_limit, observe
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.optim import make_optimiser
from frozen_jax.preemption import StopRequest
from frozen_jax.processes import Vote, is_first
from frozen_jax.sharding import (
    AnyMesh,
    Placement,
    by_example,
    check_tensor,
    mesh_here,
    on_mesh,
    place,
    put_batch,
    put_params,
    replicated,
    shardings_of,
)
from frozen_jax.sharding_rules import list_sharding_rules
from frozen_jax.state import LabelRules, Params, TrainState, merge
from frozen_jax.steps import LossOptions, LossParts, make_eval_step, make_train_step
from frozen_jax.telemetry import Telemetry
from frozen_jax.throughput import ProfileWindow


class Progress(NamedTuple):
    """Everything about a run that is not an array; a checkpoint keeps it as JSON.

    Attributes:
        step: optimiser steps done.
        epoch: passes over the training source that are complete.
        used: samples of the present pass already used.
        best_loss: lowest validation loss so far, in nats per word.
        best_step: where it was reached.
        stale: evaluations since then.
        faults: numerical faults so far.
        loss_average, loss_limit: see `faults.Health`.
        finished: no step is left to do, because of the count or of early stopping.
        examples_per_s: of the newest start, compilation, evaluation and saving left out; 0 before it is known.
        records: of the training source; 0 in a checkpoint from before they were counted.
    """

    step: int = 0
    epoch: int = 0
    used: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    stale: int = 0
    faults: int = 0
    loss_average: float = 0.0
    loss_limit: float = math.inf
    finished: bool = False
    examples_per_s: float = 0.0
    records: int = 0


class Pending(NamedTuple):
    """A step whose metrics are still on the device, with the examples that it saw and the position after them."""

    step: int
    metrics: dict[str, jax.Array]
    sample_ids: np.ndarray
    position: Position


class Trained(NamedTuple):
    """Result of training: the parameters of the best step, and how it went."""

    trainable: Params
    progress: Progress


def choose_loss_options(config: Config) -> LossOptions:
    """Returns the training switches of the loss that a run has."""
    return LossOptions(
        label_smoothing=config.optim.label_smoothing,
        embedding_noise=config.train.embedding_noise,
        lm_dropout=config.lm.mode != "frozen",
        retrieval_weight=config.retrieval.weight,
        retrieval_asks=config.retrieval.turns > 0,
        condition_drop=config.generator.condition_drop if config.generator.name else 0.0,
    )


@functools.lru_cache(maxsize=8)
def compile_train_step(
    model: FrozenModel,
    optim: OptimSettings,
    rules: LabelRules,
    options: LossOptions,
    steps: int,
    placement: Placement,
    skip_faults: bool = False,
) -> Any:
    """Jits the training step: state donated, every input's and output's sharding stated. Runs of one process share it.

    It takes (state, frozen, batch, rng), with `skip_faults` the largest sound loss too, and returns (state, metrics),
    the metrics whole on every device.
    """
    optimiser = make_optimiser(optim, rules, steps=steps)
    step = make_train_step(model, optimiser, accumulate=optim.accumulate, options=options, skip_faults=skip_faults)
    state, frozen = shardings_of(placement.state(optimiser)), shardings_of(placement.frozen)
    everywhere, rows = replicated(placement.mesh), by_example(placement.mesh)
    return jax.jit(
        on_mesh(step, placement.mesh),
        donate_argnums=0,
        in_shardings=(state, frozen, rows, everywhere, *([everywhere] if skip_faults else [])),
        out_shardings=(state, everywhere),
    )


@functools.lru_cache(maxsize=8)
def compile_eval_step(model: FrozenModel, placement: Placement) -> Any:
    """Jits the evaluation step; the sums over all hosts come back on every device."""
    trainable, frozen = shardings_of(placement.trainable), shardings_of(placement.frozen)
    everywhere, rows = replicated(placement.mesh), by_example(placement.mesh)
    return jax.jit(
        on_mesh(make_eval_step(model), placement.mesh),
        in_shardings=(trainable, frozen, rows),
        out_shardings=everywhere,
    )


def train(
    config: Config,
    towers: Towers,
    training: Pipeline,
    validation: Pipeline,
    *,
    placement: Placement,
    directory: Path,
    checkpoints: Checkpoints,
    stop: StopRequest,
    flops_per_example: float | None = None,
    peak_flops_per_s: float | None = None,
) -> Trained:
    """Trains until `train.steps`, or `train.patience` evaluations that bring nothing; returns the best parameters.

    A run that was interrupted goes on from its newest checkpoint; one that had finished returns at once.

    Args:
        config: the run.
        towers: fresh parameters and modules; the trainable ones are donated.
        training: endless batches.
        validation: one pass, for early stopping.
        placement: where the parameters lie, from `place_towers`.
        directory: gets metrics and events.
        checkpoints: of this directory.
        stop: what may ask the run to save after the next step and to end.
        flops_per_example: that a step must do for one example, for MFU; None leaves it out.
        peak_flops_per_s: of all devices; None leaves MFU out.

    Raises:
        UserError: a loss or gradient that is not finite (with step and sample ids), a batch that does not fit, a
            checkpoint of another run or of another number of training records, a full disk.
        Stopped: `stop` was asked; everything is saved.
    """
    options = choose_loss_options(config)
    skipping = config.faults.action == "skip"
    step_fn = compile_train_step(
        towers.model, config.optim, towers.rules, options, config.train.steps, placement, skipping
    )
    frozen = put_params(towers.frozen, placement.frozen)
    state, progress = init_state(config, towers, placement), Progress(records=len(training.source))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    newest = checkpoints.restore_newest(shapes, set_aside=True)
    if newest is not None:
        state, progress = newest[0], take_up(newest[1], records=len(training.source), directory=directory)
    run = _Run(
        config=config,
        model=towers.model,
        step_fn=step_fn,
        frozen=frozen,
        training=training,
        validation=validation,
        placement=placement,
        directory=directory,
        checkpoints=checkpoints,
        stop=stop,
        rates={"flops_per_example": flops_per_example, "peak_flops_per_s": peak_flops_per_s},
    )
    while True:
        try:
            state = _take_steps(run, state, progress)
            return restore_best(checkpoints, state)
        except Rollback as fault:
            checkpoints.wait()
            newest = checkpoints.restore_newest(shapes, set_aside=True)
            if newest is None:
                raise UserError(
                    f"step {fault.step} is faulty ({FAULTS} lists its samples) and there is no checkpoint to go back "
                    "to; lower checkpoint.every, or set faults.action=skip"
                ) from None
            state, progress = newest[0], take_up(newest[1], records=len(training.source), directory=directory)
            if is_first():
                print(f"step {fault.step} is faulty: back to step {progress.step}", file=sys.stderr, flush=True)
            progress = progress._replace(epoch=fault.position.epoch, used=fault.position.index, faults=fault.faults)


def take_up(saved: dict[str, Any], *, records: int, directory: Path) -> Progress:
    """Returns the progress that a checkpoint keeps, for a run to go on with it.

    Args:
        saved: the position that `Checkpoints.restore` returns.
        records: that the training source has now.
        directory: workdir, for the message.

    Raises:
        UserError: the source had another number of records, and steps are left.
    """
    progress = Progress(**saved)
    if not progress.finished and progress.records not in (0, records):
        raise UserError(
            f"{directory}: data.train had {progress.records} records when this run was saved and has {records} now; "
            "the order of the samples and what is held out depend on it; put the data back, or name a new --workdir"
        )
    return progress._replace(records=records)


class _Run(NamedTuple):
    """What the loop of steps needs and does not change."""

    config: Config
    model: FrozenModel
    step_fn: Any
    frozen: Params
    training: Pipeline
    validation: Pipeline
    placement: Placement
    directory: Path
    checkpoints: Checkpoints
    stop: StopRequest
    rates: dict[str, float | None]


def _take_steps(run: _Run, state: TrainState, progress: Progress) -> TrainState:
    """Steps, logs, evaluates and saves from `progress` to the end; returns the last state.

    Raises:
        Rollback: a faulty step, with that policy.
    """
    config, settings, stop = run.config, run.config.train, run.stop
    root = jax.random.key(config.seed)
    telemetry = Telemetry(
        run.directory,
        total_steps=settings.steps,
        examples_per_step=settings.batch_size,
        resume_step=progress.step or None,
        settings=config.telemetry,
        **run.rates,
    )
    pending: list[Pending] = []
    vote = Vote(run.placement.mesh)
    vocab_size, prompt_length = run.model.lm.config.vocab_size, config.adaptation.prompt_length
    window = ProfileWindow(run.directory / "profile", start=config.profile.start, steps=config.profile.steps)
    with stop.saving(), contextlib.closing(telemetry), contextlib.closing(window):
        for position, batch in telemetry.time_input(run.training.iterate(Position(progress.epoch, progress.used))):
            if progress.finished:
                break
            validate(batch, prefix_length=run.model.prefix_length, vocab_size=vocab_size, prompt_length=prompt_length)
            step = progress.step + 1
            window.before(step)
            inputs = [put_batch(batch, run.placement.mesh), jax.random.fold_in(root, step)]
            if config.faults.action == "skip":
                inputs.append(np.float32(progress.loss_limit))
            state, metrics = run.step_fn(state, run.frozen, *inputs)
            stop.hold()
            window.after(step, metrics)
            pending.append(Pending(step, metrics, np.asarray(batch.sample_ids), position))
            done = step == settings.steps
            evaluating = done or step % settings.evaluate_every == 0
            due = done or evaluating or step % config.checkpoint.every == 0
            stopping = vote.any_said(step, stop.asked)
            progress = progress._replace(step=step, epoch=position.epoch, used=position.index)
            logging = due or step % settings.log_every == 0
            if logging or stopping:
                # A stop adds no line: the log shall be that of a run that was not stopped.
                progress = _flush(run, pending, progress, telemetry if logging else None)
            if not (due or stopping):
                continue
            if evaluating:
                scores, norms = evaluate(
                    run.validation, run.model, state.trainable, run.frozen, placement=run.placement
                )
                telemetry.log(step, scores, kind="validation")
                telemetry.log_prefix_norms(step, norms)
                progress = judge(progress, scores["loss"], patience=settings.patience)
            progress = progress._replace(finished=progress.finished or done)
            if math.isfinite(telemetry.examples_per_s):
                progress = progress._replace(examples_per_s=telemetry.examples_per_s)
            best = evaluating and progress.best_step == step
            run.checkpoints.save(step, state, position=progress._asdict(), best=best)
            if stopping:
                run.checkpoints.wait()
                raise stop.stopped()
        run.checkpoints.wait()
    return state


def place_towers(config: Config, towers: Towers, mesh: AnyMesh) -> Placement:
    """Decides where the parameters of a run lie.

    Raises:
        UserError: the axis `tensor` does not fit the language model.
    """
    check_tensor(towers.model.lm.config, mesh)
    rules = list_sharding_rules(towers.model, merge(towers.trainable, towers.frozen))
    return place(towers.trainable, towers.frozen, rules, mesh, frozen_choice=config.mesh.frozen)


def place_here(config: Config, towers: Towers, trainable: Params, placement: Placement) -> Params:
    """Puts all parameters on the devices of this process, for answering questions; cut only as far as they must be.

    Args:
        config: the run.
        towers: give the frozen parameters.
        trainable: trained parameters, whole.
        placement: in training.
    """
    here = place_towers(config, towers, mesh_here(placement))
    return merge(put_params(trainable, here.trainable), put_params(towers.frozen, here.frozen))


def init_state(config: Config, towers: Towers, placement: Placement) -> TrainState:
    """Returns the state before the first step, on the devices."""
    optimiser = make_optimiser(config.optim, towers.rules, steps=config.train.steps)
    trainable = put_params(towers.trainable, placement.trainable)
    shardings = shardings_of(placement.state(optimiser).opt_state)
    return TrainState(trainable, jax.jit(optimiser.init, out_shardings=shardings)(trainable))


def restore_best(checkpoints: Checkpoints, state: TrainState) -> Trained:
    """Returns the parameters of the best checkpoint (the newest, before any evaluation) and the newest progress.

    Args:
        state: gives shapes, dtypes and shardings.

    Raises:
        UserError: there is no checkpoint.
        DamagedError: the best or the newest is damaged; with `on_damage="fallback"` the newest whole one serves.
    """
    newest = checkpoints.restore_newest(state, set_aside=False)
    if newest is None:
        raise UserError(f"{checkpoints.directory} holds no complete checkpoint; train first, with --mode=train")
    latest, progress = newest[0], Progress(**newest[1])
    best = progress.best_step
    if best not in (0, progress.step):
        try:
            latest, _ = checkpoints.restore(best, state)
        except DamagedError as error:
            if checkpoints.on_damage == "raise":
                raise
            _warn(f"{error}; using step {progress.step} in place of the best")
        except MissingError:
            _warn(f"the checkpoint of the best step, {best}, is not there; using step {progress.step} in place of it")
    return Trained(latest.trainable, progress)


def _warn(text: str) -> None:
    if is_first():
        print(f"warning: {text}", file=sys.stderr, flush=True)


def judge(progress: Progress, loss: float, *, patience: int) -> Progress:
    """Early stopping: compares a validation loss with the best so far; `patience` 0 never stops."""
    if loss < progress.best_loss:
        return progress._replace(best_loss=loss, best_step=progress.step, stale=0)
    stale = progress.stale + 1
    return progress._replace(stale=stale, finished=bool(patience) and stale >= patience)


def evaluate(
    pipeline: Pipeline, model: FrozenModel, trainable: Params, frozen: Params, *, placement: Placement
) -> tuple[dict[str, float], Float32[np.ndarray, " n"]]:
    """Returns loss (nats per word), perplexity and next-word accuracy over one pass of `pipeline`.

    Of a generator the loss alone, per picture. Returns also the lengths of all prefix vectors.

    Raises:
        UserError: nothing carries loss.
    """
    step: Callable[..., tuple[LossParts, jax.Array]] = compile_eval_step(model, placement)
    sums, norms = np.zeros(len(LossParts._fields)), [np.zeros(0, np.float32)]
    for batch in pipeline.evaluation_batches():
        parts, lengths = jax.device_get(step(trainable, frozen, put_batch(batch, placement.mesh)))
        sums += np.array(parts, np.float64)
        norms.append(lengths[np.isfinite(lengths)])
    loss_sum, words, correct_sum, _ = sums.tolist()
    if not words:
        raise UserError(
            "none of the validation records carries loss, by which the best step is found; name a data.validation with "
            "words to predict, or of a fusion's classes"
        )
    loss = loss_sum / words
    if model.generator is not None:
        return {"loss": loss}, np.concatenate(norms)
    scores = {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "token_accuracy": correct_sum / words,
    }
    return scores, np.concatenate(norms)


def _flush(run: _Run, pending: list[Pending], progress: Progress, telemetry: Telemetry | None) -> Progress:
    """Fetches the metrics of the steps since the last flush, judges each, logs the newest.

    Raises:
        NonFiniteError, UserError, Rollback: as `faults.observe`.
    """
    faults = run.config.faults
    health = Health(progress.faults, progress.loss_average, progress.loss_limit)
    fetched = jax.device_get([entry.metrics for entry in pending])
    for (step, _, sample_ids, position), metrics in zip(pending, fetched, strict=True):
        scalars = {name: float(value) for name, value in metrics.items()}
        health = observe(health, step, scalars, sample_ids, position=position, settings=faults, directory=run.directory)
    if step % run.config.train.log_every == 0:
        health = move_limit(health, faults)
    if telemetry is not None:
        telemetry.log(step, scalars, kind="train")
    pending.clear()
    return progress._replace(faults=health.faults, loss_average=health.average, loss_limit=health.limit)
