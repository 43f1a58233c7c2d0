"""What an exported directory holds, both ways: settings ↔ modules, tensors ↔ parameters.

Lives here: names and fields; the tables of single parts are in `convert/`. Writing is in `write.py`, reading in
`read.py`; the other side of this layout is `assets/pytorch/modeling_frozen.py`, which ships with every export.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from frozen_jax.convert.lm_weights import lm_table
from frozen_jax.convert.nf_resnet import nf_resnet_table
from frozen_jax.convert.prefix import prefix_table
from frozen_jax.convert.resnet import resnet_table
from frozen_jax.convert.safetensors_reader import SafetensorsDirectory
from frozen_jax.convert.tables import Table, export_tensors, import_tensors
from frozen_jax.convert.vit import vit_table
from frozen_jax.errors import UserError
from frozen_jax.models.frozen import FrozenModel
from frozen_jax.models.nf_resnet import NFResNet
from frozen_jax.models.resnet import ResNet
from frozen_jax.models.vision import build_vision
from frozen_jax.models.vit import ViT
from frozen_jax.state import Params
from frozen_jax.sums import digest_file
from frozen_jax.tokenizer import GENERATION, SAVED_FILES
from frozen_jax.workdir import read_json

MODEL_TYPE = "frozen"
GENERATOR_TYPE = "frozen_generator"
"""Of the export of a picture generator, which PyTorch alone reads."""
CONFIG, WEIGHTS, PREPROCESSOR, DIGESTS = (
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "digests.json",
)
VERIFIED = (CONFIG, WEIGHTS, PREPROCESSOR, *SAVED_FILES, GENERATION)
"""Files that decide what a model says: checked against `digests.json` before they are read."""

_ENCODERS = {"nf_resnet": "nf_resnet50", "resnet": "resnet50", "vit": "vit"}
"""Name in an export → builder, given all sizes."""

_NOT_SETTINGS = ("dtype", "parent", "name", "remat", "unroll", "config")


def describe_vision(module: nn.Module) -> dict[str, Any]:
    """Returns `vision_config`: the encoder's kind and all of its options.

    Raises:
        UserError: `modeling_frozen.py` does not have this encoder.
    """
    siglip = isinstance(module, ViT) and module.config.family == "siglip"
    if siglip or not isinstance(module, ViT | ResNet | NFResNet):
        kind = "SigLIP" if siglip else type(module).__name__
        raise UserError(f"{kind} has no PyTorch side in exports; --format=stablehlo exports every encoder")
    if isinstance(module, ViT):
        return {"name": "vit", **dataclasses.asdict(module.config)}
    name = "resnet" if isinstance(module, ResNet) else "nf_resnet"
    fields = [field.name for field in dataclasses.fields(module) if field.name not in _NOT_SETTINGS]
    return {"name": name, **{field: getattr(module, field) for field in fields}}


def build_described(settings: Mapping[str, Any], dtype: np.dtype) -> Any:
    """Builds the encoder of a `vision_config`.

    Raises:
        UserError: an unknown encoder or option, or a value that does not fit.
    """
    options = {name: value for name, value in settings.items() if name != "name"}
    if settings.get("name") not in _ENCODERS:
        raise UserError(
            f"{CONFIG}: vision_config.name is {settings.get('name')!r}; it must be one of {', '.join(_ENCODERS)}"
        )
    return build_vision(_ENCODERS[settings["name"]], **options, dtype=dtype)


def list_tables(network: FrozenModel, *, with_lm: bool) -> dict[str, Table]:
    """Returns the tables of all parts by our first path element."""
    assert network.vision is not None and network.prefix is not None
    tables = {
        "vision": vision_table(network.vision),
        "prefix": prefix_table(network.prefix, features=network.vision.width),
    }
    return {**tables, "lm": lm_table(network.lm.config)} if with_lm else tables


def vision_table(module: nn.Module) -> Table:
    """Returns an encoder's table with the names of exports; a ResNet's are torchvision's."""
    if isinstance(module, ViT):
        return vit_table(module.config, exported=True)
    if isinstance(module, ResNet):
        return resnet_table(module)
    assert isinstance(module, NFResNet)
    return nf_resnet_table(module)


def _prefix_of(part: str) -> str:
    return "language_model." if part == "lm" else f"{part}."


def name_tensors(network: FrozenModel, params: Params, *, with_lm: bool) -> dict[str, np.ndarray]:
    """Returns the tensors of `model.safetensors`."""
    return {
        _prefix_of(part) + name: tensor
        for part, table in list_tables(network, with_lm=with_lm).items()
        for name, tensor in export_tensors(table, params[part]).items()
    }


class _Part(Mapping[str, np.ndarray]):
    """The tensors of one part, without its prefix, read when asked for."""

    def __init__(self, tensors: Mapping[str, np.ndarray], prefix: str) -> None:
        self._tensors, self._prefix = tensors, prefix
        self._names = [name.removeprefix(prefix) for name in tensors if name.startswith(prefix)]

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[self._prefix + name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_tensors(
    network: FrozenModel, tensors: Mapping[str, np.ndarray], *, with_lm: bool, lm_dtype: np.dtype
) -> Params:
    """Returns the parameters that `name_tensors` named, on the host.

    Raises:
        UserError: a tensor is missing, unexpected or of another shape.
    """
    tables = list_tables(network, with_lm=with_lm)
    strangers = [name for name in tensors if not name.startswith(tuple(map(_prefix_of, tables)))]
    if strangers:
        raise UserError(f"{WEIGHTS} holds {strangers[0]}, which belongs to no part of this model; export it again")
    return {
        part: import_tensors(
            table, _Part(tensors, _prefix_of(part)), dtype=lm_dtype if part == "lm" else np.dtype(np.float32)
        )
        for part, table in tables.items()
    }


def is_export(directory: Path) -> bool:
    """Whether a directory was exported, here or by transformers' `save_pretrained`; otherwise it may be a workdir."""
    return read_type(directory) == MODEL_TYPE


def read_type(directory: Path) -> str | None:
    """Returns the model_type in the config.json of a directory, or None where there is none, as in a workdir."""
    found = read_json(directory / CONFIG).get("model_type") if (directory / CONFIG).is_file() else None
    return found if isinstance(found, str) else None


def verify(directory: Path) -> None:
    """Compares the files that are about to be read with `digests.json`, where there is one.

    Raises:
        UserError: the first file that is missing or differs, by name.
    """
    if not (directory / DIGESTS).is_file():
        return
    listed = read_json(directory / DIGESTS).get("sha256")
    if not isinstance(listed, dict):
        raise UserError(f"{directory / DIGESTS}: has no sha256 of files; export the model again")
    for name in VERIFIED:
        if name == GENERATION and name not in listed and not (directory / name).exists():
            continue  # without it the tokenizer names the one token that ends a text
        if name not in listed:
            raise UserError(f"{directory / DIGESTS}: does not list {name}; export the model again")
        if not (directory / name).is_file():
            raise UserError(f"{directory / name} is missing; copy the whole directory again")
        found = digest_file(directory / name)
        if found != listed[name]:
            raise UserError(
                f"{directory / name} is damaged or was changed: its SHA-256 is {found}, written as {listed[name]}; "
                f"copy it again, or remove {DIGESTS} if the change was meant"
            )


def read_encoder(directory: Path, module: nn.Module) -> Params:
    """Returns the parameters of an exported model's vision encoder, on the host: to train on from there.

    Args:
        directory: with `config.json` and the rest.
        module: the encoder, which has to be the same one.

    Raises:
        UserError: another encoder or other options, or a file that is missing or damaged.
    """
    verify(directory)
    stored, wanted = read_json(directory / CONFIG).get("vision_config"), describe_vision(module)
    stored = stored if isinstance(stored, dict) else {}
    differing = [name for name, value in _as_json(wanted).items() if stored.get(name) != value]
    if differing:
        name = differing[0]
        raise UserError(
            f"{CONFIG} has vision_config.{name} = {stored.get(name)!r}, and this encoder {wanted[name]!r}; set "
            "vision.name and vision.options as in the exported run"
        )
    return import_tensors(vision_table(module), _Part(SafetensorsDirectory(directory), "vision."), dtype=np.float32)


def _as_json(settings: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(settings))  # tuples become lists


def fingerprint_tensors(tensors: Mapping[str, np.ndarray]) -> str:
    """Returns the SHA-256 of a language model that PyTorch can compute too: name, shape and float32 values of each."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name], np.float32)
        digest.update(f"{name} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
