"""TensorFlow Datasets by name or prepared folder. The one file that imports TensorFlow, hidden from accelerators.

TFDS finds, downloads and describes the set; its record files are then read by `tfrecord.py` at random places, which a
`tf.data` pipeline cannot do, and without TensorFlow in the loop. Next in the data flow: `pipeline.py`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from frozen_jax.data.records import Record
from frozen_jax.data.tfrecord import ArrayRecords, ExampleSource, TFRecords
from frozen_jax.errors import UserError


def import_tfds() -> ModuleType:
    """Imports tensorflow_datasets after taking all accelerators from TensorFlow: they belong to JAX.

    Raises:
        UserError: TensorFlow or TFDS is not installed.
    """
    try:
        tensorflow = importlib.import_module("tensorflow")
        for kind in ("GPU", "TPU"):
            tensorflow.config.set_visible_devices([], kind)
        return importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise UserError(f"data: tfds sources need a package ({error}): pip install tensorflow-datasets") from error


class TfdsSource:
    """One split of a TFDS builder with an image and captions (coco_captions and its like) or an image and a label."""

    def __init__(
        self,
        path: str | Path,
        *,
        split: str = "train",
        data_dir: str | Path = "",
        image: str = "",
        caption: str = "",
    ):
        """Prepares the set if it is not on disk yet (a download, with TFDS's own progress bar).

        Args:
            path: a builder's name ("coco_captions"), or the folder of a prepared version (…/coco_captions/2014/1.1.0),
                which is opened with `builder_from_directory`.
            split: one of the builder's splits, without slicing; choose parts with the pipeline's hold-out.
            data_dir: where prepared sets lie; TFDS's default if empty.
            image: feature of the encoded picture; "image" or the like by default.
            caption: feature of the captions ("captions/text"); found by default.

        Raises:
            UserError: unknown name or split, or files that are neither TFRecord nor ArrayRecord.
        """
        tfds = import_tfds()
        builder = self._open_builder(tfds, path, str(data_dir))
        if split not in builder.info.splits:
            known = sorted(map(str, builder.info.splits))
            raise UserError(f"data: {builder.info.full_name} has no split {split!r}; it has {known}")
        self._name = f"{builder.info.name}/{split}"
        files = [Path(file) for file in builder.info.splits[split].filepaths]
        lacking = [str(file) for file in files if not file.is_file()]
        if lacking:
            raise UserError(f"data: {lacking[0]} of {self._name} is missing; prepare the set again")
        reader = ArrayRecords(files) if "array_record" in files[0].name else TFRecords(files)
        self._examples = ExampleSource(reader, image=image, caption=caption)

    @staticmethod
    def _open_builder(tfds: ModuleType, path: str | Path, data_dir: str) -> Any:
        folder = Path(path).expanduser()
        try:
            if (folder / "dataset_info.json").is_file():
                return tfds.builder_from_directory(str(folder))
            builder = tfds.builder(str(path), **({"data_dir": data_dir} if data_dir else {}))
            builder.download_and_prepare()
            return builder
        except tfds.core.DatasetNotFoundError as error:
            raise UserError(f"data: TFDS knows no set {str(path)!r}, and no prepared folder lies there") from error

    def __len__(self) -> int:
        return len(self._examples)

    def ids(self) -> list[str]:
        """Returns "coco_captions/train/0", …"""
        return [f"{self._name}/{i}" for i in range(len(self))]

    def record(self, index: int) -> Record:
        """Returns one example; see `ExampleSource.record`."""
        return self._examples.record(index)._replace(id=f"{self._name}/{index}")
