"""From a name or directory to a model that can be used: config, towers, trained parameters. Next: `api.py`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from frozen_jax.api import Model
from frozen_jax.build import Towers, build_towers, choose_dtype
from frozen_jax.checkpoint import Checkpoints
from frozen_jax.config import Config, MeshSettings, from_config_dict, identify
from frozen_jax.data.records import Source, read_usable
from frozen_jax.data.sources import choose_first, open_splits
from frozen_jax.errors import UserError
from frozen_jax.export.layout import GENERATOR_TYPE, MODEL_TYPE, is_export, read_type
from frozen_jax.export.read import load_export
from frozen_jax.models.lm import lm_config_from_hf
from frozen_jax.processes import is_first, wait_for_all
from frozen_jax.released import find_model, is_release, locate_frozen, read_release, read_trained
from frozen_jax.sharding import Placement, make_mesh
from frozen_jax.state import Params
from frozen_jax.tokenizer import SAVED_FILES, Tokenizer, train_bpe
from frozen_jax.train import init_state, place_here, place_towers, restore_best
from frozen_jax.workdir import CONFIG, digest_config, read_json, write_text_atomic

END_OF_TEXT = "<|endoftext|>"
"""The one special token of a tokenizer trained here: begins and ends texts, as in GPT-2."""

TOKENIZER_RECORDS = 5_000
"""Training records whose texts a tokenizer made from scratch sees."""

_EXPORTS = {
    MODEL_TYPE: "it holds an exported model, which frozen_jax.load reads; ",
    GENERATOR_TYPE: "it holds the export of a picture generator, which PyTorch alone reads (modeling_generator.py); ",
}
"""What to say of a directory that is no run, by its model_type."""


def load(path: str | os.PathLike[str]) -> Model:
    """Loads a model to use it and not to train on: a released or exported one, or the best parameters of a run.

    Args:
        path: the name of a model that ships with frozen_jax, such as "frozen_jax/emoji_smollm2"; a directory that
            `tools.export` or `tools.release` wrote; or the workdir of a finished, interrupted or running training run.
            The language model and the encoder of a released one are fetched at its first use (`fetch/sets.locate`).

    Raises:
        UserError: none of them there, no checkpoint yet, one that is damaged or belongs to another run, or a language
            model that cannot be fetched or is another one.
    """
    directory = find_model(path)
    if is_release(directory):
        return load_release(directory)
    return load_export(directory) if is_export(directory) else load_run(directory)


def load_release(directory: Path) -> Model:
    """Loads a released model.

    Raises:
        UserError: as `load`.
    """
    config = locate_frozen(read_release(directory))
    towers = build_towers(config)
    placement = place_towers(config, towers, make_mesh(MeshSettings(data=1), batch_size=1))
    return make_model(config, towers, place_here(config, towers, read_trained(directory, towers), placement))


def load_run(directory: Path) -> Model:
    """Loads the best parameters of the training run in a workdir.

    Raises:
        UserError: as `load`.
    """
    config = read_run(directory)
    towers, placement, trainable = restore_run(config, directory)
    return make_model(config, towers, place_here(config, towers, trainable, placement))


def restore_run(config: Config, directory: Path) -> tuple[Towers, Placement, Params]:
    """Returns the towers of a run, where they lie, and its best trained parameters.

    Raises:
        UserError: as `load`.
    """
    towers = build_towers(config, tokenizer=open_tokenizer(config, directory))
    placement = place_towers(config, towers, make_mesh(MeshSettings(data=1), batch_size=1))
    with contextlib.closing(open_checkpoints(config, towers, directory)) as checkpoints:
        return towers, placement, restore_best(checkpoints, init_state(config, towers, placement)).trainable


def read_run(directory: Path) -> Config:
    """Returns the resolved config of the run in a workdir, to go on with it or to take its checkpoints.

    Raises:
        UserError: no run there, or no checkpoint yet.
    """
    lacks = [name for name in (CONFIG, "checkpoints") if not (directory / name).exists()]
    if lacks:
        advice = _EXPORTS.get(read_type(directory) or "", "")
        raise UserError(f"{directory} holds no run (no {lacks[0]}); {advice}give the --workdir of a training run")
    return from_config_dict(read_json(directory / CONFIG))


def read_settings(path: str | os.PathLike[str]) -> Config:
    """Returns the config that a model was trained by: how it wants to be asked.

    Args:
        path: name or directory of a released model, or the workdir of a run.

    Raises:
        UserError: neither is there.
    """
    directory = find_model(path)
    return read_release(directory) if is_release(directory) else read_run(directory)


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


def keep_tokenizer(config: Config, directory: Path, source: Source) -> None:
    """Makes the tokenizer of a language model from scratch, and writes it into the workdir of a run that now begins.

    The weights know the ids of this one alone, and the captions may be others by the time they are asked.

    Args:
        config: the run.
        directory: its workdir; with checkpoints in it the run has begun, and nothing is written.
        source: training records.
    """
    if not config.lm.path and is_first() and not any(directory.glob("checkpoints/*")):
        for name, text in _train_tokenizer(config, source).to_files().items():
            write_text_atomic(directory / name, text)
    wait_for_all("tokenizer")


def open_tokenizer(config: Config, directory: Path) -> Tokenizer | None:
    """Returns the tokenizer in the workdir of a run from scratch; None where the language model brings its own.

    For a run from before it was kept, it is made again of what the training records are now.
    """
    if config.lm.path:
        return None
    if all((directory / name).is_file() for name in SAVED_FILES):
        return Tokenizer.from_directory(directory)
    source, _ = open_splits(config.data, validation_examples=config.train.validation_examples)
    return _train_tokenizer(config, source)


def _train_tokenizer(config: Config, source: Source) -> Tokenizer:
    size = lm_config_from_hf(config.lm.architecture).vocab_size
    return train_bpe(_list_texts(source, config), vocab_size=size, special_tokens=[END_OF_TEXT])


def _list_texts(source: Source, config: Config) -> Iterator[str]:
    """Yields all texts of the first records, worded as in training: what a tokenizer from scratch is trained on."""
    data = config.data
    first = choose_first(source, TOKENIZER_RECORDS).tolist()
    for record in read_usable(source.record, first, on_bad=data.on_bad):
        if record.turns:
            yield "".join(given + predicted for given, predicted in record.turns)
        for caption in record.captions:
            yield data.caption_format.format(caption=caption)
        for question in record.questions:
            yield data.question_format.format(question=question.text)
            yield from (data.answer_format.format(answer=answer) for answer in question.answers)
