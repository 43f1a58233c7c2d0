"""The tables of an NF-ResNet's weights: the names of our own exports, and timm's. What a table is: `tables.py`.

timm's networks (`nf_resnet50` and its like) are ours with `pooled_shortcut`, but for two constants: it adds its epsilon
to a filter's variance where ours takes a floor, and multiplies by the activation's gamma in the convolution behind it,
in the stem's too, not in the activation. `import_timm` puts both into the gains, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from frozen_jax.convert.resnet import KernelRule
from frozen_jax.convert.tables import Params, Rule, Table, import_tensors
from frozen_jax.errors import UserError
from frozen_jax.models.nf_resnet import GAMMAS, STEMS, VARIANCE_FLOOR, NFResNet
from frozen_jax.state import flatten, unflatten

TIMM_EPSILON = 1e-5
TIMM_GAMMAS = {"relu": 1.7139588594436646, "gelu": 1.7015043497085571}  # its relu's is a sampled estimate of ours


def nf_resnet_table(module: NFResNet, *, layout: str = "exported") -> Table:
    """Returns the table of one encoder.

    Args:
        module: the encoder.
        layout: "exported", the names of `assets/pytorch/modeling_frozen.py`, or "timm", which has no gains of branches.
    """
    timm = layout == "timm"
    rules: list[Rule] = []

    def add(path: str, name: str, size: int, inner: int, width: int) -> None:
        kernel = (size, size, inner, width)
        rules.append(KernelRule(f"{path}/kernel", f"{name}.weight", kernel, (width, inner, size, size)))
        rules.append(Rule(f"{path}/gain", f"{name}.gain", (width,), (width, 1, 1, 1) if timm else (width,)))
        rules.append(Rule(f"{path}/bias", f"{name}.bias", (width,), (width,)))

    before = module.stem_width
    add("stem", "stem.conv" if timm else "stem", STEMS[module.stem][0], 3, before)
    for stage, (width, depth) in enumerate(zip(module.widths, module.depths, strict=True), start=1):
        inner = width // 4
        for index in range(1, depth + 1):
            path = f"stage_{stage}_block_{index}"
            block = f"stages.{stage - 1}.{index - 1}" if timm else f"blocks.{path}"
            plan = [(1, before, inner), (3, inner, inner), (1, inner, width)]
            for number, sizes in enumerate(plan if module.bottleneck else [(3, before, width), (3, width, width)]):
                add(f"{path}/conv_{number + 1}", f"{block}.{_name_convolution(number, timm=timm)}", *sizes)
            if index == 1:
                add(f"{path}/shortcut", f"{block}.{'downsample.conv' if timm else 'shortcut'}", 1, before, width)
            if not timm:
                rules.append(Rule(f"{path}/skip_gain", f"{block}.skip_gain", (), (1,)))
            before = width
    buffers = r"head\.fc\.(weight|bias)" if timm else ""
    return Table(tuple(rules), layers=1, prefixes=("",), unprefixed=(), buffers=buffers, tied=None)


def _name_convolution(number: int, *, timm: bool) -> str:
    return f"conv{number + 1}" if timm else f"convolutions.{number}"


def import_timm(module: NFResNet, tensors: Mapping[str, np.ndarray]) -> Params:
    """Returns our parameters, float32, from timm's weights of an NF-ResNet; the features are gamma times timm's.

    Raises:
        UserError: the encoder is no such network, or tensors are missing, unexpected or of another shape.
    """
    if not (module.bottleneck and module.stem == "resnet" and module.pooled_shortcut):
        raise UserError(
            "timm's NF-ResNets have vision.options bottleneck=True, stem='resnet' and pooled_shortcut=True; set these"
        )
    flat = flatten(import_tensors(nf_resnet_table(module, layout="timm"), tensors, dtype=np.float32))
    for path in [path for path in flat if path.endswith("/kernel")]:
        kernel = flat[path].astype(np.float64)
        fan_in, variance = math.prod(kernel.shape[:3]), kernel.var(axis=(0, 1, 2))
        ours = np.maximum(variance * fan_in, VARIANCE_FLOOR)
        factor = np.sqrt(ours / (fan_in * (variance + TIMM_EPSILON)))
        factor *= TIMM_GAMMAS[module.activation]
        if path != "stem/kernel":
            factor /= GAMMAS[module.activation]
        gain = path.removesuffix("kernel") + "gain"
        flat[gain] = (flat[gain] * factor).astype(np.float32)
    for path in {path.split("/")[0] for path in flat} - {"stem"}:
        flat[f"{path}/skip_gain"] = np.ones((), np.float32)
    return unflatten(flat)
