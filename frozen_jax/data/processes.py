"""Preparing pictures in processes of their own: what a machine with many cores needs, since Python's threads share one
interpreter. The pixels are those of `images.py` to the bit; `worker.py` is the other end.

Next in the data flow: `loading.py`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import queue
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from frozen_jax.data.dirty import Bad
from frozen_jax.data.images import ImageOptions
from frozen_jax.data.records import ImageData
from frozen_jax.data.worker import describe_image

Window = tuple[float, float, float, float]
CHUNK = 8
"""Pictures per request: enough that the parent's share per picture is small, few enough to spread a batch."""

_PIPE_BYTES = 1 << 20


class ImageProcesses:
    """A few worker processes, each served by a thread that waits for it; they end with this process."""

    def __init__(self, count: int, options: ImageOptions):
        """Starts the processes.

        Args:
            count: of processes, at least 1.
            options: how pictures are prepared.
        """
        self._options = options
        self._threads = ThreadPoolExecutor(count, "image-processes")
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        for _ in range(count):
            self._idle.put(_start())

    def load(
        self, images: Sequence[ImageData], windows: Sequence[Window]
    ) -> tuple[UInt8[np.ndarray, "B height width 3"], dict[int, Bad]]:
        """Returns (pictures, what went wrong by place); those that went wrong are black."""
        size = self._options.size
        pixels = np.zeros((len(images), size, size, 3), np.uint8)
        begins = range(0, len(images), CHUNK)
        chunks = [(images[b : b + CHUNK], windows[b : b + CHUNK], pixels[b : b + CHUNK]) for b in begins]
        bad: dict[int, Bad] = {}
        for begin, wrong in zip(begins, self._threads.map(self._load_chunk, chunks), strict=True):
            bad |= {begin + place: reason for place, reason in wrong.items()}
        return pixels, bad

    def close(self) -> None:
        """Ends the processes."""
        self._threads.shutdown()
        while not self._idle.empty():
            process = self._idle.get()
            process.communicate()  # closes its input, at which it ends

    def _load_chunk(self, chunk: tuple[Sequence[ImageData], Sequence[Window], np.ndarray]) -> dict[int, Bad]:
        images, windows, pixels = chunk
        process = self._idle.get()
        try:
            answer = _ask(process, self._options, images, windows, pixels)
        except (OSError, EOFError, ValueError):  # the worker died: a decoder crashed, or memory ran out
            process.kill()
            process.wait()
            process = _start()
            answer = None
        finally:
            self._idle.put(process)
        if answer is not None:
            return answer
        pixels[:] = 0
        if len(images) == 1:
            return {0: Bad("damaged", "image: its decoding ended a worker process; remove the picture")}
        wrong: dict[int, Bad] = {}
        for place in range(len(images)):
            part = slice(place, place + 1)
            alone = self._load_chunk((images[part], windows[part], pixels[part]))
            if alone:
                wrong[place] = alone[0]
        return wrong


def _start() -> subprocess.Popen[bytes]:
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, "-m", "frozen_jax.data.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        start_new_session=True,  # an interrupt from the keyboard is for the parent; the worker ends when its input does
    )
    with contextlib.suppress(AttributeError, OSError):  # Linux: a larger pipe means fewer switches between processes
        for pipe in filter(None, (process.stdin, process.stdout)):
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return process


def _ask(
    process: subprocess.Popen[bytes],
    options: ImageOptions,
    images: Sequence[ImageData],
    windows: Sequence[Window],
    pixels: np.ndarray,
) -> dict[int, Bad]:
    """Sends one request and reads the pixels straight into their place.

    Raises:
        OSError, EOFError, ValueError: the worker has died.
    """
    requests, answers = process.stdin, process.stdout
    if requests is None or answers is None:
        raise EOFError("worker without pipes")
    described = [describe_image(image) for image in images]
    request = {"options": asdict(options), "items": [item for item, _ in described], "windows": list(windows)}
    requests.write(json.dumps(request).encode() + b"\n")
    for _, data in described:
        requests.write(data)
    requests.flush()
    wrong = json.loads(answers.readline())
    view = pixels.data.cast("B")
    while view:
        count = answers.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError("worker ended in the middle of an answer")
        view = view[count:]
    return {int(place): Bad(reason, message) for place, (reason, message) in wrong.items()}
