"""A pre-trained vision encoder's weights: from a Hugging Face directory, a hub, a file of torch's or safetensors, or
from the export of a run of one's own.

ResNet (torchvision's, timm's and transformers' names), NF-ResNet (timm's), EfficientNet-Lite and ViT (CLIP's or plain).
The networks are in `models/`, the names of weights in `convert/`. Next: `build.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from frozen_jax.convert.efficientnet import efficientnet_table
from frozen_jax.convert.nf_resnet import import_timm
from frozen_jax.convert.resnet import resnet_table
from frozen_jax.convert.safetensors_reader import SINGLE, SafetensorsDirectory
from frozen_jax.convert.tables import import_tensors
from frozen_jax.convert.torch_reader import SUFFIXES, read_torch_file
from frozen_jax.convert.vit import vit_table
from frozen_jax.errors import UserError
from frozen_jax.export.layout import is_export, read_encoder
from frozen_jax.language_model import download_model
from frozen_jax.models.efficientnet import EfficientNetLite
from frozen_jax.models.nf_resnet import NFResNet
from frozen_jax.models.resnet import ResNet
from frozen_jax.models.vision import HF_FAMILIES, vision_config_from_hf
from frozen_jax.models.vit import ViT
from frozen_jax.state import Params
from frozen_jax.sums import verify_file, verify_sums
from frozen_jax.workdir import read_json


def load_vision(path_or_hub_id: str, module: nn.Module) -> Params:
    """Returns the encoder's parameters on the host, float32.

    Args:
        path_or_hub_id: a directory with model.safetensors, a .safetensors file, a file that `torch.save` wrote (.pth,
            .pt, .bin), a directory that `tools.export` wrote, or a name that a Hugging Face hub knows.
        module: the encoder that the weights are for.

    Raises:
        UserError: nothing there, an encoder without published weights, or weights of another one, by their shapes or
            by the `config.json` and `preprocessor_config.json` beside them.
    """
    path = _find(path_or_hub_id)
    try:
        if is_export(path):
            return read_encoder(path, module)
        tensors = _open(path)
        if isinstance(module, NFResNet):
            return import_timm(module, tensors)
        if isinstance(module, ViT):
            table = vit_table(module.config)
        elif isinstance(module, ResNet):
            layout = "transformers" if any("embedder" in name for name in tensors) else "torchvision"
            table = resnet_table(module, layout=layout)
        elif isinstance(module, EfficientNetLite):
            table = efficientnet_table(module)
        else:
            raise UserError("this encoder has no published weights; leave vision.path empty")
        if path.is_dir() or path.name in (SINGLE, "pytorch_model.bin"):
            directory = path if path.is_dir() else path.parent
            _compare_options(directory, module)
            _compare_pixels(directory, module)
        return import_tensors(table, tensors, dtype=np.float32)
    except UserError as error:
        raise UserError(f"vision encoder {path}: {error}") from error


def _compare_options(directory: Path, module: ViT | ResNet | EfficientNetLite) -> None:
    """Refuses an encoder that its weights' config.json, of transformers, describes otherwise.

    Weights fit many encoders: heads, activation and epsilon are no shapes, and features would be wrong in silence.
    """
    path = directory / "config.json"
    described = read_json(path) if path.is_file() else {}
    if described.get("model_type") not in HF_FAMILIES:
        return
    projected = isinstance(module, ViT) and module.config.projection_width > 0
    wanted = vision_config_from_hf(described, projected=projected)
    if (wanted.pop("name") == "vit") != isinstance(module, ViT):
        return  # no tensor's name will be found
    built: Any = module.config if isinstance(module, ViT) else module
    differing = {name: value for name, value in wanted.items() if getattr(built, name) != value}
    if differing:
        here = ", ".join(f"{name} = {getattr(built, name)!r}" for name in differing)
        there = ", ".join(f"{name} = {value!r}" for name, value in differing.items())
        raise UserError(f"config.json describes {there}, and vision.options make it {here}; set them as it says")


def _compare_pixels(directory: Path, module: ViT | ResNet | EfficientNetLite) -> None:
    """Refuses an encoder whose weights were trained on pixels normalised otherwise."""
    path = directory / "preprocessor_config.json"
    described: Any = read_json(path) if path.is_file() else {}
    whole = directory / "processor_config.json"  # newer: of pictures and texts
    if not described and whole.is_file():
        path, described = whole, read_json(whole).get("image_processor") or {}
    if not isinstance(described, Mapping):
        raise UserError(f"{path.name}: image_processor is {described!r}; it must be an object")
    if described.get("do_normalize") is False:
        raise UserError(f"{path.name} says that pixels are not normalised, which is not built here; use other weights")
    for name, used in zip(("image_mean", "image_std"), module.pixel_statistics, strict=True):
        stated = described.get(name)
        if stated is None:
            continue
        numbers = isinstance(stated, list) and all(type(value) in (int, float) and abs(value) < 1e6 for value in stated)
        if not numbers or len(stated) != 3:
            raise UserError(f"{path.name}: {name} is {stated!r}; it must be three numbers on the scale 0..1")
        if not np.allclose(stated, used, rtol=0, atol=0.005):
            raise UserError(
                f"{path.name} says {name} = {stated}, and this encoder normalises pixels by {list(used)}: the features "
                "would be others; use weights that were trained so"
            )


def read_weights(path_or_hub_id: str) -> Mapping[str, np.ndarray]:
    """Returns all tensors of such a file or directory by their names there, those without a place here included.

    Raises:
        UserError: nothing there, or not readable.
    """
    return _open(_find(path_or_hub_id))


def _find(path_or_hub_id: str) -> Path:
    path = Path(path_or_hub_id).expanduser()
    return path if path.exists() else download_model(path_or_hub_id)


def _open(path: Path) -> Mapping[str, np.ndarray]:
    """Reads names, or all tensors of a file of torch's; in a directory such a file counts where nothing else is.

    A SHA256SUMS in the directory, or beside the file, vouches for what is read.
    """
    if path.is_dir():
        verify_sums(path)
    else:
        verify_file(path)
    if path.is_dir() and not any(path.glob("*.safetensors*")):
        files = [file for file in sorted(path.iterdir()) if file.suffix in SUFFIXES]
        path = files[0] if len(files) == 1 else path
    if path.suffix in SUFFIXES and path.is_file():
        return read_torch_file(path)
    return SafetensorsDirectory(path)
