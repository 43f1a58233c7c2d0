"""One run from config to report: sources, towers, training with its control, evaluation. Called by `main.py`.

The loop itself is `train.py`; what is measured is in `tasks/`; how it is written down in `report.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from frozen_jax.abstract import abstract_batch
from frozen_jax.adapters import split_added
from frozen_jax.answers import Answers
from frozen_jax.api import Model
from frozen_jax.build import Towers, build_towers, resolve_dtype
from frozen_jax.captioned import caption_pictures
from frozen_jax.chips import find_chip
from frozen_jax.config import Config, list_free_sections, to_dict
from frozen_jax.data.dirty import BadItems, report_bad_items
from frozen_jax.data.features import FeatureTable
from frozen_jax.data.items import check_classes, list_classes, word_items
from frozen_jax.data.pipeline import Pipeline, PipelineOptions
from frozen_jax.data.records import Source
from frozen_jax.data.sources import open_splits
from frozen_jax.data.text import RowLayout
from frozen_jax.data.wording import word_rows
from frozen_jax.errors import UserError
from frozen_jax.evaluate import evaluate
from frozen_jax.features import drop_encoder, open_features
from frozen_jax.flops import count_train_step
from frozen_jax.language_model import fingerprint_params
from frozen_jax.preemption import StopRequest
from frozen_jax.processes import fetch_whole, is_first, wait_for_all
from frozen_jax.report import Report, describe_training
from frozen_jax.restore import keep_tokenizer, make_model, open_checkpoints, open_tokenizer
from frozen_jax.sharding import make_mesh, share_of_rows
from frozen_jax.state import Params, merge
from frozen_jax.tasks.controls import Models
from frozen_jax.telemetry import format_banner
from frozen_jax.train import Trained, init_state, place_here, place_towers, restore_best, train
from frozen_jax.workdir import Workdir
from frozen_jax.writers import Writers, naming_disk

BAD_ITEMS = "bad_items"
"""Folder of the workdir with the lists of items that could not be used."""

ANSWERS = "answers"
"""Folder of the workdir with what the model has answered, a file for each report."""


class Fitted(NamedTuple):
    """A trained model, and what its training said about itself."""

    model: Model
    trained: Trained
    lm_sha256_before: str
    lm_sha256_after: str


def run(config: Config, directory: Path, *, mode: str, stop: StopRequest | None = None) -> dict[str, Any]:
    """Trains (or resumes, or finds finished) and evaluates; returns the report that was written.

    Args:
        config: the run.
        directory: workdir; the blind control has its own workdir inside.
        mode: "train" trains first, "eval" needs checkpoints to be there.
        stop: what may ask the training to save and end.

    Raises:
        UserError: anything that the user can mend.
        Stopped: `stop` was asked; everything is saved.
    """
    start = time.monotonic()
    stop = stop or StopRequest()
    given, config = config, resolve_classes(resolve_dtype(config))
    if mode == "eval" and not (directory / "checkpoints").is_dir():
        raise UserError(f"--workdir={directory} holds no checkpoints; train first, with --mode=train")
    with Workdir(directory, to_dict(config), free=list_free_sections(config)) as workdir:
        wait_for_all("workdir")  # the first process has made it
        seeing = fit(config, workdir.path, mode=mode, stop=stop)
        report = Report(given, seeing.trained, jax.devices()[0].device_kind)
        for name in ("train", "validation"):
            report.add("bad_items", **{name: report_bad_items((workdir.path / BAD_ITEMS).glob(f"{name}.*.jsonl"))})
        report.add("frozen", lm_sha256_before=seeing.lm_sha256_before, lm_sha256_after=seeing.lm_sha256_after)
        blind = None
        if config.evaluate.task != "none" and config.evaluate.blind_control and not config.blind:
            black = dataclasses.replace(config, blind=True)
            with Workdir(workdir.path / "blind", to_dict(black), free=list_free_sections(black)) as control:
                wait_for_all("blind workdir")
                fitted = fit(black, control.path, mode=mode, stop=stop)
            blind = fitted.model
            report.add("train_blind", **describe_training(black, fitted.trained))
            report.add("frozen_blind", lm_sha256_before=fitted.lm_sha256_before, lm_sha256_after=fitted.lm_sha256_after)
        evaluate(config, Models(seeing.model, blind), report, workdir.path)
        return report.write(workdir.path, wall_s=time.monotonic() - start)


def fit(config: Config, directory: Path, *, mode: str, stop: StopRequest) -> Fitted:
    """Trains one model in `directory`, or takes up where its checkpoints stand.

    Raises:
        UserError: as `train`; or `mode` is "eval" and there is no checkpoint.
        Stopped: as `train`.
    """
    training_source, validation_source = open_splits(config.data, validation_examples=config.train.validation_examples)
    if mode == "train":
        if config.fusion.kind:
            check_classes(training_source, validation_source, config.fusion)
        keep_tokenizer(config, directory, training_source)
    whole = build_towers(config, tokenizer=open_tokenizer(config, directory))
    if mode == "train" and config.data.bos and whole.tokenizer.bos_id is None:
        raise UserError(
            f"config.data.bos is True, and the tokenizer of {config.lm.path!r} has no token that begins a text, so "
            "that rows would begin without one; set it to False"
        )
    towers = drop_encoder(whole) if config.vision.feature_cache else whole
    before = _hash_lm(towers.trainable, towers.frozen)
    mesh = make_mesh(config.mesh, batch_size=config.micro_batch_rows)
    placement = place_towers(config, towers, mesh)
    checkpoints = open_checkpoints(config, towers, directory)
    title = "blind control" if config.blind else "training"
    if is_first():
        print(format_banner(title, placement=placement), flush=True)
    with contextlib.closing(checkpoints):  # an interrupted run still completes the save that it began
        before_step = max(checkpoints.steps(), default=0)
        if mode == "eval":
            trained = restore_best(checkpoints, init_state(config, towers, placement))
        else:
            sources = {"train": training_source, "validation": validation_source}
            features: dict[str, FeatureTable] = {}
            if towers is not whole:
                features = {name: open_features(source, config, whole, name=name) for name, source in sources.items()}
            bad = {name: open_bad_items(directory, name) for name in sources}
            training, validation = (
                make_pipeline(source, config, towers, mesh, features=features.get(name), bad=bad[name])
                for name, source in sources.items()
            )
            trained = train(
                config,
                towers,
                training,
                validation,
                placement=placement,
                directory=directory,
                checkpoints=checkpoints,
                stop=stop,
                **count_work(config, towers, mesh),
            )
            if is_first():
                _say_how_it_ended(trained, config, directory)
    trainable = fetch_whole(trained.trainable)
    params = place_here(config, whole, trainable, placement)
    after = _hash_lm(trainable, towers.frozen)
    path = directory / ANSWERS / f"{config.evaluate.report}.jsonl"
    answers = Answers(path, model=f"{fingerprint_params(trainable)} {after}")
    model = make_model(config, whole, params)
    if trained.progress.step > before_step:
        show_captions(model, validation_source, config, directory, step=trained.progress.step)
    return Fitted(dataclasses.replace(model, answers=answers), trained, before, after)


def show_captions(model: Model, source: Source, config: Config, directory: Path, *, step: int) -> None:
    """Gives the best model's captions of some validation pictures to TensorBoard and its like.

    A blind model has none: it would say the same of every picture.

    Raises:
        UserError: the disk is full or read-only.
    """
    if model.network.prefix is None or model.blind or not config.telemetry.captions:
        return
    captions = caption_pictures(model, source, config)
    if captions and is_first():
        with (
            naming_disk(directory),
            contextlib.closing(Writers(directory, config.telemetry, resume_step=step)) as writers,
        ):
            writers.add_captions(step, captions)


def resolve_classes(config: Config) -> Config:
    """Names in a config the classes that the training records of a fusion have, for its `config.json` to hold them."""
    if not config.fusion.kind or config.fusion.classes:
        return config
    source, _ = open_splits(config.data, validation_examples=config.train.validation_examples)
    named = dataclasses.replace(config.fusion, classes=list_classes(source, config.fusion, on_bad=config.data.on_bad))
    return dataclasses.replace(config, fusion=named)


def count_work(config: Config, towers: Towers, mesh: Mesh) -> dict[str, float]:
    """Returns what `train` needs to report MFU; nothing for a device without a known peak, such as a CPU."""
    chip = find_chip(mesh.devices.flat[0].device_kind)
    if chip is None:
        return {}
    costs = count_train_step(towers.model, towers.trainable, towers.frozen, abstract_batch(config, mesh))
    return {
        "flops_per_example": costs.flops_per_example,
        "peak_flops_per_s": chip.device_flops_per_s * mesh.size,
    }


def open_bad_items(directory: Path, name: str) -> BadItems:
    """Opens this process's account of the items of a source that could not be used."""
    return BadItems(directory / BAD_ITEMS / f"{name}.{jax.process_index()}.jsonl")


def make_pipeline(
    source: Source,
    config: Config,
    towers: Towers,
    mesh: Mesh,
    *,
    features: FeatureTable | None = None,
    bad: BadItems | None = None,
) -> Pipeline:
    """Builds this process's share of the batches of a source for these towers."""
    data = config.data
    share, shares = share_of_rows(mesh)
    return Pipeline(
        source,
        text=word_items(config.fusion) if config.fusion.kind else word_rows(data, turns=max(1, config.retrieval.turns)),
        encode=towers.tokenizer.encode,
        layout=RowLayout(
            max_tokens=data.max_tokens,
            prefix_length=towers.model.prefix_length,
            prompt_length=config.adaptation.prompt_length,
            bos_id=towers.tokenizer.bos_id if data.bos else None,
            eos_id=towers.tokenizer.eos_id,
            positions=towers.model.lm.config.max_positions,
        ),
        options=PipelineOptions(
            batch_size=config.train.batch_size,
            seed=config.seed,
            images=data.image if config.uses_pictures else None,
            blind=config.blind,
            augment=data.augment,
            on_bad=data.on_bad,
            pack=data.pack,
            pair_probability=data.pair_probability,
            buckets=data.buckets,
            processes=data.processes,
            classes=config.fusion.classes if config.fusion.kind else (),
            process_index=share,
            process_count=shares,
        ),
        features=features,
        bad=bad,
    )


def _say_how_it_ended(trained: Trained, config: Config, directory: Path) -> None:
    progress = trained.progress
    early = f" of {config.train.steps}, stopped early" if progress.step < config.train.steps else ""
    print(
        f"finished: {directory} stands at step {progress.step}{early}; best validation loss "
        f"{progress.best_loss:.4f} at step {progress.best_step}",
        flush=True,
    )


def _hash_lm(trainable: Params, frozen: Params) -> str:
    """Of the language model's own weights; what was added is none."""
    return fingerprint_params(split_added(merge(trainable, frozen)["lm"])[0])
