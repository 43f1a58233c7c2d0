"""One run from config to report: sources, towers, training with its control, evaluation. Called by `main.py`.

The loop itself is `train.py`; what is measured is in `tasks/`; how it is written down in `report.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from frozen_jax.build import Towers, build_towers
from frozen_jax.checkpoint import Checkpoints
from frozen_jax.config import FREE_SECTIONS, Config, MeshSettings, identify, to_dict
from frozen_jax.data.dirty import BadItems, report_bad_items
from frozen_jax.data.pipeline import Pipeline, PipelineOptions
from frozen_jax.data.records import Source
from frozen_jax.data.sources import open_splits
from frozen_jax.data.text import RowLayout
from frozen_jax.data.wording import word_rows
from frozen_jax.errors import UserError
from frozen_jax.language_model import fingerprint_params, save_lm
from frozen_jax.processes import fetch_whole, is_first, wait_for_all
from frozen_jax.report import Report, draw_samples
from frozen_jax.sharding import make_mesh, share_of_rows
from frozen_jax.state import Params, merge
from frozen_jax.tasks import easy_vqa
from frozen_jax.telemetry import format_banner
from frozen_jax.train import Trained, init_state, place_here, place_towers, restore_best, train
from frozen_jax.workdir import Workdir, digest_config

BAD_ITEMS = "bad_items"
"""Folder of the workdir with the lists of items that could not be used."""

TOKENIZER_RECORDS = 5_000
"""Training records whose texts a tokenizer made from scratch sees."""


class Fitted(NamedTuple):
    """A trained model and what its training said about itself."""

    reader: easy_vqa.Reader
    trained: Trained
    lm_sha256_before: str
    lm_sha256_after: str


def run(config: Config, directory: Path, *, mode: str) -> dict[str, Any]:
    """Trains (or resumes, or finds finished) and evaluates; returns the report that was written.

    Args:
        config: the run.
        directory: workdir; the blind control has its own workdir inside.
        mode: "train" trains first, "eval" needs checkpoints to be there.

    Raises:
        UserError: anything that the user can mend.
    """
    start = time.monotonic()
    if mode == "eval" and not (directory / "checkpoints").is_dir():
        raise UserError(f"--workdir={directory} holds no checkpoints; train first, with --mode=train")
    with Workdir(directory, to_dict(config), free=FREE_SECTIONS) as workdir:
        wait_for_all("workdir")  # the first process has made it
        seeing = fit(config, workdir.path, mode=mode)
        report = Report(config, seeing.trained, jax.devices()[0].device_kind)
        for name in ("train", "validation"):
            report.add("bad_items", **{name: report_bad_items((workdir.path / BAD_ITEMS).glob(f"{name}.*.jsonl"))})
        report.add("frozen", lm_sha256_before=seeing.lm_sha256_before, lm_sha256_after=seeing.lm_sha256_after)
        if config.evaluate.task == "easy_vqa":
            blind = None
            if config.evaluate.blind_control and not config.blind:
                blind = fit(dataclasses.replace(config, blind=True), workdir.path / "blind", mode=mode)
            _evaluate_easy_vqa(config, seeing, blind, report, workdir.path)
        elif config.evaluate.task == "scene_text":
            tests = easy_vqa.QuestionSet(config)
            report.add("vqa", text_oracle=easy_vqa.score_text_oracle(seeing.reader, tests)["accuracy"])
            reader = seeing.reader
            if is_first():
                save_lm(workdir.path / "lm", reader.model.lm.config, reader.params["lm"], reader.tokenizer)
        return report.write(workdir.path, wall_s=time.monotonic() - start)


def fit(config: Config, directory: Path, *, mode: str) -> Fitted:
    """Trains one model in `directory`, or takes up where its checkpoints stand.

    Raises:
        UserError: as `train`; or `mode` is "eval" and there is no checkpoint.
    """
    directory.mkdir(exist_ok=True)
    training_source, validation_source = open_splits(config.data, validation_examples=config.train.validation_examples)
    towers = build_towers(config, corpus=_texts(training_source, config))
    before = _hash_lm(towers.trainable, towers.frozen)
    mesh = make_mesh(config.mesh, batch_size=config.micro_batch_rows)
    placement = place_towers(config, towers, mesh)
    checkpoints = open_checkpoints(config, towers, directory)
    title = "blind control" if config.blind else "training"
    if is_first():
        print(format_banner(title, placement=placement), flush=True)
    with contextlib.closing(checkpoints):  # an interrupted run still completes the save that it began
        if mode == "eval":
            trained = restore_best(checkpoints, init_state(config, towers, placement))
        else:
            trained = train(
                config,
                towers,
                make_pipeline(training_source, config, towers, mesh, bad=open_bad_items(directory, "train")),
                make_pipeline(validation_source, config, towers, mesh, bad=open_bad_items(directory, "validation")),
                placement=placement,
                directory=directory,
                checkpoints=checkpoints,
            )
            if is_first():
                _say_how_it_ended(trained, config, directory)
    trainable = fetch_whole(trained.trainable)
    params = place_here(config, towers, trainable, placement)
    reader = easy_vqa.Reader(config, towers.model, params, towers.tokenizer)
    return Fitted(reader, trained, before, _hash_lm(trainable, towers.frozen))


def load_reader(config: Config, directory: Path) -> easy_vqa.Reader:
    """Restores the best parameters of a run, to use them and not to train on.

    Raises:
        UserError: no checkpoint, or one that is damaged or belongs to another run.
    """
    towers = build_towers(config)
    placement = place_towers(config, towers, make_mesh(MeshSettings(data=1), batch_size=1))
    with contextlib.closing(open_checkpoints(config, towers, directory)) as checkpoints:
        trained = restore_best(checkpoints, init_state(config, towers, placement))
    params = place_here(config, towers, trained.trainable, placement)
    return easy_vqa.Reader(config, towers.model, params, towers.tokenizer)


def open_checkpoints(config: Config, towers: Towers, directory: Path) -> Checkpoints:
    """Opens the checkpoints of a run of this config through this language model."""
    return Checkpoints(
        directory / "checkpoints",
        keep=config.checkpoint.keep,
        fingerprint=towers.fingerprint,
        config_digest=digest_config(identify(config)),
    )


def open_bad_items(directory: Path, name: str) -> BadItems:
    """Opens this process's account of the items of a source that could not be used."""
    return BadItems(directory / BAD_ITEMS / f"{name}.{jax.process_index()}.jsonl")


def make_pipeline(
    source: Source, config: Config, towers: Towers, mesh: Mesh, *, bad: BadItems | None = None
) -> Pipeline:
    """Builds this process's share of the batches of a source for these towers."""
    data = config.data
    share, shares = share_of_rows(mesh)
    return Pipeline(
        source,
        text=word_rows(data),
        encode=towers.tokenizer.encode,
        layout=RowLayout(
            max_tokens=data.max_tokens,
            prefix_length=towers.model.prefix_length,
            bos_id=towers.tokenizer.bos_id if data.bos else None,
            eos_id=towers.tokenizer.eos_id,
        ),
        options=PipelineOptions(
            batch_size=config.train.batch_size,
            seed=config.seed,
            images=data.image if config.vision.name else None,
            blind=config.blind,
            augment=data.augment,
            on_bad=data.on_bad,
            pack=data.pack,
            pair_probability=data.pair_probability,
            buckets=data.buckets,
            processes=data.processes,
            process_index=share,
            process_count=shares,
        ),
        bad=bad,
    )


def _evaluate_easy_vqa(config: Config, seeing: Fitted, blind: Fitted | None, report: Report, directory: Path) -> None:
    tests = easy_vqa.QuestionSet(config)
    reader = seeing.reader
    prefixes = reader.prefixes(tests.images)
    scores, answers = easy_vqa.score_questions(reader, tests, prefixes)
    name = "blind" if config.blind else "seeing"
    caption, captions = easy_vqa.score_captions(reader, tests, prefixes)
    report.add("caption", **caption)
    report.add("vqa", **{name: scores})
    if not config.blind:
        report.add("vqa", shuffled=easy_vqa.score_shuffled(reader, tests, prefixes))
    if blind is not None:
        scores, _ = easy_vqa.score_questions(blind.reader, tests, blind.reader.prefixes(tests.images))
        report.add("vqa", blind=scores)
        blind_caption, _ = easy_vqa.score_captions(blind.reader, tests, blind.reader.prefixes(tests.images))
        report.add("caption", blind_exact_match=blind_caption["exact_match"])
    report.add("vqa", **easy_vqa.score_baselines(tests))
    report.add("vqa", text_oracle=easy_vqa.score_text_oracle(reader, tests)["accuracy"])
    if is_first():
        draw_samples(directory / "samples.png", tests, captions, answers)


def _texts(source: Source, config: Config) -> Iterator[str]:
    """All texts of the first records, worded as in training: what a tokenizer from scratch is trained on."""
    data = config.data
    for index in range(min(len(source), TOKENIZER_RECORDS)):
        record = source.record(index)
        for caption in record.captions:
            yield data.caption_format.format(caption=caption)
        for question in record.questions:
            yield data.question_format.format(question=question.text)
            yield from (data.answer_format.format(answer=answer) for answer in question.answers)


def _say_how_it_ended(trained: Trained, config: Config, directory: Path) -> None:
    progress = trained.progress
    early = f" of {config.train.steps}, stopped early" if progress.step < config.train.steps else ""
    print(
        f"finished: {directory} stands at step {progress.step}{early}; best validation loss "
        f"{progress.best_loss:.4f} at step {progress.best_step}",
        flush=True,
    )


def _hash_lm(trainable: Params, frozen: Params) -> str:
    return fingerprint_params(merge(trainable, frozen)["lm"])
