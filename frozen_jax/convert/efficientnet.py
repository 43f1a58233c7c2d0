"""The table of EfficientNet-Lite's weights, with the names of the PyPI package `efficientnet-lite-pytorch`.

What a table is: `tables.py`; the module: `models/efficientnet.py`.
"""

from __future__ import annotations

from frozen_jax.convert.resnet import NORM_LEAVES, KernelRule
from frozen_jax.convert.tables import Rule, Table
from frozen_jax.models.efficientnet import EfficientNetLite


def efficientnet_table(module: EfficientNetLite) -> Table:
    """Returns the table of one network's weights and statistics; a classifier in the file is left out."""
    rules: list[Rule] = []

    def add(path: str, convolution: str, norm: str, size: int, inner: int, width: int) -> None:
        shape = (size, size, inner, width)
        rules.append(KernelRule(f"{path}/kernel", f"{convolution}.weight", shape, (width, inner, size, size)))
        rules.extend(Rule(f"{path}/{ours}", f"{norm}.{theirs}", (width,), (width,)) for ours, theirs in NORM_LEAVES)

    before = module.stem_width
    add("stem", "_conv_stem", "_bn0", 3, 3, before)
    for number, (width, expansion, size, _) in enumerate(module.plan()):
        path, name = f"block_{number + 1}", f"_blocks.{number}"
        inner = before * expansion
        if expansion > 1:
            add(f"{path}/expand", f"{name}._expand_conv", f"{name}._bn0", 1, before, inner)
        add(f"{path}/depthwise", f"{name}._depthwise_conv", f"{name}._bn1", size, 1, inner)
        add(f"{path}/project", f"{name}._project_conv", f"{name}._bn2", 1, inner, width)
        before = width
    add("head", "_conv_head", "_bn1", 1, before, module.head_width)
    others = r"_fc\.(weight|bias)|.*\.num_batches_tracked"
    return Table(tuple(rules), layers=1, prefixes=("",), unprefixed=(), buffers=others, tied=None)
