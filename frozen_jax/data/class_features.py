"""Features that stand for the classes of a pre-trained encoder, each with a caption: training data without pictures.

    class_features:FILE.safetensors       features float32[N, E]; their captions are a JSON list in the file's metadata

`tools/class_features.py` makes such files. Only a run with `vision.feature_cache` can use them: what it trains on are
features anyhow. Next in the data flow: `features.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from frozen_jax.data.records import Record
from frozen_jax.errors import UserError
from frozen_jax.workdir import write_bytes_atomic

TENSOR, CAPTIONS = "features", "captions"


def write_class_features(path: Path, features: Float32[np.ndarray, "N E"], captions: Sequence[str]) -> None:
    """Writes the file at once.

    Args:
        path: gets it.
        features: as the encoder would give them.
        captions: one for each.
    """
    content = save(
        {TENSOR: np.ascontiguousarray(features, np.float32)}, metadata={CAPTIONS: json.dumps(list(captions))}
    )
    write_bytes_atomic(path, content)


class ClassFeatures:
    """The file's features as records whose picture is a feature."""

    def __init__(self, path: str | Path):
        """Reads the file.

        Raises:
            UserError: it is not there, or is none of these.
        """
        file = Path(path).expanduser()
        try:
            with safe_open(file, framework="numpy") as tensors:
                self._features: Float32[np.ndarray, "N E"] = tensors.get_tensor(TENSOR)
                captions = json.loads((tensors.metadata() or {})[CAPTIONS])
            whole = self._features.ndim == 2 and self._features.dtype == np.float32
            if not whole or len(captions) != len(self._features) or not all(isinstance(c, str) for c in captions):
                raise ValueError("features and captions do not fit each other")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"data: {file} holds no features of classes ({error}); make it by frozen_jax.tools.class_features"
            ) from error
        self._captions: list[str] = captions

    def __len__(self) -> int:
        return len(self._captions)

    def ids(self) -> list[str]:
        """Returns the numbers of the features."""
        return [str(number) for number in range(len(self))]

    def record(self, index: int) -> Record:
        """Returns the feature at `index` with its caption."""
        return Record(id=str(index), image=self._features[index], captions=(self._captions[index],))
