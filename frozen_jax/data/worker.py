"""A process that prepares pictures for another one: `python -m frozen_jax.data.worker`, spoken to by `processes.py`.

A request is one JSON line and then the bytes of the pictures that are not files; the answer is one JSON line with what
went wrong, and then the pixels of all. Imports neither JAX nor TensorFlow, so that it is small and starts quickly.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from frozen_jax.data.images import ImageOptions, load_image
from frozen_jax.data.records import FileSlice, ImageData, RecordError


def describe_image(image: ImageData) -> tuple[dict[str, Any], bytes]:
    """Returns how a picture is written in a request: its JSON description, and the bytes that follow."""
    if isinstance(image, Path):
        return {"path": str(image)}, b""
    if isinstance(image, FileSlice):
        return {"path": str(image.path), "offset": image.offset, "length": image.length}, b""
    if isinstance(image, bytes):
        return {"bytes": len(image)}, image
    data = np.ascontiguousarray(image)
    return {"bytes": data.nbytes, "shape": list(data.shape), "dtype": data.dtype.str}, data.tobytes()


def read_image(description: dict[str, Any], stream: BinaryIO) -> ImageData:
    """Undoes `describe_image`, taking the bytes from the stream."""
    if "offset" in description:
        return FileSlice(Path(description["path"]), description["offset"], description["length"])
    if "path" in description:
        return Path(description["path"])
    data = stream.read(description["bytes"])
    if "shape" in description:
        return np.frombuffer(data, np.dtype(description["dtype"])).reshape(description["shape"])
    return data


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answers requests until their stream ends."""
    while line := requests.readline():
        request = json.loads(line)
        settings = request["options"]
        options = ImageOptions(**{**settings, "background": tuple(settings["background"])})
        images = [read_image(item, requests) for item in request["items"]]
        pixels = np.zeros((len(images), options.size, options.size, 3), np.uint8)
        wrong: dict[int, list[str]] = {}
        for place, (image, window) in enumerate(zip(images, request["windows"], strict=True)):
            left, top, right, bottom = window
            try:
                pixels[place] = load_image(image, options=options, window=(left, top, right, bottom))
            except RecordError as error:
                wrong[place] = [error.reason, str(error)]
        answers.write(json.dumps(wrong).encode() + b"\n")
        answers.write(pixels.data)
        answers.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
