"""From an exported directory back to a model: what `frozen_jax.load` does with one. The counterpart: `write.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np

from frozen_jax.api import Model
from frozen_jax.build import choose_dtype, resolve_path
from frozen_jax.convert.lm_weights import export_lm
from frozen_jax.convert.safetensors_reader import SafetensorsDirectory
from frozen_jax.data.images import ImageOptions
from frozen_jax.errors import UserError
from frozen_jax.export.layout import (
    CONFIG,
    DIGESTS,
    PREPROCESSOR,
    build_described,
    fingerprint_tensors,
    read_tensors,
    verify,
)
from frozen_jax.language_model import load_lm
from frozen_jax.lm_settings import DtypeName
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.models.lm import build_lm, lm_config_from_hf
from frozen_jax.models.prefix import Prefix
from frozen_jax.state import Params
from frozen_jax.tokenizer import Tokenizer
from frozen_jax.workdir import read_json


def load_export(directory: Path, *, dtype_name: str = "") -> Model:
    """Loads an exported model.

    A directory without `digests.json`, as transformers' `save_pretrained` writes it, is read unverified and in float32:
    what was trained there may be less than bfloat16 tells apart.

    Args:
        directory: with `config.json` and the rest.
        dtype_name: of the language model and of computation, as `config.lm.dtype`; "" is that of the run which was
            exported, where it left the language model as it was.

    Raises:
        UserError: a file is missing, damaged or of another model, or the language model that it names is.
    """
    verify(directory)
    config, pictures = read_json(directory / CONFIG), read_json(directory / PREPROCESSOR)
    try:
        stated = config.get("lm_dtype", "auto") if (directory / DIGESTS).is_file() else "float32"
        dtype = _read_dtype(dtype_name or stated)
        text, described = config["text_config"], config["prefix_config"]
        length = described["length"]
        if type(length) is not int or length < 1:
            raise UserError(
                f"{CONFIG}: prefix_config.length is {length!r}; it is the number of vectors per picture and must be a "
                "whole number of at least 1; export it again"
            )
        lm_config = lm_config_from_hf(text)
        network = FrozenModel(
            build_lm(lm_config, dtype=dtype),
            build_described(config["vision_config"], dtype),
            Prefix(width=lm_config.embed_width, dtype=dtype, **described),
        )
        reference = config.get("language_model")
        tensors = SafetensorsDirectory(directory)
        params = read_tensors(network, tensors, with_lm=reference is None, lm_dtype=dtype)
        if reference is not None:
            params["lm"] = _load_referenced(reference, dtype)
        images = ImageOptions(
            size=pictures["size"],
            fit=pictures["fit"],
            background=tuple(pictures["background"]),
            max_pixels=pictures["max_pixels"],
        )
        bos, blind = bool(pictures["add_bos"]), bool(config["blind"])
    except UserError as error:
        raise UserError(f"{directory}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{directory}: {CONFIG} or {PREPROCESSOR} lacks a field ({error}); export it again") from error
    tokenizer = Tokenizer.from_directory(directory)
    return Model(network, jax.device_put(params), tokenizer, images, bos=bos, blind=blind)


def _load_referenced(reference: Mapping[str, Any], dtype: np.dtype) -> Params:
    path = str(reference["path"])
    lm = load_lm(resolve_path(path), dtype=np.float32, place=lambda params: params)
    found = fingerprint_tensors(export_lm(lm.config, lm.params))
    if found != reference["sha256"]:
        raise UserError(
            f"the language model {path} has the SHA-256 {found}, this model was trained with {reference['sha256']}; "
            f"put that model there, or export with the language model (without --no_lm)"
        )
    params: Params = jax.tree.map(lambda leaf: leaf.astype(dtype), lm.params)
    return params


def _read_dtype(name: Any) -> np.dtype:
    if name not in get_args(DtypeName):
        raise UserError(f"lm_dtype is {name!r}; it must be one of {', '.join(get_args(DtypeName))}")
    return choose_dtype(name)
