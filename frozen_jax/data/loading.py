"""Many pictures at once: threads or processes and, for a set that fits, a cache of prepared pictures in memory.

Preparing one picture is in `images.py`. TensorFlow is not needed here. Next in the data flow: `pipeline.py`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from frozen_jax.data.dirty import Bad
from frozen_jax.data.images import ImageOptions, load_image
from frozen_jax.data.processes import ImageProcesses, Window
from frozen_jax.data.records import ImageData, RecordError, Source

CACHE_BYTES = 1 << 29
_WHOLE: Window = (0.0, 0.0, 1.0, 1.0)


class ImageLoader:
    """Opens the pictures of a source by number.

    Attributes:
        cached: True if prepared pictures are kept in memory (only without random windows).
    """

    def __init__(self, source: Source, options: ImageOptions, *, cache_bytes: int = CACHE_BYTES, processes: int = 0):
        """Makes the loader; nothing is opened yet.

        Args:
            source: where pictures come from.
            options: how they are prepared.
            cache_bytes: keep all prepared pictures in memory if they need at most this; 0 = never.
            processes: processes that decode; 0 = threads of this one, one per core and at most 16.
        """
        self._source, self._options = source, options
        self._threads = ThreadPoolExecutor(min(16, os.cpu_count() or 1), "images")
        self._processes = ImageProcesses(processes, options) if processes else None
        self.cached = len(source) * options.size**2 * 3 <= cache_bytes
        self._known = np.zeros(len(source) if self.cached else 0, bool)
        self._pixels = np.empty((len(self._known), options.size, options.size, 3), np.uint8)

    def load(
        self, samples: Int64[np.ndarray, " B"] | Sequence[int], windows: Float64[np.ndarray, "B 4"] | None = None
    ) -> tuple[UInt8[np.ndarray, "B height width 3"], dict[int, Bad]]:
        """Returns (pictures, what went wrong by row); rows that went wrong are black.

        Args:
            samples: numbers in the source.
            windows: part of each picture to use, as fractions; then nothing is cached.
        """
        wanted = np.asarray(samples, np.int64)
        if windows is not None or not self.cached:
            boxes = [_WHOLE] * len(wanted) if windows is None else list(map(_as_window, windows.tolist()))
            return self._open(wanted.tolist(), boxes)
        missing = np.unique(wanted[~self._known[wanted]])
        failed: dict[int, Bad] = {}
        if len(missing):
            pixels, wrong = self._open(missing.tolist(), [_WHOLE] * len(missing))
            self._pixels[missing], self._known[missing] = pixels, True
            for place, bad in wrong.items():
                failed[int(missing[place])], self._known[missing[place]] = bad, False
        images = self._pixels[wanted]
        return images, {row: failed[sample] for row, sample in enumerate(wanted.tolist()) if sample in failed}

    def _open(
        self, samples: Sequence[int], windows: Sequence[Window]
    ) -> tuple[UInt8[np.ndarray, "B height width 3"], dict[int, Bad]]:
        found = list(map(self._find, samples))
        bad = {row: image for row, image in enumerate(found) if isinstance(image, Bad)}
        rows = [row for row in range(len(found)) if row not in bad]
        pixels = np.zeros((len(found), self._options.size, self._options.size, 3), np.uint8)
        sound = [image for image in found if not isinstance(image, Bad)]
        boxes = [windows[row] for row in rows]
        if self._processes is not None:
            pixels[rows], wrong = self._processes.load(sound, boxes)
            for place, reason in wrong.items():
                bad[rows[place]] = reason
        else:
            for row, loaded in zip(rows, self._threads.map(self._prepare, sound, boxes), strict=True):
                if isinstance(loaded, Bad):
                    bad[row] = loaded
                else:
                    pixels[row] = loaded
        decoded = set(rows)
        for row, reason in bad.items():
            if row in decoded:
                name = self._source.record(samples[row]).id
                bad[row] = Bad(reason.reason, f"record {name}: {reason.message}")
        return pixels, bad

    def _find(self, sample: int) -> ImageData | Bad:
        try:
            record = self._source.record(sample)
        except RecordError as error:
            return Bad(error.reason, str(error))
        if record.image is None:
            return Bad("no picture", f"data: record {record.id} has no picture; remove it or train on text only")
        return record.image

    def _prepare(self, image: ImageData, window: Window) -> UInt8[np.ndarray, "height width 3"] | Bad:
        try:
            return load_image(image, options=self._options, window=window)
        except RecordError as error:
            return Bad(error.reason, str(error))


def _as_window(values: Sequence[float]) -> Window:
    left, top, right, bottom = values
    return left, top, right, bottom


def load_all(source: Source, *, options: ImageOptions) -> UInt8[np.ndarray, "count height width 3"]:
    """Returns every picture of a small source, in order.

    Raises:
        RecordError: the first picture that cannot be used.
    """
    images, bad = ImageLoader(source, options, cache_bytes=0).load(range(len(source)))
    if bad:
        first = bad[min(bad)]
        raise RecordError(first.message, reason=first.reason)
    return images
