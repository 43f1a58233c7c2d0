"""The table of an NF-ResNet's weights, with the names of our own exports. What a table is: `tables.py`."""

from __future__ import annotations

from frozen_jax.convert.resnet import KernelRule
from frozen_jax.convert.tables import Rule, Table
from frozen_jax.models.nf_resnet import STEMS, NFResNet


def nf_resnet_table(module: NFResNet) -> Table:
    """Returns the table of one encoder; names as in `assets/pytorch/modeling_frozen.py`."""
    rules: list[Rule] = []

    def add(path: str, name: str, size: int, inner: int, width: int) -> None:
        kernel = (size, size, inner, width)
        rules.append(KernelRule(f"{path}/kernel", f"{name}.weight", kernel, (width, inner, size, size)))
        rules.extend(Rule(f"{path}/{leaf}", f"{name}.{leaf}", (width,), (width,)) for leaf in ("gain", "bias"))

    before = module.stem_width
    add("stem", "stem", STEMS[module.stem][0], 3, before)
    for stage, (width, depth) in enumerate(zip(module.widths, module.depths, strict=True), start=1):
        inner = width // 4
        for index in range(1, depth + 1):
            block = f"stage_{stage}_block_{index}"
            plan = [(1, before, inner), (3, inner, inner), (1, inner, width)]
            for number, sizes in enumerate(plan if module.bottleneck else [(3, before, width), (3, width, width)]):
                add(f"{block}/conv_{number + 1}", f"blocks.{block}.convolutions.{number}", *sizes)
            if index == 1:
                add(f"{block}/shortcut", f"blocks.{block}.shortcut", 1, before, width)
            rules.append(Rule(f"{block}/skip_gain", f"blocks.{block}.skip_gain", (), (1,)))
            before = width
    return Table(tuple(rules), layers=1, prefixes=("",), unprefixed=(), buffers="", tied=None)
