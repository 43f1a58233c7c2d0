"""Weights as one safetensors file that others may read, whole or absent. The counterpart: `safetensors_reader.py`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def save_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a file beside its place and moves it there; leaves nothing behind if that fails.

    Args:
        path: to create or replace.
        tensors: by name; transformers is told that they are laid out as PyTorch's.

    Raises:
        OSError: the directory cannot be written.
        SafetensorError: likewise, or the disk is full.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode  # as the umask has it: safetensors makes files that their owner alone can read
        save_file(dict(tensors), partial, metadata={"format": "pt"})
        partial.chmod(mode)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
