"""The table of a ResNet's weights, for both layouts in which they are published. What a table is: `tables.py`.

Lives here: `resnet_table`, and the rule for convolution kernels that `vit.py` uses too. The module: `models/resnet.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from frozen_jax.convert.tables import Rule, Table
from frozen_jax.errors import UserError
from frozen_jax.models.resnet import EXPANSION, ResNet

NORM_LEAVES = (("scale", "weight"), ("bias", "bias"), ("mean", "running_mean"), ("var", "running_var"))


@dataclass(frozen=True)
class KernelRule(Rule):
    """A convolution kernel: ours is [rows, columns, in, out], perhaps reshaped; the tensor [out, in, rows, columns]."""

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """Returns a tensor of `torch_shape` in our layout."""
        return tensor.transpose(2, 3, 1, 0).reshape(self.shape)

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Returns an array of `shape` in the file's layout, contiguous."""
        out, inner, rows, columns = self.torch_shape
        return np.ascontiguousarray(array.reshape(rows, columns, inner, out).transpose(3, 2, 0, 1))


def _torchvision_names(path: str) -> tuple[str, str]:
    if path == "stem":
        return "conv1", "bn1"
    block, part = path.split("/")
    _, stage, _, index = block.split("_")
    stem = f"layer{stage}.{int(index) - 1}."
    if part == "shortcut":
        return f"{stem}downsample.0", f"{stem}downsample.1"
    number = part.removeprefix("conv_")
    return f"{stem}conv{number}", f"{stem}bn{number}"


def _transformers_names(path: str) -> tuple[str, str]:
    if path == "stem":
        return "embedder.embedder.convolution", "embedder.embedder.normalization"
    block, part = path.split("/")
    _, stage, _, index = block.split("_")
    place = "shortcut" if part == "shortcut" else f"layer.{int(part.removeprefix('conv_')) - 1}"
    name = f"encoder.stages.{int(stage) - 1}.layers.{int(index) - 1}.{place}"
    return f"{name}.convolution", f"{name}.normalization"


@dataclass(frozen=True)
class _Layout:
    """How one publisher names the tensors.

    Attributes:
        names: path of one of our convolutions → name of the convolution, name of its batch normalisation.
        prefix: before the names, where there is one.
        head: pattern of the classifier's tensors, which the encoder does not have.
    """

    names: Callable[[str], tuple[str, str]]
    prefix: str
    head: str


LAYOUTS = {
    "torchvision": _Layout(_torchvision_names, "", r"fc\.(weight|bias)"),
    "transformers": _Layout(_transformers_names, "resnet.", r"classifier\.1\.(weight|bias)"),
}
"""torchvision's names are also timm's; transformers' are those of its `ResNetModel`."""


def resnet_table(module: ResNet, *, layout: str = "torchvision") -> Table:
    """Returns the table of a ResNet's weights and statistics; a classifier in the file is left out.

    Args:
        module: the encoder.
        layout: key of `LAYOUTS`.

    Raises:
        UserError: an unknown layout.
    """
    if layout not in LAYOUTS:
        raise UserError(f"weights of a ResNet: layout {layout!r} is unknown; choose one of {', '.join(LAYOUTS)}")
    rules: list[Rule] = []

    def add(path: str, size: int, inner: int, width: int) -> None:
        convolution, norm = LAYOUTS[layout].names(path)
        shape = (size, size, inner, width)
        rules.append(KernelRule(f"{path}/kernel", f"{convolution}.weight", shape, (width, inner, size, size)))
        rules.extend(Rule(f"{path}/{ours}", f"{norm}.{theirs}", (width,), (width,)) for ours, theirs in NORM_LEAVES)

    before = module.stem_width
    add("stem", 7, 3, before)
    for stage, (width, depth) in enumerate(zip(module.widths, module.depths, strict=True), start=1):
        inner = width // EXPANSION
        for index in range(1, depth + 1):
            block = f"stage_{stage}_block_{index}"
            add(f"{block}/conv_1", 1, before, inner)
            add(f"{block}/conv_2", 3, inner, inner)
            add(f"{block}/conv_3", 1, inner, width)
            if index == 1:
                add(f"{block}/shortcut", 1, before, width)
            before = width
    return Table(
        rules=tuple(rules),
        layers=1,
        prefixes=(LAYOUTS[layout].prefix,),
        unprefixed=(),
        buffers=rf"{LAYOUTS[layout].head}|.*\.num_batches_tracked",
        tied=None,
    )
