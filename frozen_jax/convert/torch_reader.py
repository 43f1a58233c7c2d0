"""Weights in a file that `torch.save` wrote: zip or legacy, read by PyTorch's loader of plain tensors alone.

Such files are pickles. Nothing here reads a pickle: `torch.load(weights_only=True)` builds tensors, with their strides,
and refuses all else. PyTorch is imported only when such a file is met.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from frozen_jax.errors import UserError

SUFFIXES = (".pth", ".pt", ".bin")

LEAST_TORCH = (2, 10)
"""Older loaders can be made to run code or to corrupt memory by a prepared file (CVE-2025-32434, CVE-2026-24747)."""

_WRAPPERS = ("state_dict", "model")
_DISTRIBUTED = "module."


def read_torch_file(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a state dict, contiguous.

    Raises:
        UserError: no PyTorch or an old one, a damaged file, or one that holds anything but tensors.
    """
    convert = "convert the file once to safetensors, which needs no PyTorch to be read"
    try:
        import torch
    except ModuleNotFoundError as error:
        raise UserError(f"{path}: reading it needs PyTorch; install torch, or {convert}") from error
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < LEAST_TORCH:
        wanted = ".".join(map(str, LEAST_TORCH))
        raise UserError(
            f"{path}: PyTorch {torch.__version__} is older than {wanted}, whose loader of weights is the first that is "
            f"safe against prepared files; update it, or {convert}"
        )
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and prepared files raise of many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"{path}: cannot be read as plain tensors ({reason}); it is damaged or holds other objects than weights: "
            "get the state dict alone"
        ) from error
    for name in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: holds {type(content).__name__}, must hold a state dict: names and tensors")
    strangers = [name for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if strangers:
        raise UserError(f"{path}: {strangers[0]!r} is no tensor; save the state dict alone")
    return {name.removeprefix(_DISTRIBUTED): _to_numpy(tensor, torch) for name, tensor in content.items()}


def _to_numpy(tensor: Any, torch: Any) -> np.ndarray:
    exact = tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # numpy has no bfloat16
    return np.asarray(exact.detach().contiguous().numpy())
