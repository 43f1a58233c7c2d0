"""Worker processes: the same pixels as threads, bad pictures told alike, and a worker that dies is replaced."""

import os
import signal

import numpy as np
import pytest
from PIL import Image

from frozen_jax.data.images import ImageOptions
from frozen_jax.data.loading import ImageLoader
from frozen_jax.data.processes import ImageProcesses
from frozen_jax.data.records import FileSlice, MemorySource, Record


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    images = []
    for number in range(20):
        path = tmp_path / f"{number}.jpg"
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
        data = path.read_bytes()
        (tmp_path / "all.bin").write_bytes(b"abc" + data)
        kinds = (path, data, rng.integers(0, 256, (9, 9, 3), dtype=np.uint8), FileSlice(path, 0, len(data)))
        images.append(kinds[number % 4])
    images[5], images[11], images[13] = b"no picture", tmp_path / "missing.jpg", None
    return MemorySource([Record(f"r{i}", image, ("a",)) for i, image in enumerate(images)])


def test_the_same_pixels_and_the_same_complaints(source):
    windows = np.tile(np.array([0.1, 0.0, 0.9, 1.0]), (20, 1))
    threads = ImageLoader(source, ImageOptions(16), cache_bytes=0)
    processes = ImageLoader(source, ImageOptions(16), cache_bytes=0, processes=2)
    for part in (None, windows):
        expected, expected_bad = threads.load(range(20), part)
        pixels, bad = processes.load(range(20), part)
        np.testing.assert_array_equal(pixels, expected)
        assert bad == expected_bad and sorted(bad) == [5, 11, 13]
        assert bad[5].message.startswith("record r5: image")
    processes._processes.close()


def test_a_worker_that_dies_is_replaced():
    workers = ImageProcesses(1, ImageOptions(8))
    images, windows = [np.full((8, 8, 3), n, np.uint8) for n in range(10)], [(0.0, 0.0, 1.0, 1.0)] * 10
    expected, _ = workers.load(images, windows)
    victim = workers._idle.get()
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    workers._idle.put(victim)
    pixels, bad = workers.load(images, windows)
    np.testing.assert_array_equal(pixels, expected)
    assert not bad and pixels[7, 0, 0, 0] == 7
    workers.close()
