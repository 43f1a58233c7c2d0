"""A pre-trained vision encoder's weights, from a Hugging Face directory or a hub: ResNet and ViT (CLIP's or plain).

The networks are in `models/`, the names of weights in `convert/resnet.py` and `convert/vit.py`. Next: `build.py`.
"""

from __future__ import annotations

from pathlib import Path

import flax.linen as nn
import numpy as np

from frozen_jax.convert.resnet import resnet_table
from frozen_jax.convert.safetensors_reader import SafetensorsDirectory
from frozen_jax.convert.tables import import_tensors
from frozen_jax.convert.vit import vit_table
from frozen_jax.errors import UserError
from frozen_jax.language_model import download_model
from frozen_jax.models.resnet import ResNet
from frozen_jax.models.vit import ViT
from frozen_jax.state import Params


def load_vision(directory_or_hub_id: str, module: nn.Module) -> Params:
    """Returns the encoder's parameters on the host, float32.

    Args:
        directory_or_hub_id: a directory with model.safetensors, or a name that a Hugging Face hub knows.
        module: the encoder that the weights are for.

    Raises:
        UserError: no such directory, an encoder without published weights, or weights of another one.
    """
    path = Path(directory_or_hub_id).expanduser()
    if not path.exists():
        path = download_model(directory_or_hub_id)
    try:
        tensors = SafetensorsDirectory(path)
        if isinstance(module, ViT):
            table = vit_table(module.config)
        elif isinstance(module, ResNet):
            layout = "transformers" if any("embedder" in name for name in tensors) else "torchvision"
            table = resnet_table(module, layout=layout)
        else:
            raise UserError("there are weights for vision.name 'resnet50' and 'vit' alone; leave vision.path empty")
        return import_tensors(table, tensors, dtype=np.float32)
    except UserError as error:
        raise UserError(f"vision encoder {path}: {error}") from error
