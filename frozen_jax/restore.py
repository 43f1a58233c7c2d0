"""From a workdir to a model that can be used: config, towers, best checkpoint. Next: `api.py`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from frozen_jax.api import Model
from frozen_jax.build import Towers, build_towers, choose_dtype
from frozen_jax.checkpoint import Checkpoints
from frozen_jax.config import Config, MeshSettings, from_config_dict, identify
from frozen_jax.data.records import Source
from frozen_jax.data.sources import open_splits
from frozen_jax.errors import UserError
from frozen_jax.export.layout import is_export
from frozen_jax.export.read import load_export
from frozen_jax.sharding import make_mesh
from frozen_jax.state import Params
from frozen_jax.train import init_state, place_here, place_towers, restore_best
from frozen_jax.workdir import CONFIG, digest_config, read_json

TOKENIZER_RECORDS = 5_000
"""Training records whose texts a tokenizer made from scratch sees."""


def load(path: str | os.PathLike[str]) -> Model:
    """Loads an exported model, or the best parameters of a training run, to use them and not to train on.

    Args:
        path: a directory that `tools.export` wrote, or the workdir of a finished, interrupted or running training run.

    Raises:
        UserError: neither of them there, no checkpoint yet, or one that is damaged or belongs to another run.
    """
    directory = Path(path)
    return load_export(directory) if is_export(directory) else load_run(directory)


def load_run(directory: Path) -> Model:
    """Loads the best parameters of the training run in a workdir.

    Raises:
        UserError: as `load`.
    """
    config = read_run(directory)
    corpus: Iterable[str] = ()
    if not config.lm.path:
        training, _ = open_splits(config.data, validation_examples=config.train.validation_examples)
        corpus = list_texts(training, config)
    towers = build_towers(config, corpus=corpus)
    placement = place_towers(config, towers, make_mesh(MeshSettings(data=1), batch_size=1))
    with contextlib.closing(open_checkpoints(config, towers, directory)) as checkpoints:
        trained = restore_best(checkpoints, init_state(config, towers, placement))
    return make_model(config, towers, place_here(config, towers, trained.trainable, placement))


def read_run(directory: Path) -> Config:
    """Returns the resolved config of the run in a workdir.

    Raises:
        UserError: no run there, or no checkpoint yet.
    """
    lacks = [name for name in (CONFIG, "checkpoints") if not (directory / name).exists()]
    if lacks:
        advice = "it holds an exported model, which frozen_jax.load reads; " if is_export(directory) else ""
        raise UserError(f"{directory} holds no run (no {lacks[0]}); {advice}give the --workdir of a training run")
    return from_config_dict(read_json(directory / CONFIG))


def make_model(config: Config, towers: Towers, params: Params) -> Model:
    """Puts together what it takes to ask a trained model."""
    return Model(
        network=towers.model,
        params=params,
        tokenizer=towers.tokenizer,
        images=config.data.image,
        bos=config.data.bos,
        blind=config.blind,
        batch_size=config.evaluate.batch_size,
    )


def open_checkpoints(config: Config, towers: Towers, directory: Path) -> Checkpoints:
    """Opens the checkpoints of a run of this config through this language model and, if frozen, this encoder."""
    return Checkpoints(
        directory / "checkpoints",
        keep=config.checkpoint.keep,
        fingerprint=towers.fingerprint,
        vision_fingerprint=towers.vision_fingerprint,
        config_digest=digest_config(identify(config)),
        lm_name=_name_lm(config),
        on_damage=config.checkpoint.on_damage,
    )


def _name_lm(config: Config) -> str:
    """Names the language model as it is loaded, for messages: where it is from, and its dtype."""
    loaded = choose_dtype(config.lm.dtype) if config.lm.mode == "frozen" else "float32"
    stored = " stored as int8" if config.lm.weights == "int8" else ""
    return f"{config.lm.path or 'drawn at random'} in {loaded}{stored}"


def list_texts(source: Source, config: Config) -> Iterator[str]:
    """Yields all texts of the first records, worded as in training: what a tokenizer from scratch is trained on."""
    data = config.data
    for index in range(min(len(source), TOKENIZER_RECORDS)):
        record = source.record(index)
        if record.turns:
            yield "".join(given + predicted for given, predicted in record.turns)
        for caption in record.captions:
            yield data.caption_format.format(caption=caption)
        for question in record.questions:
            yield data.question_format.format(question=question.text)
            yield from (data.answer_format.format(answer=answer) for answer in question.answers)
